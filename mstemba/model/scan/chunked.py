"""The scan in a few large torch operations, for devices that have no compiled kernel.

A sequence is cut into chunks of ``ROWS`` steps. The loop is over the steps of a chunk; each of its
operations works on that step of all chunks at once, so that there are as many operations for an
hour as for a minute. Forward: every chunk from a zero state; the carry over the chunks' ends gives
the true state before each; every chunk again from there. Backward: the same against time, with the
states computed again from those that were kept, one a chunk. So memory is linear in the length and
has no factor of states times steps. No control flow depends on values.

To double the distance inside a chunk (Hillis and Steele) would be fewer operations still, but every
doubling reads and writes all states of all steps: five passes through memory, where the loop has
one.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from mstemba.model.scan import reference
from mstemba.model.scan.reference import Reverse

ROWS = 32
"""Steps of a chunk."""
STRETCH = 8
"""Steps of a chunk whose decays are computed by one operation."""
ELEMENTS, MOST_CHUNKS = 1 << 20, 64
"""Limits for the chunks that run together: the states of one step of all of them, and their number.
Enough to fill a device, and few enough to stay in a cache. Longer sequences are run in pieces."""

convolve = reference.convolve


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
    """See ``operations.selective_scan``."""
    work = torch.float64 if u.dtype == torch.float64 else torch.float32
    x, step, A, B, C, D, bias = (t.to(work) for t in (u, delta, A, B, C, D, delta_bias))
    step = F.softplus(step + bias[:, None, None])
    ordered = [_in_order(t, reverse) for t in (x, step, B, C)]
    with _exactly(u.device.type):
        y: Tensor = cast(Any, _Scan).apply(*ordered, A, state, torch.is_grad_enabled())
    y = _in_order(y, reverse) + D[:, None, None] * x
    if reverse == "both":
        forwards, backwards = y.chunk(2)
        y = forwards + backwards
    return (y if z is None else y * F.silu(z.to(work))).to(u.dtype)


def _exactly(device: str) -> AbstractContextManager[None]:
    """Switch autocast off: it would compute the products of C and the states in 16 bits."""
    if not torch.amp.is_autocast_available(device):
        return nullcontext()
    return torch.autocast(device, enabled=False)


def _in_order(x: Tensor, reverse: Reverse) -> Tensor:
    """(G, N, L, ...) with time in the order of each set's direction; its own inverse."""
    if reverse == "both":
        forwards, backwards = x.chunk(2)
        return torch.cat([forwards, backwards.flip(2)])
    return x.flip(2) if reverse else x


@dataclass(frozen=True)
class _Piece:
    """A run of chunks. Step first: (ROWS, G, N, M, width) for M chunks."""

    u: Tensor
    delta: Tensor
    B: Tensor
    C: Tensor
    A: Tensor
    """(G, 1, 1, S, E)."""

    def decays(self, steps: slice) -> Tensor:
        """What these steps multiply the state by, (steps, G, N, M, S, E)."""
        return (self.delta[steps][..., None, :] * self.A).exp_()

    def drives(self, steps: slice) -> Tensor:
        """What these steps add to the state, of the same shape."""
        drive = self.delta[steps] * self.u[steps]
        return drive[..., None, :] * self.B[steps][..., :, None]

    def decay(self) -> Tensor:
        """What each chunk multiplies the state by, (G, N, M, S, E)."""
        return (self.delta.sum(0)[..., None, :] * self.A).exp_()

    def states(self, h: Tensor, steps: slice) -> tuple[Tensor, Tensor]:
        """The states after these steps, from the one before them; and the steps' decays."""
        decays, states = self.decays(steps), self.drives(steps)
        for decay, state in zip(decays.unbind(), states.unbind(), strict=True):
            h = state.addcmul_(decay, h)
        return states, decays

    def ends(self, h: Tensor) -> list[Tensor]:
        """The states before every stretch, and after the last one, from those before the chunks."""
        found = [h]
        for steps in STRETCHES:
            found.append(self.states(found[-1], steps)[0][-1].clone())
        return found


STRETCHES = [slice(first, first + STRETCH) for first in range(0, ROWS, STRETCH)]


