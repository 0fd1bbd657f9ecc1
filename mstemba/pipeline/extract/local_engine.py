"""Where extraction is done: decoder processes and forward passes on this machine's devices."""

from __future__ import annotations

import contextlib
import itertools
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

import numpy as np
import torch

from mstemba.errors import MstembaError, UsageError
from mstemba.extractors.feature_extractor import FeatureExtractor
from mstemba.extractors.registry import ResolvedBackbone
from mstemba.extractors.windows import FeatureArray
from mstemba.pipeline import devices
from mstemba.pipeline.decode.reader import DecodeRequest
from mstemba.pipeline.decode.worker import decode_all
from mstemba.pipeline.extract.batches import Batch, assemble
from mstemba.pipeline.extract.engine import EngineEvent
from mstemba.pipeline.options import RunOptions
from mstemba.pipeline.progress import Event, EventHandler
from mstemba.records import FeatureSpec

K = TypeVar("K")
T = TypeVar("T")


class LocalEngine:
    """One thread a CPU core, or two a GPU, so that one copies while the other computes.

    On a CPU each forward pass keeps to one thread. Two passes side by side are up to twice as fast
    as one with two threads (measured: benchmarks/), do not stumble when a decoder takes a core
    away, and their results do not depend on the number of threads.
    """

    def __init__(
        self,
        spec: FeatureSpec,
        backbone: ResolvedBackbone,
        options: RunOptions,
        on_event: EventHandler,
    ) -> None:
        names = devices.all_devices(options.device)
        on_cpu = names == ["cpu"]
        workers = torch.get_num_threads() if on_cpu else 2 * len(names)
        self._decoders = options.workers or decoders(
            devices.cores(), None if on_cpu else len(names)
        )
        self._timeout = options.decode_timeout
        self.batch_size = batch_size(backbone, options.batch_size, spec.window, on_cpu)
        self.ahead = 2 * workers

        def load() -> Iterator[ForwardPass]:
            encoders = [backbone.load(device, spec.precision) for device in names]
            for device in names:
                if device.startswith("cuda"):
                    torch.cuda.synchronize(device)  # other streams are going to use the weights
            return itertools.cycle([ForwardPass(e, spec.input_size, on_event) for e in encoders])

        self._threads = torch.get_num_threads()
        self._undo = contextlib.ExitStack()
        self._undo.enter_context(exact_convolutions())
        self._loaded = _in_background(load)  # the decoders start meanwhile
        self._worker = threading.local()
        self._pool = ThreadPoolExecutor(workers, "forward", initializer=self._start)

    def _start(self) -> None:
        """In a new thread of the pool."""
        forward = next(self._loaded.result())
        self._worker.forward = forward
        self._worker.state = forward.prepare_thread()

    def decode(
        self, requests: Iterator[tuple[K, DecodeRequest]], videos: int
    ) -> Generator[tuple[K, EngineEvent]]:
        # Decoders without a video would only take threads from the others.
        return decode_all(requests, min(self._decoders, videos), self._timeout)

    def submit(self, batch: Batch) -> Future[FeatureArray]:
        self._loaded.result()  # what is wrong with the weights is nobody's batch's fault
        return self._pool.submit(self._run, batch)

    def _run(self, batch: Batch) -> FeatureArray:
        forward: ForwardPass = self._worker.forward
        return forward(batch, self._worker.state)

    def close(self) -> None:
        if not isinstance(sys.exc_info()[1], KeyboardInterrupt):
            # A thread that is inside torch while the interpreter ends takes the process down.
            wait([self._loaded])
        self._pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(self._threads)
        self._undo.close()


class ThreadState:
    """What every thread that runs forward passes has for itself."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self.stream = torch.cuda.Stream(device) if self._on_gpu else None  # type: ignore[no-untyped-call]
        self._buffer: torch.Tensor | None = None

    def buffer(self, shape: tuple[int, ...]) -> torch.Tensor:
        """uint8 memory that the next call may give again; pinned for a GPU."""
        if self._buffer is None or self._buffer.shape != shape:
            try:
                self._buffer = torch.empty(shape, dtype=torch.uint8, pin_memory=self._on_gpu)
            except RuntimeError:
                raise UsageError(
                    f"no memory for a batch of {shape[0]} x {shape[1]} frames: "
                    f"try a smaller --batch-size or --window"
                ) from None
        return self._buffer


class ForwardPass:
    """Batches through one device's backbone, whatever fits into its memory."""

    def __init__(self, encoder: FeatureExtractor, size: int, on_event: EventHandler) -> None:
        self._encoder = encoder
        self._size = size
        self._listen = on_event
        self._most: int | None = None  # samples, once the device's memory was too small

    def prepare_thread(self) -> ThreadState:
        device = self._encoder.device
        if device.type == "cpu":
            torch.set_num_threads(1)  # of this thread, and until `close` of new ones
        return ThreadState(device)

    def __call__(self, batch: Batch, state: ThreadState) -> FeatureArray:
        """(samples, R, F) of a batch whose blocks are arrays.

        Raises MstembaError when not even one sample fits into the device's memory.
        """
        size = self._size
        frames = state.buffer((batch.capacity, batch.length, size, size, 3))
        assemble(batch.pieces, frames.numpy().reshape(-1, size, size, 3))
        with torch.cuda.stream(state.stream):
            return self._encode(frames)[: batch.samples]

    def _encode(self, frames: torch.Tensor) -> FeatureArray:
        most = self._most or len(frames)
        try:
            return np.concatenate([self._encoder(part) for part in frames.split(most)])  # type: ignore[no-untyped-call]
        except torch.OutOfMemoryError:
            pass  # outside the handler: the exception holds on to the memory of the failed pass
        if most == 1:
            raise MstembaError(
                f"{self._encoder.device} has not enough memory for one sample of this backbone: "
                f"try --precision bfloat16, another --device or a smaller backbone"
            )
        self._most = most // 2
        if self._encoder.device.type == "cuda":
            torch.cuda.empty_cache()
        self._listen(
            Event(
                "extract",
                f"{self._encoder.device} has not enough memory for {most} samples at once: "
                f"going on with {self._most}",
                warning=True,
            )
        )
        return self._encode(frames)


def _in_background(load: Callable[[], T]) -> Future[T]:
    """Run something in a thread that Ctrl-C does not wait for: it may be a download."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(load())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="load", daemon=True).start()
    return future


@contextlib.contextmanager
def exact_convolutions() -> Iterator[None]:
    """float32 convolutions of cuDNN are computed in float32, and not in TF32, its default."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


def decoders(cores: int, gpus: int | None) -> int:
    """Decoder processes: a CPU backbone needs the cores itself, GPUs want all the frames they get.

    One core decodes about as many frames as three cores encode with a small backbone.
    """
    return max(1, cores // 4) if gpus is None else max(1, min(cores - 1, 16 * gpus))


def batch_size(backbone: ResolvedBackbone, frames: int | None, window: int, on_cpu: bool) -> int:
    """Samples in a forward pass, from the frames that the user asked for."""
    about = backbone.spec
    if about.kind == "whole-clip":
        return 1
    if frames is None:
        return about.cpu_batch if on_cpu else about.gpu_batch
    return frames if about.kind == "image" else max(1, frames // window)
