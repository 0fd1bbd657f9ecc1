"""What is called done is there: damage is told, and the stage itself makes it again."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mstemba.pipeline.features.store import FeatureStore
from mstemba.pipeline.workspace import Workspace, get_current
from tests.command_line import Runner, complaint
from tests.training import make_workspace

TRAIN = "train --arch linear --epochs 1 --min-steps 2 --device cpu --trackers none --recipe none"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with imported features and a run. Tests take copies of it."""
    from mstemba.pipeline.features.import_npy import import_features
    from mstemba.pipeline.options import ImportOptions, TrainOptions, TrainRunOptions
    from mstemba.pipeline.train.stage import train

    folder = make_workspace(tmp_path_factory.mktemp("trained"))
    import_features(folder / "npy", ImportOptions(fps=1.0), workspace=folder)
    train(
        TrainOptions(arch="linear", epochs=1, min_steps=2),
        TrainRunOptions(device="cpu", trackers="none"),
        workspace=folder,
    )
    return folder


@pytest.fixture
def workspace(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "w")


def store_of(workspace: Path) -> Path:
    store = get_current(Workspace(workspace, workspace).features)
    assert store is not None
    return store


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[20] ^= 0xFF
    file.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "missing": Path.unlink,
    "cut": lambda file: os.truncate(file, file.stat().st_size - 1),
    "empty": lambda file: os.truncate(file, 0),
}
IMPORT = ("import", "npy", "--fps", "1")


@pytest.mark.parametrize("damage", DAMAGE)
def test_import_makes_a_damaged_entry_again(mstemba: Runner, workspace: Path, damage: str) -> None:
    store = store_of(workspace)
    expected = FeatureStore.open(store).read("v2").values
    DAMAGE[damage](store / "v2" / "c" / "0" / "0")
    (row,) = [
        line for line in mstemba("status", cwd=workspace).stdout.splitlines() if "v2 " in line
    ]
    assert row.split()[2] == "damaged"
    assert "shard 0" in row
    again = mstemba(*IMPORT, cwd=workspace)
    assert "1 imported, 6 cached, 0 failed" in again.stdout
    assert "v2: its features are damaged (shard 0" in again.stderr
    assert np.array_equal(FeatureStore.open(store).read("v2").values, expected)
    assert "0 imported, 7 cached" in mstemba(*IMPORT, cwd=workspace).stdout


def test_training_and_evaluation_skip_a_damaged_entry_and_say_so(
    mstemba: Runner, workspace: Path
) -> None:
    store = store_of(workspace)
    DAMAGE["missing"](store / "v2" / "c" / "0" / "0")
    DAMAGE["cut"](store / "v5" / "c" / "0" / "0")
    trained = mstemba(*TRAIN.split(), "--output", "again", cwd=workspace)
    warning = "2 videos with damaged features, for example"
    assert warning in trained.stderr
    assert "'v2' are damaged: shard 0 is missing; run `mstemba extract`" in trained.stderr
    found = mstemba("evaluate", "--subset", "validation", cwd=workspace)
    assert "'v5' are damaged: shard 0 has" in found.stderr
    assert "1 of 2 videos skipped because they have no features" in found.stderr


def test_content_found_damaged_is_made_again(mstemba: Runner, workspace: Path) -> None:
    store = store_of(workspace)
    expected = FeatureStore.open(store).read("v5").values
    flip(store / "v5" / "c" / "0" / "0")
    line = complaint(mstemba("evaluate", "--subset", "validation", cwd=workspace, expect=2))
    assert "'v5' are damaged: shard 0: " in line
    assert "1 imported, 6 cached" in mstemba(*IMPORT, cwd=workspace).stdout
    assert np.array_equal(FeatureStore.open(store).read("v5").values, expected)
    mstemba("evaluate", "--subset", "validation", cwd=workspace)


def test_verify_reads_features_weights_and_scores(mstemba: Runner, workspace: Path) -> None:
    verified = mstemba("status", "--verify", cwd=workspace)
    assert "7 arrays of features, 2 files of weights, 0 files of scores; 0 damaged" in (
        verified.stdout
    )
    (run,) = (workspace / "runs").glob("linear-*")
    weights = run / "best" / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 4)
    (workspace / "detections").mkdir()
    (workspace / "detections" / "v1.scores.npz").write_bytes(b"PK\x03\x04 and no more")
    flip(store_of(workspace) / "v3" / "c" / "0" / "0")
    said = mstemba("status", "--verify", "--json", "s.json", cwd=workspace, expect=1)
    assert "3 damaged" in complaint(said)
    found = json.loads((workspace / "s.json").read_text())
    first, second, third = found["verified"]["damaged"]
    assert "v3: shard 0: " in first
    assert "model.safetensors" in second
    assert "v1.scores.npz" in third
    assert {row["video"] for row in found["videos"] if row["state"] == "damaged"} == {"v3"}
    assert all(f"warning: {line}" in said.stderr for line in (first, second, third))
    # It is marked: the next commands need not read it.
    states = mstemba("status", "--json", "-", cwd=workspace).stdout
    assert [row["video"] for row in json.loads(states)["videos"] if row["state"] == "damaged"] == [
        "v3"
    ]
    assert "1 imported, 6 cached" in mstemba(*IMPORT, cwd=workspace).stdout


def test_caches_that_cannot_be_written_are_one_warning(mstemba: Runner, workspace: Path) -> None:
    shutil.rmtree(workspace / ".cache")
    (workspace / ".cache").write_text("in place of the folder")
    (workspace / "features" / "current").unlink()
    (workspace / "features" / "current").mkdir()
    (store_of_copy,) = (workspace / "features").glob("*.zarr")
    features = ("--features", store_of_copy)
    for args in (
        ("status",),
        ("runs",),
        IMPORT,
        ("evaluate", "--subset", "validation", *features),
        (*TRAIN.split(), *features, "--output", next((workspace / "runs").glob("linear-*"))),
    ):
        said = mstemba(*args, cwd=workspace)
        kinds = [line for line in said.stderr.splitlines() if ".cache" in line]
        assert len(kinds) <= 1, said.stderr
        assert all(line.startswith("warning: ") for line in kinds)
