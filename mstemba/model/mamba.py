"""The bidirectional ("v2") Mamba block of Vision Mamba (Zhu et al., arXiv 2401.09417, sec. 3.2)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mstemba.model.config import dt_rank
from mstemba.model.scan import selective_scan

DT_MIN, DT_MAX = 1e-3, 0.1
"""Initial step sizes are log-uniform between these (Gu and Dao, arXiv 2312.00752, section 3.6)."""


class BidirectionalMamba(nn.Module):
    """Mamba mixer run forwards and backwards in time, with shared input and output projections.

    The backward direction has its own convolution, projections and state matrix (names in ``_b``);
    the two are averaged. Both depend on padding only through ``mask``.
    """

    def __init__(self, width: int, state: int = 16, expand: int = 2, conv: int = 4) -> None:
        super().__init__()
        inner, rank = expand * width, dt_rank(width)
        self.state, self.rank, self.scan_backend = state, rank, "auto"
        self.in_proj = nn.Linear(width, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, conv, groups=inner)
        self.x_proj = nn.Linear(inner, rank + 2 * state, bias=False)
        self.dt_proj = _step_projection(rank, inner)
        self.A_log, self.D = _state_matrix(inner, state), _undecayed(torch.ones(inner))
        self.conv1d_b = nn.Conv1d(inner, inner, conv, groups=inner)
        self.x_proj_b = nn.Linear(inner, rank + 2 * state, bias=False)
        self.dt_proj_b = _step_projection(rank, inner)
        self.A_b_log, self.D_b = _state_matrix(inner, state), _undecayed(torch.ones(inner))
        self.out_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mix (N, L, width) along time.

        Args:
            x: zero wherever ``mask`` is False.
            mask: (N, L) bool, False at the end of a shorter sequence. Such steps are not scanned:
                the state of the backward direction is still zero at the first real step it meets.

        Returns:
            The mixed sequence (N, L, width) and the state read-out C, averaged over the two
            directions, (N, L, S); both are zero where ``mask`` is False.
        """
        x, gate = self.in_proj(x).chunk(2, dim=-1)
        absent = None if mask is None else ~mask[..., None]
        forward, C = self._scan(
            x, absent, self.conv1d, self.x_proj, self.dt_proj, self.A_log, self.D, False
        )
        backward, C_b = self._scan(
            x, absent, self.conv1d_b, self.x_proj_b, self.dt_proj_b, self.A_b_log, self.D_b, True
        )
        # One gate for both directions: gating each of them first gives the same sum.
        mixed = self.out_proj((forward + backward) * F.silu(gate) / 2)
        return mixed, (C + C_b) / 2

    def _scan(
        self,
        x: Tensor,
        absent: Tensor | None,
        conv: nn.Conv1d,
        x_proj: nn.Linear,
        dt_proj: nn.Linear,
        A_log: Tensor,
        D: Tensor,
        reverse: bool,
    ) -> tuple[Tensor, Tensor]:
        u = F.silu(_causal_convolution(x, conv, reverse))
        if absent is not None:  # the convolution's bias would otherwise drive the state
            u = u.masked_fill(absent, 0)
        step, B, C = x_proj(u).split([self.rank, self.state, self.state], dim=-1)
        y = selective_scan(
            u,
            F.linear(step, dt_proj.weight),
            -torch.exp(A_log.float()),
            B,
            C,
            D.float(),
            delta_bias=dt_proj.bias.float(),
            reverse=reverse,
            backend=self.scan_backend,
        )
        return y, C


class _Layer(nn.Module):
    """The residual branch of a block: normalise, then mix."""

    def __init__(self, width: int, state: int, expand: int, conv: int) -> None:
        super().__init__()
        self.mixer = BidirectionalMamba(width, state, expand, conv)
        self.norm = nn.RMSNorm(width, eps=1e-5)

    def forward(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        pair: tuple[Tensor, Tensor] = self.mixer(self.norm(x), mask)
        return pair


class MambaBlock(nn.Module):
    """RMSNorm(x + drop_path(mixer(RMSNorm(x)))), with the authors' parameter names."""

    def __init__(
        self, width: int, state: int = 16, expand: int = 2, conv: int = 4, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList([_Layer(width, state, expand, conv)])
        self.norm_f = nn.RMSNorm(width, eps=1e-5)
        self.drop_path = drop_path

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(N, L, width) to the same, and C (N, L, S); see ``BidirectionalMamba.forward``."""
        mixed, C = self.layers[0](x, mask)
        return self.norm_f(x + self._drop(mixed)), C

    def _drop(self, x: Tensor) -> Tensor:
        """Stochastic depth (arXiv 1603.09382): drop whole sequences, rescale the rest."""
        if not self.training or self.drop_path == 0:
            return x
        keep = 1 - self.drop_path
        return x * (torch.rand(len(x), 1, 1, device=x.device) < keep).to(x.dtype) / keep


def _causal_convolution(x: Tensor, conv: nn.Conv1d, reverse: bool) -> Tensor:
    """Depthwise convolution of (N, L, E) over a step and those before it (after it in ``reverse``).

    Convolving the reversed sequence is correlating with the reversed taps, so nothing is flipped.
    """
    taps = conv.weight.flip(-1) if reverse else conv.weight
    reach = taps.shape[-1] - 1
    padded = F.pad(x.transpose(1, 2), (0, reach) if reverse else (reach, 0))
    convolved = F.conv1d(padded, taps, conv.bias, groups=conv.groups)
    return convolved.transpose(1, 2).contiguous()  # channels last, as the scan reads it


def _undecayed(value: Tensor) -> nn.Parameter:
    """A parameter that weight decay would pull away from what it means."""
    parameter = nn.Parameter(value)
    parameter._no_weight_decay = True  # type: ignore[attr-defined]
    return parameter


def _state_matrix(inner: int, state: int) -> nn.Parameter:
    """log(-A) with A = -1, ..., -S for every channel (S4D-real)."""
    return _undecayed(torch.log(torch.arange(1.0, state + 1)).repeat(inner, 1))


def _step_projection(rank: int, inner: int) -> nn.Linear:
    """The projection to delta; softplus of its bias is log-uniform in [DT_MIN, DT_MAX]."""
    projection = nn.Linear(rank, inner)
    nn.init.uniform_(projection.weight, -(rank**-0.5), rank**-0.5)
    dt = torch.exp(torch.empty(inner).uniform_(math.log(DT_MIN), math.log(DT_MAX)))
    projection.bias = _undecayed(dt + torch.log(-torch.expm1(-dt)))  # inverse of softplus
    return projection
