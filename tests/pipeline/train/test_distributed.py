"""Several processes: the same losses, and the same run, as one process with the same batch."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from mstemba.console import Console
from mstemba.errors import UsageError
from mstemba.pipeline.caching.locks import FolderLocks
from mstemba.pipeline.distributed import make_accelerator
from mstemba.pipeline.progress import Event
from tests.training import HERE, TINY, fit, make_workspace, records

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="torchrun --standalone")


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


def start(
    workspace: Path, *launcher: str, env: dict[str, str] | None = None, **options: Any
) -> subprocess.Popen[str]:
    """`mstemba train` by a launcher, or as one process of several."""
    options = {**TINY, **HERE, "features": "npy", **options}
    flags = [x for k, v in options.items() for x in (f"--{k.replace('_', '-')}", str(v))]
    return subprocess.Popen(
        [sys.executable, *launcher, "-m", "mstemba", "train", *flags],
        cwd=workspace,
        # Two processes with several threads each would spin on the same cores.
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(*processes: subprocess.Popen[str]) -> list[tuple[int, str]]:
    """The exit codes, and what was said on standard error."""
    try:
        said = [process.communicate(timeout=240)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, text) for process, text in zip(processes, said, strict=True)]


def launch(workspace: Path, **options: Any) -> str:
    """What a training in two processes says, which talk by gloo."""
    ((code, said),) = finish(start(workspace, *TORCHRUN, **options))
    assert code == 0, said
    return said


@pytest.mark.parametrize(
    "arch",
    [
        "mstemba-v3",
        pytest.param("ms-tct", marks=pytest.mark.slow),
        pytest.param("mstemba", marks=pytest.mark.slow),
        pytest.param("pdan", marks=pytest.mark.slow),
    ],
)
def test_two_processes_have_the_losses_of_one(arch: str, tmp_path: Path, one_thread: None) -> None:
    # Batches of three clips of unequal length: one process has two of them, the other one.
    workspace = make_workspace(tmp_path / "w")
    alone = fit(workspace, arch=arch)
    run = workspace / "two"
    launch(workspace, arch=arch, output=run)
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


@pytest.mark.slow
def test_a_run_in_two_processes_is_resumed_to_the_bit(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w")
    options = {"min_steps": 30, "dropout": 0.1}
    launch(workspace, output="whole", **options)
    run = workspace / "killed"
    torchrun = start(workspace, *TORCHRUN, output=run, **options)
    while torchrun.poll() is None and not (run / "state.safetensors").is_file():
        time.sleep(0.01)
    # Not torchrun itself: its processes would live on, and train to the end.
    for process in psutil.Process(torchrun.pid).children():
        process.kill()
    ((code, said),) = finish(torchrun)
    assert code != 0
    assert not (run / "done.json").exists(), said
    assert "resuming from step" in launch(workspace, output=run, **options)
    for name in ("metrics.jsonl", "last/model.safetensors", "best/model.safetensors"):
        assert (run / name).read_bytes() == (workspace / "whole" / name).read_bytes(), name


@pytest.mark.slow
def test_machines_that_do_not_share_the_run_folder_are_told(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w")
    folders = [workspace / "machine-0", workspace / "machine-1"]

    def both() -> list[tuple[int, str]]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        return finish(
            *(
                start(
                    workspace,
                    output=folder,
                    min_steps=2,
                    env={**world, "RANK": str(rank), "LOCAL_RANK": "0"},
                )
                for rank, folder in enumerate(folders)
            )
        )

    # At first there is nothing anywhere: the first machine gets the run.
    first = both()
    assert [code for code, _ in first] == [0, 0], first
    assert [(folder / "done.json").is_file() for folder in folders] == [True, False]
    for code, said in both():
        assert code == 2, said
        assert "process 0 finds a finished run there, others find no state; the run folder" in said
        assert "must be shared by all machines" in said


@pytest.mark.parametrize("others", ["no state", "the state of step 4"])
def test_processes_that_find_different_things_refuse_to_begin(
    others: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = make_workspace(tmp_path / "w")
    run = fit(workspace).run
    monkeypatch.setenv("WORLD_SIZE", "2")
    found = ["a finished run", "a finished run"]
    monkeypatch.setattr(
        "mstemba.pipeline.distributed.gather", lambda device, precision, mine: [mine, found[1]]
    )
    assert fit(workspace, output=run).cached
    found[1] = others
    with pytest.raises(UsageError, match=f"process 0 finds a finished run .* others find {others}"):
        fit(workspace, output=run)


@pytest.mark.parametrize(
    ("rank", "world", "heard"),
    [(None, None, True), ("3", None, True), ("3", "1", True), ("0", "4", True), ("3", "4", False)],
)
def test_only_further_processes_of_a_distributed_run_are_mute(
    rank: str | None,
    world: str | None,
    heard: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # Clusters export RANK for whole jobs.
    for name, value in (("RANK", rank), ("WORLD_SIZE", world)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    with Console() as console:
        console(Event("train", "hello"))
    assert ("hello" in capsys.readouterr().err) == heard


@pytest.mark.parametrize(
    ("capability", "expected"),
    [((7, 0), "no"), ((7, 5), "no"), ((8, 0), "bf16"), ((9, 0), "bf16")],
)
def test_auto_precision_is_bf16_only_where_a_gpu_computes_it_natively(
    capability: tuple[int, int], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A V100 or T4 emulates bfloat16, far slower than it computes in float32.
    properties = SimpleNamespace(major=capability[0], minor=capability[1])
    for name, value in {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "is_bf16_supported": lambda emulated=True: emulated or capability >= (8, 0),
        "get_device_capability": lambda device=None: capability,
        "get_device_properties": lambda device=None: properties,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    seen: dict[str, Any] = {}

    def accelerator(**options: Any) -> SimpleNamespace:
        seen.update(options)
        return SimpleNamespace(num_processes=1, gradient_accumulation_steps=1)

    monkeypatch.setattr("accelerate.Accelerator", accelerator)
    make_accelerator("cuda", "auto")
    assert seen == {"cpu": False, "mixed_precision": expected}


def test_more_processes_than_clips_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = make_workspace(tmp_path / "w")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(UsageError, match="4 processes share a batch of 3 clips"):
        fit(workspace)
    assert not list((workspace / "runs").glob("*/last"))


@pytest.mark.slow
def test_two_processes_wait_together_for_another_training_of_their_run(tmp_path: Path) -> None:
    workspace, run = make_workspace(tmp_path / "w"), tmp_path / "run"
    lock = FolderLocks(run, "training").acquire(None)
    assert lock is not None
    process = start(workspace, *TORCHRUN, output=run)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("waiting"):
            break
    assert line == f"waiting for process {os.getpid()}, which is training run\n"
    assert not (run / "last").exists()
    lock.release()
    ((code, said),) = finish(process)
    assert code == 0, said
    assert (run / "done.json").is_file()
    assert not list(run.glob(".*"))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two', expected a number"),
        ({"WORLD_SIZE": "2", "RANK": "x"}, "RANK is 'x', expected a number"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "MASTER_PORT is '', expected a number"),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_PORT": "29500"}, "MASTER_ADDR is not set"),
    ],
)
def test_variables_of_a_launcher_that_are_wrong_are_named(
    given: dict[str, str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = make_workspace(tmp_path / "w")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=f"{says}; start it with torchrun"):
        fit(workspace)


@pytest.mark.parametrize(
    "given",
    [
        {"LOCAL_RANK": "y"},
        {"LOCAL_RANK": "99", "RANK": "-3"},
        {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "2"},
        {"PMI_SIZE": "4", "WORLD_SIZE": ""},
        {"MV2_COMM_WORLD_SIZE": "several", "WORLD_SIZE": "1"},
    ],
    ids=lambda given: next(iter(given)),
)
def test_one_process_does_not_look_for_those_of_an_mpi_job(
    given: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert make_accelerator("cpu", "no").num_processes == 1
    assert given.items() <= os.environ.items()  # for the processes that this one starts


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("ACCELERATE_USE_CPU", "maybe", "invalid truth value maybe"),
        ("ACCELERATE_DYNAMO_BACKEND", "zzz", "'ZZZ' is not a valid DynamoBackend"),
        ("ACCELERATE_TORCH_DEVICE", "cuter", "cuter"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "x", "invalid literal"),
    ],
)
def test_variables_that_accelerate_fails_with_are_named(
    name: str, value: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "3")  # of the cluster: no reason for anything
    monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=f"cannot start: .*{says}.*variables {name}$"):
        make_accelerator("cpu", "no")


def test_gradient_accumulation_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "2")
    with pytest.raises(UsageError, match="is 2, expected 1; use --batch-size"):
        make_accelerator("cpu", "no")


def test_a_local_rank_of_several_processes_that_is_no_number_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29512"}
    for name, value in {**world, "LOCAL_RANK": "y"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=r"'y'; .*LOCAL_RANK, MASTER_ADDR, MASTER_PORT, RANK"):
        make_accelerator("cpu", "no")
