"""Training to be left alone: shares of a batch, schedules, resuming, stopping, divergence."""

from __future__ import annotations

import json
import math
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mstemba.errors import MstembaError, UsageError
from mstemba.model.losses import Whole, center_heatmap, detection_loss
from mstemba.model.output import Output
from mstemba.pipeline.dataset import Clip, load_clips
from mstemba.pipeline.features import NpyFolder
from mstemba.pipeline.options import TrainOptions
from mstemba.pipeline.progress import Event
from mstemba.pipeline.sampling import make_batch, random_crops
from mstemba.pipeline.schedules import cosine_rate, released_rate
from mstemba.pipeline.workspace import open_workspace
from tests.training import TINY, fit, make_workspace, records

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    return make_workspace(tmp_path / "w")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Clip]:
    from mstemba.data_manifests.manifest import load_manifest

    folder = make_workspace(tmp_path_factory.mktemp("clips") / "w")
    manifest = load_manifest(open_workspace(folder).manifest)
    return load_clips(NpyFolder(folder / "npy"), manifest, manifest.subset("training"))


# A batch shared out


@given(step=st.integers(0, 50), size=st.integers(1, 5), data=st.data())
def test_the_parts_of_a_batch_are_the_batch(
    clips: list[Clip], step: int, size: int, data: st.DataObject
) -> None:
    parts = data.draw(st.integers(1, size))
    crops = random_crops(clips, step, size, 24, 0.3, seed=1)
    whole = make_batch(crops)
    rows = []
    for part in range(parts):
        batch = make_batch(crops, part, parts)
        assert len(batch.mask) >= 1
        assert (batch.clips, batch.rows, batch.actions) == (size, whole.rows, whole.actions)
        rows += [
            (batch.features[i, batch.mask[i]], batch.labels[i, batch.mask[i]])
            for i in range(len(batch.mask))
        ]
    assert whole.clips == len(rows) == size
    assert whole.rows == whole.mask.sum()
    labels, mask = torch.from_numpy(whole.labels), torch.from_numpy(whole.mask)
    assert whole.actions == center_heatmap(labels, mask)[1].sum()
    for i, (features, truth) in enumerate(rows):
        assert np.array_equal(features, whole.features[i, whole.mask[i]])
        assert np.array_equal(truth, whole.labels[i, whole.mask[i]])


def test_shares_of_the_loss_add_up_to_the_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 7, 4, generator=generator)
    labels = (torch.rand(3, 7, 4, generator=generator) < 0.4).float()
    mask = torch.arange(7) < torch.tensor([[7], [3], [5]])
    labels = labels * mask[..., None]
    apart = torch.rand(3, generator=generator)  # each clip's inconsistency

    def loss(part: slice, whole: Whole | None) -> torch.Tensor:
        out = Output(logits[0, part], [logits[1, part]], apart[part].mean(), logits[1, part])
        terms = detection_loss(out, labels[part], mask[part], whole=whole)
        assert terms.heatmap is not None
        return torch.stack(
            [terms.total, terms.final, *terms.auxiliary, terms.consistency, terms.heatmap]
        )

    whole = Whole(3, int(mask.sum()), int(center_heatmap(labels, mask)[1].sum()))
    shares = loss(slice(0, 2), whole) + loss(slice(2, 3), whole)
    torch.testing.assert_close(shares, loss(slice(None), None))
    torch.testing.assert_close(loss(slice(None), whole), loss(slice(None), None), rtol=0, atol=0)


# Learning rates

RATES = TrainOptions(epochs=50, lr=5e-4, warmup=0.1, warmup_lr=1e-6, min_lr=1e-5)


@pytest.mark.parametrize(
    ("loss", "rate"),
    [
        (None, 1e-6),
        (0.0, 1e-6),
        (2.5, 1e-6 + 0.5 * (5e-4 - 1e-6)),
        (5.0, 1e-5 + 0.5 * (5e-4 - 1e-5) * (1 + math.cos(0.1 * math.pi))),
        (25.0, 1e-5 + 0.5 * (5e-4 - 1e-5)),
        (50.0, 1e-5),
        (400.0, 1e-5),
    ],
)
def test_the_released_schedule_follows_the_validation_loss(loss: float, rate: float) -> None:
    # timm's CosineLRScheduler at t = loss: warmup_t=5, t_initial=50, no restart.
    assert released_rate(RATES, loss) == pytest.approx(rate)


