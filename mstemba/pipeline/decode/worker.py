"""Decoding in separate processes: they overlap with the backbone, and a decoder that crashes or
hangs costs nothing but its own video.

A child is a plain `python -c`, not one of multiprocessing, so that notebooks, and scripts without
a main guard, can call `mstemba.extract`.
"""

from __future__ import annotations

import contextlib
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Generator, Iterable
from dataclasses import replace
from typing import Any, Generic, TypeVar, cast

from mstemba.errors import DecodeError
from mstemba.pipeline.decode import child
from mstemba.pipeline.decode.reader import DecodeReport, DecodeRequest, Opened, Restart
from mstemba.pipeline.decode.transport import enlarge, receive, send
from mstemba.pipeline.devices import cores
from mstemba.records import Frames

DecodeEvent = Opened | Frames | Restart | DecodeReport | DecodeError
K = TypeVar("K")

# Requests that wait for a free process, so that none has to wait for the main loop.
_QUEUED = 1
# Batches of one decoder that wait for the backbone: enough to ride out a slow keyframe.
_AHEAD = 3
# Seconds that a new process may take to import what it needs, even if the timeout is shorter.
_START = 60.0


class DecodePool(Generic[K]):
    """Decoder processes, each decoding one video at a time, ahead of the consumer.

    A process starts when a video needs it. One that dies, or sends nothing for `timeout` seconds
    while it is waited for, is killed. With decoder `auto` its video is then tried once more, after
    a Restart: by decord if PyAV hung, otherwise by PyAV with a single thread.

    Args:
        workers: Most processes at a time. They share the cores: with several, each one's library
            uses its part of them; a single one chooses by itself.
        timeout: Seconds without a sign of life after which a decoder counts as hanging.
    """

    def __init__(self, workers: int = 1, timeout: float = 120.0) -> None:
        self._threads = max(1, cores() // workers) if workers > 1 else 0
        self._capacity = workers + _QUEUED
        self._unfinished = 0
        self._requests: queue.SimpleQueue[tuple[K, DecodeRequest]] = queue.SimpleQueue()
        self._events: queue.SimpleQueue[tuple[_Worker, Any, Any]] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._workers = [
            _Worker(self._requests, self._events, self._closed, timeout) for _ in range(workers)
        ]
        self._watchdog = threading.Thread(target=self._watch, args=(timeout,), daemon=True)
        for thread in (self._watchdog, *self._workers):
            thread.start()

    @property
    def room(self) -> int:
        """How many more requests the pool takes now."""
        return self._capacity - self._unfinished

    def submit(self, key: K, request: DecodeRequest) -> None:
        """Queue a video.

        Args:
            key: Returned with each event of this video.
            request: The video. `threads` = 0 stands for the pool's choice.

        Raises:
            ValueError: `room` is 0.
        """
        if not self.room:
            raise ValueError(f"{request.path}: the decoders have no room for another video")
        self._unfinished += 1
        self._requests.put((key, replace(request, threads=request.threads or self._threads)))

    def next_event(self) -> tuple[K, DecodeEvent]:
        """Wait for the next event of any submitted video.

        The events of one video come in order, and exactly one DecodeReport or DecodeError ends
        them; the events of several videos are interleaved.

        Raises:
            ValueError: All submitted videos have ended.
        """
        if not self._unfinished:
            raise ValueError("no video is being decoded")
        worker, key, event = self._events.get()
        if isinstance(event, Frames):
            worker.room.release()
        elif isinstance(event, (DecodeReport, DecodeError)):
            self._unfinished -= 1
        elif isinstance(event, BaseException):  # an unforeseen one, of a thread
            raise event
        return key, event

    def close(self) -> None:
        """End all processes and threads at once."""
        self._closed.set()
        for worker in self._workers:
            worker.stop()
        for thread in (self._watchdog, *self._workers):
            thread.join()

    def __enter__(self) -> DecodePool[K]:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _watch(self, timeout: float) -> None:
        # Counts its own steps instead of the clock: a run that was suspended has not waited.
        step = min(1.0, timeout / 8)
        while not self._closed.wait(step):
            for worker in self._workers:
                worker.waited(step)


class _Closed(Exception):
    """Nobody wants any more events."""


class _Worker(threading.Thread):
    """The thread that feeds one decoder process and reads from it; from another if it is lost."""

    def __init__(
        self,
        requests: queue.SimpleQueue[Any],
        events: queue.SimpleQueue[tuple[_Worker, Any, Any]],
        closed: threading.Event,
        timeout: float,
    ) -> None:
        super().__init__(daemon=True)
        self._requests = requests
        self._events = events
        self._closed = closed
        self._timeout = timeout
        self._process: _DecoderProcess | None = None
        self._decoder = ""  # of the current video, once it is known
        self._lock = threading.Lock()  # no process is started after `stop`
        self.room = threading.Semaphore(_AHEAD)

    def run(self) -> None:
        try:
            while (job := self._requests.get()) is not None:
                key, request = job
                self._put(key, self._decode(key, request))
        except _Closed:
            pass
        except BaseException as error:
            self._put(None, error)
        finally:
            if self._process:
                self._process.end()

    def stop(self) -> None:
        """Make the thread end at once. Called by another one, after `closed` was set."""
        with self._lock:
            if self._process:
                self._process.kill()
        self.room.release()
        self._requests.put(None)

    def waited(self, seconds: float) -> None:
        if process := self._process:
            process.waited(seconds)

    def _put(self, key: Any, event: Any) -> None:
        self._events.put((self, key, event))

    def _decode(self, key: Any, request: DecodeRequest) -> DecodeReport | DecodeError:
        """Put all events of a video but the last one, which is returned."""
        try:
            return self._attempt(key, request)
        except _Lost as error:
            lost = error
        if retry := self._retry(request, lost.hung):
            self._put(key, Restart(retry.decoder))
            try:
                last = self._attempt(key, retry)
                if isinstance(last, DecodeReport):
                    return last
                # It is unreadable for the other decoder: the first one's fate says more.
            except _Lost as error:
                lost = error
        advice = (
            "Convert it: ffmpeg -i IN -c:v libx264 OUT.mp4"
            if request.decoder == "auto"
            else "Try --decoder auto"
        )
        return DecodeError(f"{request.path}: {lost}. {advice}")

    def _retry(self, request: DecodeRequest, hung: bool) -> DecodeRequest | None:
        """Return what to try for a video whose decoder was lost, if anything."""
        # Before a decoder is known it is PyAV that looks, and it would hang again.
        if request.decoder != "auto" or (hung and not self._decoder):
            return None
        if hung and self._decoder == "av":
            return replace(request, decoder="decord", resume=None)
        return replace(request, decoder="av", single_threaded=True, resume=None)

    def _attempt(self, key: Any, request: DecodeRequest) -> DecodeReport | DecodeError:
        self._decoder = "" if request.decoder == "auto" else request.decoder
        process = self._process or self._start()
        try:
            process.send(request)
            while True:
                event = process.receive()
                if isinstance(event, (DecodeReport, DecodeError)):
                    return event
                if isinstance(event, (Opened, Restart)):
                    self._decoder = event.decoder
                elif isinstance(event, Frames):
                    self.room.acquire()
                    if self._closed.is_set():
                        raise _Closed
                self._put(key, event)
        except _Lost:
            if self._closed.is_set():
                raise _Closed from None
            self._process = None
            raise

    def _start(self) -> _DecoderProcess:
        with self._lock:
            if self._closed.is_set():
                raise _Closed
            self._process = _DecoderProcess(self._timeout)
        return self._process


class _Lost(Exception):
    """The process is gone in the middle of a video."""

    def __init__(self, reason: str, hung: bool) -> None:
        super().__init__(reason)
        self.hung = hung


class _DecoderProcess:
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


def decode_all(
    requests: Iterable[tuple[K, DecodeRequest]], workers: int = 1, timeout: float = 120.0
) -> Generator[tuple[K, DecodeEvent]]:
    """Decode videos with a DecodePool. Yields (key, event)."""
    videos = iter(requests)
    unfinished = 0
    with DecodePool[K](workers, timeout) as pool:
        more = True
        while True:
            while more and unfinished < workers:
                job = next(videos, None)
                if more := job is not None:
                    pool.submit(*job)
                    unfinished += 1
            if not unfinished:
                return
            key, event = pool.next_event()
            unfinished -= isinstance(event, (DecodeReport, DecodeError))
            yield key, event