def _pieces(length: int, states: int) -> list[tuple[slice, int]]:
    """The rows of every piece and its number of chunks; ``states`` is the size of one step's."""
    chunks = -(-length // ROWS)
    most = min(MOST_CHUNKS, max(1, ELEMENTS // max(1, states)))
    count = -(-chunks // most)
    each = -(-chunks // count)
    firsts = range(0, chunks, each)
    return [(slice(c * ROWS, (c + each) * ROWS), min(each, chunks - c)) for c in firsts]


def _split(x: Tensor, rows: slice, chunks: int) -> Tensor:
    """Rows of (G, N, L, width) as (ROWS, G, N, chunks, width), filled up with zeros.

    A step whose delta is zero leaves the state as it is.
    """
    x = x[:, :, rows]
    missing = chunks * ROWS - x.shape[2]
    x = F.pad(x, (0, 0, 0, missing)) if missing else x
    return x.view(*x.shape[:2], chunks, ROWS, x.shape[3]).permute(3, 0, 1, 2, 4)


def _cut(
    u: Tensor, delta: Tensor, B: Tensor, C: Tensor, A: Tensor, rows: slice, chunks: int
) -> _Piece:
    u, delta, B, C = (_split(t, rows, chunks) for t in (u, delta, B, C))
    return _Piece(u, delta, B, C, A)


def _join(x: Tensor, rows: int) -> Tensor:
    """The inverse of ``_split``."""
    return x.permute(1, 2, 3, 0, 4).flatten(2, 3)[:, :, :rows]


class _Scan(torch.autograd.Function):
    """y = C h of one direction (G, N, L, E); keeps the inputs and the state before every chunk."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        u, delta, B, C, A, state, learns = arguments
        sets, n, length, channels = u.shape
        A = A.mT.contiguous()[:, None, None]
        h = u.new_zeros(sets, n, A.shape[3], channels) if state is None else state.mT.contiguous()
        y, kept = torch.empty_like(u, memory_format=torch.contiguous_format), []
        pieces = _pieces(length, h.numel())
        for rows, chunks in pieces:
            piece = _cut(u, delta, B, C, A, rows, chunks)
            starts = h[:, :, None]
            if chunks > 1:
                ends = piece.ends(u.new_zeros(sets, n, chunks, *h.shape[2:]))[-1]
                starts = _carry(ends, piece.decay(), h, range(chunks))
            found, before = [], starts
            for steps in STRETCHES:
                states, _ = piece.states(before, steps)
                before = states[-1].clone()
                found.append((piece.C[steps][..., None, :] @ states).squeeze(-2))
            h = before[:, :, -1]
            y[:, :, rows] = _join(torch.cat(found), y[:, :, rows].shape[2])
            kept.append(starts)
        if state is not None:
            state.copy_(h.mT)
        if learns:
            ctx.save_for_backward(u, delta, B, C, A, *kept)
            ctx.pieces = pieces
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        u, delta, B, C, A, *kept = ctx.saved_tensors
        gradients = [torch.empty_like(t) for t in (u, delta, B, C)]
        dA, later = torch.zeros_like(A), torch.zeros_like(kept[0][:, :, 0])
        for (rows, chunks), starts in zip(reversed(ctx.pieces), reversed(kept), strict=True):
            piece = _cut(u, delta, B, C, A, rows, chunks)
            made, more, later = _piece_backward(piece, starts, _split(dy, rows, chunks), later)
            for whole, part in zip(gradients, made, strict=True):
                whole[:, :, rows] = _join(part, whole[:, :, rows].shape[2])
            dA += more
        return (*gradients, dA[:, 0, 0].mT, None, None)


def _carry(ends: Tensor, decay: Tensor, h: Tensor, order: range) -> Tensor:
    """What flows into every chunk, from what each adds and what flows into the first one.

    All are (G, N, M, S, E) but ``h`` (G, N, S, E); ``order`` is that of the chunks.
    """
    end, decays, found = ends.unbind(2), decay.unbind(2), {}
    for chunk in order:
        found[chunk] = h
        h = torch.addcmul(end[chunk], decays[chunk], h)
    return torch.stack([found[chunk] for chunk in sorted(found)], 2)


def _piece_backward(
    piece: _Piece, starts: Tensor, dy: Tensor, later: Tensor
) -> tuple[list[Tensor], Tensor, Tensor]:
    """The gradients by u, delta, B and C of a piece, by A, and by the state before the piece.

    ``later`` (G, N, S, E) is the gradient of the state after the piece by all that is later.
    """
    chunks, decay = starts.shape[2], piece.decay()
    alone = _chunk_gradients(piece, dy)
    flowing = _carry(alone, decay, later, range(chunks - 1, -1, -1))
    earlier = torch.addcmul(alone[:, :, 0], decay[:, :, 0], flowing[:, :, 0])
    made: list[tuple[Tensor, ...]] = []
    dA = torch.zeros_like(piece.A)
    befores = piece.ends(starts)
    for steps, before in reversed(list(zip(STRETCHES, befores, strict=False))):
        states, decays = piece.states(before, steps)
        g = _outer(piece.C[steps], dy[steps])
        *others, last = g.unbind()
        last.add_(flowing)
        for earlier_g, later_g, d in zip(
            reversed(others), reversed(g.unbind()[1:]), reversed(decays.unbind()[1:]), strict=True
        ):
            earlier_g.addcmul_(d, later_g)
        flowing = decays[0] * g[0]
        dC = (states @ dy[steps][..., None]).squeeze(-1)
        drive = piece.delta[steps] * piece.u[steps]
        dB = (g @ drive[..., None]).squeeze(-1)
        ddrive = (piece.B[steps][..., None, :] @ g).squeeze(-2)
        g.mul_(decays)
        g[0].mul_(before)
        g[1:].mul_(states[:-1])
        ddelta = (g * piece.A).sum(-2).addcmul_(ddrive, piece.u[steps])
        dA += g.mul_(piece.delta[steps][..., None, :]).sum((0, 2, 3))[:, None, None]
        made.append((ddrive * piece.delta[steps], ddelta, dB, dC))
    return [torch.cat(parts[::-1]) for parts in zip(*made, strict=True)], dA, earlier


def _chunk_gradients(piece: _Piece, dy: Tensor) -> Tensor:
    """What every chunk alone adds to the gradient of the state before it, (G, N, M, S, E)."""
    g = dy.new_zeros(*dy.shape[1:4], *piece.A.shape[3:])
    for steps in reversed(STRETCHES):
        given = _outer(piece.C[steps], dy[steps]).unbind()
        for own, decay in zip(reversed(given), reversed(piece.decays(steps).unbind()), strict=True):
            g = own.add_(g).mul_(decay)
    return g


def _outer(C: Tensor, dy: Tensor) -> Tensor:
    return C[..., :, None] * dy[..., None, :]
