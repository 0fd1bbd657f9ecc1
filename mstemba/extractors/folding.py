"""Folds batch norms into the convolutions before them: the same numbers in fewer operations."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval


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
