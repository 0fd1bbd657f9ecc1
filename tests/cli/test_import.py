"""Published features: into a workspace, through training, and from there to a raw video."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from mstemba.pipeline.features.store import FeatureStore
from tests.cli.conftest import contents, current_store, entries, film
from tests.command_line import Runner

TRAIN = ("train", "--epochs", "1", "--min-steps", "4", "--width", "0.1")


def published(workspace: Path) -> Path:
    """The features of the workspace as someone would publish them, and nothing else of them."""
    store = FeatureStore.open(current_store(workspace))
    folder = workspace / "published"
    folder.mkdir()
    for id in entries(store.root):
        values = store.read(id).values.astype(np.float16)
        np.save(folder / f"{id}.npy", values[:, None, None, :])
    return folder


def test_a_network_trained_on_imported_features_detects_in_raw_videos(
    untrained: Path, mstemba: Runner
) -> None:
    published(untrained)
    (untrained / "features" / "current").unlink()
    options = ("--backbone", "efficientnet-lite0", "--window", "4", "--stride", "4", "--store")
    said = mstemba("import", "published", *options, "features/own.zarr", cwd=untrained).stdout
    assert "features/own.zarr: 3 imported, 0 cached, 0 failed, 24 rows" in said
    mstemba(*TRAIN, cwd=untrained)
    mstemba("evaluate", cwd=untrained)
    film(untrained / "new.mp4", 3, 30)
    mstemba("detect", "new.mp4", "--threshold", "0.01", cwd=untrained)
    found = json.loads((untrained / "detections" / "new.json").read_text())
    assert found["segments"]


def test_extract_leaves_imported_features_alone(untrained: Path, mstemba: Runner) -> None:
    published(untrained)
    options = ("--backbone", "efficientnet-lite0", "--window", "4", "--stride", "4")
    store = ("--store", "features/own.zarr")
    mstemba("import", "published", *options, *store, cwd=untrained)
    before = contents(untrained / "features" / "own.zarr")
    said = mstemba("extract", *options, *store, cwd=untrained).stdout
    assert "0 extracted, 3 cached" in said
    assert contents(untrained / "features" / "own.zarr") == before
    states = json.loads(mstemba("status", "--json", "-", cwd=untrained).stdout)["videos"]
    own = [video["state"] for video in states if video["store"] == "own.zarr"]
    assert own == ["done"] * 3


def test_a_workspace_needs_no_video(untrained: Path, tmp_path: Path, mstemba: Runner) -> None:
    published(untrained)
    labels, features = untrained / "labels.json", untrained / "published"
    (features / "v2.npy").unlink()
    np.save(features / "stranger.npy", np.zeros((3, 1280), np.float32))
    result = mstemba("init", "--annotations", labels, "--features", features, cwd=tmp_path)
    assert "3 videos (2 with features)" in result.stdout
    assert "annotated video without features: 1 kept, for example v2" in result.stderr
    assert "features without annotation (not used): 1 kept, for example stranger" in result.stderr
    mstemba(*TRAIN, cwd=tmp_path)
    mstemba("evaluate", "--subset", "training", cwd=tmp_path)
    lines = mstemba("detect", untrained / "videos" / "v0.mp4", cwd=tmp_path, expect=2).stderr
    assert "mstemba import" in lines


def test_features_of_other_videos_are_refused(
    untrained: Path, tmp_path: Path, mstemba: Runner
) -> None:
    (tmp_path / "npy").mkdir()
    np.save(tmp_path / "npy" / "other.npy", np.zeros((3, 4), np.float32))
    labels = untrained / "labels.json"
    said = mstemba("init", "--annotations", labels, "--features", "npy", cwd=tmp_path, expect=2)
    assert "found other.npy, expected for example v0.npy" in said.stderr
    assert not (tmp_path / "mstemba.toml").exists()
