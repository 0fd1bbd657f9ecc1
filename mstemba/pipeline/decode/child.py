"""The decoder process: requests from standard input, events to standard output."""

from __future__ import annotations

import os
import queue
import signal
import threading
import time
from typing import IO

from mstemba.errors import DecodeError
from mstemba.pipeline.decode.reader import DecodeRequest, decode
from mstemba.pipeline.decode.transport import receive, send

# Seconds between two signs of life: they are small, and the parent waits far longer.
_PULSE = 1.0


def main() -> None:
    """Decode until standard input ends. None among the events is a sign of life."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    stdin = os.fdopen(os.dup(0), "rb", buffering=0)
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # whatever a decoder prints must not land among the events
    requests: queue.SimpleQueue[DecodeRequest] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(stdin, requests), daemon=True).start()
    try:
        send(out, None)
        while True:
            _decode(requests.get(), out)
    except BrokenPipeError:
        os._exit(0)  # the parent has gone; nobody is left to tell


def _listen(stdin: IO[bytes], requests: queue.SimpleQueue[DecodeRequest]) -> None:
    try:
        while True:
            requests.put(receive(stdin))
    except (EOFError, OSError):
        os._exit(0)  # the parent has gone or has no more videos, whatever the decoder is at


def _decode(request: DecodeRequest, out: IO[bytes]) -> None:
    last = time.monotonic()

    def heartbeat() -> None:
        nonlocal last
        if (now := time.monotonic()) - last > _PULSE:
            last = now
            send(out, None)

    try:
        for event in decode(request, heartbeat):
            send(out, event)
    except DecodeError as error:
        send(out, error)
    except BrokenPipeError:
        raise
    except Exception as error:
        # Not foreseen: the video fails, and the reason is not lost with this process.
        send(out, DecodeError(f"{request.path}: {error!r}"))
