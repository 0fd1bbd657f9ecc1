"""The main job on a real recording with real weights, by the commands that the README gives."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mstemba.pipeline.decode.probe import open_video
from mstemba.pipeline.demo import write_video

pytestmark = pytest.mark.slow

EXTRACT = ("extract", "--backbone", "efficientnet-lite0", "--window", "2", "--stride", "1")


@pytest.fixture(scope="module")
def folder(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exercise recording cut into a training and a test clip, and its published labels."""
    folder = tmp_path_factory.mktemp("exercise")
    source = shared / "videos" / "exercise_routine.avi"
    with open_video(source) as (container, stream):
        frames = [(f.to_ndarray(format="rgb24"), f.time) for f in container.decode(stream)]
    (folder / "videos").mkdir()
    for name, begin, end in (("exercise_train", 0.0, 28.5), ("exercise_test", 28.5, 36.6)):
        part = [image for image, seconds in frames if begin - 1e-6 < seconds < end - 1e-6]
        write_video(folder / "videos" / f"{name}.mp4", part, fps=10)
    shutil.copy(shared / "annotations" / "exercise_routine_labels.json", folder)
    return folder


def run(folder: Path, *arguments: str) -> str:
    """Run a command and return what it printed."""
    command = [sys.executable, "-m", "mstemba", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def trained(folder: Path) -> Path:
    """The workspace with its features extracted and a network trained."""
    run(folder, "init", "--videos", "videos", "--annotations", "exercise_routine_labels.json")
    assert "2 extracted, 0 cached" in run(folder, *EXTRACT)
    assert "cached" not in run(folder, "train")
    return folder


def test_the_defaults_reach_the_linear_probe_on_unseen_video(trained: Path) -> None:
    run(trained, "evaluate", "--json", "result.json")
    result = json.loads((trained / "result.json").read_text())
    assert result["map"] >= 92, result
    assert set(result["per_class"]) == set(json.loads(labels(trained))["classes"])


def labels(folder: Path) -> str:
    return (folder / "exercise_routine_labels.json").read_text()


def test_the_same_commands_again_do_no_work(trained: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in made(trained)}
    assert "0 extracted, 2 cached" in run(trained, *EXTRACT)
    assert "cached" in run(trained, "train")
    assert {file: file.stat().st_mtime_ns for file in made(trained)} == before


def made(workspace: Path) -> list[Path]:
    """What an extraction and a training write: feature stores and runs."""
    folders = (workspace / "features", workspace / "runs")
    found = [f for d in folders for f in d.rglob("*.*") if f.is_file() and f.parent not in folders]
    assert {".json", ".safetensors"} <= {file.suffix for file in found}
    return found


def test_detect_finds_the_actions_of_the_test_clip(trained: Path) -> None:
    run(trained, "detect", "videos/exercise_test.mp4")
    for suffix in ("json", "csv", "png", "html", "scores.npz"):
        assert (trained / "detections" / f"exercise_test.{suffix}").stat().st_size > 0
    found = json.loads((trained / "detections" / "exercise_test.json").read_text())
    truth = json.loads(labels(trained))["videos"]["exercise_test"]["actions"]
    matched = [
        any(
            segment["class_id"] == class_id and overlap(segment, start, end) > 0.5
            for segment in found["segments"]
        )
        for class_id, start, end in truth
    ]
    assert sum(matched) >= 0.8 * len(truth)


def overlap(segment: dict[str, float], start: float, end: float) -> float:
    """Intersection over union of two spans in time."""
    shared = min(segment["end"], end) - max(segment["start"], start)
    return shared / (max(segment["end"], end) - min(segment["start"], start))
