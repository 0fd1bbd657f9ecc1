"""Extraction on a GPU gives the CPU's features up to rounding, also with several threads."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from mstemba.extractors.feature_extractor import FeatureExtractor
from mstemba.pipeline.extract.forward import ForwardPool
from mstemba.pipeline.extract.stage import extract
from mstemba.pipeline.features.spec import make_spec
from mstemba.pipeline.features.store import FeatureStore
from mstemba.pipeline.options import FeatureOptions, RunOptions
from mstemba.pipeline.progress import Event
from tests.pipeline.extract.test_forward import BACKBONE, FRAMES, batch, start
from tests.videos import encode

pytestmark = pytest.mark.gpu

# Of the largest feature. With these frames, which are noise, bfloat16 is off by 0.08 on a CPU.
TOLERANCES = {"float32": 1e-4, "bfloat16": 0.15}


def close(found: np.ndarray, expected: np.ndarray, tolerance: float) -> bool:
    return bool(np.abs(found - expected).max() <= tolerance * np.abs(expected).max())


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    """The features of FRAMES in float32 on the CPU."""
    pool = start("float32", batch_size=6)
    found = pool.submit(batch(FRAMES, 6)).result()
    pool.close()
    return found


@pytest.mark.parametrize("precision", TOLERANCES)
def test_features_are_those_of_the_cpu(expected: np.ndarray, precision: str) -> None:
    pool = start(precision, "cuda", batch_size=6)
    found = pool.submit(batch(FRAMES, 6)).result()
    pool.close()
    assert found.shape == expected.shape
    assert close(found, expected, TOLERANCES[precision])


@pytest.mark.parametrize("precision", TOLERANCES)
def test_neither_other_threads_nor_the_place_in_a_batch_change_a_bit(precision: str) -> None:
    pool = start(precision, "cuda", batch_size=6)
    assert pool.threads == 2 * torch.cuda.device_count()
    alone = pool.submit(batch(FRAMES, 6)).result()
    turns = [np.roll(np.arange(6), turn) for turn in range(6)] * 10
    futures = [pool.submit(batch(FRAMES[turn], 6)) for turn in turns]
    for turn, future in zip(turns, futures, strict=True):
        assert np.array_equal(future.result(), alone[turn])
    part = pool.submit(batch(FRAMES[:2], 6)).result()
    pool.close()
    assert np.array_equal(part, alone[:2])


@pytest.fixture
def half_a_gibibyte() -> Iterator[None]:
    """Little memory on the first GPU."""
    gc.collect()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(2**29 / total, 0)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0, 0)


def test_with_little_memory_batches_are_halved(half_a_gibibyte: None, expected: np.ndarray) -> None:
    news: list[Event] = []
    spec = make_spec(BACKBONE, FeatureOptions(BACKBONE.name, precision="float32"))
    options = RunOptions(device="cuda:0", batch_size=256)
    pool = ForwardPool(spec, BACKBONE, options, news.append)
    frames = np.concatenate([FRAMES] * 42)
    futures = [pool.submit(batch(frames, 256)) for _ in range(4)]
    found = [future.result() for future in futures]
    pool.close()
    assert "cuda:0 does not have enough memory for 256 samples at once: continuing with 128" in {
        event.message for event in news
    }
    for features in found:
        assert close(features, np.concatenate([expected] * 42), 1e-4)


def test_a_whole_extraction_gives_the_features_of_the_cpu(tmp_path: Path) -> None:
    video = encode(tmp_path / "v.mp4", 40)
    values = {}
    for device in ("cpu", "cuda"):
        options = FeatureOptions(BACKBONE.name, precision="float32", window=4, stride=4)
        made = extract(video, options, RunOptions(device=device), store=tmp_path / device)
        assert not made.failed, made.failed
        values[device] = FeatureStore.open(tmp_path / device).read("v").values
    assert values["cuda"].shape == (10, 1280)
    assert close(values["cuda"], values["cpu"], 1e-4)


@pytest.mark.parametrize("device", ["cuda:0", "cuda:1"])
def test_an_extractor_computes_on_its_device_whichever_is_the_current_one(
    expected: np.ndarray, device: str
) -> None:
    if int(device[-1]) >= torch.cuda.device_count():
        pytest.skip("needs two GPUs")
    loaded: FeatureExtractor = BACKBONE.load("cuda:0", "float32")
    encode = loaded.copy_to(device)
    assert torch.cuda.current_device() == 0
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        found = encode(torch.from_numpy(FRAMES[:, None]).pin_memory())
        again = loaded.copy_to("cpu")(FRAMES[:, None])
    assert close(found, expected, 1e-4)
    assert close(again, expected, 1e-4)
