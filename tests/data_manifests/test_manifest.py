"""The manifest, and finding the videos that it names."""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mstemba.data_manifests.manifest import (
    Action,
    Manifest,
    Video,
    find_videos,
    load_manifest,
    manifest_json,
    normalise_subset,
)
from mstemba.data_manifests.readers.eaf import SUFFIX
from mstemba.data_manifests.readers.tables import SUFFIXES, files_with
from mstemba.errors import ManifestError
from mstemba.pipeline.features.sources import NpyFolder

HEAD = {
    "format": "mstemba-manifest",
    "version": 1,
    "dataset": "d",
    "classes": ["sit", "stand"],
    "time_unit": "seconds",
}

text = st.text(max_size=20)
ids = st.text(min_size=1, max_size=20) | st.sampled_from(
    ["a/b", "..", "ü?", "\n", "'\"\\", "\ud83d"]
)
times = st.floats(-1e6, 1e6)
actions = st.lists(st.builds(Action, st.integers(0, 1), times, times), max_size=3).map(tuple)


def write(folder: Path, videos: Any, **changes: Any) -> Path:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**HEAD, "videos": videos, **changes}), encoding="utf-8")
    return path


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    videos = {
        id: Video(
            id,
            draw(st.none() | st.sampled_from([Path("v/a.mp4"), Path("b c.mkv"), Path("ü.avi")])),
            draw(st.sampled_from([None, "training", "validation", "testing", "extra"])),
            draw(st.none() | st.floats(0, 1e6)),
            draw(actions),
        )
        for id in draw(st.lists(ids, unique=True, max_size=4))
    }
    unit = draw(st.sampled_from(["seconds", "frames"]))
    return Manifest(draw(text), ("sit", "stand"), unit, videos)


@given(manifest=manifests())
@settings(max_examples=60)
def test_a_manifest_comes_back_as_it_was_saved(
    manifest: Manifest, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("m")
    below = {
        id: Video(id, v.path and folder / v.path, v.subset, v.duration, v.actions)
        for id, v in manifest.videos.items()
    }
    whole = Manifest(manifest.dataset, manifest.classes, manifest.time_unit, below)
    (folder / "m.json").write_text(manifest_json(whole, folder), encoding="utf-8")
    assert load_manifest(folder / "m.json") == whole


def test_paths_below_the_manifest_are_written_relative_so_that_the_folder_can_move(
    tmp_path: Path,
) -> None:
    inside, outside = tmp_path / "w" / "videos" / "a.mp4", tmp_path / "b.mp4"
    videos = {"a": Video("a", inside, None, None), "b": Video("b", outside, None, None)}
    saved = json.loads(manifest_json(Manifest("d", (), "seconds", videos), tmp_path / "w"))[
        "videos"
    ]
    assert saved["a"]["path"] == "videos/a.mp4"
    assert Path(saved["b"]["path"]) == outside.resolve()
    moved = write(tmp_path, {"a": saved["a"]})
    assert load_manifest(moved).videos["a"].path == tmp_path / "videos" / "a.mp4"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "not readable as JSON"),
        ("{", "not readable as JSON"),
        ("[]", "expected a JSON object, found list"),
        (json.dumps({**HEAD, "videos": {}, "format": "coco"}), "format 'coco'"),
        (json.dumps({**HEAD, "videos": {}, "version": 2}), "version 2"),
        (json.dumps({"videos": {}}), "format None, version None"),
        (json.dumps({**HEAD, "videos": {}, "classes": "sit"}), "`classes`"),
        (json.dumps({**HEAD, "videos": {}, "classes": [1]}), "`classes`"),
        (json.dumps({**HEAD, "videos": {}, "time_unit": "hours"}), "'hours'"),
        (json.dumps({**HEAD, "videos": []}), "`videos`"),
        (json.dumps({**HEAD, "videos": {"v7": []}}), "video 'v7'"),
    ],
)
def test_a_file_that_is_no_manifest_is_refused_with_what_was_found(
    tmp_path: Path, content: str, says: str
) -> None:
    path = tmp_path / "manifest.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ManifestError) as caught:
        load_manifest(path)
    assert says in str(caught.value)
    assert str(path) in str(caught.value)


def test_bytes_that_are_no_text_and_a_missing_file_are_manifest_errors(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "m.json", tmp_path / "none.json", tmp_path):
        with pytest.raises(ManifestError):
            load_manifest(path)


