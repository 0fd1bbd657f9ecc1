"""The decoder process: requests and free blocks from standard input, events to standard output."""

from __future__ import annotations

import os
import pickle
import queue
import sys
import threading
import time
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from mstemba.errors import DecodeError
from mstemba.pipeline.decode.blocks import Blocks
from mstemba.pipeline.decode.reader import decode
from mstemba.pipeline.decode.request import DecodeRequest
from mstemba.records import Frames

# Seconds between two heartbeats: they are small, and the parent waits far longer.
_HEARTBEAT = 1.0


@dataclass(frozen=True)
class FilledBlock:
    """Frames that are in a block of shared memory."""

    block: int
    times: NDArray[np.float64]
    """(N,) seconds of the first N frames in the block."""


def main() -> None:
    """Decode until standard input ends. None among the events is a heartbeat."""
    stdin = os.fdopen(os.dup(0), "rb")
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a decoder prints must not land among the events
    memory, name, size = sys.argv[1:]
    try:
        _send(out, None)
        _Decoder(stdin, out, Blocks(int(memory), name, int(size))).run()
    except BrokenPipeError:
        os._exit(0)  # the parent has gone; nobody is left to tell


def _send(out: IO[bytes], event: Any) -> None:
    pickle.dump(event, out)
    out.flush()


class _Decoder:
    """Decodes one video after the other into the blocks that the parent gives."""

    def __init__(self, stdin: IO[bytes], out: IO[bytes], blocks: Blocks) -> None:
        self._out, self._blocks = out, blocks
        self._requests: queue.SimpleQueue[DecodeRequest] = queue.SimpleQueue()
        self._free: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._block: int | None = None
        """The one that is being filled."""
        self._last = time.monotonic()
        threading.Thread(target=self._receive, args=(stdin,), daemon=True).start()

    def _receive(self, stdin: IO[bytes]) -> None:
        try:
            while True:
                message = pickle.load(stdin)
                (self._free if isinstance(message, int) else self._requests).put(message)
        except (EOFError, OSError, pickle.UnpicklingError):
            os._exit(0)  # the parent has ended or has no more videos: stop at once, even mid-video

    def run(self) -> None:
        """Decode until the process ends."""
        while True:
            request = self._requests.get()
            try:
                for event in decode(request, self._heartbeat, self._new_batch):
                    if isinstance(event, Frames):
                        assert self._block is not None
                        self._send(FilledBlock(self._block, event.times))
                        self._block = None
                    else:
                        self._send(event)
            except DecodeError as error:
                self._send(error)
            except BrokenPipeError:
                raise
            except Exception as error:
                # Not foreseen: the video fails, and the reason is not lost with this process.
                self._send(DecodeError(f"{request.path}: {error!r}"))

    def _new_batch(self, request: DecodeRequest) -> NDArray[np.uint8]:
        if self._block is None:
            self._block = self._free.get()
        return self._blocks.array(self._block, request.batch_shape)

    def _send(self, event: Any) -> None:
        self._last = time.monotonic()
        _send(self._out, event)

    def _heartbeat(self) -> None:
        if time.monotonic() - self._last > _HEARTBEAT:
            self._send(None)
