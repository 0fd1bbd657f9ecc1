"""A small workspace to run the command line in."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import asdict, replace
from numpy.typing import NDArray

from mstemba.pipeline.caching.keys import file_sha256
from mstemba.pipeline.demo import write_video
from mstemba.pipeline.features.store import FeatureStore
from mstemba.pipeline.workspace import get_current
from tests.command_line import mstemba

FPS = 10
CLASSES = ["moves right", "moves down", "stands"]
EXTRACT = ("extract", "--backbone", "efficientnet-lite0", "--window", "4", "--stride", "4")
TRAIN = ("train", "--min-steps", "6", "--epochs", "1")
# A threshold that the barely trained model surely reaches.
DETECT = ("detect", "videos/v2.mp4", "--threshold", "0.05")


def squares(seed: int, count: int, size: int = 64) -> Iterator[NDArray[np.uint8]]:
    """A bright square that moves over a dark picture, (size, size, 3) RGB."""
    for i in range(count):
        image = np.full((size, size, 3), 40, np.uint8)
        x, y = (7 * seed + 2 * i) % (size - 16), (3 * i) % (size - 16)
        image[y : y + 16, x : x + 16] = 180 + 20 * seed
        yield image


def film(path: Path, seed: int = 0, count: int = 8) -> Path:
    """Encode a small video."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, squares(seed, count), FPS)
    return path


def make_workspace(folder: Path, subsets: tuple[str, ...]) -> Path:
    """Three seconds of video for each subset named, labelled, and made a workspace."""
    entries = {}
    for number, subset in enumerate(subsets):
        film(folder / "videos" / f"v{number}.mp4", number, 3 * FPS)
        actions = [[0, 0.5, 1.5], [1, 1.0 + number / 5, 2.5], [2, 0.1, 0.8]]
        entries[f"v{number}"] = {"subset": subset, "duration": 3.0, "actions": actions}
    labels = {"classes": CLASSES, "time_unit": "seconds", "videos": entries}
    (folder / "labels.json").write_text(json.dumps(labels))
    mstemba("init", "--videos", "videos", "--annotations", "labels.json", cwd=folder)
    return folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace after the whole path. Only read here; tests that change it take `workspace`."""
    folder = make_workspace(
        tmp_path_factory.mktemp("finished"), ("training", "training", "testing")
    )
    mstemba(*EXTRACT, cwd=folder)
    mstemba(*TRAIN, cwd=folder)
    mstemba(*DETECT, cwd=folder)
    return folder


@pytest.fixture
def workspace(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished workspace."""
    return shutil.copytree(finished, tmp_path / "workspace")


@pytest.fixture
def untrained(workspace: Path) -> Path:
    """A workspace with features and no model."""
    shutil.rmtree(workspace / "detections")
    shutil.rmtree(workspace / "runs")
    return workspace


@pytest.fixture
def fresh(untrained: Path) -> Path:
    """A workspace with neither features nor a model."""
    shutil.rmtree(untrained / "features")
    return untrained


def edit_json(path: Path, change: Callable[[Any], object]) -> None:
    """Change a JSON file in place."""
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def current_store(workspace: Path) -> Path:
    store = get_current(workspace / "features")
    assert store is not None
    return store


def current_run(workspace: Path) -> Path:
    run = get_current(workspace / "runs")
    assert run is not None
    return run


def contents(folder: Path) -> dict[str, tuple[int, str]]:
    """Modification time and SHA-256 of every file.

    The fingerprints, a mere memory, are left out; a pointer may be written again as it was.
    """
    return {
        file.relative_to(folder).as_posix(): (
            0 if file.name == "current" else file.stat().st_mtime_ns,
            file_sha256(file),
        )
        for file in sorted(folder.rglob("*"))
        if file.is_file() and ".cache" not in file.parts
    }


def entries(store: Path) -> dict[str, dict[str, Any]]:
    """Every finished entry of a store: its numbers as bytes, and what is said of it but when."""
    opened = FeatureStore.open(store)
    found = {}
    for id in sorted(p.name for p in store.iterdir() if p.is_dir()):
        said = opened.entry(id)
        if said is not None:
            values = opened.read(id).values
            facts = asdict(replace(said, made="", bytes=0))  # decoders' names differ in length
            found[id] = {**facts, "shape": values.shape, "values": values.tobytes()}
    return found
