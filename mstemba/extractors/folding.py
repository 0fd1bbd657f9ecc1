"""Folds operations into neighbouring layers: the same numbers, up to rounding, in less time."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

_QUICK_GELU = 1.702


def fold(network: nn.Module, pairs: Iterable[tuple[str, str]]) -> int:
    """Fold batch norms in place, and put the network into eval mode.

    Args:
        network: Every module in it that has both children of a pair is changed.
        pairs: A convolution and the batch norm that follows it directly, as paths below the module
            whose `forward` calls them. Only the caller can know them: the order in which children
            are registered proves nothing. A pair of other modules is left as it is.

    Returns:
        How many were folded.
    """
    network.eval()
    folded = 0
    for module, (convolution, norm) in product(list(network.modules()), pairs):
        try:
            first, second = module.get_submodule(convolution), module.get_submodule(norm)
        except AttributeError:
            continue
        if isinstance(first, nn.Conv2d | nn.Conv3d) and isinstance(second, _BatchNorm):
            # Fusing copies the whole convolution, so one that pads in its own way still does.
            module.set_submodule(convolution, fuse_conv_bn_eval(first, second))
            module.set_submodule(norm, nn.Identity())
            folded += 1
    return folded


@torch.no_grad()
def fold_quick_gelu(network: nn.Module, activation: type[nn.Module]) -> int:
    """Replace QuickGELU by SiLU between linear layers, in place.

    QuickGELU(x) = x sigmoid(1.702 x) = SiLU(1.702 x) / 1.702: the layers before and after it take
    the factors. SiLU is one pass over memory, QuickGELU three.

    Args:
        network: In float32. Every `nn.Sequential` in it of two linear layers with the activation
            between them is changed; identities do not count.
        activation: The class of QuickGELU.

    Returns:
        How many were replaced.
    """
    replaced = 0
    for block in network.modules():
        layers = [(n, c) for n, c in block.named_children() if not isinstance(c, nn.Identity)]
        kinds = [type(layer) for _, layer in layers]
        if type(block) is nn.Sequential and kinds == [nn.Linear, activation, nn.Linear]:
            (_, first), (name, _), (_, last) = layers
            for value in first.parameters():  # weight and bias
                value.mul_(_QUICK_GELU)
            last.get_parameter("weight").div_(_QUICK_GELU)
            setattr(block, name, nn.SiLU())
            replaced += 1
    return replaced