def test_the_cosine_rises_to_the_peak_and_falls_to_the_floor() -> None:
    rates = [cosine_rate(RATES, step, 200) for step in range(201)]
    assert rates[0] == pytest.approx(1e-6 + (5e-4 - 1e-6) / 20)
    assert rates[:20] == sorted(rates[:20])
    assert rates[19] == rates[20] == 5e-4
    assert rates[20:] == sorted(rates[20:], reverse=True)
    assert rates[200] == pytest.approx(1e-5)


RELEASED: dict[str, Any] = {
    "schedule": "released", "epochs": 6, "min_steps": 1, "warmup": 0.2, "warmup_lr": 1e-6,
    "min_lr": 1e-5, "auxiliary_weight": 0.3, "consistency_weight": 100.0, "arch": "mstemba-v3",
}  # fmt: skip


def test_a_run_by_the_released_schedule_changes_its_rate_with_the_epoch(workspace: Path) -> None:
    rates = records(fit(workspace, **RELEASED).run, "lr")  # one an epoch: mAP is checked there
    assert rates[0] == 1e-6
    assert all(1e-6 < rate <= 5e-4 for rate in rates[1:])
    # So great a loss is far beyond six epochs: the rate is stuck at its floor.
    high = fit(workspace, **{**RELEASED, "consistency_weight": 1e6})
    assert records(high.run, "lr")[1:] == [1e-5] * 5


