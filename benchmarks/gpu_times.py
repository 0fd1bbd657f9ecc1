"""What one call costs a GPU: its own time, kernel launches, and where the call waits for it."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from mstemba.errors import first_line

Call = Callable[[], Any]


def record(call: Call) -> Call:
    """Record a call as a CUDA graph and return what replays it.

    Raises:
        RuntimeError: The call waits for the GPU, or does something else that cannot be recorded.
    """
    # A wait inside a recording can spoil later ones, so the call first runs where a wait raises.
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    replay: Call = graph.replay
    return replay


def event_seconds(call: Call, repeats: int = 15, seconds: float = 1.0) -> float:
    """Return the median seconds between two events around a call, gaps between kernels included.

    Stops early, but not before the third call, when ``seconds`` have passed.
    """
    taken: list[float] = []
    while len(taken) < repeats and (len(taken) < 3 or sum(taken) < seconds):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        taken.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(taken)


def gpu_times(call: Call) -> dict[str, Any]:
    """Return the ``seconds`` of a call on the GPU alone, by replaying it as a CUDA graph.

    Where it cannot be recorded, ``not_recorded`` says why, and the seconds are those between two
    events, an upper limit.
    """
    for _ in range(2):
        call()
    torch.cuda.synchronize()
    try:
        return {"seconds": event_seconds(record(call))}
    except Exception as error:
        return {"seconds": event_seconds(call), "not_recorded": describe_error(error)}


def profiled(call: Call) -> dict[str, Any]:
    """Return what one call launches, how often it waits, and the seconds of its kernels."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        call()
        torch.cuda.synchronize()
    events = profiler.key_averages()
    kernels = [e for e in events if e.self_device_time_total > 0 and e.self_cpu_time_total == 0]
    kernels.sort(key=lambda e: -e.self_device_time_total)

    def count(*words: str) -> int:
        return sum(e.count for e in events if any(word in e.key for word in words))

    return {
        "busy_seconds": sum(e.self_device_time_total for e in kernels) / 1e6,
        "launches": count("LaunchKernel", "GraphLaunch"),
        "waits": count("StreamSynchronize", "EventSynchronize"),
        "longest": {e.key[:70]: [e.count, e.self_device_time_total / 1e6] for e in kernels[:8]},
    }


def describe_error(error: Exception) -> str:
    """Return the type and the first line of an error."""
    return f"{type(error).__name__}: {first_line(error)}"[:200]
