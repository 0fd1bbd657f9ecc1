"""The selective scan compiled for the CPU.

Channels are independent, so they are cut into blocks of ``WIDTH``: every innermost loop runs over
one block with a fixed trip count, which LLVM turns into vector instructions, and every (sequence,
block) pair is one work item. The kernels hold no GIL, and the items are shared out among plain
Python threads, as many as torch uses: unlike Numba's own thread pools these may be entered from
several threads at once, survive a fork, and do not load a second OpenMP beside torch's.

Results do not depend on the number of threads: an item is always computed the same way, and sums
over items are made afterwards, in a fixed order.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from torch import Tensor
from torch.autograd.function import once_differentiable

WIDTH = 64
"""Channels of one block: whole vector registers, few enough that all states stay in L1 cache."""
CHUNK = 16
"""Steps between two saved states. The backward pass recomputes the states in between."""
_UPDATES_PER_THREAD = 200_000
"""State updates (steps x states x channels) below which another thread costs more than it saves."""


def _compile(**options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """``njit`` that keeps the machine code on disk where some cache folder can be written.

    Only contraction to fused multiply-adds is allowed: it keeps NaN and infinity as they are.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        flags = {"nogil": True, "fastmath": {"contract"}, **options}
        try:
            return cast(Callable[..., Any], njit(cache=True, **flags)(function))
        except RuntimeError:  # neither this folder nor the user's cache folder can be written
            return cast(Callable[..., Any], njit(**flags)(function))

    return decorate


