"""Locks of a store: one process works on an entry at a time, and a killed one blocks nobody."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock, Timeout

from mstemba.errors import StoreError
from mstemba.pipeline.caching.files import as_path
from mstemba.pipeline.caching.locks import StoreLocks
from mstemba.pipeline.features.store_files import folders, is_free
from tests.pipeline.features.test_store import ODD_IDS

# Children that have everything imported: their work begins at once.
processes: Any = multiprocessing.get_context("spawn" if sys.platform == "win32" else "forkserver")
posix = pytest.mark.skipif(sys.platform == "win32", reason="no flock")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "features" / "s.zarr"


def test_a_lock_is_held_by_one_until_it_is_released(root: Path) -> None:
    mine, theirs = StoreLocks(root), StoreLocks(root)
    lock = mine.acquire("a")
    assert lock is not None
    assert theirs.acquire("a") is None
    assert mine.acquire("a") is None
    assert theirs.acquire("b") is not None
    lock.release()
    lock.release()
    again = theirs.acquire("a")
    assert again is not None
    lock.release()  # its own is long gone
    assert mine.acquire("a") is None


def test_released_locks_leave_nothing_behind(root: Path) -> None:
    locks = StoreLocks(root)
    held = [locks.acquire("a"), locks.acquire("b"), locks.lock_store()]
    assert [f.name for f in root.parent.iterdir()] == [".s.zarr.locks"]
    for lock in held:
        assert lock is not None
        assert (root.parent / ".s.zarr.locks").is_dir()
        lock.release()
    assert list(root.parent.iterdir()) == []


def test_every_id_has_a_lock_of_its_own(root: Path) -> None:
    locks = StoreLocks(root)
    held = [locks.acquire(id) for id in [*ODD_IDS, "", "store", "store.lock"]]
    assert None not in held
    with locks.lock_store():
        assert all(locks.acquire(id) is None for id in ODD_IDS)
    for lock in held:
        assert lock is not None
        lock.release()
    assert list(root.parent.iterdir()) == []


@pytest.mark.parametrize("exists", [True, False])
def test_a_folder_has_the_same_locks_under_all_its_names(
    exists: bool, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root.parent.mkdir()
    if exists:
        root.mkdir()
        monkeypatch.chdir(root)
    (tmp_path / "link.zarr").symlink_to(root)
    (tmp_path / "elsewhere").symlink_to(root.parent)
    others = ["link.zarr", f"elsewhere/{root.name}", f"features/../elsewhere/{root.name}"]
    for other in [*(tmp_path / name for name in others), *[Path()] * exists]:
        for id in ("a", None):
            lock = StoreLocks(root).acquire(id)
            assert lock is not None
            assert StoreLocks(other).acquire(id) is None
            assert StoreLocks(other).waiting_for(None).endswith(f" {root.name}")
            StoreLocks(other).sweep()
            assert StoreLocks(other).acquire(id) is None
            lock.release()
    assert root.exists() == exists
    assert not list(tmp_path.rglob(".*"))


def _lock_by_two_names(root: Path, link: Path) -> None:
    if os.geteuid() == 0:
        os.setuid(65534)  # root may write anywhere
    lock = StoreLocks(link).acquire("a")
    assert lock is not None
    assert StoreLocks(root).acquire("a") is None
    assert [file.name for file in root.iterdir()] == [".locks"]
    assert is_free(root)
    assert folders(root) == []
    lock.release()
    assert list(root.iterdir()) == []


@posix
def test_a_store_whose_parent_is_read_only_has_its_locks_in_it() -> None:
    with tempfile.TemporaryDirectory() as name:  # other users may not enter the tests' folder
        disk, link = Path(name) / "disk", Path(name) / "link.zarr"
        (disk / "mine").mkdir(parents=True)
        link.symlink_to(disk / "mine")
        for folder, mode in ((Path(name), 0o755), (disk / "mine", 0o777), (disk, 0o555)):
            folder.chmod(mode)
        child = processes.Process(target=_lock_by_two_names, args=(disk / "mine", link))
        child.start()
        child.join()
        disk.chmod(0o755)
        assert child.exitcode == 0


def test_a_lock_may_be_released_by_another_thread(root: Path, tmp_path: Path) -> None:
    lock = StoreLocks(root).acquire("a")
    assert lock is not None
    same = tmp_path / "same file"
    same.hardlink_to(root.parent / ".s.zarr.locks" / "a.lock")
    with pytest.raises(Timeout):
        FileLock(same).acquire(blocking=False)
    thread = threading.Thread(target=lock.release)
    thread.start()
    thread.join()
    FileLock(same).acquire(blocking=False)


def test_a_file_is_removed_while_it_is_held(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else one process could lock it just before, and another one the next of the same name."""
    lock = StoreLocks(root).acquire("a")
    assert lock is not None
    release = FileLock.release

    def checked(self: Any, force: bool = False) -> None:
        assert not Path(self.lock_file).exists()
        release(self, force)

    monkeypatch.setattr(FileLock, "release", checked)
    lock.release()
    monkeypatch.undo()


