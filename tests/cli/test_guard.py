"""What is not foreseen, and signals at any moment: one line, an exit code, never a traceback."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import EXTRACT
from tests.command_line import Runner, command, environment

linux = pytest.mark.skipif(sys.platform != "linux", reason="signals and pipes of Linux")
ADVICE = "What was finished is kept: run the same command again to continue\n"


def raising(error: BaseException) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


def endless(*_: object) -> None:
    endless()


class Broken:
    """A result that no code expects."""

    def __len__(self) -> int:
        raise ZeroDivisionError


@pytest.fixture
def reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "temporary files"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


@pytest.mark.parametrize(
    ("bug", "shown"),
    [
        (raising(KeyError("mon\nday")), "KeyError: 'mon\\nday'"),
        (raising(AssertionError()), "AssertionError"),
        (raising(RuntimeError("two\nlines")), "RuntimeError: two\\nlines"),
        (lambda: Broken() or 1, "ZeroDivisionError"),
        (endless, "RecursionError: maximum recursion depth exceeded"),
    ],
    ids=["KeyError", "AssertionError", "RuntimeError", "ZeroDivisionError", "RecursionError"],
)
def test_a_bug_is_one_line_that_names_a_report(
    bug: Callable[..., None],
    shown: str,
    mstemba: Runner,
    reports: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mstemba.extractors.registry.listing", bug)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden secret")
    result = mstemba("backbones", "--json", "a file.json", cwd=reports.parent, expect=70)
    assert result.stdout == ""
    (report,) = reports.iterdir()
    assert result.stderr == (
        f"mstemba: internal error: {shown}; a report was written to {report}; please report it\n"
    )
    text = report.read_text()
    assert "Traceback (most recent call last):" in text
    assert shown.split(":")[0] in text.splitlines()[-1] or "two" in text
    assert "\ncommand: mstemba backbones --json 'a file.json'\n" in text
    for name in ("mstemba", "Python", "torch", "numpy", "platform"):
        assert re.search(rf"^{name}: .*\d", text, re.MULTILINE), name
    assert "hidden secret" not in text


def test_mstemba_debug_also_shows_the_traceback(
    mstemba: Runner, reports: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mstemba.extractors.registry.listing", raising(KeyError("monday")))
    debug = {"MSTEMBA_DEBUG": "1"}
    result = mstemba("backbones", cwd=reports.parent, expect=70, env=debug)
    assert result.stderr.startswith("Traceback")
    assert "mstemba: internal error: KeyError: 'monday'; a report " in result.stderr
    # Of an error that is none of ours, too.
    result = mstemba("status", cwd=reports.parent, expect=2, env=debug)
    assert result.stderr.startswith("Traceback")
    assert "\nmstemba: no workspace in this folder" in result.stderr


def test_without_a_folder_for_the_report_the_traceback_is_shown(
    mstemba: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mstemba.extractors.registry.listing", raising(KeyError("monday")))
    monkeypatch.setattr("tempfile.mkstemp", raising(OSError(28, "No space left on device")))
    result = mstemba("backbones", cwd=tmp_path, expect=70)
    assert result.stderr.startswith("Traceback")
    last = "mstemba: internal error: KeyError: 'monday'; please report it with the traceback above"
    assert result.stderr.splitlines()[-1] == last


@pytest.mark.parametrize("fails", ["importlib.metadata.version", "traceback.format_exception"])
def test_a_report_that_fails_itself_does_not_hide_the_bug(
    fails: str, mstemba: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mstemba.extractors.registry.listing", raising(KeyError("monday")))
    with monkeypatch.context() as patch:
        patch.setattr(fails, raising(MemoryError()))
        result = mstemba("backbones", cwd=tmp_path, expect=70)
    last = result.stderr.splitlines()[-1]
    assert last.startswith("mstemba: internal error: KeyError: 'monday'; please report it")


def test_what_a_lack_of_memory_leads_to_is_a_lack_of_memory(
    mstemba: Runner, reports: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = RuntimeError("the compiler has failed")
    error.__context__ = MemoryError()
    monkeypatch.setattr("mstemba.extractors.registry.listing", raising(error))
    result = mstemba("backbones", cwd=reports.parent, expect=1)
    assert result.stderr.startswith("mstemba: this machine does not have enough memory: ")
    assert list(reports.iterdir()) == []


def test_errors_that_are_the_cause_of_each_other_are_reported(
    mstemba: Runner, reports: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = KeyError("monday"), KeyError("tuesday")
    first.__cause__, second.__cause__ = second, first
    monkeypatch.setattr("mstemba.extractors.registry.listing", raising(first))
    result = mstemba("backbones", cwd=reports.parent, expect=70)
    assert "internal error: KeyError: 'monday'" in result.stderr


def test_a_backend_of_matplotlib_for_windows_has_no_effect(tmp_path: Path) -> None:
    # In a process of its own: matplotlib reads the variable when it is imported.
    program = (
        "import sys; sys.argv = ['mstemba', 'backbones']; from mstemba.guard import run; "
        "assert run() == 0; import matplotlib"
    )
    env = environment(MPLBACKEND="nonsense")
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=env, check=True)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (MemoryError(), "mstemba: this machine does not have enough memory: close"),
        (ModuleNotFoundError("No module named 'zarr'", name="zarr"), "mstemba: the package zarr "),
        (OSError(5, "Input/output error", "a.npy"), "mstemba: a.npy: Input/output error"),
    ],
)
def test_what_is_wrong_with_the_machine_is_no_bug(
    error: Exception,
    says: str,
    mstemba: Runner,
    reports: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mstemba.extractors.registry.listing", raising(error))
    result = mstemba("backbones", cwd=reports.parent, expect=1)
    assert result.stderr.startswith(says)
    assert result.stderr.count("\n") == 1
    assert list(reports.iterdir()) == []


def test_python_users_get_exceptions_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    import mstemba as package

    error = KeyError("monday")
    monkeypatch.setattr("mstemba.pipeline.detect.export.check_formats", raising(error))
    with pytest.raises(KeyError) as raised:
        package.export([])
    assert raised.value is error
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        package.nothing  # noqa: B018


@linux
@pytest.mark.parametrize("args", [("backbones",), ("backbones", "--json", "-"), ("--help",)])
def test_a_reader_that_has_gone_ends_the_command_quietly(
    args: tuple[str, ...], tmp_path: Path
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    result = subprocess.run(
        command(*args), cwd=tmp_path, env=environment(), stdout=writing, stderr=subprocess.PIPE
    )
    os.close(writing)
    assert (result.returncode, result.stderr) == (141, b"")


@linux
def test_a_full_disk_behind_standard_output_is_said(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            command("backbones"), cwd=tmp_path, env=environment(), stdout=full,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
    assert result.returncode == 1
    assert re.fullmatch(r"mstemba: .*the disk is full.*\n", result.stderr)


# A finder that no import passes unseen tells when the command's own code begins.
START = """
import os, sys
class Seen:
    def find_spec(self, name, path=None, target=None):
        if name == "mstemba.guard":
            os.write({pipe}, b"x")
            sys.meta_path.remove(self)
