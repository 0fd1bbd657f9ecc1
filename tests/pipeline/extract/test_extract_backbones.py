"""From a video file to the store: features equal a direct forward pass over the same frames."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from mstemba.errors import StoreError, UsageError
from mstemba.extractors import i3d, pytorchvideo, torchvision_ops
from mstemba.pipeline.decode.reader import decode
from mstemba.pipeline.decode.request import DecodeRequest
from mstemba.pipeline.extract.stage import extract
from mstemba.pipeline.features.store import FeatureStore
from mstemba.pipeline.options import FeatureOptions, RunOptions
from mstemba.records import Features, Frames
from tests.videos import encode, encode_at, moving

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

COUNT = 42


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """42 frames whose rate changes."""
    times = [i / 10 + (i > 20) * i / 30 for i in range(COUNT)]
    path = tmp_path_factory.mktemp("video") / "v.mp4"
    return encode_at(path, times, images=moving(COUNT, 320, 240))


def frames_of(video: Path, short_side: int) -> Tensor:
    """All frames, (1, 3, T, 224, 224) in [0, 1], decoded by PyAV, and their times."""
    request = DecodeRequest(video, 224, short_side, decoder="av")
    images = np.concatenate([e.images for e in decode(request) if isinstance(e, Frames)])
    return torch.from_numpy(images).permute(3, 0, 1, 2)[None].float() / 255


def features_of(
    video: Path, store: Path, here: RunOptions | None = None, **options: Any
) -> Features:
    here = here or RunOptions(device="cpu")
    made = extract(video, FeatureOptions(precision="float32", **options), here, store=store)
    assert not made.failed, made.failed
    return FeatureStore.open(store).read("v")


def check(got: NDArray[Any], want: NDArray[Any]) -> None:
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= 1e-4 * np.abs(want).max()


@pytest.fixture(scope="module")
def i3d_weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Random weights under pytorch-i3d's names."""
    from tests.extractors.test_i3d import random_state

    file = tmp_path_factory.mktemp("i3d") / "rgb.pt"
    torch.save(random_state(), file)
    return str(file)


@torch.inference_mode()
def test_i3d_snippets(video: Path, i3d_weights: str, tmp_path: Path) -> None:
    options = {"backbone": "i3d", "weights": i3d_weights, "stride": 8}
    features = features_of(video, tmp_path / "s", **options)
    pixels = 2 * frames_of(video, 226) - 1
    network = i3d.load_network(i3d_weights).eval()
    rows = []
    for begin in range(0, COUNT, 8):
        index = torch.arange(begin, begin + 16).clamp(max=COUNT - 1)  # the last frame again
        rows.append(network.snippet(pixels[:, :, index])[0, 0].numpy())
    check(features.values, np.stack(rows))
    starts = [i / 10 + (i > 20) * i / 30 for i in range(0, COUNT, 8)]
    assert np.allclose(features.grid.starts, starts, atol=2e-3)
    # How many snippets go at once, and how the frames come in, is no part of a feature.
    other = features_of(video, tmp_path / "o", RunOptions(48, "cpu", workers=2), **options)
    check(other.values, features.values)


@torch.inference_mode()
def test_i3d_whole_clip(i3d_weights: str, tmp_path: Path) -> None:
    """Longer than one stretch; at a length that is a multiple of 4 it is pytorch-i3d's own."""
    count = 208
    video = encode(tmp_path / "v.mp4", count)
    options = {"backbone": "i3d-whole-clip", "weights": i3d_weights}
    features = features_of(video, tmp_path / "s", **options)
    network = i3d.load_network(i3d_weights).eval()
    want = network.rows(2 * frames_of(video, 226) - 1)[0].numpy()
    assert len(want) == count // 8 - 1
    check(features.values, want)
    assert np.allclose(features.grid.starts, np.arange(len(want)) * 0.8, atol=1e-6)
    with pytest.raises(UsageError, match="one row of 16 frames every 8"):
        features_of(video, tmp_path / "x", window=32, **options)


# The clip length that each network's own head is made for.
NATIVE = {"slow_r50": 8, "slowfast_r50": 32, "x3d_m": 16, "i3d_r50": 8}


@pytest.mark.parametrize("name", NATIVE)
@torch.inference_mode()
def test_pytorchvideo(name: str, video: Path, tmp_path: Path) -> None:
    """Against what the package's own network hands to its classifier."""
    pytest.importorskip("pytorchvideo")
    torchvision_ops.ensure()
    from pytorchvideo.models import hub

    torch.manual_seed(0)
    original = getattr(hub, name)(pretrained=False).eval()
    weights = tmp_path / "w.pyth"
    torch.save({"model_state": original.state_dict()}, weights)
    window = NATIVE[name]
    features = features_of(
        video, tmp_path / "s", backbone=name, weights=str(weights), window=window, stride=20
    )
    pixels = (frames_of(video, 256) - 0.45) / 0.225
    index = [torch.arange(b, b + window).clamp(max=COUNT - 1) for b in range(0, COUNT, 20)]
    clips = torch.cat([pixels[:, :, i] for i in index])
    seen: list[Tensor] = []
    original.blocks[-1].proj.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    original(pytorchvideo.inputs(name, clips))
    check(features.values, seen[0].numpy().reshape(3, -1))


def test_a_store_of_another_backbone_is_refused(video: Path, tmp_path: Path) -> None:
    features_of(video, tmp_path / "s", backbone="efficientnet-lite0")
    with pytest.raises(StoreError, match=r"backbone=efficientnet-lite0 \(wanted clip\)"):
        features_of(video, tmp_path / "s", backbone="clip")
