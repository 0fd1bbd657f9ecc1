"""The scan and the convolution compiled for the CPU.

Channels are independent, so they are cut into blocks of ``WIDTH``: every innermost loop runs over
one block with a fixed trip count, which LLVM turns into vector instructions, and every (set,
sequence, block) is one work item. The kernels hold no GIL, and the items are shared out among
torch's own threads: unlike Numba's thread pools these may be entered from several threads at once,
and no second pool competes with them.

Results do not depend on the number of threads: an item is always computed the same way, and sums
over items are made afterwards, in a fixed order. The kernels themselves are in ``cpu_kernels``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from mstemba.model.scan import cpu_kernels, reference
from mstemba.model.scan.cpu_kernels import INTERVAL, TAPS, WIDTH
from mstemba.model.scan.reference import Reverse
from mstemba.model.scan.threads import share_out

_UPDATES_PER_THREAD = 200_000
"""State updates (steps x states x channels) below which another thread costs more than it saves."""
_SHARES = 8
"""Shares of the work for each thread, so that one that is held up does not hold up the others."""


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
    """See ``operations.selective_scan``; every tensor is on the CPU."""
    inputs = [None if t is None else t.float() for t in (u, delta, A, B, C, D, z, delta_bias)]
    if torch.is_grad_enabled():
        y: Tensor = cast(Any, _Scan).apply(*inputs, reverse)
    else:
        y, _ = _scan_forward(inputs, reverse, state, save=False)
    return y.to(u.dtype)


def convolve(x: Tensor, weight: Tensor, bias: Tensor, reverse: Reverse) -> Tensor:
    """See ``operations.causal_convolution``; every tensor is on the CPU."""
    if weight.shape[2] > TAPS:  # nobody's Mamba has more
        return reference.convolve(x, weight, bias, reverse)
    y: Tensor = cast(Any, _Convolution).apply(x.float(), weight.float(), bias.float(), reverse)
    return y.to(x.dtype)


class _Scan(torch.autograd.Function):
    """Keeps the inputs and every INTERVAL-th state; the backward pass recomputes the others."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        *inputs, ctx.reverse = arguments
        y, saved = _scan_forward(inputs, ctx.reverse, None, save=True)
        ctx.save_for_backward(*inputs, saved)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, saved = ctx.saved_tensors
        return (*_scan_backward(inputs, saved, dy, ctx.reverse), None)