sys.meta_path.insert(0, Seen())
sys.argv = {argv}
from mstemba.__main__ import main
main()
"""


def interrupt(
    args: tuple[str | Path, ...], cwd: Path, waits: list[float], number: signal.Signals
) -> tuple[int, str]:
    """Start a command, wait, send the signal, and again; return its exit code and its errors."""
    reading, writing = os.pipe()
    program = START.format(pipe=writing, argv=["mstemba", *map(str, args)])
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=cwd,
        env=environment(),
        pass_fds=[writing],
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writing)
    os.read(reading, 1)
    os.close(reading)
    for wait in waits:
        time.sleep(wait)
        if process.poll() is None:
            os.killpg(process.pid, number)  # the decoders as well, like a terminal
    _, said = process.communicate(timeout=60)
    return process.returncode, said


SIGNALS = {"SIGINT": "interrupted", "SIGTERM": "terminated", "SIGHUP": "hung up"}


@linux
@pytest.mark.parametrize("name", SIGNALS)
def test_a_signal_while_the_command_starts_is_one_line(name: str, tmp_path: Path) -> None:
    number = signal.Signals[name]
    for _ in range(10):
        code, said = interrupt(("--help",), tmp_path, [0.02], number)
        if code != 0:  # on a busy machine it may have ended before the signal
            break
    assert (code, said) == (128 + number, f"mstemba: {SIGNALS[name]}. {ADVICE}")


@linux
def test_a_signal_that_is_ignored_stays_ignored(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        process = subprocess.Popen(command("backbones"), cwd=tmp_path, env=environment())
    finally:
        signal.signal(signal.SIGHUP, before)
    while process.poll() is None:
        process.send_signal(signal.SIGHUP)
        time.sleep(0.02)
    assert process.returncode == 0


@linux
@pytest.mark.slow
@pytest.mark.parametrize("name", SIGNALS)
@pytest.mark.parametrize("args", [("--help",), ("status",), EXTRACT], ids=lambda args: args[0])
def test_signals_at_any_moment(name: str, args: tuple[str, ...], workspace: Path) -> None:
    number = signal.Signals[name]
    random_ = random.Random(f"{name} {args}")
    ended = set()
    for _ in range(20):
        waits = [random_.uniform(0, random_.choice([0.02, 0.15, 1]))]
        if random_.random() < 0.5:
            waits.append(random_.uniform(0, 0.1))
        code, said = interrupt(args, workspace, waits, number)
        ended.add(code)
        assert "Traceback" not in said, (waits, said)
        assert "ignored" not in said, (waits, said)
        if code == 128 + number:
            # Without the advice in the milliseconds before the handler is there.
            whole = f"mstemba: {SIGNALS[name]}. {ADVICE}"
            assert said.endswith((whole, "mstemba: interrupted\n")), (waits, said)
        else:
            # In these milliseconds other signals end the process by themselves.
            assert code == 0 or (number != signal.SIGINT and code == -number), (waits, said)
    assert 128 + number in ended