@pytest.mark.parametrize("class_id", [2, -1, 157])
def test_an_unknown_class_names_the_video_and_the_id(tmp_path: Path, class_id: int) -> None:
    path = write(tmp_path, {"ok": {"actions": [[1, 0, 1]]}, "v7": {"actions": [[class_id, 0, 1]]}})
    with pytest.raises(ManifestError) as caught:
        load_manifest(path)
    assert "video 'v7', action 0" in str(caught.value)
    assert f"unknown class id {class_id}" in str(caught.value)


@pytest.mark.parametrize(
    "action",
    [
        [0, float("nan"), 1],
        [0, 0, float("inf")],
        [0, True, 2],
        [0, "1", 2],
        [0, None, 2],
        [True, 0, 1],
        [0.5, 0, 1],
        ["0", 0, 1],
        [0, 1],
        [0, 1, 2, 3],
        "0 1",
        5,
        None,
        {"class": 0},
        pytest.param([0, 0, 10**400], id="a number beyond any float"),
    ],
)
def test_an_action_that_is_none_names_the_video_and_its_place(tmp_path: Path, action: Any) -> None:
    path = write(tmp_path, {"v7": {"actions": [[1, 0, 1], action]}})
    with pytest.raises(ManifestError, match="video 'v7', action 1"):
        load_manifest(path)


@pytest.mark.parametrize("actions", [None, 5, {"a": 1}, "x"])
def test_actions_that_are_no_list_name_the_video(tmp_path: Path, actions: Any) -> None:
    with pytest.raises(ManifestError, match="video 'v7'"):
        load_manifest(write(tmp_path, {"v7": {"actions": actions}}))


@pytest.mark.parametrize(
    "duration",
    ["31.0", -31.0, True, [], float("nan"), float("inf"), pytest.param(10**400, id="huge")],
)
def test_a_duration_that_is_none_names_the_video(tmp_path: Path, duration: Any) -> None:
    path = write(tmp_path, {"ok": {"duration": None}, "v7": {"duration": duration}})
    with pytest.raises(ManifestError, match=r"video 'v7': `duration` is .*0 or more, or null"):
        load_manifest(path)


@pytest.mark.parametrize("duration", [None, 0, 31, 31.5])
def test_a_duration_is_a_number_or_not_known(tmp_path: Path, duration: Any) -> None:
    path = write(tmp_path, {"v7": {"duration": duration}})
    assert load_manifest(path).videos["v7"].duration == duration


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('"b": {', '"a": {', "`videos`: 'a' appears twice"),
        ('"subset": "testing"', '"duration": 2', "video 'b': 'duration' appears twice"),
        ('"format"', '"time_unit": "frames", "format"', "'time_unit' appears twice"),
    ],
)
def test_what_is_there_twice_in_a_manifest_is_refused(
    tmp_path: Path, old: str, new: str, says: str
) -> None:
    path = write(tmp_path, {"a": {"duration": 1}, "b": {"duration": 1, "subset": "testing"}})
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ManifestError, match=says):
        load_manifest(path)


def test_json_nested_too_deep_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    path.write_text('{"videos": ' + "[" * 100_000 + "]" * 100_000 + "}")
    with pytest.raises(ManifestError, match=r"m\.json: not readable as JSON: .*recursion"):
        load_manifest(path)


def test_negative_and_reversed_times_are_kept_because_real_annotations_have_them(
    tmp_path: Path,
) -> None:
    path = write(tmp_path, {"v": {"actions": [[0, -1, 2.5], [1, 9, 3]]}})
    assert load_manifest(path).videos["v"].actions == (Action(0, -1.0, 2.5), Action(1, 9.0, 3.0))


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("train", "training"),
        ("Training ", "training"),
        ("val", "validation"),
        ("VALID", "validation"),
        ("test", "testing"),
        ("extra", "extra"),
        ("", None),
        (" ", None),
        (None, None),
    ],
)
def test_subsets_have_one_name(spelling: str | None, name: str | None) -> None:
    assert normalise_subset(spelling) == name


def test_a_subset_holds_its_videos_with_a_file_or_without() -> None:
    videos = {
        "a": Video("a", Path("a"), "training", None),
        "b": Video("b", None, "training", None),
        "c": Video("c", Path("c"), "testing", None),
    }
    assert [v.id for v in Manifest("d", (), "seconds", videos).subset("training")] == ["a", "b"]


# Finding videos


def touch(folder: Path, *names: str) -> list[Path]:
    files = [folder / name for name in names]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    return files


def test_videos_are_found_in_files_and_below_folders_by_their_stem(tmp_path: Path) -> None:
    a, b, _, single = touch(tmp_path, "f/a.mp4", "f/deep/er/B.MKV", "f/notes.txt", "odd.name")
    assert find_videos([tmp_path / "f", single]) == {"a": a, "B": b, "odd": single}


