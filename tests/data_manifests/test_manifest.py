"""The manifest."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mstemba.data_manifests.manifest import (
    Action,
    Manifest,
    Video,
    load_manifest,
    manifest_json,
    normalise_subset,
)
from mstemba.errors import ManifestError

HEAD = {
    "format": "mstemba-manifest",
    "version": 1,
    "dataset": "d",
    "classes": ["sit", "stand"],
    "time_unit": "seconds",
}

letters = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
text = st.text(letters, max_size=20)
ids = st.text(letters, min_size=1, max_size=20) | st.sampled_from(
    ["a/b", "..", "ü?", "\n", "'\"\\", "\udcff"]
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
            draw(st.none() | st.floats(0, 1e6)),
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
    below = {id: replace(v, path=v.path and folder / v.path) for id, v in manifest.videos.items()}
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
        ("[]", "expected object, found array at $"),
        (json.dumps({**HEAD, "videos": {}, "format": "coco"}), "format 'coco'"),
        (json.dumps({**HEAD, "videos": {}, "version": 2}), "version 2"),
        (json.dumps({"videos": {}}), "format None, version None"),
        (
            json.dumps({**HEAD, "videos": {}, "classes": "sit"}),
            "expected array, found str at $.classes",
        ),
        (
            json.dumps({**HEAD, "videos": {}, "classes": [1]}),
            "expected str, found int at $.classes[0]",
        ),
        (
            json.dumps({**HEAD, "videos": {}, "time_unit": "hours"}),
            "'frames', found 'hours' at $.time_unit",
        ),
        (json.dumps({**HEAD, "videos": []}), "expected object, found array at $.videos"),
        (json.dumps({**HEAD, "videos": {"v7": []}}), "expected object, found array at $.videos.v7"),
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
        [0, 1, 1e300],
        [0, -1e11, 1],
        "0 1",
        5,
        None,
        {"class": 0},
        pytest.param([0, 0, 10**400], id="a number beyond any float"),
    ],
)
def test_an_action_that_is_none_names_the_video_and_its_place(tmp_path: Path, action: Any) -> None:
    path = write(tmp_path, {"v7": {"actions": [[1, 0, 1], action]}})
    with pytest.raises(ManifestError, match=r"m\S+: .* at \$\.videos\.v7\.actions\[1\]"):
        load_manifest(path)


@pytest.mark.parametrize("actions", [None, 5, {"a": 1}, "x"])
def test_actions_that_are_no_list_name_the_video(tmp_path: Path, actions: Any) -> None:
    with pytest.raises(ManifestError, match=r"expected array, found .* \$\.videos\.v7\.actions"):
        load_manifest(write(tmp_path, {"v7": {"actions": actions}}))


@pytest.mark.parametrize(
    "duration",
    ["31.0", -31.0, True, [], float("nan"), float("inf"), pytest.param(10**400, id="huge")],
)
def test_a_duration_that_is_none_names_the_video(tmp_path: Path, duration: Any) -> None:
    path = write(tmp_path, {"ok": {"duration": None}, "v7": {"duration": duration}})
    with pytest.raises(ManifestError, match=r" at \$\.videos\.v7\.duration$"):
        load_manifest(path)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"classes": [f"c{i}" for i in range(10_001)]}, "length <= 10000"),
        ({"classes": ["a\0b"]}, r"found 'a\\x00b' at \$\.classes\[0\]"),
        ({"classes": ["c" * 1001]}, r"length <= 1000, found 'ccc.* at \$\.classes\[0\]"),
        ({"fps": -25}, r"expected float >= 1e-05, found -25 at \$\.fps"),
        ({"fps": "25"}, r"at \$\.fps"),
        ({"dataset": ["d"]}, r"at \$\.dataset"),
        ({"videos": {"a\ud800": {}}}, r"found 'a\\ud800' at \$\.videos\."),
        ({"videos": {"a\0": {}}}, r"found 'a\\x00' at \$\.videos\."),
        ({"videos": {"": {}}}, r"length >= 1, found '' at \$\.videos\.''"),
        ({"videos": {"v7": {"path": "a\0.mp4"}}}, r"at \$\.videos\.v7\.path"),
        ({"videos": {"v7": {"path": "a" * 5000}}}, r"length <= 4096.* at \$\.videos\.v7\.path"),
        ({"videos": {"v7": {"subset": ["testing"]}}}, r"at \$\.videos\.v7\.subset"),
        ({"videos": {"v7": {"duration": 1e12}}}, r"at \$\.videos\.v7\.duration"),
    ],
)
def test_what_no_manifest_may_hold_is_named_with_its_place(
    tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(ManifestError, match=says) as caught:
        load_manifest(write(tmp_path, **{"videos": {}, **changes}))
    assert len(str(caught.value)) < 500


def test_unknown_members_and_subsets_that_are_numbers_are_read(tmp_path: Path) -> None:
    entry = {"subset": 3, "camera": {"id": [1, 2]}, "duration": 4}
    path = write(tmp_path, {"v": entry, "w": {"subset": None}}, licence=None, dataset=None)
    manifest = load_manifest(path)
    assert [video.subset for video in manifest.videos.values()] == ["3", None]
    assert '"duration": 4,' in manifest_json(manifest, tmp_path)


@pytest.mark.parametrize("until", ["31.0", -0.5, True, [30.0], {}, float("nan"), float("inf")])
def test_a_time_of_annotation_that_is_none_names_the_video(tmp_path: Path, until: Any) -> None:
    path = write(tmp_path, {"ok": {"annotated_until": None}, "v7": {"annotated_until": until}})
    with pytest.raises(ManifestError, match=r" at \$\.videos\.v7\.annotated_until$"):
        load_manifest(path)


def test_only_a_video_that_is_annotated_in_part_says_so(tmp_path: Path) -> None:
    path = write(tmp_path, {"a": {"annotated_until": 12.5}, "b": {"annotated_until": None}})
    manifest = load_manifest(path)
    assert manifest.videos["a"].annotated_until == 12.5
    saved = json.loads(manifest_json(manifest, tmp_path))["videos"]
    assert saved["a"]["annotated_until"] == 12.5
    assert "annotated_until" not in saved["b"]


@pytest.mark.parametrize("duration", [None, 0, 31, 31.5])
def test_a_duration_is_a_number_or_not_known(tmp_path: Path, duration: Any) -> None:
    path = write(tmp_path, {"v7": {"duration": duration}})
    assert load_manifest(path).videos["v7"].duration == duration


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('"b": {', '"a": {', r"'a' appears twice at \$\.videos; delete one"),
        ('"subset": "testing"', '"duration": 2', r"'duration' appears twice at \$\.videos\.b;"),
        ('"format"', '"time_unit": "frames", "format"', r"'time_unit' appears twice at \$;"),
    ],
)
def test_what_is_there_twice_in_a_manifest_is_refused(
    tmp_path: Path, old: str, new: str, says: str
) -> None:
    path = write(tmp_path, {"a": {"duration": 1}, "b": {"duration": 1, "subset": "testing"}})
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ManifestError, match=says):
        load_manifest(path)


def test_two_classes_of_one_name_are_refused_with_the_file_and_the_place(tmp_path: Path) -> None:
    path = write(tmp_path, {})
    path.write_text(json.dumps({**json.loads(path.read_text()), "classes": ["pour", "pour"]}))
    where = re.escape(f"{path}: $.classes: ")
    with pytest.raises(ManifestError, match=rf"{where}class name 'pour' appears twice; names must"):
        load_manifest(path)


def test_json_nested_too_deep_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    path.write_text('{"videos": ' + "[" * 100_000 + "]" * 100_000 + "}")
    with pytest.raises(ManifestError, match=r"m\.json: not readable as JSON: nested 100001 levels"):
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
        ("trn", "training"),
        ("Train_Set", "training"),
        ("validation set", "validation"),
        ("dev", "validation"),
        ("TST", "testing"),
        ("test-split", "testing"),
        ("extra", "extra"),
        ("Extra set", "extra set"),
        ("trainval", "trainval"),
        ("eval", "eval"),  # some data sets test on it, others validate
        ("", None),
        (" ", None),
        (None, None),
        ("NA", None),
        ("n/a", None),
        (float("nan"), None),
        ("None", None),
        ("NULL", None),
        (" - ", None),
        ("\N{EM DASH}", None),
        ("?", None),
    ],
)
def test_subsets_have_one_name(spelling: str | float | None, name: str | None) -> None:
    assert normalise_subset(spelling) == name


def test_subsets_are_described_by_their_number_of_videos() -> None:
    subsets = ("training", "fold 1", "training", None, "testing", "fold 1")
    videos = {f"v{n}": Video(f"v{n}", None, name, None) for n, name in enumerate(subsets)}
    manifest = Manifest("d", (), "seconds", videos)
    assert manifest.describe_subsets() == "2 training, 2 fold 1, 1 without a subset, 1 testing"
    assert manifest.describe_subsets(unused=True) == "2 fold 1"


def test_a_subset_holds_its_videos_with_a_file_or_without() -> None:
    videos = {
        "a": Video("a", Path("a"), "training", None),
        "b": Video("b", None, "training", None),
        "c": Video("c", Path("c"), "testing", None),
    }
    assert [v.id for v in Manifest("d", (), "seconds", videos).subset("training")] == ["a", "b"]
