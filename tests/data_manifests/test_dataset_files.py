"""Charades, TSU and MultiTHUMOS as their authors hand them out, in small files of their form."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from mstemba.data_manifests.annotations import read_annotations
from mstemba.data_manifests.datasets import load_dataset
from mstemba.data_manifests.manifest import Action
from mstemba.errors import ManifestError, UsageError

TIME = "time that is neither a number nor a clock time (0:01:02.5)"

CHARADES_HEADER = (
    "id,subject,scene,quality,relevance,verified,script,objects,descriptions,actions,length\n"
)
CHARADES_TRAIN = (
    CHARADES_HEADER
    + '46GP8,HR43,Kitchen,6,7,Yes,"A person cooks, and laughs.",food;stove,"She said ""hot""\n'
    + 'and left.",c092 11.90 21.20;c147 0.00 12.60,24.83\n'
    + "N11GT,0KZ7,Stairs,5,7,Yes,Someone runs.,,A person on the stairs.,,18.50\n"
)
CHARADES_TEST = (
    CHARADES_HEADER + "YSKX3,KTF1,Bedroom,6,7,No,Lies.,pillow,Lies.,c077 12.10 18.00,31.5\n"
)


def charades(folder: Path, train: str = CHARADES_TRAIN) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "Charades_v1_train.csv").write_text(train, encoding="utf-8")
    (folder / "Charades_v1_test.csv").write_text(CHARADES_TEST, encoding="utf-8")
    names = load_dataset("charades").classes
    lines = [f"c{number:03d} {name}\n" for number, name in enumerate(names)]
    (folder / "Charades_v1_classes.txt").write_text("".join(lines), encoding="utf-8")
    (folder / "README.txt").write_text("Charades", encoding="utf-8")
    return folder


def test_charades_is_read_from_its_folder(tmp_path: Path) -> None:
    manifest, report = read_annotations(charades(tmp_path / "Charades"))
    assert (manifest.dataset, manifest.time_unit) == ("charades", "seconds")
    assert manifest.classes == load_dataset("charades").classes
    first, empty, test = (manifest.videos[id] for id in ("46GP8", "N11GT", "YSKX3"))
    assert (first.subset, first.duration) == ("training", 24.83)
    assert first.actions == (Action(92, 11.9, 21.2), Action(147, 0.0, 12.6))
    assert (empty.subset, empty.duration, empty.actions) == ("training", 18.5, ())
    assert (test.subset, test.duration, test.actions) == (
        "testing",
        31.5,
        (Action(77, 12.1, 18.0),),
    )
    assert report.kept == {"video without actions": 1}
    assert not report.skipped
    assert report.notes == [
        "Charades has 7985 training and 1863 testing videos, found 2 training and 1 testing"
    ]


def test_one_csv_of_charades_is_read_and_its_name_tells_the_subset(tmp_path: Path) -> None:
    file = charades(tmp_path / "c") / "Charades_v1_test.csv"
    manifest, _ = read_annotations(file, "charades")
    assert {id: video.subset for id, video in manifest.videos.items()} == {"YSKX3": "testing"}


def test_charades_own_class_names_come_before_the_known_ones(tmp_path: Path) -> None:
    folder = charades(tmp_path / "c")
    names = folder / "Charades_v1_classes.txt"
    names.write_text("\n".join(f"c{n:03d} thing {n}" for n in range(157)) + "\n")
    assert read_annotations(folder)[0].classes[77] == "thing 77"
    names.unlink()
    assert read_annotations(folder)[0].classes[77] == "Putting a pillow somewhere"
    names.write_text("c000 Holding\nc002 Putting\n")
    with pytest.raises(ManifestError, match=r"line 2: found 'c002 Putting', expected class c001"):
        read_annotations(folder)


@pytest.mark.parametrize("text", ["", ",,\n", "name,from,to\nx,1,2\n"])
def test_a_file_of_charades_with_other_content_is_counted(tmp_path: Path, text: str) -> None:
    folder = charades(tmp_path / "c")
    (folder / "Charades_v1_test.csv").write_text(text)
    manifest, report = read_annotations(folder)
    assert set(manifest.videos) == {"46GP8", "N11GT"}
    assert report.skipped == {"file of an unknown form": 1}
    assert report.examples["file of an unknown form"] == "Charades_v1_test.csv"


def test_malformed_parts_of_charades_are_counted_with_file_and_line(tmp_path: Path) -> None:
    train = (
        CHARADES_HEADER
        + "46GP8,,,,,,,,,c092 11.90 21.20;c14 1 2;c147 x 2;c999 1 2;c001 nan 3,soon\n"
        + ",,,,,,,,,c001 1 2,3\n"
        + "46GP8,,,,,,,,,c001 1 2,3\n"
    )
    manifest, report = read_annotations(charades(tmp_path / "c", train))
    assert manifest.videos["46GP8"].actions == (Action(92, 11.9, 21.2),)
    assert report.skipped == {
        "malformed action": 3,
        "class id outside 0 to 156": 1,
        "malformed duration": 1,
        "malformed row": 1,
        "second entry of a video": 1,
    }
    where = "in Charades_v1_train.csv, line"
    assert report.examples["malformed action"] == f"'c14 1 2' {where} 2"
    assert report.examples["malformed duration"] == f"'soon' {where} 2"
    assert report.examples["malformed row"].endswith(f"{where} 3")
    assert report.examples["second entry of a video"] == f"'46GP8' {where} 4"


# TSU


TSU_HEADER = "event,start_frame,end_frame\n"
TSU = {
    "P02/P02T01C06.csv": TSU_HEADER + "Enter,170,187\nMake_coffee.Get_water,236,502\n",
    "P03/P03T02C05.csv": TSU_HEADER + "Make_tea.Insert_tea_bag,5,80\nuse_drawer,1,9\n",
}


def lay_out(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def test_tsu_is_read_from_its_folder_and_the_pairs_of_classes_are_merged(tmp_path: Path) -> None:
    manifest, report = read_annotations(lay_out(tmp_path / "Annotation", TSU))
    assert (manifest.dataset, manifest.time_unit, manifest.fps) == ("tsu", "frames", 20)
    assert len(manifest.classes) == 51
    one, two = manifest.videos["P02T01C06"], manifest.videos["P03T02C05"]
    assert one.actions == (Action(0, 170, 187), Action(3, 236, 502))
    assert two.actions == (Action(18, 5, 80), Action(5, 1, 9))
    assert (one.subset, two.subset) == ("testing", "training")
    assert one.duration is None
    assert not report.kept
    assert not report.skipped


def test_tsu_has_a_cross_view_split_as_well(tmp_path: Path) -> None:
    folder = lay_out(tmp_path / "Annotation", TSU)
    manifest, _ = read_annotations(folder, "tsu", split="cross-view")
    assert {id: v.subset for id, v in manifest.videos.items()} == {
        "P02T01C06": "training",
        "P03T02C05": "testing",
    }


def test_odd_parts_of_tsu_are_counted_with_file_and_line(tmp_path: Path) -> None:
    files = {
        **TSU,
        "P02/P02T02C03.csv": TSU_HEADER + "Enter,x,187\n\nFly,1,2\nRead,3\n",
        "P02/P02T03C03.csv": "name,from,to\nEnter,1,2\n",
        "copy/P02T01C06.csv": TSU["P02/P02T01C06.csv"],
    }
    manifest, report = read_annotations(lay_out(tmp_path / "Annotation", files))
    assert set(manifest.videos) == {"P02T01C06", "P02T02C03", "P03T02C05"}
    assert report.skipped == {
        TIME: 1,
        "malformed row": 1,
        "unknown class name": 1,
        "file with other columns": 1,
        "second entry of a video": 1,
    }
    assert report.examples[TIME] == "'x' to '187' in P02T02C03.csv, line 2"
    assert report.examples["unknown class name"] == "['Fly', 1.0, 2.0] in P02T02C03.csv, line 4"
    assert "name,from,to" in report.examples["file with other columns"]


@pytest.mark.parametrize("text", ["", "\n", ",,,\n"])
def test_an_empty_file_of_tsu_is_counted(tmp_path: Path, text: str) -> None:
    files = {**TSU, "P02/P02T04C03.csv": text}
    manifest, report = read_annotations(lay_out(tmp_path / "Annotation", files))
    assert set(manifest.videos) == {"P02T01C06", "P03T02C05"}
    assert report.skipped == {"empty file": 1}
    assert report.examples["empty file"] == "P02T04C03.csv"


def test_tsu_files_of_other_columns_alone_are_refused(tmp_path: Path) -> None:
    folder = lay_out(tmp_path, {"P02/P02T03C03.csv": "name,from,to\nEnter,1,2\n"})
    with pytest.raises(ManifestError, match="none has the columns event, start_frame, end_frame"):
        read_annotations(folder)


def test_tsus_own_files_are_not_charades(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"Toyota Smarthome Untrimmed.*--dataset tsu"):
        read_annotations(lay_out(tmp_path, TSU), "charades")


# MultiTHUMOS


MULTITHUMOS = {
    "annotations/BaseballPitch.txt": (
        "video_validation_0000051 67.50 75.90\nvideo_test_0000324 1.0 2.0\n"
    ),
    "annotations/Run.txt": "video_validation_0000051 70.0 71.5\n\n",
    "class_list.txt": "1 BaseballPitch\n2 BasketballDunk\n",
    "README": "MultiTHUMOS\n",
}


def test_multithumos_is_read_from_its_folder_and_validation_videos_train(tmp_path: Path) -> None:
    manifest, report = read_annotations(lay_out(tmp_path / "multithumos", MULTITHUMOS))
    assert (manifest.dataset, manifest.time_unit) == ("multithumos", "seconds")
    training, testing = (
        manifest.videos[id] for id in ("video_validation_0000051", "video_test_0000324")
    )
    assert (training.subset, testing.subset) == ("training", "testing")
    assert training.actions == (Action(0, 67.5, 75.9), Action(24, 70.0, 71.5))
    assert testing.actions == (Action(0, 1.0, 2.0),)
    assert not report.kept
    assert not report.skipped
    assert any("63 of the 65 classes have no file" in note for note in report.notes)


def test_malformed_lines_of_multithumos_are_counted_with_file_and_line(tmp_path: Path) -> None:
    files = {"Run.txt": "video_test_0000324 1.0\nvideo_test_0000324 a b\nvideo_test_0000324 1 2\n"}
    manifest, report = read_annotations(lay_out(tmp_path, files))
    assert manifest.videos["video_test_0000324"].actions == (Action(24, 1.0, 2.0),)
    assert report.skipped == {"malformed row": 1, TIME: 1}
    assert report.examples["malformed row"] == "'video_test_0000324,1.0' in Run.txt, line 1"


def test_a_file_that_is_no_text_is_skipped_by_name(tmp_path: Path) -> None:
    folder = lay_out(tmp_path, MULTITHUMOS)
    (folder / "annotations" / "Sit.txt").write_bytes(b"video_test_0000324 \xff\xfe\x00 1 2")
    manifest, report = read_annotations(folder)
    assert report.skipped == {"file that cannot be read": 1}
    assert "Sit.txt: not readable as text" in report.examples["file that cannot be read"]
    assert manifest.videos


def test_multithumos_has_one_split(tmp_path: Path) -> None:
    folder = lay_out(tmp_path, MULTITHUMOS)
    assert read_annotations(folder, split="thumos")[0].videos
    with pytest.raises(UsageError, match="available: thumos"):
        read_annotations(folder, split="cross-subject")


def test_the_native_files_and_the_published_json_are_the_same(shared: Path, tmp_path: Path) -> None:
    """The published files, written in the native forms, come back as they are."""
    annotations = shared / "annotations"
    published, _ = read_annotations(annotations / "multithumos.json", "multithumos")
    lines: dict[str, list[str]] = {name: [] for name in published.classes}
    for video in published.videos.values():
        for action in video.actions:
            name = published.classes[action.class_id]
            lines[name].append(f"{video.id} {action.start} {action.end}")
    files = {f"annotations/{name}.txt": "\n".join(rows) for name, rows in lines.items()}
    read, report = read_annotations(lay_out(tmp_path / "m", files))
    assert report.notes == []
    assert_same(read.videos, published.videos)

    published, _ = read_annotations(annotations / "smarthome.json", "tsu")
    files = {
        f"{video.id[:3]}/{video.id}.csv": TSU_HEADER
        + "".join(
            f"{published.classes[a.class_id]},{a.start:.0f},{a.end:.0f}\n" for a in video.actions
        )
        for video in published.videos.values()
    }
    read, report = read_annotations(lay_out(tmp_path / "t", files))
    assert report.notes == []
    assert_same(read.videos, published.videos)


def assert_same(read: dict, published: dict) -> None:  # type: ignore[type-arg]
    assert set(read) == set(published)
    for id, video in published.items():
        assert read[id].subset == video.subset
        assert Counter(read[id].actions) == Counter(video.actions)
