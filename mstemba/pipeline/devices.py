"""Which device a stage runs on."""

from __future__ import annotations

import re

from mstemba.errors import UsageError


def pick_device(name: str) -> str:
    """`auto` is the first GPU, Apple's, or the CPU. Raises UsageError when one is not there."""
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
