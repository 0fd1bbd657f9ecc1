"""Shared memory: a decoder process writes frames where the main process reads them."""

from __future__ import annotations

import mmap
import os
import tempfile

import numpy as np
from numpy.typing import NDArray

WINDOWS = os.name == "nt"
# Blocks in one mapping, each of which costs a file descriptor. Memory is taken when it is written.
_CHUNK = 8


def new_memory() -> int:
    """Return a file descriptor of memory that a child process can inherit.

    Linux keeps it out of /dev/shm, which containers limit to 64 MiB. It vanishes with the last
    process that has it open. Windows has only named shared memory: there it returns 0.
    """
    if hasattr(os, "memfd_create"):
        return os.memfd_create("mstemba")
    if WINDOWS:
        return 0
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


class Blocks:
    """Blocks of one size in shared memory, by number.

    Args:
        memory: A descriptor from `new_memory`, maybe of the parent process.
        name: The same in both processes, and in no other pair of them.
        size: Bytes of a block.
    """

    def __init__(self, memory: int, name: str, size: int) -> None:
        self._memory, self._name = memory, name
        self._size = -(-size // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
        self._count = 0
        self._maps: dict[int, mmap.mmap] = {}

    def add(self) -> int:
        """Make room for one more block, and return its number."""
        self._count += 1
        if not WINDOWS and self._count % _CHUNK == 1:
            os.ftruncate(self._memory, (self._count + _CHUNK - 1) * self._size)
        return self._count - 1

    def array(self, number: int, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """Return the uint8 array of this shape at the beginning of a block."""
        chunk, place = divmod(number, _CHUNK)
        if chunk not in self._maps:
            length = _CHUNK * self._size
            self._maps[chunk] = (
                mmap.mmap(-1, length, tagname=f"mstemba-{self._name}-{chunk}")  # type: ignore[call-arg]
                if WINDOWS
                else mmap.mmap(self._memory, length, offset=chunk * length)
            )
        count = int(np.prod(shape))
        block = np.frombuffer(self._maps[chunk], np.uint8, count, place * self._size)
        return block.reshape(shape)
