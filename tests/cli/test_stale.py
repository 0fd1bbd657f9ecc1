"""What changes under a finished result is noticed, and the result made again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mstemba.pipeline.detect.scores_file import read_scores
from mstemba.pipeline.features.store import FeatureStore
from tests.cli.conftest import (
    CLASSES,
    DETECT,
    EXTRACT,
    TRAIN,
    current_run,
    current_store,
    edit_json,
    film,
)
from tests.command_line import complaint, mstemba

IMPORT = ("import", "npy", "--backbone", "efficientnet-lite0", "--window", "4", "--stride", "4")


def probabilities(workspace: Path) -> np.ndarray:
    return read_scores(workspace / "detections" / "v2.scores.npz").scores.probabilities


def test_scores_of_imported_features_that_were_replaced_are_made_again(workspace: Path) -> None:
    store = FeatureStore.open(current_store(workspace))
    (workspace / "npy").mkdir()
    for id in ("v0", "v1", "v2"):
        np.save(workspace / "npy" / f"{id}.npy", store.read(id).values)
    for name in ("features", "runs", "detections"):
        shutil.rmtree(workspace / name)
    for command in (IMPORT, TRAIN, DETECT):
        mstemba(*command, cwd=workspace)
    before = probabilities(workspace)
    assert "1 from saved scores" in mstemba(*DETECT, cwd=workspace).stdout

    array = np.load(workspace / "npy" / "v2.npy")
    np.save(workspace / "npy" / "v2.npy", array[::-1] * 3)
    mstemba(*IMPORT, cwd=workspace)
    assert "0 from saved scores" in mstemba(*DETECT, cwd=workspace).stdout
    assert not np.allclose(probabilities(workspace), before)


def test_imported_features_that_are_not_those_of_their_video_are_skipped_and_made_again(
    workspace: Path,
) -> None:
    store = FeatureStore.open(current_store(workspace))
    (workspace / "npy").mkdir()
    for id in ("v0", "v1", "v2"):
        np.save(workspace / "npy" / f"{id}.npy", store.read(id).values)
    imports = ("import", "npy", "--store", "imported.zarr", "--fps", "10")
    evaluate = ("evaluate", "--metrics", "frame", "--features", "imported.zarr")
    mstemba(*imports, cwd=workspace)
    mstemba(*TRAIN, "--features", "imported.zarr", cwd=workspace)
    figures = mstemba(*evaluate, cwd=workspace).stdout
    entry = workspace / "imported.zarr" / "v2"

    def copy() -> None:
        shutil.rmtree(entry)
        shutil.copytree(workspace / "imported.zarr" / "v1", entry)

    def alter() -> None:
        edit_json(entry / "zarr.json", lambda data: data["attributes"].update(step=0.2))

    for damage in (copy, alter):
        damage()
        skipped = mstemba(*evaluate, cwd=workspace, expect=2).stderr
        assert "skipped 1 video with damaged features" in skipped
        assert "1 imported, 2 cached" in mstemba(*imports, cwd=workspace).stdout
        assert mstemba(*evaluate, cwd=workspace).stdout == figures


def test_a_checkpoint_of_another_training_is_not_taken_for_the_result(workspace: Path) -> None:
    run = current_run(workspace)
    own = {file.name: file.read_bytes() for file in (run / "last").iterdir()}
    mstemba(*TRAIN, "--seed", "1", cwd=workspace)
    other = current_run(workspace)
    mstemba(*TRAIN, cwd=workspace)
    for name in ("last/model.safetensors", "last/config.json", "done.json"):
        shutil.copyfile(other / name, run / name)
        line = complaint(mstemba(*DETECT, cwd=workspace, expect=2))
        assert "not the result of the training" in line
        assert "training again" in mstemba(*TRAIN, cwd=workspace).stderr
        assert {file.name: file.read_bytes() for file in (run / "last").iterdir()} == own
        mstemba(*DETECT, cwd=workspace)


@pytest.mark.parametrize("content", [None, "{"])
def test_a_run_without_a_readable_configuration_is_trained_again(
    workspace: Path, content: str | None
) -> None:
    config = current_run(workspace) / "last" / "config.json"
    whole = config.read_text()
    config.unlink()
    if content is not None:
        config.write_text(content)
    assert "training again" in mstemba(*TRAIN, cwd=workspace).stderr
    assert config.read_text() == whole


@pytest.mark.parametrize(
    ("member", "change"),
    [
        ("classes", {"classes": CLASSES[::-1]}),
        ("features", {"window": 8}),
        ("features", {"precision": "float16"}),
        ("train", {"labels": "overlap"}),
        ("model", {"split": "contiguous"}),
        ("model", {"padding": "released"}),
    ],
)
def test_a_configuration_whose_content_has_changed_is_refused_and_made_again(
    workspace: Path, member: str, change: dict[str, Any]
) -> None:
    config = current_run(workspace) / "last" / "config.json"
    whole = config.read_text()
    edit_json(config, lambda data: (data if member in change else data[member]).update(change))
    line = complaint(mstemba(*DETECT, cwd=workspace, expect=2))
    assert f"{config.relative_to(workspace)}: damaged or edited: its content has the SHA" in line
    assert "delete its field 'sha256'" in line
    assert "damaged" in mstemba("runs", cwd=workspace).stdout
    run = ("--output", current_run(workspace).relative_to(workspace))
    assert "training again" in mstemba(*TRAIN, *run, cwd=workspace).stderr
    assert config.read_text() == whole


def test_a_configuration_that_was_edited_on_purpose_is_read_without_its_digest(
    workspace: Path,
) -> None:
    def rename(data: dict[str, Any]) -> None:
        data["classes"][0] = "goes right"
        del data["sha256"]

    edit_json(current_run(workspace) / "last" / "config.json", rename)
    mstemba(*DETECT, cwd=workspace)
    scores = read_scores(workspace / "detections" / "v2.scores.npz").scores
    assert scores.classes == ("goes right", *CLASSES[1:])
    assert "training again" not in mstemba(*TRAIN, cwd=workspace).stderr


@pytest.mark.parametrize("content", [None, '{"zarr_fo'])
def test_a_store_that_lost_its_metadata_gets_it_again(workspace: Path, content: str | None) -> None:
    metadata = current_store(workspace) / "zarr.json"
    whole = json.loads(metadata.read_text())
    metadata.unlink()
    if content is not None:
        metadata.write_text(content)
    damaged = complaint(mstemba("evaluate", cwd=workspace, expect=2))
    assert ("without its zarr.json" if content is None else "zarr.json") in damaged
    assert "3 cached" in mstemba(*EXTRACT, cwd=workspace).stdout
    assert json.loads(metadata.read_text()) == whole
    mstemba("evaluate", cwd=workspace)


def test_a_store_that_lost_its_metadata_is_not_taken_for_one_of_other_options(
    workspace: Path,
) -> None:
    store = current_store(workspace)
    (store / "failures.json").write_text("{}")
    (store / "zarr.json").unlink()
    other = (*EXTRACT[:-1], "2", "--store", store)
    line = complaint(mstemba(*other, cwd=workspace, expect=2))
    assert "its zarr.json is lost or damaged, and its entries were made with other options" in line
    assert "3 cached" in mstemba(*EXTRACT, cwd=workspace).stdout


def test_results_that_were_moved_with_their_video_are_still_its_own(workspace: Path) -> None:
    shutil.rmtree(workspace / "detections")
    mstemba(*DETECT, cwd=workspace)
    moved = workspace.rename(workspace.with_name("moved"))
    assert "1 from saved scores" in mstemba(*DETECT, cwd=moved).stdout
    film(moved / "videos" / "v2.mp4", seed=3, count=30)
    mstemba(*DETECT, cwd=moved)
    assert {file.name.split(".")[0] for file in (moved / "detections").glob("v2*")} == {"v2"}


@pytest.mark.parametrize(
    ("classes", "says"),
    [(["stands", "stands", "x"], "'stands' appears twice"), (["a", " ", "b"], "without a name")],
)
def test_a_checkpoint_whose_classes_cannot_be_told_apart_is_refused(
    workspace: Path, classes: list[str], says: str
) -> None:
    config = current_run(workspace) / "last" / "config.json"
    edit_json(config, lambda data: data.update(classes=classes))
    line = complaint(mstemba(*DETECT, cwd=workspace, expect=2))
    assert str(config.relative_to(workspace)) in line
    assert says in line
