"""The scan and the convolution in readable PyTorch, step by step as in the papers."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Reverse = bool | Literal["both"]
"""Direction of time. ``both``: the first half of the sets runs forwards, the second backwards."""


def scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor | None,
    delta_bias: Tensor,
    reverse: Reverse,
    state: Tensor | None,
) -> Tensor:
    """See ``operations.selective_scan``; gradients come from autograd."""
    dtype = u.dtype
    work = torch.float64 if dtype == torch.float64 else torch.float32
    inputs = [t.to(work) for t in (u, delta, A, B, C, D, delta_bias)]
    if reverse == "both":
        first, second = zip(*(t.chunk(2) for t in inputs), strict=True)
        h, h_back = (None, None) if state is None else state.chunk(2)
        y = _one_way(*first, reverse=False, state=h) + _one_way(*second, reverse=True, state=h_back)
    else:
        y = _one_way(*inputs, reverse=reverse, state=state)
    return (y if z is None else y * F.silu(z.to(work))).to(dtype)


def convolve(x: Tensor, weight: Tensor, bias: Tensor, reverse: Reverse) -> Tensor:
    """See ``operations.causal_convolution``; gradients come from autograd."""
    if reverse == "both":
        halves = zip(weight.chunk(2), bias.chunk(2), (False, True), strict=True)
        return torch.cat([convolve(x, *half) for half in halves])
    length, taps = x.shape[2], weight.shape[2]
    padded = F.pad(x, (0, 0, 0, taps - 1) if reverse else (0, 0, taps - 1, 0))
    total = bias[:, None, None]
    for j in range(taps):
        first = taps - 1 - j if reverse else j
        total = total + weight[:, None, None, :, j] * padded[:, :, first : first + length]
    return F.silu(total).to(x.dtype)


def _one_way(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    delta_bias: Tensor,
    *,
    reverse: bool,
    state: Tensor | None,
) -> Tensor:
    delta = F.softplus(delta + delta_bias[:, None, None])
    sets, n, length, channels = u.shape
    h = u.new_zeros(sets, n, channels, A.shape[2]) if state is None else state
    y: list[Tensor] = []
    for t in reversed(range(length)) if reverse else range(length):
        decay = torch.exp(delta[:, :, t, :, None] * A[:, None])
        h = decay * h + (delta[:, :, t] * u[:, :, t])[..., None] * B[:, :, t, None, :]
        y.append((h * C[:, :, t, None, :]).sum(-1))
    if state is not None:
        state.copy_(h)
    return torch.stack(y[::-1] if reverse else y, dim=2) + D[:, None, None] * u