def test_the_folder_may_be_taken_away_meanwhile(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a process that releases the last lock."""
    acquire = FileLock.acquire

    def late(self: Any, **options: Any) -> Any:
        monkeypatch.undo()
        (root.parent / ".s.zarr.locks").rmdir()
        return acquire(self, **options)

    monkeypatch.setattr(FileLock, "acquire", late)
    lock = StoreLocks(root).acquire("a")
    assert lock is not None
    assert (root.parent / ".s.zarr.locks" / "a.lock").exists()


def test_waiting_ends_when_the_lock_is_released(root: Path) -> None:
    lock = StoreLocks(root).acquire("a")
    assert lock is not None
    released = threading.Event()

    def release() -> None:
        time.sleep(0.2)
        released.set()
        lock.release()

    thread = threading.Thread(target=release)
    thread.start()
    waited = StoreLocks(root).wait_for("a")
    assert released.is_set()
    assert StoreLocks(root).acquire("a") is None
    thread.join()
    waited.release()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "process PID, which is importing a"),
        ("123 another-host extracting\n", "process 123 on another-host, which is extracting a"),
        ("", "another process, which is detecting in a"),  # it has not written it yet
        ("1234", "another process, which is detecting in a"),
        ("9" * 10_000, "another process, which is detecting in a"),
        ("\udcff\x1b[2J", "another process, which is detecting in a"),
    ],
)
def test_who_waits_says_for_whom(root: Path, content: str | None, said: str) -> None:
    lock = StoreLocks(root, "importing").acquire("a")
    assert lock is not None
    if content is not None:
        file = root.parent / ".s.zarr.locks" / "a.lock"
        file.write_bytes(content.encode(errors="surrogateescape"))
    news: list[str] = []

    def on_wait(line: str) -> None:
        news.append(line)
        lock.release()

    StoreLocks(root, "detecting in").wait_for("a", "a", on_wait=on_wait).release()
    said = said.replace("PID", str(os.getpid()))
    assert news == [f"waiting for {said}, and for 1 more video"]


def test_entries_that_others_hold_come_last(root: Path) -> None:
    mine, theirs = StoreLocks(root, "importing"), StoreLocks(root)
    held = theirs.acquire("a")
    assert held is not None
    seen = []
    for lock in mine.each("abc", lambda line: held.release()):
        with lock:
            assert theirs.acquire(lock.id) is None
            seen.append(lock.id)
    assert seen == ["b", "c", "a"]
    assert list(root.parent.iterdir()) == []


def test_where_no_file_can_be_made_the_error_says_which_folder_is_wanted(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    locks = StoreLocks(tmp_path / "file" / "s.zarr")
    for ask in (lambda: locks.acquire("a"), locks.lock_store):
        with pytest.raises(StoreError, match=r"Not a directory.*file has to be writable"):
            ask()
    (tmp_path / ".t.zarr.locks").write_text("mine")
    with pytest.raises(FileExistsError):
        StoreLocks(tmp_path / "t.zarr").acquire("a")


def test_behind_a_url_every_lock_is_granted() -> None:
    pytest.importorskip("upath")
    root = as_path("memory://bucket/s.zarr")
    assert root is not None
    for lock in (
        StoreLocks(root).acquire("a"),
        StoreLocks(root).acquire("a"),
        StoreLocks(root).wait_for("a"),
    ):
        assert lock is not None
        lock.release()
    with StoreLocks(root).lock_store(), StoreLocks(root).lock_store():
        pass


IDS = [f"v{number}" for number in range(50)]


def work(root: Path, held: Path, start: Any, taken: Any) -> None:
    """A child: take every id once, noting in `held` that it has it. A second note is an error."""
    locks = StoreLocks(root)
    todo = list(IDS)
    start.wait(60)
    while todo:
        id = todo.pop(0)
        lock = locks.acquire(id)
        if lock is None:
            taken["refused"] += 1
            lock = locks.wait_for(id) if taken["refused"] % 2 else None
        if lock is None:
            todo.append(id)
            continue
        with lock:
            (held / id).touch(exist_ok=False)
            time.sleep(0.001)
            (held / id).unlink()
    for _ in range(500):
        with contextlib.ExitStack() as stack:
            if lock := locks.acquire("hot"):
                stack.enter_context(lock)
                (held / "hot").touch(exist_ok=False)
                (held / "hot").unlink()


def test_racing_processes_never_hold_one_at_once(root: Path, tmp_path: Path) -> None:
    held = tmp_path / "held"
    held.mkdir()
    start = processes.Barrier(3)
    counts = processes.Manager().dict(refused=0)
    children = [processes.Process(target=work, args=(root, held, start, counts)) for _ in "abc"]
    for child in children:
        child.start()
    for child in children:
        child.join()
        assert child.exitcode == 0
    assert counts["refused"]
    assert list(root.parent.iterdir()) == []


def hold(root: Path, connection: Any) -> None:
    """A child: lock a video and the store, and hold them."""
    locks = StoreLocks(root)
    held = [locks.acquire("a"), locks.lock_store()]
    connection.send(None not in held)
    time.sleep(600)


@pytest.mark.slow
def test_a_killed_process_blocks_nobody(root: Path) -> None:
    locks = StoreLocks(root)
    for _ in range(5):
        here, there = processes.Pipe()
        child = processes.Process(target=hold, args=(root, there))
        child.start()
        assert here.recv()
        assert locks.acquire("a") is None
        child.kill()
        child.join()
        lock = locks.acquire("a")
        assert lock is not None
        with lock, locks.lock_store():
            pass
        assert list(root.parent.iterdir()) == []


@pytest.mark.parametrize("to", ["precious", "folder", "pipe", "nothing"])
def test_a_lock_file_that_is_a_symbolic_link_is_not_written_through(
    to: str, root: Path, tmp_path: Path
) -> None:
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    folder = root.parent / f".{root.name}.locks"
    folder.mkdir(parents=True)
    (folder / "a.lock").symlink_to(tmp_path / to)
    with pytest.raises(StoreError, match=r"a\.lock: found a link, expected a lock file"):
        StoreLocks(root).acquire("a")
    assert precious.read_text() == "mine"
    assert not (tmp_path / "nothing").exists()


@posix
def test_a_lock_file_that_is_a_hard_link_is_replaced_and_not_written_to(
    root: Path, tmp_path: Path
) -> None:
    precious = tmp_path / "precious"
    precious.write_text("mine")
    folder = root.parent / f".{root.name}.locks"
    folder.mkdir(parents=True)
    for id in ("a", "b"):
        os.link(precious, folder / f"{id}.lock")
    lock = StoreLocks(root).acquire("a")
    assert lock is not None
    assert StoreLocks(root).acquire("a") is None
    StoreLocks(root).sweep()
    assert os.listdir(folder) == ["a.lock"]
    lock.release()
    assert list(root.parent.iterdir()) == []
    assert (precious.read_text(), precious.stat().st_nlink) == ("mine", 1)


@posix
@pytest.mark.slow
def test_a_snapshot_by_hard_links_has_the_locks_of_living_processes_only(
    root: Path, tmp_path: Path
) -> None:
    here, there = processes.Pipe()
    child = processes.Process(target=hold, args=(root, there))
    child.start()
    assert here.recv()
    copy = tmp_path / "copy" / root.name
    shutil.copytree(root.parent, copy.parent, copy_function=os.link)
    for place in (root, copy):
        assert StoreLocks(place).acquire("a") is None
    child.kill()
    child.join()
    for first, second in ((root, copy), (copy, root)):
        held = [StoreLocks(place).acquire("a") for place in (first, second)]
        assert None not in held
        assert StoreLocks(first).acquire("a") is None
        for lock in held:
            assert lock is not None
            lock.release()
    for place in (root, copy):
        StoreLocks(place).sweep()
        assert list(place.parent.iterdir()) == []


@posix
@pytest.mark.slow
def test_snapshots_at_any_moment_let_no_two_processes_hold_one_lock(
    root: Path, tmp_path: Path
) -> None:
    held, snapshots = tmp_path / "held", tmp_path / "snapshots"
    held.mkdir()
    snapshots.mkdir()
    start = processes.Barrier(3)
    counts = processes.Manager().dict(refused=0)
    children = [processes.Process(target=work, args=(root, held, start, counts)) for _ in "abc"]
    for child in children:
        child.start()
    made = 0
    while any(child.is_alive() for child in children):
        with contextlib.suppress(FileNotFoundError):
            for file in root.parent.glob(".*.locks/*"):
                os.link(file, snapshots / str(made))
                made += 1
        time.sleep(0.001)
    assert [child.exitcode for child in children] == [0, 0, 0]
    assert made > 20
    assert list(root.parent.iterdir()) == []
