"""Devices: how many cores count, what a GPU computes natively, and what lack of memory is."""

from __future__ import annotations

import contextlib
import math
import os
from pathlib import Path

import pytest
import torch

from mstemba.pipeline import devices
from mstemba.pipeline.devices import (
    cores,
    cpu_quota,
    fast_precision,
    is_out_of_memory,
    pick_device,
)

V1 = "5:cpuacct,cpu:{}\n3:cpuset:/other\n0::/\n"
V2 = "0::{}\n"


def groups(folder: Path, membership: str, files: dict[str, str]) -> tuple[Path, Path]:
    """Write what the kernel shows of the control groups of a process."""
    (folder / "membership").write_text(membership)
    for name, text in files.items():
        file = folder / "mount" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder / "membership", folder / "mount"


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        (V2.format("/a/b"), {"a/b/cpu.max": "200000 100000\n"}, 2),
        (V2.format("/a/b"), {"a/b/cpu.max": "150000 100000\n"}, 2),
        (V2.format("/a/b"), {"a/b/cpu.max": "1000 100000\n"}, 1),
        (V2.format("/a/b"), {"a/b/cpu.max": "max 100000\n"}, None),
        (V2.format("/a/b"), {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "300000 100000\n"}, 3),
        (V2.format("/a/b"), {"a/b/cpu.max": "200000 50000\n", "a/cpu.max": "300000 100000\n"}, 3),
        # In a container: the path is the host's, or outside of the namespace.
        (V2.format("/docker/4f"), {"cpu.max": "400000 100000\n"}, 4),
        (V2.format("/../../4f"), {"cpu.max": "400000 100000\n"}, 4),
        (V2.format("/"), {"cpu.max": "400000 100000\n"}, 4),
        (V2.format("/a:b"), {"a:b/cpu.max": "400000 100000\n"}, 4),
        (
            V1.format("/a"),
            {"cpu/a/cpu.cfs_quota_us": "250000\n", "cpu/a/cpu.cfs_period_us": "100000\n"},
            3,
        ),
        (
            V1.format("/a"),
            {"cpu/a/cpu.cfs_quota_us": "-1\n", "cpu/a/cpu.cfs_period_us": "100000\n"},
            None,
        ),
        (
            V1.format("/docker/4f"),
            {"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"},
            2,
        ),
        (V1.format("/a"), {}, None),
    ],
)
def test_the_quota_is_read_from_the_control_groups(
    tmp_path: Path, membership: str, files: dict[str, str], expected: int | None
) -> None:
    assert cpu_quota(*groups(tmp_path, membership, files)) == expected


def test_without_control_groups_there_is_no_quota(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path / "none", tmp_path) is None


@pytest.fixture
def quota_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "cpu_quota", lambda: 1)


@pytest.mark.usefixtures("quota_of_one")
def test_the_smaller_of_quota_and_affinity_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cores() == 1
    monkeypatch.setattr(devices, "cpu_quota", lambda: math.inf)
    assert cores() == len(os.sched_getaffinity(0))


@pytest.mark.usefixtures("quota_of_one")
def test_torch_keeps_to_the_quota_and_to_a_smaller_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        pick_device("cpu")
        assert torch.get_num_threads() == 1
        monkeypatch.setattr(devices, "cpu_quota", lambda: 3)
        pick_device("cpu")
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("capability", "hip", "native", "precision"),
    [
        ((7, 0), None, False, "float16"),  # V100 and T4 only emulate bfloat16
        ((7, 5), None, False, "float16"),
        ((8, 0), None, True, "bfloat16"),
        ((9, 0), None, True, "bfloat16"),
        ((9, 0), "6.4", False, "float16"),  # an MI50, gfx906, if torch says that it has none
        ((9, 4), "6.4", True, "bfloat16"),
    ],
)
def test_bfloat16_is_fast_where_it_is_native(
    monkeypatch: pytest.MonkeyPatch,
    capability: tuple[int, int],
    hip: str | None,
    native: bool,
    precision: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(
        torch.cuda,
        "is_bf16_supported",
        lambda including_emulation=True: native or including_emulation,
    )
    monkeypatch.setattr(torch.version, "hip", hip)
    assert fast_precision("cuda:1") == precision


OUT_OF_MEMORY = [
    "CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation'",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
    "CUDA error: HIPBLAS_STATUS_ALLOC_FAILED when calling `hipblasCreate(handle)`",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "cuDNN error: CUDNN_STATUS_NOT_INITIALIZED",
    "FIND was unable to find an engine to execute this computation",
    "Unable to find an engine to execute this computation",
    "HIP error: out of memory",
    "HIP out of memory. Tried to allocate 2.00 GiB",
    "miopenStatusAllocFailed",
    "MPS backend out of memory (MPS allocated: 9.05 GB, other allocations: 1.05 MB, max allowed: "
    "9.07 GB). Tried to allocate 32.00 MB on private pool.",
    "Invalid buffer size: 20.25 GB",
    "Triton Error [CUDA]: out of memory",
    "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you "
    "tried to allocate 2359296 bytes. Error code 12 (Cannot allocate memory)",
    "[enforce fail at alloc_cpu.cpp:117] data. DefaultCPUAllocator: not enough memory: you tried "
    "to allocate 911360 bytes.",
    "std::bad_alloc",
]


@pytest.mark.parametrize("message", OUT_OF_MEMORY)
def test_every_library_has_its_words_for_too_little_memory(message: str) -> None:
    assert is_out_of_memory(RuntimeError(message))
    assert not is_out_of_memory(ValueError(message))


def test_too_little_memory_is_recognised_as_torch_and_python_raise_it() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert is_out_of_memory(MemoryError())
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 50, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize(
    "message",
    [
        "CUDA error: an illegal memory access was encountered",
        "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(handle)`",
        "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
        "Expected all tensors to be on the same device, but found at least two devices",
        "mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)",
    ],
)
def test_other_errors_are_not_taken_for_too_little_memory(message: str) -> None:
    assert not is_out_of_memory(RuntimeError(message))
