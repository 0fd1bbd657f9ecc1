"""The scan and the convolution by the CUDA kernels of mamba-ssm and causal-conv1d.

Those keep time last and know one direction. So sets become groups of channels, backward sets are
flipped in time on the way in and out, and each function is one call for all sets. Results come back
rounded to the type of ``u``, also those of the two directions that are then added.

The scan's compiled module is called by itself: to import mamba_ssm imports its language models, and
transformers with them.
"""

from __future__ import annotations

from typing import Any, cast

import selective_scan_cuda
import torch  # before the compiled modules, which need its libraries
import torch.nn.functional as F
from causal_conv1d import causal_conv1d_fn
from torch import Tensor
from torch.autograd.function import once_differentiable

from mstemba.model.scan import reference
from mstemba.model.scan.reference import Reverse


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
    """See ``operations.selective_scan``; ``state`` is None, the kernel cannot carry it."""
    if u.numel() == 0:  # a grid of no programs is an error
        return reference.scan(u, delta, A, B, C, D, z, delta_bias, reverse, state)
    sets, n, length, _ = u.shape
    A, D, delta_bias = (t.float().flatten(0, 1).contiguous() for t in (A, D, delta_bias))
    u, delta = (_time_last(t.to(u.dtype), reverse).flatten(1, 2) for t in (u, delta))
    B, C = (_time_last(t.to(u.dtype), reverse) for t in (B, C))
    gate = None
    if z is not None and reverse != "both":
        gate = _time_last(z.to(u.dtype), reverse).flatten(1, 2)
    y = cast(Any, _Scan).apply(u, delta, A, B, C, D, gate, delta_bias)
    y = _time_first(y.view(n, sets, -1, length), reverse)
    if reverse == "both":
        forwards, backwards = y.float().chunk(2)
        y = forwards + backwards
        y = (y if z is None else y * F.silu(z.float())).to(u.dtype)
    return y


def convolve(x: Tensor, weight: Tensor, bias: Tensor, reverse: Reverse) -> Tensor:
    """See ``operations.causal_convolution``."""
    sets, _, taps = weight.shape
    if x.numel() == 0 or not 2 <= taps <= 4:  # the kernel has these numbers of taps only
        return reference.convolve(x, weight, bias, reverse)
    x = torch.cat([x, x]) if reverse == "both" else x
    _, n, length, _ = x.shape
    y = causal_conv1d_fn(
        _time_last(x, reverse).flatten(1, 2),
        weight.flatten(0, 1).contiguous(),
        bias.to(weight.dtype).flatten(),
        activation="silu",
    )
    return _time_first(y.view(n, sets, -1, length), reverse)


class _Scan(torch.autograd.Function):
    """The compiled module's two functions, as they are from mamba-ssm 1.0 to 2.3."""

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor | None) -> Tensor:
        out, ends, *gated = selective_scan_cuda.fwd(*inputs, True)  # with softplus
        ctx.save_for_backward(*inputs, out if gated else None, ends)
        y: Tensor = gated[0] if gated else out
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, out, ends = ctx.saved_tensors
        # No memory is given for dz, softplus, and the gated result is not computed again.
        du, ddelta, dA, dB, dC, dD, dbias, *dz = selective_scan_cuda.bwd(
            *inputs, dy.contiguous(), ends, out, None, True, False
        )
        return du, ddelta, dA, dB, dC, dD, dz[0] if dz else None, dbias


def _time_last(x: Tensor, reverse: Reverse) -> Tensor:
    """(G, N, L, ...) to contiguous (N, G, ..., L), time in the order of each set's direction."""
    return _flip(x, reverse).permute(1, 0, 3, 2).contiguous()


def _time_first(x: Tensor, reverse: Reverse) -> Tensor:
    """The way back: a view as far as nothing is flipped."""
    return _flip(x.permute(1, 0, 3, 2), reverse)


def _flip(x: Tensor, reverse: Reverse) -> Tensor:
    if reverse == "both":
        forwards, backwards = x.chunk(2)
        return torch.cat([forwards, backwards.flip(2)])
    return x.flip(2) if reverse else x
