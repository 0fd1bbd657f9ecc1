"""The bidirectional ("v2") Mamba block of Vision Mamba (Zhu et al., arXiv 2401.09417, sec. 3.2).

W blocks over W sets of sequences of one length run together: every step below is one call for all
of them and for both directions of time. ``x_WNLD`` is W sets of N sequences of L steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mstemba.model.config import dt_rank
from mstemba.model.scan.backends import can_carry
from mstemba.model.scan.operations import causal_convolution, selective_scan
from mstemba.model.scan.reference import Reverse

DT_MIN, DT_MAX = 1e-3, 0.1
"""Initial step sizes are log-uniform between these (Gu and Dao, arXiv 2312.00752, section 3.6)."""
CHUNK = {"cpu": 4096, "cuda": 32_768}
"""Steps scored at a time without gradients, by device; elsewhere all at once. Long enough that a
chunk fills the machine, short enough that what is E wide does not decide how much memory it takes.
"""


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

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Run the block over (N, L, width); see ``run_blocks``."""
        y, C = run_blocks([self], x[None], None if mask is None else mask[None])
        return y[0], C[0]

    def drop(self, x_WNLD: Tensor) -> Tensor:
        """Stochastic depth (arXiv 1603.09382): drop whole sequences, rescale the rest."""
        if not self.training or self.drop_path == 0:
            return x_WNLD
        keep = 1 - self.drop_path
        kept = torch.rand(*x_WNLD.shape[:2], 1, 1, device=x_WNLD.device) < keep
        return x_WNLD * kept.to(x_WNLD.dtype) / keep


def run_blocks(
    blocks: Sequence[MambaBlock], x: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Run W blocks of one shape, block w over the sequences x[w].

    Args:
        x: (W, N, L, width), zero wherever ``mask`` is False. May be a view.
        mask: (W, N, L) bool, False at the end of a shorter sequence. Such steps are not scanned:
            the state of the backward direction is still zero at the first real step it meets.

    Returns:
        The sequences (W, N, L, width), and the read-out C of their states, averaged over both
        directions, (W, N, L, S). Rows where ``mask`` is False are arbitrary.
    """
    # Residuals keep the precision of the weights under autocast, as in Mamba.
    x = x.to(blocks[0].norm_f.weight.dtype)
    layers: list[Any] = [block.layers[0] for block in blocks]
    weights = _stack([layer.mixer for layer in layers])
    normed = _rms_norm(x, [layer.norm for layer in layers])
    padding_mask = None if mask is None else ~mask[..., None]
    backend = blocks[0].scan_backend
    chunk = CHUNK.get(x.device.type, x.shape[2])
    if not torch.is_grad_enabled() and x.shape[2] > chunk and can_carry(backend):
        mixed, C = _mix_in_chunks(weights, normed, padding_mask, backend, chunk)
    else:
        mixed, C = _mix(weights, normed, padding_mask, backend)
    return _rms_norm(x + blocks[0].drop(mixed), [block.norm_f for block in blocks]), C


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

    def direction(self, reverse: bool) -> _Weights:
        """Return the weights of one direction."""
        both = ("conv", "conv_bias", "x_proj", "dt_proj", "dt_bias", "A", "D")
        one = {name: getattr(self, name).chunk(2)[reverse] for name in both}
        return _Weights(in_proj=self.in_proj, out_proj=self.out_proj, **one)


def _mix(
    weights: _Weights, x: Tensor, padding_mask: Tensor | None, backend: str
) -> tuple[Tensor, Tensor]:
    """Return the mixers' result (W, N, L, width) and C (W, N, L, S), averaged over directions."""
    x, gate = _project(x, weights.in_proj).chunk(2, dim=-1)
    y, C = _scan(weights, x, gate, padding_mask, "both", backend)
    return _project(y, weights.out_proj) / 2, torch.stack(C.chunk(2)).mean(0)


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
    C = x.new_zeros(*x.shape[:3], weights.A.shape[2])
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
            C[:, :, rows] += C_one / 2
            if reverse:
                y[:, :, rows] = one
            else:
                gate = F.silu(_project(x[:, :, rows], to_gate))
                gated = one.add_(y[:, :, rows]).mul_(gate)
                mixed[:, :, rows] = _project(gated, weights.out_proj) / 2
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


def _stack(mixers: Sequence[BidirectionalMamba]) -> _Weights:
    both = [(m.conv1d, m.x_proj, m.dt_proj, m.A_log, m.D) for m in mixers]
    both += [(m.conv1d_b, m.x_proj_b, m.dt_proj_b, m.A_b_log, m.D_b) for m in mixers]
    conv, x_proj, dt_proj, A_log, D = zip(*both, strict=True)
    return _Weights(
        in_proj=_stacked([m.in_proj.weight for m in mixers]),
        conv=_wide(torch.cat([c.weight.transpose(0, 1) for c in conv])),
        conv_bias=_wide(torch.stack([c.bias for c in conv])),
        x_proj=torch.stack([p.weight for p in x_proj]),
        dt_proj=torch.stack([p.weight for p in dt_proj]),
        dt_bias=_wide(torch.stack([p.bias for p in dt_proj])),
        A=-torch.exp(_wide(torch.stack(A_log))),
        D=_wide(torch.stack(D)),
        out_proj=_stacked([m.out_proj.weight for m in mixers]),
    )


def _wide(tensor: Tensor) -> Tensor:
    """Convert to at least float32, in which the scan computes."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _stacked(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0][None] if len(tensors) == 1 else torch.stack(list(tensors))


def _project(x: Tensor, weight: Tensor) -> Tensor:
    """Multiply (G, N, L, in) by (G, out, in): one matrix product for every set."""
    if len(weight) == 1:
        return F.linear(x, weight[0])
    y = torch.bmm(x.flatten(1, 2), weight.transpose(1, 2))
    return y.view(*x.shape[:3], y.shape[2])


def _rms_norm(x: Tensor, norms: Sequence[nn.RMSNorm]) -> Tensor:
    width, eps = x.shape[-1:], norms[0].eps
    if len(norms) == 1:
        return F.rms_norm(x, width, norms[0].weight, eps)
    return F.rms_norm(x, width, None, eps) * torch.stack([n.weight for n in norms])[:, None, None]


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