def _scan_forward(
    inputs: list[Any], reverse: Reverse, state: Tensor | None, save: bool
) -> tuple[Tensor, Tensor]:
    u, A = inputs[0], inputs[2]
    sets, n, length, channels = u.shape
    blocks, states = _blocks(channels), A.shape[2]
    y = u.new_empty(_results(sets, reverse), n, length, blocks * WIDTH)
    saved = u.new_empty(sets, n, blocks, -(-length // INTERVAL) if save else 0, states, WIDTH)
    carried = u.new_empty(0, n, blocks, states, WIDTH)
    if state is not None:
        carried = _to_blocks(state.transpose(2, 3))
    arrays = (*_scan_arrays(inputs), _split(y), saved.numpy(), carried.numpy())
    updates = sets * n * length * states * channels
    _run(cpu_kernels.scan_forward, (*arrays, *_directions(reverse)), y, updates)
    if state is not None:
        state.copy_(_from_blocks(carried, channels).transpose(2, 3))
    return y[..., :channels], saved


def _scan_backward(
    inputs: list[Any], saved: Tensor, dy: Tensor, reverse: Reverse
) -> list[Tensor | None]:
    u, A, z = inputs[0], inputs[2], inputs[6]
    sets, n, length, channels = u.shape
    blocks, states = _blocks(channels), A.shape[2]
    du, ddelta = (u.new_empty(sets, n, length, blocks * WIDTH) for _ in range(2))
    dz = u.new_empty(0 if z is None else len(dy), n, length, blocks * WIDTH)
    # Summed over what shares them afterwards, in a fixed order: B and C over blocks, the rest over
    # sequences.
    dB, dC = (u.new_empty(sets, n, blocks, length, states) for _ in range(2))
    dA = u.new_empty(sets, n, blocks, states, WIDTH)
    dD, dbias = (u.new_empty(sets, n, blocks, WIDTH) for _ in range(2))
    gradients = (_split(du), _split(ddelta), *(t.numpy() for t in (dA, dB, dC, dD)))
    gradients = (*gradients, _split(dz), dbias.numpy())
    arrays = (*_scan_arrays(inputs), saved.numpy(), _rows(dy), gradients)
    updates = 4 * sets * n * length * states * channels
    _run(cpu_kernels.scan_backward, (*arrays, *_directions(reverse)), dy, updates)
    return [
        du[..., :channels],
        ddelta[..., :channels],
        _from_blocks(dA, channels).sum(1).transpose(1, 2),
        dB.sum(2),
        dC.sum(2),
        dD.flatten(2)[..., :channels].sum(1),
        None if z is None else dz[..., :channels],
        dbias.flatten(2)[..., :channels].sum(1),
    ]


class _Convolution(torch.autograd.Function):
    """Keeps its input; the backward pass recomputes what goes into silu."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, reverse: Reverse) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        ctx.reverse = reverse
        sets, channels, _ = weight.shape
        y = x.new_empty(sets, *x.shape[1:3], _blocks(channels) * WIDTH)
        arrays = (_rows(x), *_taps(weight, bias), _split(y), *_directions(reverse))
        _run(cpu_kernels.convolve_forward, arrays, x, y.numel() * TAPS)
        return y[..., :channels]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias = ctx.saved_tensors
        sets, channels, taps = weight.shape
        n, blocks = x.shape[1], _blocks(channels)
        dx = x.new_empty(*x.shape[:3], blocks * WIDTH)
        dw, db = x.new_empty(sets, n, blocks, TAPS, WIDTH), x.new_empty(sets, n, blocks, WIDTH)
        arrays = (_rows(x), *_taps(weight, bias), _rows(dy), _split(dx), dw.numpy(), db.numpy())
        _run(cpu_kernels.convolve_backward, (*arrays, *_directions(ctx.reverse)), x, dy.numel() * 4)
        dweight = _from_blocks(dw, channels).sum(1).transpose(1, 2)[..., -taps:]
        return dx[..., :channels], dweight, db.flatten(2)[..., :channels].sum(1), None


def _run(
    kernel: Callable[..., Any], arguments: tuple[Any, ...], results: Tensor, updates: int
) -> None:
    """Call ``kernel(*arguments, start, stop)`` over the work items of ``results`` (G, N, L, E).

    An item is one block of one sequence of one set; they are shared by as many threads as torch
    has.
    """
    items = results.shape[0] * results.shape[1] * _blocks(results.shape[3])
    threads = max(1, min(torch.get_num_threads(), items, updates // _UPDATES_PER_THREAD))
    shares = min(items, threads * _SHARES) if threads > 1 else 1
    bounds = [items * i // shares for i in range(shares + 1)]
    share_out(partial(kernel, *arguments), pairwise(bounds), threads)


def _directions(reverse: Reverse) -> tuple[bool, bool]:
    """Whether an item runs two sets, and whether the first of them runs backwards."""
    return reverse == "both", reverse is True


def _results(sets: int, reverse: Reverse) -> int:
    return sets // 2 if reverse == "both" else sets


def _blocks(channels: int) -> int:
    return -(-channels // WIDTH)


def _scan_arrays(inputs: list[Any]) -> tuple[Any, ...]:
    u, delta, A, B, C, D, z, bias = inputs
    gate = (np.empty(0, np.float32), (0, 0, 0)) if z is None else _rows(z)
    weights = (_to_blocks(A.transpose(1, 2)).numpy(), _split(D), _split(bias))
    return (_rows(u), _rows(delta), _flat(B), _flat(C), gate, *weights)


def _taps(weight: Tensor, bias: Tensor) -> tuple[Any, Any]:
    """(G, E, K) and (G, E) to (G, blocks, TAPS, WIDTH) and (G, blocks, WIDTH)."""
    filled = F.pad(weight.detach(), (TAPS - weight.shape[2], 0))
    return _to_blocks(filled.transpose(1, 2)).numpy(), _split(bias)


def _rows(x: Tensor) -> tuple[Any, tuple[int, ...]]:
    """``_flat`` of (G, N, L, E), channels filled up to whole blocks: which copies, if any miss."""
    return _flat(_fill(x))


def _flat(x: Tensor) -> tuple[Any, tuple[int, ...]]:
    """The memory of (G, N, L, width) as one array, and the strides of G, N and L.

    Views are read where they are: the halves and slices of a projection need no copy.
    """
    x = x.detach()
    if x.stride(-1) != 1 and x.shape[-1] > 1:
        x = x.contiguous()
    span = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return x.as_strided((span if x.numel() else 0,), (1,)).numpy(), x.stride()[:3]


def _split(x: Tensor) -> Any:
    """(..., E) to an array (..., blocks, WIDTH), of the same memory where E is whole blocks."""
    filled = _fill(x.detach()).contiguous()
    return filled.view(*filled.shape[:-1], _blocks(filled.shape[-1]), WIDTH).numpy()


def _fill(x: Tensor) -> Tensor:
    missing = -x.shape[-1] % WIDTH
    return F.pad(x, (0, missing)) if missing else x


def _to_blocks(x: Tensor) -> Tensor:
    """(..., rows, E) to contiguous (..., blocks, rows, WIDTH)."""
    filled = _fill(x.detach()).contiguous()
    blocked = filled.view(*filled.shape[:-1], _blocks(filled.shape[-1]), WIDTH)
    return blocked.transpose(-3, -2).contiguous()


def _from_blocks(x: Tensor, channels: int) -> Tensor:
    """The inverse of ``_to_blocks``."""
    return x.transpose(-3, -2).flatten(-2)[..., :channels]
