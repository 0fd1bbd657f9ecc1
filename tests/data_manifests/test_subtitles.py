"""Subtitles as annotations: those that `mstemba export` writes, those of others, damaged ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mstemba.data_manifests.annotations import read_annotations
from mstemba.data_manifests.manifest import Manifest
from mstemba.errors import ManifestError
from tests.command_line import Runner
from tests.pipeline.outputs.test_formats import CASES, SOME, expected, write


def times(manifest: Manifest, id: str = "monday") -> list[tuple[str, float, float]]:
    return [(manifest.classes[a.class_id], a.start, a.end) for a in manifest.videos[id].actions]


@pytest.mark.parametrize("form", ["srt", "vtt"])
@pytest.mark.parametrize("case", list(CASES))
def test_what_export_writes_comes_back(form: str, case: str, tmp_path: Path) -> None:
    path = write(form, CASES[case], tmp_path)
    manifest, report = read_annotations(path)
    (video,) = manifest.videos.values()
    found = [
        (round(1000 * a.start), round(1000 * a.end), manifest.classes[a.class_id])
        for a in video.actions
    ]
    assert sorted(found) == [(f.start, f.end, f.name) for f in expected(form, CASES[case])]
    assert not report.skipped


SRT = """\
1
00:00:01,000 --> 00:00:04,000
pour

2
00:01:05,250 --> 01:00:06,5
stir
look
"""
VTT = """\
WEBVTT - some title
X-TIMESTAMP-MAP=LOCAL:00:00:00.000,MPEGTS:900000

STYLE
::cue { color: red }

NOTE Nothing here is a cue
of this file

first
00:01.000 --> 00:04.000 align:start position:10%
<v Anna><i>pour</i></v>

00:01:05.250 --> 01:00:06.500
stir
<c.blue>look</c>
"""
FOUND = [("pour", 1.0, 4.0), ("stir", 65.25, 3606.5), ("look", 65.25, 3606.5)]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("monday.srt", SRT),
        ("monday.srt", "\ufeff" + SRT.replace("\n", "\r\n") + "\r\n\r\n"),
        ("monday.SRT", SRT.replace("1\n00", "00").replace("2\n00", "00")),
        ("monday.srt", SRT.replace("pour", "{\\an8}<font color='red'>pour</font>")),
        ("monday.srt", SRT.replace(",", ".")),
        ("monday.srt", SRT.replace("04,000", "04,000  X1:10 X2:20 Y1:1 Y2:2")),
        ("monday.vtt", VTT),
        ("monday.vtt", VTT.replace("\n", "\r\n").strip()),
    ],
)
def test_subtitles_are_read(name: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8", newline="")
    manifest, report = read_annotations(path)
    assert times(manifest) == FOUND
    assert not report.skipped


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("monday.srt", SRT.replace("\n\n", "\n"), FOUND),
        ("monday.srt", SRT.replace("\n\n", "\n").replace("\n2\n", "\n").lstrip("1\n"), FOUND),
        ("monday.vtt", VTT.replace("\n\n00:01:05", "\n00:01:05"), FOUND),
        (
            "monday.vtt",
            "WEBVTT\nKind: captions\nLanguage: en\n00:01.000 --> 00:02.000\n7\n"
            "00:02.000 --> 00:03.000\n8\n",
            [("7", 1, 2), ("8", 2, 3)],
        ),
        (
            "monday.srt",
            "1\n00:00:01,000 --> 00:00:02,000\n7\n2\n00:00:02,000 --> 00:00:03,000\n8\n",
            [("7", 1, 2), ("8", 2, 3)],
        ),
    ],
)
def test_subtitles_need_no_empty_lines_between_them(
    name: str, text: str, found: list[tuple[str, float, float]], tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    manifest, report = read_annotations(path)
    assert times(manifest) == found
    assert not report.skipped


def test_an_action_lasts_while_others_come_and_go(tmp_path: Path) -> None:
    path = tmp_path / "monday.vtt"
    cues = (("1", "2", "a"), ("2", "3", "a\nb"), ("3", "4", "b"), ("4", "5", "b"), ("6", "7", "b"))
    path.write_text(
        "WEBVTT\n\n" + "\n\n".join(f"00:0{s}.000 --> 00:0{e}.000\n{text}" for s, e, text in cues)
    )
    manifest, report = read_annotations(path)
    # Of two subtitles that say the same, each is an action.
    assert times(manifest) == [("a", 1, 3), ("b", 2, 4), ("b", 4, 5), ("b", 6, 7)]
    assert report.joined == {"action that lasts for several subtitles, read as one": 2}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (SRT + "\n3\n00:00:09,0", 10),
        (SRT + "\n3\n00:00:09,000 --> 00:0", 10),
        (SRT + "\n3\n00:00:09,000 --> 00:00:10,000\n", 10),
        (SRT + "\n3\nsoon --> later\nrun\n", 10),
        (SRT.replace("2\n", "2\n00:00:02,000\nrun\n\n"), 5),
    ],
)
def test_a_damaged_subtitle_is_skipped_and_the_rest_is_read(
    text: str, line: int, tmp_path: Path
) -> None:
    path = tmp_path / "monday.srt"
    path.write_text(text)
    manifest, report = read_annotations(path)
    assert set(FOUND) >= set(times(manifest)) > set()
    assert report.skipped == {"malformed subtitle": 1}
    assert report.examples["malformed subtitle"].endswith(f" in monday.srt, line {line}")


def test_another_file_is_no_webvtt(tmp_path: Path) -> None:
    path = tmp_path / "monday.vtt"
    path.write_text(SRT)
    with pytest.raises(ManifestError, match="expected WEBVTT at the beginning"):
        read_annotations(path)


def test_detections_are_corrected_as_subtitles_and_read_again(
    mstemba: Runner, tmp_path: Path
) -> None:
    (tmp_path / "labels").mkdir()
    write("srt", SOME, tmp_path / "labels")
    write("vtt", SOME, tmp_path / "labels")
    result = mstemba("init", "--annotations", "labels", cwd=tmp_path)
    saved = json.loads((tmp_path / "manifest.json").read_text())
    (entry,) = saved["videos"].values()
    assert len(entry["actions"]) == len(SOME.segments)  # each is in two files
    assert "action that is in another file, too" in result.stderr


def test_a_label_may_hold_an_arrow(tmp_path: Path) -> None:
    text = "1\n00:00:01,000 --> 00:00:02,000\nopen --> close\n"
    (tmp_path / "monday.srt").write_text(text)
    manifest, report = read_annotations(tmp_path / "monday.srt")
    assert times(manifest) == [("open --> close", 1.0, 2.0)]
    assert not report.skipped
