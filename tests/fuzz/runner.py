"""Run a command in a process of its own, and judge it: what no input may ever bring about."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path

from tests.fuzz.mutations import CANARY

SPARE = 500 * 2**20
"""Bytes of memory that a command may take beyond four times the file and an idle process."""
ADDRESSES = 6 * 2**30
"""Bytes of address space beyond the idle process: the machine is not to suffer."""
_PROTECTED = ("features/*/v0/*", "annotations/*", "predictions/*", "weights/*", "videos/*")
"""What the damaged file has no part in: it stays as it is if a command fails."""
_LINKED = 2**20  # larger files of the template are linked, not copied


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    """Exit code; negative for a signal."""
    output: str
    seconds: float
    memory: int
    """Peak of resident bytes of the process or one of its own processes."""
    timed_out: bool


def run(target: Callable[[], None], log: Path, seconds: float = 60.0) -> Outcome:
    """Run a function in a forked process with its own process group, and wait for it.

    Args:
        target: Ends with SystemExit, as a command does; any other exception is printed.
        log: File of its standard output and error.
        seconds: After these it is killed, with all processes it has started.
    """
    begin = time.monotonic()
    pid = os.fork()
    if pid == 0:
        _child(target, log)
    timed_out, deadline, pause = False, begin + seconds, 0.002
    while True:
        found, status, usage = os.wait4(pid, os.WNOHANG)
        if found:
            break
        if time.monotonic() > deadline and not timed_out:
            timed_out = True
            _kill_group(pid)
        time.sleep(pause)
        pause = min(0.05, pause * 1.3)
    _kill_group(pid)  # what it left running
    output = log.read_bytes().decode("utf-8", "replace")
    code = os.waitstatus_to_exitcode(status)
    peak = usage.ru_maxrss * 1024
    return Outcome(code, output, time.monotonic() - begin, peak, timed_out)


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _child(target: Callable[[], None], log: Path) -> None:
    """Run in the forked process, and never return."""
    code = 70
    try:
        os.setsid()
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        null = os.open(os.devnull, os.O_RDONLY)
        for stream, number in ((null, 0), (file, 1), (file, 2)):
            os.dup2(stream, number)
        sys.stdout, sys.stderr = (os.fdopen(n, "w", encoding="utf-8") for n in (1, 2))
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        size = pages * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + ADDRESSES,) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        target()
        code = 0
        for thread in threading.enumerate():
            if not thread.daemon and thread is not threading.current_thread():
                thread.join()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def command(words: list[str], case: Case) -> Callable[[], None]:
    """Return a function that runs `mstemba` with these words in a case's workspace."""

    def target() -> None:
        from mstemba.__main__ import main

        os.chdir(case.workspace)
        os.environ.update(HOME=str(case.home), TMPDIR=str(case.temporary))
        tempfile.tempdir = None
        sys.argv = ["mstemba", *words]
        main()

    return target


class Case:
    """The folders of one case: a copy of the template, and what is watched around it."""

    def __init__(self, folder: Path, template: Path) -> None:
        self.folder = folder
        # Deep enough that ../../x stays inside the folder.
        self.workspace = folder / "deep" / "er" / "workspace"
        self.home, self.temporary = folder / "home", folder / "tmp"
        self.outside = folder / "outside"
        self.log = folder.with_suffix(".log")
        shutil.copytree(template, self.workspace, copy_function=_copy, symlinks=True)
        for made in (self.home, self.temporary, self.outside / "folder"):
            made.mkdir(parents=True)
        (self.outside / "secret.txt").write_text("a secret\n")
        (self.outside / "folder" / "file.json").write_text("{}\n")

    def around(self) -> dict[str, str]:
        """Return every file and folder outside the workspace, with its content."""
        return dict(_contents(self.folder, skip=self.workspace))

    def inside(self) -> dict[str, str]:
        """Return every file and folder of the workspace, with its content."""
        return dict(_contents(self.workspace))

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.log.unlink(missing_ok=True)


