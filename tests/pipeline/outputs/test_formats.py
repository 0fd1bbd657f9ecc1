"""Every format over the same detections, read back by readers that others wrote, or by `init`."""

from __future__ import annotations

import csv
import html
import json
import re
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import opentimelineio
import pympi
import pytest
import srt
import webvtt
from hypothesis import given, settings
from hypothesis import strategies as st

from mstemba.data_manifests.annotations import read_annotations
from mstemba.pipeline.detect.segments import find_segments
from mstemba.pipeline.evaluate.predictions import read_predictions
from mstemba.pipeline.outputs import WRITERS, Detection
from mstemba.pipeline.outputs.editing import timecode, timecode_rate
from mstemba.pipeline.outputs.fields import distinct, media_path, media_url
from mstemba.records import Scores, TimeGrid

PICTURES = {"png", "html"}
"""Formats that people look at: they have tests of their own."""


# What is written

# Names of classes, and where a format cannot hold one, what it says instead.
_LINE = ("vtt", "srt", "edl")
NAMES: dict[str, dict[str, str]] = {
    "sit": {},
    "say \"it's\" & 'go'": {},
    "<script>alert(1)</script>": {"srt": "＜script>alert(1)＜/script>"},  # noqa: RUF001
    "<i>leans</i>": {"srt": "＜i>leans＜/i>"},  # noqa: RUF001
    "{\\an8}up": {"srt": "｛\\an8}up"},  # noqa: RUF001
    "1 < 2 > 0 {": {},
    "&amp;": {},
    "]]>": {},
    "-->": {"srt": "→", "csv": "'-->"},
    "00:00:01,000 --> 00:00:02,000": {"srt": "00:00:01,000 → 00:00:02,000"},
    "two\nlines": dict.fromkeys(_LINE, "two\\nlines"),
    "two\n\nlines": dict.fromkeys(_LINE, "two\\n\\nlines"),
    "a\rb": dict.fromkeys((*_LINE, "eaf"), "a\\rb") | {"csv": "a b", "tsv": "a b"},
    "a\tb": dict.fromkeys(_LINE, "a\\tb"),
    "a\u2028b": dict.fromkeys(_LINE, "a\\u2028b"),
    "bell\x07": dict.fromkeys((*_LINE, "eaf"), "bell\\x07"),
    "\ufffe": {"eaf": "\\ufffe"},
    "caf\udce9": dict.fromkeys((*_LINE, "eaf", "otio", "csv", "tsv"), "caf\\udce9"),
    "日本 🎬": {},
    "שלום, עולם": {},
    "\u202eright to left": {},
    "=SUM(A1)": {"csv": "'=SUM(A1)"},
    "@cmd": {"csv": "'@cmd"},
    "": dict.fromkeys((*_LINE, "tsv"), "(no name)"),
    "7": {},
    "NOTE": {},
    "* LOC: 00:00:00:00 RED x": {},
    "a;b,c": {},
    "long " * 60 + "name": {},
}
ODD_VIDEO = "/videos/o'dd \"<script>\n=1; שלום caf\udce9.mp4"


def some_scores(classes: tuple[str, ...], rows: int = 40, step: float = 0.5) -> Scores:
    values = np.random.default_rng(0).random((rows, len(classes))).astype(np.float32)
    grid = TimeGrid.even(0.0, step, rows)
    return Scores(values, grid, classes, "/videos/walk.mp4", rows * step, 29.97)


def cut(dense: Scores, **changes: Any) -> Detection:
    return Detection(dense, find_segments(dense, 0.7, 0.4), None, {"arch": "mstemba"}, **changes)


SOME = cut(some_scores(("sit", "stand up", "drink")), id="walk")
# Rows at 24 frames a second, strides of 16: times that are no whole milliseconds.
LONG = some_scores(tuple(f"class {i}" for i in range(12)), rows=900, step=16 / 24)
CASES = {
    "some": SOME,
    "none": cut(replace(SOME.scores, probabilities=np.zeros((40, 3), np.float32)), id="walk"),
    "all at once": cut(replace(SOME.scores, probabilities=np.ones((40, 3), np.float32))),
    "odd names": cut(replace(some_scores(tuple(NAMES)), video=ODD_VIDEO), id='"<b>\n'),
    "twice a name": cut(some_scores(("sit", "sit", "sit (2)"))),
    "shorter than a millisecond": cut(
        replace(some_scores(("sit", "stand"), 2, 0.0003), probabilities=np.eye(2, dtype=np.float32))
    ),
    "thousands": cut(LONG),
    "late": cut(
        replace(SOME.scores, grid=TimeGrid.even(36_000.25, 0.5, 40), duration=36_020.25, fps=25.0)
    ),
}


