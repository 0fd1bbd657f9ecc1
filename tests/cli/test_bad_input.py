"""Mistakes and damaged files: one clear line, the right exit code, and nothing lost.

The commands run in this process, by the entry point that the console script calls: to start Python
and torch for each of them would take minutes. The other files here start processes.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import shutil
import wave
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from mstemba.pipeline.features.store import FeatureStore
from mstemba.pipeline.outputs import WRITERS
from tests.cli.conftest import (
    EXTRACT,
    TRAIN,
    contents,
    current_run,
    current_store,
    edit_json,
    entries,
    film,
)
from tests.command_line import Runner, complaint


def nothing(workspace: Path) -> None:
    """The workspace is fine; the command is not."""


def manifest(change: Callable[[Any], object]) -> Callable[[Path], None]:
    """Edit the manifest by hand."""
    return lambda workspace: edit_json(workspace / "manifest.json", change)


def config(change: Callable[[Any], object]) -> Callable[[Path], None]:
    """Edit the checkpoint's config.json by hand."""
    return lambda workspace: edit_json(current_run(workspace) / "last" / "config.json", change)


def text(name: str, content: str) -> Callable[[Path], None]:
    """Write a text file into the workspace."""

    def write(workspace: Path) -> None:
        (workspace / name).parent.mkdir(parents=True, exist_ok=True)
        (workspace / name).write_text(content)

    return write


def without(name: str) -> Callable[[Path], None]:
    """Delete a folder of the workspace."""
    return lambda workspace: shutil.rmtree(workspace / name)


def without_in_run(name: str) -> Callable[[Path], None]:
    """Delete a file of the current run."""
    return lambda workspace: (current_run(workspace) / name).unlink()


def video_twice(workspace: Path) -> None:
    file = workspace / "manifest.json"
    file.write_text(file.read_text().replace('"v1": ', '"v0": '))


