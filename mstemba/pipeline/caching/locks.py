"""Which process makes which entry of a store, so that several can work on one at a time."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from mstemba.errors import StoreError
from mstemba.pipeline.caching.files import FULL_DISK, folder_name, remote

if TYPE_CHECKING:
    from filelock import FileLock

_POLL = 0.05
"""Seconds from one look at a claim that is held to the next."""
_ATTEMPTS = 100
"""How often the folder of the locks may vanish under our hands before something else is wrong."""


class EntryLock:
    """This process's alone until it is released, dropped, or the process ends, however it does."""

    def __init__(self, lock: FileLock | None) -> None:
        self._lock = lock

    def release(self) -> None:
        """Let others have it. Releasing twice is harmless."""
        lock, self._lock = self._lock, None
        if lock is None:
            return
        file = Path(lock.lock_file)
        # Removed while it is held: whoever has it open by then sees that it has no name any more,
        # and opens a new one. On Windows open files stay.
        with contextlib.suppress(OSError):
            file.unlink()
        lock.release()
        with contextlib.suppress(OSError):  # not empty: other claims stand
            file.parent.rmdir()

    def __enter__(self) -> EntryLock:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


class StoreLocks:
    """Claims on the entries of the store at `root`.

    They are locks of the operating system on files in `.<store>.locks` beside the store. Released
    claims take their files with them, the last one the folder; a killed process leaves files
    behind, which hold nobody up and go with the next claim on the same video.

    For a store behind a URL there are no locks: every claim is granted at once, and that only one
    process writes there is the caller's affair.
    """

    def __init__(self, root: Path) -> None:
        self._folder = None if remote(root) else root.parent / f".{root.name}.locks"

    def take(self, id: str) -> EntryLock | None:
        """Claim a video; None when another process, or another claim of this one, has it.

        Raises StoreError where no lock can be made, OSError on a full disk.
        """
        return self._take(f"{folder_name(id)}.lock")

    def wait(self, *ids: str) -> EntryLock:
        """Claim one of these videos, the first that is free."""
        return self._wait(*(f"{folder_name(id)}.lock" for id in ids))

    def whole(self) -> EntryLock:
        """Claim, as soon as it is free, what belongs to the store as a whole.

        For short sections, with `with`. It keeps nobody from claiming videos.
        """
        return self._wait("store")

    def _wait(self, *names: str) -> EntryLock:
        while True:
            for name in names:
                if claim := self._take(name):
                    return claim
            time.sleep(_POLL)

    def _take(self, name: str) -> EntryLock | None:
        if self._folder is None:
            return EntryLock(None)
        from filelock import FileLock, Timeout  # here: looking up what is done takes no locks

        # Not of a thread: claims may be released by another one than took them.
        lock = FileLock(self._folder / name, thread_local=False)
        for _ in range(_ATTEMPTS):
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                lock.acquire(blocking=False)
                return EntryLock(lock)
            except Timeout:
                return None
            except (FileExistsError, FileNotFoundError) as error:
                failed = error  # another process released the last claim and took the folder away
            except OSError as error:
                if error.errno in FULL_DISK:
                    raise
                raise StoreError(
                    f"{self._folder}: {error.strerror}. A store is locked by files beside it: "
                    f"{self._folder.parent} has to be writable"
                ) from None
        raise failed
