"""Times that are wrong: before the video, reversed, of another unit or another zero."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mstemba.data_manifests.annotations import read_annotations
from mstemba.data_manifests.manifest import Action
from mstemba.errors import ManifestError

CUT = "action that begins before 0, cut to begin at 0"
BEFORE = "action before the start of the video"


def table(tmp_path: Path, *rows: str) -> Path:
    path = tmp_path / "labels.csv"
    path.write_text("\n".join(["video,start,end,label,duration", *rows, ""]))
    return path


def test_actions_before_the_video_are_cut_or_skipped(tmp_path: Path) -> None:
    rows = ["a,-2,3,x,60", "a,-0.5,0.5,x,60", "a,-3,-1,x,60", "a,-1,0,x,60", "a,4,5,x,60"]
    manifest, report = read_annotations(table(tmp_path, *rows))
    starts = [(action.start, action.end) for action in manifest.videos["a"].actions]
    assert starts == [(0.0, 3.0), (0.0, 0.5), (4.0, 5.0)]
    assert (report.kept, report.skipped) == ({CUT: 2}, {BEFORE: 2})
    assert report.examples[CUT] == "['x', -2.0, 3.0] in labels.csv, line 2"
    assert report.examples[BEFORE] == "['x', -3.0, -1.0] in labels.csv, line 4"


def test_negative_times_of_other_forms_are_cut_too(tmp_path: Path) -> None:
    path = tmp_path / "labels.json"
    path.write_text(json.dumps({"v": {"actions": [[0, -1, 2], [0, 1, 2]]}}))
    manifest, report = read_annotations(path)
    assert manifest.videos["v"].actions == (Action(0, 0.0, 2.0), Action(0, 1.0, 2.0))
    assert report.kept == {CUT: 1}


def test_each_kind_of_wrong_time_has_its_own_line(tmp_path: Path) -> None:
    rows = [
        "a,1 min,2 min,x,60",
        "a,5,3,x,60",
        "a,-1,1,x,60",
        "a,4,4,x,60",
        "a,,4,x,60",
        "a,1,2,x,60",
    ]
    manifest, report = read_annotations(table(tmp_path, *rows))
    assert len(manifest.videos["a"].actions) == 4
    said = "\n".join(report.lines())
    assert "neither a number nor a clock time (0:01:02.5): 1 skipped, for example '1 min'" in said
    assert "action that ends before it starts: 1 kept" in said
    assert "begins before 0, cut to begin at 0: 1 kept" in said
    assert "malformed row: 1 skipped, for example 'a,,4,x,60'" in said


@pytest.mark.parametrize(
    ("rows", "first", "others"),
    [
        (["a,50,700,x,30", "b,5,650,x,30"], "like frames: pass --time-unit", []),
        (["a,1000,29000,x,30"], "like milliseconds: divide them by 1000", []),
        (["a,1000,6000,x,30"], "like frames", ["like milliseconds"]),
        (["a,5405,5409,x,30"], "like times of a clock, or with an offset", ["frames", "millisec"]),
        (["a,10:00:05,10:00:09,x,30", "a,10:00:20,10:00:29,x,30"], "like times of a clock", []),
        (["a,1714557605,1714557609,x,30"], "like times of a clock", []),
        (["a,1000,90000000,x,30"], "expected seconds from the start of the video", ["offset"]),
    ],
)
def test_times_far_beyond_the_video_are_named(
    rows: list[str], first: str, others: list[str], tmp_path: Path
) -> None:
    with pytest.raises(ManifestError, match="far beyond the duration") as refused:
        read_annotations(table(tmp_path, *rows))
    guess = str(refused.value).split("; ", 1)[1]
    assert first in guess.split("; ")[0]
    assert all(other in guess for other in others)
    assert len(str(refused.value).splitlines()) == 1