def silence(workspace: Path) -> None:
    with wave.open(str(workspace / "sound.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(16000))


def store_of_window_8(workspace: Path) -> None:
    spec = FeatureStore.open(current_store(workspace)).spec
    FeatureStore.prepare(workspace / "other.zarr", replace(spec, window=8)).make()


def cut_weights(workspace: Path) -> None:
    file = current_run(workspace) / "last" / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


class Evil:
    """Unpickling it makes a file in the current folder."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("executed",)


def evil_file(workspace: Path) -> None:
    (workspace / "evil.pt").write_bytes(pickle.dumps({"head.weight": Evil()}))


def evil_weights(workspace: Path) -> None:
    (current_run(workspace) / "last" / "model.safetensors").write_bytes(pickle.dumps(Evil()))


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 1710540580\n"
PAGE = b"<!DOCTYPE html><html><head><title>Sign in</title></head></html>"


def no_weights(name: str, content: bytes) -> Callable[[Path], None]:
    """Write a file that is not one of weights."""
    return lambda workspace: (workspace / name).write_bytes(content) and None


def in_run(name: str, content: bytes) -> Callable[[Path], None]:
    """Replace a file of the current run."""
    return lambda workspace: (current_run(workspace) / name).write_bytes(content) and None


def numpy_training_file(workspace: Path) -> None:
    torch.save({"epoch": np.float64(3), "state_dict": {"x": torch.zeros(1)}}, workspace / "w.pt")


def unknown_classes(workspace: Path) -> None:
    (workspace / "a.csv").write_text("video,start,end,label\nv0,1,2,fly\n")
    (workspace / "names.txt").write_text("sit\nrun\n")


@dataclass(frozen=True)
class Case:
    """A command that cannot work, and words that the user must see."""

    id: str
    args: tuple[str, ...]
    words: tuple[str, ...]
    prepare: Callable[[Path], None] = nothing
    code: int = 2
    env: dict[str, str] = field(default_factory=dict)


LABELS = ("init", "--videos", "videos", "--annotations")
DETECT = ("detect", "videos/v2.mp4")
URL = "s3://bucket/there"
OTHER = "other.zarr"
FAILED = "mstemba: the only video failed"

CASES = [
    # Inputs that are not there, or are something else.
    Case("extract-missing-file", ("extract", "no.mp4"), ("no.mp4", "no such file")),
    Case("detect-missing-file", ("detect", "no.mp4"), ("no.mp4", "no such file")),
    Case("init-missing-file", ("init", "--videos", "no.mp4"), ("no.mp4", "no such file")),
    Case("empty-folder", ("extract", "empty"), ("empty", "no video"), text("empty/a.txt", "")),
    Case("audio-extract", (*EXTRACT, "sound.wav"), ("only audio", FAILED), silence, 1),
    Case("audio-detect", ("detect", "sound.wav"), ("only audio", FAILED), silence, 1),
    Case(
        "text-as-mp4", (*EXTRACT, "t.mp4"), ("not a readable video", FAILED), text("t.mp4", "hi"), 1
    ),
    Case("empty-mp4", (*EXTRACT, "t.mp4"), ("not a readable video", FAILED), text("t.mp4", ""), 1),
    # Annotations and manifest.
    Case("no-annotations", (*LABELS, "no.json"), ("no.json", "no such file")),
    Case("annotations-text", (*LABELS, "a.json"), ("a.json", "JSON"), text("a.json", "a b")),
    Case("annotations-list", (*LABELS, "a.json"), ("a.json", "object"), text("a.json", "[]")),
    Case(
        "annotations-too-deep",
        (*LABELS, "a.json"),
        ("a.json", "not readable as JSON"),
        text("a.json", "[" * 100_000),
    ),
    Case("annotations-empty", (*LABELS, "a.json"), ("a.json", "no entries"), text("a.json", "{}")),
    Case(
        "annotations-entry-text",
        (*LABELS, "a.json"),
        ("a.json", "'v0'"),
        text("a.json", '{"v0": "training"}'),
    ),
    Case("init-nothing", ("init",), ("--videos", "--annotations")),
    Case(
        "annotations-of-another-dataset",
        (*LABELS, "a.json", "--dataset", "charades"),
        ("a.json", "Toyota Smarthome Untrimmed", "P02T01C06", "--dataset tsu"),
        text("a.json", '{"P02T01C06": {"subset": "testing", "duration": 9, "actions": []}}'),
    ),
    Case(
        "annotations-in-frames",
        (*LABELS, "a.csv"),
        ("a.csv", "700", "look like frames", "--time-unit frames"),
        text("a.csv", "video,start,end,label,duration\nv0,10,700,a,30\n"),
    ),
    Case(
        "annotations-in-frames-by-the-files",
        (*LABELS, "a.csv"),
        ("a.csv", "v0 of 3 s", "--time-unit frames"),
        text("a.csv", "video,start,end,label\nv0,10,700,a\n"),
    ),
    Case(
        "annotations-tsu-unnamed",
        (*LABELS, "a.json"),
        ("frames", "--dataset tsu", "--time-unit"),
        text("a.json", '{"P02T01C06": {"duration": 900, "actions": [[0, 10, 700]]}}'),
    ),
    Case("table-empty", (*LABELS, "a.csv"), ("a.csv", "empty"), text("a.csv", "")),
    Case("table-of-commas", (*LABELS, "a.csv"), ("a.csv", "is empty"), text("a.csv", ",,,\n")),
    Case(
        "table-columns",
        (*LABELS, "a.csv"),
        ("found the columns name, from, to", "video,start,end,label", "BORIS", "ELAN"),
        text("a.csv", "name,from,to\nv0,1,2\n"),
    ),
    Case(
        "table-quotes",
        (*LABELS, "a.csv"),
        ("a.csv, line 2", "unexpected end"),
        text("a.csv", 'video,start,end,label\nv0,1,2,"a\n'),
    ),
    Case(
        "table-class-names",
        (*LABELS, "a.csv", "--classes", "names.txt"),
        ("all class names are unknown", "'fly'", "'sit'"),
        unknown_classes,
    ),
    Case("annotations-excel", (*LABELS, "a.xlsx"), ("a.xlsx", "CSV"), text("a.xlsx", "PK")),
    Case(
        "annotations-empty-folder",
        (*LABELS, "none"),
        ("none", "no file of annotations"),
        text("none/a", ""),
    ),
    Case(
        "split-unknown",
        (*LABELS, "labels.json", "--dataset", "tsu", "--split", "random"),
        ("random", "cross-subject, cross-view"),
    ),
    Case(
        "split-without-dataset",
        (*LABELS, "labels.json", "--split", "cross-view"),
        ("cross-view", "charades, tsu, multithumos"),
    ),
    Case(
        "no-class-file",
        (*LABELS, "labels.json", "--classes", "no.txt"),
        ("no.txt",),
    ),
    Case(
        "unit-unknown",
        (*LABELS, "labels.json", "--time-unit", "hours"),
        ("hours", "seconds, frames"),
    ),
    Case(
        "manifest-unknown-class",
        TRAIN,
        ("manifest.json", "'v0'", "unknown class id 3", "0 to 2"),
        manifest(lambda m: m["videos"]["v0"]["actions"].append([3, 0.0, 1.0])),
    ),
    Case(
        "manifest-action-of-words",
        TRAIN,
        ("$.videos.v0.actions[3]", "expected array, found str"),
        manifest(lambda m: m["videos"]["v0"]["actions"].append("runs")),
    ),
    Case(
        "manifest-actions-null",
        TRAIN,
        ("manifest.json", "$.videos.v0.actions", "expected array, found null"),
        manifest(lambda m: m["videos"]["v0"].update(actions=None)),
    ),
    Case(
        "manifest-duration-text",
        TRAIN,
        ("manifest.json", "$.videos.v0.duration", "found str"),
        manifest(lambda m: m["videos"]["v0"].update(duration="31.0")),
    ),
    Case(
        "manifest-video-twice",
        TRAIN,
        ("manifest.json", "'v0' appears twice"),
        video_twice,
    ),
    Case(
        "manifest-other-version",
        ("extract",),
        ("version 9", "version 1"),
        manifest(lambda m: m.update(version=9)),
    ),
    Case("manifest-text", ("extract",), ("manifest.json", "JSON"), text("manifest.json", "{")),
    Case(
        "manifest-gone",
        ("train",),
        ("manifest.json", "no such file"),
        lambda workspace: (workspace / "manifest.json").unlink(),
    ),
    Case(
        "no-training-video",
        TRAIN,
        ("training",),
        manifest(lambda m: [v.update(subset="testing") for v in m["videos"].values()]),
    ),
    Case(
        "no-action-in-time",
        TRAIN,
        ("no row", "times"),
        manifest(
            lambda m: [v.update(actions=[[0, 500, 600]]) for v in m["videos"].values()],
        ),
    ),
    Case("subset-unknown", ("evaluate", "--subset", "final"), ("'final'",)),
    Case("workspace-file-damaged", ("status",), ("mstemba.toml",), text("mstemba.toml", "= 1")),
    # Stores and checkpoints that do not fit.
    Case(
        "store-of-another-window",
        (*EXTRACT, "--store", OTHER),
        (OTHER, "window=8 (wanted 4)"),
        store_of_window_8,
    ),
    Case(
        "store-is-another-folder",
        (*EXTRACT, "--store", "videos"),
        ("videos", "not a feature store"),
    ),
    Case(
        "features-do-not-fit",
        ("evaluate", "--features", OTHER),
        (OTHER, "window=8 (wanted 4)"),
        store_of_window_8,
    ),
    Case(
        "features-missing", ("train", "--features", "no.zarr"), ("no.zarr", "not a feature store")
    ),
    Case("nothing-extracted", ("train",), ("no features", "mstemba extract"), without("features")),
    Case(
        "classes-differ",
        ("evaluate",),
        ("3 classes", "4"),
        manifest(lambda m: m["classes"].append("sits")),
    ),
    Case(
        "run-folder-of-other-options",
        (*TRAIN, "--seed", "7", "--output", "runs/RUN"),
        ("other options", "--output"),
        lambda workspace: current_run(workspace).rename(workspace / "runs" / "RUN"),
    ),
    # Checkpoints that are none.
    Case("no-checkpoint", (*DETECT, "--checkpoint", "no"), ("no: no such checkpoint",)),
    Case("never-trained", DETECT, ("no training has finished", "mstemba train"), without("runs")),
    Case("never-trained-evaluate", ("evaluate",), ("no training has finished",), without("runs")),
    Case(
        "training-unfinished",
        DETECT,
        ("no training has finished", "mstemba train"),
        without_in_run("done.json"),
    ),
    Case("no-config", ("evaluate",), ("config.json",), without_in_run("last/config.json")),
    Case("no-weights", DETECT, ("model.safetensors",), without_in_run("last/model.safetensors")),
    Case("config-of-no-kind", ("evaluate",), ("config.json",), config(lambda c: c.clear())),
    Case(
        "config-of-other-classes",
        ("evaluate", "--checkpoint", "runs"),
        ("runs", "config.json"),
    ),
    Case(
        "weights-cut",
        ("evaluate",),
        ("model.safetensors", "found an incomplete"),
        cut_weights,
    ),
    Case("pickled-code", (*DETECT, "--checkpoint", "evil.pt"), ("evil.pt", "refused"), evil_file),
    Case("pickled-as-safetensors", ("evaluate",), ("model.safetensors",), evil_weights),
    Case(
        "pickled-backbone",
        (*EXTRACT, "--weights", "evil.pt", "--store", "s"),
        ("evil.pt",),
        evil_file,
    ),
    *(
        Case(
            f"{kind}-as-{option[2:]}",
            (*command, option, "w.pt"),
            ("w.pt: ", f"found {what}", "expected a .safetensors file", advice),
            no_weights("w.pt", content),
        )
        for command, option in (((*EXTRACT, "--store", "s"), "--weights"), (DETECT, "--checkpoint"))
        for kind, content, what, advice in (
            ("empty", b"", "an empty file", "again"),
            ("pointer", POINTER, "a Git LFS pointer to a file of 1,710,540,580 b", "git lfs pull"),
            ("page", PAGE, "a web page ('Sign in')", "download the file itself"),
        )
    ),
    Case(
        "empty-weights-of-clip",
        ("extract", "--weights", "w.pt", "--store", "s"),
        ("w.pt: not weights of CLIP", "an empty file", "Use open_clip_model.safetensors", "https:"),
        no_weights("w.pt", b""),
    ),
    Case(
        "pointer-in-run",
        ("evaluate",),
        ("model.safetensors: found a Git LFS pointer", "git lfs pull"),
        in_run("last/model.safetensors", POINTER),
    ),
    Case(
        "numpy-in-weights",
        (*EXTRACT, "--weights", "w.pt", "--store", "s"),
        ("w.pt: not weights of efficientnet-lite0: missing: ", "unknown: x", "omit --weights"),
        numpy_training_file,
    ),
    # Options.
    Case(
        "weights-folder",
        (*EXTRACT, "--weights", "./videos"),
        ("./videos: found a folder", "a file"),
    ),
    Case("backbone-unknown", ("extract", "--backbone", "vgg"), ("'vgg'", "clip, efficientnet")),
    Case("clip-model-unknown", ("extract", "--model", "ViT-Z"), ("'ViT-Z'", "most similar")),
    Case("weights-missing", (*EXTRACT, "--weights", "no/w.pth"), ("no/w.pth", "no such file")),
    Case("format-unknown", (*DETECT, "--format", "json,xls"), ("'xls'", *WRITERS)),
    Case("format-none", (*DETECT, "--format", ","), ("no format named", *WRITERS)),
    Case("export-format-unknown", ("export", "--format", "xls"), ("'xls'", *WRITERS)),
    Case("export-nothing", ("export", "videos/v0.mp4"), ("v0", "scores")),
    Case(
        "detect-output-file",
        (*DETECT, "--output", "a.txt"),
        ("a.txt", "is a file, expected a folder"),
        text("a.txt", "mine"),
    ),
    Case(
        "detect-output-below-a-file",
        (*DETECT, "--output", "a.txt/out"),
        ("a.txt", "is a file, expected a folder"),
        text("a.txt", "mine"),
    ),
    Case(
        "export-output-file",
        ("export", "--output", "a.txt"),
        ("a.txt", "is a file, expected a folder"),
        text("a.txt", "mine"),
    ),
    *(
        Case(f"{args[0]}-json-{name}", (*args, "--json", target), (target.split("/")[0], expected))
        for args in (("status",), ("evaluate",), ("report",))
        for name, target, expected in (
            ("folder", "videos", "a folder, expected the name of a file"),
            ("below-a-file", "manifest.json/x", "a file, expected a folder"),
        )
    ),
    Case(
        "report-json-is-the-page",
        ("report", "--output", "r.html", "--json", "./r.html"),
        ("./r.html: the page and --json point to the same file", "--json"),
    ),
    Case(
        "evaluate-csv-is-the-json",
        ("evaluate", "--json", "r", "--csv", "r"),
        ("r: --json and --csv point to the same file", "--csv"),
    ),
    *(
        Case(f"{args[0]}-to-a-url", (*args, URL), (URL, "expected a local path"))
        for args in (
            (*DETECT, "--output"),
            ("export", "--output"),
            ("report", "--output"),
            (*TRAIN, "--output"),
            ("init", "--videos", "videos", "--workspace"),
            ("status", "--json"),
            ("demo",),
        )
    ),
    Case("name-of-two-lines", ("detect", "no\nsuch\x1b[2J.mp4"), (r"no\nsuch\x1b[2J.mp4",)),
    Case("tag-unknown", (*EXTRACT, "--weights", "nope"), ("'nope'", "efficientnet-lite0")),
    Case(
        "i3d-tag-unknown", ("extract", "--backbone", "i3d", "--weights", "x"), ("'x'", "charades")
    ),
    Case("decoder-unknown", ("extract", "--decoder", "vlc"), ("'vlc'", "auto, decord, av")),
    Case("precision-unknown", ("extract", "--precision", "fp8"), ("'fp8'", "auto, float32")),
    Case("engine-unknown", ("extract", "--engine", "spark"), ("'spark'", "local, ray")),
    Case("address-alone", ("extract", "--address", "auto"), ("'auto'", "requires --engine ray")),
    Case("workers-0", ("extract", "--workers", "0"), ("workers is 0", "1 or more")),
    Case("timeout-0", ("extract", "--decode-timeout", "0"), ("timeout is 0", "more than 0")),
    Case("store-scheme", (*EXTRACT, "--store", "nope://x/y.zarr"), ("nope://x/y.zarr", "s3://")),
    Case(
        "whole-clip-window",
        ("extract", "--backbone", "i3d-whole-clip", "--window", "32"),
        ("one row of 16 frames every 8", "--window (32)"),
    ),
    Case("window-0", ("extract", "--window", "0"), ("window is 0", "1 or more")),
    Case("stride-negative", ("extract", "--stride", "-1"), ("stride is -1", "1 or more")),
    Case("threshold-2", (*DETECT, "--threshold", "2"), ("threshold is 2", "<= 1")),
    Case("threshold-nan", (*DETECT, "--threshold", "nan"), ("threshold is nan",)),
    Case("low-over-threshold", (*DETECT, "--low", "0.9"), ("low is 0.9", "0.5")),
    Case("epochs-0", ("train", "--epochs", "0"), ("epochs is 0", "1 or more")),
    Case("arch-unknown", ("train", "--arch", "lstm"), ("'lstm'", "mstemba-v3")),
    Case("lr-nan", ("train", "--lr", "nan"), ("lr is nan",)),
    Case("floor-over-peak", ("train", "--min-lr", "1"), ("min_lr is 1.0", "lr (0.0005)")),
    Case("schedule-unknown", ("train", "--schedule", "step"), ("'step'", "cosine, released")),
    Case(
        "schedule-without-validation",
        ("train", "--schedule", "released"),
        ("--schedule released", "no", "--val-fraction"),
    ),
    Case("patience-negative", ("train", "--patience", "-1"), ("patience is -1", "0 or more")),
    Case("tracker-unknown", ("train", "--trackers", "mlflow"), ("'mlflow'", "wandb, none")),
    Case("recipe-unknown", ("train", "--recipe", "best"), ("'best'", "paper, tuned")),
    Case("recipe-of-no-dataset", ("train", "--recipe", "tuned"), ("'tuned'", "charades, tsu")),
    Case(
        "more-processes-than-clips",
        TRAIN,
        ("3 processes", "batch of 2 clips", "--batch-size"),
        env={"WORLD_SIZE": "3"},
    ),
    Case("device-unknown", (*TRAIN, "--device", "tpu", "--seed", "7"), ("'tpu'", "cuda")),
    Case("workspace-is-none", ("train", "--workspace", "videos"), ("videos", "mstemba init")),
    Case(
        "workspace-of-the-environment-is-none",
        ("train",),
        ("nowhere", "mstemba init"),
        env={"MSTEMBA_WORKSPACE": "nowhere"},
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_one_clear_line_and_nothing_lost(case: Case, workspace: Path, mstemba: Runner) -> None:
    case.prepare(workspace)
    before = contents(workspace)
    result = mstemba(*case.args, cwd=workspace, expect=case.code, env=case.env)
    complaint(result)
    for word in case.words:
        assert word in result.stderr
    assert not (workspace / "executed").exists()
    assert not (workspace / "s3:").exists()
    after = contents(workspace)
    assert {name: after.get(name) for name in before} == before


@pytest.mark.parametrize(
    ("args", "word"),
    [
        (("status",), "--workspace"),
        (("runs",), "--workspace"),
        (("extract",), "--manifest"),
        (("train",), "--manifest"),
        (("evaluate",), "--checkpoint"),
        (("detect", "v.mp4"), "--checkpoint"),
        ((*EXTRACT, "v.mp4"), "--store"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_outside_a_workspace_the_option_to_give_is_named(
    args: tuple[str, ...], word: str, tmp_path: Path, mstemba: Runner
) -> None:
    film(tmp_path / "v.mp4")
    assert word in complaint(mstemba(*args, cwd=tmp_path, expect=2))
    assert [file.name for file in tmp_path.iterdir()] == ["v.mp4"]


@pytest.mark.parametrize(
    ("args", "what"),
    [
        (("detect", ""), "videos: "),
        (("detect", "v.mp4", ""), "videos: "),
        (("detect", "v.mp4", "--checkpoint", ""), "--checkpoint: "),
        (("init", "--videos", ""), "--videos: "),
        (("extract", "--store="), "--store: "),
        (("status", "--workspace", ""), "--workspace: "),
        (("train", "--output", ""), "--output: "),
        (("export", "", "--output", "out"), "scores: "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_an_empty_text_is_not_the_current_folder(
    args: tuple[str, ...], what: str, tmp_path: Path, mstemba: Runner
) -> None:
    film(tmp_path / "v.mp4")
    assert f"{what}found an empty text" in complaint(mstemba(*args, cwd=tmp_path, expect=2))
    assert [file.name for file in tmp_path.iterdir()] == ["v.mp4"]


def test_a_training_with_a_damaged_state_says_which_file_to_delete(
    workspace: Path, mstemba: Runner
) -> None:
    run = current_run(workspace)
    (run / "done.json").unlink()
    state = run / "state.safetensors"
    for content in (b"", POINTER):
        state.write_bytes(content)
        line = complaint(mstemba(*TRAIN, cwd=workspace, expect=2))
        assert f"{state.relative_to(workspace)}: damaged" in line
        assert "delete it to start the training again" in line
    state.unlink()
    mstemba(*TRAIN, cwd=workspace)
    assert (run / "done.json").is_file()


@pytest.fixture
def with_corrupt_video(fresh: Path) -> Path:
    """A workspace in which v1, between two good videos, is cut in half: its index is lost."""
    whole = fresh / "videos" / "v1.mp4"
    (fresh / "whole.mp4").write_bytes(whole.read_bytes())
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    return fresh


def test_a_corrupt_video_fails_alone_and_only_it_is_tried_again(
    with_corrupt_video: Path, mstemba: Runner
) -> None:
    workspace = with_corrupt_video
    first = mstemba(*EXTRACT, cwd=workspace, expect=1)
    assert "2 extracted, 0 cached, 1 failed" in first.stdout
    assert "failed: v1: " in first.stderr
    complaint(first)

    report = json.loads(mstemba("status", "--json", "-", cwd=workspace).stdout)
    assert [v["state"] for v in report["videos"]] == ["done", "failed", "done"]
    assert "v1.mp4" in report["videos"][1]["detail"]

    second = mstemba(*EXTRACT, cwd=workspace, expect=1)
    assert "0 extracted, 2 cached, 1 failed" in second.stdout

    (workspace / "whole.mp4").replace(workspace / "videos" / "v1.mp4")
    third = mstemba(*EXTRACT, cwd=workspace)
    assert "1 extracted, 2 cached, 0 failed" in third.stdout
    assert list(entries(current_store(workspace))) == ["v0", "v1", "v2"]


def test_videos_that_all_failed_can_be_repaired(tmp_path: Path, mstemba: Runner) -> None:
    # The first run has nothing to write, and must leave nothing that stops the second.
    (tmp_path / "videos").mkdir()
    for name in ("v0.mp4", "v1.mp4"):
        (tmp_path / "videos" / name).write_text("no video")
    mstemba("init", "--videos", "videos", cwd=tmp_path)
    result = mstemba(*EXTRACT, cwd=tmp_path, expect=1)
    assert complaint(result) == "mstemba: all 2 videos failed"
    film(tmp_path / "videos" / "v0.mp4")
    film(tmp_path / "videos" / "v1.mp4")
    assert "2 extracted" in mstemba(*EXTRACT, cwd=tmp_path).stdout


# What comes of the real odd files: frames that decode, or the line that says why not.
ODD = {
    "decord_corrupted.mp4": 49,
    "decord_video_90.mov": None,
    "moviepy_1x1_dashname.mp4": None,
    "moviepy_vp9_no_duration.webm": None,
    "torchcodec_av1_video.mkv": None,
    "torchcodec_h265_10bits.mp4": None,
    "torchcodec_nasa_13013.mp4": 390,
}


def test_odd_files_give_the_frames_that_decode_and_the_batch_goes_on(
    shared: Path, tmp_path: Path, mstemba: Runner
) -> None:
    odd = shared / "videos" / "odd"
    files = sorted(odd.iterdir())
    result = mstemba(*EXTRACT, *files, "--store", "s.zarr", cwd=tmp_path, expect=1)
    assert "7 extracted, 0 cached, 1 failed" in result.stdout
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("failed: ")]
    assert "torchcodec_audio_only" in line
    assert "no video stream in it, only audio" in line
    store = FeatureStore.open(tmp_path / "s.zarr")
    for name, most in ODD.items():
        path = odd / name
        entry = store.entry(path.stem)
        assert entry is not None, name
        with av.open(str(path)) as container:
            count = _decodable(container)
        assert entry.frames == count, name
        assert entry.rows == -(-count // 4), name
        assert bool(entry.warnings) == (name == "decord_corrupted.mp4"), (name, entry)
        assert most is None or count <= most


def _decodable(container: av.container.InputContainer) -> int:
    """Frames of the best video stream that FFmpeg gives, whatever is wrong with the rest."""
    stream = container.streams.best("video")
    assert stream is not None
    count = 0
    for packet in container.demux(stream):
        with contextlib.suppress(av.FFmpegError):
            count += len(packet.decode())
    return count


def test_detect_goes_on_after_a_bad_video(
    with_corrupt_video: Path, finished: Path, mstemba: Runner
) -> None:
    workspace = with_corrupt_video
    shutil.copytree(finished / "runs", workspace / "runs")
    result = mstemba("detect", "videos", "--format", "json", cwd=workspace, expect=1)
    assert "failed: v1: " in result.stderr
    complaint(result)
    assert sorted(f.name for f in (workspace / "detections").glob("*.json")) == [
        "v0.json",
        "v2.json",
    ]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda v: v.update(actions=None), id="actions-null"),
        pytest.param(lambda v: v.update(actions=7), id="actions-number"),
        pytest.param(lambda v: v.update(actions=[7]), id="action-number"),
        pytest.param(lambda v: v.update(actions=[["jump", 0, 1]]), id="class-name"),
        pytest.param(lambda v: v.update(actions=[[0, None, 1]]), id="start-null"),
        pytest.param(lambda v: v.update(duration="long"), id="duration-word"),
    ],
)
def test_an_odd_entry_is_told_and_the_others_are_kept(
    change: Callable[[Any], object], tmp_path: Path, mstemba: Runner
) -> None:
    film(tmp_path / "videos" / "v0.mp4")
    film(tmp_path / "videos" / "v1.mp4")
    good = {"subset": "training", "duration": 0.8, "actions": [[0, 0.1, 0.5]]}
    odd = dict(good)
    change(odd)
    (tmp_path / "labels.json").write_text(json.dumps({"v0": odd, "v1": good}))
    result = mstemba(*LABELS, "labels.json", cwd=tmp_path, expect=None)
    assert result.returncode in (0, 1)
    assert "v0" in result.stderr
    made = json.loads((tmp_path / "manifest.json").read_text())
    assert made["videos"]["v1"]["actions"] == [[0, 0.1, 0.5]]


def test_labels_that_cannot_be_used_are_counted_and_the_rest_is_kept(
    tmp_path: Path, mstemba: Runner
) -> None:
    film(tmp_path / "videos" / "v0.mp4")
    entry = {"subset": "training", "duration": 0.8, "actions": [[0, 0.1, 0.5], [5, 0.1, 0.5]]}
    (tmp_path / "labels.json").write_text(json.dumps({"classes": ["a"], "videos": {"v0": entry}}))
    result = mstemba(*LABELS, "labels.json", cwd=tmp_path, expect=1)
    assert "1 annotation skipped; see the warnings" in complaint(result)
    assert "warning: class id outside 0 to 0: 1 skipped" in result.stderr
    made = json.loads((tmp_path / "manifest.json").read_text())
    assert made["videos"]["v0"]["actions"] == [[0, 0.1, 0.5]]


def test_a_malformed_row_is_shown_with_file_and_line(tmp_path: Path, mstemba: Runner) -> None:
    film(tmp_path / "videos" / "v0.mp4")
    (tmp_path / "labels.csv").write_text("video,start,end,label\nv0,0.1,0.5,a\nv0,x,0.5,a\n")
    result = mstemba(*LABELS, "labels.csv", cwd=tmp_path, expect=1)
    assert "1 skipped, for example 'x' to '0.5' in labels.csv, line 3" in (result.stderr)
    assert "1 video (1 with a file), 1 class, 1 action" in result.stdout


def test_a_hand_edited_manifest_is_not_lost_by_init(workspace: Path, mstemba: Runner) -> None:
    edit_json(workspace / "manifest.json", lambda m: m.update(dataset="edited by hand"))
    result = mstemba(*LABELS, "labels.json", cwd=workspace)
    assert "manifest.json.bak" in result.stdout
    assert json.loads((workspace / "manifest.json.bak").read_text())["dataset"] == "edited by hand"


def test_a_test_set_without_a_single_action_has_no_map(workspace: Path, mstemba: Runner) -> None:
    edit_json(workspace / "manifest.json", lambda m: m["videos"]["v2"].update(actions=[]))
    result = mstemba("evaluate", "--json", "-", cwd=workspace, expect=2)
    assert "action" in complaint(result)
    assert result.stdout == ""


def test_a_failed_extraction_does_not_take_the_current_features_away(
    workspace: Path, mstemba: Runner
) -> None:
    (workspace / "bad.pth").write_text("no weights")
    before = current_store(workspace)
    mstemba(*EXTRACT, "--weights", "bad.pth", cwd=workspace, expect=2)
    assert current_store(workspace) == before


def test_validation_videos_without_an_action_do_not_stop_the_training(
    workspace: Path, mstemba: Runner
) -> None:
    edit_json(
        workspace / "manifest.json",
        lambda m: m["videos"]["v1"].update(subset="validation", actions=[]),
    )
    mstemba(*TRAIN, cwd=workspace)
    assert "cached" in mstemba(*TRAIN, cwd=workspace).stdout
