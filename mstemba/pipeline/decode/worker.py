"""Decoding in processes of their own: they overlap with the backbone, and a decoder that crashes
or hangs takes only its own video with it.

The child is a plain `python -c`, not multiprocessing's, so that notebooks, and scripts without a
main guard, can call `mstemba.extract`.
"""

from __future__ import annotations

import contextlib
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Generator, Iterable, Iterator
from dataclasses import replace
from typing import Any, TypeVar, cast

from mstemba.errors import DecodeError
from mstemba.pipeline.decode import child
from mstemba.pipeline.decode.reader import DecodeReport, DecodeRequest, Opened, Restart
from mstemba.pipeline.decode.transport import enlarge, receive, send
from mstemba.pipeline.devices import cores
from mstemba.records import Frames

DecodeEvent = Opened | Frames | Restart | DecodeReport | DecodeError
K = TypeVar("K")

# Batches of one decoder that wait for the backbone: enough to ride out a slow keyframe.
_AHEAD = 3
# Seconds that a new process may take to import what it needs, whatever the timeout is.
_START = 60.0


def decode_all(
    requests: Iterable[tuple[K, DecodeRequest]], workers: int = 1, timeout: float = 120.0
) -> Generator[tuple[K, DecodeEvent]]:
    """Decode videos in `workers` processes, ahead of the consumer.

    Takes a request, (key, DecodeRequest), only when a process is free for it, in a thread of its
    own, never in two at a time; what `requests` raises is raised here. Yields (key, event): those
    of one video in order, one DecodeReport or DecodeError at its end; several videos interleave.
    A decoder that dies, or gives nothing for `timeout` seconds while it is waited for, is ended;
    with `auto` its video is tried once more, after a Restart: by decord if PyAV hung, else by PyAV
    with care.
    """
    pool = _Pool(iter(requests), workers, timeout)
    try:
        yield from pool.events()
    finally:
        pool.close()


