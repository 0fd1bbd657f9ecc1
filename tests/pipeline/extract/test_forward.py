"""Forward passes: results depend on the frames alone, and small memory only costs time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mstemba.errors import MstembaError, UsageError
from mstemba.extractors import registry
from mstemba.pipeline import devices
from mstemba.pipeline.caching.keys import file_sha256
from mstemba.pipeline.extract.batches import FrameBatch, Piece
from mstemba.pipeline.extract.forward import ForwardPass, ForwardPool, batch_size
from mstemba.pipeline.extract.local_engine import decoders
from mstemba.pipeline.features.spec import make_spec
from mstemba.pipeline.options import FeatureOptions, RunOptions
from mstemba.pipeline.progress import Event, ignore_events

BACKBONE = registry.resolve("efficientnet-lite0", None, None, file_sha256)
FRAMES = np.random.default_rng(0).integers(0, 256, (6, 224, 224, 3), np.uint8)


# Some CPUs take half a second for a picture in bfloat16.
@pytest.fixture(params=[("float32", None), ("bfloat16", 2)], ids=["float32", "bfloat16"])
def local(request: pytest.FixtureRequest) -> Iterator[ForwardPool]:
    precision, size = request.param
    made = start(precision=precision, batch_size=size)
    yield made
    made.close()


def start(precision: str, device: str = "cpu", **options: Any) -> ForwardPool:
    spec = make_spec(BACKBONE, FeatureOptions(BACKBONE.name, precision=precision))
    return ForwardPool(spec, BACKBONE, RunOptions(device=device, **options), ignore_events)


def batch(images: NDArray[np.uint8], capacity: int) -> FrameBatch:
    return FrameBatch(
        capacity, 1, [Piece(images, 0, len(images))], [("v", slice(0, len(images)), 0)], len(images)
    )


def test_place_and_neighbours_in_a_batch_change_no_bit(local: ForwardPool) -> None:
    size = local.batch_size
    frames = FRAMES[: size + 1]
    alone = [local.submit(batch(frames[i : i + 1], size)).result() for i in range(len(frames))]
    for first in range(0, len(frames), size):
        together = local.submit(batch(frames[first : first + size], size)).result()
        assert together.shape[1:] == (1, 1280)
        assert np.array_equal(together, np.concatenate(alone[first : first + size]))
    backwards = local.submit(batch(frames[:size][::-1], size)).result()
    assert np.array_equal(backwards[::-1], np.concatenate(alone[:size]))


# The stated tolerance (docs/extract.md): relative to the largest feature.
@pytest.mark.parametrize(
    ("precision", "tolerance", "sizes"),
    [("float32", 1e-5, (1, 4, 6)), ("bfloat16", 0.02, (1, 2, 3))],
)
def test_the_batch_size_changes_features_within_the_stated_tolerance(
    precision: str, tolerance: float, sizes: tuple[int, ...]
) -> None:
    features, frames = [], FRAMES[: sizes[-1]]
    for size in sizes:
        local = start(precision=precision, batch_size=size)
        batches = [frames[i : i + size] for i in range(0, len(frames), size)]
        features.append(
            np.concatenate([local.submit(batch(images, size)).result() for images in batches])
        )
        local.close()
    for other in features[1:]:
        assert np.abs(other - features[0]).max() <= tolerance * np.abs(features[0]).max()


def test_the_threads_of_the_caller_are_left_alone() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        local = start(precision="float32")
        local.submit(batch(FRAMES[:2], local.batch_size)).result()
        local.close()
        assert torch.get_num_threads() == 2
        assert local.threads == 2
    finally:
        torch.set_num_threads(before)


class SmallMemory:
    """An encoder with room for so many samples."""

    device = torch.device("cpu")

    def __init__(self, room: int, error: RuntimeError | None = None) -> None:
        self.room = room
        self.error = error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        self.sizes: list[int] = []

    def __call__(self, frames: torch.Tensor) -> NDArray[np.float32]:
        self.sizes.append(len(frames))
        if len(frames) > self.room:
            raise self.error
        return frames.float().mean((1, 2, 3, 4)).numpy().reshape(-1, 1, 1)


def run(forward: ForwardPass, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
    return forward(batch(frames, len(frames)), forward.prepare_thread()).ravel()


def test_a_batch_that_is_too_large_is_halved_and_said_so() -> None:
    news: list[Event] = []
    encoder: Any = SmallMemory(3)
    forward = ForwardPass(encoder, 224, news.append)
    frames = np.concatenate([FRAMES, FRAMES[:5]])
    for _ in range(2):
        assert np.allclose(run(forward, frames), frames.mean((1, 2, 3)), rtol=1e-5)
    # The last pass takes some frames again, so that all have the same size.
    assert encoder.sizes == [11, 5, *[2] * 6, *[2] * 6]
    assert [(e.message, e.warning) for e in news] == [
        ("cpu does not have enough memory for 11 samples at once: continuing with 5", True),
        ("cpu does not have enough memory for 5 samples at once: continuing with 2", True),
    ]


@pytest.mark.parametrize(
    "message",
    [
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
        "GET was unable to find an engine to execute this computation",
        "MPS backend out of memory (MPS allocated: 9.05 GB)",
        "DefaultCPUAllocator: can't allocate memory: you tried to allocate 2359296 bytes.",
    ],
)
def test_a_batch_is_halved_whoever_has_no_memory(message: str) -> None:
    encoder: Any = SmallMemory(2, RuntimeError(message))
    run(ForwardPass(encoder, 224, ignore_events), FRAMES[:4])
    assert encoder.sizes == [4, 2, 2]


def test_another_error_of_the_backbone_is_raised_as_it_is() -> None:
    encoder: Any = SmallMemory(2, RuntimeError("CUDA error: an illegal memory access"))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        run(ForwardPass(encoder, 224, ignore_events), FRAMES[:4])
    assert encoder.sizes == [4]


def test_a_thread_does_not_raise_the_limit_that_another_one_has_set() -> None:
    first_began, second_done = threading.Event(), threading.Event()

    class Slow(SmallMemory):
        """Fails in the first thread after the second one is done."""

        def __call__(self, frames: torch.Tensor) -> NDArray[np.float32]:
            if threading.current_thread().name == "first" and not second_done.is_set():
                first_began.set()
                second_done.wait(10)
            return super().__call__(frames)

    news: list[Event] = []
    encoder: Any = Slow(1)
    forward = ForwardPass(encoder, 224, news.append)
    found: list[NDArray[np.float32]] = []
    first = threading.Thread(target=lambda: found.append(run(forward, FRAMES)), name="first")
    first.start()
    assert first_began.wait(10)
    found.append(run(forward, FRAMES))
    assert encoder.sizes == [6, 3, *[1] * 6]
    second_done.set()
    first.join()
    assert encoder.sizes[8:] == [6, *[1] * 6]
    assert np.array_equal(found[0], found[1])
    assert len(news) == 2


def test_memory_for_not_even_one_sample_is_an_error_with_its_cause() -> None:
    encoder: Any = SmallMemory(0)
    with pytest.raises(MstembaError, match=r"for one sample.*Tried to allocate 2 GiB.*--precision"):
        run(ForwardPass(encoder, 224, ignore_events), FRAMES[:2])


def test_weights_that_cannot_be_loaded_are_the_callers_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> object:
        raise UsageError("no such weights")

    monkeypatch.setattr(registry.ResolvedBackbone, "load", fail)
    local = start(precision="float32")
    with pytest.raises(UsageError, match="no such weights"):
        local.submit(batch(FRAMES[:1], 4))
    local.close()


def test_batches_and_decoders_by_backbone_and_machine() -> None:
    image, clip, whole = (
        registry.resolve(name, None, weights, lambda _: "sha")
        for name, weights in (("clip", None), ("i3d", "imagenet"), ("i3d-whole-clip", "imagenet"))
    )
    assert batch_size(image, 20, 16, on_cpu=True) == 20
    assert batch_size(image, None, 16, on_cpu=False) == image.spec.gpu_batch
    assert batch_size(clip, 40, 16, on_cpu=True) == 2  # of 16 frames each
    assert batch_size(clip, 4, 16, on_cpu=True) == 1
    assert batch_size(whole, 400, 16, on_cpu=False) == 1
    assert [decoders(n, None) for n in (1, 2, 8, 64)] == [1, 1, 2, 16]
    # Two threads a GPU each keep a core busy.
    assert [decoders(n, 1) for n in (1, 2, 8, 64)] == [1, 1, 6, 16]
    assert [decoders(n, 8) for n in (8, 32, 64, 256)] == [4, 16, 48, 128]
    assert decoders(4, 2) == 2


def test_a_batch_that_no_memory_holds_is_one_clear_error() -> None:
    forward = ForwardPass(SmallMemory(1), 224, ignore_events)  # type: ignore[arg-type]
    huge = FrameBatch(10**9, 1, [Piece(FRAMES, 0, 1)], [("v", slice(0, 1), 1)], 1)
    with pytest.raises(UsageError, match="no memory for a batch of 1000000000 x 1 frames"):
        forward(huge, forward.prepare_thread())


def test_a_device_that_is_broken_is_not_taken_for_too_little_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA error: unspecified launch failure\nCUDA kernel errors might be")

    forward = ForwardPass(SmallMemory(1), 224, ignore_events)  # type: ignore[arg-type]
    state = forward.prepare_thread()
    monkeypatch.setattr(torch, "empty", broken)
    with pytest.raises(MstembaError) as caught:
        forward(batch(FRAMES[:2], 2), state)
    assert str(caught.value) == (
        "cannot allocate a batch of 2 x 1 frames: CUDA error: unspecified launch failure"
    )


def test_the_backbone_is_loaded_once_for_all_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[str] = []
    load = registry.ResolvedBackbone.load

    def counted(self: registry.ResolvedBackbone, device: str, precision: str) -> Any:
        loads.append(device)
        return load(self, device, precision)

    monkeypatch.setattr(registry.ResolvedBackbone, "load", counted)
    monkeypatch.setattr(devices, "all_devices", lambda name: ["cpu"] * 3)
    pool = start(precision="float32", batch_size=2)
    futures = [pool.submit(batch(FRAMES[:2], 2)) for _ in range(12)]
    found = [future.result() for future in futures]
    pool.close()
    assert loads == ["cpu"]
    assert all(np.array_equal(features, found[0]) for features in found)


def test_an_engine_that_is_not_needed_ends_with_its_loading_done() -> None:
    """A thread that loads while the interpreter ends would abort the process."""
    local = start(precision="float32")
    local.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "load"]
