"""What killed processes leave goes with the next write; nothing of a living one does."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from mstemba.errors import StoreError
from mstemba.pipeline.caching import files
from mstemba.pipeline.caching.locks import FolderLocks, StoreLocks

processes: Any = multiprocessing.get_context("spawn" if sys.platform == "win32" else "forkserver")
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no flock: by age alone")


def write_slowly(folder: Path, connection: Any) -> None:
    """A child: begin to write a file, and hold two locks, until it is told to end or killed."""

    def write(temporary: Path) -> None:
        temporary.write_text("half")
        connection.send(temporary.name)
        connection.recv()

    locks = [
        StoreLocks(folder / "s.zarr").acquire("a"),
        FolderLocks(folder, "testing").acquire("b"),
    ]
    files.write_atomically(folder / "f.json", write)
    for lock in locks:
        assert lock is not None
        lock.release()


def sweep(folder: Path) -> set[str]:
    """Sweep as a command does that writes there, and return what is left."""
    StoreLocks(folder / "s.zarr").sweep()
    FolderLocks(folder, "testing").sweep()
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}


def test_files_of_a_living_process_stay_and_those_of_a_killed_one_go(tmp_path: Path) -> None:
    for ending in ("kill", "end"):
        here, there = processes.Pipe()
        child = processes.Process(target=write_slowly, args=(tmp_path, there))
        child.start()
        temporary = here.recv()
        assert temporary.startswith(".writing-")
        assert sweep(tmp_path) == {temporary, ".s.zarr.locks/a.lock", ".locks/b.lock"}
        if ending == "kill":
            child.kill()
        else:
            here.send("end")
        child.join()
        assert sweep(tmp_path) == ({"f.json"} if ending == "end" else set())
        assert not list(tmp_path.glob(".*"))
    assert (tmp_path / "f.json").read_text() == "half"


def test_the_first_write_into_a_folder_sweeps_it(tmp_path: Path) -> None:
    for name in (".writing-1-ab.json", ".writing-2"):
        (tmp_path / name).write_text("half")
    files.write_text(tmp_path / "f.txt", "whole")
    assert [file.name for file in tmp_path.iterdir()] == ["f.txt"]


def test_a_writer_survives_a_sweep_at_any_moment(tmp_path: Path) -> None:
    """Also between making its file and locking it."""
    stop = processes.Event()
    children = [processes.Process(target=sweep_until, args=(tmp_path, stop)) for _ in "abc"]
    for child in children:
        child.start()
    try:
        for number in range(1500):
            files.write_text(tmp_path / "f.txt", str(number))
    finally:
        stop.set()
        for child in children:
            child.join()
    assert [child.exitcode for child in children] == [0, 0, 0]
    assert (tmp_path / "f.txt").read_text() == "1499"
    assert [file.name for file in tmp_path.iterdir()] == ["f.txt"]


def sweep_until(folder: Path, stop: Any) -> None:
    while not stop.is_set():
        files.sweep(folder)
        # AV1's encoder gives processes of root real-time priority: only a pause lets others run.
        time.sleep(1e-5)


def test_other_things_of_such_a_name_are_left_alone(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("mine")
    folder = tmp_path / "folder"
    (folder / ".writing-folder").mkdir(parents=True)
    (folder / ".writing-link").symlink_to(outside)
    (folder / ".hidden").write_text("mine")
    files.sweep(folder)
    assert sorted(file.name for file in folder.iterdir()) == [
        ".hidden", ".writing-folder", ".writing-link"
    ]  # fmt: skip
    assert outside.read_text() == "mine"
    files.sweep(tmp_path / "missing")


def test_where_files_cannot_be_locked_age_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: Any) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", unsupported)
    old, new = tmp_path / ".writing-old", tmp_path / ".writing-new"
    for file in (old, new):
        file.write_text("half")
    os.utime(old, (time.time() - 25 * 3600,) * 2)
    files.write_text(tmp_path / "f.txt", "whole")
    assert sorted(file.name for file in tmp_path.iterdir()) == [".writing-new", "f.txt"]


def test_a_folder_of_locks_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / ".s.zarr.locks").symlink_to(tmp_path / "outside")
    with pytest.raises(StoreError, match="a link, expected a folder of lock files"):
        StoreLocks(tmp_path / "s.zarr").acquire("a")
    StoreLocks(tmp_path / "s.zarr").sweep()
    assert list((tmp_path / "outside").iterdir()) == []


def test_hidden_files_are_not_visible(tmp_path: Path) -> None:
    for name in ("b.json", "a.json", ".writing-1.json", "._a.json", "a.csv"):
        (tmp_path / name).touch()
    assert [file.name for file in files.visible(tmp_path, "*.json")] == ["a.json", "b.json"]


def test_a_pipe_in_the_place_of_a_file_of_ours_is_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "v.json")
    files.write_text(tmp_path / "v.json", "whole")  # would wait for a reader
    assert (tmp_path / "v.json").is_file()
    assert (tmp_path / "v.json").read_text() == "whole"
