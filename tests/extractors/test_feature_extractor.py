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
def test_a_backbone_is_given_normalised_pixels_in_its_layout(precision: str, clips: bool) -> None:
    seen: list[torch.Tensor] = []

    def forward(pixels: torch.Tensor) -> torch.Tensor:
        seen.append(pixels)
        return pixels.flatten(2)[..., :1].flatten(1) if not clips else pixels[:, :, :, 0, 0]

    encode = FeatureExtractor(nn.Conv3d(3, 3, 1), forward, MEAN, STD, "cpu", precision, clips=clips)
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
    assert np.abs(pixels.double().numpy() - want).max() <= DTYPES[precision] * np.abs(want).max()


@pytest.mark.parametrize("precision", DTYPES)
def test_the_kernel_for_gpus_gives_the_same_pixels(precision: str) -> None:
    pytest.importorskip("triton")
    from mstemba.extractors.pixels import normalise

    device = "cuda" if torch.cuda.is_available() else "cpu"  # there by Triton's interpreter
    scale = torch.tensor([1 / (255 * s) for s in STD], dtype=torch.float32, device=device)
    shift = torch.tensor([-m / s for m, s in zip(MEAN, STD, strict=True)], device=device)
    frames = np.random.default_rng(1).integers(0, 256, (7, 1, 20, 20, 3), np.uint8)
    got = normalise(torch.from_numpy(frames).to(device), scale, shift, getattr(torch, precision))
    want = expected(frames)
    assert got.shape == frames.shape
    # Triton's interpreter cuts bfloat16 off instead of rounding it.
    tolerance = 2 * DTYPES[precision] * np.abs(want).max()
    assert np.abs(got.cpu().double().numpy() - want).max() <= tolerance
