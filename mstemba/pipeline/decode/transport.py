"""Messages through a pipe: the pixels go beside the pickle, and are copied once at either end."""

from __future__ import annotations

import contextlib
import pickle
import struct
import sys
from typing import IO, Any

import numpy as np

_LENGTH = struct.Struct("<Q")
# What Linux lets anybody have; with its usual 64 KiB the two ends take turns waiting.
_PIPE_BYTES = 1 << 20


def send(pipe: IO[bytes], message: Any) -> None:
    """Write one message to an unbuffered pipe. Raises BrokenPipeError when nobody reads it."""
    buffers: list[pickle.PickleBuffer] = []
    body = pickle.dumps(message, protocol=5, buffer_callback=buffers.append)
    parts = [memoryview(body), *(buffer.raw() for buffer in buffers)]
    header = b"".join(_LENGTH.pack(n) for n in [len(parts), *(part.nbytes for part in parts)])
    # Small parts in one piece: a write is a system call.
    _write(pipe, memoryview(header + body))
    for part in parts[1:]:
        _write(pipe, part)


def receive(pipe: IO[bytes]) -> Any:
    """Read one message from an unbuffered pipe. Raises EOFError when there is no whole one."""
    (count,) = _LENGTH.unpack(_read(pipe, _LENGTH.size))
    lengths = [n for (n,) in _LENGTH.iter_unpack(_read(pipe, count * _LENGTH.size))]
    body, *buffers = [_read(pipe, n) for n in lengths]
    return pickle.loads(body, buffers=buffers)


def enlarge(pipe: IO[bytes]) -> None:
    """Give a pipe more room, where the system can."""
    if sys.platform == "linux":
        import fcntl

        with contextlib.suppress(OSError):  # this user's share of pipe memory is used up
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)


def _write(pipe: IO[bytes], part: memoryview) -> None:
    while part.nbytes:
        part = part[pipe.write(part) :]


def _read(pipe: IO[bytes], length: int) -> memoryview:
    # Not a bytearray: that would be filled with zeros first.
    room = np.empty(length, np.uint8).data
    place = 0
    while place < length:
        # Lets other threads run: several lanes receive at once.
        count = pipe.readinto(room[place:])  # type: ignore[attr-defined]
        if not count:
            raise EOFError
        place += count
    return room
