"""The selective scan and the convolution on a GPU, by kernels of our own written in Triton.

The scan's kernels, and why they are cut up as they are, are in ``triton_kernels``; this module
prepares their arguments, launches them and ties them to autograd. Arithmetic is float32 whatever
the type of the inputs. u, delta and z are read through their strides, so they may be slices of a
projection's result. B and C, a thirtieth of u, are first packed into float32 rows of their own:
every lane reads all of every row, which is as slow as the arithmetic unless done in whole vectors.
Launches are few, because for a clip they are estimated to take longer than the kernels.

Results are the same to the bit from run to run: how the work is cut depends on shapes alone, sums
over programs go through memory in a fixed order, and nothing is tuned at run time.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from mstemba.model.scan import reference
from mstemba.model.scan import triton_kernels as kernels
from mstemba.model.scan.reference import Reverse

CHANNELS = 32
"""Channels of one program of the scan: with one warp, the tiles described in ``triton_kernels``."""
INTERVAL = 16
"""Steps between two states kept for the backward pass, which computes the others again. At least
the number of states, so that the kept ones are no larger than u in float32."""
PROGRAMS, LONGEST = 2048, 256
"""A sequence is cut until there are this many programs, about what an H100 runs at once, and into
chunks of at most ``LONGEST`` steps unless the channels alone are as many."""
BLOCK = 128
"""States of one program of the carry over the chunks."""
PACKED = 64
"""Steps of one program of the packing of B and C."""
FORWARD_REGISTERS, BACKWARD_REGISTERS = 80, 168
"""Per thread, with up to 16 states: 6 and 3 warps to a scheduler."""
ROWS, COLUMNS = 16, 128
"""Steps and channels of one program of the convolution."""
MOST_TAPS, MOST_STEPS = 8, 65_535 * ROWS
"""Beyond these the convolution is left to PyTorch: the kernels are unrolled over the taps, and a
grid has no more rows."""


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
    """See ``operations.selective_scan``; every tensor is on one GPU."""
    tensors = (u, delta, A.float(), B, C, D.float(), z, delta_bias.float())
    y: Tensor = cast(Any, _Scan).apply(*tensors, reverse, state, torch.is_grad_enabled())
    return y


def convolve(x: Tensor, weight: Tensor, bias: Tensor, reverse: Reverse) -> Tensor:
    """See ``operations.causal_convolution``; every tensor is on one GPU."""
    if weight.shape[2] > MOST_TAPS or x.shape[2] > MOST_STEPS:
        return reference.convolve(x, weight, bias, reverse)
    y: Tensor = cast(Any, _Convolution).apply(x, weight.float(), bias.float(), reverse)
    return y


@dataclass(frozen=True)
class _Tiling:
    """The sizes of a scan, and how it is cut into programs and chunks."""

    sets: int
    n: int
    length: int
    channels: int
    states: int
    mode: int
    """0 forwards, 1 backwards, 2 both."""
    sequences: int
    results: int
    """Sequences of the output."""
    blocks: int
    chunk: int
    chunks: int
    interval: int
    row: int
    """Channels of a row of states, filled up so that rows can be read in vectors."""
    padded: int
    """States of a tile."""
    saves: bool

    @property
    def tiles(self) -> dict[str, int]:
        return {"MODE": self.mode, "BS": self.padded, "BE": CHANNELS}

    def registers(self, limit: int) -> dict[str, int]:
        return {"maxnreg": limit} if self.padded <= 16 else {}


def make_tiling(u: Tensor, states: int, reverse: Reverse, saves: bool) -> _Tiling:
    """Return how the scan of u (G, N, L, E) with this number of states is cut up."""
    sets, n, length, channels = u.shape
    mode = 2 if reverse == "both" else int(reverse)
    results = sets * n // 2 if mode == 2 else sets * n
    blocks, padded = triton.cdiv(channels, CHANNELS), triton.next_power_of_2(states)
    interval = max(INTERVAL, padded)
    chunk = max(LONGEST, interval)
    if blocks * results >= PROGRAMS:
        chunk = max(triton.next_power_of_2(length), interval)
    while chunk > interval and blocks * results * triton.cdiv(length, chunk) < PROGRAMS:
        chunk //= 2
    return _Tiling(
        sets, n, length, channels, states, mode, sets * n, results, blocks, chunk,
        triton.cdiv(length, chunk), interval if saves else chunk, triton.cdiv(channels, 4) * 4,
        padded, saves,
    )  # fmt: skip


class _Scan(torch.autograd.Function):
    """Keeps the inputs, the state before every interval, and the sum before the gate."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        u, delta, A, B, C, D, z, bias, reverse, state, learns = arguments
        tiling = make_tiling(u, A.shape[2], reverse, learns and any(ctx.needs_input_grad))
        gate = None if z is None else _rows(z)
        inputs = [_rows(u), _rows(delta), _packed(B, C, tiling), _transposed(A, tiling)]
        inputs += [D.contiguous(), bias.contiguous()]
        y, total, starts = scan_forward(tiling, inputs, gate, state)
        if tiling.saves:
            ctx.save_for_backward(*inputs, starts, gate, None if z is None else total)
            ctx.tiling, ctx.types = tiling, (B.dtype, C.dtype)
        return y.view(tiling.sets // 2 if tiling.mode == 2 else tiling.sets, *u.shape[1:])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, z, total = ctx.saved_tensors
        dy, dz = _rows(dout), None
        if z is not None:
            dy, dz = _gate_backward(dy, z, total)
            dz = dz.view(dout.shape)
        du, ddelta, dA, dB, dC, dD, dbias = _scan_backward(ctx.tiling, inputs, dy)
        dB, dC = dB.to(ctx.types[0]), dC.to(ctx.types[1])
        return du, ddelta, dA, dB, dC, dD, dz, dbias, None, None, None


def _rows(x: Tensor) -> Tensor:
    """(G, N, L, E) as (G N, L, E) with contiguous rows, without a copy where strides allow."""
    x = x.flatten(0, 1)
    return x if x.stride(2) == 1 else x.contiguous()


def _packed(B: Tensor, C: Tensor, tiling: _Tiling) -> Tensor:
    """B and C as float32 (sequence, step, 2, padded states)."""
    p, B, C = tiling, _rows(B), _rows(C)
    packed = B.new_empty(p.sequences, p.length, 2, p.padded, dtype=torch.float32)
    launch(
        _pack, (triton.cdiv(p.length, PACKED), p.sequences), B, C, packed, *B.stride()[:2],
        *C.stride()[:2], p.length, p.states, PADDED=p.padded, ROWS=PACKED, num_warps=4,
    )  # fmt: skip
    return packed


def _transposed(A: Tensor, tiling: _Tiling) -> Tensor:
    """A as (sets, S, row)."""
    missing = tiling.row - tiling.channels
    return F.pad(A.mT, (0, missing)) if missing else A.mT.contiguous()


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    """Run a kernel on its first tensor's device, unless there is nothing to do.

    That products and sums are fused is said because the default differs between versions of Triton.
    """
    if 0 not in grid:
        defaults = {"num_warps": 1, "num_stages": 1, "enable_fp_fusion": True}
        with torch.cuda.device_of(arguments[0]):  # type: ignore[no-untyped-call]
            kernel[grid](*arguments, **(defaults | options))


def scan_forward(
    tiling: _Tiling, inputs: list[Tensor], z: Tensor | None, state: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The result, the same before the gate, and the state before every interval."""
    p, (u, delta, BC, A, D, bias) = tiling, inputs
    sizes = (p.n, p.length, p.channels, p.row, p.states, p.chunk)
    strides = (*u.stride()[:2], *delta.stride()[:2])
    options = {**p.tiles, **p.registers(FORWARD_REGISTERS)}
    ends = A.new_empty(p.sequences, p.chunks, p.states, p.row)
    sums = A.new_empty(p.sequences, p.chunks, p.row)
    starts = A.new_empty(p.sequences, p.chunks * (p.chunk // p.interval), p.states, p.row)
    if p.chunks > 1:
        grid = (p.blocks, p.chunks, p.sequences)
        launch(kernels.chunk_ends, grid, u, delta, BC, A, bias, ends, sums, *strides, *sizes,
                **options)  # fmt: skip
    _carry(p, ends, sums, A, starts, state, opposite=False)
    total = y = u.new_empty(p.results, p.length, p.channels)
    if (p.saves and z is not None) or (p.mode == 2 and y.dtype != torch.float32):
        total = torch.empty_like(y, dtype=torch.float32)
    launch(
        kernels.outputs, (p.blocks, p.chunks, p.results), u, delta, u if z is None else z, BC, A, D,
        bias, starts, ends if state is None else state, total, y, *strides,
        *(u if z is None else z).stride()[:2], *sizes, p.interval, GATED=z is not None,
        SAVE=p.saves, GIVEN=state is not None, **options,
    )  # fmt: skip
    return y, total, starts


def _carry(
    tiling: _Tiling,
    ends: Tensor,
    sums: Tensor,
    A: Tensor,
    starts: Tensor,
    state: Tensor | None,
    opposite: bool,
) -> None:
    """Fill ``starts``: into the first slot of every chunk, what flows into the chunk."""
    p, slots = tiling, starts.shape[1]
    launch(
        kernels.carry, (triton.cdiv(p.states * p.row, BLOCK), p.sequences), ends, sums, A,
        ends if state is None else state, starts, p.n, p.channels, p.row, p.states, p.chunks, slots,
        slots // p.chunks, MODE=p.mode, OPPOSITE=opposite, GIVEN=state is not None, BLOCK=BLOCK,
    )  # fmt: skip


def _gate_backward(dout: Tensor, z: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients by the sum before the gate, in float32, and by z."""
    dy, dz = torch.empty_like(total), torch.empty_like(total, dtype=z.dtype)
    results, length, channels = total.shape
    launch(
        _gate_gradients, (length, results), dout, z, total, dy, dz, *dout.stride()[:2],
        *z.stride()[:2], length, channels, BLOCK=512, num_warps=4,
    )  # fmt: skip
    return dy, dz


def _scan_backward(tiling: _Tiling, inputs: list[Tensor], dy: Tensor) -> tuple[Tensor, ...]:
    """The gradients by u, delta, A, B, C, D and the bias."""
    p, (u, delta, BC, A, D, bias, starts) = tiling, inputs
    grid, sizes = (p.blocks, p.chunks, p.sequences), (p.n, p.length, p.channels)
    strides = (*delta.stride()[:2], *dy.stride()[:2])
    ends, carried = A.new_empty(2, p.sequences, p.chunks, p.states, p.row)
    sums = A.new_empty(p.sequences, p.chunks, p.row)
    if p.chunks > 1:
        launch(
            kernels.chunk_gradients, grid, delta, dy, BC, A, bias, ends, sums, *strides, *sizes,
            p.row, p.states, p.chunk, **p.tiles, **p.registers(FORWARD_REGISTERS),
        )  # fmt: skip
    _carry(p, ends, sums, A, carried, None, opposite=True)
    du, ddelta = (x.new_empty(p.sequences, p.length, p.channels) for x in (u, delta))
    dBC = A.new_empty(p.blocks, *BC.shape)
    # dA, dD and dbias of a chunk side by side, so that all of them are summed up by one kernel.
    parts = A.new_empty(p.states + 2, p.sequences, p.chunks, p.row)
    pairs = A.new_empty(math.prod(grid) * p.interval // 2, p.padded * CHANNELS)
    launch(
        kernels.gradients, grid, u, delta, dy, BC, A, D, bias, starts, carried, pairs, du, ddelta,
        dBC, parts, *u.stride()[:2], *strides, *sizes, p.row // 4, p.states, p.chunk,
        p.interval, **p.tiles, **p.registers(BACKWARD_REGISTERS),
    )  # fmt: skip
    dB, dC = dBC.sum(0).view(p.sets, p.n, p.length, 2, p.padded)[..., : p.states].unbind(3)
    totals = parts.view(p.states + 2, p.sets, p.n * p.chunks, p.row).sum(2)[..., : p.channels]
    dA, (dD, dbias) = totals[: p.states].permute(1, 2, 0), totals[p.states :]
    du, ddelta = (x.view(p.sets, *sizes) for x in (du, ddelta))
    return du, ddelta, dA, dB, dC, dD, dbias


class _Convolution(torch.autograd.Function):
    """Keeps its inputs; the backward pass computes the sum before silu again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, reverse: Reverse) -> Tensor:
        sets, channels, taps = weight.shape
        n, length = x.shape[1:3]
        ctx.shape = x.shape
        x, weight, bias = _rows(x), weight.contiguous(), bias.contiguous()
        ctx.save_for_backward(x, weight, bias)
        ctx.mode = 2 if reverse == "both" else int(reverse)
        y = x.new_empty(sets, n, length, channels)
        grid = (triton.cdiv(channels, COLUMNS), triton.cdiv(length, ROWS), len(x))
        launch(_convolution, grid, x, weight, bias, y, *x.stride()[:2], n, length, channels,
                MODE=ctx.mode, TAPS=taps, ROWS=ROWS, COLUMNS=COLUMNS, num_warps=4)  # fmt: skip
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias = ctx.saved_tensors
        (sets, channels, taps), (_, n, length, _) = weight.shape, ctx.shape
        grid = (triton.cdiv(channels, COLUMNS), triton.cdiv(length, ROWS), len(x))
        dx = torch.empty_like(x, memory_format=torch.contiguous_format)
        parts = weight.new_empty(taps + 1, sets, n * grid[1], channels)
        launch(
            _convolution_gradients, grid, x, weight, bias, dy.contiguous(), dx, parts,
            *x.stride()[:2], n, length, channels, MODE=ctx.mode, TAPS=taps, ROWS=ROWS,
            COLUMNS=COLUMNS, num_warps=4,
        )  # fmt: skip
        sums = parts.sum(2)
        return dx.view(ctx.shape), sums[:taps].permute(1, 2, 0), sums[taps], None


# Sizes and strides have other names from here on than those that ``kernels.jit`` hides from the
# compiler: these kernels only move data, and divisible strides let it do so in vectors.


@kernels.jit
def _pack(B, C, BC, B_0, B_1, C_0, C_1, length, states, PADDED: tl.constexpr, ROWS: tl.constexpr):
    """The rows of B and C side by side, in float32, filled up with zeros."""
    t = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    m, s = tl.program_id(1).to(tl.int64), tl.arange(0, PADDED)[None, :]
    keep, at = (t < length) & (s < states), BC + (m * length + t) * (2 * PADDED) + s
    b = tl.load(B + m * B_0 + t * B_1 + s, mask=keep, other=0.0)
    c = tl.load(C + m * C_0 + t * C_1 + s, mask=keep, other=0.0)
    tl.store(at, b.to(tl.float32), mask=(t < length) & (s < PADDED))
    tl.store(at + PADDED, c.to(tl.float32), mask=(t < length) & (s < PADDED))


@kernels.jit
def _gate_gradients(
    dout, z, total, dy, dz, dout_0, dout_1, z_0, z_1, length, channels, BLOCK: tl.constexpr
):
    """dy and dz of one step, from the sum before the gate.

    To compute that sum again instead of keeping it would take a fifth of ``kernels.gradients``.
    """
    t, o = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    for first in range(0, channels, BLOCK):
        e = first + tl.arange(0, BLOCK)
        at, keep = (o * length + t) * channels + e, e < channels
        g = tl.load(dout + o * dout_0 + t * dout_1 + e, mask=keep, other=0.0).to(tl.float32)
        x = tl.load(z + o * z_0 + t * z_1 + e, mask=keep, other=0.0).to(tl.float32)
        y = tl.load(total + at, mask=keep, other=0.0)
        gate = kernels.sigmoid(x)
        tl.store(dy + at, g * x * gate, mask=keep)
        tl.store(dz + at, g * y * gate * (1 + x * (1 - gate)), mask=keep)


@kernels.jit
def _tap(x, rows, reach, e, stride, length, channels, back):
    """x, which points to step 0, ``reach`` steps before ``rows`` in the order of the direction."""
    r = tl.where(back, rows + reach, rows - reach)
    there = ((r >= 0) & (r < length))[:, None] & (e < channels)[None, :]
    at = r.to(tl.int64)[:, None] * stride + e[None, :]
    return tl.load(x + at, mask=there, other=0.0).to(tl.float32)


@kernels.jit
def _presum(x, weight, bias, rows, e, stride, length, channels, back, TAPS: tl.constexpr):
    """The sums before silu at ``rows``."""
    sums = tl.load(bias + e, mask=e < channels, other=0.0)[None, :]
    for j in tl.static_range(TAPS):
        w = tl.load(weight + e * TAPS + j, mask=e < channels, other=0.0)
        sums += w[None, :] * _tap(x, rows, TAPS - 1 - j, e, stride, length, channels, back)
    return sums


@kernels.jit
def _convolution(
    x, weight, bias, y, x_0, x_1, n, length, channels, MODE: tl.constexpr, TAPS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Both directions of a tile, so that x comes from memory once and then from the cache."""
    e = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    rows, o = tl.program_id(1) * ROWS + tl.arange(0, ROWS), tl.program_id(2).to(tl.int64)
    keep = (rows < length)[:, None] & (e < channels)[None, :]
    x += o * x_0
    for way in tl.static_range(2 if MODE == 2 else 1):
        m = o + way * tl.num_programs(2)
        w, b = weight + m // n * channels * TAPS, bias + m // n * channels
        back = MODE == 1 or way == 1
        sums = _presum(x, w, b, rows, e, x_1, length, channels, back, TAPS)
        at = (m * length + rows[:, None]) * channels + e[None, :]
        tl.store(y + at, sums * kernels.sigmoid(sums), mask=keep)


@kernels.jit
def _convolution_gradients(
    x, weight, bias, dy, dx, parts, x_0, x_1, n, length, channels, MODE: tl.constexpr,
    TAPS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """dx of a tile; of dweight, and in row TAPS of dbias, the sums over the tile's steps.

    A step of x reaches TAPS steps of y, whose sums are computed again for each: from the cache, and
    cheaper than to write them to memory and read them back.
    """
    e = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    rows, o = tl.program_id(1) * ROWS + tl.arange(0, ROWS), tl.program_id(2).to(tl.int64)
    inside, x = e < channels, x + o * x_0
    sequences = tl.num_programs(2) * (2 if MODE == 2 else 1)
    between = sequences.to(tl.int64) * tl.num_programs(1) * channels  # rows of ``parts``
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for way in tl.static_range(2 if MODE == 2 else 1):
        m = o + way * tl.num_programs(2)
        w, b = weight + m // n * channels * TAPS, bias + m // n * channels
        back = MODE == 1 or way == 1
        part = parts + (m * tl.num_programs(1) + tl.program_id(1)) * channels + e
        for i in range(TAPS):  # not unrolled: the compiler would run out of registers
            r = tl.where(back, rows - i, rows + i)
            sums = _presum(x, w, b, r, e, x_1, length, channels, back, TAPS)
            gate = kernels.sigmoid(sums)
            given = _tap(dy + m * length * channels, r, 0, e, channels, length, channels, back)
            d = given * gate * (1 + sums * (1 - gate))
            total += tl.load(w + e * TAPS + (TAPS - 1 - i), mask=inside, other=0.0)[None, :] * d
            if i == 0:
                tl.store(part + TAPS * between, tl.sum(d, 0), mask=inside)
                for j in tl.static_range(TAPS):
                    before = _tap(x, rows, TAPS - 1 - j, e, x_1, length, channels, back)
                    tl.store(part + j * between, tl.sum(d * before, 0), mask=inside)
    at = (o * length + rows[:, None]) * channels + e[None, :]
    tl.store(dx + at, total, mask=(rows < length)[:, None] & inside[None, :])
