"""The guard around the command line: every exception becomes one line and an exit code.

An exception that is not the package's own is a bug: the traceback goes to a file, which the line
names. With MSTEMBA_DEBUG=1 standard error shows the traceback of every error.
"""

from __future__ import annotations

# Only what Python has in memory: the signals are handled before any file is imported.
import _signal
import atexit
import errno
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import threading
    from collections.abc import Callable
    from types import FrameType
    from typing import Any

INTERNAL_ERROR = 70
"""The exit code of a bug, EX_SOFTWARE of sysexits.h."""
READER_GONE = 141
"""The exit code if nobody reads the output any more, as of programs that end by SIGPIPE."""
SPIN_COUNT = "3000"
"""How often a waiting thread of GNU OpenMP checks before it sleeps. The default, 100 times higher,
may be 5 to 10 % faster on an idle machine; next to a busy process training takes 1.4 times as long.
"""
PACKAGES = (
    "mstemba", "torch", "torchvision", "numpy", "numba", "open_clip_torch", "av", "decord2", "zarr",
    "msgspec", "safetensors", "typer", "rich", "matplotlib", "pillow", "jinja2", "ray",
)  # fmt: skip
"""Packages whose versions are in the report of a bug."""
_SIGNALS = {_signal.SIGINT: "interrupted", _signal.SIGTERM: "terminated"}
if hasattr(_signal, "SIGHUP"):  # not on Windows
    _SIGNALS[_signal.SIGHUP] = "hung up"
_ADVICE = "What was finished is kept: run the same command again to continue"


class _Interruption:
    """The signal that ends the command."""

    number = 0
    """Zero if there was none."""
    at_once = False
    """Whether the next one ends the process without closing anything."""

    @classmethod
    def code(cls) -> int:
        return 128 + cls.number

    @classmethod
    def message(cls) -> str:
        return f"{_SIGNALS[cls.number]}. {_ADVICE}"


def run() -> int:
    """Run the command line and return its exit code. Exceptions are reported, not raised."""
    code = INTERNAL_ERROR
    try:
        _take_over()
        _run_command()
        code = 0
        # What Python could not write at its end would show a traceback.
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    except BaseException as error:
        _Interruption.at_once = True
        _Interruption.number = _Interruption.number or _signal_of(error)
        code = _report(error)
    _Interruption.at_once = True  # while Python ends
    return code


def _run_command() -> None:
    from mstemba.cli import app

    try:
        app(prog_name="mstemba")
    except SystemExit as ended:
        # Typer and rich turn Ctrl-C and a pipe that nobody reads into exit codes.
        if isinstance(ended.__context__, BrokenPipeError):
            raise ended.__context__ from None
        if ended.code:
            raise


def _take_over() -> None:
    """Set how this process treats signals, warnings and errors that nobody handles."""
    _Interruption.number, _Interruption.at_once = 0, False
    for number in _SIGNALS:
        # nohup, and shells that start a process in the background, have it ignored.
        if _signal.getsignal(number) != _signal.SIG_IGN:
            _signal.signal(number, _on_signal)
    # The last of the functions at exit: then nothing is left to be interrupted.
    atexit.register(_signal.signal, _signal.SIGINT, _signal.SIG_IGN)
    import threading
    import warnings

    if sys.unraisablehook is sys.__unraisablehook__:  # otherwise somebody watches
        sys.unraisablehook = _on_ignored_error
        threading.excepthook = _on_thread_error
    warnings.formatwarning = _formatter(warnings.formatwarning)
    if "OMP_WAIT_POLICY" not in os.environ:  # read when torch is loaded
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
    os.environ.pop("MPLBACKEND", None)  # figures go into files; matplotlib stops at unknown names
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):  # None if it is closed
            reconfigure(errors="backslashreplace")  # what the encoding lacks


def _on_signal(number: int, frame: FrameType | None) -> None:
    first, _Interruption.number = not _Interruption.number, _Interruption.number or number
    if first and not _Interruption.at_once:
        _Interruption.at_once = True
        raise KeyboardInterrupt
    # The second one does not wait until everything is closed. Only what is safe while something is
    # being printed; a bar on a terminal has hidden the cursor.
    cursor = "\x1b[?25h" if os.isatty(2) else ""
    try:
        os.write(2, f"{cursor}mstemba: {_Interruption.message()}\n".encode())
    finally:
        os._exit(_Interruption.code())


def _on_ignored_error(ignored: Any) -> None:
    """Handle what was raised where Python cannot raise it, such as in a destructor."""
    if isinstance(ignored.exc_value, KeyboardInterrupt) and _Interruption.number:
        # Interrupt again, out of here.
        import threading

        number, _Interruption.number = _Interruption.number, 0
        _Interruption.at_once = False
        threading.Timer(0.01, os.kill, (os.getpid(), number)).start()
    elif _debugging():
        sys.__unraisablehook__(ignored)


def _on_thread_error(error: threading.ExceptHookArgs) -> None:
    """Report an error that ends a thread; whoever waits for the thread notices its end."""
    if error.exc_value is not None and not isinstance(error.exc_value, SystemExit):
        _say(_out_of_memory(error.exc_value) or _internal_error(error.exc_value))


