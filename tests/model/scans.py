"""Arguments for the scan, and what a backend makes of them, for the tests of all backends."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mstemba.model.scan.reference import Reverse


def arguments(
    sets: int,
    n: int,
    length: int,
    channels: int,
    states: int,
    reverse: Reverse = False,
    device: str = "cpu",
) -> list[Tensor]:
    """u, delta, A, B, C, D, z and delta_bias, all with gradients."""
    g = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    signal, steps = (sets, n, length, channels), (sets, n, length, states)
    A = -torch.rand(sets, channels, states, generator=g) * 4 - 0.01
    gate = (sets // 2 if reverse == "both" else sets, *signal[1:])
    tensors = [normal(*signal), normal(*signal) - 2, A, normal(*steps), normal(*steps)]
    tensors += [normal(sets, channels), normal(*gate), normal(sets, channels)]
    return [tensor.to(device).requires_grad_() for tensor in tensors]


def with_gradients(function: Callable[..., Tensor], tensors: list[Tensor]) -> list[Tensor]:
    """The output, then the gradient of a fixed weighting of it by every tensor."""
    y = function(*tensors)
    weights = torch.cos(torch.arange(y.numel(), dtype=torch.float32, device=y.device)).view_as(y)
    return [y.detach(), *torch.autograd.grad((y * weights).sum(), tensors)]


def assert_close(found: list[Tensor], expected: list[Tensor], tolerance: float = 1e-5) -> None:
    """Equal to ``tolerance``, relative to the largest value of each tensor above 1."""
    for index, (a, b) in enumerate(zip(found, expected, strict=True)):
        limit = tolerance * max(1.0, float(b.abs().max()) if b.numel() else 0.0)
        torch.testing.assert_close(a, b, rtol=0, atol=limit, msg=lambda m, i=index: f"{i}: {m}")