class Found(NamedTuple):
    """A segment as a file says it: whole milliseconds, and the name or, better, the class."""

    start: int
    end: int
    name: str
    class_id: int | None = None


def expected(form: str, detection: Detection) -> list[Found]:
    found = []
    for s in detection.segments:
        # Two of them round to microseconds, and their reader here to milliseconds after that.
        digits = 6 if form in ("json", "activitynet") else None
        start, end = (
            round(1000 * (time if digits is None else round(time, digits)))
            for time in (s.start, s.end)
        )
        exact = form in ("json", "csv", "activitynet", "npz")
        name = NAMES.get(s.label, {}).get(form, s.label).strip()
        if detection is CASES["twice a name"] and form in ("tsv", *_LINE):
            name = ("sit", "sit (2)", "sit (2) (2)")[s.class_id]
        class_id = s.class_id if form in ("json", "csv", "otio", "npz") else None
        found.append(Found(start, end if exact else max(start + 1, end), name, class_id))
    return sorted(found)


# What reads it


def read_json(path: Path) -> list[Found]:
    data = json.loads(path.read_text(encoding="utf-8"))
    return [_found(s["start"], s["end"], s["label"], s["class_id"]) for s in data["segments"]]


def read_csv(path: Path) -> list[Found]:
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [_found(r["start"], r["end"], r["label"], int(r["class_id"])) for r in rows]


def read_tsv(path: Path) -> list[Found]:
    """By `mstemba init`, which pairs START and STOP; a file without events is a header alone."""
    with path.open(newline="", encoding="utf-8") as file:
        if len(list(csv.reader(file, delimiter="\t"))) == 1:
            return []
    manifest, report = read_annotations(path)
    assert report.skipped.total() == 0, report.lines()
    (video,) = manifest.videos.values()
    return [_found(a.start, a.end, manifest.classes[a.class_id]) for a in video.actions]


def read_eaf(path: Path) -> list[Found]:
    eaf = pympi.Elan.Eaf(str(path))
    return [
        Found(start, end, value.strip())
        for tier in eaf.get_tier_names()
        for start, end, value in eaf.get_annotation_data_for_tier(tier)
    ]


def read_vtt(path: Path) -> list[Found]:
    return joined(
        (_milliseconds(cue.start_time), _milliseconds(cue.end_time), cue.raw_text)
        for cue in webvtt.from_string(path.read_text(encoding="utf-8"), strict=True)
    )


def _milliseconds(time: Any) -> int:
    minutes = 60 * time.hours + time.minutes
    return 1000 * (60 * minutes + time.seconds) + time.milliseconds


def read_srt(path: Path) -> list[Found]:
    cues = list(srt.parse(path.read_text(encoding="utf-8")))
    assert [cue.index for cue in cues] == list(range(1, len(cues) + 1))
    return joined(
        (
            round(cue.start.total_seconds() * 1000),
            round(cue.end.total_seconds() * 1000),
            cue.content.replace("&", "&amp;"),
        )
        for cue in cues
    )


def joined(cues: Any) -> list[Found]:
    """Cues to segments: a line that goes on in the next cue without a gap is the same action."""
    found: list[Found] = []
    begun: dict[str, int] = {}
    before = None
    for start, end, text in cues:
        assert before is None or start >= before, "cues overlap"
        lines = text.split("\n")
        assert len(set(lines)) == len(lines), lines
        goes_on = {line for line in lines if start == before}
        for line in begun.keys() - goes_on:
            found.append(Found(begun.pop(line), before, html.unescape(line).strip()))
        for line in lines:
            begun.setdefault(line, start)
        before = end
    return found + [
        Found(start, before, html.unescape(line).strip()) for line, start in begun.items()
    ]


