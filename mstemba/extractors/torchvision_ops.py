"""Lets torchvision be imported with a torch that its native library was not built for."""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch

# The operators that torchvision's Python code refers to when it is imported.
_SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_library: torch.library.Library | None = None


def ensure() -> None:
    """Define torchvision's nms and qnms if its native library does not.

    Call it before importing torchvision or anything that does (open_clip, timm, pytorchvideo).
    mstemba does not use these operators; the stand-ins raise when they are called.
    """
    global _library
    if _library is not None or _native_library_loads():
        return
    _library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for name in ("nms", "qnms"):
        _library.define(name + _SIGNATURE)  # type: ignore[no-untyped-call]
        _library.impl(name, _missing(name), "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]


def _native_library_loads() -> bool:
    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        # Forget what is half imported.
        for name in [n for n in sys.modules if n == "torchvision" or n.startswith("torchvision.")]:
            del sys.modules[name]
        return False
    return True


def _missing(name: str) -> Callable[..., torch.Tensor]:
    def stand_in(*args: object, **kwargs: object) -> torch.Tensor:
        raise RuntimeError(
            f"torchvision::{name} is not available: torchvision's native library does not match "
            f"torch {torch.__version__}"
        )

    return stand_in
