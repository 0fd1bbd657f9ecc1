"""The backends of the scan: which ones can run here, and which one is taken.

Each is a module of this package with the functions ``scan`` and ``convolve``. ``reference`` is
readable PyTorch, and the oracle of the others; ``auto`` never takes it, because ``chunked`` runs
wherever it does.
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

import torch
from torch import Tensor

from mstemba.errors import UsageError, first_line

ENVIRONMENT = "MSTEMBA_SCAN"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Backend:
    """A backend, and whether it can run here."""

    name: str
    available: bool
    reason: str
    """What it is if available; otherwise what is missing."""


def list_backends() -> list[Backend]:
    """Return every backend, fastest first, and whether it is available here."""
    return [
        Backend(name, missing is None, missing or description)
        for name, (description, find_missing) in BACKENDS.items()
        for missing in (find_missing(),)
    ]


def choose(
    backend: str,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    carries: bool = False,
) -> str:
    """Return the name of the backend that runs a scan.

    Args:
        backend: A name, or ``auto`` for the fastest. The environment variable MSTEMBA_SCAN, if set,
            replaces ``auto``.
        device: Of the tensors.
        dtype: Of the tensors.
        carries: Whether the scan starts from a state and returns one, which ``cuda`` cannot.

    Raises:
        UsageError: The backend cannot run here. The message has the reason and the choices.
    """
    backend = _named(backend)
    if backend == "auto":
        return choose_fastest(device.type, dtype, carries)[0]
    if backend not in BACKENDS:
        raise UsageError(f"scan backend: found {backend!r}, expected one of {_choices()}")
    missing = BACKENDS[backend][1]() or _unfit(backend, device.type, dtype, carries)
    if missing is not None:
        raise UsageError(f"scan backend {backend!r} cannot run: {missing}; choices: {_choices()}")
    return backend


def can_carry(backend: str) -> bool:
    """Return whether a scan with this backend can start from a state; with ``auto`` it can."""
    return _named(backend) != "cuda"


def describe_choice(device: torch.device) -> str:
    """Return one line for a log: what ``auto`` means on this device, and why no faster one."""
    named = _named("auto")
    if named != "auto":
        return f"scan backend {choose(named, device)}, named by {ENVIRONMENT}"
    name, skipped = choose_fastest(device.type, torch.float32, False)
    return _in_words(name, skipped)


def _in_words(name: str, skipped: tuple[str, ...]) -> str:
    reasons = "".join(f"; not {other}" for other in skipped)
    return f"scan backend {name} ({BACKENDS[name][0]}){reasons}"


def _named(backend: str) -> str:
    return (os.environ.get(ENVIRONMENT) or "auto") if backend == "auto" else backend


def _choices() -> str:
    return ", ".join(["auto", *(b.name for b in list_backends() if b.available)])


@cache
def choose_fastest(device: str, dtype: torch.dtype, carries: bool) -> tuple[str, tuple[str, ...]]:
    """Return the fastest backend, and the faster ones that cannot run, each with the reason."""
    skipped: list[str] = []
    for name, (_, find_missing) in BACKENDS.items():
        if device != DEVICES.get(name, device):
            continue
        missing = find_missing() or _unfit(name, device, dtype, carries)
        if missing is None:
            log.info("%s, for %s on %s", _in_words(name, tuple(skipped)), dtype, device)
            return name, tuple(skipped)
        skipped.append(f"{name}: {missing}")
    raise AssertionError("chunked runs everywhere")


def _unfit(backend: str, device: str, dtype: torch.dtype, carries: bool) -> str | None:
    """Return why an installed backend cannot take such tensors; None if it can."""
    if backend not in DEVICES:
        return None
    if device != DEVICES[backend] and not (backend == "triton" and _interprets_triton()):
        return f"it runs on {DEVICES[backend].upper()} tensors, found {device}"
    if dtype == torch.float64:
        return "it computes in float32, found float64"
    if backend == "cuda" and carries:
        return "mamba-ssm's kernel cannot start from a state"
    return None


@cache
def missing_for_cpu() -> str | None:
    """Return what is missing to run the backend ``cpu``; None if nothing is."""
    try:
        numba = importlib.import_module("numba")
    except ImportError as error:
        return f"Numba cannot be imported ({error}); pip install numba"
    except ValueError as error:  # of a variable, such as NUMBA_NUM_THREADS=0
        return (
            f"Numba cannot start ({first_line(error)}); correct the NUMBA_* environment variables"
        )
    if numba.config.DISABLE_JIT:
        return "Numba compiles nothing; unset NUMBA_DISABLE_JIT"
    return None


@cache
def missing_for_cuda() -> str | None:
    """Return what is missing to run the backend ``cuda``; None if nothing is."""
    # The Python packages can be installed without the kernels; only the compiled modules tell.
    if missing := missing_gpu():
        return missing
    wanted = {"mamba-ssm": "selective_scan_cuda", "causal-conv1d": "causal_conv1d_cuda"}
    for package, module in wanted.items():
        if importlib.util.find_spec(module) is None:
            return f"{package}'s compiled kernels ({module}) are not installed; see docs/install.md"
    try:  # a build for another torch is found, and cannot be loaded
        importlib.import_module("mstemba.model.scan.cuda")
    except (ImportError, OSError) as error:
        return f"the kernels installed do not load here ({error})"
    return None


@cache
def missing_for_triton() -> str | None:
    """Return what is missing to run the backend ``triton``; None if a kernel has run."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed; it comes with torch's CUDA builds for Linux"
    if _interprets_triton():
        return None
    if missing := missing_gpu():
        return missing
    if torch.cuda.get_device_capability() < (7, 0):
        return "the GPU is older than compute capability 7.0"
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "Triton launches its kernels through a C compiler; install gcc"
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        return "Triton launches its kernels through Python.h; install Python's headers"
    return _failure_to_launch()


def _failure_to_launch() -> str | None:
    """Return why Triton cannot run a kernel here; None if it can.

    That Triton is found does not tell: it compiles a launcher, loads the driver, and needs a folder
    for both.
    """
    try:
        from mstemba.model.scan.triton_kernels import run_small_kernel

        run_small_kernel("cuda")
    except Exception as error:  # compilers, drivers, file systems: each raises its own kinds
        return f"Triton cannot run a kernel here ({first_line(error)})"
    return None


def missing_gpu() -> str | None:
    """Return why this torch cannot use an NVIDIA GPU; None if it can."""
    if not torch.cuda.is_available() or torch.version.cuda is None:
        return f"this torch ({torch.__version__}) sees no NVIDIA GPU"
    return None


def _interprets_triton() -> bool:
    """Return whether Triton interprets kernels on the CPU, slowly, as in tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


# Fastest first, among those for the same device. By name: what it is, and a function that returns
# what is missing here.
BACKENDS: dict[str, tuple[str, Callable[[], str | None]]] = {
    "cpu": ("compiled by Numba on first use, in up to a minute", missing_for_cpu),
    "triton": ("Triton kernels of our own, compiled on first use", missing_for_triton),
    "cuda": ("kernels of mamba-ssm and causal-conv1d", missing_for_cuda),
    "chunked": ("large PyTorch operations", lambda: None),
    "reference": ("plain PyTorch, step by step", lambda: None),
}
DEVICES = {"cpu": "cpu", "cuda": "cuda", "triton": "cuda"}


def load_backend(backend: str, tensor: Tensor, carries: bool = False) -> ModuleType:
    """Return the module that runs the operations on tensors like this one; see ``choose``."""
    name = choose(backend, tensor.device, tensor.dtype, carries)
    return importlib.import_module(f"mstemba.model.scan.{name}")
