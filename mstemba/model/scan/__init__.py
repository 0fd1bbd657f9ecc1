"""The selective scan of Mamba (Gu and Dao, arXiv 2312.00752, section 3), and what it runs on.

``reference`` is readable PyTorch on any device; ``cpu`` is compiled by Numba. Both give the same
numbers within float32 rounding, forward and backward.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from mstemba.errors import UsageError


@dataclass(frozen=True)
class Backend:
    """One way to run the scan, and whether it can run here."""

    name: str
    available: bool
    reason: str
    """What it is when available, what is missing when not."""


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    *,
    reverse: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Run h_t = exp(delta_t A) h_(t-1) + delta_t B_t u_t and return y_t = C_t . h_t + D u_t.

    ``delta`` is first passed through softplus(delta + delta_bias); y is multiplied by silu(z) when
    z is given. The state starts at zero. Arithmetic is float32 (float64 stays float64 on the
    reference); the result has the type of ``u``.

    Args:
        u, delta, z: (N, L, E), N sequences of L steps and E channels; N may be 0.
        A: (E, S), negative. B, C: (N, L, S). D, delta_bias: (E,).
        reverse: run from the last step to the first; equal to flip, scan, flip.
        backend: a name from ``backends()``, or ``auto``.

    Returns:
        (N, L, E), differentiable once with respect to every tensor.

    Raises:
        UsageError: shapes that do not fit together, or a backend that cannot run here.
    """
    _check_shapes(u, delta, A, B, C, D, z, delta_bias)
    name = choose(backend, u.device, u.dtype)
    module = importlib.import_module(f"{__name__}.{name}")
    work = torch.float64 if u.dtype == torch.float64 and name == "reference" else torch.float32
    optional = [None if t is None else t.to(work) for t in (D, z, delta_bias)]
    y: Tensor = module.scan(*(t.to(work) for t in (u, delta, A, B, C)), *optional, reverse)
    return y.to(u.dtype)


def backends() -> list[Backend]:
    """Every backend, fastest first, with whether it is available here and why."""
    return [
        Backend(name, missing is None, missing or description)
        for name, (description, find_missing) in _BACKENDS.items()
        for missing in (find_missing(),)
    ]


def choose(backend: str, device: torch.device, dtype: torch.dtype = torch.float32) -> str:
    """The backend that runs a scan of ``dtype`` on ``device``; ``auto`` takes the fastest.

    Raises UsageError, with what is missing and the choices, for one that cannot.
    """
    if backend == "auto":
        fast = device.type == "cpu" and dtype != torch.float64 and _missing_for_cpu() is None
        return "cpu" if fast else "reference"
    choices = ", ".join(["auto", *(b.name for b in backends() if b.available)])
    if backend not in _BACKENDS:
        raise UsageError(f"scan backend: found {backend!r}, expected one of {choices}")
    missing = _BACKENDS[backend][1]()
    if missing is None and backend == "cpu" and device.type != "cpu":
        missing = f"it runs on CPU tensors, found {device}"
    if missing is not None:
        raise UsageError(f"scan backend {backend!r} cannot run: {missing}; choices: {choices}")
    return backend


@cache
def _missing_for_cpu() -> str | None:
    try:
        importlib.import_module("numba")
    except ImportError as error:
        return f"Numba cannot be imported ({error}); pip install numba"
    return None


_BACKENDS: dict[str, tuple[str, Callable[[], str | None]]] = {
    "cpu": ("compiled by Numba, CPU tensors", _missing_for_cpu),
    "reference": ("plain PyTorch, any device", lambda: None),
}


def _check_shapes(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
) -> None:
    if u.dim() != 3 or u.shape[1] < 1:
        raise UsageError(f"scan: u has shape {tuple(u.shape)}, expected (N, L, E) with L >= 1")
    if A.dim() != 2:
        raise UsageError(f"scan: A has shape {tuple(A.shape)}, expected (E, S)")
    (n, length, channels), states = u.shape, A.shape[1]
    expected = {
        "delta": (delta, (n, length, channels)),
        "A": (A, (channels, states)),
        "B": (B, (n, length, states)),
        "C": (C, (n, length, states)),
        "D": (D, (channels,)),
        "z": (z, (n, length, channels)),
        "delta_bias": (delta_bias, (channels,)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor is not None and tuple(tensor.shape) != shape:
            raise UsageError(f"scan: {name} has shape {tuple(tensor.shape)}, expected {shape}")
