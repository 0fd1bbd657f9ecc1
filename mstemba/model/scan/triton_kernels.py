"""The selective scan as Triton kernels: what runs on the GPU; ``triton`` launches it.

The recurrence is cut in time into chunks that run side by side, because the channels of one long
sequence are too few to fill a GPU. Forward: ``chunk_ends`` runs every chunk from a zero state,
``carry`` goes over the chunks and gives the true state before each, ``outputs`` runs every chunk
again from there. Backward: ``chunk_gradients``, ``carry`` in the opposite order, ``gradients``.

A program is one warp and works on ``BE`` channels and all ``BS`` (padded) states. Its tiles are
(state, channel), and which lane holds what follows from how Triton lays out the loads of A:

* Forward, the row stride ``Ep`` of A is opaque, so a lane gets one channel and all its states. The
  sum over states needs no shuffle, and the rows of B and C are whole vectors, the same for all
  lanes. What bounds these loops is one exp2 per state and step, of which an SM does 16 per clock.
* In ``gradients`` Ep is known to be a multiple of 4, so a lane gets 4 channels of every fourth
  state. There the sums over channels (dB, dC) and over states (du, ddelta) are both needed for
  every step, and this split has the fewest shuffles.

Conventions: A is multiplied by log2(e) when it is loaded, so that exp(delta A) is exp2(delta A).
``BC`` is float32 (sequence, step, 2, BS) with zeros behind the S-th state. A direction is ``back``
or not, ``row`` is the step scanned first, and strides are multiplied by ``sign``; chunks and
intervals begin at multiples of their length in time for both. MODE is 0 forwards, 1 backwards, 2
both: then the second half of the sequences of u runs backwards and belongs to the results of the
first half. A step that does not exist is read as delta = -inf, u = 0: its decay is 1 and its drive
0, the state passes through.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


def jit(function: Callable[..., Any]) -> Any:
    """A kernel; sizes and strides of these names are opaque: divisible ones change the layouts."""
    opaque = """N L E Ep Ep4 S chunk chunks interval slots slots_per_chunk
        u_n u_t delta_n delta_t dy_n dy_t z_n z_t"""
    return triton.jit(function, do_not_specialize=opaque.split())


@jit
def _write_one(x):
    tl.store(x, 1.0)


def run_small_kernel(device: str) -> None:
    """Run a kernel that does next to nothing.

    Raises an exception of any kind if Triton cannot run kernels here: it needs a compiler, a driver
    and a folder for its files.
    """
    x = torch.zeros(1, device=device)
    _write_one[(1,)](x)
    if x.item() != 1:
        raise RuntimeError("a kernel that writes 1 left 0")


@jit
def _softplus(x):
    """log(1 + exp(x)) to float32 rounding, and exp(-|x|), from which its slope follows.

    The polynomial is the minimax log(1 + w) / w on [0, 1]: small steps keep their relative
    accuracy, which log(1 + w) itself would lose.
    """
    w = tl.exp2(tl.abs(x) * -LOG2_E)
    p = 0.00523267622 * w - 0.0295051657
    p = p * w + 0.0782258305
    p = p * w - 0.136632351
    p = p * w + 0.191060015
    p = p * w - 0.248429807
    p = p * w + 0.333190966
    p = p * w - 0.499994931
    p = p * w + 0.99999997
    return tl.maximum(x, 0.0) + w * p, w


@jit
def sigmoid(x):
    """1 / (1 + exp(-x))."""
    return 1 / (1 + tl.exp2(x * -LOG2_E))


@jit
def _forwards(sequences, MODE: tl.constexpr):
    return sequences // 2 if MODE == 2 else sequences * (1 - MODE)


@jit
def _advance(
    h, sum_delta, u, delta, B, u_step, delta_step, B_step, bias, A, e, E, n, pairs,
    SAVE: tl.constexpr,
):  # fmt: skip
    """The state n steps after h, which u, delta and B point to; and the sum of delta.

    With SAVE, the state before every second step goes to ``pairs``. The next step's u and delta are
    on their way while this one is computed.
    """
    x = tl.load(delta, mask=e < tl.where(n > 0, E, 0), other=0.0)
    v = tl.load(u, mask=e < tl.where(n > 0, E, 0), other=0.0)
    for i in range(n):
        u += u_step
        delta += delta_step
        more = e < tl.where(i + 1 < n, E, 0)
        x_next = tl.load(delta, mask=more, other=0.0)
        v_next = tl.load(u, mask=more, other=0.0)
        if SAVE:  # noqa: SIM102, decided when compiling, the inner one when running
            if i % 2 == 0:
                tl.store(pairs, h)
                pairs += A.shape[0] * A.shape[1]
        d, _ = _softplus(x.to(tl.float32) + bias)
        drive = d * v.to(tl.float32)
        h = tl.exp2(d[None, :] * A) * h + drive[None, :] * tl.load(B)[:, None]
        sum_delta += d
        B += B_step
        x, v = x_next, v_next
    return h, sum_delta


@jit
def chunk_ends(
    u, delta, BC, A, bias, ends, sums, u_n, u_t, delta_n, delta_t, N, L, E, Ep, S, chunk,
    MODE: tl.constexpr, BS: tl.constexpr, BE: tl.constexpr,
):  # fmt: skip
    """Every chunk's last state from a zero first one, and its sum of delta: log2(decay) / A."""
    e, s = tl.program_id(0) * BE + tl.arange(0, BE), tl.arange(0, BS)
    c, m = tl.program_id(1), tl.program_id(2).to(tl.int64)
    inside, tile, keep = e < E, s[:, None] * Ep + e[None, :], (s < S)[:, None] & (e < Ep)[None, :]
    back = m >= _forwards(tl.num_programs(2), MODE)
    sign = tl.where(back, -1, 1)
    n = min(chunk, L - c * chunk)
    row = (c * chunk + tl.where(back, n - 1, 0)).to(tl.int64)
    a = tl.load(A + m // N * S * Ep + tile, mask=keep, other=0.0) * LOG2_E
    b = tl.load(bias + m // N * E + e, mask=inside, other=0.0)
    h, sum_delta = _advance(
        tl.zeros((BS, BE), tl.float32), tl.zeros((BE,), tl.float32), u + m * u_n + row * u_t + e,
        delta + m * delta_n + row * delta_t + e, BC + (m * L + row) * (2 * BS) + s, u_t * sign,
        delta_t * sign, 2 * BS * sign, b, a, e, E, n, ends, False,
    )  # fmt: skip
    here = m * tl.num_programs(1) + c
    tl.store(ends + here * S * Ep + tile, h, mask=keep)
    tl.store(sums + here * Ep + e, sum_delta, mask=e < Ep)


@jit
def _decay_and_end(sums, ends, a, there):
    """What a chunk multiplies the state by and adds to it; 1 and 0 if it is not ``there``."""
    return tl.exp2(a * tl.load(sums, mask=there, other=0.0)), tl.load(ends, mask=there, other=0.0)


@jit
def _flow(h, decay, end, start, there):
    """The state after a chunk, which is the one before the next."""
    h = decay * h + end
    tl.store(start, h, mask=there)
    return h


@jit
def carry(
    ends, sums, A, state, starts, N, E, Ep, S, chunks, slots, slots_per_chunk,
    MODE: tl.constexpr, OPPOSITE: tl.constexpr, GIVEN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """From what every chunk adds, what flows into it: the state, or with OPPOSITE its gradient.

    Eight chunks are loaded at once: one by one, the way to memory and back is all the time. They
    are named one by one because a tile of them would be spread over the lanes of a warp.
    """
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    m = tl.program_id(1).to(tl.int64)
    states = S * Ep
    s, e, keep = i // Ep, i % Ep, i < states
    forwards = _forwards(tl.num_programs(1), MODE)
    back = m < forwards if OPPOSITE else m >= forwards
    a = tl.load(A + m // N * states + i, mask=keep, other=0.0) * LOG2_E
    h = tl.zeros((BLOCK,), tl.float32)
    if GIVEN:
        h = tl.load(state + (m * E + e) * S + s, mask=keep & (e < E), other=0.0)
    first, sign = tl.where(back, chunks - 1, 0), tl.where(back, -1, 1)
    starts += (m * slots + first * slots_per_chunk) * states + i
    sums += (m * chunks + first) * Ep + e
    ends += (m * chunks + first) * states + i
    p, q, r = sign * Ep, sign * states, sign * slots_per_chunk * states  # to the next chunk
    tl.store(starts, h, mask=keep)
    for c in range(0, chunks - 1, 8):
        n = tl.where(keep, chunks - 1 - c, 0)  # chunks that are left
        d0, x0 = _decay_and_end(sums, ends, a, n > 0)
        d1, x1 = _decay_and_end(sums + 1 * p, ends + 1 * q, a, n > 1)
        d2, x2 = _decay_and_end(sums + 2 * p, ends + 2 * q, a, n > 2)
        d3, x3 = _decay_and_end(sums + 3 * p, ends + 3 * q, a, n > 3)
        d4, x4 = _decay_and_end(sums + 4 * p, ends + 4 * q, a, n > 4)
        d5, x5 = _decay_and_end(sums + 5 * p, ends + 5 * q, a, n > 5)
        d6, x6 = _decay_and_end(sums + 6 * p, ends + 6 * q, a, n > 6)
        d7, x7 = _decay_and_end(sums + 7 * p, ends + 7 * q, a, n > 7)
        h = _flow(h, d0, x0, starts + 1 * r, n > 0)
        h = _flow(h, d1, x1, starts + 2 * r, n > 1)
        h = _flow(h, d2, x2, starts + 3 * r, n > 2)
        h = _flow(h, d3, x3, starts + 4 * r, n > 3)
        h = _flow(h, d4, x4, starts + 5 * r, n > 4)
        h = _flow(h, d5, x5, starts + 6 * r, n > 5)
        h = _flow(h, d6, x6, starts + 7 * r, n > 6)
        h = _flow(h, d7, x7, starts + 8 * r, n > 7)
        sums += 8 * p
        ends += 8 * q
        starts += 8 * r


@jit
def _emit(
    h, u, delta, z, BC, total, y, u_step, delta_step, z_step, BC_step, y_step, bias, D, A, e, E, n,
    FIRST: tl.constexpr, LAST: tl.constexpr, GATED: tl.constexpr, KEEP: tl.constexpr,
    BS: tl.constexpr,
):  # fmt: skip
    """``_advance`` with outputs; BC points to a row of B, FIRST and LAST are about directions."""
    x, v = tl.load(delta, mask=e < E, other=0.0), tl.load(u, mask=e < E, other=0.0)
    others, gate = tl.load(total, mask=e < E, other=0.0), tl.load(z, mask=e < E, other=0.0)
    for i in range(n):
        u += u_step
        delta += delta_step
        z += z_step
        more = e < tl.where(i + 1 < n, E, 0)
        x_next, v_next = tl.load(delta, mask=more, other=0.0), tl.load(u, mask=more, other=0.0)
        others_next = tl.load(total + y_step, mask=more, other=0.0)
        gate_next = tl.load(z, mask=more, other=0.0)
        d, _ = _softplus(x.to(tl.float32) + bias)
        v = v.to(tl.float32)
        h = tl.exp2(d[None, :] * A) * h + (d * v)[None, :] * tl.load(BC)[:, None]
        out = tl.sum(h * tl.load(BC + BS)[:, None], 0) + D * v
        if not FIRST:
            out += others
        if KEEP or not LAST:
            tl.store(total, out, mask=e < E)
        if LAST:
            gate = gate.to(tl.float32)
            tl.store(y, out * gate * sigmoid(gate) if GATED else out, mask=e < E)
        total += y_step
        y += y_step
        BC += BC_step
        x, v, others, gate = x_next, v_next, others_next, gate_next
    return h


@jit
def outputs(
    u, delta, z, BC, A, D, bias, starts, state, total, y, u_n, u_t, delta_n, delta_t, z_n, z_t,
    N, L, E, Ep, S, chunk, interval, MODE: tl.constexpr, GATED: tl.constexpr, SAVE: tl.constexpr,
    GIVEN: tl.constexpr, BS: tl.constexpr, BE: tl.constexpr,
):  # fmt: skip
    """The outputs of a chunk; with SAVE, the state before every interval goes to ``starts``.

    Both directions of a chunk are run by the same program, one after the other: the first leaves
    its part in ``total`` (float32), where the second finds it still in the cache. With SAVE and a
    gate, the sum of both before the gate stays there.
    """
    e, s = tl.program_id(0) * BE + tl.arange(0, BE), tl.arange(0, BS)
    c, o = tl.program_id(1), tl.program_id(2).to(tl.int64)
    inside, tile, keep = e < E, s[:, None] * Ep + e[None, :], (s < S)[:, None] & (e < Ep)[None, :]
    count = tl.cdiv(min(chunk, L - c * chunk), interval)
    for way in tl.static_range(2 if MODE == 2 else 1):
        back = MODE == 1 or way == 1
        sign = -1 if back else 1
        m = o + way * tl.num_programs(2)
        a = tl.load(A + m // N * S * Ep + tile, mask=keep, other=0.0) * LOG2_E
        b = tl.load(bias + m // N * E + e, mask=inside, other=0.0)
        d = tl.load(D + m // N * E + e, mask=inside, other=0.0)
        slot = starts + (m * tl.num_programs(1) + c) * (chunk // interval) * S * Ep + tile
        h = tl.load(slot, mask=keep, other=0.0)
        for i in range(count):
            q = count - 1 - i if back else i
            if SAVE:
                tl.store(slot + q * S * Ep, h, mask=keep)
            first = c * chunk + q * interval
            n = min(interval, L - first)
            row = (first + (n - 1 if back else 0)).to(tl.int64)
            at = (o * L + row) * E + e
            h = _emit(
                h, u + m * u_n + row * u_t + e, delta + m * delta_n + row * delta_t + e,
                z + o * z_n + row * z_t + e, BC + (m * L + row) * (2 * BS) + s, total + at, y + at,
                u_t * sign, delta_t * sign, z_t * sign, 2 * BS * sign, E * sign, b, d, a, e, E, n,
                way == 0, MODE != 2 or way == 1, GATED, SAVE and GATED, BS,
            )  # fmt: skip
        if GIVEN:
            end = e < tl.where(c == (0 if back else tl.num_programs(1) - 1), E, 0)
            after = state + (m * E + e[None, :]) * S + s[:, None]
            tl.store(after, h, mask=keep & end[None, :])
        tl.debug_barrier()


@jit
def chunk_gradients(
    delta, dy, BC, A, bias, ends, sums, delta_n, delta_t, dy_n, dy_t, N, L, E, Ep, S, chunk,
    MODE: tl.constexpr, BS: tl.constexpr, BE: tl.constexpr,
):  # fmt: skip
    """What a chunk alone adds to the gradient of the state before it; and its sum of delta."""
    e, s = tl.program_id(0) * BE + tl.arange(0, BE), tl.arange(0, BS)
    c, m = tl.program_id(1), tl.program_id(2).to(tl.int64)
    inside, tile, keep = e < E, s[:, None] * Ep + e[None, :], (s < S)[:, None] & (e < Ep)[None, :]
    results = tl.num_programs(2) // 2 if MODE == 2 else tl.num_programs(2)
    back = m >= _forwards(tl.num_programs(2), MODE)
    sign = tl.where(back, 1, -1)  # the gradient runs against the scan
    n = min(chunk, L - c * chunk)
    row = (c * chunk + tl.where(back, 0, n - 1)).to(tl.int64)
    a = tl.load(A + m // N * S * Ep + tile, mask=keep, other=0.0) * LOG2_E
    b = tl.load(bias + m // N * E + e, mask=inside, other=0.0)
    delta += m * delta_n + row * delta_t + e
    dy += m % results * dy_n + row * dy_t + e
    C = BC + (m * L + row) * (2 * BS) + BS + s
    k, sum_delta = tl.zeros((BS, BE), tl.float32), tl.zeros((BE,), tl.float32)
    x, g = tl.load(delta, mask=inside, other=0.0), tl.load(dy, mask=inside, other=0.0)
    for i in range(n):
        delta += delta_t * sign
        dy += dy_t * sign
        more = e < tl.where(i + 1 < n, E, 0)
        x_next = tl.load(delta, mask=more, other=0.0)
        g_next = tl.load(dy, mask=more, other=0.0)
        d, _ = _softplus(x.to(tl.float32) + b)
        k = tl.exp2(d[None, :] * a) * (g.to(tl.float32)[None, :] * tl.load(C)[:, None] + k)
        sum_delta += d
        C += 2 * BS * sign
        x, g = x_next, g_next
    here = m * tl.num_programs(1) + c
    tl.store(ends + here * S * Ep + tile, k, mask=keep)
    tl.store(sums + here * Ep + e, sum_delta, mask=e < Ep)


@jit
def _down(h, u, delta, dy, B, keep, bias, A):
    """A step in scan order: the state after it and what the way back needs."""
    x = tl.load(delta, mask=keep, other=-float("inf")).to(tl.float32) + bias
    v = tl.load(u, mask=keep, other=0.0).to(tl.float32)
    g = tl.load(dy, mask=keep, other=0.0).to(tl.float32)
    d, w = _softplus(x)
    slope = tl.where(x >= 0, 1.0, w) / (1 + w)
    a = tl.exp2(d[None, :] * A)
    rest = a * h
    h = rest + (d * v)[None, :] * B[:, None]
    return h, v, d, g, slope, a, rest, tl.sum(g[None, :] * h, 1)


@jit
def _up(k, dA, v, d, dy, slope, a, rest, B, C, D, A):
    """The same step on the way back; k is the gradient of the state after it by later steps."""
    g = dy[None, :] * C[:, None] + k
    dexponent = g * rest
    dinput = tl.sum(g * B[:, None], 0)
    dx = (v * dinput + tl.sum(dexponent * A, 0) * LN_2) * slope
    dB = tl.sum(g * (d * v)[None, :], 1)
    return a * g, dA + dexponent * d[None, :], d * dinput + D * dy, dx, dB


@jit
def _two_steps(
    h, k, dA, dD, dbias, u, delta, dy, BC, du, ddelta, dBC, u_step, delta_step, dy_step, out_step,
    BC_step, bias, D, A, e, E, s, two, BS: tl.constexpr,
):  # fmt: skip
    """Gradients of two steps, of which the second may not exist, from the state before them."""
    one, both, states = e < E, e < tl.where(two, E, 0), s < tl.where(two, BS, 0)
    B0, C0 = tl.load(BC + s), tl.load(BC + BS + s)
    B1 = tl.load(BC + BC_step + s, mask=states, other=0.0)
    C1 = tl.load(BC + BC_step + BS + s, mask=states, other=0.0)
    h, v0, d0, dy0, slope0, a0, rest0, dC0 = _down(h, u, delta, dy, B0, one, bias, A)
    h, v1, d1, dy1, slope1, a1, rest1, dC1 = _down(
        h, u + u_step, delta + delta_step, dy + dy_step, B1, both, bias, A
    )
    k, dA, du1, dx1, dB1 = _up(k, dA, v1, d1, dy1, slope1, a1, rest1, B1, C1, D, A)
    k, dA, du0, dx0, dB0 = _up(k, dA, v0, d0, dy0, slope0, a0, rest0, B0, C0, D, A)
    tl.store(du, du0, mask=one)
    tl.store(du + out_step, du1, mask=both)
    tl.store(ddelta, dx0, mask=one)
    tl.store(ddelta + out_step, dx1, mask=both)
    tl.store(dBC + s, dB0)
    tl.store(dBC + BS + s, dC0)
    tl.store(dBC + BC_step + s, dB1, mask=states)
    tl.store(dBC + BC_step + BS + s, dC1, mask=states)
    return k, dA, dD + dy0 * v0 + dy1 * v1, dbias + dx0 + dx1


@jit
def gradients(
    u, delta, dy, BC, A, D, bias, starts, carried, pairs, du, ddelta, dBC, parts, u_n, u_t, delta_n,
    delta_t, dy_n, dy_t, N, L, E, Ep4, S, chunk, interval, MODE: tl.constexpr, BS: tl.constexpr,
    BE: tl.constexpr,
):  # fmt: skip
    """All gradients of a chunk; those of A, B, C, D and the bias as sums still to be added up.

    ``parts`` (S + 2, sequence, chunk, Ep) gets those of A, then of D, then of the bias.

    Interval by interval against the scan: the state before every second step is computed into
    ``pairs``, then two steps at a time are run forwards, in registers, and back.
    """
    Ep = Ep4 * 4
    block, c, m = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    e, s = block * BE + tl.arange(0, BE), tl.arange(0, BS)
    inside, tile, keep = e < E, s[:, None] * Ep + e[None, :], (s < S)[:, None] & (e < Ep)[None, :]
    results = tl.num_programs(2) // 2 if MODE == 2 else tl.num_programs(2)
    back = m >= _forwards(tl.num_programs(2), MODE)
    sign = tl.where(back, -1, 1)
    here = m * tl.num_programs(1) + c
    a = tl.load(A + m // N * S * Ep + tile, mask=keep, other=0.0) * LOG2_E
    b = tl.load(bias + m // N * E + e, mask=inside, other=0.0)
    d = tl.load(D + m // N * E + e, mask=inside, other=0.0)
    k = tl.load(carried + here * S * Ep + tile, mask=keep, other=0.0)
    dA_sum, dD_sum = tl.zeros((BS, BE), tl.float32), tl.zeros((BE,), tl.float32)
    dbias_sum = tl.zeros((BE,), tl.float32)
    pairs += (here * tl.num_programs(0) + block) * (interval // 2) * (BS * BE)
    pairs += s[:, None] * BE + tl.arange(0, BE)[None, :]
    count = tl.cdiv(min(chunk, L - c * chunk), interval)
    for i in range(count):
        q = tl.where(back, i, count - 1 - i)
        first = c * chunk + q * interval
        n = min(interval, L - first)
        row = (first + tl.where(back, n - 1, 0)).to(tl.int64)
        at, last = m * L + row, (n - 1) // 2 * 2
        v, x, g = u + m * u_n + row * u_t, delta + m * delta_n + row * delta_t, dy + row * dy_t
        h = tl.load(starts + (here * (chunk // interval) + q) * S * Ep + tile, mask=keep, other=0.0)
        h, _ = _advance(
            h, b, v + e, x + e, BC + at * (2 * BS) + s, u_t * sign, delta_t * sign, 2 * BS * sign,
            b, a, e, E, last, pairs, True,
        )  # fmt: skip
        tl.store(pairs + last // 2 * (BS * BE), h)
        tl.debug_barrier()
        for done in range(0, last + 1, 2):
            t = last - done
            j = t * sign
            k, dA_sum, dD_sum, dbias_sum = _two_steps(
                tl.load(pairs + t // 2 * (BS * BE)), k, dA_sum, dD_sum, dbias_sum,
                v + j * u_t + e, x + j * delta_t + e, g + m % results * dy_n + j * dy_t + e,
                BC + (at + j) * (2 * BS), du + (at + j) * E + e, ddelta + (at + j) * E + e,
                dBC + (block * (tl.num_programs(2) * L).to(tl.int64) + at + j) * (2 * BS),
                u_t * sign, delta_t * sign, dy_t * sign, E * sign, 2 * BS * sign, b, d, a, e, E, s,
                t + 1 < n, BS,
            )  # fmt: skip
    parts += here * Ep + e
    row = tl.num_programs(2).to(tl.int64) * tl.num_programs(1) * Ep
    tl.store(parts[None, :] + s[:, None] * row, dA_sum, mask=keep)
    tl.store(parts + S * row, dD_sum, mask=inside)
    tl.store(parts + (S + 1) * row, dbias_sum, mask=inside)
