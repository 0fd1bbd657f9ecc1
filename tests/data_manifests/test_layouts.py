"""Layouts of annotations that users have: a table per video, records, tracks, words for nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mstemba.data_manifests.annotations import read_annotations
from mstemba.data_manifests.manifest import Manifest
from mstemba.errors import ManifestError
from mstemba.pipeline.init import init

OWN = "file without names of videos, taken for that of the video named like it"
FOUND = {"monday": [("pour", 1.0, 4.0), ("stir", 5.0, 6.5)]}


def put(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_text(text, encoding="utf-8")
    return path


def times(manifest: Manifest) -> dict[str, list[tuple[str, float, float]]]:
    return {
        id: [(manifest.classes[a.class_id], a.start, a.end) for a in video.actions]
        for id, video in manifest.videos.items()
    }


ONE_VIDEO = {
    "monday.csv": "start,end,label\n1,4,pour\n5,6.5,stir\n",
    "monday.tsv": "Start\tStop\tBehavior\tcomment\n1\t4\tpour\twell\n5\t6.5\tstir\t\n",
    "monday.mp4.csv": "t_start;t_end;class;row\n1;4;pour;1\n0:05;0:06,5;stir;2\n",
    "monday.txt": "1.000000\t4.000000\tpour\n5.000000\t6.500000\tstir\n",
    "x/monday.txt": "1,0000\t4,0000\tpour\n\\\t100.0\t3000.0\n5,0000\t6,5000\tstir\n",
}


@pytest.mark.parametrize("name", ONE_VIDEO)
def test_a_file_without_names_of_videos_is_of_the_video_named_like_it(
    name: str, tmp_path: Path
) -> None:
    path = put(tmp_path / name, ONE_VIDEO[name])
    manifest, report = read_annotations(path)
    assert times(manifest) == FOUND
    assert report.joined == {OWN: 1}
    assert not report.skipped
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "monday.mp4").touch()
    result = init([tmp_path / "videos"], path, root=tmp_path / "w")
    assert result.without_file == 0


def test_a_folder_has_a_table_per_video(tmp_path: Path) -> None:
    put(tmp_path / "monday.csv", ONE_VIDEO["monday.csv"])
    put(tmp_path / "tuesday.txt", "1.5\t2.5\tpour\n")
    put(tmp_path / "calm.csv", "start,end,label\n")
    put(tmp_path / "silent.csv", "start,end,label\nNA,NA,NA\n")
    manifest, report = read_annotations(tmp_path)
    assert times(manifest) == {**FOUND, "tuesday": [("pour", 1.5, 2.5)], "calm": [], "silent": []}
    assert report.joined[OWN] == 4
    assert not report.skipped


def test_json_in_a_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "walk.json").write_text('{"walk": {"actions": []}}')
    with pytest.raises(ManifestError, match=r"only JSON, which is passed by .* as walk\.json"):
        read_annotations(tmp_path)
    (tmp_path / "labels.csv").write_text("video,start,end,label\nwalk,1,2,sit\n")
    _, report = read_annotations(tmp_path)
    assert report.ignored == {"JSON in a folder (pass such a file by its name)": 1}


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    for folder, start in (("P01", 1), ("P02", 2)):
        put(tmp_path / "labels" / folder / "cam.csv", f"start,end,label\n{start},4,pour\n")
        put(tmp_path / "videos" / folder / "cam.mp4", "")
    put(tmp_path / "labels" / "other.csv", "start,end,label\n3,4,pour\n")
    found = {"P01/cam": 1.0, "P02/cam": 2.0, "other": 3.0}
    manifest, _ = read_annotations(tmp_path / "labels")
    assert {id: v.actions[0].start for id, v in manifest.videos.items()} == found
    made = init([tmp_path / "videos"], tmp_path / "labels", root=tmp_path / "w").manifest
    paths = {v.path and v.path.parent.name: v.actions[0].start for v in made.videos.values()}
    assert paths == {"P01": 1.0, "P02": 2.0, None: 3.0}


@pytest.mark.parametrize("column", ["clip", "name", "Recording", ""])
def test_names_of_videos_in_an_unknown_column_are_refused(column: str, tmp_path: Path) -> None:
    path = put(tmp_path / "t.csv", f"start,end,label,{column}\n1,4,pour,\n5,6,stir,b.MP4\n")
    with pytest.raises(ManifestError, match=r"names of videos, for example 'b\.MP4'.*rename it"):
        read_annotations(path)


@pytest.mark.parametrize("column", ["file", "File Name", "video_path", "filename", "path"])
def test_the_column_of_videos_has_several_names(column: str, tmp_path: Path) -> None:
    path = put(tmp_path / "t.csv", f"{column},start,end,label\nv/monday.mp4,1,4,pour\n")
    assert list(read_annotations(path)[0].videos) == ["monday"]


@pytest.mark.parametrize("text", ["0.1\t0.2\t0.3\n0.4\t0.5\t0.6\n", "1\t2\n", "1\t2\tpour\tx\n"])
def test_other_tables_without_header_are_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="expected a table with the columns"):
        read_annotations(put(tmp_path / "t.txt", text))


# Words for nothing

WORDS = ["NA", "nan", "NaN", "N/A", "null", "None", "-", "?", ""]


@pytest.mark.parametrize("word", WORDS)
def test_a_video_whose_cells_are_missing_has_no_actions(word: str, tmp_path: Path) -> None:
    rows = [
        f"monday.mp4,{word},{word},{word},{word},{word}",
        "tuesday.mp4,1,2,pour,train,60",
        f"tuesday.mp4,3,4,pour,{word},{word}",
    ]
    text = "\n".join(["video,start,end,label,subset,duration", *rows, ""])
    manifest, report = read_annotations(put(tmp_path / "t.csv", text))
    monday, tuesday = manifest.videos.values()
    assert (monday.actions, monday.subset, monday.duration) == ((), None, None)
    assert (len(tuesday.actions), tuesday.subset, tuesday.duration) == (2, "training", 60.0)
    assert not report.skipped


@pytest.mark.parametrize(
    "row", ["NA,1,2,pour", "a,NA,2,pour", "a,1,NA,pour", "a,1,2,NA", "a,1,2,?"]
)
def test_a_row_in_which_something_is_missing_is_malformed(row: str, tmp_path: Path) -> None:
    text = f"video,start,end,label\n{row}\nb,1,2,pour\n"
    manifest, report = read_annotations(put(tmp_path / "t.csv", text))
    assert report.skipped == {"malformed row": 1}
    assert len(manifest.videos["b"].actions) == 1


def test_none_is_a_class_where_there_are_times(tmp_path: Path) -> None:
    text = "video,start,end,label\na,1,2,none\na,,,none\n"
    assert times(read_annotations(put(tmp_path / "t.csv", text))[0]) == {"a": [("none", 1.0, 2.0)]}


# Records

RECORDS = [
    {"video": "v/monday.mp4", "start": 1, "end": 4.0, "label": "pour", "subset": "train"},
    {"video": "v/monday.mp4", "start": "0:05", "end": "6.5", "label": "stir", "duration": 60},
]


@pytest.mark.parametrize(
    "data",
    [
        RECORDS,
        {"annotations": RECORDS},
        {"version": 1, "tags": ["x"], "actions": RECORDS},
        [{k.upper(): v for k, v in record.items()} for record in RECORDS],
        [
            {"file": r["video"], "segment": [r["start"], r["end"]], "action": r["label"], "x": []}
            for r in RECORDS
        ],
    ],
    ids=["list", "inside", "inside with others", "upper case", "segments"],
)
def test_lists_of_records_are_read(data: Any, tmp_path: Path) -> None:
    manifest, report = read_annotations(put(tmp_path / "labels.json", data))
    assert times(manifest) == FOUND
    assert not report.skipped
    assert not report.joined
    lines = data if isinstance(data, list) else RECORDS
    text = "\n".join(map(json.dumps, lines)) + "\n\n"
    for ending in ("jsonl", "ndjson"):
        assert times(read_annotations(put(tmp_path / f"l.{ending}", text))[0]) == FOUND


def test_the_facts_of_records_are_read(tmp_path: Path) -> None:
    calm = {"video": "calm", "start": None, "end": None, "label": None, "subset": "test"}
    manifest, report = read_annotations(put(tmp_path / "labels.json", [*RECORDS, calm]))
    monday, quiet = manifest.videos.values()
    assert (monday.subset, monday.duration) == ("training", 60.0)
    assert (quiet.subset, quiet.actions) == ("testing", ())
    assert not report.skipped


def test_records_without_videos_are_of_the_video_named_like_the_file(tmp_path: Path) -> None:
    records = [{k: r[k] for k in ("start", "end", "label")} for r in RECORDS]
    manifest, report = read_annotations(put(tmp_path / "monday.json", records))
    assert times(manifest) == FOUND
    assert report.joined == {OWN: 1}


def test_labels_may_be_class_ids(tmp_path: Path) -> None:
    records = [{"video": "a", "start": 1, "end": 2, "label": 1}]
    manifest, _ = read_annotations(put(tmp_path / "l.json", records), classes=("sit", "stand"))
    assert times(manifest) == {"a": [("stand", 1.0, 2.0)]}
    whole = {"classes": ["sit", "stand"], "time_unit": "frames", "annotations": records}
    manifest, _ = read_annotations(put(tmp_path / "l.json", whole))
    assert times(manifest) == {"a": [("stand", 1.0, 2.0)]}
    assert manifest.time_unit == "frames"


@pytest.mark.parametrize(
    "record",
    [
        {"video": "a", "start": 1, "label": "x"},
        {"video": "a", "start": 1, "end": [2], "label": "x"},
        {"video": "a", "start": True, "end": 2, "label": "x"},
        {"video": "a", "start": "soon", "end": 2, "label": "x"},
        {"start": 1, "end": 2, "label": "x"},
        {"video": "a", "start": 1, "end": 2},
        ["a", 1, 2, "x"],
        None,
    ],
    ids=str,
)
def test_a_malformed_record_is_counted_and_the_rest_is_read(record: Any, tmp_path: Path) -> None:
    manifest, report = read_annotations(put(tmp_path / "l.json", [*RECORDS, record]))
    assert times(manifest)["monday"] == FOUND["monday"]
    assert report.skipped.total() == 1
    assert " in l.json, record 3" in report.lines("skipped")[0]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"label": ["x", "y"]}, "label is ['x', 'y'], expected a text or a whole number"),
        ({"label": {"name": "x"}}, "label is {'name': 'x'}, expected a text or a whole number"),
        ({"label": True}, "label is True, expected a text or a whole number"),
        ({"label": 1.0}, "label is 1.0, expected a text or a whole number"),
        ({"video": ["a"]}, "video is ['a'], expected a text or a whole number"),
        ({"subset": ["training"]}, "subset is ['training'], expected a text or a whole number"),
        ({"Label": "y"}, "'label' and 'Label' are one name"),
    ],
    ids=str,
)
def test_a_record_with_values_that_cannot_be_meant_is_skipped(
    change: dict[str, Any], says: str, tmp_path: Path
) -> None:
    record = {"video": "v/monday.mp4", "start": 1, "end": 2, "label": "x", **change}
    manifest, report = read_annotations(put(tmp_path / "l.json", [*RECORDS, record]))
    assert times(manifest) == FOUND
    assert report.skipped == {"malformed record": 1}
    assert report.examples["malformed record"].endswith(f" in l.json, record 3: {says}")


def test_a_record_may_say_its_times_twice_and_a_warning_names_what_is_not_read(
    tmp_path: Path,
) -> None:
    extra = {"segment": [1, 4], "behavior": "other"}
    manifest, report = read_annotations(put(tmp_path / "l.json", [{**RECORDS[0], **extra}]))
    assert times(manifest) == {"monday": [("pour", 1, 4)]}
    assert not report.skipped
    (line,) = report.lines("doubts")
    assert line.endswith("'behavior' ('label' is read) in l.json, record 1")
    extra = {"segment": [25, 100], "subset": float("nan")}  # frames; as pandas writes no value
    manifest, report = read_annotations(put(tmp_path / "l.json", [{**RECORDS[0], **extra}]))
    assert times(manifest) == {"monday": [("pour", 1, 4)]}
    (line,) = report.lines("doubts")
    assert line.endswith("'segment' ('start and end' is read) in l.json, record 1")
    assert not report.skipped


def test_a_damaged_line_is_counted_and_the_rest_is_read(tmp_path: Path) -> None:
    text = "\n".join(map(json.dumps, RECORDS)) + '\n{"video": "v/monday.m'
    manifest, report = read_annotations(put(tmp_path / "l.jsonl", text))
    assert times(manifest) == FOUND
    assert report.examples["malformed record"].endswith(" in l.jsonl, line 3")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"images": [], "annotations": [{"bbox": []}], "categories": []}, "an export of COCO"),
        ({"_via_settings": {}, "_via_img_metadata": {}}, r"VGG Image Annotator \(VIA\)"),
        ({"project": {}, "config": {}, "attribute": {}, "file": {}, "metadata": {}}, "VGG Video"),
        ([{"id": 1, "data": {}, "annotations": [{"result": []}]}], "an export of Label Studio"),
        ([{"frame": 1, "box": []}], "a list of records with 'frame', 'box'; expected"),
        ([1, 2], "found a list; expected a JSON object or a list of records"),
        ("text", "found a str; expected"),
    ],
)
def test_other_json_is_refused_by_its_name(data: Any, says: str, tmp_path: Path) -> None:
    path = put(tmp_path / "labels.json", "")
    path.write_text(json.dumps(data))
    with pytest.raises(ManifestError, match=says):
        read_annotations(path)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("a.TextGrid", "import it in ELAN"),
        ("a.anvil", "import it in ELAN"),
        ("a.sqlite", "export its table as CSV"),
        ("a.mat", "save it as CSV"),
        ("a.docx", "copy its table into a CSV file"),
        ("a.ods", "save it as CSV"),
        ("a.ass", "ffmpeg -i FILE labels.srt"),
    ],
)
def test_other_formats_are_refused_by_their_name(name: str, says: str, tmp_path: Path) -> None:
    path = put(tmp_path / name, "x")
    with pytest.raises(ManifestError, match=rf"{path.suffix.lower()} files are not supp.*{says}"):
        read_annotations(path)
    put(tmp_path / "monday.csv", ONE_VIDEO["monday.csv"])
    report = read_annotations(tmp_path)[1]
    assert report.ignored == {"file that is not supported": 1}
    assert name in report.examples["file that is not supported"]


@pytest.mark.parametrize(
    "text",
    [
        "Study 4, Monday, camera 2\nvideo;start;end;label\nwalk;1,5;4,25;sit\nwalk;5,5;6,5;sit\n",
        "video;start;end;label\n" + "walk;1,5;4,25;sit, then stand\n" * 3,
        "sep=;\nvideo;start;end;label\nwalk;1,5;4,25;sit\n",
        "video\tstart\tend\tlabel\nwalk\t1,5\t4,25\tsit; stand, lie\n",
    ],
)
def test_the_delimiter_is_what_most_lines_have(text: str, tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(text)
    manifest, report = read_annotations(path)
    assert manifest.videos["walk"].actions[0][1:] == (1.5, 4.25)
    assert not report.skipped


def test_times_of_a_clock_are_no_frames(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("video,start,end,label\nwalk,0:01,0:10,sit\n")
    with pytest.raises(ManifestError, match="times of a clock, such as 0:01, are seconds"):
        read_annotations(path, time_unit="frames")