def read_edl(path: Path) -> list[Found]:
    rate = int(re.findall(r"^\* TIMECODES COUNT (\d+)", path.read_text("utf-8"), re.MULTILINE)[0])
    (clip,) = opentimelineio.adapters.read_from_file(str(path), rate=rate).find_clips()
    found = []
    for marker in clip.markers:
        parts = re.fullmatch(r"(.*) \[([\d.]+)-([\d.]+) s, \d\.\d\d\]", marker.name)
        assert parts, marker.name
        found.append(_found(parts[2], parts[3], parts[1]))
    return found


def read_otio(path: Path) -> list[Found]:
    (clip,) = opentimelineio.adapters.read_from_file(str(path)).find_clips()
    found = []
    for marker in clip.markers:
        times = (marker.marked_range.start_time, marker.marked_range.end_time_exclusive())
        assert {time.rate for time in times} == {1000}
        start, end = (int(time.value) for time in times)
        found.append(Found(start, end, marker.name.strip(), marker.metadata["mstemba"]["class_id"]))
    return found


def read_activitynet(path: Path) -> list[Found]:
    data = json.loads(path.read_text(encoding="utf-8"))
    # What ActivityNet's own evaluation asks for.
    assert set(data) == {"version", "results", "external_data"}
    ((_, listed),) = data["results"].items()
    assert all(set(item) == {"label", "score", "segment"} for item in listed)
    scores = [item["score"] for item in listed]
    assert scores == sorted(scores, reverse=True)
    return [_found(*item["segment"], item["label"]) for item in listed]


def read_npz(path: Path) -> list[Found]:
    with np.load(path, allow_pickle=False) as data:
        classes = data["classes"].tolist()
        columns = (data[f"segment_{name}"].tolist() for name in ("starts", "ends", "classes"))
        return [_found(start, end, classes[c], c) for start, end, c in zip(*columns, strict=True)]


def _found(start: Any, end: Any, name: str, class_id: int | None = None) -> Found:
    return Found(round(1000 * float(start)), round(1000 * float(end)), name.strip(), class_id)


READERS: dict[str, Callable[[Path], list[Found]]] = {
    "json": read_json,
    "csv": read_csv,
    "tsv": read_tsv,
    "eaf": read_eaf,
    "vtt": read_vtt,
    "srt": read_srt,
    "edl": read_edl,
    "otio": read_otio,
    "activitynet": read_activitynet,
    "npz": read_npz,
}


def write(form: str, detection: Detection, folder: Path) -> Path:
    path = folder / f"walk.{WRITERS[form].suffix}"
    WRITERS[form].write(detection, path)
    return path


def test_every_format_has_a_reader_here_or_is_looked_at() -> None:
    assert set(READERS) | PICTURES >= set(WRITERS)
    assert len({writer.suffix for writer in WRITERS.values()}) == len(WRITERS)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("form", READERS)
def test_a_reader_finds_the_same_segments(form: str, case: str, tmp_path: Path) -> None:
    detection = CASES[case]
    assert sorted(READERS[form](write(form, detection, tmp_path))) == expected(form, detection)


def test_the_cases_are_what_they_are_called() -> None:
    assert CASES["none"].segments == []
    assert len(CASES["thousands"].segments) > 1500
    assert {s.label for s in CASES["odd names"].segments} == set(NAMES)
    overlapping = CASES["all at once"].segments
    assert len({(s.start, s.end) for s in overlapping}) == 1 < len(overlapping)
    assert all(s.end - s.start < 0.001 for s in CASES["shorter than a millisecond"].segments)


@st.composite
def detections(draw: st.DrawFn) -> Detection:
    """Overlapping segments of up to four classes, on rows of uneven lengths."""
    rows, classes = draw(st.integers(1, 10)), draw(st.integers(1, 4))
    active = draw(st.lists(st.booleans(), min_size=rows * classes, max_size=rows * classes))
    lengths = st.floats(0.002, 100.0, allow_nan=False)
    steps = draw(st.lists(lengths, min_size=rows + 1, max_size=rows + 1))
    starts = np.cumsum(steps[:-1])
    values = np.array(active, np.float32).reshape(rows, classes)
    grid = TimeGrid(starts, steps[-1])
    names = ("sit", "stand", "drink", "sit down")[:classes]
    return cut(Scores(values, grid, names, "/v/walk.mp4", float(grid.ends[-1]), 25.0))


