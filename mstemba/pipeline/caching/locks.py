"""Locks between processes: one process at a time works on an entry of a folder."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import stat
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from mstemba.errors import MstembaWarning, StoreError
from mstemba.pipeline.caching.files import (
    FULL_DISK,
    LOCKS,
    UNSUPPORTED,
    folder_name,
    remote,
    sweep,
    try_lock,
)
from mstemba.reading.files import real_path
from mstemba.wording import counted

if TYPE_CHECKING:
    from filelock import FileLock

_POLL = 0.05
"""Seconds between two attempts to get a lock that another process holds."""
_ATTEMPTS = 100
"""How often the folder of the locks may vanish while a lock is made, before it is an error."""
_SUFFIX = ".lock"
_OWNER = re.compile(r"(\d{1,10}) (\S{1,64}) ([a-z ]{1,20})\n")
"""What a lock file says of the process that holds it: its id, its host and what it is doing."""


class EntryLock:
    """A lock that is held until it is released or dropped, or the process ends."""

    def __init__(self, id: str, lock: FileLock | None) -> None:
        self.id = id
        """Of the locked entry."""
        self._lock = lock

    def release(self) -> None:
        """Release the lock. Releasing it twice is harmless."""
        lock, self._lock = self._lock, None
        if lock is None:
            return
        file = Path(lock.lock_file)
        # Removed while the lock is held: a process that has the file open already sees that its
        # name is gone, and opens a new one. On Windows open files stay.
        with contextlib.suppress(OSError):
            file.unlink()
        lock.release()
        with contextlib.suppress(OSError):  # not empty: other locks are held
            file.parent.rmdir()

    def __enter__(self) -> EntryLock:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()


class Locks:
    """The locks of the entries of a folder, and one for the folder as a whole.

    They are operating-system locks on files, in which the process that holds them is named. A
    released lock removes its file, the last one the folder of these files. A killed process leaves
    files behind; they block nobody, and `sweep` removes them.

    On a file system that cannot lock files every lock is granted at once, and the caller must see
    to it that only one process writes there. A MstembaWarning says so, once for each folder.

    Args:
        folder: Of the lock files; None grants every lock.
        name: Of the store or run, shown to waiting processes.
        doing: What this process does with an entry, for those that wait: `extracting`.
    """

    def __init__(self, folder: Path | None, name: str, doing: str) -> None:
        self._folder, self._name, self._doing = folder, name, doing

    def acquire(self, id: str | None) -> EntryLock | None:
        """Lock an entry, without waiting.

        Args:
            id: The id of the entry's video; None for what belongs to the whole folder. Its entries
                can be locked meanwhile.

        Returns:
            The lock; None when another process, or another lock of this one, holds it.

        Raises:
            StoreError: No lock can be made here.
            OSError: The disk is full.
        """
        return self._acquire(id or "", _file_name(id))

    def acquire_folder(self, name: str) -> EntryLock | None:
        """Lock an entry by the name of its folder, as `acquire` does."""
        return self._acquire("", f"{name}{_SUFFIX}")

    def wait_for(
        self, *ids: str | None, on_wait: Callable[[str], None] = lambda line: None
    ) -> EntryLock:
        """Wait until one of these entries is free, and lock it.

        Args:
            ids: As that of `acquire`.
            on_wait: Receives a line that says which process holds the first of them, if it is not
                free at once.
        """
        told = False
        while True:
            for id in ids:
                if lock := self.acquire(id):
                    return lock
            time.sleep(_POLL)
            if not told:
                on_wait(self.waiting_for(*ids))
            told = True

    def waiting_for(self, *ids: str | None) -> str:
        """Return a line that says which process holds the first of these entries."""
        more = f", and for {counted(len(ids) - 1, 'more video')}" if len(ids) > 1 else ""
        shown = self._name if ids[0] is None else ids[0]
        return f"waiting for {self._owner(ids[0])} {shown}{more}"

    def each(self, ids: Iterable[str], on_wait: Callable[[str], None]) -> Iterator[EntryLock]:
        """Lock one entry after the other; those that other processes hold come last.

        Yields:
            The lock of an entry, for the caller to release before the next one.
        """
        held = []
        for id in ids:
            if lock := self.acquire(id):
                yield lock
            else:
                held.append(id)
        while held:
            lock = self.wait_for(*held, on_wait=on_wait)
            held.remove(lock.id)
            yield lock

    def lock_store(self, on_wait: Callable[[str], None] = lambda line: None) -> EntryLock:
        """Wait until what belongs to the whole folder is free, and lock it.

        Hold it for a short time, in a `with` block.
        """
        return self.wait_for(None, on_wait=on_wait)

    def sweep(self) -> None:
        """Remove the lock files of processes that are gone, where that is allowed."""
        if self._folder is None or not self._folder.is_dir():
            return
        with contextlib.suppress(OSError, StoreError):
            for name in os.listdir(self._folder):
                if lock := self._acquire("", name):
                    lock.release()
            self._folder.rmdir()  # a process may have been killed before it made its first lock

    def _owner(self, id: str | None) -> str:
        """Return the process that holds an entry, and what it does with it."""
        assert self._folder is not None
        try:
            with (self._folder / _file_name(id)).open("rb") as file:
                found = _OWNER.fullmatch(file.read(200).decode())
        except (OSError, ValueError):
            found = None  # it has just ended; on Windows its file cannot be read
        if found is None:
            return f"another process, which is {self._doing}"
        pid, host, doing = found.groups()
        where = "" if host == socket.gethostname() else f" on {host}"
        return f"process {pid}{where}, which is {doing}"

    def _acquire(self, id: str, name: str) -> EntryLock | None:
        if self._folder is None:
            return EntryLock(id, None)
        from filelock import FileLock, Timeout  # here: reading a store takes no locks

        file = self._folder / name

        def check(descriptor: int) -> None:
            """Raise FileExistsError if the lock file was replaced or has other hard links."""
            state = os.fstat(descriptor)
            replaced = state.st_nlink > 1 or not os.path.samestat(state, os.lstat(file))
            if replaced and os.name != "nt":  # where open files stay
                raise FileExistsError(errno.EEXIST, "the lock file was replaced", str(file))

        # Not thread-local: another thread than the one that acquired it may release it.
        lock = FileLock(file, thread_local=False, on_acquired=check)
        for _ in range(_ATTEMPTS):
            try:
                if not _can_lock(self._folder.parent.absolute()):
                    return EntryLock(id, None)
                if self._folder.is_symlink():
                    raise StoreError(
                        f"{self._folder}: a link, expected a folder of lock files; delete it"
                    )
                self._folder.mkdir(parents=True, exist_ok=True)
                if not _remove_hard_link(file):
                    return None
                lock.acquire(blocking=False)
            except Timeout:
                return None
            except (FileExistsError, FileNotFoundError) as error:
                # Another process released the last lock and removed the folder, or the file.
                failed = error
            except OSError as error:
                if error.errno in FULL_DISK:
                    raise
                raise StoreError(
                    f"{self._folder}: {error.strerror}. It holds lock files: "
                    f"{self._folder.parent} has to be writable, on a file system with locks"
                ) from None
            else:
                with contextlib.suppress(OSError):  # it only says who holds the lock
                    owner = f"{os.getpid()} {socket.gethostname()} {self._doing}\n"
                    file.write_text(owner)
                return EntryLock(id, lock)
        raise failed


class StoreLocks(Locks):
    """The locks of the store or file at `root`, in `.<name>.locks` next to it.

    They are in `.locks` in a store in a folder that may not be written to, such as a mount point.
    Links are followed: a store has one such folder under all its names. A store behind a URL has no
    locks: every lock is granted.
    """

    def __init__(self, root: Path, doing: str = "working on") -> None:
        folder = None
        if not remote(root):
            root = real_path(root)
            folder = root.parent / f".{root.name}.locks"
            if root.is_dir() and os.access(root, os.W_OK) > os.access(root.parent, os.W_OK):
                folder = root / LOCKS
        super().__init__(folder, root.name, doing)


class FolderLocks(Locks):
    """The locks of a local folder of results, in `.locks` in it: its parent may be read-only."""

    def __init__(self, folder: Path, doing: str) -> None:
        super().__init__(folder / LOCKS, real_path(folder).name, doing)
        self._results = folder

    def sweep(self) -> None:
        """Remove the lock files and incomplete files of processes that are gone."""
        super().sweep()
        sweep(self._results)


def _file_name(id: str | None) -> str:
    return "store" if id is None else f"{folder_name(id)}{_SUFFIX}"


def _remove_hard_link(file: Path) -> bool:
    """Remove a lock file that is a hard link, as a snapshot (`cp -al`) has it, and is not locked.

    The file behind it stays as it is under its other names.

    Returns:
        False if a process holds a lock on it.

    Raises:
        StoreError: It is a symbolic link, or a hard link where files cannot be locked in this way.
    """
    with contextlib.suppress(FileNotFoundError):
        state = os.lstat(file)
        if not stat.S_ISLNK(state.st_mode) and state.st_nlink == 1:
            return True
        locked = None
        if stat.S_ISREG(state.st_mode):
            # Not written to. What has become a link or a pipe meanwhile is not followed.
            flags = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
            descriptor = os.open(file, os.O_RDWR | flags)
            try:
                locked = try_lock(descriptor)
                # Removed under its lock, and only if another process has not just replaced it.
                if locked and os.path.samestat(os.fstat(descriptor), os.lstat(file)):
                    file.unlink()
            finally:
                os.close(descriptor)
        if locked is None:
            raise StoreError(f"{file}: found a link, expected a lock file; delete it")
        return locked
    return True


@cache
def _can_lock(folder: Path) -> bool:
    """Return whether files in a folder, which is created, can be locked; warn if they cannot.

    Tried here, because filelock replaces a missing flock by files that outlive a killed process.
    """
    try:
        import fcntl
    except ImportError:
        return True  # Windows has locks of its own
    if not folder.exists():
        folder.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError as error:
        if error.errno not in {*UNSUPPORTED, errno.ENOLCK}:
            raise
        problem = error.strerror
    warnings.warn(
        f"{folder}: this file system cannot lock files ({problem}): run only one command at a time "
        f"that writes there",
        MstembaWarning,
        stacklevel=2,
    )
    return False
