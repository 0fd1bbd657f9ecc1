"""Weights as the authors publish them, scored on published features as their code does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from mstemba.data_manifests.datasets import load_dataset
from mstemba.data_manifests.manifest import Action, Manifest, Video, manifest_json
from mstemba.errors import CheckpointError, UsageError
from mstemba.model.config import ModelConfig
from mstemba.model.mstemba import MSTemba
from mstemba.pipeline.checkpoint import open_released, score
from mstemba.pipeline.dataset.labels import label_matrix
from mstemba.pipeline.evaluate.frame_metrics import average_precision, mean_average_precision
from mstemba.pipeline.evaluate.inputs import InputLoader
from mstemba.pipeline.evaluate.stage import evaluate
from mstemba.pipeline.features.npy_folder import NpyFolder
from mstemba.pipeline.features.row_times import even_rows
from mstemba.pipeline.options import EvaluateOptions, TrainOptions, TrainRunOptions
from mstemba.pipeline.progress import Event, ignore_events
from mstemba.pipeline.train.stage import train
from mstemba.records import FeatureSpec

WIDTH, LENGTH = 4, 256  # of a feature row; of a clip of Charades in the paper
CLASSES = load_dataset("charades").classes
TINY = ModelConfig(
    WIDTH, len(CLASSES), widths=(8, 8, 8), state=2, split="contiguous", padding="released"
)
ACTIONS = (Action(3, 1.0, 4.0), Action(90, 0.5, 9.0), Action(3, 8.5, 9.9))
VIDEOS = {
    "short": Video("short", None, "testing", 10.0, ACTIONS),
    "long": Video("long", None, "testing", 10.0, ACTIONS),
}
ROWS = {"short": 45, "long": 301}


@pytest.fixture
def model() -> MSTemba:
    torch.manual_seed(0)
    return MSTemba(TINY).eval()


@pytest.fixture
def folder(tmp_path: Path, model: MSTemba) -> Path:
    """Manifest, features, and the weights alone in a file, as from torch.save."""
    (tmp_path / "npy").mkdir()
    for number, (id, rows) in enumerate(ROWS.items()):
        values = np.random.default_rng(number).normal(size=(rows, 1, 1, WIDTH))
        np.save(tmp_path / "npy" / f"{id}.npy", values.astype(np.float32))
    manifest = Manifest("charades", CLASSES, "seconds", VIDEOS)
    (tmp_path / "manifest.json").write_text(manifest_json(manifest, tmp_path))
    torch.save(model.state_dict(), tmp_path / "best_model.pth")
    return tmp_path


def options(folder: Path, **more: Any) -> EvaluateOptions:
    names = {"manifest": "manifest.json", "features": "npy", "checkpoint": "best_model.pth"}
    paths = {option: str(folder / name) for option, name in names.items()}
    return EvaluateOptions(**{**paths, "device": "cpu", **more})


def test_videos_are_padded_and_cut_as_in_the_released_code(folder: Path, model: MSTemba) -> None:
    found = evaluate(options(folder, released=True), metrics=("frame",))
    scores, labels = [], []
    for id, rows in ROWS.items():
        padded = torch.zeros(1, LENGTH, WIDTH)
        values = torch.from_numpy(NpyFolder(folder / "npy").values(id))[:LENGTH]
        padded[0, : len(values)] = values
        with torch.inference_mode():
            scores.append(model(padded).logits[0, : len(values)].sigmoid().numpy())
        grid = even_rows(10.0, rows)
        labels.append(label_matrix(ACTIONS, grid, len(CLASSES))[:LENGTH])
    truth = np.concatenate(labels)
    expected = mean_average_precision(
        average_precision(np.concatenate(scores), truth), truth.sum(axis=0)
    )
    assert found.rows == 45 + LENGTH
    assert found.map == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("version", ["v1", "v3"])
def test_the_authors_weights_give_the_authors_scores(shared: Path, version: str) -> None:
    golden = shared / "golden"
    cases = safetensors.torch.load_file(golden / f"mstemba_{version}_tiny_cases.safetensors")
    spec = FeatureSpec.unknown(24)
    classes = tuple(f"class {i}" for i in range(9))
    lengths = [int(name[1:-2]) for name in cases if name.startswith("T") and name.endswith(".x")]
    assert len(lengths) >= 3
    for length in lengths:
        weights = golden / f"mstemba_{version}_tiny_weights.safetensors"
        network = open_released(weights, classes, spec, length).load("cpu")
        x, logits = cases[f"T{length}.x"], cases[f"T{length}.logits"]
        for features, expected in zip(x.transpose(1, 2).numpy(), logits, strict=True):
            made = score(network, features, length)
            assert np.abs(made - expected.sigmoid().numpy()).max() < 1e-4


def test_weights_that_do_not_fit_are_refused(folder: Path) -> None:
    spec = NpyFolder(folder / "npy").spec
    weights = folder / "best_model.pth"
    with pytest.raises(CheckpointError, match=r"made for 157 classes, .* have 3"):
        open_released(weights, ("a", "b", "c"), spec, LENGTH)
    with pytest.raises(CheckpointError, match=r"made for 4 features a row, .* have 5"):
        open_released(weights, CLASSES, replace(spec, width=5), LENGTH)
    with pytest.raises(CheckpointError, match="a folder, expected a file of released weights"):
        open_released(folder, CLASSES, spec, LENGTH)


def test_a_dataset_without_a_published_clip_length_is_refused(folder: Path) -> None:
    text = (folder / "manifest.json").read_text().replace('"charades"', '"mine"')
    (folder / "manifest.json").write_text(text)
    with pytest.raises(UsageError, match="for the dataset 'mine'"):
        evaluate(options(folder, released=True))


def test_a_cut_video_ends_with_its_last_scored_row(folder: Path) -> None:
    scored = InputLoader(options(folder, released=True), None, ignore_events).load_scores()
    short, long = scored.videos
    assert (short.id, short.duration, short.grid.count) == ("short", 10.0, 45)
    assert (long.id, long.grid.count) == ("long", LENGTH)
    assert long.duration == pytest.approx(10.0 * LENGTH / 301)
    assert long.labels.shape == long.scores.shape == (LENGTH, len(CLASSES))
    assert np.array_equal(long.labels, label_matrix(ACTIONS, long.grid, len(CLASSES)))


@pytest.mark.parametrize(("until", "rows"), [(2.0, 60), (8.0, 240), (9.5, LENGTH)])
def test_a_cut_video_may_be_annotated_up_to_a_time(folder: Path, until: float, rows: int) -> None:
    videos = {id: replace(v, annotated_until=until) for id, v in VIDEOS.items() if id == "long"}
    manifest = Manifest("charades", CLASSES, "seconds", videos)
    (folder / "manifest.json").write_text(manifest_json(manifest, folder))
    (long,) = InputLoader(options(folder, released=True), None, ignore_events).load_scores().videos
    assert long.labels.shape == long.scores.shape == (rows, len(CLASSES))
    assert long.duration == pytest.approx(10.0 * rows / 301)


def test_released_needs_a_checkpoint(folder: Path) -> None:
    with pytest.raises(UsageError, match="--released requires --checkpoint"):
        evaluate(options(folder, released=True, checkpoint=None))


def test_without_the_option_bare_weights_are_refused(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds only weights; .*--released"):
        evaluate(options(folder))


def test_training_and_evaluation_run_on_published_features_alone(folder: Path) -> None:
    videos = {id: replace(v, subset="training") for id, v in VIDEOS.items()}
    manifest = folder / "own.json"
    manifest.write_text(manifest_json(Manifest("own", CLASSES, "seconds", videos), folder))
    short = TrainOptions(epochs=1, min_steps=2, width=0.05)
    here = TrainRunOptions(trackers="none", device="cpu")
    result = train(short, here, manifest=manifest, features=folder / "npy", output=folder / "run")
    said: list[Event] = []
    found = evaluate(options(folder, checkpoint=str(result.run)), on_event=said.append)
    warnings = [event.message for event in said if event.warning]
    assert len(warnings) == 2
    # Any other folder of that width would do as well.
    assert f"only the width, {WIDTH}, could be compared" in warnings[0]
    assert "trained on 2 of 2 videos" in warnings[1]  # although they are testing videos by now
    assert found.rows == sum(ROWS.values())
    assert found.videos == 2
