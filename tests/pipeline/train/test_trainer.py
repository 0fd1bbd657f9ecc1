"""Training to be left alone: shares of a batch, schedules, resuming, stopping, divergence."""

from __future__ import annotations

import hashlib
import json
import math
import re
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mstemba.errors import MstembaError, UsageError
from mstemba.model.losses import BatchTotals, center_heatmap, detection_loss
from mstemba.model.output import Output
from mstemba.pipeline.dataset.clips import Clip, load_clips
from mstemba.pipeline.evaluate.stage import evaluate
from mstemba.pipeline.features.npy_folder import NpyFolder
from mstemba.pipeline.options import EvaluateOptions, TrainOptions
from mstemba.pipeline.progress import Event
from mstemba.pipeline.train.sampling import make_batch, random_crops
from mstemba.pipeline.train.schedules import cosine_rate, released_rate
from mstemba.pipeline.train.state import TrainerState, load_state, save_state, saved_step
from mstemba.pipeline.workspace import open_workspace
from tests.training import TINY, KilledError, fit, kill_at, make_workspace, records

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

    def loss(part: slice, whole: BatchTotals | None) -> torch.Tensor:
        out = Output(logits[0, part], [logits[1, part]], apart[part].mean(), logits[1, part])
        terms = detection_loss(out, labels[part], mask[part], totals=whole)
        assert terms.heatmap is not None
        return torch.stack(
            [terms.total, terms.final, *terms.auxiliary, terms.consistency, terms.heatmap]
        )

    whole = BatchTotals(3, int(mask.sum()), int(center_heatmap(labels, mask)[1].sum()))
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


@pytest.mark.parametrize(
    "options",
    [{"min_steps": 12}, {**RELEASED, "epochs": 5}, {"patience": 3, "lr": 1e-12, "min_steps": 12}],
    ids=["cosine", "released", "patience"],
)
def test_a_resumed_run_ends_as_if_it_had_not_stopped(
    options: dict[str, Any], tmp_path: Path
) -> None:
    undisturbed, killed = (make_workspace(tmp_path / name) for name in ("a", "b"))
    _check_resumed(undisturbed, killed, 6, 4, options)


def test_a_state_is_written_between_two_checks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Five steps are an epoch, after which mAP is measured; steps are logged more often.
    monkeypatch.setattr("mstemba.pipeline.train.trainer.LOG_EVERY", 2)
    undisturbed, killed = (make_workspace(tmp_path / name) for name in ("a", "b"))
    _check_resumed(undisturbed, killed, 8, 6, {"batch_size": 1, "min_steps": 12})
    (run,) = (undisturbed / "runs").glob("mstemba-*")
    lines = [json.loads(line) for line in _lines(run)]
    assert [line["step"] for line in lines if "val_map" in line] == [5, 10, 12]
    assert [line["step"] for line in lines if "loss" in line] == [2, 4, 5, 6, 8, 10, 12]


def test_no_state_is_written_before_its_time(workspace: Path) -> None:
    with pytest.raises(KilledError):
        fit(workspace, on_event=kill_at(6), checkpoint_seconds=3600.0)
    assert not list((workspace / "runs").glob("*/state*"))


def test_a_state_is_read_by_a_process_that_calls_its_device_cpu_0(tmp_path: Path) -> None:
    # As the processes of a distributed run without GPUs do; safetensors does not know the name.
    def parts() -> tuple[torch.nn.Module, torch.nn.Module, torch.optim.Optimizer]:
        model, average = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
        return model, average, torch.optim.AdamW(model.parameters())

    saved, loaded = parts(), parts()
    saved[0](torch.ones(3)).sum().backward()
    saved[2].step()
    state = TrainerState(7, 41.5, 2, 0.25)
    path = tmp_path / "state.safetensors"
    save_state(path, "key", state, *saved)
    assert load_state(path, "key", *loaded, torch.device("cpu", 0)) == state
    for old, new in zip(saved[:2], loaded[:2], strict=True):
        torch.testing.assert_close(new.state_dict(), old.state_dict(), rtol=0, atol=0)
    moments = (saved[2].state[saved[0].weight], loaded[2].state[loaded[0].weight])
    assert torch.equal(moments[0]["exp_avg_sq"], moments[1]["exp_avg_sq"])
    assert (saved_step(path), saved_step(tmp_path / "none")) == (7, None)
    with pytest.raises(UsageError, match="belongs to another run"):
        load_state(path, "other", *loaded, torch.device("cpu"))


