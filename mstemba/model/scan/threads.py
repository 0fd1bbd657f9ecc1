"""Running compiled loops on torch's own threads."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import get_ident
from typing import Any

_Callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def share_out(call: Callable[..., Any], shares: Iterable[Any], threads: int) -> None:
    """``call(*share)`` for every share, on so many threads at a time. ``call`` should hold no GIL.

    A thread takes the next share when it is free. The threads are those of the OpenMP pool that
    torch's operators run on, where it can be reached: its idle threads spin for milliseconds after
    each operator, and would hold up any thread of ours beside them.
    """
    pending = iter(list(shares))
    failures: list[BaseException] = []
    entered: list[int] = []

    def work(_: Any = None) -> None:
        try:
            entered.append(get_ident())
            for share in pending:
                call(*share)
        except BaseException as error:
            failures.append(error)

    parallel = _openmp()
    if threads == 1:
        work()
    elif parallel is not None:
        parallel(_Callback(work), None, threads, 0)
        if get_ident() not in entered:  # an interrupt that ctypes printed and dropped
            raise KeyboardInterrupt
        work()  # what is left where such an interrupt hit the others
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, range(threads)))
    if failures:
        raise failures[0]


@cache
def _openmp() -> Callable[..., None] | None:
    """GOMP_parallel(function, data, threads, flags) of the library that torch has loaded."""
    try:
        found = ctypes.CDLL(None).GOMP_parallel
    except (AttributeError, OSError, TypeError):  # another OpenMP, or another system
        return None
    found.argtypes = [_Callback, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    found.restype = None
    return found
