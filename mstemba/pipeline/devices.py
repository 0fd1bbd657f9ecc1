"""The devices that a stage runs on, and the precision that is fast there."""

from __future__ import annotations

import contextlib
import math
import os
import re
from functools import cache
from pathlib import Path, PurePosixPath

from mstemba.errors import UsageError

# What torch and the libraries below it say where memory is short. cuBLAS and cuDNN create their
# handles on first use; where memory is too small for that, they are "not initialized". cuDNN
# passes over the algorithms whose workspace does not fit, and finds none that is left.
_OUT_OF_MEMORY = re.compile(
    r"out of memory"  # CUDA, also for pinned memory, HIP, MPS, Triton
    r"|_STATUS_(\w+_)?ALLOC(ATION)?_FAILED|_STATUS_NOT_INITIALIZED"  # cuBLAS, cuDNN, hipBLAS
    r"|unable to find an engine"  # cuDNN
    r"|miopenStatusAllocFailed"
    r"|Invalid buffer size"  # MPS, for more than its largest buffer
    r"|DefaultCPUAllocator: (can't allocate|not enough) memory|std::bad_alloc",
    re.IGNORECASE,
)


def pick_device(name: str) -> str:
    """Return the device for a name; `auto` prefers CUDA, then mps, then the CPU.

    Also limits torch to as many threads as the CPU quota of a container, which torch ignores.

    Raises UsageError if the device is unknown or missing.
    """
    import torch

    quota = cpu_quota()
    if quota and torch.get_num_threads() > quota:
        torch.set_num_threads(quota)
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
    """Return the number of CPU cores that this process may use, by its affinity and its quota."""
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    return min(count, cpu_quota() or count)


@cache
def cpu_quota(
    membership: Path = Path("/proc/self/cgroup"), mount: Path = Path("/sys/fs/cgroup")
) -> int | None:
    """Return the CPU quota of this process's container in cores, rounded up; None without one.

    Args:
        membership: The file that lists the control groups of the process.
        mount: The folder of the control groups, of version 1, 2 or both.
    """
    try:
        lines = [line.split(":", 2) for line in membership.read_text().splitlines()]
    except OSError:
        return None  # not Linux
    quotas = []
    for _, controllers, path in lines:
        if controllers and "cpu" not in controllers.split(","):
            continue
        # A group's quota holds for the groups below it. In a container the path may be the host's:
        # then only the mount itself exists, and it is the container's group.
        group, root = PurePosixPath(path.lstrip("/")), mount / "cpu" if controllers else mount
        quotas += [_quota(root / place) for place in (group, *group.parents)]
    smallest = min(quotas, default=math.inf)
    return None if math.isinf(smallest) else max(1, math.ceil(smallest))


def _quota(group: Path) -> float:
    """Return the quota of one control group in cores; infinity without one."""
    for names in (["cpu.max"], ["cpu.cfs_quota_us", "cpu.cfs_period_us"]):
        with contextlib.suppress(OSError):
            text = " ".join((group / name).read_text() for name in names)
            if found := re.match(r"(\d+)\s+([1-9]\d*)", text):  # without a quota: max or -1
                return int(found[1]) / int(found[2])
    return math.inf


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that the memory of a device, or of this machine, is too small.

    torch raises `torch.OutOfMemoryError` only where its own allocator fails on a GPU.
    """
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and bool(_OUT_OF_MEMORY.search(str(error)))


def fast_precision(name: str) -> str:
    """Return the smallest type that a device computes natively: bfloat16, float16 or float32.

    A GPU that only emulates bfloat16 is far slower with it than with float32.
    """
    import torch

    device = pick_device(name)
    if device.startswith("cuda"):
        if torch.version.hip:  # numbers its capabilities in another way
            with torch.cuda.device(device):
                native = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            native = torch.cuda.get_device_capability(device) >= (8, 0)
        return "bfloat16" if native else "float16"
    if device == "cpu" and torch.cpu._is_avx512_bf16_supported():
        return "bfloat16"
    return "float32"