@pytest.mark.parametrize("form", READERS)
@settings(max_examples=15)
@given(detection=detections())
def test_overlapping_actions_survive_the_round_trip(form: str, detection: Detection) -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = READERS[form](write(form, detection, Path(folder)))
    assert sorted(found) == expected(form, detection)


# What each format says beside the segments


@pytest.mark.parametrize("form", ["csv", "tsv", "eaf"])
def test_videos_of_one_name_and_formulas_come_back_as_they_were(form: str, tmp_path: Path) -> None:
    labels = ("=SUM(A1)", "'=SUM(A1)", "''", "-")
    for folder in ("a", "=b"):
        (tmp_path / folder).mkdir()
        dense = replace(some_scores(labels), video=f"/videos/{folder}/walk.mp4")
        write(form, cut(dense, id=f"{folder}/walk"), tmp_path / folder)
    manifest, report = read_annotations(tmp_path)
    assert set(manifest.videos) == {"a/walk", "=b/walk"}
    assert set(manifest.classes) == set(labels)
    assert report.skipped.total() == report.ignored.total() == 0


def test_users_own_tables_keep_their_apostrophes(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    path.write_text("video,start,end,label\nwalk,1,2,'-ish\n")
    assert read_annotations(path)[0].classes == ("'-ish",)


def test_the_formats_of_one_detection_are_read_once(tmp_path: Path) -> None:
    forms = ("csv", "tsv", "eaf")
    for form in forms:
        write(form, CASES["late"], tmp_path)
    manifest, report = read_annotations(tmp_path)
    found = len(CASES["late"].segments)
    assert len(manifest.videos["walk"].actions) == found
    assert report.ignored == {"action that is in another file, too": 2 * found}
    assert report.skipped.total() == 0
    write("csv", CASES["late"], tmp_path).write_text("video,start,end,label\n" + 2 * "walk,1,2,a\n")
    doubled = read_annotations(tmp_path)[0].videos["walk"]  # one file's own repetition is its own
    assert len(doubled.actions) == found + 2


@pytest.mark.parametrize("form", ["tsv", "eaf", "csv"])
def test_two_media_files_taken_for_one_video_are_told(form: str, tmp_path: Path) -> None:
    for place in ("a/walk.mp4", "b/walk.avi"):
        dense = replace(SOME.scores, video=f"/videos/{place}")
        folder = tmp_path / place[0]
        folder.mkdir()
        write(form, replace(SOME, scores=dense), folder)
    manifest, report = read_annotations(tmp_path)
    told = report.kept["two media files taken for one video"] > 0
    assert told or len(manifest.videos) == 2


def test_tables_are_read_back_by_init(tmp_path: Path) -> None:
    for form in ("csv", "tsv"):
        manifest, report = read_annotations(write(form, SOME, tmp_path))
        assert report.skipped.total() == 0
        assert list(manifest.videos) == ["walk"]
        assert manifest.time_unit == "seconds"
        assert set(manifest.classes) == {s.label for s in SOME.segments}
    assert manifest.videos["walk"].duration == 20.0  # BORIS has a column for it


def test_tsv_has_the_columns_of_boris_in_the_order_of_time(tmp_path: Path) -> None:
    with write("tsv", SOME, tmp_path).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert list(rows[0]) == [
        "Observation id", "Observation date", "Description", "Observation duration",
        "Observation type", "Source", "Time offset (s)", "Media duration (s)", "FPS", "Subject",
        "Behavior", "Behavioral category", "Behavior type", "Time", "Media file name",
        "Image index", "Image file path", "Comment",
    ]  # fmt: skip
    times = [float(row["Time"]) for row in rows]
    assert times == sorted(times)
    assert [r["Behavior type"] for r in rows].count("STOP") * 2 == len(rows)
    first, segment = rows[0], min(SOME.segments, key=lambda s: (s.start, s.class_id))
    assert (first["Behavior type"], first["Observation id"]) == ("START", "walk")
    assert (first["Behavior"], first["Comment"]) == (segment.label, f"score {segment.score:.4f}")
    assert {row["FPS"] for row in rows} == {"29.970"}
    # Times in the file are rounded to milliseconds, less than a frame.
    assert [int(row["Image index"]) for row in rows] == [round(29.97 * time) for time in times]


def test_the_video_is_named_by_its_path_from_the_file(tmp_path: Path) -> None:
    video = tmp_path / "my videos" / "=1 ü.mp4"
    detection = replace(SOME, scores=replace(SOME.scores, video=str(video)))
    for folder in (tmp_path / "out", tmp_path / "deep" / "er", video.parent):
        path = write("eaf", detection, folder)
        (media,) = pympi.Elan.Eaf(str(path)).media_descriptors
        assert media["RELATIVE_MEDIA_URL"].startswith("./")
        assert (folder / media["RELATIVE_MEDIA_URL"]).resolve() == video.resolve()
        assert media["MEDIA_URL"] == f"file://{video}"
        assert media["MIME_TYPE"] == "video/mp4"
        (clip,) = opentimelineio.adapters.read_from_file(
            str(write("otio", detection, folder))
        ).find_clips()
        url = clip.media_reference.target_url
        assert url == media_url(str(video), path)
        assert url.endswith("%3D1%20%C3%BC.mp4")
        assert clip.media_reference.available_range.duration.to_seconds() == 20.0


def test_eaf_of_a_file_of_no_known_kind_says_so(tmp_path: Path) -> None:
    for name in ("walk", "walk.xyz123"):
        detection = replace(SOME, scores=replace(SOME.scores, video=f"/videos/{name}"))
        (media,) = pympi.Elan.Eaf(str(write("eaf", detection, tmp_path))).media_descriptors
        assert media["MIME_TYPE"] == "unknown"


def test_a_path_leads_from_where_a_linked_folder_really_is(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "a" / "b")
    found = media_path(str(tmp_path / "v.mp4"), tmp_path / "link" / "v.eaf")
    assert found == "./../../v.mp4"


def test_eaf_has_a_tier_for_every_class_that_was_found_and_no_slot_is_shared(
    tmp_path: Path,
) -> None:
    eaf = pympi.Elan.Eaf(str(write("eaf", CASES["twice a name"], tmp_path)))
    assert list(eaf.get_tier_names()) == ["sit", "sit (2)", "sit (2) (2)"]
    assert len(eaf.timeslots) == 2 * len(CASES["twice a name"].segments)
    assert list(eaf.timeslots.values()) == sorted(eaf.timeslots.values())
    few = replace(SOME, segments=[s for s in SOME.segments if s.class_id == 1])
    assert list(pympi.Elan.Eaf(str(write("eaf", few, tmp_path))).get_tier_names()) == ["stand up"]
    odd = pympi.Elan.Eaf(str(write("eaf", CASES["odd names"], tmp_path)))
    assert "(no name)" in odd.get_tier_names()
    assert "two\nlines" in odd.get_tier_names()


def test_subtitles_stack_what_goes_on_at_once_in_the_order_of_the_classes(tmp_path: Path) -> None:
    values = np.array([[1, 0, 0], [1, 0, 1], [1, 1, 1], [0, 0, 0], [0, 1, 0]], np.float32)
    grid, names = TimeGrid.even(0.5, 0.5, 5), ("sit", "drink", "<b>")
    dense = Scores(values, grid, names, "w.mp4", 3.0, 10.0, anchor=0.5)
    made = Detection(dense, find_segments(dense, 0.5, 0.3), None, {})
    text = write("vtt", made, tmp_path).read_text(encoding="utf-8")
    assert text == (
        "WEBVTT\n\n00:00:00.500 --> 00:00:01.000\nsit\n\n"
        "00:00:01.000 --> 00:00:01.500\nsit\n&lt;b&gt;\n\n"
        "00:00:01.500 --> 00:00:02.000\nsit\ndrink\n&lt;b&gt;\n\n"
        "00:00:02.500 --> 00:00:03.000\ndrink\n"
    )
    assert "\ufeff" not in write("srt", made, tmp_path).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("fps", "rate", "second"),
    [(24, 24, 24), (25, 25, 25), (29.97, 30, 29.97), (23.976, 24, 23.976), (59.94, 60, 59.94)],
)
def test_a_timecode_counts_the_frames_of_the_video(fps: float, rate: int, second: float) -> None:
    found, counted = timecode_rate(fps)
    assert counted == rate
    assert found == pytest.approx(second, abs=1e-3)


