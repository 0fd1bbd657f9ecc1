"""Which device a stage runs on."""

from __future__ import annotations

from mstemba.errors import UsageError


def pick_device(name: str) -> str:
    """`auto` is the first GPU, Apple's, or the CPU. Raises UsageError when one is not there."""
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    kind = name.split(":")[0]
    if kind not in ("cpu", "cuda", "mps"):
        raise UsageError(f"unknown device {name!r}; expected auto, cpu, cuda, cuda:N or mps")
    if kind == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"--device {name}: this torch ({torch.__version__}) sees no CUDA GPU")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UsageError(f"--device {name}: this torch ({torch.__version__}) has no mps")
    return name