def test_a_damaged_state_is_refused_and_says_what_to_do(workspace: Path) -> None:
    with pytest.raises(KilledError):
        fit(workspace, on_event=kill_at(4))
    state = next((workspace / "runs").glob("*/state.safetensors"))
    content = bytearray(state.read_bytes())
    content[-3] ^= 4
    state.write_bytes(content)
    with pytest.raises(UsageError, match=r"damaged.*delete it to start the training again"):
        fit(workspace)


def test_a_fused_optimiser_is_resumed_with_its_counters_on_the_device(tmp_path: Path) -> None:
    # No tensor of this device holds data, but where the counters are is as on a GPU.
    model, average = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(3)).sum().backward()
    optimizer.step()
    path = tmp_path / "state.safetensors"
    save_state(path, "key", TrainerState(step=1), model, average, optimizer)
    for fused, expected in ((True, "meta"), (None, "cpu")):
        model = torch.nn.Linear(3, 2, device="meta")
        optimizer = torch.optim.AdamW(model.parameters(), fused=fused)
        load_state(path, "key", model, average, optimizer, torch.device("cpu"))
        assert {state["step"].device.type for state in optimizer.state.values()} == {expected}


def _check_resumed(
    undisturbed: Path, killed: Path, step: int, resumed: int, options: dict[str, Any]
) -> None:
    """Train twice, once killed at a step before its state is saved, to the same result."""
    expected = fit(undisturbed, **options)
    with pytest.raises(KilledError):
        fit(killed, on_event=kill_at(step), **options)
    news: list[str] = []
    found = fit(killed, on_event=lambda event: news.append(event.message), **options)
    assert any(message.startswith(f"resuming from step {resumed} ") for message in news)
    assert (found.score, found.steps) == (expected.score, expected.steps)
    for name in ("metrics.jsonl", "last/model.safetensors", "best/model.safetensors"):
        assert (found.run / name).read_bytes() == (expected.run / name).read_bytes(), name


# Subsets


def mark(workspace: Path, *subsets: str | None) -> None:
    """Give the videos of a workspace these subsets."""
    path = workspace / "manifest.json"
    content = json.loads(path.read_text())
    for entry, subset in zip(content["videos"].values(), subsets, strict=True):
        entry["subset"] = subset
    path.write_text(json.dumps(content))


