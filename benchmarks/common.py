"""What every benchmark needs: honest times, peak memory, the machine, a table and a JSON file."""

from __future__ import annotations

import gc
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

import mstemba
from benchmarks.gpu_times import describe_error, gpu_times, profiled
from mstemba.pipeline.devices import cores

RESULTS = Path(__file__).parent / "results"
LOAD_BEFORE = round(os.getloadavg()[0], 2)
"""Other work on the machine when the benchmark began."""
MAX_RECORDED_SECONDS = 0.5
"""Calls that take more seconds are not recorded: the recording itself would take minutes."""


def times(
    function: Callable[[], Any], device: torch.device, seconds: float = 2.0
) -> dict[str, Any]:
    """Seconds of one call: the fastest and the median, after two calls that are not counted.

    At least three calls, and more until ``seconds`` are used; a call that alone takes longer than
    that is made once, after no other. On a GPU they include launch overhead; ``gpu`` has the
    GPU's own time, and how often the call launches and waits.
    """
    first = _once(function, device)
    if first > 3 * seconds and device.type == "cuda":
        first = _once(function, device)  # the first may have compiled kernels
    if first > 3 * seconds:
        return {"best": first, "median": first, "calls": 1}
    _once(function, device)
    taken = [_once(function, device) for _ in range(3)]
    while sum(taken) < seconds and len(taken) < 200:
        taken.append(_once(function, device))
    found = {"best": min(taken), "median": statistics.median(taken), "calls": len(taken)}
    if device.type == "cuda" and min(taken) <= MAX_RECORDED_SECONDS:
        one = profiled(function)
        counts = {name: one[name] for name in ("launches", "waits")}
        found["gpu"] = {**gpu_times(function), **counts}
    return found


def times_or_failure(*arguments: Any, **options: Any) -> dict[str, Any]:
    """``seconds``, as ``times`` returns them, or why the call ``failed``, so that others follow."""
    try:
        return {"seconds": times(*arguments, **options)}
    except Exception as error:
        return {"failed": describe_error(error)}


def _once(function: Callable[[], Any], device: torch.device) -> float:
    synchronise(device)
    begin = time.perf_counter()
    function()
    synchronise(device)
    return time.perf_counter() - begin


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(function: Callable[[], Any], device: torch.device) -> int | None:
    """Bytes that a call needs at its peak, beyond what is held before it.

    From torch's allocator on a GPU, else from the high-water mark of the process (Linux only; None
    elsewhere), which must not have been filled by an earlier, larger call: memory that the C
    library kept is handed back first.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        function()
        synchronise(device)
        return torch.cuda.max_memory_allocated(device) - before
    if platform.system() != "Linux":
        return None
    _trim()
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    function()
    return _status("VmHWM") - before


def peak_allocated(function: Callable[[], Any], device: torch.device) -> int:
    """Bytes that torch's allocator hands out at the peak of a call, beyond those before it."""
    if device.type == "cuda":
        return peak_memory(function, device) or 0
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    changes = [(e["ts"], e["args"]) for e in events if e.get("name") == "[memory]"]
    changes.sort(key=lambda change: change[0])
    before = changes[0][1]["Total Allocated"] - changes[0][1]["Bytes"]
    return max(change["Total Allocated"] for _, change in changes) - before


def _trim() -> None:
    import ctypes

    ctypes.CDLL(None).malloc_trim(0)


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def memory_here(device: torch.device) -> int:
    """Bytes of memory of the machine or of the GPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def machine(device: torch.device) -> dict[str, Any]:
    """What the numbers depend on."""
    found = {
        "processor": _processor(),
        "cores": cores(),
        "memory_gib": round(memory_here(torch.device("cpu")) / 2**30),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "mstemba": mstemba.__version__,
        "date": datetime.now(UTC).date().isoformat(),
        "load_before": LOAD_BEFORE,
    }
    if device.type == "cuda":
        found |= {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def large_product_rate(device: torch.device, dtype: torch.dtype = torch.float32) -> float:
    """Floating-point operations a second of one large matrix product."""
    m, k, n = (2500, 2048, 2048) if device.type == "cpu" else (8192, 8192, 8192)
    a = torch.randn(m, k, device=device, dtype=dtype)
    b = torch.randn(k, n, device=device, dtype=dtype)
    return 2 * m * k * n / times(lambda: a @ b, device)["best"]


def save(name: str, device: torch.device, content: dict[str, Any]) -> Path:
    """Write results/NAME-DEVICE.json."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}-{device.type}.json"
    path.write_text(json.dumps({"machine": machine(device), **content}, indent=1) + "\n")
    return path


def show(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """A table on the screen."""
    table = Table(title=title)
    for column in columns:
        table.add_column(column, justify="left" if column == columns[0] else "right")
    for row in rows:
        table.add_row(*row)
    console = Console()
    Console(width=max(console.width, 110)).print(table)


def readable(seconds: float | None) -> str:
    """Seconds, to three digits."""
    if seconds is None:
        return "-"
    if seconds < 1e-3:
        return f"{seconds * 1e6:.3g} µs"
    return f"{seconds * 1e3:.3g} ms" if seconds < 0.9995 else f"{seconds:.3g} s"


def duration(row: dict[str, Any], which: str = "best") -> str:
    """The time of a row: of the call, and on a GPU that of the GPU alone; or why there is none."""
    if "seconds" not in row:
        return str(row.get("failed") or row["skipped"])
    taken = row["seconds"]
    text = readable(taken[which]) + (" (one call)" if taken["calls"] == 1 else "")
    if "gpu" not in taken:
        return text
    return f"{text} (GPU {gpu_time_text(taken['gpu'])}, {taken['gpu']['launches']} launches)"


def gpu_time_text(found: dict[str, Any]) -> str:
    """The time of the GPU alone, of what ``gpu_times`` returned."""
    text = readable(found["seconds"])
    return f"at most {text}, not recorded" if "not_recorded" in found else text


def mebibytes(count: int | None) -> str:
    return "-" if count is None else f"{count / 2**20:.0f} MiB"
