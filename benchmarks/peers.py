"""The selective scans that others publish, on the layout of ours: one set, forwards in time.

mambapy is pure Python (``pip install mambapy``). mamba-ssm needs a CUDA build; without one its
reference function runs from the unpacked source (``pip download --no-deps --no-binary :all:
mamba-ssm``, MAMBA_SSM_SOURCE=the folder): only the module that holds it is imported.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch.nn.functional as F
from torch import Tensor

Scan = Callable[..., Tensor]


def peers() -> dict[str, tuple[Scan, int]]:
    """By name: a function of (u, delta, A, B, C, D, z, delta_bias), each (N, L, E) or as in ours,
    and how many tensors of (L, E, S) it holds at a time with gradients.
    """
    found: dict[str, tuple[Scan, int]] = {}
    if importlib.util.find_spec("mambapy") is not None:
        found["mambapy pscan"] = (_mambapy, 8)
    module = _mamba_ssm()
    if module is not None:
        found["mamba-ssm reference"] = (_channels_first(module.selective_scan_ref), 6)
        if "MAMBA_SSM_SOURCE" not in os.environ:
            found["mamba-ssm kernel"] = (_channels_first(module.selective_scan_fn), 0)
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
        y: Tensor = function(u, delta, A, B, C, D, z, bias, delta_softplus=True)
        return y.transpose(1, 2)

    return scan


def _mamba_ssm() -> ModuleType | None:
    source = os.environ.get("MAMBA_SSM_SOURCE")
    if source is None:
        if importlib.util.find_spec("selective_scan_cuda") is None:
            return None
        return importlib.import_module("mamba_ssm.ops.selective_scan_interface")
    # Its package imports the compiled kernels at once; stand-ins let the reference load alone.
    sys.modules.setdefault("selective_scan_cuda", ModuleType("selective_scan_cuda"))
    for name in ("mamba_ssm", "mamba_ssm.ops"):
        package = ModuleType(name)
        package.__path__ = [str(Path(source, *name.split(".")))]
        sys.modules[name] = package
    return importlib.import_module("mamba_ssm.ops.selective_scan_interface")
