"""Runs compiled loops on torch's own threads."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import get_ident
from typing import Any

_Callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def share_out(call: Callable[..., Any], shares: Iterable[Any], threads: int) -> None:
    """Call ``call(*share)`` for every share, on several threads.

    A thread takes the next share when it is free. The threads are those of torch's OpenMP pool, if
    it can be reached: its idle threads spin for milliseconds after each operator, and would slow
    down other threads.

    Args:
        call: Should release the GIL.
        shares: Arguments of the calls.
        threads: How many run at a time.
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

    parallel = openmp()
    if threads == 1:
        work()
    elif parallel is not None:
        parallel(_Callback(work), None, threads, 0)
        if get_ident() not in entered:  # an interrupt that ctypes printed and dropped
            raise KeyboardInterrupt
        work()  # the rest, if such an interrupt hit the other threads
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, range(threads)))
    if failures:
        raise failures[0]


@cache
def openmp() -> Callable[..., None] | None:
    """Return GOMP_parallel(function, data, threads, flags) of torch's OpenMP; None without it."""
    try:
        found = ctypes.CDLL(None).GOMP_parallel
    except (AttributeError, OSError, TypeError):  # another OpenMP, or another system
        return None
    found.argtypes = [_Callback, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    found.restype = None
    return found
