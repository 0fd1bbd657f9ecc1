"""Every writer over the same detection, and the saved scores."""

from __future__ import annotations

import csv
import json
import pickle
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mstemba.errors import StoreError
from mstemba.pipeline.detect.scores_file import (
    SavedScores,
    ScoresFile,
    open_scores,
    read_scores,
    save_scores,
)
from mstemba.pipeline.detect.segments import find_segments
from mstemba.pipeline.outputs import WRITERS, Detection
from mstemba.records import Scores, Segment, TimeGrid

CLASSES = ("sit", "stand up", "=SUM(A1)")
GRID = TimeGrid.even(0.0, 0.5, 40)


def scores(classes: tuple[str, ...] = CLASSES, grid: TimeGrid = GRID) -> Scores:
    values = np.random.default_rng(0).random((grid.count, len(classes))).astype(np.float32)
    return Scores(values, grid, classes, "/videos/my walk.mp4", float(grid.ends[-1]), 32.0)


def detection(dense: Scores | None = None, **changes: Any) -> Detection:
    dense = dense or scores()
    made = Detection(dense, find_segments(dense, 0.7, 0.4), None, {"threshold": 0.7, "low": 0.4})
    return replace(made, **changes)


def write(name: str, what: Detection, folder: Path) -> Path:
    path = folder / "new" / f"result.{name}"
    WRITERS[name].write(what, path)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    return path


NOTHING = detection(replace(scores(), probabilities=np.zeros((40, 3), np.float32)))
LABELLED = detection(ground_truth=[Segment(1.0, 3.0, 1, "stand up", 1.0)])
MANY = detection(scores(tuple(f"class number {i} of very many" for i in range(157))))
SHORT = detection(
    replace(
        scores(grid=TimeGrid.even(0.0, 0.1, 1)),
        probabilities=np.array([[0.9, 0.0, 0.8]], np.float32),
    )
)
CASES = {"some": detection(), "none": NOTHING, "labelled": LABELLED, "many": MANY, "short": SHORT}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", WRITERS)
def test_every_writer_writes_every_detection(tmp_path: Path, name: str, case: str) -> None:
    first = write(name, CASES[case], tmp_path / "1").read_bytes()
    assert first
    assert write(name, CASES[case], tmp_path / "2").read_bytes() == first


# JSON


def test_json_holds_the_segments_the_grid_and_where_they_came_from(tmp_path: Path) -> None:
    what = detection()
    data = json.loads(write("json", what, tmp_path).read_text(encoding="utf-8"))
    assert list(data) == [
        "video",
        "duration",
        "fps",
        "classes",
        "grid",
        "segments",
        "provenance",
    ]
    assert (data["video"], data["duration"], data["fps"]) == ("/videos/my walk.mp4", 20.0, 32.0)
    assert data["classes"] == list(CLASSES)
    assert data["grid"] == {"start": 0.0, "step": 0.5, "count": 40, "anchor": 0.0}
    assert data["provenance"] == {"threshold": 0.7, "low": 0.4}
    assert len(data["segments"]) == len(what.segments) > 3
    for written, segment in zip(data["segments"], what.segments, strict=True):
        assert set(written) == {"label", "class_id", "start", "end", "score"}
        assert (written["label"], written["class_id"]) == (segment.label, segment.class_id)
        assert data["classes"][written["class_id"]] == written["label"]
        for key in ("start", "end", "score"):
            assert written[key] == pytest.approx(getattr(segment, key), abs=1e-6)


def test_json_without_a_segment_has_an_empty_list(tmp_path: Path) -> None:
    assert json.loads(write("json", NOTHING, tmp_path).read_text())["segments"] == []


def test_json_keeps_odd_names(tmp_path: Path) -> None:
    odd = scores(("ü", 'quo"te\n', "日本"))
    data = json.loads(write("json", detection(odd), tmp_path).read_text(encoding="utf-8"))
    assert data["classes"] == ["ü", 'quo"te\n', "日本"]


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_whose_name_is_no_text_is_written_of_too(tmp_path: Path, name: str) -> None:
    write(name, detection(replace(scores(), video="/videos/caf\udce9.mp4")), tmp_path)


