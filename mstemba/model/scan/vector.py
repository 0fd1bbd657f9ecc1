"""Arithmetic for the compiled CPU kernels: exp, softplus and sigmoid without a call or a branch.

A loop around any of them becomes vector instructions, which a loop around libm's does not.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from mstemba.model.compiled import compiled


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
_ZERO, _ONE, _TWO = np.float32(0.0), np.float32(1.0), np.float32(2.0)
# Minimax polynomial for (exp(r) - 1 - r) / r^2 on [-ln 2 / 2, ln 2 / 2], from Cephes' expf.
_P0, _P1, _P2 = np.float32(0.5), np.float32(1.6666665459e-1), np.float32(4.1665795894e-2)
_P3, _P4, _P5 = (np.float32(p) for p in (8.3334519073e-3, 1.3981999507e-3, 1.9875691500e-4))
# Odd terms of 2 atanh(s) = log((1 + s) / (1 - s)), enough for s <= 1 / 3.
_L1, _L2, _L3, _L4, _L5, _L6 = (np.float32(2 / n) for n in (3, 5, 7, 9, 11, 13))


@compiled(inline="always")
def exp(x: Any) -> Any:
    """exp(x) for x <= 0, relative error below 1e-7; below -87 it stays at exp(-87), NaN is NaN."""
    x = _LOWEST if x < _LOWEST else x
    shifted = x * _LOG2_E + _ROUND
    n = shifted - _ROUND
    r = x - n * _LN2_HIGH - n * _LN2_LOW
    p = ((((_P5 * r + _P4) * r + _P3) * r + _P2) * r + _P1) * r + _P0
    power = np.int32((_bits_of(shifted) + np.int32(127)) << np.int32(23))  # bits of 2^n
    return (p * (r * r) + r + _ONE) * _float_of(power)


@compiled(inline="always")
def sigmoid(x: Any) -> Any:
    """1 / (1 + exp(-x))."""
    e = exp(-x if x > _ZERO else x)
    return (_ONE if x > _ZERO else e) / (_ONE + e)


@compiled(inline="always")
def softplus(x: Any) -> Any:
    """log(1 + exp(x)), relative error below 1e-6."""
    e = exp(-x if x > _ZERO else x)
    s = e / (_TWO + e)
    q = s * s
    series = ((((((_L6 * q + _L5) * q + _L4) * q + _L3) * q + _L2) * q + _L1) * q + _TWO) * s
    return (x if x > _ZERO else _ZERO) + series
