"""Annotation files as the field publishes them: odd entries are counted, and never fatal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mstemba.data_manifests.annotations import Report, join, read_annotations
from mstemba.data_manifests.manifest import Action, load_manifest
from mstemba.errors import ManifestError, UsageError
from mstemba.pipeline.init import init

ACTIONS = [[0, 0.0, 2.5], [1, 1.0, 3.0]]
ENTRY = {"subset": "train", "duration": 4.0, "actions": ACTIONS}
DATABASE = {
    "subset": "train",
    "duration": 4.0,
    "annotations": [
        {"label": "sit", "segment": [0.0, 2.5]},
        {"label": "stand", "segment": [1.0, 3.0]},
    ],
}


def write(folder: Path, data: Any) -> Path:
    path = folder / "labels.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("data", "classes"),
    [
        ({"classes": ["sit", "stand"], "videos": {"v": ENTRY}}, ("sit", "stand")),
        ({"v": ENTRY}, ("class_0", "class_1")),
        ({"database": {"v": DATABASE}}, ("sit", "stand")),
    ],
    ids=["own", "top level", "activitynet"],
)
def test_the_three_forms_give_the_same_videos(
    tmp_path: Path, data: Any, classes: tuple[str, ...]
) -> None:
    manifest, report = read_annotations(write(tmp_path, data))
    video = manifest.videos["v"]
    assert manifest.classes == classes
    assert manifest.time_unit == "seconds"
    assert (video.path, video.subset, video.duration) == (None, "training", 4.0)
    assert video.actions == (Action(0, 0.0, 2.5), Action(1, 1.0, 3.0))
    assert report.lines() == []


def test_given_classes_and_time_unit_stand_in_for_a_file_that_has_none(tmp_path: Path) -> None:
    manifest, _ = read_annotations(write(tmp_path, {"v": ENTRY}), ("a", "b", "c"), "frames")
    assert manifest.classes == ("a", "b", "c")
    assert manifest.time_unit == "frames"


def test_given_classes_decide_the_numbers_of_activitynets_labels(tmp_path: Path) -> None:
    path = write(tmp_path, {"database": {"v": DATABASE}})
    manifest, report = read_annotations(path, ("stand", "run"))
    assert manifest.videos["v"].actions == (Action(0, 1.0, 3.0),)
    assert report.left_out == {"class id outside 0 to 1": 1}


def test_the_files_own_time_unit_is_read(tmp_path: Path) -> None:
    data = {"classes": ["sit", "stand"], "time_unit": "frames", "videos": {"v": ENTRY}}
    assert read_annotations(write(tmp_path, data))[0].time_unit == "frames"
    with pytest.raises(ManifestError, match="'hours'"):
        read_annotations(write(tmp_path, {**data, "time_unit": "hours"}))


@pytest.mark.parametrize(
    ("action", "kind", "kept"),
    [
        ([0, 3.0, 1.0], "action that ends before it starts", True),
        ([0, 1.0, 1.0], "action without length", True),
        ([0, 1.0, 4.5], "action that ends past the video's end", True),
        ([-1, 1.0, 2.0], "class id outside 0 to 1", False),
        ([0, 1.0], "malformed action", False),
        ([0, "1", 2.0], "malformed action", False),
        ([0, float("nan"), 2.0], "malformed action", False),
        ([True, 1.0, 2.0], "malformed action", False),
        ({"label": 0}, "malformed action", False),
        ("sit", "malformed action", False),
        (5, "malformed action", False),
        (None, "malformed action", False),
        ([], "malformed action", False),
    ],
)
@pytest.mark.parametrize("named", [True, False], ids=["classes", "numbers only"])
def test_an_odd_action_is_counted_by_kind_and_the_rest_is_read(
    tmp_path: Path, action: Any, kind: str, kept: bool, named: bool
) -> None:
    entry = {**ENTRY, "actions": [*ACTIONS, action]}
    videos = {"odd": entry, "fine": ENTRY}
    data = {"classes": ["sit", "stand"], "videos": videos} if named else videos
    manifest, report = read_annotations(write(tmp_path, data))
    assert (report.kept if kept else report.left_out) == {kind: 1}
    assert len(manifest.videos["odd"].actions) == 2 + kept
    assert len(manifest.videos["fine"].actions) == 2
    (line,) = report.lines()
    assert line.startswith(f"{kind}: 1 {'kept' if kept else 'left out'}, for example")
    assert "in odd" in line


def test_a_class_past_the_named_ones_is_counted_and_left_out(tmp_path: Path) -> None:
    entry = {**ENTRY, "actions": [*ACTIONS, [7, 1.0, 2.0]]}
    path = write(tmp_path, {"classes": ["sit", "stand"], "videos": {"v": entry}})
    manifest, report = read_annotations(path)
    assert report.left_out == {"class id outside 0 to 1": 1}
    assert len(manifest.videos["v"].actions) == 2


@pytest.mark.parametrize(
    "change",
    [{"actions": None}, {"actions": 5}, {"actions": {"0": 1}}, {"duration": "4 s"}],
    ids=str,
)
@pytest.mark.parametrize("named", [True, False], ids=["classes", "numbers only"])
def test_an_odd_entry_is_reported_and_the_rest_is_read(
    tmp_path: Path, change: dict[str, Any], named: bool
) -> None:
    videos = {"odd": {**ENTRY, **change}, "fine": ENTRY}
    data = {"classes": ["sit", "stand"], "videos": videos} if named else videos
    manifest, report = read_annotations(write(tmp_path, data))
    assert len(manifest.videos["fine"].actions) == 2
    assert "odd" in " ".join(report.lines())


@pytest.mark.parametrize(
    "annotation",
    [{"label": "sit"}, {"segment": [0, 1]}, {"label": "sit", "segment": None}, "sit", None],
    ids=str,
)
def test_an_odd_activitynet_annotation_is_reported_and_the_rest_is_read(
    tmp_path: Path, annotation: Any
) -> None:
    odd = {**DATABASE, "annotations": [*DATABASE["annotations"], annotation]}  # type: ignore[misc]
    path = write(tmp_path, {"database": {"odd": odd, "fine": DATABASE}})
    manifest, report = read_annotations(path)
    assert len(manifest.videos["fine"].actions) == 2
    assert report.left_out == {"malformed action": 1}


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({}, "no entries"),
        ({"videos": {}}, "no entries"),
        ({"v": 5}, "'v' is not an entry"),
        ({"videos": {"v": []}}, "'v' is not an entry"),
        ({"database": {"v": []}}, "not ActivityNet's form"),
        ([], "expected a JSON object"),
    ],
)
def test_a_file_without_entries_is_refused_with_the_forms_that_are_read(
    tmp_path: Path, data: Any, says: str
) -> None:
    with pytest.raises(ManifestError, match=says):
        read_annotations(write(tmp_path, data))


def test_videos_and_annotations_are_joined_and_what_lacks_its_partner_is_counted(
    tmp_path: Path,
) -> None:
    annotated, _ = read_annotations(write(tmp_path, {"a": ENTRY, "b": ENTRY}))
    report = Report()
    joined = join(annotated, {"a": Path("a.mp4"), "c": Path("c.mp4")}, report)
    assert {id: v.path for id, v in joined.videos.items()} == {
        "a": Path("a.mp4"),
        "b": None,
        "c": Path("c.mp4"),
    }
    assert joined.videos["c"].subset is None
    assert report.kept == {
        "annotated video without a file": 1,
        "video file without annotation": 1,
    }


# The real files (DATA.md states their counts)


@pytest.mark.parametrize(
    ("name", "unit", "videos", "classes", "actions", "odd"),
    [
        (
            "charades",
            "seconds",
            9848,
            157,
            66_500,
            {
                "action that ends past the video's end": 19_623,
                "action that ends before it starts": 7,
                "video without actions": 223,
            },
        ),
        ("smarthome", "frames", 536, 51, 41_288, {}),
        (
            "multithumos",
            "seconds",
            411,
            65,
            None,
            {"action that ends past the video's end": 43},
        ),
    ],
)
def test_the_published_files_are_read_whole(
    shared: Path,
    name: str,
    unit: str,
    videos: int,
    classes: int,
    actions: int | None,
    odd: dict[str, int],
) -> None:
    manifest, report = read_annotations(shared / "annotations" / f"{name}.json", time_unit=unit)
    assert len(manifest.videos) == videos
    assert len(manifest.classes) == classes
    assert {v.subset for v in manifest.videos.values()} == {"training", "testing"}
    if actions is not None:
        assert sum(len(v.actions) for v in manifest.videos.values()) == actions
    assert {kind: report.kept[kind] for kind in odd} == odd
    assert not report.left_out


# Making a workspace of videos and annotations


def make_videos(folder: Path, *names: str) -> Path:
    folder.mkdir()
    for name in names:
        (folder / name).touch()
    return folder


def test_init_writes_a_manifest_that_loads_and_counts_the_subsets(tmp_path: Path) -> None:
    folder = make_videos(tmp_path / "videos", "a.mp4", "b.mp4", "c.mp4")
    labels = write(tmp_path, {"a": ENTRY, "b": {**ENTRY, "subset": "test"}})
    made = init([folder], labels, root=tmp_path / "w", dataset="mine")
    assert made.subsets == {"training": 1, "testing": 1, "not annotated": 1}
    loaded = load_manifest(made.workspace.manifest)
    assert loaded.dataset == "mine"
    assert {id: v.actions for id, v in loaded.videos.items()} == {
        id: v.actions for id, v in made.manifest.videos.items()
    }
    assert made.backup is None


def test_init_names_the_classes_by_a_text_file(tmp_path: Path) -> None:
    folder = make_videos(tmp_path / "videos", "a.mp4")
    (tmp_path / "names.txt").write_text("sit\n stand \n\nrun\n", encoding="utf-8")
    labels = write(tmp_path, {"a": ENTRY})
    made = init([folder], labels, root=tmp_path / "w", classes=tmp_path / "names.txt")
    assert made.manifest.classes == ("sit", "stand", "run")
    with pytest.raises(UsageError, match=r"none\.txt"):
        init([folder], labels, root=tmp_path / "w", classes=tmp_path / "none.txt")


def test_init_keeps_a_manifest_that_was_edited_by_hand(tmp_path: Path) -> None:
    folder = make_videos(tmp_path / "videos", "a.mp4")
    made = init([folder], root=tmp_path / "w")
    assert init([folder], root=tmp_path / "w").backup is None  # nothing changed
    edited = made.workspace.manifest.read_text(encoding="utf-8").replace('"videos",', '"mine",')
    made.workspace.manifest.write_text(edited, encoding="utf-8")
    again = init([folder], root=tmp_path / "w")
    assert again.backup is not None
    assert again.backup.read_text(encoding="utf-8") == edited
    assert load_manifest(made.workspace.manifest).dataset == "videos"


def test_init_without_a_video_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least one video"):
        init([], root=tmp_path)
