"""Folds batch norms into the convolutions before them: the same numbers from fewer passes."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval


def fold(network: nn.Module, pairs: Iterable[tuple[str, str]]) -> int:
    """Fold in place, wherever in `network` a module has both children of a pair; how many were.

    A pair names a convolution and the batch norm that follows it directly, as paths below the
    module whose `forward` calls them. That is the caller's knowledge of the network: the order in
    which children were registered proves nothing. Pairs that are something else where a module has
    both names, such as no batch norm at all, are left as they are. The network is left in eval
    mode, the only one in which the two are the same.
    """
    network.eval()
    pairs = tuple(pairs)
    return sum(_fold(module, *pair) for module in list(network.modules()) for pair in pairs)


def _fold(module: nn.Module, convolution: str, norm: str) -> bool:
    first, second = _child(module, convolution), _child(module, norm)
    if not isinstance(first, nn.Conv2d | nn.Conv3d) or not isinstance(second, _BatchNorm):
        return False
    # Fusing copies the convolution whole, so one that pads in its own way goes on doing so.
    module.set_submodule(convolution, fuse_conv_bn_eval(first, second))
    module.set_submodule(norm, nn.Identity())
    return True


def _child(module: nn.Module, path: str) -> nn.Module | None:
    try:
        return module.get_submodule(path)
    except AttributeError:
        return None
