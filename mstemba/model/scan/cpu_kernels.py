"""The compiled loops of the ``cpu`` backend, over work items ``start`` to ``stop``.

Item = (set, sequence, block of WIDTH channels). ``both`` gives an item two sets, ``set`` forwards
and ``set + half`` backwards, whose results are added. Tensors that may be views come as a flat
array and the strides of (G, N, L); the others are blocked: (..., blocks, WIDTH) or, with states or
taps, (..., blocks, rows, WIDTH).
"""

from __future__ import annotations

import numpy as np

from mstemba.model.compiled import compiled
from mstemba.model.scan.vector import exp, sigmoid, softplus

WIDTH = 64
"""Channels of one block: whole vector registers, few enough that all states stay in L1 cache."""
TAPS = 4
"""Taps of the convolution; fewer are filled up with zeros."""
INTERVAL = 16
"""Steps between two saved states. The backward pass recomputes the states in between."""

_ZERO, _ONE = np.float32(0), np.float32(1)


@compiled(fastmath={"contract", "reassoc"})
def _dot(a, b):  # type: ignore[no-untyped-def]
    """Inner product of two blocks; reassociation lets the sum be made in vector lanes."""
    total = _ZERO
    for c in range(WIDTH):
        total += a[c] * b[c]
    return total


@compiled(inline="always")
def _at(strides, g, n, t):  # type: ignore[no-untyped-def]
    """Where step t of a sequence begins in a flat array.

    Its values are read one by one: a slice would count references, atomically, at every step. The
    index is cast to unsigned, because Numba would look for negative ones and not vectorise.
    """
    return g * strides[0] + n * strides[1] + t * strides[2]


@compiled(inline="always")
def _step_size(delta, at, bias, u, u_at, size, drive):  # type: ignore[no-untyped-def]
    """size = softplus(delta + bias), drive = size * u."""
    for c in range(WIDTH):
        size[c] = softplus(delta[np.uintp(at + c)] + bias[c])
        drive[c] = size[c] * u[np.uintp(u_at + c)]