# CSV


def rows(what: Detection, folder: Path) -> list[dict[str, str]]:
    with write("csv", what, folder).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_csv_has_one_row_a_segment(tmp_path: Path) -> None:
    what = LABELLED
    found = rows(what, tmp_path)
    assert list(found[0]) == ["video", "start", "end", "label", "class_id", "score"]
    assert len(found) == len(what.segments)
    for row, s in zip(found, what.segments, strict=True):
        assert row["video"] == "my walk.mp4"
        assert float(row["start"]) == pytest.approx(s.start, abs=1e-3)
        assert float(row["end"]) == pytest.approx(s.end, abs=1e-3)
        assert float(row["score"]) == pytest.approx(s.score, abs=1e-4)
        assert int(row["class_id"]) == s.class_id


def test_csv_without_a_segment_has_its_header(tmp_path: Path) -> None:
    text = write("csv", NOTHING, tmp_path).read_text()
    assert text == "video,start,end,label,class_id,score\n"


@pytest.mark.parametrize("label", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"])
def test_a_cell_that_a_spreadsheet_would_run_is_written_as_text(tmp_path: Path, label: str) -> None:
    segment = Segment(0.0, 1.0, 0, label, 0.9)
    video = replace(scores((label,)), video=f"/videos/{label}.mp4")
    (row,) = rows(Detection(video, [segment], None, {}), tmp_path)
    # A carriage return may become a space: the csv module would not quote it.
    assert row["label"].replace("\r", " ") == "'" + label.replace("\r", " ")
    assert row["video"][0] == "'"


@pytest.mark.parametrize("label", ["a, b", 'say "x"', "two\nlines", "ü", "", "1=2", "'1"])
def test_other_labels_are_written_as_they_are(tmp_path: Path, label: str) -> None:
    segment = Segment(0.0, 1.0, 0, label, 0.9)
    (row,) = rows(Detection(scores((label,)), [segment], None, {}), tmp_path)
    assert row["label"] == label


# Saved scores


def keep(folder: Path, dense: Scores | None = None) -> Path:
    path = folder / "v.scores.npz"
    dense = replace(dense or scores(), video=str(folder / "v.mp4"))
    save_scores(path, SavedScores(dense, "key", "print", {"arch": "mstemba"}))
    return path


def opened(path: Path) -> ScoresFile:
    file = open_scores(path)
    assert file is not None
    return file


def test_scores_come_back_as_they_were_saved(tmp_path: Path) -> None:
    dense = scores(("ü\udce9", "a\nb", "nul\0"), TimeGrid(np.array([0.0, 0.4, 3.0]), 0.7))
    path = keep(tmp_path, dense)
    saved = opened(path).read()
    read = saved.scores
    assert np.array_equal(read.probabilities, dense.probabilities)
    assert read.probabilities.dtype == np.float32
    assert np.array_equal(read.grid.starts, dense.grid.starts)
    assert (read.grid.step, read.duration, read.fps) == (0.7, dense.duration, dense.fps)
    assert read.classes == dense.classes
    assert (saved.key, saved.fingerprint, saved.id) == ("key", "print", "v")
    assert saved.provenance == {"arch": "mstemba"}


def test_a_scores_file_tells_what_it_is_of(tmp_path: Path) -> None:
    file = opened(keep(tmp_path))
    video = tmp_path / "v.mp4"
    assert (file.key, file.fingerprint, file.id) == ("key", "print", "v")
    assert file.video == str(video.resolve())
    assert file.is_of(video, "other")
    assert file.is_of(tmp_path / "moved.mp4", "print")
    assert not file.is_of(tmp_path / "moved.mp4", "other")


def test_the_first_files_have_classes_as_an_array_and_no_id(tmp_path: Path) -> None:
    path = keep(tmp_path)
    with np.load(path) as data:
        content = {name: data[name] for name in data if name != "id"}
    np.savez(path, **{**content, "classes": np.array(CLASSES)})  # type: ignore[arg-type]
    read = read_scores(path)
    assert (read.scores.classes, read.id) == (CLASSES, "v")
    assert opened(path).id == "v"


@pytest.mark.parametrize("anchor", [0.0, 0.5, 1.0])
def test_saved_scores_say_where_in_its_row_a_probability_holds(
    tmp_path: Path, anchor: float
) -> None:
    saved = read_scores(keep(tmp_path, replace(scores(), anchor=anchor))).scores
    assert saved.anchor == anchor
    assert np.array_equal(saved.times, scores().grid.starts + 0.5 * anchor)


@pytest.mark.parametrize(
    ("provenance", "anchor"),
    [
        ({}, 0.0),
        ({"checkpoint": "runs/x", "features": {"window": 16, "stride": 16}}, 0.0),
        ({"zero_shot": {}, "features": {"window": 16, "stride": 16}}, 0.5),
        ({"zero_shot": {}, "features": {"window": 8, "stride": 16}}, 0.25),
        ({"zero_shot": {}, "features": {"window": 64, "stride": 16}}, 1.0),
    ],
)
def test_files_without_an_anchor_are_of_row_starts_and_of_words_of_the_pictures(
    tmp_path: Path, provenance: dict[str, Any], anchor: float
) -> None:
    path = keep(tmp_path)
    with np.load(path) as data:
        content = {name: data[name] for name in data if name != "anchor"}
    content["provenance"] = np.array(json.dumps(provenance))
    np.savez(path, **content)  # type: ignore[arg-type]
    assert read_scores(path).scores.anchor == anchor


def test_scores_that_were_replaced_after_opening_are_refused(tmp_path: Path) -> None:
    file = opened(keep(tmp_path))
    save_scores(file.path, replace(file.read(), key="another"))
    with pytest.raises(StoreError, match="other scores were saved"):
        file.read()
    assert opened(file.path).read().key == "another"


def test_a_file_that_is_missing_is_not_opened(tmp_path: Path) -> None:
    assert open_scores(tmp_path / "none.npz") is None
    with pytest.raises(StoreError, match=r"none\.npz: no such file"):
        read_scores(tmp_path / "none.npz")


class Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def test_pickled_content_is_never_executed(tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    bomb = np.array([Bomb(mark)], dtype=object)
    with np.load(keep(tmp_path)) as data:
        content = dict(data)
    for name in content:
        np.savez(tmp_path / "bomb.npz", **{**content, name: bomb})  # type: ignore[arg-type]
        open_scores(tmp_path / "bomb.npz")
        with pytest.raises(StoreError, match="not readable"):
            read_scores(tmp_path / "bomb.npz")
    (tmp_path / "raw.npz").write_bytes(pickle.dumps(Bomb(mark)))
    assert open_scores(tmp_path / "raw.npz") is None
    with pytest.raises(StoreError, match="not readable"):
        read_scores(tmp_path / "raw.npz")
    assert not mark.exists()
    np.load(tmp_path / "bomb.npz", allow_pickle=True)[name]
    assert mark.exists(), "the bomb must be live, or this test shows nothing"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def overwrite(path: Path) -> None:
    # Inside the compressed probabilities, past the header of the first member.
    content = bytearray(path.read_bytes())
    content[150:400] = b"\xff" * 250
    path.write_bytes(bytes(content))


def without_a_field(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        members = {n: archive.read(n) for n in archive.namelist() if n != "duration.npy"}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def one_array(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


DAMAGE = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("hello"),
    "cut": cut,
    "overwritten": overwrite,
    "without a field": without_a_field,
    "one array": one_array,
    "zip of nothing": lambda path: zipfile.ZipFile(path, "w").close(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_scores_are_not_read(tmp_path: Path, damage: str) -> None:
    path = keep(tmp_path)
    DAMAGE[damage](path)
    with pytest.raises(StoreError, match="not readable as saved scores"):
        read_scores(path)
    assert open_scores(path) is None or damage in ("overwritten", "without a field")
