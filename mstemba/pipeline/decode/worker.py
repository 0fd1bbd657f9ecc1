"""Decoding in separate processes: they overlap with the backbone, and a decoder that crashes or
hangs costs nothing but its own video.

A child is a plain `python -c`, not one of multiprocessing, so that notebooks, and scripts without
a main guard, can call `mstemba.extract`.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from mstemba.errors import DecodeError
from mstemba.pipeline.decode import child
from mstemba.pipeline.decode.blocks import WINDOWS, Blocks, new_memory
from mstemba.pipeline.decode.request import DecodeReport, DecodeRequest, Opened, Restart
from mstemba.pipeline.devices import cores, cpu_quota
from mstemba.records import Frames

DecodeEvent = Opened | Frames | Restart | DecodeReport | DecodeError
K = TypeVar("K")

# Requests that wait for a free process, so that none has to wait for the main loop.
_QUEUED = 1
# Batches of one decoder that wait for the backbone: enough to ride out a slow keyframe.
_AHEAD = 3
# Seconds that a new process may take to import what it needs, even if the timeout is shorter.
_START = 60.0
_NUMBERS = itertools.count()


class DecodePool(Generic[K]):
    """Decoder processes, each decoding one video at a time, ahead of the consumer.

    A process starts when a video needs it. One that dies, or sends nothing for `timeout` seconds
    while it is waited for, is killed. With decoder `auto` its video is then tried once more, after
    a Restart, by PyAV with one thread.

    Args:
        workers: Most processes at a time. They share the cores: with several, each one's library
            uses its part of them; a single one chooses by itself, unless there is a CPU quota.
        timeout: Seconds without a sign of life after which a decoder counts as hanging.
    """

    def __init__(self, workers: int = 1, timeout: float = 120.0) -> None:
        self._threads = max(1, cores() // workers) if workers > 1 or cpu_quota() else 0
        self._workers, self._timeout = workers, timeout
        self._step = min(1.0, timeout / 8)
        self._clock = time.monotonic()
        self._waiting: deque[_Job[K]] = deque()
        self._processes: list[_DecoderProcess] = []
        self._jobs: dict[_DecoderProcess, _Job[K]] = {}
        self._events: queue.SimpleQueue[tuple[_DecoderProcess, Any]] = queue.SimpleQueue()

    @property
    def room(self) -> int:
        """How many more requests the pool takes now."""
        return self._workers + _QUEUED - len(self._jobs) - len(self._waiting)

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
        request = replace(request, threads=request.threads or self._threads)
        self._waiting.append(_Job(key, request))
        self._start_waiting()

    def next_event(self) -> tuple[K, DecodeEvent]:
        """Wait for the next event of any submitted video.

        The events of one video come in order, and exactly one DecodeReport or DecodeError ends
        them; the events of several videos are interleaved.

        Raises:
            ValueError: All submitted videos have ended.
        """
        if not self._jobs:
            raise ValueError("no video is being decoded")
        while True:
            self._watch()
            with contextlib.suppress(queue.Empty):
                process, message = self._events.get(timeout=self._step)
                if job := self._jobs.get(process):
                    return job.key, self._take(process, job, message)
                if message is None and process in self._processes:
                    self._end(process)  # it died while it had nothing to do

    def close(self) -> None:
        """End all processes at once."""
        for process in self._processes:
            process.end()
        self._processes.clear()

    def __enter__(self) -> DecodePool[K]:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _start_waiting(self) -> None:
        """Give videos that wait to processes that are free, or new."""
        while self._waiting and len(self._jobs) < self._workers:
            job = self._waiting.popleft()
            size = math.prod(job.request.batch_shape)
            free = [process for process in self._processes if process not in self._jobs]
            fitting = [process for process in free if process.takes(size)]
            for process in set(free).difference(fitting):
                self._end(process)
            process = fitting[0] if fitting else _DecoderProcess(size, self._events, self._timeout)
            if not fitting:
                self._processes.append(process)
            self._jobs[process] = job
            process.begin(job.request)

    def _end(self, process: _DecoderProcess) -> str:
        self._processes.remove(process)
        return process.end()

    def _watch(self) -> None:
        """Kill the processes that were silent for too long while they were waited for."""
        # Steps of the clock are bounded: a run that was suspended has not waited.
        now = time.monotonic()
        step, self._clock = min(now - self._clock, self._step), now
        for process in self._jobs:
            process.watch(step)

    def _take(self, process: _DecoderProcess, job: _Job[K], message: Any) -> DecodeEvent:
        """Return the event that a message of a process stands for."""
        if isinstance(message, child.FilledBlock):
            return process.frames(message, job.request)
        if isinstance(message, (DecodeReport, DecodeError)):
            del self._jobs[process]
            if job.lost and isinstance(message, DecodeError):
                message = job.lost  # what happened to the first decoder says more
        elif message is None:
            del self._jobs[process]
            message = self._retry(self._end(process), job)
        self._start_waiting()
        event: DecodeEvent = message
        return event

    def _retry(self, reason: str, job: _Job[K]) -> DecodeEvent:
        """Try the video of a lost process once more, or give it up."""
        request = job.request
        advice = "Convert it: ffmpeg -i IN -c:v libx264 OUT.mp4"
        if request.decoder != "auto" and not job.lost:
            advice = "Try --decoder auto"
        lost = DecodeError(f"{request.path}: {reason}. {advice}")
        if request.decoder != "auto":  # also on the second try
            return lost
        again = replace(request, decoder="av", single_threaded=True, resume=None)
        self._waiting.appendleft(_Job(job.key, again, lost))
        return Restart("av")


@dataclass
class _Job(Generic[K]):
    """A video on its way through a process."""

    key: K
    request: DecodeRequest
    lost: DecodeError | None = None
    """What happened to the process that tried it first."""


class _DecoderProcess:
    """A child that decodes, and a thread that reads what it sends; None stands for its end."""

    def __init__(
        self,
        block_size: int,
        events: queue.SimpleQueue[tuple[_DecoderProcess, Any]],
        timeout: float,
    ) -> None:
        memory = new_memory()
        self._block_size = block_size
        name = f"{os.getpid()}-{next(_NUMBERS)}"
        self._blocks = Blocks(memory, name, block_size)
        self._memory = memory
        self._unused: deque[int] = deque()
        # The parent's own search path: a `queue.py` in the current folder must not get in the way.
        # Ctrl-C reaches the child as well; the parent decides, also while the child is importing.
        program = (
            f"import _signal, sys; _signal.signal(_signal.SIGINT, _signal.SIG_IGN); "
            f"sys.path[:] = {sys.path!r}; from {child.__name__} import main; main()"
        )
        self._process = subprocess.Popen(
            [sys.executable, "-c", program, str(memory), name, str(block_size)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # FFmpeg's complaints; what matters comes back as events
            pass_fds=() if WINDOWS else (memory,),
            # With glibc's one heap a thread, the frames of decord's pieces would scatter over many.
            env={"MALLOC_ARENA_MAX": "2", **os.environ},
        )
        self._events, self._timeout = events, timeout
        self._limit = max(timeout, _START)
        self._silence = 0.0
        self.hung = False
        self._given = self._filled = 0  # blocks
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        for _ in range(_AHEAD):
            self._give_block()

    def takes(self, block_size: int) -> bool:
        """Return whether the process lives, and its blocks have this size."""
        alive = not self.hung and self._process.poll() is None
        return alive and self._block_size == block_size

    def begin(self, request: DecodeRequest) -> None:
        """Send a video."""
        self._silence = 0.0
        self._send(request)

    def frames(self, filled: child.FilledBlock, request: DecodeRequest) -> Frames:
        """Return the frames in a block, which is free again when nobody has them any more."""
        images = self._blocks.array(filled.block, request.batch_shape)
        weakref.finalize(images.base, self._unused.append, filled.block).atexit = False
        self._give_block()
        return Frames(images[: len(filled.times)], filled.times)

    def watch(self, seconds: float) -> None:
        """Note that time has passed, and kill a process that was silent for too long."""
        if self._given > self._filled:  # otherwise it waits for a block
            self._silence += seconds
        if self._silence >= self._limit and not self.hung:
            self.hung = True
            self._process.kill()

    def end(self) -> str:
        """Kill the process if it still runs, and return how it ended."""
        self._process.kill()
        code = self._process.wait()
        self._reader.join()
        # Leaving it closes the pipes. An OSError is about a request that it has not read.
        with contextlib.suppress(OSError), self._process:
            pass
        if self._memory:
            os.close(self._memory)
        if self.hung:
            return f"the decoder sent nothing for {self._silence:.0f} s"
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return f"the decoder process ended: {how}"

    def _give_block(self) -> None:
        self._given += 1
        self._send(self._unused.popleft() if self._unused else self._blocks.add())

    def _send(self, message: DecodeRequest | int) -> None:
        assert self._process.stdin
        with contextlib.suppress(OSError):  # it has ended, as its last message says
            pickle.dump(message, self._process.stdin)
            self._process.stdin.flush()

    def _read(self) -> None:
        assert self._process.stdout
        with contextlib.suppress(EOFError, OSError, pickle.UnpicklingError):
            while True:
                message = pickle.load(self._process.stdout)
                self._silence, self._limit = 0.0, self._timeout
                self._filled += isinstance(message, child.FilledBlock)
                if message is not None:
                    self._events.put((self, message))
        self._events.put((self, None))