def _copy(source: str, target: str) -> str:
    if os.path.getsize(source) > _LINKED:
        os.link(source, target)
        return target
    return str(shutil.copy2(source, target))


def _contents(folder: Path, skip: Path | None = None) -> Iterator[tuple[str, str]]:
    for path in sorted(folder.iterdir()):
        name = os.fsencode(path.name).decode("utf-8", "backslashreplace")
        if path == skip:
            continue
        if path.is_symlink():
            yield name, f"link to {os.readlink(path)}"
        elif path.is_dir():
            yield name, "folder"
            yield from ((f"{name}/{inner}", what) for inner, what in _contents(path, skip))
        elif not path.is_file():
            yield name, "other"
        elif path.stat().st_nlink > 1:  # a link to the template's: the same while it is one
            yield name, "linked"
        else:
            yield name, hashlib.sha256(path.read_bytes()).hexdigest()


def differences(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """Return what was made, changed or deleted."""
    names = sorted(before.keys() | after.keys())
    return [
        f"{'made' if n not in before else 'deleted' if n not in after else 'changed'}: {n}"
        for n in names
        if before.get(n) != after.get(n)
    ]


def examine(
    target: Callable[[], None],
    case: Case,
    damaged: str,
    idle: int,
    size: int = 0,
    seconds: float = 60.0,
) -> tuple[Outcome, list[str]]:
    """Run a function in a case, and return how it ended and all that is wrong with it.

    Args:
        target: See `run`.
        case: Where it runs.
        damaged: The damaged file, below the workspace.
        idle: See `faults`.
        size: Of the damaged file.
        seconds: See `run`.
    """
    around, inside = case.around(), case.inside()
    outcome = run(target, case.log, seconds)
    found = list(faults(outcome, idle, size))
    after = case.inside()
    for change in differences(around, case.around()):
        found.append(f"{'executed' if CANARY in change else 'outside the workspace'}: {change}")
    found += [f"left behind: {n}" for n in after if ".writing-" in n and n not in inside]
    for change in differences(inside, after) if outcome.code else ():
        what, name = change.split(": ", 1)
        kept = any(fnmatch(name, pattern) for pattern in _PROTECTED)
        if what != "made" and kept and not name.startswith(damaged):
            found.append(f"after a failure {change}")
    reports = [n for n in case.around().keys() - around.keys() if (case.folder / n).is_file()]
    texts = [f"\n{n}:\n{(case.folder / n).read_text(errors='replace')}" for n in sorted(reports)]
    return replace(outcome, output=outcome.output + "".join(texts)), found


def faults(outcome: Outcome, idle: int, size: int) -> Iterator[str]:
    """Yield what is wrong with how a command ended.

    Args:
        outcome: Of the command.
        idle: Resident bytes of a process that has imported the same and does nothing.
        size: Bytes of the damaged file.
    """
    lines = outcome.output.splitlines()
    if outcome.timed_out:
        yield f"not finished after {outcome.seconds:.0f} s"
    elif "Traceback (most recent call last)" in outcome.output:
        yield f"traceback: {lines[-1] if lines else ''}"
    elif bugs := [line for line in lines if "internal error: " in line]:
        yield f"exit code {outcome.code}, {bugs[0].partition('; a report')[0]}"
    elif memory := [line for line in lines if "not have enough memory" in line]:
        yield f"asked for memory that nobody has: {memory[0]}"
    elif outcome.code not in (0, 1, 2):
        yield f"exit code {outcome.code}"
    else:
        errors = [line for line in lines if line.startswith("mstemba: ")]
        listed = [line for line in lines if re.match(r"\s*failed: |.*(skipped|failed)", line)]
        if outcome.code == 2 and len(errors) != 1:
            yield f"exit code 2 with {len(errors)} error lines"
        if outcome.code == 1 and len(errors) != 1 and not listed:
            yield "exit code 1, and no line says what failed"
        if outcome.code == 0 and errors:
            yield "an error line, and exit code 0"
    if outcome.memory > idle + 4 * size + SPARE:
        yield f"{(outcome.memory - idle) >> 20} MB of memory for a file of {size:,} bytes"