def _bitcast(source: Any, target: Any, llvm_target: Any) -> Any:
    """A function for compiled code that reads the 32 bits of ``source`` as ``target``."""

    def reinterpret(typing_context: Any, value: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.bitcast(args[0], llvm_target)

        return target(source), codegen

    return intrinsic(reinterpret)


_bits_of = _bitcast(types.float32, types.int32, ir.IntType(32))
_float_of = _bitcast(types.int32, types.float32, ir.FloatType())

_LOG2_E = np.float32(1.4426950408889634)
# ln 2 in two parts: the first has so few bits that n * _LN2_HIGH is exact.
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
# Adding 1.5 * 2^23 rounds to an integer and leaves that integer in the low bits of the sum.
_ROUND = np.float32(12582912.0)
_LOWEST = np.float32(-87.0)
_ONE = np.float32(1.0)
# Minimax polynomial for (exp(r) - 1 - r) / r^2 on [-ln 2 / 2, ln 2 / 2], from Cephes' expf.
_P0, _P1, _P2 = np.float32(0.5), np.float32(1.6666665459e-1), np.float32(4.1665795894e-2)
_P3, _P4, _P5 = (np.float32(p) for p in (8.3334519073e-3, 1.3981999507e-3, 1.9875691500e-4))


@_compile(inline="always")
def _exp(x: Any) -> Any:
    """exp(x) for x <= 0, relative error below 1e-7; below -87 it stays at exp(-87), NaN is NaN.

    Written without a library call or a branch, so that a loop around it becomes vector code.
    """
    x = _LOWEST if x < _LOWEST else x
    shifted = x * _LOG2_E + _ROUND
    n = shifted - _ROUND
    r = x - n * _LN2_HIGH - n * _LN2_LOW
    p = ((((_P5 * r + _P4) * r + _P3) * r + _P2) * r + _P1) * r + _P0
    power = np.int32((_bits_of(shifted) + np.int32(127)) << np.int32(23))  # bits of 2^n
    return (p * (r * r) + r + _ONE) * _float_of(power)


@_compile(fastmath={"contract", "reassoc"})
def _dot(a: Any, b: Any) -> Any:
    """Inner product of two blocks; reassociation lets the sum be made in vector lanes."""
    total = np.float32(0)
    for c in range(WIDTH):
        total += a[c] * b[c]
    return total


@_compile()
def _forward(  # type: ignore[no-untyped-def]
    u, delta, A, B, C, y, saved, reverse, start, stop
) -> None:
    """Fill y, and the state before every CHUNK-th step when ``saved`` has room for it."""
    length, blocks, states = u.shape[1], u.shape[2], A.shape[0]
    h = np.empty((states, WIDTH), np.float32)
    drive = np.empty(WIDTH, np.float32)
    for item in range(start, stop):
        n, b = item // blocks, item % blocks
        h[:] = 0
        for i in range(length):
            t = length - 1 - i if reverse else i
            if i % CHUNK == 0 and saved.shape[2] > 0:
                saved[n, b, i // CHUNK] = h
            u_t, delta_t, y_t = u[n, t, b], delta[n, t, b], y[n, t, b]
            for c in range(WIDTH):
                drive[c] = delta_t[c] * u_t[c]
                y_t[c] = 0
            for s in range(states):
                h_s, A_s, B_s, C_s = h[s], A[s, b], B[n, t, s], C[n, t, s]
                for c in range(WIDTH):
                    state = _exp(delta_t[c] * A_s[c]) * h_s[c] + drive[c] * B_s
                    h_s[c] = state
                    y_t[c] += C_s * state


@_compile()
def _recompute(  # type: ignore[no-untyped-def]
    u, delta, A, B, n, b, first, stop, reverse, history, decays
) -> None:
    """From history[0], the state before step ``first``, fill states and decays up to ``stop``."""
    length, states = u.shape[1], A.shape[0]
    for i in range(first, stop):
        t = length - 1 - i if reverse else i
        u_t, delta_t = u[n, t, b], delta[n, t, b]
        for s in range(states):
            before, after = history[i - first, s], history[i - first + 1, s]
            decay, A_s, B_s = decays[i - first, s], A[s, b], B[n, t, s]
            for c in range(WIDTH):
                decay[c] = _exp(delta_t[c] * A_s[c])
                after[c] = decay[c] * before[c] + delta_t[c] * u_t[c] * B_s


@_compile()
def _backward(  # type: ignore[no-untyped-def]
    u, delta, A, B, C, saved, dy, du, ddelta, dA, dB, dC, reverse, start, stop
) -> None:
    """Fill the gradients; dA is per sequence, dB and dC per block, to be summed by the caller."""
    length, blocks, states = u.shape[1], u.shape[2], A.shape[0]
    history = np.empty((CHUNK + 1, states, WIDTH), np.float32)
    decays = np.empty((CHUNK, states, WIDTH), np.float32)
    dh, dA_local = np.empty((2, states, WIDTH), np.float32)
    g, drive, ddrive, dexponent = np.empty((4, WIDTH), np.float32)
    for item in range(start, stop):
        n, b = item // blocks, item % blocks
        dh[:] = 0
        dA_local[:] = 0
        for chunk in range(saved.shape[2] - 1, -1, -1):
            first, last = chunk * CHUNK, min((chunk + 1) * CHUNK, length) - 1
            history[0] = saved[n, b, chunk]
            _recompute(u, delta, A, B, n, b, first, last + 1, reverse, history, decays)
            for i in range(last, first - 1, -1):
                t = length - 1 - i if reverse else i
                u_t, delta_t, dy_t = u[n, t, b], delta[n, t, b], dy[n, t, b]
                for c in range(WIDTH):
                    drive[c] = delta_t[c] * u_t[c]
                    ddrive[c] = 0
                    dexponent[c] = 0
                for s in range(states):
                    B_s, C_s, A_s, dh_s, dA_s = B[n, t, s], C[n, t, s], A[s, b], dh[s], dA_local[s]
                    before, after = history[i - first, s], history[i - first + 1, s]
                    decay = decays[i - first, s]
                    for c in range(WIDTH):
                        g[c] = dh_s[c] + dy_t[c] * C_s
                        dh_s[c] = g[c] * decay[c]
                    for c in range(WIDTH):
                        ddrive[c] += g[c] * B_s
                        q = dh_s[c] * before[c]
                        dexponent[c] += q * A_s[c]
                        dA_s[c] += q * delta_t[c]
                    dB[n, b, t, s] = _dot(g, drive)
                    dC[n, b, t, s] = _dot(dy_t, after)
                for c in range(WIDTH):
                    du[n, t, b, c] = ddrive[c] * delta_t[c]
                    ddelta[n, t, b, c] = ddrive[c] * u_t[c] + dexponent[c]
        dA[n, :, b] = dA_local


def _run(kernel: Callable[..., Any], arguments: tuple[Any, ...], items: int, cost: int) -> None:
    """Call ``kernel(*arguments, start, stop)`` over all work items, on as many threads as torch."""
    threads = max(1, min(torch.get_num_threads(), items, items * cost // _UPDATES_PER_THREAD))
    if threads == 1:
        kernel(*arguments, 0, items)
        return
    bounds = [items * i // threads for i in range(threads + 1)]
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(kernel, *arguments, *share) for share in pairwise(bounds)]:
            done.result()


def _blocked(x: Tensor) -> Any:
    """(..., E) to a contiguous array (..., blocks, WIDTH), the last block filled up with zeros."""
    padded = F.pad(x, (0, -x.shape[-1] % WIDTH)) if x.shape[-1] % WIDTH else x
    blocks = padded.detach().reshape(*x.shape[:-1], padded.shape[-1] // WIDTH, WIDTH)
    return blocks.contiguous().numpy()


def _plain(blocked: Any, channels: int) -> Tensor:
    return torch.from_numpy(blocked).flatten(-2)[..., :channels]


def _prepare(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Any, ...]:
    steps = (x.detach().contiguous().numpy() for x in (B, C))
    return _blocked(u), _blocked(delta), _blocked(A.t()), *steps


def _run_forward(inputs: tuple[Any, ...], reverse: bool, save: bool) -> tuple[Any, Any]:
    (n, length, blocks, _), states = inputs[0].shape, inputs[2].shape[0]
    y = np.empty_like(inputs[0])
    chunks = -(-length // CHUNK) if save else 0
    saved = np.empty((n, blocks, chunks, states, WIDTH), np.float32)
    _run(_forward, (*inputs, y, saved, reverse), n * blocks, length * states * WIDTH)
    return y, saved


class _SelectiveScan(torch.autograd.Function):
    """y_t = C_t . h_t alone; softplus, D and the gate are left to torch."""

    @staticmethod
    def forward(
        ctx: Any, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, reverse: bool
    ) -> Tensor:
        y, saved = _run_forward(_prepare(u, delta, A, B, C), reverse, save=True)
        ctx.save_for_backward(u, delta, A, B, C, torch.from_numpy(saved))
        ctx.reverse = reverse
        return _plain(y, u.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, saved = ctx.saved_tensors
        inputs = _prepare(*tensors)
        (n, length, blocks, _), states = inputs[0].shape, inputs[2].shape[0]
        du, ddelta = np.empty_like(inputs[0]), np.empty_like(inputs[0])
        dA = np.empty((n, states, blocks, WIDTH), np.float32)
        dB, dC = np.empty((2, n, blocks, length, states), np.float32)
        arrays = (*inputs, saved.numpy(), _blocked(dy), du, ddelta, dA, dB, dC, ctx.reverse)
        _run(_backward, arrays, n * blocks, 4 * length * states * WIDTH)
        channels = dy.shape[-1]
        sums = (torch.from_numpy(partial).sum(1) for partial in (dB, dC))
        dA_sum = _plain(dA, channels).sum(0).t()
        return _plain(du, channels), _plain(ddelta, channels), dA_sum, *sums, None


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
    """See ``mstemba.model.scan.selective_scan``; every tensor is float32 on the CPU."""
    delta = F.softplus(delta if delta_bias is None else delta + delta_bias)
    if torch.is_grad_enabled():
        y: Tensor = cast(Any, _SelectiveScan).apply(u, delta, A, B, C, reverse)
    else:
        y = _plain(_run_forward(_prepare(u, delta, A, B, C), reverse, save=False)[0], u.shape[-1])
    if D is not None:
        y = y + D * u
    return y if z is None else y * F.silu(z)
