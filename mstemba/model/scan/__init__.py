"""The two time-mixing operations of a Mamba block, and what they run on.

``selective_scan`` (Gu and Dao, arXiv 2312.00752, section 3) and the short causal convolution before
it. Every backend is a module of this package with the functions ``scan`` and ``convolve``;
``reference`` is readable PyTorch and the oracle of the others.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import shutil
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mstemba.errors import UsageError

Reverse = bool | Literal["both"]
"""Direction of time. ``both``: the first half of the sets runs forwards, the second backwards."""

ENVIRONMENT = "MSTEMBA_SCAN"

log = logging.getLogger(__name__)


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
    module = _load(backend, u, carries=state is not None)
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
    y: Tensor = _load(backend, x).convolve(x, weight, bias, reverse)
    return y


# Compilers see one call: what is behind it is compiled already.
for _operation in (selective_scan, causal_convolution):
    setattr(_operation, "_torchdynamo_disable", True)  # noqa: B010, mypy knows no such attribute


def backends() -> list[Backend]:
    """Every backend, fastest first, with whether it is available here and why."""
    return [
        Backend(name, missing is None, missing or description)
        for name, (description, find_missing) in _BACKENDS.items()
        for missing in (find_missing(),)
    ]


def choose(
    backend: str,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    carries: bool = False,
) -> str:
    """The backend that runs a scan of ``dtype`` on ``device``; ``auto`` takes the fastest.

    MSTEMBA_SCAN in the environment names another than ``auto`` takes. ``carries``: whether it must
    start from a state and return one, which ``cuda`` cannot.

    Raises UsageError, with what is missing and the choices, for one that cannot.
    """
    backend = _named(backend)
    if backend == "auto":
        return _choose_automatically(device.type, dtype, carries)[0]
    if backend not in _BACKENDS:
        raise UsageError(f"scan backend: found {backend!r}, expected one of {_choices()}")
    missing = _BACKENDS[backend][1]() or _unfit(backend, device.type, dtype, carries)
    if missing is not None:
        raise UsageError(f"scan backend {backend!r} cannot run: {missing}; choices: {_choices()}")
    return backend


def can_carry(backend: str) -> bool:
    """Whether this choice can start from a state: ``auto`` finds one that can."""
    return _named(backend) != "cuda"


def explain(device: torch.device) -> str:
    """One line for a log: what ``auto`` takes on this device, and why not what is before it."""
    named = _named("auto")
    if named != "auto":
        return f"scan backend {choose(named, device)}, named by {ENVIRONMENT}"
    name, passed_over = _choose_automatically(device.type, torch.float32, False)
    return _in_words(name, passed_over)


def _in_words(name: str, passed_over: tuple[str, ...]) -> str:
    reasons = "".join(f"; not {other}" for other in passed_over)
    return f"scan backend {name} ({_BACKENDS[name][0]}){reasons}"


def _named(backend: str) -> str:
    return (os.environ.get(ENVIRONMENT) or "auto") if backend == "auto" else backend


def _choices() -> str:
    return ", ".join(["auto", *(b.name for b in backends() if b.available)])


@cache
def _choose_automatically(
    device: str, dtype: torch.dtype, carries: bool
) -> tuple[str, tuple[str, ...]]:
    """The name, and the faster ones for such a device that cannot run, each with the reason."""
    passed_over: list[str] = []
    for name, (_, find_missing) in _BACKENDS.items():
        if name != "reference" and device != _HOME[name]:
            continue
        missing = find_missing() or _unfit(name, device, dtype, carries)
        if missing is None:
            log.info("%s, for %s on %s", _in_words(name, tuple(passed_over)), dtype, device)
            return name, tuple(passed_over)
        passed_over.append(f"{name}: {missing}")
    raise AssertionError("the reference runs everywhere")


def _unfit(backend: str, device: str, dtype: torch.dtype, carries: bool) -> str | None:
    """Why an installed backend cannot take these tensors."""
    if backend == "reference":
        return None
    if device != _HOME[backend] and not (backend == "triton" and _interprets_triton()):
        return f"it runs on {_HOME[backend].upper()} tensors, found {device}"
    if dtype == torch.float64:
        return "it computes in float32, found float64"
    if backend == "cuda" and carries:
        return "mamba-ssm's kernel cannot start from a state"
    return None


@cache
def _missing_for_cpu() -> str | None:
    try:
        importlib.import_module("numba")
    except ImportError as error:
        return f"Numba cannot be imported ({error}); pip install numba"
    return None


@cache
def _missing_for_cuda() -> str | None:
    # Their Python packages install without the kernels; only the compiled modules tell.
    if missing := _missing_gpu():
        return missing
    wanted = {"mamba-ssm": "selective_scan_cuda", "causal-conv1d": "causal_conv1d_cuda"}
    for package, module in wanted.items():
        if importlib.util.find_spec(module) is None:
            return f"{package}'s compiled kernels ({module}) are not installed"
    try:  # a build for another torch is found, and cannot be loaded
        importlib.import_module(f"{__name__}.cuda")
    except (ImportError, OSError) as error:
        return f"the kernels installed do not load here ({error})"
    return None


@cache
def _missing_for_triton() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed; it comes with torch's CUDA builds for Linux"
    if _interprets_triton():
        return None
    if missing := _missing_gpu():
        return missing
    if torch.cuda.get_device_capability() < (7, 0):
        return "the GPU is older than compute capability 7.0"
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "Triton launches its kernels through a C compiler; install gcc"
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        return "Triton launches its kernels through Python.h; install Python's headers"
    return None


def _missing_gpu() -> str | None:
    if not torch.cuda.is_available() or torch.version.cuda is None:
        return f"this torch ({torch.__version__}) sees no NVIDIA GPU"
    return None


def _interprets_triton() -> bool:
    """Triton's interpreter runs kernels on the CPU, slowly: for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


# Fastest first, of those for one kind of device.
_BACKENDS: dict[str, tuple[str, Callable[[], str | None]]] = {
    "cpu": ("compiled by Numba", _missing_for_cpu),
    "cuda": ("kernels of mamba-ssm and causal-conv1d", _missing_for_cuda),
    "triton": ("Triton kernels of our own", _missing_for_triton),
    "reference": ("plain PyTorch", lambda: None),
}
_HOME = {"cpu": "cpu", "cuda": "cuda", "triton": "cuda"}


def _load(backend: str, tensor: Tensor, carries: bool = False) -> ModuleType:
    name = choose(backend, tensor.device, tensor.dtype, carries)
    return importlib.import_module(f"{__name__}.{name}")


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
