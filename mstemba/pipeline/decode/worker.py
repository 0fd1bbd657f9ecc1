"""Decoding in separate processes: they overlap with the backbone, and a decoder that crashes or
hangs costs nothing but its own video.

A child is a plain `python -c`, not one of multiprocessing, so that notebooks, and scripts without
a main guard, can call `mstemba.extract`.
"""

from __future__ import annotations

import contextlib
import pickle
import queue
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from typing import Any, Generic, TypeVar, cast

from mstemba.errors import DecodeError
from mstemba.pipeline.decode import child
from mstemba.pipeline.decode.reader import DecodeReport, DecodeRequest, Opened, Restart
from mstemba.pipeline.devices import cores
from mstemba.records import Frames

DecodeEvent = Opened | Frames | Restart | DecodeReport | DecodeError
K = TypeVar("K")

# Requests that wait for a free process, so that none has to wait for the main loop.
_QUEUED = 1
# Batches of one decoder that wait for the backbone: enough to ride out a slow keyframe.
_AHEAD = 3
# Bytes: as much as Linux gives anybody. With its usual 64 KiB, reading costs half as much again.
_PIPE_SIZE = 1 << 20
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
                if process := worker.process:
                    process.watch(step)


class _Closed(Exception):
    """The pool is closed: nobody takes any more events."""


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
        self.process: _DecoderProcess | None = None
        self.room = threading.Semaphore(_AHEAD)

    def run(self) -> None:
        try:
            while (job := self._requests.get()) is not None:
                key, request = job
                self._put(key, self._decode(key, request))
        except _Closed:
            return
        except BaseException as error:
            self._events.put((self, None, error))
        finally:
            if self.process:
                self.process.end()

    def stop(self) -> None:
        """Make the thread end at once. Called by another one, after `closed` was set."""
        if process := self.process:
            process.kill()
        self.room.release()
        self._requests.put(None)

    def _put(self, key: Any, event: DecodeEvent) -> None:
        if isinstance(event, Frames):
            self.room.acquire()
        if self._closed.is_set():
            raise _Closed
        self._events.put((self, key, event))

    def _decode(self, key: Any, request: DecodeRequest) -> DecodeReport | DecodeError:
        """Put all events of a video but the last one, which is returned."""
        try:
            return self._attempt(key, request)
        except _ProcessLost as error:
            lost = error
        if retry := _retry(request, lost):
            self._put(key, Restart(retry.decoder))
            try:
                last = self._attempt(key, retry)
                if isinstance(last, DecodeReport):
                    return last
                # The other decoder cannot read it: what happened to the first one says more.
            except _ProcessLost as error:
                lost = error
        advice = (
            "Convert it: ffmpeg -i IN -c:v libx264 OUT.mp4"
            if request.decoder == "auto"
            else "Try --decoder auto"
        )
        return DecodeError(f"{request.path}: {lost}. {advice}")

    def _attempt(self, key: Any, request: DecodeRequest) -> DecodeReport | DecodeError:
        decoder = "" if request.decoder == "auto" else request.decoder
        process = self.process = self.process or _DecoderProcess(self._timeout)
        try:
            if self._closed.is_set():  # `stop` may not have seen the process
                raise _Closed
            process.send(request)
            while True:
                event = process.receive()
                if isinstance(event, (DecodeReport, DecodeError)):
                    return event
                if isinstance(event, (Opened, Restart)):
                    decoder = event.decoder
                self._put(key, event)
        except (EOFError, OSError, pickle.UnpicklingError):
            self.process = None
            raise _ProcessLost(process.end(), process.hung, decoder) from None


def _retry(request: DecodeRequest, lost: _ProcessLost) -> DecodeRequest | None:
    """Return what to try for a video whose decoder was lost, if anything."""
    # Before a decoder is known it is PyAV that reads the file, and it would hang again.
    if request.decoder != "auto" or (lost.hung and not lost.decoder):
        return None
    if lost.hung and lost.decoder == "av":
        return replace(request, decoder="decord", resume=None)
    return replace(request, decoder="av", single_threaded=True, resume=None)


class _ProcessLost(Exception):
    """A decoder process ended, or hung and was killed, in the middle of a video."""

    def __init__(self, reason: str, hung: bool, decoder: str) -> None:
        super().__init__(reason)
        self.hung = hung
        self.decoder = decoder
        """Which one was decoding, once it is known."""


class _DecoderProcess:
    """A child that decodes. Used by one thread, but for `watch` and `kill`."""

    def __init__(self, timeout: float) -> None:
        # The parent's own search path: a `queue.py` in the current folder must not get in the way.
        program = (
            f"import sys; sys.path[:] = {sys.path!r}; from {child.__name__} import main; main()"
        )
        self._process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # FFmpeg's complaints; what matters comes back as events
        )
        assert self._process.stdin
        assert self._process.stdout
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        if sys.platform == "linux":
            import fcntl

            with contextlib.suppress(OSError):  # this user's share of pipe memory is used up
                fcntl.fcntl(self._stdout, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
        self._timeout = timeout
        self._limit = max(timeout, _START)
        self._clock = 0.0  # only `watch` writes it
        self._heard: float | None = None  # by that clock; None while nobody waits for the process
        self._silence = 0.0

    @property
    def hung(self) -> bool:
        return self._silence > 0

    def send(self, request: DecodeRequest) -> None:
        pickle.dump(request, self._stdin, protocol=5)
        self._stdin.flush()

    def receive(self) -> DecodeEvent:
        """Return the next event. Raises what pickle.load does when the process is gone."""
        event = None
        while event is None:  # a heartbeat
            self._heard = self._clock
            event = pickle.load(self._stdout)
            self._limit = self._timeout
        self._heard = None
        return cast(DecodeEvent, event)

    def watch(self, seconds: float) -> None:
        """Note that time has passed, and kill a process that was silent for too long."""
        self._clock += seconds
        heard = self._heard
        if heard is not None and self._clock - heard >= self._limit:
            self._silence = self._clock - heard
            self.kill()

    def kill(self) -> None:
        self._process.kill()

    def end(self) -> str:
        """Kill the process if it still runs, and return how it ended."""
        self.kill()
        code = self._process.wait()
        with contextlib.suppress(OSError):  # a request that it did not take
            self._stdin.close()
        self._stdout.close()
        if self.hung:
            return f"the decoder sent nothing for {self._silence:.0f} s"
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return f"the decoder process ended: {how}"
