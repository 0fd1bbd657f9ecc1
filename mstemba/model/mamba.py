"""The bidirectional ("v2") Mamba block of Vision Mamba (Zhu et al., arXiv 2401.09417, sec. 3.2).

W blocks over W sets of sequences of one length run together: every step below is one call for all
of them and for both directions of time. ``x_WNLD`` is W sets of N sequences of L steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mstemba.model.config import dt_rank
from mstemba.model.scan.backends import can_carry
from mstemba.model.scan.operations import causal_convolution, selective_scan
from mstemba.model.scan.reference import Reverse

DT_MIN, DT_MAX = 1e-3, 0.1
"""Initial step sizes are log-uniform between these (Gu and Dao, arXiv 2312.00752, section 3.6)."""
CHUNK, CHUNK_ELSEWHERE = {"cpu": 4096}, 32_768
"""Steps scored at a time without gradients, by device: enough to fill the machine, and so few that
what is E wide does not decide how much memory it takes."""


class BidirectionalMamba(nn.Module):
    """The parameters of a Mamba mixer, forwards and backwards in time; ``mix`` runs them.

    The backward direction has its own convolution, projections and state matrix (names in ``_b``);
    the input and output projections are shared.
    """

    def __init__(self, width: int, state: int = 16, expand: int = 2, conv: int = 4) -> None:
        super().__init__()
        inner, rank = expand * width, dt_rank(width)
        self.in_proj = nn.Linear(width, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, conv, groups=inner)
        self.x_proj = nn.Linear(inner, rank + 2 * state, bias=False)
        self.dt_proj = _step_projection(rank, inner)
        self.A_log, self.D = _state_matrix(inner, state), nn.Parameter(torch.ones(inner))
        self.conv1d_b = nn.Conv1d(inner, inner, conv, groups=inner)
        self.x_proj_b = nn.Linear(inner, rank + 2 * state, bias=False)
        self.dt_proj_b = _step_projection(rank, inner)
        self.A_b_log, self.D_b = _state_matrix(inner, state), nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, width, bias=False)


class _Layer(nn.Module):
    """The residual branch of a block: normalise, then mix."""

    def __init__(self, width: int, state: int, expand: int, conv: int) -> None:
        super().__init__()
        self.mixer = BidirectionalMamba(width, state, expand, conv)
        self.norm = nn.RMSNorm(width, eps=1e-5)


class MambaBlock(nn.Module):
    """RMSNorm(x + drop_path(mixer(RMSNorm(x)))), with the authors' parameter names."""

    def __init__(
        self, width: int, state: int = 16, expand: int = 2, conv: int = 4, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList([_Layer(width, state, expand, conv)])
        self.norm_f = nn.RMSNorm(width, eps=1e-5)
        self.drop_path = drop_path
        self.scan_backend = "auto"

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Run the block over (N, L, width); see ``run_blocks``."""
        return run_blocks([self], x[None], None if mask is None else mask[None])[0].squeeze(0)

    def drop(self, x_WNLD: Tensor) -> Tensor:
        """Stochastic depth (arXiv 1603.09382): drop whole sequences, rescale the rest."""
        if not self.training or self.drop_path == 0:
            return x_WNLD
        keep = 1 - self.drop_path
        kept = torch.rand(*x_WNLD.shape[:2], 1, 1, device=x_WNLD.device) < keep
        return x_WNLD * kept.to(x_WNLD.dtype) / keep


def chunk_length(steps: int, device: torch.device) -> int:
    """Return how many of a sequence's steps are computed at a time; with gradients, all of them."""
    if torch.is_grad_enabled():
        return steps
    return min(steps, CHUNK.get(device.type, CHUNK_ELSEWHERE))


def run_blocks(
    blocks: Sequence[MambaBlock], x: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Run W blocks of one shape, block w over the sequences x[w].

    Args:
        x: (W, N, L, width), zero wherever ``mask`` is False. May be a view.
        mask: (W, N, L) bool, False at the end of a shorter sequence. Such steps are not scanned:
            the state of the backward direction is still zero at the first real step it meets.

    Returns:
        The sequences (W, N, L, width), and the read-out C of their states, (2 W, N, L, S), of the
        W sets forwards, then backwards. Rows where ``mask`` is False are arbitrary.
    """
    # Residuals keep the precision of the weights under autocast, as in Mamba.
    x = x.to(blocks[0].norm_f.weight.dtype)
    eps = blocks[0].norm_f.eps
    weights = _stack(blocks)
    normed = _rms_norm(x, weights.norm, eps)
    padding_mask = None if mask is None else ~mask[..., None]
    backend = blocks[0].scan_backend
    chunk = chunk_length(x.shape[2], x.device)
    if x.shape[2] > chunk and can_carry(backend):
        mixed, C = _mix_in_chunks(weights, normed, padding_mask, backend, chunk)
    else:
        mixed, C = _mix(weights, normed, padding_mask, backend)
    # The mixer is the mean of both directions; to halve here costs no pass over the sequences.
    x = torch.add(x, blocks[0].drop(mixed), alpha=0.5)
    return _rms_norm(x, weights.norm_f, eps), C


@dataclass(frozen=True)
class _Weights:
    """The weights of W mixers, stacked; those of one direction forwards (W), then backwards (W)."""

    in_proj: Tensor
    conv: Tensor
    conv_bias: Tensor
    x_proj: Tensor
    dt_proj: Tensor
    dt_bias: Tensor
    A: Tensor
    D: Tensor
    out_proj: Tensor
    norm: Tensor
    norm_f: Tensor

    def direction(self, reverse: bool) -> _Weights:
        """Return the weights of one direction."""
        both = ("conv", "conv_bias", "x_proj", "dt_proj", "dt_bias", "A", "D")
        one = {name: getattr(self, name).chunk(2)[reverse] for name in both}
        return replace(self, **one)


def _mix(
    weights: _Weights, x: Tensor, padding_mask: Tensor | None, backend: str
) -> tuple[Tensor, Tensor]:
    """Return the sum of both directions (W, N, L, width) and C of each (2 W, N, L, S)."""
    x, gate = _project(x, weights.in_proj).chunk(2, dim=-1)
    y, C = _scan(weights, x, gate, padding_mask, "both", backend)
    return _project(y, weights.out_proj), C


def _mix_in_chunks(
    weights: _Weights, x: Tensor, padding_mask: Tensor | None, backend: str, chunk: int
) -> tuple[Tensor, Tensor]:
    """Do the same as ``_mix`` without gradients, in chunks of the sequence.

    There is a sweep for each direction. Each chunk starts from the state that the previous one
    left, and is convolved with the steps beyond it that the taps reach. Two tensors as wide as E
    are kept for the whole length: the input of the scan, and the result of the backward sweep.
    """
    length, reach = x.shape[2], weights.conv.shape[2] - 1
    to_inner, to_gate = weights.in_proj.chunk(2, dim=1)
    inner = x.new_empty(*x.shape[:3], to_inner.shape[1])
    y, mixed = torch.empty_like(inner), torch.empty_like(x)
    C = x.new_empty(len(weights.A), *x.shape[1:3], weights.A.shape[2])
    C_forwards, C_backwards = C.chunk(2)
    starts = range(0, length, chunk)
    for reverse in (True, False):
        own = weights.direction(reverse)
        state = own.A.new_zeros(len(own.A), x.shape[1], *own.A.shape[1:])
        for start in reversed(starts) if reverse else starts:
            stop = min(start + chunk, length)
            rows, first, last = slice(start, stop), max(0, start - reach), min(length, stop + reach)
            if reverse:
                inner[:, :, rows] = _project(x[:, :, rows], to_inner)
            hidden = None if padding_mask is None else padding_mask[:, :, first:last]
            keep = slice(start - first, stop - first)
            one, C_one = _scan(
                own, inner[:, :, first:last], None, hidden, reverse, backend, state, keep
            )
            (C_backwards if reverse else C_forwards)[:, :, rows] = C_one
            if reverse:
                y[:, :, rows] = one
            else:
                gate = F.silu(_project(x[:, :, rows], to_gate))
                gated = one.add_(y[:, :, rows]).mul_(gate)
                mixed[:, :, rows] = _project(gated, weights.out_proj)
    return mixed, C


def _scan(
    weights: _Weights,
    x: Tensor,
    gate: Tensor | None,
    padding_mask: Tensor | None,
    reverse: Reverse,
    backend: str,
    state: Tensor | None = None,
    keep: slice = slice(None),
) -> tuple[Tensor, Tensor]:
    """Convolve, scan and gate (W, N, L, E); return the steps ``keep``, and C of every set."""
    u = causal_convolution(x, weights.conv, weights.conv_bias, reverse, backend=backend)
    if padding_mask is not None:  # the convolution's bias would otherwise drive the state
        u = u.masked_fill(
            padding_mask if reverse != "both" else torch.cat([padding_mask, padding_mask]), 0
        )
    u = u[:, :, keep]
    rank, states = weights.dt_proj.shape[2], weights.A.shape[2]
    step, B, C = torch.split(_project(u, weights.x_proj), [rank, states, states], dim=-1)
    y = selective_scan(
        u,
        _project(step, weights.dt_proj),
        weights.A,
        B,
        C,
        weights.D,
        gate,
        weights.dt_bias,
        reverse,
        state=state,
        backend=backend,
    )
    return y, C


def _stack(blocks: Sequence[MambaBlock]) -> _Weights:
    layers: list[Any] = [block.layers[0] for block in blocks]
    mixers: list[BidirectionalMamba] = [layer.mixer for layer in layers]
    both = [(m.conv1d, m.x_proj, m.dt_proj, m.A_log, m.D) for m in mixers]
    both += [(m.conv1d_b, m.x_proj_b, m.dt_proj_b, m.A_b_log, m.D_b) for m in mixers]
    rows = [(c.weight, c.bias, x.weight, dt.weight, dt.bias, A, D) for c, x, dt, A, D in both]
    columns: list[Sequence[Tensor]] = list(zip(*rows, strict=True))
    shared = [
        [mixer.in_proj.weight for mixer in mixers],
        [mixer.out_proj.weight for mixer in mixers],
        [layer.norm.weight for layer in layers],
        [block.norm_f.weight for block in blocks],
    ]
    if len(blocks) > 1:
        columns += shared
    # One copy of all of them: to stack each kind by itself would be a kernel each, there and back.
    flat = torch.cat([weight.flatten() for column in columns for weight in column])
    parts = torch.split(flat, [len(column) * column[0].numel() for column in columns])
    stacked = [
        part.view(len(column), *column[0].shape)
        for part, column in zip(parts, columns, strict=True)
    ]
    conv, conv_bias, x_proj, dt_proj, dt_bias, A_log, D = stacked[:7]
    in_proj, out_proj, norm, norm_f = stacked[7:] or [weight[None] for (weight,) in shared]
    return _Weights(
        in_proj=in_proj,
        conv=_wide(conv.squeeze(2)),
        conv_bias=_wide(conv_bias),
        x_proj=x_proj,
        dt_proj=dt_proj,
        dt_bias=_wide(dt_bias),
        A=cast(Any, _NegativeExp).apply(_wide(A_log)),
        D=_wide(D),
        out_proj=out_proj,
        norm=norm,
        norm_f=norm_f,
    )


def _wide(tensor: Tensor) -> Tensor:
    """Convert to at least float32, in which the scan computes."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _project(x: Tensor, weight: Tensor) -> Tensor:
    """Multiply (G, N, L, in) by (G, out, in): one matrix product for every set."""
    if len(weight) == 1:
        return F.linear(x, weight.flatten(0, 1))
    device = x.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        x, weight = (t.to(torch.get_autocast_dtype(device)) for t in (x, weight))
    y: Tensor = cast(Any, _Products).apply(x.flatten(1, 2), weight)
    return y.view(*x.shape[:3], y.shape[2])


class _Products(torch.autograd.Function):
    """(G, L, in) times (G, out, in), whose gradient is contiguous; autograd's would be copied."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return torch.bmm(x, weight.mT)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        dx = torch.bmm(dy, weight) if wanted[0] else None
        return dx, torch.bmm(dy.mT, x) if wanted[1] else None


class _NegativeExp(torch.autograd.Function):
    """-exp(x); its slope is its value."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = x.exp().neg_()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return cast(Tensor, y * dy)


def _rms_norm(x: Tensor, weight: Tensor, eps: float | None) -> Tensor:
    """Normalise (W, N, L, width) by its root mean square, times (W, width)."""
    if len(weight) == 1:
        return F.rms_norm(x, weight.shape[1:], weight.flatten(), eps)
    return F.rms_norm(x, weight.shape[1:], None, eps) * weight[:, None, None]


def _state_matrix(inner: int, state: int) -> nn.Parameter:
    """Return log(-A) with A = -1, ..., -S for every channel (S4D-real)."""
    return nn.Parameter(torch.log(torch.arange(1.0, state + 1)).repeat(inner, 1))


def _step_projection(rank: int, inner: int) -> nn.Linear:
    """Return the projection to delta; softplus of its bias is log-uniform in [DT_MIN, DT_MAX]."""
    projection = nn.Linear(rank, inner)
    nn.init.uniform_(projection.weight, -(rank**-0.5), rank**-0.5)
    dt = torch.exp(torch.empty(inner).uniform_(math.log(DT_MIN), math.log(DT_MAX)))
    projection.bias = nn.Parameter(dt + torch.log(-torch.expm1(-dt)))  # inverse of softplus
    return projection
