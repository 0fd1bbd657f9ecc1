"""The selective scan as it is written in the paper: one step of time after another, in PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    reverse: bool,
) -> Tensor:
    """See ``mstemba.model.scan.selective_scan``; gradients come from autograd."""
    delta = F.softplus(delta if delta_bias is None else delta + delta_bias)
    length = u.shape[1]
    h = u.new_zeros(u.shape[0], u.shape[2], A.shape[1])
    y: list[Tensor] = []
    for t in reversed(range(length)) if reverse else range(length):
        decay = torch.exp(delta[:, t, :, None] * A)
        h = decay * h + (delta[:, t] * u[:, t])[..., None] * B[:, t, None, :]
        y.append((h * C[:, t, None, :]).sum(-1))
    out = torch.stack(y[::-1] if reverse else y, dim=1)
    if D is not None:
        out = out + D * u
    return out if z is None else out * F.silu(z)
