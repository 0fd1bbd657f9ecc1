"""Locks between processes: one process at a time works on an entry of a store."""

from __future__ import annotations

import contextlib
import errno
import tempfile
import time
import warnings
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from mstemba.errors import MstembaWarning, StoreError
from mstemba.pipeline.caching.files import FULL_DISK, UNSUPPORTED, folder_name, remote

if TYPE_CHECKING:
    from filelock import FileLock

_POLL = 0.05
"""Seconds between two attempts to get a lock that another process holds."""
_ATTEMPTS = 100
"""How often the folder of the locks may vanish while a lock is made, before it is an error."""


class EntryLock:
    """A lock that is held until it is released or dropped, or the process ends."""

    def __init__(self, lock: FileLock | None) -> None:
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


class StoreLocks:
    """The locks of the store at `root`: one for each entry, and one for the store itself.

    They are operating-system locks on files in `.<store>.locks` next to the store. A released
    lock removes its file, the last one the folder. A killed process leaves files behind; they
    block nobody, and the next lock on the same entry removes them.

    A store behind a URL, or on a file system that cannot lock files, has no locks: every lock is
    granted at once, and the caller must see to it that only one process writes there. For a file
    system a MstembaWarning says so, once for each folder.
    """

    def __init__(self, root: Path) -> None:
        self._folder = None if remote(root) else root.parent / f".{root.name}.locks"

    def acquire(self, id: str) -> EntryLock | None:
        """Lock an entry, without waiting.

        Args:
            id: The id of the entry's video.

        Returns:
            The lock; None when another process, or another lock of this one, holds it.

        Raises:
            StoreError: No lock can be made here.
            OSError: The disk is full.
        """
        return self._acquire(f"{folder_name(id)}.lock")

    def wait_for(self, *ids: str) -> EntryLock:
        """Wait until one of these entries is free, and lock it."""
        return self._wait_for(*(f"{folder_name(id)}.lock" for id in ids))

    def lock_store(self) -> EntryLock:
        """Wait until what belongs to the whole store is free, and lock it.

        Hold it for a short time, in a `with` block. Its entries can be locked meanwhile.
        """
        return self._wait_for("store")

    def _wait_for(self, *names: str) -> EntryLock:
        while True:
            for name in names:
                if lock := self._acquire(name):
                    return lock
            time.sleep(_POLL)

    def _acquire(self, name: str) -> EntryLock | None:
        if self._folder is None:
            return EntryLock(None)
        from filelock import FileLock, Timeout  # here: reading a store takes no locks

        # Not thread-local: another thread than the one that acquired it may release it.
        lock = FileLock(self._folder / name, thread_local=False)
        for _ in range(_ATTEMPTS):
            try:
                if not _can_lock(self._folder.parent.absolute()):
                    return EntryLock(None)
                self._folder.mkdir(parents=True, exist_ok=True)
                lock.acquire(blocking=False)
                return EntryLock(lock)
            except Timeout:
                return None
            except (FileExistsError, FileNotFoundError) as error:
                failed = error  # another process released the last lock and removed the folder
            except OSError as error:
                if error.errno in FULL_DISK:
                    raise
                raise StoreError(
                    f"{self._folder}: {error.strerror}. Locks are files next to the store: "
                    f"{self._folder.parent} has to be writable, on a file system with locks"
                ) from None
        raise failed


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