class _Pool:
    """The lanes, and what they share."""

    def __init__(
        self, requests: Iterator[tuple[Any, DecodeRequest]], workers: int, timeout: float
    ) -> None:
        self._requests = requests
        self._threads = max(1, cores() // workers) if workers > 1 else 0
        self._turn = threading.Lock()
        self._closed = threading.Event()
        self._queue: queue.SimpleQueue[tuple[_Lane, Any, Any]] = queue.SimpleQueue()
        self._lanes = [_Lane(self, timeout) for _ in range(workers)]
        self._watch = threading.Thread(target=self._watchdog, args=(timeout,), daemon=True)
        for thread in (self._watch, *self._lanes):
            thread.start()

    def events(self) -> Iterator[tuple[Any, DecodeEvent]]:
        """What the lanes put, until they are all done. Raises what they raised."""
        running = len(self._lanes)
        while running:
            lane, key, event = self._queue.get()
            if event is None:
                running -= 1
            elif isinstance(event, _Raised):
                raise event.error
            else:
                if isinstance(event, Frames):
                    lane.room.release()
                yield key, event

    def next(self) -> tuple[Any, DecodeRequest] | None:
        """The next request, None when there is none any more."""
        with self._turn:
            found = None if self._closed.is_set() else next(self._requests, None)
        if found is None or found[1].threads:
            return found
        return found[0], replace(found[1], threads=self._threads)

    def put(self, lane: _Lane, key: Any, event: Any) -> None:
        self._queue.put((lane, key, event))

    @property
    def is_closed(self) -> bool:
        return self._closed.is_set()

    def close(self) -> None:
        """End all processes and threads at once."""
        self._closed.set()
        for lane in self._lanes:
            lane.stop()
        for thread in (self._watch, *self._lanes):
            thread.join()

    def _watchdog(self, timeout: float) -> None:
        # Counts its own steps, not the clock: a run that was suspended has not waited.
        step = min(1.0, timeout / 8)
        while not self._closed.wait(step):
            for lane in self._lanes:
                lane.waited(step)


class _Raised:
    """What a lane could not go on after."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


class _Closed(Exception):
    """Nobody wants any more events."""


class _Lane(threading.Thread):
    """The thread that feeds one decoder process and reads from it; another one when it is lost."""

    def __init__(self, pool: _Pool, timeout: float) -> None:
        super().__init__(daemon=True)
        self._pool = pool
        self._timeout = timeout
        self._child: _Child | None = None
        self._running = ""  # the decoder of the video at hand, once it is known
        self._lock = threading.Lock()  # no process is started after `stop`
        self.room = threading.Semaphore(_AHEAD)

    def run(self) -> None:
        try:
            while (job := self._pool.next()) is not None:
                self._decode(*job)
            self._pool.put(self, None, None)
        except _Closed:
            pass
        except BaseException as error:  # of the requests, most likely: for the consumer
            self._pool.put(self, None, _Raised(error))
        finally:
            if self._child:
                self._child.end()

    def stop(self) -> None:
        """Let the thread run to its end at once. Called by another one."""
        with self._lock:
            if self._child:
                self._child.kill()
        self.room.release()

    def waited(self, seconds: float) -> None:
        if process := self._child:
            process.waited(seconds)

    def _decode(self, key: Any, request: DecodeRequest) -> None:
        """One video, to its report or error."""
        attempt: DecodeRequest | None = request
        reason = ""
        while attempt:
            try:
                last = self._attempt(key, attempt)
                if isinstance(last, DecodeReport) or not reason:
                    self._pool.put(self, key, last)
                    return
                break  # the other decoder cannot: what happened to the first one says more
            except _Lost as lost:
                self._forget_child()
                reason = str(lost)
                attempt = self._another(attempt, lost.hung)
                if attempt:
                    self._pool.put(self, key, Restart(attempt.decoder))
        advice = (
            "Write it anew: ffmpeg -i IN -c:v libx264 OUT.mp4"
            if request.decoder == "auto"
            else "Try --decoder auto"
        )
        self._pool.put(self, key, DecodeError(f"{request.path}: {reason}. {advice}"))

    def _another(self, request: DecodeRequest, hung: bool) -> DecodeRequest | None:
        """What to try for a video whose decoder was lost, if anything."""
        # Before a decoder is known it is PyAV that looks, and it would hang again.
        if request.decoder != "auto" or (hung and not self._running):
            return None
        if hung and self._running == "av":
            return replace(request, decoder="decord", resume=None)
        return replace(request, decoder="av", single_threaded=True, resume=None)

    def _attempt(self, key: Any, request: DecodeRequest) -> DecodeReport | DecodeError:
        """Hand on the video's events but for the last one, which is given back."""
        self._running = "" if request.decoder == "auto" else request.decoder
        process = self._child or self._start()
        process.send(request)
        while True:
            event = process.receive()
            if isinstance(event, (Opened, Restart)):
                self._running = event.decoder
            elif isinstance(event, Frames):
                self.room.acquire()
                if self._pool.is_closed:
                    raise _Closed
            elif isinstance(event, (DecodeReport, DecodeError)):
                return event
            self._pool.put(self, key, event)

    def _start(self) -> _Child:
        with self._lock:
            if self._pool.is_closed:
                raise _Closed
            self._child = _Child(self._timeout)
        return self._child

    def _forget_child(self) -> None:
        if self._pool.is_closed:
            raise _Closed
        self._child = None


class _Lost(Exception):
    """The process is gone in the middle of a video."""

    def __init__(self, reason: str, hung: bool) -> None:
        super().__init__(reason)
        self.hung = hung


class _Child:
    """One decoder process."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        # The parent's own search path: a `queue.py` in the current folder must not get in the way.
        program = (
            f"import sys; sys.path[:] = {sys.path!r}; from {child.__name__} import main; main()"
        )
        self._process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # FFmpeg's complaints; what matters comes back as events
            bufsize=0,
        )
        assert self._process.stdin
        assert self._process.stdout
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        enlarge(self._stdout)
        # Written by the thread that reads; the watchdog only looks.
        self._waiting = False
        self._heard = 0
        # The watchdog's own.
        self._seen = 0
        self._silent = 0.0
        self._hung = False

    def send(self, request: DecodeRequest) -> None:
        """Raises _Lost when the process is gone."""
        try:
            send(self._stdin, request)
        except OSError:
            raise self._loss() from None

    def receive(self) -> DecodeEvent:
        """The next event. Raises _Lost when there is none."""
        self._waiting = True
        try:
            event = None
            while event is None:  # a sign of life
                event = receive(self._stdout)
                self._heard += 1
        except (EOFError, OSError):
            raise self._loss() from None
        finally:
            self._waiting = False
        return cast(DecodeEvent, event)

    def waited(self, seconds: float) -> None:
        """So much time has passed. Kills the process when it was silent for too long."""
        if not self._waiting or self._heard != self._seen:
            self._seen, self._silent = self._heard, 0.0
            return
        self._silent += seconds
        if self._silent >= (self._timeout if self._heard else max(self._timeout, _START)):
            self._hung = True
            self.kill()

    def kill(self) -> None:
        self._process.kill()

    def end(self) -> None:
        """It has nothing more to do."""
        with contextlib.suppress(OSError):
            self._stdin.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.kill()
            self._process.wait()
        self._stdout.close()

    def _loss(self) -> _Lost:
        self.kill()
        code = self._process.wait()
        self.end()
        if self._hung:
            return _Lost(f"the decoder gave nothing for {self._silent:.0f} s", hung=True)
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return _Lost(f"the decoder process ended: {how}", hung=False)
