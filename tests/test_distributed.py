"""Several processes: the same losses, and the same run, as one process with the same batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mstemba.errors import UsageError
from tests.training import TINY, fit, make_workspace, records

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="torchrun --standalone")


def launch(workspace: Path, arch: str, *args: str) -> subprocess.CompletedProcess[str]:
    """`mstemba train` in two processes that talk by gloo."""
    options = {**TINY, "arch": arch, "features": "npy", "output": f"two-{arch}"}
    flags = [x for k, v in options.items() for x in (f"--{k.replace('_', '-')}", str(v))]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return subprocess.run(
        [*torchrun, "-m", "mstemba", "train", *flags, *args],
        cwd=workspace,
        # Two processes with several threads each would spin on the same cores.
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.mark.parametrize(
    "arch",
    [
        "mstemba-v3",
        "ms-tct",
        pytest.param("mstemba", marks=pytest.mark.slow),
        pytest.param("pdan", marks=pytest.mark.slow),
    ],
)
def test_two_processes_have_the_losses_of_one(arch: str, tmp_path: Path, one_thread: None) -> None:
    # Batches of three clips of unequal length: one process has two of them, the other one.
    workspace = make_workspace(tmp_path / "w")
    alone = fit(workspace, arch=arch)
    result = launch(workspace, arch)
    assert result.returncode == 0, result.stderr
    run = workspace / f"two-{arch}"
    for name in ("loss", "final", "auxiliary", "consistency", "heatmap", "grad_norm"):
        expected = records(alone.run, name)
        assert records(run, name) == pytest.approx(expected, abs=1e-4, rel=1e-4), name
    assert len(records(run, "loss")) == 3
    for name in ("train_map", "val_map"):
        assert records(run, name) == pytest.approx(records(alone.run, name), abs=0.5)
    # The number of processes is no part of what a run is.
    one, two = (json.loads((f / "done.json").read_text()) for f in (alone.run, run))
    assert one["key"] == two["key"]
    assert (run / "best" / "model.safetensors").is_file()


def test_more_processes_than_clips_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = make_workspace(tmp_path / "w")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(UsageError, match="4 processes share out a batch of 3 clips"):
        fit(workspace)
    assert not list((workspace / "runs").glob("*/last"))