@pytest.mark.parametrize("fps", [10.0, 19.62, 120.0])
def test_a_rate_that_editing_programs_do_not_have_becomes_25(fps: float) -> None:
    assert timecode_rate(fps) == (25, 25)


def test_a_timecode_is_of_hours_minutes_seconds_and_frames() -> None:
    assert timecode(0, 25) == "00:00:00:00"
    assert timecode(((1 * 60 + 2) * 60 + 3) * 30 + 29, 30) == "01:02:03:29"


def test_edl_markers_are_at_the_frame_where_the_segment_starts(tmp_path: Path) -> None:
    path = write("edl", SOME, tmp_path)
    timeline = opentimelineio.adapters.read_from_file(str(path), rate=30)
    (clip,) = timeline.find_clips()
    assert (timeline.name, clip.name) == ("walk.mp4", "walk.mp4")
    assert clip.duration().value == round(20.0 * 29.97)
    found = [marker.marked_range.start_time.value for marker in clip.markers]
    starts = [round(s.start, 3) for s in SOME.segments]  # times are written in milliseconds
    assert found == [round(start * 30 * 1000 / 1001) for start in starts]
    assert len({marker.color for marker in clip.markers}) == 3


def test_a_video_of_one_frame_is_an_event_of_one_frame(tmp_path: Path) -> None:
    dense = replace(some_scores(("sit",), rows=1, step=0.01), fps=25.0)
    text = write("edl", cut(dense), tmp_path).read_text(encoding="utf-8")
    assert 2 * " 00:00:00:00 00:00:00:01" in text
    assert opentimelineio.adapters.read_from_string(text, "cmx_3600", rate=25).duration().value == 1