def test_the_released_schedule_needs_validation_videos(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w", validation=())
    with pytest.raises(UsageError, match="--schedule released"):
        fit(workspace, **RELEASED)


# Resuming


class _KilledError(Exception):
    pass


def _kill_at(step: int) -> Callable[[Event], None]:
    def listen(event: Event) -> None:
        if event.total and event.done == step:
            raise _KilledError

    return listen


@pytest.mark.parametrize(
    "options",
    [{"min_steps": 12}, {**RELEASED, "epochs": 5}, {"patience": 3, "lr": 1e-12, "min_steps": 12}],
    ids=["cosine", "released", "patience"],
)
def test_a_resumed_run_ends_as_if_it_had_not_stopped(
    options: dict[str, Any], tmp_path: Path
) -> None:
    undisturbed, killed = (make_workspace(tmp_path / name) for name in ("a", "b"))
    expected = fit(undisturbed, **options)
    with pytest.raises(_KilledError):
        fit(killed, listen=_kill_at(6), **options)
    news: list[str] = []
    found = fit(killed, listen=lambda event: news.append(event.message), **options)
    assert any(message.startswith("going on from step 4 ") for message in news)
    assert (found.score, found.steps) == (expected.score, expected.steps)
    for name in ("metrics.jsonl", "last/model.safetensors", "best/model.safetensors"):
        assert (found.run / name).read_bytes() == (expected.run / name).read_bytes(), name


# Early stopping


def test_patience_ends_a_run_that_no_longer_improves(workspace: Path) -> None:
    # The weights do not move: the first check is the best for good. One check is two steps.
    result = fit(workspace, patience=2, lr=1e-12, min_steps=40)
    done = json.loads((result.run / "done.json").read_text())
    assert result.steps == done["steps"] == 6
    assert (done["planned_steps"], done["stopped"]) == (40, "patience")
    assert len(records(result.run, "val_map")) == 3
    assert fit(workspace, patience=2, lr=1e-12, min_steps=40).cached


def test_without_patience_it_goes_on(workspace: Path) -> None:
    result = fit(workspace, lr=1e-12, min_steps=10)
    done = json.loads((result.run / "done.json").read_text())
    assert (result.steps, done["planned_steps"], done["stopped"]) == (10, 10, "end")


def test_patience_without_validation_videos_is_told_to_do_nothing(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w", validation=())
    news: list[Event] = []
    assert fit(workspace, patience=1, listen=news.append).steps == TINY["min_steps"]
    assert any("--patience has no effect" in event.message for event in news if event.warning)


# Divergence


def test_divergence_names_the_step_and_the_cause(workspace: Path) -> None:
    with pytest.raises(MstembaError, match="training diverged at step 2: the loss is") as caught:
        fit(workspace, lr=1e30, warmup=0.0)
    assert caught.value.exit_code == 1
    assert "the features of that step are finite" in str(caught.value)
    assert "learning rate was 1.0e+30" in str(caught.value)
    (run,) = (workspace / "runs").glob("mstemba-*")
    assert f"saved before is in {run}" in str(caught.value)
    assert (run / "last" / "config.json").is_file()
    assert not (run / "done.json").exists()


def test_the_first_bad_step_is_told_though_seen_later_and_what_was_saved_stays(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate import Accelerator

    clip, calls = Accelerator.clip_grad_norm_, []

    def third_is_infinite(self: Accelerator, *args: Any) -> torch.Tensor:
        calls.append(1)
        norm = clip(self, *args)
        assert norm is not None
        return norm * (math.inf if len(calls) == 3 else 1.0)

    monkeypatch.setattr(Accelerator, "clip_grad_norm_", third_is_infinite)
    with pytest.raises(MstembaError, match="diverged at step 3: the gradient is not finite"):
        fit(workspace)
    assert len(calls) == 4
    (run,) = (workspace / "runs").glob("mstemba-*")
    assert (run / "best" / "model.safetensors").is_file()  # of the check at step 2
    assert [line["step"] for line in map(json.loads, _lines(run))] == [2, 2]


@pytest.mark.parametrize(("bad", "says"), [("v3", "training stopped at step"), ("v5", "video")])
def test_features_that_are_not_finite_are_named(
    bad: str, says: str, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = NpyFolder.values

    def values(self: NpyFolder, id: str) -> Any:
        found = np.array(read(self, id))
        if id == bad:
            found[1:] = np.nan
        return found

    monkeypatch.setattr(NpyFolder, "values", values)
    with pytest.raises(MstembaError, match=f"{says}.*'{bad}'") as caught:
        fit(workspace)
    assert caught.value.exit_code == 1


def _lines(run: Path) -> list[str]:
    return (run / "metrics.jsonl").read_text().splitlines()


# Trackers


def test_tensorboard_and_none(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = fit(make_workspace(tmp_path / "a"), trackers="tensorboard").run
    board = EventAccumulator(str(run / "tensorboard")).Reload()
    losses = [event.value for event in board.Scalars("loss")]
    assert losses == pytest.approx(records(run, "loss"))
    assert not (fit(make_workspace(tmp_path / "b")).run / "tensorboard").exists()


def test_a_missing_tracker_is_told_before_anything_is_trained(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"wandb is not installed; pip install 'mstemba\[wandb\]'"):
        fit(workspace, trackers="wandb")
    assert not (workspace / "runs").exists()


def test_wandb_gets_the_options_and_every_number(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A stand-in with the calls that are used; the real one is below.
    seen: dict[str, Any] = {"rows": []}

    class Run:
        def log(self, values: dict[str, float], step: int) -> None:
            seen["rows"].append((step, values))

        def finish(self, exit_code: int) -> None:
            seen["exit_code"] = exit_code

    def init(**arguments: Any) -> Run:
        seen.update(arguments)
        return Run()

    fake = types.SimpleNamespace(init=init, Settings=lambda **arguments: arguments)
    fake.__spec__ = object()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", fake)  # type: ignore[arg-type]
    run = fit(workspace, trackers="wandb").run
    assert seen["name"] == run.name
    assert seen["config"]["min_steps"] == TINY["min_steps"]
    assert [v["loss"] for _, v in seen["rows"] if "loss" in v] == records(run, "loss")
    assert [step for step, _ in seen["rows"]] == [2, 2, 4, 4, 6, 6]
    assert seen["exit_code"] == 0


def test_the_real_wandb_works_without_a_network(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="the optional package wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = fit(workspace, trackers="tensorboard,wandb").run
    assert list((run / "wandb").glob("offline-run-*/*.wandb"))
    assert fit(workspace, trackers="tensorboard,wandb").cached  # wandb/ is no foreign file
