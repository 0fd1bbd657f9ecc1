"""File systems without locks or without fsync: commands work, and say once what is missing."""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import EXTRACT, current_store, entries
from tests.command_line import complaint, environment, mstemba

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="flock is of POSIX")

# Python runs this first in every process.
SITE = """
import fcntl, os

def failing(number):
    def call(*_):
        if number:
            raise OSError(number, os.strerror(number))
    return call

fcntl.flock = failing({flock})
os.fsync = failing({fsync})
"""
WARNING = "this file system cannot lock files"


@pytest.fixture
def on(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, int], dict[str, str]]:
    """Return the environment in which flock and fsync fail with these errors."""

    def make(flock: int, fsync: int) -> dict[str, str]:
        site = tmp_path_factory.mktemp("site")
        (site / "sitecustomize.py").write_text(SITE.format(flock=flock, fsync=fsync))
        return {"PYTHONPATH": f"{site}:{environment()['PYTHONPATH']}"}

    return make


def warned(stderr: str) -> list[str]:
    """Return the folders that the warnings of missing locks name."""
    lines = [line for line in stderr.splitlines() if WARNING in line]
    assert all(line.startswith("warning: /") for line in lines), stderr
    return [line.removeprefix("warning: ").split(":")[0] for line in lines]


@pytest.mark.parametrize(
    ("flock", "fsync"),
    [
        pytest.param(errno.ENOSYS, errno.EINVAL, id="ENOSYS"),
        pytest.param(errno.ENOLCK, errno.ENOTSUP, id="ENOLCK", marks=pytest.mark.slow),
        pytest.param(errno.EOPNOTSUPP, errno.ENOSYS, id="EOPNOTSUPP", marks=pytest.mark.slow),
    ],
)
def test_commands_work_without_locks_and_fsync(
    flock: int,
    fsync: int,
    fresh: Path,
    finished: Path,
    on: Callable[[int, int], dict[str, str]],
) -> None:
    env = on(flock, fsync)
    first = mstemba(*EXTRACT, cwd=fresh, env=env)
    assert warned(first.stderr) == [str(fresh / "features")]
    assert "one command at a time" in first.stderr
    assert entries(current_store(fresh)) == entries(current_store(finished))
    assert "3 cached" in mstemba(*EXTRACT, cwd=fresh, env=env).stdout

    added = {"a.mp4": {"actions": [[0, 0.0, 1.0]], "duration": 2.0, "subset": "training"}}
    labels = json.loads((fresh / "labels.json").read_text())
    (fresh / "more.json").write_text(json.dumps({**labels, "videos": added}))
    merge = ("init", "--merge", "--annotations", "more.json")
    assert warned(mstemba(*merge, cwd=fresh, env=env).stderr) == [str(fresh)]
    status = mstemba("status", cwd=fresh, env=env)
    assert status.stderr == ""
    assert not list(fresh.rglob("*.lock*"))


def test_an_old_lock_of_a_dead_process_is_not_waited_for(
    fresh: Path, on: Callable[[int, int], dict[str, str]]
) -> None:
    locks = fresh / ".manifest.json.locks"
    locks.mkdir()
    (locks / "store").write_text("1\nanother-machine\n")
    merge = ("init", "--merge", "--annotations", "labels.json")
    mstemba(*merge, cwd=fresh, env=on(errno.ENOSYS, 0))


def test_other_failures_are_errors(fresh: Path, on: Callable[[int, int], dict[str, str]]) -> None:
    merge = ("init", "--merge", "--annotations", "labels.json")
    line = complaint(mstemba(*merge, cwd=fresh, expect=2, env=on(errno.EIO, 0)))
    assert "Input/output error" in line
    edited = json.loads((fresh / "labels.json").read_text())
    edited["videos"]["v0"]["actions"] *= 2
    (fresh / "labels.json").write_text(json.dumps(edited))
    line = complaint(mstemba(*merge, cwd=fresh, expect=1, env=on(0, errno.EIO)))
    assert "Input/output error" in line