def test_otio_says_score_and_origin(tmp_path: Path) -> None:
    timeline = opentimelineio.adapters.read_from_file(str(write("otio", SOME, tmp_path)))
    assert timeline.metadata["mstemba"]["arch"] == "mstemba"
    (clip,) = timeline.find_clips()
    scores = [marker.metadata["mstemba"]["score"] for marker in clip.markers]
    assert scores == pytest.approx([s.score for s in SOME.segments], abs=1e-6)


def test_activitynet_is_read_by_evaluate(tmp_path: Path) -> None:
    path = write("activitynet", SOME, tmp_path)
    found = read_predictions(path, SOME.scores.classes)
    assert found.segments is not None
    for read, made in zip(sorted(found.segments["walk"]), sorted(SOME.segments), strict=True):
        assert (read.class_id, read.label) == (made.class_id, made.label)
        numbers = (made.start, made.end, made.score)
        assert (read.start, read.end, read.score) == pytest.approx(numbers, abs=1e-6)


def test_npz_holds_the_dense_scores_with_their_times(tmp_path: Path) -> None:
    with np.load(write("npz", SOME, tmp_path), allow_pickle=False) as data:
        assert np.array_equal(data["probabilities"], SOME.scores.probabilities)
        assert np.array_equal(data["starts"], SOME.scores.grid.starts)
        assert np.array_equal(data["ends"], SOME.scores.grid.ends)
        assert tuple(data["classes"]) == SOME.scores.classes
        assert (str(data["id"]), str(data["video"])) == ("walk", "/videos/walk.mp4")
        assert (float(data["duration"]), float(data["fps"])) == (20.0, 29.97)
        assert data["segment_scores"].tolist() == pytest.approx([s.score for s in SOME.segments])


@given(st.lists(st.sampled_from(["a", "a (2)", " a", "", " ", "b", "(no name)"])))
def test_names_are_kept_apart(names: list[str]) -> None:
    found = distinct(names)
    assert len({name.strip() for name in found} - {""}) == len(names)
    assert all(new.startswith(old) for old, new in zip(names, found, strict=True) if old.strip())
    if len({name.strip() for name in names} - {""}) == len(names):
        assert found == names