def test_two_videos_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    a, b, c = touch(tmp_path, "one/x.mp4", "two/x.mp4", "two/y.mp4")
    assert find_videos([tmp_path]) == {"one/x": a, "two/x": b, "y": c}


def test_two_containers_of_one_name_are_told_apart_by_their_suffix(tmp_path: Path) -> None:
    avi, mp4 = touch(tmp_path, "x.avi", "x.mp4")
    assert find_videos([tmp_path]) == {"x.avi": avi, "x.mp4": mp4}


def test_two_files_of_one_name_given_from_two_folders_are_both_found(tmp_path: Path) -> None:
    files = touch(tmp_path, "one/x.mp4", "two/x.mp4")
    assert sorted(find_videos(files).values()) == files


def test_a_video_that_is_named_twice_is_found_once(tmp_path: Path) -> None:
    (file,) = touch(tmp_path, "f/x.mp4")
    assert list(find_videos([file, file]).values()) == [file]
    assert list(find_videos([tmp_path / "f", file]).values()) == [file]


def test_a_missing_path_and_a_folder_without_video_are_named(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"none\.mp4: no such file"):
        find_videos([tmp_path / "none.mp4"])
    touch(tmp_path, "empty/readme.txt")
    with pytest.raises(ManifestError, match="empty: no video in this folder"):
        find_videos([tmp_path / "empty"])


def test_links_to_folders_are_followed_once_and_those_to_nowhere_are_found(tmp_path: Path) -> None:
    a, b, _ = touch(tmp_path, "f/b/a.mp4", "elsewhere/b.mp4", "f/notes.txt")
    (tmp_path / "f" / "a link").symlink_to(tmp_path / "f" / "b")
    (tmp_path / "f" / "linked").symlink_to(b.parent)
    (b.parent / "up").symlink_to(tmp_path / "f")
    gone = tmp_path / "f" / "gone.mp4"
    gone.symlink_to("nowhere.mp4")
    (tmp_path / "f" / "gone.txt").symlink_to("nowhere.txt")
    linked = tmp_path / "f" / "linked" / "b.mp4"
    assert find_videos([tmp_path / "f"]) == {"a": a, "b": linked, "gone": gone}
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "linked").symlink_to(b.parent.parent / "f" / "b")
    assert list(find_videos([tmp_path / "only"])) == ["a"]


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="it is found, and fails when it is read")
def test_a_link_to_itself_is_named(tmp_path: Path) -> None:
    (tmp_path / "loop.mp4").symlink_to("loop.mp4")
    with pytest.raises(ManifestError, match=r"loop\.mp4: a link to itself"):
        find_videos([tmp_path])


def test_a_folder_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "a.mp4", "locked/b.mp4", "lost+found/c.mp4")
    scandir, closed = os.scandir, {"lost+found"}

    def refusing(path: str) -> Any:
        if Path(path).name in closed:
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    assert list(find_videos([tmp_path])) == ["a", "b"]  # of the system: nobody's videos
    closed.add("locked")
    for below in (lambda: find_videos([tmp_path]), lambda: files_with(tmp_path, SUFFIXES)):
        with pytest.raises(ManifestError, match=r"locked: this folder cannot be read \(Permission"):
            below()


def test_annotations_and_features_are_found_behind_links_to_folders(tmp_path: Path) -> None:
    touch(tmp_path, "elsewhere/a.csv", "elsewhere/a.eaf", "elsewhere/a.npy", "elsewhere/.b.npy")
    (tmp_path / "f").mkdir()
    link = tmp_path / "f" / "link"
    link.symlink_to(tmp_path / "elsewhere")
    assert files_with(tmp_path / "f", SUFFIXES) == [link / "a.csv"]
    assert files_with(tmp_path / "f", (SUFFIX,)) == [link / "a.eaf"]
    assert NpyFolder(tmp_path / "f").ids() == ["a"]


stems = st.sampled_from(["x", "y", "x.mp4", "x.avi", ".x", "x y"])
names = st.builds(
    "{}{}{}".format,
    st.sampled_from(["", "one/", "two/", "one/two/"]),
    stems,
    st.sampled_from([".mp4", ".avi", ".MKV"]),
)


@given(names=st.lists(names, min_size=1, max_size=8, unique=True), as_files=st.booleans())
@settings(max_examples=100)
def test_every_file_is_found_under_an_id_of_its_own(
    names: list[str], as_files: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("v")
    files = touch(folder, *names)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        found = find_videos([Path(name) for name in names] if as_files else [folder])
        assert sorted(path.resolve() for path in found.values()) == sorted(files)
