"""Decoded frames to what a backbone is given: the same numbers on every path."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from mstemba.extractors.feature_extractor import FeatureExtractor

MEAN, STD = [0.48, 0.46, 0.41], [0.27, 0.26, 0.28]
FRAMES = np.random.default_rng(0).integers(0, 256, (2, 3, 5, 5, 3), np.uint8)
DTYPES = {"float32": 1e-6, "bfloat16": 2**-8, "float16": 2**-11}


def expected(frames: np.ndarray) -> np.ndarray:
    return (frames / 255 - np.array(MEAN)) / np.array(STD)


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("clips", [False, True])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_backbone_is_given_normalised_pixels_in_its_layout(
    precision: str, clips: bool, device: str
) -> None:
    seen: list[torch.Tensor] = []

    def forward(_: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
        seen.append(pixels)
        return pixels.flatten(2)[..., :1].flatten(1) if not clips else pixels[:, :, :, 0, 0]

    encode = FeatureExtractor(
        nn.Conv3d(3, 3, 1), forward, MEAN, STD, device, precision, clips=clips
    )
    frames = FRAMES if clips else FRAMES[:, :1]
    features = encode(frames)
    assert features.dtype == np.float32
    assert features.shape == ((2, 3, 3) if clips else (2, 1, 3))
    (pixels,) = seen
    assert pixels.dtype == getattr(torch, precision)
    want = expected(frames).transpose(0, 4, 1, 2, 3)
    want = want if clips else want[:, :, 0]
    layout = torch.channels_last_3d if clips else torch.channels_last
    assert pixels.is_contiguous(memory_format=layout)
    assert (
        np.abs(pixels.cpu().double().numpy() - want).max() <= DTYPES[precision] * np.abs(want).max()
    )


def test_a_copy_has_weights_of_its_own() -> None:
    network = nn.Conv2d(3, 4, 5)
    encode = FeatureExtractor(
        network, lambda network, pixels: network(pixels).flatten(1), MEAN, STD, "cpu", "float32"
    )
    before = encode(FRAMES[:, :1])
    copied = encode.copy_to("cpu")
    network.weight.zero_()
    assert np.array_equal(copied(FRAMES[:, :1]), before)
    assert not np.array_equal(encode(FRAMES[:, :1]), before)
