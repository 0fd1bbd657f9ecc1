"""The backbone `colours`."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mstemba.extractors import registry
from mstemba.extractors.backbone_spec import BackboneSpec
from mstemba.extractors.clip_text import TextEncoder
from mstemba.extractors.feature_extractor import FeatureExtractor
from tests.pipeline.detect.colours import colour_of


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A backbone `colours`: a picture's features are its mean colour, a text's those it names.

    Gives the towers that were loaded.
    """
    seen: list[str] = []

    def load(model: str, weights: str, device: str, precision: str) -> FeatureExtractor:
        seen.append("image")
        return FeatureExtractor(
            torch.nn.Identity(), lambda _, x: x.mean((2, 3)), [0] * 3, [1] * 3, device, precision
        )

    def load_text(model: str, weights: str, device: str) -> TextEncoder:
        seen.append("text")
        return TextEncoder(lambda texts: np.stack([colour_of(t) for t in texts]), scale=20.0)

    about = BackboneSpec(3, 32, 32, "image", cpu_batch=8, gpu_batch=8)
    colours = registry.Backbone(
        summary="mean colour",
        default_model="mean",
        default_weights=lambda: "none",
        licence="-",
        source="-",
        describe=lambda model: about,
        load=load,
        available=lambda: True,
        published={"none": ""},
        load_text=load_text,
    )
    monkeypatch.setitem(registry.BACKBONES, "colours", colours)
    return seen
