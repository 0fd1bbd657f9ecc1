"""The command line, in a process as a user starts it, or in this one, which is faster."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import pytest

import mstemba as package
from mstemba.__main__ import main
from mstemba.guard import INTERNAL_ERROR

ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def command(*args: str | Path) -> list[str]:
    return [sys.executable, "-m", "mstemba", *map(str, args)]


def environment(**more: str) -> dict[str, str]:
    """The caller's environment, naming no workspace, and this checkout from any folder."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("MSTEMBA_")}
    return {
        **kept,
        "PYTHONPATH": str(Path(package.__file__).parents[1]),
        # Several threads on such small work mostly wait for each other where the cores are shared.
        "OMP_NUM_THREADS": "1",
        **more,
    }


def mstemba(
    *args: str | Path,
    cwd: Path,
    expect: int | None = 0,
    env: dict[str, str] | None = None,
    before: Callable[[], None] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run `mstemba` and check its exit code (None: any but a bug's), and that nobody sees a
    traceback.

    `before` runs in the new process, before the command.
    """
    result = subprocess.run(
        command(*args),
        cwd=cwd,
        env=environment(**(env or {})),
        preexec_fn=before,
        capture_output=True,
        encoding="utf-8",
        errors="surrogateescape",
        timeout=300,
    )
    said = f"{' '.join(map(str, args))}\n{result.stdout}\n{result.stderr}"
    assert "Traceback" not in said, said
    assert expect in (None, result.returncode), f"exit code {result.returncode}: {said}"
    assert expect == INTERNAL_ERROR or result.returncode != INTERNAL_ERROR, said
    return result


class Runner(Protocol):
    """Runs `mstemba` with these words."""

    def __call__(
        self,
        *args: str | Path,
        cwd: Path,
        expect: int | None = 0,
        env: dict[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]: ...


@pytest.fixture(name="mstemba")
def in_this_process(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Runner:
    """Return `mstemba` in this process, which is faster; a bug fails the test."""
    # The command handles signals until its process ends, which here are pytest's again.
    handlers = {number: signal.getsignal(number) for number in ENDING_SIGNALS}
    monkeypatch.delenv("MSTEMBA_WORKSPACE", raising=False)
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])  # the decoder is a process

    def run(
        *args: str | Path,
        cwd: Path,
        expect: int | None = 0,
        env: dict[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        for name, value in (env or {}).items():
            monkeypatch.setenv(name, value)
        monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, "argv", ["mstemba", *map(str, args)])
        capfd.readouterr()
        # A process would print warnings on standard error.
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            try:
                with pytest.raises(SystemExit) as ended:
                    main()
            finally:
                for number, handler in handlers.items():
                    signal.signal(number, handler)
        said = capfd.readouterr()
        assert [str(w.message) for w in warned if w.category is UserWarning] == []
        code = ended.value.code or 0
        assert expect in (None, code), said
        assert expect == INTERNAL_ERROR or code != INTERNAL_ERROR, said
        return subprocess.CompletedProcess(args, int(code), said.out, said.err)

    return run


# What else may stand on stderr: lists, and what a stage is doing.
_NEWS = re.compile(
    r"warning: |failed: |(extract|train|evaluate|detect|export) \d+ %: |loading |scan backend |"
    r"recipe |\d+ training videos?, |subsets other |zero-shot: |replacing "
)


def complaint(result: subprocess.CompletedProcess[str]) -> str:
    """The one line that says what is wrong."""
    lines = [line for line in result.stderr.splitlines() if not _NEWS.match(line)]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("mstemba: ")
    return lines[0]