def _report(error: BaseException) -> int:
    """Print what ended the command, if there is anything to say, and return the exit code."""
    if isinstance(error, SystemExit):
        if _Interruption.number:
            _say(_Interruption.message())
            return _Interruption.code()
        return error.code if isinstance(error.code, int) else 1
    if isinstance(error, BrokenPipeError) and _is_reader_gone():
        _discard_output()
        return READER_GONE
    message, code = _explain(error)
    if _debugging():
        import traceback

        _write("".join(traceback.format_exception(error)))
    _say(message)
    return code


def _signal_of(error: BaseException) -> int:
    """Return SIGINT if an error means it although no signal was seen; otherwise 0."""
    typer_says = isinstance(error, SystemExit) and error.code == 128 + _signal.SIGINT
    return _signal.SIGINT if typer_says or isinstance(error, KeyboardInterrupt) else 0


def _explain(error: BaseException) -> tuple[str, int]:
    """Return the line about an error, and the exit code."""
    from mstemba.errors import MstembaError

    if _Interruption.number:  # libraries turn KeyboardInterrupt into errors of their own
        return _Interruption.message(), _Interruption.code()
    if isinstance(error, MstembaError):
        return str(error), error.exit_code
    if message := _out_of_memory(error):
        return message, 1
    if isinstance(error, ImportError) and not (error.name or "mstemba").startswith("mstemba"):
        return f"the package {error.name} cannot be imported ({error}): install mstemba again", 1
    if isinstance(error, OSError):
        return _explain_system(error), 1
    return _internal_error(error), INTERNAL_ERROR


def _out_of_memory(error: BaseException | None) -> str:
    """Return the line about a MemoryError, or what it has led to; empty if there was none."""
    seen = set[int]()  # a chain may be a circle
    while error is not None and not isinstance(error, MemoryError) and id(error) not in seen:
        seen.add(id(error))
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if not isinstance(error, MemoryError):
        return ""
    found = f" ({error})" if str(error) else ""
    advice = "close other programs, or lower --batch-size, --clip-length or --workers"
    return f"this machine does not have enough memory{found}: {advice}"


def _explain_system(error: OSError) -> str:
    from mstemba.pipeline.caching.files import describe_error, ends_the_run

    if error.filename is None and error.errno == errno.ENOENT:
        try:
            os.getcwd()
        except OSError:
            return "the current folder has been deleted; change to another one"
    if not ends_the_run(error):
        return describe_error(error)
    where = f"{error.filename}: " if error.filename else ""
    return (
        f"{where}the disk is full ({error.strerror}). What was finished is kept: "
        f"free some space and run the same command again"
    )


def _internal_error(error: BaseException) -> str:
    """Return the line about a bug, after its report was written."""
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    trace = ""
    try:
        import tempfile
        import traceback

        trace = "".join(traceback.format_exception(error))
        text = f"{_circumstances()}\n{trace}"
        handle, path = tempfile.mkstemp(prefix="mstemba-error-", suffix=".txt")
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    except Exception:  # no folder for temporary files, a full disk, no memory
        _write(trace)
        where = " with the traceback above" if trace else ", without its traceback"
        return f"internal error: {what}; please report it{where}"
    return f"internal error: {what}; a report was written to {path}; please report it"


def _circumstances() -> str:
    """Return the versions, the platform and the command line as lines of a report.

    No environment variables: they may hold passwords.
    """
    import platform
    import shlex
    import time
    from importlib.metadata import PackageNotFoundError, version

    lines = [
        f"time: {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}",
        f"command: {shlex.join(sys.argv)}",
        f"platform: {platform.platform()}",
        f"Python: {sys.version}",
    ]
    for package in PACKAGES:
        try:
            lines.append(f"{package}: {version(package)}")
        except PackageNotFoundError:
            lines.append(f"{package}: not installed")
    if torch := sys.modules.get("torch"):
        built = getattr(getattr(torch, "version", None), "cuda", None)
        lines.append(f"torch is loaded, CUDA: {built}")
    return "\n".join(lines) + "\n"


def _say(message: str) -> None:
    from mstemba.pipeline.progress import one_line

    _write(f"mstemba: {one_line(message)}\n")


def _write(text: str) -> None:
    """Write to standard error, if somebody reads it."""
    if sys.stderr is not None:  # print() would turn to standard output
        try:
            sys.stderr.write(text)
            sys.stderr.flush()
        except (OSError, ValueError):
            _discard_output()  # the terminal has gone


def _is_reader_gone() -> bool:
    """Return whether standard output or error is a pipe that nobody reads."""
    import select

    if not hasattr(select, "poll"):
        return True
    for number in (1, 2):
        poll = select.poll()
        poll.register(number, 0)
        if any(event & select.POLLERR for _, event in poll.poll(0)):
            return True
    return False


def _discard_output() -> None:
    """Point standard output and error to nowhere, so that their flush at exit does not fail."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        try:
            os.dup2(nowhere, number)
        except OSError as error:
            if error.errno != errno.EBADF:
                raise


def _debugging() -> bool:
    return os.environ.get("MSTEMBA_DEBUG", "") not in ("", "0")


def _formatter(other: Callable[..., str]) -> Callable[..., str]:
    """Return a function that formats our warnings as one line, and others as `other` does."""

    def format_warning(
        message: Warning | str, category: type[Warning], *where: Any, **line: Any
    ) -> str:
        from mstemba.errors import MstembaWarning

        if not issubclass(category, MstembaWarning):
            return other(message, category, *where, **line)
        from mstemba.pipeline.progress import one_line

        return f"warning: {one_line(str(message))}\n"

    return format_warning
