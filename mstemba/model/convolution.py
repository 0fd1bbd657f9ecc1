"""Convolutions over time as matrix products."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def convolve(x: Tensor, conv: nn.Conv1d) -> Tensor:
    """Run a convolution layer over time, as one matrix product wherever that is not the CPU.

    By default, cuDNN computes float32 convolutions in TF32, with 10 bits of mantissa, but torch
    computes matrix products in full float32; they need no transposition either. On a CPU the layer
    itself is as exact and faster.

    Args:
        x: (B, T, channels in).
        conv: Of one group and an odd number of taps, padded with zeros so that stride 1 keeps the
            length.

    Returns:
        (B, T', channels out).
    """
    if x.device.type == "cpu":
        y: Tensor = conv(x.transpose(1, 2))
        return y.transpose(1, 2)
    return convolve_as_product(x, conv)


def convolve_as_product(x: Tensor, conv: nn.Conv1d) -> Tensor:
    """Do the same as ``convolve``, by a matrix product on every device."""
    (taps,), (stride,), (dilation,) = conv.kernel_size, conv.stride, conv.dilation
    near: Tensor = cast(Any, _Neighbours).apply(x, taps, dilation) if taps > 1 else x[..., None]
    return F.linear(near[:, ::stride].flatten(2), conv.weight.flatten(1), conv.bias)


class _Neighbours(torch.autograd.Function):
    """(B, T, D) to (B, T, D, taps): the steps that each step of a convolution sees.

    Autograd alone would write and add up a whole sequence for every tap.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, taps: int, dilation: int) -> Tensor:
        ctx.taps, ctx.dilation = taps, dilation
        reach = taps // 2 * dilation
        padded = F.pad(x, (0, 0, reach, reach))
        return padded.unfold(1, 2 * reach + 1, 1)[..., ::dilation].contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dnear: Tensor) -> tuple[Tensor | None, ...]:
        steps, middle = dnear.shape[1], ctx.taps // 2
        dx = dnear[..., middle].clone()
        for tap in range(ctx.taps):
            shift = (tap - middle) * ctx.dilation
            given, seen = max(0, -shift), max(0, shift)
            count = max(0, steps - abs(shift))
            if shift:
                dx[:, seen : seen + count].add_(dnear[:, given : given + count, :, tap])
        return dx, None, None
