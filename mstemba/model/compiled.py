"""Loops compiled to machine code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from numba import njit


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """``njit`` that keeps the machine code on disk where some cache folder can be written.

    Only contraction to fused multiply-adds is allowed: it keeps NaN and infinity as they are.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        flags = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}, **options}
        try:
            return cast(Callable[..., Any], njit(cache=True, **flags)(function))
        except RuntimeError:  # neither this folder nor the user's cache folder can be written
            return cast(Callable[..., Any], njit(**flags)(function))

    return decorate
