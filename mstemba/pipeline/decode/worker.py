"""Decoding in a process of its own: it overlaps with the backbone, and a decoder that crashes takes
only its own video with it.

The child is a plain `python -c`, not multiprocessing's, so that notebooks, and scripts without a
main guard, can call `mstemba.extract`.
"""

from __future__ import annotations

import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from typing import IO, Any

from mstemba.errors import DecodeError
from mstemba.pipeline.decode.reader import DecodeReport, DecodeRequest, Opened, Restart, decode
from mstemba.records import Frames

DecodeEvent = Opened | Frames | Restart | DecodeReport | DecodeError
# Batches waiting for the backbone: enough to ride out a slow keyframe, and little memory.
_AHEAD = 3


def decode_all(requests: Sequence[DecodeRequest]) -> Generator[tuple[int, DecodeEvent]]:
    """Decode videos one after another, ahead of the consumer.

    Yields (index of the request, event). Every request ends with one DecodeReport or one
    DecodeError; a video whose decoder crashed is tried once more with PyAV alone.
    """
    todo = list(enumerate(requests))
    while todo:
        process = _Process([request for _, request in todo])
        position = 0
        try:
            for event in process.events():
                yield todo[position][0], event
                if isinstance(event, (DecodeReport, DecodeError)):
                    position += 1
        finally:
            process.close()
        if position == len(todo):
            return
        index, request = todo[position]
        if request.decoder == "auto":
            yield index, Restart()
            todo = [(index, replace(request, decoder="av")), *todo[position + 1 :]]
        else:
            reason = process.last_words()
            yield index, DecodeError(f"{request.path}: the decoder process ended: {reason}")
            todo = todo[position + 1 :]


class _Process:
    """The child, and a thread that reads ahead from it."""

    def __init__(self, requests: list[DecodeRequest]) -> None:
        # The parent's own search path: a `queue.py` in the current folder must not get in the way.
        self._child = subprocess.Popen(
            [
                sys.executable,
                "-c",
                f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import main; main()",
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # FFmpeg's complaints; what matters comes back as events
        )
        assert self._child.stdin
        assert self._child.stdout
        self._queue: queue.Queue[Any] = queue.Queue(_AHEAD)
        self._thread = threading.Thread(
            target=self._read, args=(requests, self._child.stdin, self._child.stdout), daemon=True
        )
        self._thread.start()

    def _read(self, requests: list[DecodeRequest], stdin: IO[bytes], stdout: IO[bytes]) -> None:
        try:
            with stdin:
                pickle.dump(requests, stdin)
            while True:
                self._queue.put(pickle.load(stdout))
        except Exception:  # the child is done, or gone in the middle of a message
            self._queue.put(None)

    def events(self) -> Iterator[DecodeEvent]:
        while (event := self._queue.get()) is not None:
            yield event
        try:
            self._child.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._child.kill()  # it does not know that nobody listens any more

    def last_words(self) -> str:
        code = self._child.wait()
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"

    def close(self) -> None:
        if self._child.poll() is None:
            self._child.kill()
            self._child.wait()
        while self._thread.is_alive():  # let go of a reader that waits for room
            try:
                self._queue.get(timeout=0.05)
            except queue.Empty:
                continue
        if self._child.stdout:
            self._child.stdout.close()


def main() -> None:
    """The child: requests from standard input, events to standard output."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a decoder prints must not land among the events
    requests: list[DecodeRequest] = pickle.load(sys.stdin.buffer)
    try:
        for request in requests:
            try:
                for event in decode(request):
                    pickle.dump(event, out, protocol=5)
                    out.flush()
            except DecodeError as error:
                pickle.dump(error, out)
                out.flush()
            except (MemoryError, ValueError, RuntimeError) as error:
                # Not foreseen: the video fails, and the reason is not lost with this process.
                pickle.dump(DecodeError(f"{request.path}: {error!r}"), out)
                out.flush()
    except BrokenPipeError:
        os._exit(0)  # the parent has gone; nobody is left to tell