def test_without_training_videos_the_message_says_how_to_mark_them(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w", validation=())
    mark(workspace, "test", "fold 1", "fold 1", None, "none")
    found = "1 testing, 2 fold 1, 2 without a subset"
    with pytest.raises(UsageError, match=f"`training`.*{found}.*column `subset`.*`mstemba init`"):
        fit(workspace)


def test_unknown_subsets_are_told_of(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w", validation=())
    mark(workspace, "trn", "train", "fold 1", "fold 1", "dev")
    news: list[str] = []
    fit(workspace, on_event=lambda event: news.append(event.message), max_steps=1)
    assert "subsets other than training, validation, testing are not used: 2 fold 1" in news


@pytest.mark.parametrize(
    ("subset", "said"),
    [("testing", "trained on 1 of 2 videos"), ("training", "trained on 2 of 2 videos"),
     ("validation", None)],
)  # fmt: skip
def test_measuring_on_videos_of_the_training_is_told_also_under_another_name(
    subset: str, said: str | None, tmp_path: Path
) -> None:
    workspace = make_workspace(tmp_path / "w", validation=())
    mark(workspace, "train", "train", "train", "test", "fold 1")
    fit(workspace, max_steps=1)
    mark(workspace, "train", "train", "test", "test", "val")
    news: list[Event] = []
    options = EvaluateOptions(subset=subset, features=workspace / "npy", device="cpu")
    evaluate(options, workspace=workspace, metrics=["frame"], on_event=news.append)
    warnings = [event.message for event in news if event.warning and "trained on" in event.message]
    assert [line.split("the checkpoint was ")[1].split(":")[0] for line in warnings] == (
        [said] if said else []
    )


# Steps


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"epochs": 2}, "5 training videos, 2 validation videos; 10 steps of 1 clip (2 epochs)"),
        ({"epochs": 1, "min_steps": 6}, "(--min-steps 6 instead of the 5 steps of --epochs 1)"),
        ({"epochs": 3, "max_steps": 7}, "(--max-steps 7 instead of the 15 steps of --epochs 3)"),
        (
            {"epochs": 1, "min_steps": 9, "max_steps": 7},
            "(--min-steps 9 and --max-steps 7 instead of the 5 steps of --epochs 1)",
        ),
    ],
)
def test_what_decides_the_number_of_steps_is_told(
    options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    workspace, news = make_workspace(tmp_path / "w"), list[str]()
    given = {"min_steps": 1, "batch_size": 1, **options}
    result = fit(workspace, on_event=lambda event: news.append(event.message), **given)
    (line,) = [line for line in news if said in line]
    assert f"; {result.steps} steps of 1 clip" in line
    again = list[str]()
    fit(workspace, on_event=lambda event: again.append(event.message), **given)
    assert line not in again  # a finished run takes no step


# Without validation


@pytest.mark.parametrize(
    ("validation", "options", "says"),
    [
        ((19, 26), {}, r"of the 2 videos in the subset `validation` falls into .*\(not used\)"),
        ((), {"val_fraction": 0.4}, r"of the 2 videos held out .*\(used for training"),
        ((), {"val_fraction": 0.0}, "no videos are held out .* because of --val-fraction 0"),
        ((), {}, r"too few training videos \(5\) to hold some out"),
    ],
)
def test_why_there_is_no_validation_and_what_becomes_of_its_videos(
    validation: tuple[int, ...], options: dict[str, Any], says: str, tmp_path: Path
) -> None:
    # The videos that would be held out, and those marked as validation, have no action.
    ids = [f"v{i}" for i in range(5)]
    held_out = sorted(ids, key=lambda id: hashlib.sha256(id.encode()).hexdigest())[:2]
    idle = ["v5", "v6"] if validation else held_out
    workspace = make_workspace(tmp_path / "w", validation, idle=idle)
    news: list[Event] = []
    # One epoch of batches of one video: as many steps as videos are trained on.
    result = fit(workspace, on_event=news.append, batch_size=1, min_steps=1, **options)
    assert (result.steps, result.checkpoint, result.score) == (5, "last", None)
    (remark,) = [e.message for e in news if e.warning and "averaged weights" in e.message]
    assert re.search(f"{says}.*: the last averaged weights are kept", remark)


def test_held_out_videos_with_an_action_are_not_trained_on(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w", ())
    result = fit(workspace, val_fraction=0.4, batch_size=1, min_steps=1)
    assert (result.steps, result.checkpoint) == (3, "best")


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
    assert fit(workspace, patience=1, on_event=news.append).steps == TINY["min_steps"]
    assert any("--patience has no effect" in event.message for event in news if event.warning)


# Divergence


def test_divergence_names_the_step_and_the_cause(workspace: Path) -> None:
    with pytest.raises(MstembaError, match="training diverged at step 2: the loss is") as caught:
        fit(workspace, lr=1e30, warmup=0.0)
    assert caught.value.exit_code == 1
    assert "the features of that step are finite" in str(caught.value)
    assert "learning rate was 1.0e+30" in str(caught.value)
    (run,) = (workspace / "runs").glob("mstemba-*")
    assert f"last saved weights are in {run}" in str(caught.value)
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
        def log(self, data: dict[str, float], step: int | None = None) -> None:
            seen["rows"].append((step, data))

        def finish(self, exit_code: int | None = None) -> None:
            seen["exit_code"] = exit_code

    def init(
        *, project: str, name: str, id: str, resume: str, dir: Path, config: Any, settings: Any
    ) -> Run:
        seen.update(name=name, id=id, resume=resume, dir=dir, config=config)
        return Run()

    def settings(*, silent: bool) -> dict[str, bool]:
        return {"silent": silent}

    fake = types.SimpleNamespace(init=init, Settings=settings)
    fake.__spec__ = object()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", fake)  # type: ignore[arg-type]
    run = fit(workspace, trackers="wandb").run
    assert (seen["name"], seen["dir"], seen["resume"]) == (run.name, run, "allow")
    assert seen["config"]["min_steps"] == TINY["min_steps"]
    assert [v["loss"] for _, v in seen["rows"] if "loss" in v] == records(run, "loss")
    assert [step for step, _ in seen["rows"]] == [2, 2, 4, 4, 6, 6]
    assert seen["exit_code"] == 0
    # The same run in another folder is another record.
    first = seen["id"]
    fit(workspace, trackers="wandb", output=workspace / "a second: try")
    assert (first[:16], seen["id"][16:]) == (seen["id"][:16], "-a-second--try")
    assert first[16:] == f"-{run.name}"


def test_the_real_wandb_works_without_a_network(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="the optional package wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = fit(workspace, trackers="tensorboard,wandb").run
    assert list((run / "wandb").glob(f"offline-run-*-{run.name}/*.wandb"))
    assert fit(workspace, trackers="tensorboard,wandb").cached  # wandb/ is no foreign file
