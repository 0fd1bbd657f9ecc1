"""The way from videos to detections, as a user walks it."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mstemba.pipeline import demo
from mstemba.pipeline.options import TrainOptions
from tests.cli.conftest import (
    CLASSES,
    DETECT,
    EXTRACT,
    TRAIN,
    contents,
    current_run,
    current_store,
    entries,
)
from tests.command_line import Runner, complaint, mstemba

SHORT = {"min_steps": 4}


def test_init_writes_a_manifest_of_what_it_found(finished: Path) -> None:
    manifest = json.loads((finished / "manifest.json").read_text())
    assert manifest["format"] == "mstemba-manifest"
    assert manifest["classes"] == CLASSES
    assert [v["path"] for v in manifest["videos"].values()] == [
        f"videos/v{i}.mp4" for i in range(3)
    ]
    assert [v["subset"] for v in manifest["videos"].values()] == ["training", "training", "testing"]


def test_a_corrected_video_is_merged_and_learnt_from(workspace: Path, mstemba: Runner) -> None:
    before = json.loads((workspace / "manifest.json").read_text())
    entry = {"subset": "training", "duration": 3.0, "actions": [[1, 0.0, 1.0], [0, 1.0, 2.0]]}
    corrected = {"classes": ["waves", CLASSES[1]], "time_unit": "seconds", "videos": {"v0": entry}}
    (workspace / "v0.annotations.json").write_text(json.dumps(corrected))
    merge = ("init", "--annotations", "v0.annotations.json", "--merge")
    refused = complaint(mstemba(*merge, cwd=workspace, expect=2))
    assert "1 of 1 video would have fewer actions than in the manifest (2 in place of 3)" in refused
    assert "pass --yes" in refused
    assert json.loads((workspace / "manifest.json").read_text()) == before
    said = mstemba(*merge, "--yes", cwd=workspace).stdout
    anew = "videos annotated again: 1 (actions: 2 in place of 3), added: 0; new classes: 'waves'"
    assert anew in said
    assert "the previous manifest was different and is kept as manifest.json.bak" in said
    after = json.loads((workspace / "manifest.json").read_text())
    assert after["classes"] == [*CLASSES, "waves"]
    assert after["videos"].pop("v0") == {
        **before["videos"].pop("v0"),
        "actions": [[1, 0.0, 1.0], [3, 1.0, 2.0]],
    }
    assert after["videos"] == before["videos"]
    # What was trained before knows the former classes.
    detected = mstemba("detect", "videos/v0.mp4", "videos/v1.mp4", "--quiet", cwd=workspace)
    lacks = "warning: the labels of v0 have classes that these scores lack, for example 'waves'"
    assert lacks in detected.stderr
    assert mstemba("export", "v1", "--quiet", cwd=workspace).stderr == ""
    assert "name the manifest of those" in complaint(mstemba("evaluate", cwd=workspace, expect=2))
    assert "0 extracted, 3 cached" in mstemba(*EXTRACT, cwd=workspace).stdout
    assert ": trained in " in mstemba(*TRAIN, cwd=workspace).stdout
    assert "the previous manifest" not in mstemba(*merge, cwd=workspace).stdout


def test_nothing_is_merged_where_there_is_no_workspace(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"v": {"actions": []}}')
    said = mstemba("init", "--annotations", "a.json", "--merge", cwd=tmp_path, expect=2)
    assert "not a workspace, it has no mstemba.toml" in complaint(said)
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_extract_writes_one_complete_entry_a_video(finished: Path) -> None:
    found = entries(current_store(finished))
    assert list(found) == ["v0", "v1", "v2"]
    for entry in found.values():
        # 30 frames in windows of 4: seven whole ones and one of two frames.
        assert entry["shape"] == (8, 1280)
        np.testing.assert_allclose(entry["starts"], np.arange(8) * 0.4, atol=1e-9)
        assert (entry["frames"], entry["warnings"]) == (30, [])
    assert len({entry["values"] for entry in found.values()}) == 3


def test_train_leaves_checkpoint_curves_and_metrics(finished: Path) -> None:
    run = current_run(finished)
    config = json.loads((run / "last" / "config.json").read_text())
    assert config["classes"] == CLASSES
    assert config["features"]["backbone"] == "efficientnet-lite0"
    assert (run / "last" / "model.safetensors").stat().st_size > 1_000_000
    assert Image.open(run / "curves.png").size > (400, 200)
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)
    assert steps[-1] == 6
    assert any((run / "tensorboard").iterdir())


def test_a_finished_training_leaves_no_resumable_state(finished: Path) -> None:
    assert list(current_run(finished).glob("state*")) == []


def test_evaluate_prints_the_map_and_writes_it_as_json(finished: Path, tmp_path: Path) -> None:
    file = tmp_path / "new folder" / "result.json"
    printed = mstemba("evaluate", "--json", file, cwd=finished).stdout
    result = json.loads(file.read_text())
    assert 0 < result["map"] <= 100
    assert list(result["per_class"]) == CLASSES
    assert result["map"] == pytest.approx(np.mean(list(result["per_class"].values())))
    assert (result["subset"], result["videos"], result["rows"]) == ("testing", 1, 8)
    assert f"{result['map']:.2f} %" in printed


def test_detect_writes_json_csv_png_and_html(finished: Path) -> None:
    out = finished / "detections"
    assert {f.name for f in out.iterdir()} == {
        "v2.json",
        "v2.csv",
        "v2.png",
        "v2.html",
        "v2.scores.npz",
    }
    detection = json.loads((out / "v2.json").read_text())
    assert set(detection) == {
        "video",
        "duration",
        "fps",
        "classes",
        "grid",
        "segments",
        "provenance",
    }
    assert detection["duration"] == pytest.approx(3.0)
    assert detection["fps"] == pytest.approx(10.0)
    step = pytest.approx(0.4)
    assert detection["grid"] == {"start": 0.0, "step": step, "count": 8, "anchor": 0.0}
    assert detection["segments"]
    for segment in detection["segments"]:
        assert set(segment) == {"label", "class_id", "start", "end", "score"}
        assert segment["label"] == CLASSES[segment["class_id"]]
        assert 0 <= segment["start"] < segment["end"] <= detection["duration"]
    rows = list(csv.DictReader((out / "v2.csv").open(newline="")))
    assert [row["label"] for row in rows] == [s["label"] for s in detection["segments"]]
    assert Image.open(out / "v2.png").format == "PNG"
    with np.load(out / "v2.scores.npz") as scores:
        assert scores["probabilities"].shape == (8, 3)


def test_another_threshold_or_format_uses_the_kept_scores(workspace: Path) -> None:
    out = workspace / "detections"
    before = contents(out)
    again = mstemba(
        "detect", "videos/v2.mp4", "--threshold", "0.99", "--format", "json", cwd=workspace
    )
    assert "v2: 0 segments (from saved scores)" in again.stdout
    assert str(Path("detections", "v2.json")) in again.stdout
    after = contents(out)
    assert {name for name in after if after[name] != before[name]} == {"v2.json"}
    assert json.loads((out / "v2.json").read_text())["segments"] == []


def test_standard_output_may_be_closed(workspace: Path) -> None:
    args = ("export", "--format", "srt")
    said = mstemba(*args, cwd=workspace, before=lambda: os.close(1))
    assert said.stderr == ""
    assert (workspace / "detections" / "v2.srt").is_file()


def test_detect_of_a_workspace_video_takes_the_features_that_are_there(finished: Path) -> None:
    # The fixture has run `extract` and then `detect` on v2.
    assert list(entries(current_store(finished))) == ["v0", "v1", "v2"]


def test_status_shows_features_runs_and_detections(finished: Path) -> None:
    report = json.loads(mstemba("status", "--json", "-", cwd=finished).stdout)
    assert [(v["video"], v["state"]) for v in report["videos"]] == [
        (f"v{i}", "done") for i in range(3)
    ]
    assert [(r["state"], r["current"]) for r in report["runs"]] == [("done", True)]
    assert [d["video"] for d in report["detections"]] == ["v2"]
    shown = mstemba("status", cwd=finished).stdout
    assert shown.count(" (current): 3 done\n") == 1
    assert shown.count("  done  ") == 4


def test_status_tells_stale_missing_and_lost_videos_apart(workspace: Path) -> None:
    videos = workspace / "videos"
    (videos / "v0.mp4").write_bytes((videos / "v1.mp4").read_bytes())
    (videos / "v2.mp4").unlink()
    entry = current_store(workspace) / "v1" / "zarr.json"
    entry.unlink()
    report = json.loads(mstemba("status", "--json", "-", cwd=workspace).stdout)
    assert [v["state"] for v in report["videos"]] == ["stale", "missing", "no file"]


@pytest.mark.parametrize("again", [EXTRACT, TRAIN], ids=["extract", "train"])
def test_the_same_command_again_does_no_work(again: tuple[str, ...], workspace: Path) -> None:
    before = contents(workspace)
    result = mstemba(*again, cwd=workspace)
    assert "cached" in result.stdout
    assert "0 extracted, 3 cached" in result.stdout or again is TRAIN
    assert contents(workspace) == before


def test_a_cached_run_imports_no_torch(workspace: Path) -> None:
    for args in (EXTRACT, TRAIN):
        imported = mstemba(*args, cwd=workspace, env={"PYTHONPROFILEIMPORTTIME": "1"}).stderr
        assert " mstemba.cli" in imported
        assert " torch\n" not in imported
        assert "loading" not in imported


@pytest.mark.parametrize("args", [(*EXTRACT, "--store", "new.zarr"), TRAIN, ("evaluate",), DETECT])
def test_a_slow_import_of_torch_is_told_of_before_it_begins(
    args: tuple[str, ...], untrained: Path, finished: Path
) -> None:
    if args is not TRAIN:
        shutil.copytree(finished / "runs", untrained / "runs")
    # A line of the listing ends an import: what is printed before it came earlier.
    said = mstemba(*args, cwd=untrained, env={"PYTHONPROFILEIMPORTTIME": "1"}).stderr
    imported = re.search(r"\|\s+torch\._C\n", said)
    assert imported
    assert said.index("loading PyTorch\n") < imported.start()


@pytest.mark.slow
def test_another_window_makes_a_store_of_its_own(workspace: Path) -> None:
    before = current_store(workspace)
    kept = contents(before)
    mstemba(*EXTRACT[:3], "--window", "8", "--stride", "8", "videos/v0.mp4", cwd=workspace)
    after = current_store(workspace)
    assert after != before
    assert contents(before) == kept
    assert entries(after)["v0"]["shape"] == (4, 1280)


def test_a_changed_video_is_extracted_again(workspace: Path) -> None:
    videos = workspace / "videos"
    (videos / "v0.mp4").write_bytes((videos / "v1.mp4").read_bytes())
    result = mstemba(*EXTRACT, cwd=workspace)
    assert "1 extracted, 2 cached" in result.stdout
    found = entries(current_store(workspace))
    assert found["v0"]["values"] == found["v1"]["values"]


@pytest.mark.slow
def test_demo_runs_the_whole_pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # In this process, to make it small: `make demo` runs the command as it is.
    monkeypatch.setattr(demo, "TRAINING_CLIPS", 2)
    monkeypatch.setattr(demo, "TEST_CLIPS", 1)
    monkeypatch.setattr(demo, "SECONDS", 6)
    monkeypatch.setattr(demo, "TrainOptions", lambda **given: TrainOptions(**given | SHORT))
    result = demo.demo(tmp_path / "here", device="cpu")
    assert result.extraction.made == ["clip_00", "clip_01", "clip_02"]
    assert 0 < result.evaluation.map <= 100
    assert (result.training.run / "curves.png").is_file()
    assert all(file.is_file() for files in result.detection.files.values() for file in files)
