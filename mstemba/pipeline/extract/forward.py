"""Forward passes: batches of frames through a backbone, in threads for every device."""

from __future__ import annotations

import contextlib
import itertools
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

import numpy as np
import torch

from mstemba.errors import MstembaError, UsageError, first_line
from mstemba.extractors.feature_extractor import FeatureExtractor
from mstemba.extractors.registry import ResolvedBackbone
from mstemba.extractors.windows import FeatureArray
from mstemba.pipeline import devices
from mstemba.pipeline.extract.batches import FrameBatch, assemble
from mstemba.pipeline.options import RunOptions
from mstemba.pipeline.progress import Event, EventHandler
from mstemba.records import FeatureSpec

T = TypeVar("T")


class ForwardPool:
    """Threads that run batches through a backbone: one a CPU core, or two a GPU.

    With two threads a GPU, one copies while the other computes. On a CPU each forward pass keeps to
    one thread: two passes side by side are up to twice as fast as one with two threads (measured:
    benchmarks/), and their results do not depend on the number of threads.
    """

    def __init__(
        self,
        spec: FeatureSpec,
        backbone: ResolvedBackbone,
        options: RunOptions,
        on_event: EventHandler,
    ) -> None:
        """Start loading the backbone, in the background."""
        names = devices.all_devices(options.device)
        self.gpus = None if names == ["cpu"] else len(names)
        """How many GPUs compute; None for a CPU."""
        self._torch_threads = torch.get_num_threads()
        self.threads = 2 * self.gpus if self.gpus else self._torch_threads
        self.batch_size = batch_size(
            backbone, options.batch_size, spec.window, on_cpu=self.gpus is None
        )
        """Samples in one forward pass."""

        def load() -> Iterator[ForwardPass]:
            # The weights are read once; copies are made on the CPU, so that no GPU holds two.
            one = len(names) == 1
            first = backbone.load(names[0] if one else "cpu", spec.precision)
            extractors = [first] if one else [first.copy_to(device) for device in names]
            for device in names:
                if device.startswith("cuda"):
                    torch.cuda.synchronize(device)  # other streams are going to use the weights
            return itertools.cycle([ForwardPass(e, spec.input_size, on_event) for e in extractors])

        self._undo = contextlib.ExitStack()
        # float32 convolutions of cuDNN are computed in float32, and not in TF32, its default.
        self._undo.enter_context(torch.backends.cudnn.flags(enabled=True, allow_tf32=False))
        self._loaded = _in_background(load)
        self._local = threading.local()
        self._pool = ThreadPoolExecutor(self.threads, "forward", initializer=self._start_thread)

    def _start_thread(self) -> None:
        forward = next(self._loaded.result())
        self._local.forward = forward
        self._local.state = forward.prepare_thread()

    def wait_loaded(self) -> None:
        """Wait until the backbone is loaded. Raises MstembaError when it cannot be."""
        self._loaded.result()

    def submit(self, batch: FrameBatch) -> Future[FeatureArray]:
        """Begin a forward pass; the future gives (samples, R, F) float32.

        Raises:
            MstembaError: the backbone cannot be loaded.
        """
        self.wait_loaded()  # weights that cannot be loaded are no batch's failure
        return self._pool.submit(self._run, batch)

    def _run(self, batch: FrameBatch) -> FeatureArray:
        forward: ForwardPass = self._local.forward
        return forward(batch, self._local.state)

    def close(self) -> None:
        """Stop, without waiting for batches that have not begun."""
        if not isinstance(sys.exc_info()[1], KeyboardInterrupt):
            # A thread that is inside torch while the interpreter ends takes the process down.
            wait([self._loaded])
        self._pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(self._torch_threads)
        self._undo.close()


class ThreadState:
    """The stream and the input buffer of one thread that runs forward passes."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self.stream = torch.cuda.Stream(device) if self._on_gpu else None  # type: ignore[no-untyped-call]
        self._buffer: torch.Tensor | None = None

    def buffer(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Return uint8 memory, pinned for a GPU; a later call may return the same memory."""
        if self._buffer is None or self._buffer.shape != shape:
            try:
                self._buffer = torch.empty(shape, dtype=torch.uint8, pin_memory=self._on_gpu)
            except RuntimeError as error:
                batch = f"a batch of {shape[0]} x {shape[1]} frames"
                if devices.is_out_of_memory(error):
                    raise UsageError(
                        f"no memory for {batch}: try a smaller --batch-size or --window"
                    ) from None
                raise MstembaError(f"cannot allocate {batch}: {first_line(error)}") from None
        return self._buffer


class ForwardPass:
    """Runs batches through one device's backbone, in parts where memory is too small."""

    def __init__(self, extractor: FeatureExtractor, size: int, on_event: EventHandler) -> None:
        self._extractor = extractor
        self._size = size
        self._on_event = on_event
        self._most: int | None = None  # samples at once, after the memory was too small
        self._lock = threading.Lock()

    def prepare_thread(self) -> ThreadState:
        device = self._extractor.device
        if device.type == "cpu":
            torch.set_num_threads(1)  # of this thread, and until `close` of new ones
        return ThreadState(device)

    def __call__(self, batch: FrameBatch, state: ThreadState) -> FeatureArray:
        """Return the features of a batch, (samples, R, F) float32.

        Raises:
            MstembaError: not even one sample fits into the device's memory.
        """
        size = self._size
        frames = state.buffer((batch.capacity, batch.length, size, size, 3))
        assemble(batch.pieces, frames.numpy().reshape(-1, size, size, 3))
        batch.pieces.clear()  # a decoder waits for the memory of frames that nobody holds
        with torch.cuda.stream(state.stream):
            return self._extract(frames)[: batch.samples]

    def _extract(self, frames: torch.Tensor) -> FeatureArray:
        while True:
            most = min(self._most or len(frames), len(frames))
            try:
                return self._in_parts(frames, most)
            except Exception as error:
                if not devices.is_out_of_memory(error):
                    raise
                reason = first_line(error)
            # Outside the handler: the exception holds on to the memory of the failed pass.
            self._halve(most, reason)

    def _in_parts(self, frames: torch.Tensor, size: int) -> FeatureArray:
        """Return the features of a batch in passes of one size: the last one reaches back."""
        features = []
        for first in range(0, len(frames), size):
            start = min(first, len(frames) - size)
            features.append(self._extractor(frames[start : start + size])[first - start :])
        return np.concatenate(features)

    def _halve(self, most: int, reason: str) -> None:
        """Take fewer samples at once, after memory was too small for `most`."""
        device = self._extractor.device
        if most == 1:
            raise MstembaError(
                f"{device} does not have enough memory for one sample of this backbone ({reason}): "
                f"try --precision bfloat16, another --device or a smaller backbone"
            )
        if device.type == "cuda":
            torch.cuda.empty_cache()
        elif device.type == "mps":
            torch.mps.empty_cache()
        with self._lock:
            if self._most is not None and self._most <= most // 2:
                return  # the device's other thread was here first
            self._most = most // 2
        message = (
            f"{device} does not have enough memory for {most} samples at once: "
            f"continuing with {most // 2}"
        )
        self._on_event(Event("extract", message, warning=True))


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


def batch_size(backbone: ResolvedBackbone, frames: int | None, window: int, on_cpu: bool) -> int:
    """Samples in a forward pass, from the frames that the user asked for."""
    about = backbone.spec
    if about.kind == "whole-clip":
        return 1
    if frames is None:
        return about.cpu_batch if on_cpu else about.gpu_batch
    return frames if about.kind == "image" else max(1, frames // window)