@compiled()
def scan_forward(  # type: ignore[no-untyped-def]
    u_rows,
    delta_rows,
    B_rows,
    C_rows,
    z_rows,
    A,
    D,
    bias,
    y,
    saved,
    carried,
    both,
    reverse,
    start,
    stop,
) -> None:
    """Fill y (G, N, L, blocks, WIDTH); saved and carried where they have room."""
    (u, u_strides), (delta, delta_strides), (z, z_strides) = u_rows, delta_rows, z_rows
    (B, B_strides), (C, C_strides) = B_rows, C_rows
    _, sequences, length, blocks, _ = y.shape
    states, half = A.shape[2], A.shape[0] // 2
    h = np.empty((states, WIDTH), np.float32)
    size, drive, total = np.empty((3, WIDTH), np.float32)
    for item in range(start, stop):
        result, n, b = item // blocks // sequences, item // blocks % sequences, item % blocks
        for second in range(2 if both else 1):
            g, backwards = result + second * half, reverse or second == 1
            A_b, D_b, bias_b = A[g, b], D[g, b], bias[g, b]
            h[:] = _ZERO
            if carried.shape[0] > 0:
                h[:] = carried[g, n, b]
            for i in range(length):
                t = length - 1 - i if backwards else i
                if saved.shape[3] > 0 and i % INTERVAL == 0:
                    saved[g, n, b, i // INTERVAL] = h
                u_at = _at(u_strides, g, n, t) + b * WIDTH
                delta_at = _at(delta_strides, g, n, t) + b * WIDTH
                B_at, C_at = _at(B_strides, g, n, t), _at(C_strides, g, n, t)
                _step_size(delta, delta_at, bias_b, u, u_at, size, drive)
                for c in range(WIDTH):
                    total[c] = D_b[c] * u[np.uintp(u_at + c)]
                for s in range(states):
                    B_s, C_s = B[np.uintp(B_at + s)], C[np.uintp(C_at + s)]
                    for c in range(WIDTH):
                        state = exp(size[c] * A_b[s, c]) * h[s, c] + drive[c] * B_s
                        h[s, c] = state
                        total[c] += C_s * state
                if second == 1:
                    for c in range(WIDTH):
                        total[c] += y[result, n, t, b, c]
                if z.size > 0 and (second == 1 or not both):
                    z_at = _at(z_strides, result, n, t) + b * WIDTH
                    for c in range(WIDTH):
                        total[c] *= z[np.uintp(z_at + c)] * sigmoid(z[np.uintp(z_at + c)])
                for c in range(WIDTH):
                    y[result, n, t, b, c] = total[c]
            if carried.shape[0] > 0:
                carried[g, n, b] = h


@compiled(inline="always")
def _ungate(dy, dy_at, z, z_at, dz, y, earlier, complete, dgated):  # type: ignore[no-untyped-def]
    """dgated = dy silu(z); dz sums up y and becomes dy y silu'(z) once that is ``complete``."""
    for c in range(WIDTH):
        gate = sigmoid(z[np.uintp(z_at + c)])
        dgated[c] = dy[np.uintp(dy_at + c)] * z[np.uintp(z_at + c)] * gate
        total = y[c] + (dz[c] if earlier else _ZERO)
        slope = gate * (_ONE + z[np.uintp(z_at + c)] * (_ONE - gate))
        dz[c] = dy[np.uintp(dy_at + c)] * total * slope if complete else total


@compiled(inline="always")
def _read_out(C, C_at, h, D, u, u_at, y):  # type: ignore[no-untyped-def]
    """y = C . h + D u."""
    for c in range(WIDTH):
        y[c] = D[c] * u[np.uintp(u_at + c)]
    for s in range(h.shape[0]):
        C_s = C[np.uintp(C_at + s)]
        for c in range(WIDTH):
            y[c] += C_s * h[s, c]


@compiled(inline="always")
def _recurrence_backward(  # type: ignore[no-untyped-def]
    dy, B, B_at, C, C_at, A, size, drive, before, after, decays,
    dh, dA, dB, dC, carry, ddrive, dsize,
):  # fmt: skip
    """One step back: dh of the step after becomes dh of this one; ddrive and dsize are of it."""
    for c in range(WIDTH):
        ddrive[c] = _ZERO
        dsize[c] = _ZERO
    for s in range(A.shape[0]):
        B_s, C_s = B[np.uintp(B_at + s)], C[np.uintp(C_at + s)]
        for c in range(WIDTH):
            carry_c = dh[s, c] + dy[c] * C_s
            carry[c] = carry_c
            dh_c = carry_c * decays[s, c]
            dh[s, c] = dh_c
            ddrive[c] += carry_c * B_s
            q = dh_c * before[s, c]
            dsize[c] += q * A[s, c]
            dA[s, c] += q * size[c]
        dB[s] = _dot(carry, drive)
        dC[s] = _dot(dy, after[s])


@compiled()
def _set_backward(  # type: ignore[no-untyped-def]
    u_rows, delta_rows, B_rows, C_rows, z_rows, A, D, bias, saved, dy_rows,
    du, ddelta, dA, dB, dC, dD, dz, dbias, result, g, n, b, backwards, earlier, complete,
):  # fmt: skip
    """All steps of one set of one item, last scanned first, chunk by chunk."""
    (u, u_strides), (delta, delta_strides), (z, z_strides) = u_rows, delta_rows, z_rows
    (B, B_strides), (C, C_strides), (dy, dy_strides) = B_rows, C_rows, dy_rows
    length, states, lane = du.shape[2], A.shape[0], b * WIDTH
    h = np.empty((INTERVAL + 1, states, WIDTH), np.float32)
    decays = np.empty((INTERVAL, states, WIDTH), np.float32)
    sizes, drives = np.empty((2, INTERVAL, WIDTH), np.float32)
    dh = np.zeros((states, WIDTH), np.float32)
    y, dgated, carry, ddrive, dsize = np.empty((5, WIDTH), np.float32)
    for chunk in range(saved.shape[0] - 1, -1, -1):
        first, stop = chunk * INTERVAL, min((chunk + 1) * INTERVAL, length)
        h[0] = saved[chunk]
        for k in range(stop - first):
            t = length - 1 - first - k if backwards else first + k
            u_at, delta_at = _at(u_strides, g, n, t) + lane, _at(delta_strides, g, n, t) + lane
            B_at = _at(B_strides, g, n, t)
            _step_size(delta, delta_at, bias, u, u_at, sizes[k], drives[k])
            for s in range(states):
                B_s = B[np.uintp(B_at + s)]
                for c in range(WIDTH):
                    decay = exp(sizes[k, c] * A[s, c])
                    decays[k, s, c] = decay
                    h[k + 1, s, c] = decay * h[k, s, c] + drives[k, c] * B_s
        for k in range(stop - first - 1, -1, -1):
            t = length - 1 - first - k if backwards else first + k
            u_at, delta_at = _at(u_strides, g, n, t) + lane, _at(delta_strides, g, n, t) + lane
            B_at, C_at = _at(B_strides, g, n, t), _at(C_strides, g, n, t)
            dy_at, z_at = _at(dy_strides, result, n, t) + lane, _at(z_strides, result, n, t) + lane
            if z.size > 0:
                _read_out(C, C_at, h[k + 1], D, u, u_at, y)
                _ungate(dy, dy_at, z, z_at, dz[result, n, t, b], y, earlier, complete, dgated)
            else:
                for c in range(WIDTH):
                    dgated[c] = dy[np.uintp(dy_at + c)]
            _recurrence_backward(
                dgated, B, B_at, C, C_at, A, sizes[k], drives[k], h[k], h[k + 1], decays[k],
                dh, dA, dB[t], dC[t], carry, ddrive, dsize,
            )  # fmt: skip
            for c in range(WIDTH):
                u_c = u[np.uintp(u_at + c)]
                slope = sigmoid(delta[np.uintp(delta_at + c)] + bias[c])
                step = (ddrive[c] * u_c + dsize[c]) * slope
                ddelta[g, n, t, b, c] = step
                dbias[c] += step
                du[g, n, t, b, c] = ddrive[c] * sizes[k, c] + D[c] * dgated[c]
                dD[c] += dgated[c] * u_c


@compiled()
def scan_backward(  # type: ignore[no-untyped-def]
    u, delta, B, C, z, A, D, bias, saved, dy, gradients, both, reverse, start, stop
) -> None:
    """Fill the gradients of an item's sets; the caller sums over items what they share."""
    du, ddelta, dA, dB, dC, dD, dz, dbias = gradients
    _, sequences, _, blocks, _ = du.shape
    half = du.shape[0] // 2
    for item in range(start, stop):
        result, n, b = item // blocks // sequences, item // blocks % sequences, item % blocks
        for second in range(2 if both else 1):
            g = result + second * half
            dA[g, n, b] = _ZERO
            dD[g, n, b] = _ZERO
            dbias[g, n, b] = _ZERO
            _set_backward(
                u, delta, B, C, z, A[g, b], D[g, b], bias[g, b], saved[g, n, b], dy,
                du, ddelta, dA[g, n, b], dB[g, n, b], dC[g, n, b], dD[g, n, b], dz, dbias[g, n, b],
                result, g, n, b, reverse or second == 1, second == 1, second == 1 or not both,
            )  # fmt: skip


@compiled(inline="always")
def _sources(strides, g, n, t, backwards, lane):  # type: ignore[no-untyped-def]
    """Where the four steps that step t is made of begin, for weights 0 to 3."""
    sign = -1 if backwards else 1
    last = _at(strides, g, n, t) + lane
    return (
        last - 3 * sign * strides[2],
        last - 2 * sign * strides[2],
        last - sign * strides[2],
        last,
    )


@compiled(inline="always")
def _convolve_step(  # type: ignore[no-untyped-def]
    x, strides, weight, bias, given, n, t, length, backwards, lane, total
):
    """total = bias + weight . x of one step and block."""
    if TAPS - 1 <= t < length - TAPS + 1:
        # Written out: with the sum in a register this is four times as fast as a loop over taps.
        x0, x1, x2, x3 = _sources(strides, given, n, t, backwards, lane)
        for c in range(WIDTH):
            total[c] = (
                bias[c]
                + weight[0, c] * x[np.uintp(x0 + c)]
                + weight[1, c] * x[np.uintp(x1 + c)]
                + weight[2, c] * x[np.uintp(x2 + c)]
                + weight[3, c] * x[np.uintp(x3 + c)]
            )
        return
    for c in range(WIDTH):
        total[c] = bias[c]
    for j in range(TAPS):
        source = t + TAPS - 1 - j if backwards else t - TAPS + 1 + j
        if 0 <= source < length:
            at = _at(strides, given, n, source) + lane
            for c in range(WIDTH):
                total[c] += weight[j, c] * x[np.uintp(at + c)]


@compiled()
def convolve_forward(  # type: ignore[no-untyped-def]
    x_rows, weight, bias, y, both, reverse, start, stop
):
    """Fill y (G, N, L, blocks, WIDTH) with silu of the convolved x."""
    x, strides = x_rows
    _, sequences, length, blocks, _ = y.shape
    half = y.shape[0] // 2
    total = np.empty(WIDTH, np.float32)
    for item in range(start, stop):
        given, n, b = item // blocks // sequences, item // blocks % sequences, item % blocks
        for second in range(2 if both else 1):
            g, backwards = given + second * half, reverse or second == 1
            weight_b, bias_b = weight[g, b], bias[g, b]
            for t in range(length):
                _convolve_step(
                    x, strides, weight_b, bias_b, given, n, t, length, backwards, b * WIDTH, total
                )
                for c in range(WIDTH):
                    y[g, n, t, b, c] = total[c] * sigmoid(total[c])


@compiled()
def convolve_backward(  # type: ignore[no-untyped-def]
    x_rows, weight, bias, dy_rows, dx, dweight, dbias, both, reverse, start, stop
):
    """Fill dx (of both directions together), and dweight and dbias of every sequence."""
    (x, strides), (dy, dy_strides) = x_rows, dy_rows
    _, sequences, length, blocks, _ = dx.shape
    half = dweight.shape[0] // 2
    total = np.empty(WIDTH, np.float32)
    for item in range(start, stop):
        given, n, b = item // blocks // sequences, item // blocks % sequences, item % blocks
        dx[given, n, :, b] = _ZERO
        for second in range(2 if both else 1):
            g, backwards = given + second * half, reverse or second == 1
            weight_b, bias_b, dweight_b = weight[g, b], bias[g, b], dweight[g, n, b]
            dweight_b[:] = _ZERO
            dbias[g, n, b] = _ZERO
            for t in range(length):
                _convolve_step(
                    x, strides, weight_b, bias_b, given, n, t, length, backwards, b * WIDTH, total
                )
                dy_at = _at(dy_strides, g, n, t) + b * WIDTH
                for c in range(WIDTH):
                    gate = sigmoid(total[c])
                    slope = gate * (_ONE + total[c] * (_ONE - gate))
                    total[c] = dy[np.uintp(dy_at + c)] * slope
                    dbias[g, n, b, c] += total[c]
                for j in range(TAPS):
                    source = t + TAPS - 1 - j if backwards else t - TAPS + 1 + j
                    if 0 <= source < length:
                        at = _at(strides, given, n, source) + b * WIDTH
                        for c in range(WIDTH):
                            dx[given, n, source, b, c] += weight_b[j, c] * total[c]
                            dweight_b[j, c] += x[np.uintp(at + c)] * total[c]
