"""The two time-mixing operations of a Mamba block.

``selective_scan`` (Gu and Dao, arXiv 2312.00752, section 3) and the short causal convolution before
it, on one of the backends of this package.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mstemba.errors import UsageError
from mstemba.model.scan.backends import load_backend
from mstemba.model.scan.reference import Reverse


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    reverse: Reverse = False,
    *,
    state: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Run h_t = exp(delta_t A) h_(t-1) + delta_t B_t u_t and return y_t = C_t . h_t + D u_t.

    ``delta`` is first passed through softplus(delta + delta_bias); y is multiplied by silu(z) when
    z is given. Arithmetic is float32 (float64 stays float64 on the reference) whatever the type of
    the inputs; the result has the type of ``u``.

    One call scans G sets of weights, each over N sequences of L steps and E channels. Without the
    leading G, every tensor is of a single set.

    Args:
        u, delta: (G, N, L, E). N may be 0.
        A: (G, E, S), negative. B, C: (G, N, L, S). D, delta_bias: (G, E).
        z: the shape of the result.
        reverse: True runs from the last step to the first; equal to flip, scan, flip. ``both`` runs
            the first G / 2 sets forwards and the others backwards, and adds set i + G / 2 to set i
            before the gate: a bidirectional block is one call.
        state: (G, N, E, S) contiguous, float32 (float64 for u of that): h before the first step,
            overwritten by h after the last one, so that a long sequence can be scanned in pieces.
            Zero when None. Only without gradients.
        backend: a name from ``backends()``, or ``auto``.

    Returns:
        (G, N, L, E), with ``both`` (G / 2, N, L, E); differentiable once by every tensor.

    Raises:
        UsageError: shapes that do not fit together, or a backend that cannot run here.
    """
    if u.dim() == 3:
        u, delta, A, B, C = (t[None] for t in (u, delta, A, B, C))
        D, z, delta_bias, state = (
            None if t is None else t[None] for t in (D, z, delta_bias, state)
        )
        y = selective_scan(
            u, delta, A, B, C, D, z, delta_bias, reverse, state=state, backend=backend
        )
        return y[0]
    reverse = _direction(reverse)
    _check_scan(u, delta, A, B, C, D, z, delta_bias, reverse, state)
    module = load_backend(backend, u, carries=state is not None)
    D = A.new_zeros(A.shape[:2]) if D is None else D
    delta_bias = A.new_zeros(A.shape[:2]) if delta_bias is None else delta_bias
    scanned: Tensor = module.scan(u, delta, A, B, C, D, z, delta_bias, reverse, state)
    return scanned


def causal_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    reverse: Reverse = False,
    *,
    backend: str = "auto",
) -> Tensor:
    """silu(bias + sum_j weight_j x_(t - K + 1 + j)): each step with the K - 1 before it.

    Args:
        x: (G, N, L, E); zero before the first step. With ``both`` (G / 2, N, L, E): each set is
            convolved by the weights i forwards and i + G / 2 backwards.
        weight: (G, E, K). bias: (G, E).
        reverse: True takes the steps after instead of those before: flip, convolve, flip.
        backend: as in ``selective_scan``.

    Returns:
        (G, N, L, E), of the type of x, differentiable once by every tensor.

    Raises:
        UsageError: shapes that do not fit together, or a backend that cannot run here.
    """
    reverse = _direction(reverse)
    sets, channels = weight.shape[:2]
    _expect("bias", bias, (sets, channels), x)
    _expect("weight", weight, tuple(weight.shape), x)
    given = _half(sets) if reverse == "both" else sets
    if x.dim() != 4 or (x.shape[0], x.shape[3]) != (given, channels) or x.shape[2] < 1:
        raise UsageError(
            f"convolution: x has shape {tuple(x.shape)}, "
            f"expected ({given}, N, L, {channels}) with L >= 1"
        )
    y: Tensor = load_backend(backend, x).convolve(x, weight, bias, reverse)
    return y


# Compilers see one call: what is behind it is compiled already.
for _operation in (selective_scan, causal_convolution):
    setattr(_operation, "_torchdynamo_disable", True)  # noqa: B010, mypy knows no such attribute


def _check_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    reverse: Reverse,
    state: Tensor | None,
) -> None:
    if u.dim() != 4 or u.shape[2] < 1:
        raise UsageError(
            f"scan: u has shape {tuple(u.shape)}, expected (G, N, L, E) or (N, L, E) with L >= 1"
        )
    if A.dim() != 3:
        raise UsageError(f"scan: A has shape {tuple(A.shape)}, expected (G, E, S)")
    (sets, n, length, channels), states = u.shape, A.shape[2]
    result = (_half(sets) if reverse == "both" else sets, n, length, channels)
    expected = {
        "u": (u, tuple(u.shape)),
        "delta": (delta, (sets, n, length, channels)),
        "A": (A, (sets, channels, states)),
        "B": (B, (sets, n, length, states)),
        "C": (C, (sets, n, length, states)),
        "D": (D, (sets, channels)),
        "z": (z, result),
        "delta_bias": (delta_bias, (sets, channels)),
        "state": (state, (sets, n, channels, states)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor is not None:
            _expect(name, tensor, shape, u)
    if state is not None and torch.is_grad_enabled():
        raise UsageError("scan: a state is carried only under torch.no_grad()")
    wide = torch.float64 if u.dtype == torch.float64 else torch.float32
    if state is not None and (state.dtype != wide or not state.is_contiguous()):
        raise UsageError(f"scan: state is {state.dtype}, expected contiguous {wide}")


def _expect(name: str, tensor: Tensor, shape: tuple[int, ...], like: Tensor) -> None:
    if tuple(tensor.shape) != shape:
        raise UsageError(f"scan: {name} has shape {tuple(tensor.shape)}, expected {shape}")
    if not tensor.is_floating_point() or tensor.device != like.device:
        raise UsageError(
            f"scan: {name} is {tensor.dtype} on {tensor.device}, "
            f"expected a floating-point type on {like.device}"
        )


def _direction(reverse: Reverse) -> Reverse:
    if reverse == "both":
        return "both"
    if not isinstance(reverse, (bool, np.bool_)):
        raise UsageError(f"scan: reverse is {reverse!r}, expected False, True or 'both'")
    return bool(reverse)


def _half(sets: int) -> int:
    if sets % 2:
        raise UsageError(f"scan: found {sets} sets, expected an even number for both directions")
    return sets // 2
