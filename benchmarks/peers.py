"""The selective scans that others publish, on the layout of ours: one set, forwards in time.

mambapy is pure Python (``pip install mambapy``). mamba-ssm needs a CUDA build; without one its
reference function runs from the unpacked source (``pip download --no-deps --no-binary :all:
mamba-ssm``, MAMBA_SSM_SOURCE=the folder). Of mamba-ssm only the module with the scans is imported.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor

Scan = Callable[..., Tensor]


class Candidate(NamedTuple):
    """A scan to be measured: one set, forwards, (N, L, E), with softplus, D and the gate."""

    scan: Scan
    """Of (u, delta, A, B, C, D, z, delta_bias)."""
    held: int = 0
    """Tensors of (L, E, S) that it holds without gradients."""
    held_in_training: int = 0
    trains_up_to: int = 1 << 30
    """Steps beyond which its backward pass takes longer than anybody waits."""
    time_last: bool = False
    """Whether it is given (N, E, L), so that no transposition counts as its time."""


def peers() -> dict[str, Candidate]:
    """Those that are installed, by name."""
    found: dict[str, Candidate] = {}
    if importlib.util.find_spec("mambapy") is not None:
        found["mambapy pscan"] = Candidate(_mambapy, 4, 8)
    module = _mamba_ssm()
    if module is not None:
        # It takes one step after another out of tensors of (L, E, S), and the gradient of each of
        # these reads is a tensor of that size: quadratic in L.
        reference = _channels_first(partial(module.selective_scan_ref, delta_softplus=True))
        found["mamba-ssm reference"] = Candidate(reference, 3, 6, trains_up_to=256)
        if "MAMBA_SSM_SOURCE" not in os.environ:
            kernel = partial(module.selective_scan_fn, delta_softplus=True)
            found["mamba-ssm kernel"] = Candidate(kernel, time_last=True)
            found["mamba-ssm kernel, from our layout"] = Candidate(_channels_first(kernel))
    return found


def _mambapy(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    bias: Tensor,
) -> Tensor:
    from mambapy.pscan import pscan

    delta = F.softplus(delta + bias)
    decay = (delta[..., None] * A).exp()
    h = pscan(decay, (delta * u)[..., None] * B[:, :, None])
    return ((h @ C[..., None])[..., 0] + D * u) * F.silu(z)


def _channels_first(function: Callable[..., Any]) -> Scan:
    def scan(
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor,
        z: Tensor,
        bias: Tensor,
    ) -> Tensor:
        u, delta, B, C, z = (t.transpose(1, 2).contiguous() for t in (u, delta, B, C, z))
        y: Tensor = function(u, delta, A, B, C, D, z, bias)
        return y.transpose(1, 2)

    return scan


def _mamba_ssm() -> ModuleType | None:
    """Import the module of mamba-ssm that holds the scans, and not the whole package."""
    module = "mamba_ssm.ops.selective_scan_interface"
    source = os.environ.get("MAMBA_SSM_SOURCE")
    if source is not None:
        # It imports the compiled kernels at once; a stand-in lets the reference load alone.
        sys.modules.setdefault("selective_scan_cuda", ModuleType("selective_scan_cuda"))
    elif importlib.util.find_spec("selective_scan_cuda") is None:
        return None
    elif module not in sys.modules:
        spec = importlib.util.find_spec("mamba_ssm")  # finds it, and imports nothing
        if spec is None or not spec.submodule_search_locations:
            return None
        source = str(Path(spec.submodule_search_locations[0]).parent)
    if source is not None:
        # The package imports language models; stand-ins for it let this module load alone.
        for name in ("mamba_ssm", "mamba_ssm.ops"):
            package = ModuleType(name)
            package.__path__ = [str(Path(source, *name.split(".")))]
            sys.modules[name] = package
    return importlib.import_module(module)
