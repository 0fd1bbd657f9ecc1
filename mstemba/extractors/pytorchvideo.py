"""I3D, Slow and SlowFast of ResNet-50, and X3D-M (Kinetics-400), as pytorchvideo builds them."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mstemba.errors import UsageError, first_line
from mstemba.extractors.backbone_spec import BackboneSpec
from mstemba.extractors.weights import load_weights, locate

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mstemba.extractors.feature_extractor import FeatureExtractor

_FILES = "https://dl.fbaipublicfiles.com/pytorchvideo/model_zoo/kinetics/"
_MEAN, _STD = [0.45] * 3, [0.225] * 3
# Convolutions and the batch norms after them, by the attributes of pytorchvideo's modules.
_PAIRS = (
    ("conv", "norm"),
    ("conv.conv_xy", "norm"),
    ("branch1_conv", "branch1_norm"),
    ("conv_a", "norm_a"),
    ("conv_b", "norm_b"),
    ("conv_b", "norm_b.0"),
    ("conv_c", "norm_c"),
    ("conv_fast_to_slow", "norm"),
    ("pre_conv", "pre_norm"),
)
_ALPHA = 4  # frames of SlowFast's fast path for each frame of its slow path


@dataclass(frozen=True)
class Network:
    """One of pytorchvideo's networks."""

    summary: str
    width: int
    file: str
    shortest: int = 1
    """Frames that a clip must have; the last frame of a shorter one is repeated."""

    @property
    def published(self) -> dict[str, str]:
        """Address by tag, as in pytorchvideo's own hub."""
        return {"kinetics": _FILES + self.file}


NETWORKS = {
    "i3d_r50": Network("I3D on ResNet-50", 2048, "I3D_8x8_R50.pyth", shortest=2),
    "slow_r50": Network("Slow path of SlowFast on ResNet-50", 2048, "SLOW_8x8_R50.pyth"),
    "slowfast_r50": Network("SlowFast on ResNet-50", 2304, "SLOWFAST_8x8_R50.pyth"),
    "x3d_m": Network("X3D-M, small and fast for a clip backbone", 2048, "X3D_M.pyth"),
}


def describe(model: str) -> BackboneSpec:
    """Return the specification of one of `NETWORKS`."""
    return BackboneSpec(
        width=NETWORKS[model].width,
        input_size=224,
        short_side=256,
        kind="clip",
        cpu_batch=1,
        gpu_batch=8,
    )


def installed() -> bool:
    """Return whether pytorchvideo is installed, without importing it."""
    return importlib.util.find_spec("pytorchvideo") is not None


def load(model: str, weights: str, device: str, precision: str) -> FeatureExtractor:
    """Load the network for clips (N, L, 224, 224, 3), L >= 1, to features (N, 1, F).

    The features are the classifier's input: the mean of the last feature map over space and time,
    for X3D the last activation of its head.

    Raises:
        UsageError: pytorchvideo is not installed, or the weights, a tag or a file, are missing and
            cannot be downloaded, or do not fit.
    """
    from mstemba.extractors.feature_extractor import FeatureExtractor
    from mstemba.extractors.folding import fold

    network = headless(model)
    published = NETWORKS[model].published
    path = locate(weights, published, model)
    last, _ = list(network.get_submodule("blocks").named_children())[-1]
    load_weights(network, path, model, published["kinetics"], f"blocks.{last}.proj.")
    fold(network, _PAIRS)

    def forward(network: nn.Module, clips: Tensor) -> Tensor:
        features: Tensor = network(inputs(model, clips))
        return features[:, None]

    return FeatureExtractor(network, forward, _MEAN, _STD, device, precision, clips=True)


def headless(model: str) -> nn.Module:
    """Build pytorchvideo's network with random weights and pooled features (N, F) as its output."""
    if not installed():
        raise UsageError(f"{model} needs pytorchvideo; run `pip install 'mstemba[pytorchvideo]'`")
    from torch import nn

    from mstemba.extractors import torchvision_ops

    torchvision_ops.ensure()
    try:
        from pytorchvideo.models import hub
    except ImportError as error:
        raise UsageError(
            f"pytorchvideo is installed and cannot be imported ({first_line(error)}); "
            f"run `pip install 'mstemba[pytorchvideo]'`"
        ) from None
    network: nn.Module = getattr(hub, model)(pretrained=False)
    *_, head = network.get_submodule("blocks").children()
    for name in ("proj", "dropout", "activation"):
        setattr(head, name, None)
    # The heads pool with a fixed size, which ties a network to one length of clip.
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.AvgPool3d):
                setattr(module, name, nn.AdaptiveAvgPool3d(1))
    return network


def inputs(model: str, clips: Tensor) -> Tensor | list[Tensor]:
    """Return the network's input for clips (N, 3, L, S, S): for SlowFast the slow and fast path."""
    import torch

    missing = NETWORKS[model].shortest - clips.shape[2]
    if missing > 0:
        last = clips[:, :, -1:].expand(-1, -1, missing, -1, -1)
        clips = torch.cat([clips, last], dim=2)
    if model != "slowfast_r50":
        return clips
    # A quarter of the frames, spread from the first to the last, as in training (see the transforms
    # of PySlowFast and pytorchvideo), not every fourth frame from the first.
    length = clips.shape[2]
    chosen = torch.linspace(0, length - 1, -(-length // _ALPHA)).long()
    return [clips.index_select(2, chosen.to(clips.device)), clips]
