"""The decoder process: pickled requests from standard input, pickled events to standard output."""

from __future__ import annotations

import os
import pickle
import queue
import signal
import threading
import time
from typing import IO, Any

from mstemba.errors import DecodeError
from mstemba.pipeline.decode.reader import DecodeRequest, decode

# Seconds between two heartbeats: they are small, and the parent waits far longer.
_HEARTBEAT = 1.0


def main() -> None:
    """Decode until standard input ends. None among the events is a heartbeat."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    stdin = os.fdopen(os.dup(0), "rb")
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a decoder prints must not land among the events
    requests: queue.SimpleQueue[DecodeRequest] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(stdin, requests), daemon=True).start()
    try:
        _send(out, None)
        while True:
            _decode(requests.get(), out)
    except BrokenPipeError:
        os._exit(0)  # the parent has gone; nobody is left to tell


def _receive(stdin: IO[bytes], requests: queue.SimpleQueue[DecodeRequest]) -> None:
    try:
        while True:
            requests.put(pickle.load(stdin))
    except (EOFError, OSError, pickle.UnpicklingError):
        os._exit(0)  # the parent has gone or has no more videos, whatever the decoder is doing


def _send(out: IO[bytes], event: Any) -> None:
    # Protocol 5 writes the pixels of a batch to the pipe without copying them first.
    pickle.dump(event, out, protocol=5)
    out.flush()


def _decode(request: DecodeRequest, out: IO[bytes]) -> None:
    last = time.monotonic()

    def heartbeat() -> None:
        nonlocal last
        if (now := time.monotonic()) - last > _HEARTBEAT:
            last = now
            _send(out, None)

    try:
        for event in decode(request, heartbeat):
            _send(out, event)
    except DecodeError as error:
        _send(out, error)
    except BrokenPipeError:
        raise
    except Exception as error:
        # Not foreseen: the video fails, and the reason is not lost with this process.
        _send(out, DecodeError(f"{request.path}: {error!r}"))
