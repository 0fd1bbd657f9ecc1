"""Builds networks without random weights, for weights that are loaded right after."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

# What layers fill their parameters with random numbers by. Functions that torch passes on to a mode
# run outside of it, so that they are listed as well as the methods that they call.
_RANDOM: set[Callable[..., Any]] = {
    nn.init.kaiming_uniform_,
    nn.init.normal_,
    nn.init.uniform_,
    Tensor.erfinv_,
    Tensor.normal_,
    Tensor.uniform_,
}


class SkipInitialisation(TorchFunctionMode):
    """Leaves parameters as their memory happens to be.

    Only for networks of which every parameter is loaded: drawing the 430 million random numbers of
    a large CLIP takes longer than reading them from a file.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        target = args[0] if args else kwargs.get("tensor")
        if func in _RANDOM and isinstance(target, nn.Parameter):
            return target
        return func(*args, **kwargs)
