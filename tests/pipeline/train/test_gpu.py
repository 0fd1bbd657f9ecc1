"""Training and scoring on a GPU: as on a CPU, without waiting, and resumed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mstemba.errors import MstembaError
from mstemba.model.architectures import build, make_config
from mstemba.model.mstemba import MSTemba
from mstemba.pipeline.checkpoint import score
from tests.training import KilledError, fit, kill_at, make_workspace, records

pytestmark = pytest.mark.gpu

ARCHITECTURES = ["mstemba", "mstemba-v3"]


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    return make_workspace(tmp_path / "w")


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_scores_are_those_of_the_cpu(arch: str) -> None:
    torch.manual_seed(0)
    network = build(make_config(arch, 64, 9)).eval()
    with torch.no_grad():
        network.head.weight.mul_(50)  # otherwise every probability is near the untrained one
    features = np.random.default_rng(0).normal(size=(701, 64)).astype(np.float32)
    expected = score(network, features)
    assert expected.std() > 0.1
    np.testing.assert_allclose(score(network.cuda(), features), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_losses_are_those_of_the_cpu(arch: str, workspace: Path) -> None:
    runs = [
        fit(workspace, arch=arch, device=device, precision="no", output=workspace / device).run
        for device in ("cpu", "cuda")
    ]
    expected, found = (records(run, "loss") for run in runs)
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_run_in_bf16_is_resumed(arch: str, workspace: Path) -> None:
    options = {"arch": arch, "device": "cuda", "precision": "bf16", "min_steps": 20}
    whole = fit(workspace, output=workspace / "whole", **options)
    with pytest.raises(KilledError):
        fit(workspace, output=workspace / "killed", on_event=kill_at(12), **options)
    news: list[str] = []
    killed = fit(
        workspace,
        output=workspace / "killed",
        on_event=lambda event: news.append(event.message),
        **options,
    )
    assert "resuming from step 10 of 20" in news
    in_float32 = fit(workspace, arch=arch, min_steps=20, output=workspace / "cpu")
    assert records(whole.run, "loss") == pytest.approx(records(in_float32.run, "loss"), rel=0.02)
    assert records(killed.run, "loss") == pytest.approx(records(whole.run, "loss"), rel=1e-3)
    for name in ("last", "best"):
        expected, found = (
            load_file(run.run / name / "model.safetensors") for run in (whole, killed)
        )
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=1e-2, atol=1e-4)


@pytest.fixture
def waiting_allowed_afterwards() -> Iterator[None]:
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize(("batch_size", "epoch"), [(1, 5), (2, 3)], ids=["whole", "padded"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.usefixtures("waiting_allowed_afterwards")
def test_no_step_waits_for_the_gpu(
    arch: str,
    batch_size: int,
    epoch: int,
    precision: str,
    workspace: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    forward, steps = MSTemba.forward, []

    def checked(self: MSTemba, *args: Any, **options: Any) -> Any:
        if self.training:
            steps.append(len(steps) + 1)
            # After an epoch numbers are read and mAP is measured; the first one compiles kernels.
            waits = steps[-1] % epoch == 0 or steps[-1] < epoch
            torch.cuda.set_sync_debug_mode("default" if waits else "error")
        return forward(self, *args, **options)

    monkeypatch.setattr(MSTemba, "forward", checked)
    fit(
        workspace,
        arch=arch,
        device="cuda",
        precision=precision,
        batch_size=batch_size,
        min_steps=3 * epoch,
        dropout=0.1,
        drop_path=0.1,
    )
    assert len(steps) == 3 * epoch


def test_memory_that_is_too_small_is_told(workspace: Path) -> None:
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.0)
    try:
        with pytest.raises(MstembaError, match="cuda does not have enough memory to train"):
            fit(workspace, device="cuda", width=1.0)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
