"""How many cores count: those of the affinity, and no more than the quota of the container."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
import torch

from mstemba.pipeline import devices
from mstemba.pipeline.devices import cores, cpu_quota, pick_device

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
