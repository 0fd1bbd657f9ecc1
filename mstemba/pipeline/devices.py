"""The devices that a stage runs on, and the precision that is fast there."""

from __future__ import annotations

import os
import re

from mstemba.errors import UsageError


def pick_device(name: str) -> str:
    """Return the device for a name; `auto` prefers CUDA, then mps, then the CPU.

    Raises UsageError if the device is unknown or missing.
    """
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", name):
        raise UsageError(f"unknown device {name!r}; expected auto, cpu, cuda, cuda:N or mps")
    kind, _, index = name.partition(":")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"--device {name}: this torch ({torch.__version__}) sees "
            f"{torch.cuda.device_count()} CUDA GPUs"
        )
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UsageError(f"--device {name}: this torch ({torch.__version__}) has no mps")
    return name


def all_devices(name: str) -> list[str]:
    """Return every GPU for `auto` and `cuda`, otherwise the device that is named."""
    import torch

    device = pick_device(name)
    if device == "cuda":
        return [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    return [device]


def cores() -> int:
    """Return the number of CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def fast_precision(name: str) -> str:
    """Return the smallest type that a device computes natively: bfloat16, float16 or float32."""
    import torch

    device = pick_device(name)
    if device.startswith("cuda"):
        capability = torch.cuda.get_device_capability(device)
        return "bfloat16" if capability >= (8, 0) else "float16"
    if device == "cpu" and torch.cpu._is_avx512_bf16_supported():
        return "bfloat16"
    return "float32"
