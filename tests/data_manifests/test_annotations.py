"""JSON annotations as the field publishes them, known datasets, units, and making a workspace."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mstemba.data_manifests.annotations import read_annotations
from mstemba.data_manifests.datasets import DATASETS, load_dataset
from mstemba.data_manifests.joining import join
from mstemba.data_manifests.manifest import Action, load_manifest
from mstemba.data_manifests.readers.parsed import AnnotationReport
from mstemba.errors import ManifestError, UsageError
from mstemba.pipeline.demo import write_video
from mstemba.pipeline.features.import_npy import ImportOptions, import_features
from mstemba.pipeline.features.sources import find_features
from mstemba.pipeline.init import init
from mstemba.pipeline.workspace import get_current
from tests.command_line import environment

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
    "make",
    [lambda v: {"videos": v}, lambda v: v, lambda v: {"database": v}],
    ids=["own", "", "net"],
)
def test_every_form_of_json_may_say_up_to_when_a_video_is_annotated(
    tmp_path: Path, make: Callable[[Any], Any]
) -> None:
    times = {"a": 2.5, "b": None, "c": "2.5", "d": -1}
    entry = {**ENTRY, "annotations": DATABASE["annotations"]}
    path = write(tmp_path, make({id: {**entry, "annotated_until": t} for id, t in times.items()}))
    manifest, report = read_annotations(path)
    found = {id: video.annotated_until for id, video in manifest.videos.items()}
    assert found == {"a": 2.5, "b": None, "c": None, "d": None}
    assert report.skipped == {"malformed annotated_until": 2}
    assert report.examples["malformed annotated_until"] == "'2.5' in c"


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


@pytest.mark.parametrize("version", [7, 0, "1", None])
def test_a_manifest_of_another_version_is_refused_as_annotations(
    tmp_path: Path, version: Any
) -> None:
    entry = {"subset": "training", "duration": 9.0, "actions": [[0, 1.0, 2.0]]}
    manifest = {
        "format": "mstemba-manifest",
        "version": 1,
        "classes": ["a"],
        "videos": {"v": entry},
    }
    path = tmp_path / "x.json"
    path.write_text(json.dumps(manifest))
    assert read_annotations(path)[0].videos["v"].duration == 9.0
    path.write_text(json.dumps(manifest | {"version": version}))
    with pytest.raises(ManifestError, match=rf"version {version!r}; expected 'mstemba-man.*, ver"):
        read_annotations(path)


def test_the_frame_rate_of_a_manifest_is_kept(tmp_path: Path) -> None:
    entry = {"subset": "training", "duration": 900.0, "actions": [[0, 10, 20]]}
    manifest = {
        "format": "mstemba-manifest", "version": 1, "classes": ["a"], "time_unit": "frames",
        "fps": 25.0, "videos": {"v": entry},
    }  # fmt: skip
    path = tmp_path / "x.json"
    path.write_text(json.dumps(manifest))
    assert read_annotations(path)[0].fps == 25.0
    assert read_annotations(path, time_unit="seconds")[0].fps is None
    for fps in (-1, 2e5):
        path.write_text(json.dumps(manifest | {"fps": fps}))
        with pytest.raises(ManifestError, match=r"at \$\.fps"):
            read_annotations(path)


def test_manifests_of_two_frame_rates_are_not_merged(tmp_path: Path) -> None:
    def write_rate(name: str, fps: float) -> Path:
        entry = {"subset": "training", "duration": 900.0, "actions": [[0, 10, 20]]}
        manifest = {
            "format": "mstemba-manifest", "version": 1, "classes": ["a"], "time_unit": "frames",
            "fps": fps, "videos": {name: entry},
        }  # fmt: skip
        (tmp_path / f"{name}.json").write_text(json.dumps(manifest))
        return tmp_path / f"{name}.json"

    init((), write_rate("monday", 25.0), root=tmp_path / "w")
    merged = init((), write_rate("tuesday", 25.0), root=tmp_path / "w", merge=True).manifest
    assert (merged.fps, len(merged.videos)) == (25.0, 2)
    with pytest.raises(ManifestError, match=r"30 frames a second, but the manifest .* has 25"):
        init((), write_rate("friday", 30.0), root=tmp_path / "w", merge=True)


@pytest.mark.parametrize("classes", [{"0": "sit", "1": "stand"}, {"stand": 1, "sit": 0}], ids=str)
def test_an_object_may_give_the_numbers_of_the_classes(tmp_path: Path, classes: Any) -> None:
    manifest, _ = read_annotations(write(tmp_path, {"classes": classes, "videos": {"v": ENTRY}}))
    assert manifest.classes == ("sit", "stand")


@pytest.mark.parametrize(
    "classes",
    ["sit,stand", 2, {"1": "sit", "2": "stand"}, {"a": "sit", "b": "stand"}, {"sit": 0, "x": 0}],
    ids=str,
)
@pytest.mark.parametrize("form", ["videos", "records"])
def test_classes_that_are_not_listed_in_order_are_refused(
    tmp_path: Path, classes: Any, form: str
) -> None:
    records = [{"video": "v", "start": 0, "end": 1, "label": 0}]
    path = write(
        tmp_path, {"classes": classes, form: {"v": ENTRY} if form == "videos" else records}
    )
    with pytest.raises(
        ManifestError, match=r"labels\.json: \$\.classes: found .*, expected a list"
    ):
        read_annotations(path)


@pytest.mark.parametrize("classes", [20, {"1": "run"}, [{"id": 0, "name": "run"}]], ids=str)
def test_the_classes_of_activitynet_are_its_labels(tmp_path: Path, classes: Any) -> None:
    own, _ = read_annotations(write(tmp_path, {"database": {"v": DATABASE}}))
    found, _ = read_annotations(write(tmp_path, {"classes": classes, "database": {"v": DATABASE}}))
    assert found == own


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["pour", "stir", "pour"], "class name 'pour' appears twice"),
        (["\xe9", "e\u0301"], r"class names '\\xe9' and 'e\\u0301' look the same"),
        (["a", "a\u200b"], r"class names 'a' and 'a\\u200b' look the same"),
    ],
)
def test_classes_of_one_name_are_refused_with_their_place(
    tmp_path: Path, names: list[str], says: str
) -> None:
    path = write(tmp_path, {"classes": names, "videos": {"v": ENTRY}})
    with pytest.raises(ManifestError, match=rf"labels\.json: \$\.classes: {says}; names must"):
        read_annotations(path)
    path = write(tmp_path, {"v": ENTRY})
    with pytest.raises(ManifestError, match=rf"--classes: {says}; names must differ"):
        read_annotations(path, classes=tuple(names))


@pytest.mark.parametrize(
    "label", ["a\u200b", "\ufeffa", "a\u2060 ", "\u200ba\ufeff"], ids=lambda text: ascii(text)
)
def test_invisible_characters_do_not_make_another_class(tmp_path: Path, label: str) -> None:
    path = tmp_path / "v.csv"
    path.write_text(f"start,end,label\n0,1,{label}\n2,3,a\n4,5,\u0915\u094d\u200d\n", "utf-8")
    manifest, report = read_annotations(path)
    assert manifest.classes == ("a", "\u0915\u094d\u200d")  # which needs its joiner
    manifest, report = read_annotations(path, classes=("a", "\u0915\u094d\u200d"))
    assert len(manifest.videos["v"].actions) == 3
    assert not report.skipped


SYNONYM = "two names for the same thing"


@pytest.mark.parametrize("make", [lambda v: {"videos": v}, lambda v: v, lambda v: {"database": v}])
def test_activitynets_entries_and_others_are_read_in_every_form(
    tmp_path: Path, make: Callable[[Any], Any]
) -> None:
    path = write(tmp_path, make({"v": DATABASE}))
    manifest, _ = read_annotations(path)
    assert manifest.classes == ("sit", "stand")
    assert manifest.videos["v"].actions == (Action(0, 0.0, 2.5), Action(1, 1.0, 3.0))
    path = write(tmp_path, make({"v": ENTRY}))
    assert read_annotations(path)[0].videos["v"].actions == manifest.videos["v"].actions
    path = write(tmp_path, make({"v": {**ENTRY, "annotations": []}}))
    assert read_annotations(path)[1].doubts == {SYNONYM: 1}
    assert "'annotations'" in read_annotations(path)[1].examples[SYNONYM]


@pytest.mark.parametrize(
    ("data", "found"),
    [
        ({"videos": {"v": ENTRY}, "database": {"v": DATABASE}}, "'database' and 'videos'"),
        (
            {"videos": {"v": ENTRY}, "extra": [{"video": "v", "start": 0, "end": 1, "label": 0}]},
            "'videos' and records",
        ),
    ],
)
def test_two_forms_in_one_file_are_refused(tmp_path: Path, data: Any, found: str) -> None:
    with pytest.raises(ManifestError, match=f"found {found}, expected one of them"):
        read_annotations(write(tmp_path, data))


def test_class_numbers_next_to_class_names_are_doubtful(tmp_path: Path) -> None:
    actions = [{"label": "sit", "segment": [0, 1]}, [0, 1, 2]]
    _, report = read_annotations(write(tmp_path, {"v": {"actions": actions}}))
    (line,) = report.lines("doubts")
    assert "class number in annotations with class names" in line
    assert line.endswith("[0, 1.0, 2.0] in v")


def test_given_classes_and_time_unit_stand_in_for_a_file_that_has_none(tmp_path: Path) -> None:
    manifest, _ = read_annotations(
        write(tmp_path, {"v": ENTRY}), classes=("a", "b", "c"), time_unit="frames"
    )
    assert manifest.classes == ("a", "b", "c")
    assert manifest.time_unit == "frames"


def test_given_classes_decide_the_numbers_of_activitynets_labels(tmp_path: Path) -> None:
    path = write(tmp_path, {"database": {"v": DATABASE}})
    manifest, report = read_annotations(path, classes=("stand", "run"))
    assert manifest.videos["v"].actions == (Action(0, 1.0, 3.0),)
    assert report.skipped == {"unknown class name": 1}
    assert report.examples["unknown class name"] == "['sit', 0.0, 2.5] in v"
    with pytest.raises(ManifestError, match="all class names are unknown: found 'sit'"):
        read_annotations(path, classes=("run", "jump"))


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
        ([0, 1.0, 4.5], "action that ends after the video", True),
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
    assert (report.kept if kept else report.skipped) == {kind: 1}
    assert len(manifest.videos["odd"].actions) == 2 + kept
    assert len(manifest.videos["fine"].actions) == 2
    (line,) = report.lines()
    assert line.startswith(f"{kind}: 1 {'kept' if kept else 'skipped'}, for example")
    assert "in odd" in line


def test_a_class_past_the_named_ones_is_counted_and_left_out(tmp_path: Path) -> None:
    entry = {**ENTRY, "actions": [*ACTIONS, [7, 1.0, 2.0]]}
    path = write(tmp_path, {"classes": ["sit", "stand"], "videos": {"v": entry}})
    manifest, report = read_annotations(path)
    assert report.skipped == {"class id outside 0 to 1": 1}
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
    assert report.skipped == {"malformed action": 1}


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({}, "no entries"),
        ({"videos": {}}, "no entries"),
        ({"v": 5}, "'v' is not an entry"),
        ({"videos": {"v": []}}, "'v' is not an entry"),
        ({"database": {"v": []}}, "'v' is not an entry"),
        ([], "expected a JSON object"),
    ],
)
def test_a_file_without_entries_is_refused_with_the_forms_that_are_read(
    tmp_path: Path, data: Any, says: str
) -> None:
    with pytest.raises(ManifestError, match=says):
        read_annotations(write(tmp_path, data))


@pytest.mark.parametrize(
    "form",
    [
        '{"v": %s, "w": %s, "v": %s}',
        '{"classes": ["sit", "stand"], "videos": {"v": %s, "w": %s, "v": %s}}',
    ],
    ids=["top level", "own"],
)
def test_of_a_video_that_is_there_twice_the_first_entry_counts(tmp_path: Path, form: str) -> None:
    other = {**ENTRY, "actions": []}
    path = tmp_path / "labels.json"
    path.write_text(form % tuple(map(json.dumps, (ENTRY, ENTRY, other))))
    manifest, report = read_annotations(path)
    assert list(manifest.videos) == ["v", "w"]
    assert len(manifest.videos["v"].actions) == 2
    assert report.skipped == {"second entry of a video": 1}
    assert report.examples["second entry of a video"] == "'v' in labels.json"


def test_of_any_name_that_is_there_twice_the_first_value_counts(tmp_path: Path) -> None:
    path = write(tmp_path, {"classes": ["sit", "stand"], "videos": {"v": ENTRY}})
    text = path.read_text().replace('"duration"', '"subset": "test", "subset": "x", "duration"')
    path.write_text(text.replace('{"classes"', '{"time_unit": "frames", "time_unit": 3, "classes"'))
    manifest, report = read_annotations(path)
    assert (manifest.time_unit, manifest.videos["v"].subset) == ("frames", "training")
    assert report.skipped == {"second value of a name": 3}
    assert report.examples["second value of a name"] == "'time_unit' in labels.json"
    path = write(tmp_path, {"database": {"v": DATABASE}})
    path.write_text(path.read_text().replace('"label": "sit"', '"label": "sit", "label": "run"'))
    manifest, report = read_annotations(path)
    assert report.skipped == {"malformed action": 1}
    assert manifest.classes == ("stand",)


def test_json_nested_too_deep_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "labels.json"
    path.write_text("[" * 100_000)
    with pytest.raises(ManifestError, match=r"labels\.json: not readable as JSON"):
        read_annotations(path)


def test_videos_and_annotations_are_joined_and_what_lacks_its_partner_is_counted(
    tmp_path: Path,
) -> None:
    annotated, _ = read_annotations(write(tmp_path, {"a": ENTRY, "b": ENTRY}))
    report = AnnotationReport()
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


PUBLISHED = {
    "charades": (
        "charades",
        {"training": 7985, "testing": 1863},
        66_500,
        {
            "action that ends after the video": 19_623,
            "action that ends before it starts": 7,
            "video without actions": 223,
        },
    ),
    "tsu": (
        "smarthome",
        {"training": 351, "testing": 185},
        41_288,
        {"action without length": 7},
    ),
    "multithumos": (
        "multithumos",
        {"training": 200, "testing": 211},
        38_625,
        {"action that ends after the video": 43, "action without length": 7},
    ),
}


@pytest.mark.parametrize("dataset", DATASETS)
def test_the_published_files_are_read_whole_and_quickly(shared: Path, dataset: str) -> None:
    name, subsets, actions, odd = PUBLISHED[dataset]
    start = time.process_time()  # other tests may run beside this one
    manifest, report = read_annotations(shared / "annotations" / f"{name}.json", dataset)
    assert time.process_time() - start < 3
    known = load_dataset(dataset)
    assert (manifest.dataset, manifest.classes) == (dataset, known.classes)
    assert (manifest.time_unit, manifest.fps) == (known.time_unit, known.fps)
    assert Counter(v.subset for v in manifest.videos.values()) == subsets
    assert sum(len(v.actions) for v in manifest.videos.values()) == actions
    assert report.kept == odd
    assert not report.skipped
    assert report.notes == []


def test_the_published_files_are_read_without_their_name_as_well(shared: Path) -> None:
    folder = shared / "annotations"
    manifest, report = read_annotations(folder / "charades.json")
    assert manifest.classes[-1] == "class_156"
    (note,) = report.notes
    assert "--dataset charades" in note
    with pytest.raises(ManifestError, match="whose times are frames: pass --dataset tsu"):
        read_annotations(folder / "smarthome.json")
    assert read_annotations(folder / "smarthome.json", time_unit="frames")[0].fps is None


# Known datasets


def test_class_ids_that_count_from_1_are_recognised(tmp_path: Path) -> None:
    name = "video_test_0000004"
    last = {name: {"subset": "testing", "actions": [[1, 0.0, 1.0], [65, 2.0, 3.0]]}}
    manifest, report = read_annotations(write(tmp_path, last), "multithumos")
    assert manifest.videos[name].actions == (Action(0, 0.0, 1.0), Action(64, 2.0, 3.0))
    assert "class ids count from 1 in this file, up to 65" in report.notes
    # The same annotations, counted from 0.
    last[name]["actions"] = [[0, 0.0, 1.0], [64, 2.0, 3.0]]
    assert read_annotations(write(tmp_path, last), "multithumos")[0].videos == manifest.videos


def test_class_ids_that_tell_nothing_count_from_0_and_that_is_said(tmp_path: Path) -> None:
    data = {"video_test_0000004": {"subset": "testing", "actions": [[1, 0.0, 1.0]]}}
    manifest, report = read_annotations(write(tmp_path, data), "multithumos")
    assert manifest.videos["video_test_0000004"].actions == (Action(1, 0.0, 1.0),)
    assert "no class id is 0 or 65: they are assumed to count from 0" in report.notes


def test_one_id_too_many_beside_a_0_is_left_out(tmp_path: Path) -> None:
    data = {"video_test_0000004": {"actions": [[0, 0.0, 1.0], [65, 0.0, 1.0]]}}
    _, report = read_annotations(write(tmp_path, data), "multithumos")
    assert report.skipped == {"class id outside 0 to 64": 1}


@pytest.mark.parametrize(
    ("dataset", "id", "whose"),
    [
        ("charades", "P02T01C06", "Toyota Smarthome Untrimmed"),
        ("tsu", "video_test_0000004", "MultiTHUMOS"),
        ("multithumos", "7UPGT", "Charades"),
    ],
)
def test_annotations_of_another_dataset_are_refused_by_its_name(
    tmp_path: Path, dataset: str, id: str, whose: str
) -> None:
    path = write(tmp_path, {id: ENTRY})
    with pytest.raises(
        ManifestError, match=f"look like the annotations of {whose}, for .* {id}, not of"
    ):
        read_annotations(path, dataset)


def test_ids_of_ones_own_in_a_known_dataset_are_counted(tmp_path: Path) -> None:
    manifest, report = read_annotations(write(tmp_path, {"v": ENTRY}), "Charades")
    assert manifest.dataset == "charades"
    assert manifest.classes[1] == "Putting clothes somewhere"
    assert report.kept == {"video id that Charades would not have": 1}
    (note,) = report.notes
    assert note == "Charades has 7985 training and 1863 testing videos, found 1 training"


def test_a_split_takes_the_place_of_the_files_own_subsets(tmp_path: Path) -> None:
    data = {"P02T01C02": {**ENTRY, "subset": "training"}, "P03T01C04": {"actions": []}}
    path = write(tmp_path, data)
    assert subsets(path, None) == ["training", "training"]  # its own, and the usual one
    assert subsets(path, "cross-subject") == ["testing", "training"]
    assert subsets(path, "cross-view") == ["testing", "training"]
    with pytest.raises(UsageError, match="'cross-eyed'; available: cross-subject, cross-view"):
        subsets(path, "cross-eyed")
    with pytest.raises(UsageError, match="Charades has no split"):
        read_annotations(write(tmp_path, {"7UPGT": ENTRY}), "charades", split="cross-view")
    with pytest.raises(UsageError, match="--split cross-view requires --dataset"):
        read_annotations(write(tmp_path, {"v": ENTRY}), "mine", split="cross-view")


@pytest.mark.parametrize("activitynet", [True, False])
def test_thumos_validation_videos_are_for_training_whatever_the_file_calls_them(
    tmp_path: Path, activitynet: bool
) -> None:
    listed = {"annotations": [{"label": "Run", "segment": [0, 1]}], "actions": [[0, 0, 1]]}
    own = {
        "video_validation_0000051": "Validation",
        "video_validation_0000052": "training",
        "video_test_0000004": "Test",
        "video_test_0000005": "Validation",
        "mine": "validation",
    }
    videos = {id: {"subset": name, "duration": 4.0, **listed} for id, name in own.items()}
    path = write(tmp_path, {"database": videos} if activitynet else videos)
    manifest, report = read_annotations(path, "multithumos")
    assert [video.subset for video in manifest.videos.values()] == [
        "training",
        "training",
        "testing",
        "testing",
        "validation",
    ]
    kind = "subset changed to that of MultiTHUMOS"
    assert report.kept[kind] == 2
    assert report.examples[kind] == "'validation' to 'training' of video_validation_0000051"


def subsets(path: Path, split: str | None) -> list[str | None]:
    manifest, _ = read_annotations(path, "tsu", split=split)
    return [video.subset for video in manifest.videos.values()]


# Units


def test_seconds_that_end_far_beyond_the_durations_are_frames(tmp_path: Path) -> None:
    # Half a minute at 25 frames a second; one video has an early action only.
    frames = {**ENTRY, "duration": 30.0, "actions": [[0, 10, 40], [1, 100, 700]]}
    early = {**frames, "actions": [[0, 5, 20]]}
    path = write(tmp_path, {"a": frames, "b": frames, "c": early})
    with pytest.raises(
        ManifestError, match=r"2 of 3 videos.* at 700 in a of 30 s.*time-unit frames"
    ):
        read_annotations(path)
    manifest, report = read_annotations(path, time_unit="frames")
    assert manifest.time_unit == "frames"
    assert report.notes == ["the durations look like seconds; expected frames, like the actions"]


def test_a_few_ends_far_beyond_are_merely_counted(tmp_path: Path) -> None:
    odd = {**ENTRY, "actions": [[0, 1.0, 4000.36]]}
    _, report = read_annotations(write(tmp_path, {"a": ENTRY, "b": odd, "c": ENTRY}))
    assert report.kept == {"action that ends after the video": 1}


def test_without_a_duration_the_files_tell_how_long_the_videos_are(tmp_path: Path) -> None:
    pictures = np.zeros((10, 16, 16, 3), np.uint8)
    (tmp_path / "videos").mkdir()
    for name in ("a", "b"):
        write_video(tmp_path / "videos" / f"{name}.mp4", pictures, 10)
    (tmp_path / "videos" / "c.mp4").touch()  # no video: that is told by `extract`
    table = tmp_path / "labels.csv"
    table.write_text("video,start,end,label\na,1,9,x\nb,0,8,x\nc,0,8,x\n")
    with pytest.raises(ManifestError, match=r"2 of 2 videos.*pass --time-unit frames"):
        init([tmp_path / "videos"], table, root=tmp_path / "w")
    assert not (tmp_path / "w").exists()
    made = init([tmp_path / "videos"], table, root=tmp_path / "w", time_unit="frames")
    assert made.actions == {"training": 3}


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
    assert made.actions == {"training": 2, "testing": 2, "not annotated": 0}
    assert made.without_file == 0
    loaded = load_manifest(made.workspace.manifest)
    assert loaded.dataset == "mine"
    assert {id: v.actions for id, v in loaded.videos.items()} == {
        id: v.actions for id, v in made.manifest.videos.items()
    }
    assert made.backup is None


ONE_ACTION = {
    "csv": "video,start,end,label\nNAME,START,5,stand\n",
    "boris.csv": "Media file,Behavior,Start (s),Stop (s)\n/v/NAME,stand,START,5\n",
    "txt": '"#file:///v/NAME"\nstand\t\t00:00:0START.0\t00:00:05.0\t00:00:05.0\tstand\n',
    "eaf": '<ANNOTATION_DOCUMENT><HEADER><MEDIA_DESCRIPTOR MEDIA_URL="file:///v/NAME"/></HEADER>'
    '<TIME_ORDER><TIME_SLOT TIME_SLOT_ID="a" TIME_VALUE="START000"/>'
    '<TIME_SLOT TIME_SLOT_ID="b" TIME_VALUE="5000"/></TIME_ORDER>'
    '<TIER TIER_ID="stand"><ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="x" '
    'TIME_SLOT_REF1="a" TIME_SLOT_REF2="b"/></ANNOTATION></TIER></ANNOTATION_DOCUMENT>',
}


@pytest.mark.parametrize("names", [("walk.mp4", "walk.avi"), ("walk.mp4", "walk.mp4.mkv")])
@pytest.mark.parametrize("form", list(ONE_ACTION))
def test_videos_that_differ_by_the_ending_stay_apart(
    form: str, names: tuple[str, ...], tmp_path: Path
) -> None:
    folder, labels = make_videos(tmp_path / "videos", *names), tmp_path / "labels"
    labels.mkdir()
    for number, name in enumerate(names):
        text = ONE_ACTION[form].replace("NAME", name).replace("START", str(number))
        (labels / f"{number}.{form}").write_text(text)
    videos = init(folder, labels, root=tmp_path / "w").manifest.videos.values()
    starts = {video.path and video.path.name: [a.start for a in video.actions] for video in videos}
    assert starts == {name: [number] for number, name in enumerate(names)}


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


# Merging into the manifest there is


ENTRY_OF_ONE = {"subset": "train", "duration": 4.0, "actions": [[0, 0.0, 1.0]]}


def merging(tmp_path: Path) -> Path:
    """A workspace of two annotated videos and one that is not, with its own class order."""
    folder = make_videos(tmp_path / "videos", "a.mp4", "b.mp4", "c.mp4")
    content = {"classes": ["sit", "stand"], "videos": {"a": ENTRY, "b": {**ENTRY, "subset": "x"}}}
    init([folder], write(tmp_path, content), root=tmp_path / "w", dataset="mine")
    return tmp_path / "w"


def test_merged_annotations_replace_those_of_their_videos_and_leave_the_rest(
    tmp_path: Path,
) -> None:
    root = merging(tmp_path)
    before = load_manifest(root / "manifest.json")
    corrected = {
        "classes": ["jump", "stand", "sit"],
        "time_unit": "seconds",
        "videos": {
            "a": {"subset": None, "duration": 4.01, "actions": [[0, 0.5, 1.0], [2, 1.0, 2.0]]},
            "c": {"subset": "testing", "duration": 9.0, "actions": [[1, 3.0, 4.0]]},
            "new": {"subset": "training", "duration": 5.0, "actions": []},
        },
    }
    made = init(annotations=write(tmp_path, corrected), root=root, merge=True)
    after = load_manifest(root / "manifest.json")
    assert after == made.manifest
    assert made.backup is not None
    assert load_manifest(made.backup) == before
    assert (after.dataset, after.classes) == ("mine", ("sit", "stand", "jump"))
    assert after.videos["b"] == before.videos["b"]
    a, c, new = (after.videos[id] for id in ("a", "c", "new"))
    assert a.actions == (Action(2, 0.5, 1.0), Action(0, 1.0, 2.0))
    assert (a.path, a.subset, a.duration) == (before.videos["a"].path, "training", 4.0)
    assert (c.path, c.subset, c.duration) == (before.videos["c"].path, "testing", 9.0)
    assert c.actions == (Action(1, 3.0, 4.0),)
    assert (new.path, new.subset, new.actions) == (None, "training", ())
    assert made.report.notes == [
        "videos annotated again: 2 (actions: 3 in place of 2), added: 1; new classes: 'jump'",
        "a: 2 actions in place of 2; removed or changed: 2, for example 'sit' from 0 to 2.5 "
        "seconds",
    ]
    assert made.report.kept == {"video without actions": 1, "annotated video without a file": 1}


def test_merged_again_nothing_changes(tmp_path: Path) -> None:
    root = merging(tmp_path)
    text = (root / "manifest.json").read_text(encoding="utf-8")
    made = init(annotations=root / "manifest.json", root=root, merge=True)
    assert (root / "manifest.json").read_text(encoding="utf-8") == text
    assert made.backup is None


@pytest.mark.parametrize(
    ("given", "expected"), [({}, 2.5), ({"annotated_until": 3.5}, 3.5)], ids=["kept", "replaced"]
)
def test_merged_annotations_keep_the_time_up_to_which_a_video_is_annotated(
    given: dict[str, Any], expected: float, tmp_path: Path
) -> None:
    folder = make_videos(tmp_path / "videos", "a.mp4")
    first = write(tmp_path, {"a": {**ENTRY, "annotated_until": 2.5}})
    init([folder], first, root=tmp_path / "w")
    again = write(tmp_path, {"a": {"actions": [[1, 0.0, 2.0]], **given}})
    init(annotations=again, root=tmp_path / "w", merge=True, yes=True)
    video = load_manifest(tmp_path / "w" / "manifest.json").videos["a"]
    assert (video.annotated_until, video.actions) == (expected, (Action(1, 0.0, 2.0),))


def labelled_videos(counts: dict[str, int]) -> dict[str, Any]:
    """Return annotations with a number of actions for each video, one per second."""
    videos = {
        id: {"subset": "training", "actions": [[0, n, n + 0.5] for n in range(count)]}
        for id, count in counts.items()
    }
    return {"classes": ["walk"], "videos": videos}


def test_fewer_actions_than_before_are_refused_unless_they_are_meant(tmp_path: Path) -> None:
    root = tmp_path / "w"
    before = labelled_videos({"a": 3, "b": 2, "c": 4, "d": 2})
    init(annotations=write(tmp_path, before), root=root)
    text = (root / "manifest.json").read_text(encoding="utf-8")
    labels = write(tmp_path, labelled_videos({"a": 5, "b": 1, "c": 0, "e": 1}))
    with pytest.raises(ManifestError) as raised:
        init(annotations=labels, root=root, merge=True)
    assert str(raised.value).endswith(
        "nothing is merged, because 2 of 4 videos would have fewer actions than in the manifest "
        "(1 in place of 6), for example b (1 in place of 2, without 'walk' from 1 to 1.5 seconds); "
        "pass --yes to replace them"
    )
    assert raised.value.exit_code == 2
    assert (root / "manifest.json").read_text(encoding="utf-8") == text
    made = init(annotations=labels, root=root, merge=True, yes=True)
    counts = {id: len(video.actions) for id, video in made.manifest.videos.items()}
    assert counts == {"a": 5, "b": 1, "c": 0, "d": 2, "e": 1}
    example = "for example 'walk' from"
    assert made.report.notes[-2:] == [
        f"b: 1 action in place of 2; removed or changed: 1, {example} 1 to 1.5 seconds",
        f"c: 0 actions in place of 4; removed or changed: 4, {example} 0 to 0.5 seconds",
    ]


def test_changed_actions_are_told_and_need_no_leave(tmp_path: Path) -> None:
    root = tmp_path / "w"
    content = labelled_videos({f"v{n}": 2 for n in range(13)})
    init(annotations=write(tmp_path, content), root=root)
    for video in content["videos"].values():
        video["actions"].append(video["actions"][0])  # the former two, and one of them again
    made = init(annotations=write(tmp_path, content), root=root, merge=True)
    assert len(made.report.notes) == 1
    for video in content["videos"].values():
        video["actions"][1] = [0, 1.0, 1.25]
    made = init(annotations=write(tmp_path, content), root=root, merge=True)
    assert len(made.report.notes) == 1 + 10 + 1
    assert made.report.notes[1] == (
        "v0: 3 actions in place of 3; removed or changed: 1, for example 'walk' from 1 to 1.5 "
        "seconds"
    )
    assert made.report.notes[-1].endswith("not listed: 3")
    for video in content["videos"].values():
        video["actions"] = video["actions"][1:]  # of two that are alike
    with pytest.raises(ManifestError, match=r"v0 \(2 in place of 3, without 'walk' from 0 to 0\.5"):
        init(annotations=write(tmp_path, content), root=root, merge=True)


def test_a_class_in_another_spelling_is_the_manifest_s(tmp_path: Path) -> None:
    root = tmp_path / "w"
    names = ["Read book", "sit", "Sit", "hop", "o\u0308ffnen"]
    actions = [[0, 0.0, 1.0], [1, 1.0, 2.0], [2, 2.0, 3.0]]
    entry = {"v": {"subset": "training", "duration": 4.0, "actions": actions}}
    init(annotations=write(tmp_path, {"classes": names, "videos": entry}), root=root)
    text = (root / "manifest.json").read_text(encoding="utf-8")
    for given in (["read_book", "sit", "Sit", "\u00f6ffnen"], ["READ BOOK", "sit", "Sit", "HOP"]):
        labels = write(tmp_path, {"classes": given, "videos": entry})
        init(annotations=labels, root=root, merge=True)
        assert (root / "manifest.json").read_text(encoding="utf-8") == text
    # Which of two it is, if it is neither, cannot be known.
    labels = write(tmp_path, {"classes": ["hop", "SIT"], "videos": {"w": {"actions": [[1, 0, 1]]}}})
    made = init(annotations=labels, root=root, merge=True)
    assert made.manifest.classes == (*names, "SIT")


def test_a_video_that_was_left_without_a_subset_stays_so(tmp_path: Path) -> None:
    root = tmp_path / "w"
    videos = {"a": {"actions": [[0, 0, 1]]}, "b": {"actions": [[0, 1, 2]]}}
    init(annotations=write(tmp_path, videos), root=root, split="none")
    text = (root / "manifest.json").read_text(encoding="utf-8")
    made = init(annotations=write(tmp_path, {"b": videos["b"]}), root=root, merge=True)
    assert (root / "manifest.json").read_text(encoding="utf-8") == text
    assert not [note for note in made.report.notes if "training" in note]


def test_a_label_far_past_the_end_is_merged_again_by_itself(tmp_path: Path) -> None:
    root = tmp_path / "w"
    videos: dict[str, Any] = dict.fromkeys("bcd", ENTRY)
    videos["a"] = {"duration": 10.0, "actions": [[0, 1.0, 500.0]]}
    init(annotations=write(tmp_path, videos), root=root)
    made = init(annotations=write(tmp_path, {"a": videos["a"]}), root=root, merge=True)
    assert made.manifest.videos["a"].actions == (Action(0, 1.0, 500.0),)
    videos["a"]["actions"].append([0, 2.0, 600.0])
    with pytest.raises(ManifestError, match="these look like frames"):
        init(annotations=write(tmp_path, {"a": videos["a"]}), root=root, merge=True)


def test_numbers_mean_what_the_manifest_says(tmp_path: Path) -> None:
    root = merging(tmp_path)
    labels = write(tmp_path, {"a": {"actions": [[1, 0, 1], [1, 2, 3]]}})
    made = init(annotations=labels, root=root, merge=True)
    assert made.manifest.classes == ("sit", "stand")
    assert made.manifest.videos["a"].actions == (Action(1, 0.0, 1.0), Action(1, 2.0, 3.0))
    assert (made.manifest.videos["a"].subset, made.manifest.videos["a"].duration) == ("training", 4)


def test_a_table_may_name_the_manifest_s_videos_by_their_files(tmp_path: Path) -> None:
    folder = make_videos(tmp_path / "videos", "b.mp4", "b.avi")
    labels = write(tmp_path, {"b.mp4": ENTRY, "b.avi": ENTRY})
    init([folder], labels, root=tmp_path / "w")
    (tmp_path / "t.csv").write_text("video,start,end,label\nb.avi,1,2,run\nb.avi,2,3,CLASS 0\n")
    made = init(annotations=tmp_path / "t.csv", root=tmp_path / "w", merge=True)
    assert made.manifest.classes == ("class_0", "class_1", "run")
    assert made.manifest.videos["b.avi"].actions == (Action(2, 1.0, 2.0), Action(0, 2.0, 3.0))
    assert len(made.manifest.videos) == 2


@pytest.mark.parametrize(
    ("given", "classes"),
    [
        (["sit", "Stand"], ["sit", "stand"]),  # as labels are read elsewhere
        (["sit", "stand", "Stand"], ["sit", "stand", "Stand"]),  # made so in the page
        (["SIT", "Sit"], ["sit", "stand", "SIT", "Sit"]),
    ],
)
def test_classes_that_differ_by_case_alone(
    given: list[str], classes: list[str], tmp_path: Path
) -> None:
    root = merging(tmp_path)
    action = [len(given) - 1, 0, 1]
    content = {"classes": given, "videos": {"a": {"actions": [action, action]}}}
    made = init(annotations=write(tmp_path, content), root=root, merge=True)
    assert list(made.manifest.classes) == classes
    (action, _) = made.manifest.videos["a"].actions
    assert classes[action.class_id].casefold() == given[-1].casefold()
    assert (given[-1] in classes) == (classes[action.class_id] == given[-1])


def test_videos_merged_without_annotations_leave_the_actions(tmp_path: Path) -> None:
    root = merging(tmp_path)
    before = load_manifest(root / "manifest.json")
    more = make_videos(tmp_path / "more", "a.mp4", "d.mp4")
    # Named together, files of one name are called by their folders; the known ones are known.
    made = init([tmp_path / "videos", more], root=root, merge=True)
    videos = dict(made.manifest.videos)
    assert {id: videos.pop(id) for id in "abc"} == before.videos
    assert [video.path for video in videos.values()] == [more / "a.mp4", more / "d.mp4"]


def test_a_file_does_not_take_another_video_s_place_unless_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = merging(tmp_path)
    more = make_videos(tmp_path / "more", "a.mp4")
    with pytest.raises(ManifestError, match=r"more/a\.mp4: the manifest has another video 'a', "):
        init([more], root=root, merge=True)
    (tmp_path / "videos" / "a.mp4").unlink()
    made = init([more], root=root, merge=True)
    assert made.manifest.videos["a"].path == more / "a.mp4"
    assert made.manifest.videos["a"].actions == (Action(0, 0.0, 2.5), Action(1, 1.0, 3.0))
    assert made.report.kept["video whose file has changed"] == 1
    monkeypatch.chdir(tmp_path)
    again = init(["more"], root="w", merge=True)
    assert "video whose file has changed" not in again.report.kept


FRAMES = {"time_unit": "frames", "videos": {"a": ENTRY}}


@pytest.mark.parametrize(
    ("content", "more", "message"),
    [
        (FRAMES, {}, "times in frames, but the manifest to merge into has seconds"),
        ({"a": {"actions": [[0, 10, 900]]}}, {}, "these look like frames: pass --time-unit frames"),
        ({"a": {"subset": "testing"}}, {}, "nothing is merged, .*entry without a list of actions"),
        ({"a": {"actions": [[1, 0, 1], [2, 0, 1]]}}, {}, r"class id outside 0 to 1 \(1, for ex"),
        ({"a": ENTRY}, {"dataset": "other"}, "--dataset other: the manifest .* has 'mine'"),
        ({"a": ENTRY}, {"features": "npy"}, "--features cannot be combined with --merge"),
    ],
)
def test_what_cannot_be_merged_leaves_the_manifest(
    content: Any, more: dict[str, Any], message: str, tmp_path: Path
) -> None:
    root = merging(tmp_path)
    text = (root / "manifest.json").read_text(encoding="utf-8")
    with pytest.raises((ManifestError, UsageError), match=message):
        init(annotations=write(tmp_path, content), root=root, merge=True, **more)
    assert (root / "manifest.json").read_text(encoding="utf-8") == text
    assert sorted(file.name for file in root.iterdir()) == ["manifest.json", "mstemba.toml"]


def test_there_must_be_a_manifest_to_merge_into(tmp_path: Path) -> None:
    labels = write(tmp_path, {"a": ENTRY})
    with pytest.raises(UsageError, match=r"not a workspace, it has no mstemba\.toml"):
        init(annotations=labels, root=tmp_path / "nowhere", merge=True)
    root = merging(tmp_path)
    (root / "manifest.json").unlink()
    with pytest.raises(UsageError, match="no such file; --merge requires a manifest"):
        init(annotations=labels, root=root, merge=True)


def test_times_without_a_unit_are_seconds_and_do_not_become_frames(tmp_path: Path) -> None:
    labels = write(tmp_path, {"P02T01C06": ENTRY, "P03T01C06": ENTRY})
    root = tmp_path / "w"
    init(annotations=labels, root=root, dataset="tsu")
    table = tmp_path / "t.csv"
    table.write_text("video,start,end,label\nP02T01C06,1,2,walk\n")
    with pytest.raises(ManifestError, match=r"times in seconds, but .* has frames"):
        init(annotations=table, root=root, merge=True)
    made = init(annotations=table, root=root, merge=True, time_unit="frames", yes=True)
    assert (made.manifest.time_unit, made.manifest.fps) == ("frames", 20)
    (action,) = made.manifest.videos["P02T01C06"].actions
    assert (made.manifest.classes[action.class_id], action.start) == ("Walk", 1.0)
    assert made.manifest.videos["P03T01C06"].actions == (Action(0, 0, 2.5), Action(1, 1.0, 3.0))
    numbers = write(tmp_path, {"P03T01C06": {"actions": [[2, 0, 1]]}})
    made = init(annotations=numbers, root=root, merge=True, dataset="tsu", yes=True)
    assert len(made.report.notes) == 2  # that it is not all of TSU goes without saying
    assert made.manifest.videos["P03T01C06"].actions == (Action(2, 0.0, 1.0),)


def test_merges_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    root = merging(tmp_path)
    files = [tmp_path / f"{n}.json" for n in range(6)]
    for n, file in enumerate(files):
        file.write_text(json.dumps({"classes": [f"c{n}"], "videos": {f"v{n}": ENTRY_OF_ONE}}))
    merge = "import sys; from mstemba import init; init(annotations=sys.argv[1], merge=True)"
    command = [sys.executable, "-c", merge]
    running = [subprocess.Popen([*command, file], cwd=root, env=environment()) for file in files]
    assert [process.wait(120) for process in running] == [0] * 6
    manifest = load_manifest(root / "manifest.json")
    assert {f"v{n}" for n in range(6)} <= set(manifest.videos)
    assert {f"c{n}" for n in range(6)} <= set(manifest.classes)
    assert not list(root.glob(".*locks"))


def test_paths_through_a_link_stay_in_the_workspace(tmp_path: Path) -> None:
    make_videos(tmp_path / "elsewhere", "a.mp4")
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "videos").symlink_to(tmp_path / "elsewhere")
    for merge in (False, True):
        init([tmp_path / "w" / "videos"], root=tmp_path / "w", merge=merge)
        text = (tmp_path / "w" / "manifest.json").read_text(encoding="utf-8")
        assert json.loads(text)["videos"]["a"]["path"] == "videos/a.mp4"
    real = make_videos(tmp_path / "w" / "real", "b.mp4")
    (tmp_path / "alias").symlink_to(tmp_path / "w")
    init([real], root=tmp_path / "alias")
    text = (tmp_path / "w" / "manifest.json").read_text(encoding="utf-8")
    assert json.loads(text)["videos"]["b"]["path"] == "real/b.mp4"


def test_init_from_annotations_alone_is_for_published_features(tmp_path: Path) -> None:
    labels = write(tmp_path, {"P02T01C06": ENTRY, "P03T01C06": ENTRY})
    made = init(annotations=labels, root=tmp_path / "w", dataset="tsu", split="cross-subject")
    assert made.subsets == {"testing": 1, "training": 1}
    assert made.without_file == 2
    assert made.report.kept == {}  # no videos were named, so none is missing
    loaded = load_manifest(made.workspace.manifest)
    assert (loaded.dataset, loaded.time_unit, loaded.fps) == ("tsu", "frames", 20)
    assert loaded.classes == load_dataset("tsu").classes


@pytest.mark.parametrize("fps", [0, -5, "20", True, float("inf")])
def test_a_manifest_with_another_rate_is_refused(tmp_path: Path, fps: Any) -> None:
    labels = write(tmp_path, {"P02T01C06": ENTRY})
    path = init(annotations=labels, root=tmp_path / "w", dataset="tsu").workspace.manifest
    path.write_text(json.dumps({**json.loads(path.read_text()), "fps": fps}))
    with pytest.raises(ManifestError, match=r" at \$\.fps$"):
        load_manifest(path)


def test_class_names_of_ones_own_in_a_known_dataset_are_noted(tmp_path: Path) -> None:
    path = write(tmp_path, {"classes": ["sit", "stand"], "videos": {"7UPGT": ENTRY}})
    manifest, report = read_annotations(path, "charades")
    assert manifest.classes == ("sit", "stand")
    assert report.notes[0] == "the class names differ from those of Charades"


def test_init_with_a_split_of_nothing_is_refused(tmp_path: Path) -> None:
    folder = make_videos(tmp_path / "videos", "a.mp4")
    with pytest.raises(UsageError, match="--split requires --annotations"):
        init([folder], root=tmp_path / "w", dataset="tsu", split="cross-view")


def test_init_without_a_video_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"pass videos .*--videos, .*--annotations"):
        init([], root=tmp_path)


# Making a workspace of published features


def npy(folder: Path, *ids: str) -> Path:
    folder.mkdir()
    for id in ids:
        np.save(folder / f"{id}.npy", np.zeros((6, 2), np.float32))
    return folder


def test_init_counts_features_that_do_not_match_or_lack_a_duration(tmp_path: Path) -> None:
    folder = npy(tmp_path / "f", "a", "b", "z")
    table = tmp_path / "labels.csv"
    table.write_text("video,start,end,label,duration\na,1,2,x,9\nb,1,2,x,\nc,1,2,x,9\n")
    made = init(annotations=table, root=tmp_path / "w", features=folder)
    assert made.features == 2
    assert made.report.kept == {
        "annotated video without features": 1,
        "features of a video without a duration": 1,
        "features without annotation (not used)": 1,
    }
    assert made.report.examples["features of a video without a duration"] == "b"
    assert get_current(made.workspace.features) == made.workspace.features / str(folder.resolve())


def test_init_takes_a_store_as_features(tmp_path: Path) -> None:
    labels = write(tmp_path, {"a": ENTRY, "b": {**ENTRY, "duration": None}, "c": ENTRY})
    made = init(annotations=labels, root=tmp_path / "w")
    store = import_features(
        npy(tmp_path / "f", "a", "b"),
        ImportOptions(fps=10.0, stride=2),
        workspace=made.workspace,
        store=tmp_path / "x.zarr",
    ).store
    again = init(annotations=labels, root=tmp_path / "w", features=store)
    assert again.features == 2
    assert again.report.kept == {"annotated video without features": 1}  # its rows have times
    source = find_features(None, again.workspace)
    assert (source.root.resolve(), source.values("b").shape) == (store.resolve(), (6, 2))
    other = write(tmp_path, {"y": ENTRY})
    with pytest.raises(
        UsageError, match=r"x\.zarr: this store has no features of any .* those of y"
    ):
        init(annotations=other, root=tmp_path / "v", features=store)
    assert not (tmp_path / "v").exists()
