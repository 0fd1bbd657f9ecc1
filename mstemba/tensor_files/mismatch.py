"""How the tensors of a file differ from those of a network, and whose they are."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

_SHOWN, _LONGEST = 4, 100
"""How many names a message lists, and how many characters of each."""

# Networks by names of tensors that all of their files have.
_NETWORKS = (
    (("vision_model.embeddings.class_embedding",), "CLIP as Hugging Face transformers saves it"),
    (("visual.conv1.weight", "token_embedding.weight"), "CLIP"),
    (("visual.conv1.weight",), "the image tower of CLIP"),
    (("visual.trunk.patch_embed.proj.weight",), "CLIP with an image tower of timm"),
    (("Conv3d_1a_7x7.conv3d.weight",), "Inception-I3D of pytorch-i3d"),
    (("_conv_stem.weight",), "EfficientNet of efficientnet-pytorch"),
    (("blocks.0.conv.conv_t.weight",), "X3D of pytorchvideo"),
    (("blocks.0.multipathway_blocks.0.conv.weight",), "SlowFast of pytorchvideo"),
    (("blocks.0.conv.weight", "blocks.5.proj.weight"), "I3D or Slow of pytorchvideo"),
    (("blocks.0.conv.weight", "blocks.6.proj.weight"), "I3D or Slow of pytorchvideo"),
    (("s1.pathway0_stem.conv.weight",), "a network of PySlowFast"),
    (("blocks.1.layers.0.mixer.A_log",), "MS-Temba, a detector and not a backbone"),
    (("patch_embed.proj.weight",), "a vision transformer of timm"),
    (("conv1.weight", "layer1.0.conv1.weight"), "ResNet of torchvision"),
)


def describe_mismatch(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """Return which tensors are missing, unknown or of another shape or type; empty if all fit."""
    problems = {
        "missing": [name for name in expected if name not in found],
        "unknown": [name for name in found if name not in expected],
        "of another shape": [
            f"{name} {tuple(found[name].shape)}, expected {tuple(tensor.shape)}"
            for name, tensor in expected.items()
            if name in found and found[name].shape != tensor.shape
        ],
    }
    problems["of another type"] = [
        f"{name} {found[name].dtype}, expected {tensor.dtype}"
        for name, tensor in expected.items()
        if name in found and tensor.is_floating_point() and not found[name].is_floating_point()
    ]
    return "; ".join(f"{what}: {some_of(names)}" for what, names in problems.items() if names)


def describe_network(found: Mapping[str, Tensor]) -> str | None:
    """Return which well-known network tensors belong to, by their names; None if it is unknown."""
    return next((what for names, what in _NETWORKS if all(name in found for name in names)), None)


def some_of(names: list[str]) -> str:
    """Return the first few names, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    shown = (n if n.isprintable() else ascii(n) for n in (name[:_LONGEST] for name in names))
    return ", ".join(itertools.islice(shown, _SHOWN)) + more
