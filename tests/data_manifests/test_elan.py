"""Files and exports of ELAN with several media files, offsets, and tiers that are no classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mstemba.data_manifests.annotations import read_annotations
from mstemba.data_manifests.manifest import Manifest
from mstemba.errors import ManifestError, UsageError
from tests.command_line import Runner, complaint

TIERS = {"gesture": ["point"], "transcription": ["well I think so"]}
WAV = 'MEDIA_URL="file:///C:/d/talk.wav" MIME_TYPE="audio/x-wav" RELATIVE_MEDIA_URL="./v/talk.wav"'
MP4 = 'MEDIA_URL="file:///C:/d/talk.mp4" MIME_TYPE="video/mp4" RELATIVE_MEDIA_URL="./v/talk.mp4"'


def eaf(*media: str, tiers: dict[str, list[str]] = TIERS) -> str:
    """Return a file of ELAN whose n-th annotation of each tier is from n to n + 3 s."""
    last = max(map(len, tiers.values())) + 4
    slots = (f'<TIME_SLOT TIME_SLOT_ID="t{n}" TIME_VALUE="{n}000"/>' for n in range(last))
    rows = (
        f'<TIER TIER_ID="{tier}">'
        + "".join(
            f'<ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="{tier}{n}" TIME_SLOT_REF1="t{n}" '
            f'TIME_SLOT_REF2="t{n + 3}"><ANNOTATION_VALUE>{value}</ANNOTATION_VALUE>'
            "</ALIGNABLE_ANNOTATION></ANNOTATION>"
            for n, value in enumerate(values, 1)
        )
        + "</TIER>"
        for tier, values in tiers.items()
    )
    return (
        "<ANNOTATION_DOCUMENT><HEADER>"
        + "".join(f"<MEDIA_DESCRIPTOR {attributes}/>" for attributes in media)
        + f"</HEADER><TIME_ORDER>{''.join(slots)}</TIME_ORDER>{''.join(rows)}</ANNOTATION_DOCUMENT>"
    )


def export(*media: str, tiers: dict[str, list[str]] = TIERS, columns: bool = False) -> str:
    """Return the same as a text export, with a row or with a column per tier."""
    text = "".join(f'"#{line}"\n' for line in media)
    if columns:
        text += "\t".join(["Begin Time - ss.msec", "End Time - ss.msec", *tiers]) + "\n"
    for number, (tier, values) in enumerate(tiers.items()):
        for n, value in enumerate(values, 1):
            if columns:
                cells = [f"{n}.0", f"{n + 3}.0", *[""] * len(tiers)]
                cells[2 + number] = value
            else:
                cells = [tier, "", f"00:00:0{n}.000", f"00:00:0{n + 3}.000", "00:00:03.000", value]
            text += "\t".join(cells) + "\n"
    return text


def read(tmp_path: Path, text: str, **options: Any) -> tuple[Manifest, Any]:
    path = tmp_path / ("talk.eaf" if text.startswith("<") else "talk.txt")
    path.write_text(text, encoding="utf-8")
    return read_annotations(path, **options)


def times(manifest: Manifest) -> dict[str, dict[str, tuple[float, float]]]:
    """Return start and end by class by video."""
    return {
        id: {manifest.classes[a.class_id]: (a.start, a.end) for a in video.actions}
        for id, video in manifest.videos.items()
    }


BOTH = {"point": (1.0, 4.0), "well I think so": (1.0, 4.0)}


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (eaf(WAV, MP4), "talk"),
        (eaf(MP4, WAV), "talk"),
        (eaf(WAV, MP4 + ' EXTRACTED_FROM="file:///C:/d/talk.mp4"'), "talk"),
        (eaf('MEDIA_URL="file:///d/a.wav"', 'MEDIA_URL="file:///d/b.MOV"'), "b"),
        (eaf('MEDIA_URL="file:///d/a.wav"', 'MEDIA_URL="file:///d/b" MIME_TYPE="video/x"'), "b"),
        (eaf('MEDIA_URL="file:///d/a.wav" EXTRACTED_FROM="file:///d/My%20film.mpg"'), "My film"),
        (eaf('MEDIA_URL="file:///d/a.wav" MIME_TYPE="audio/x-wav"'), "a"),
        (eaf(), "talk"),
        (export("file:///C:/d/a.wav -- offset: 0", "file:///C:/d/b%20c.mp4 -- offset: 0"), "b c"),
        (export("file:///C:/d/b.mp4 -- offset: 0", "file:///C:/d/a.wav -- offset: 0"), "b"),
        (export("file:///C:/d/a.WAV -- offset: 0", columns=True), "a"),
        (export("file:///C:/d/a.mp3", "file:///C:/d/b.mkv", columns=True), "b"),
    ],
)
def test_of_several_media_files_the_video_counts(text: str, name: str, tmp_path: Path) -> None:
    manifest, report = read(tmp_path, text)
    (id,) = manifest.videos
    assert Path(id).name == name
    assert times(manifest)[id] == BOTH
    assert not report.skipped
    assert not report.ignored


def test_a_second_video_is_told(tmp_path: Path) -> None:
    second = MP4.replace("talk", "top")
    for text in (eaf(WAV, MP4, second), export("file:///talk.mp4", "file:///top.mp4")):
        manifest, report = read(tmp_path, text)
        assert list(manifest.videos) == ["talk"]
        assert report.ignored["ELAN video after the first one"] == 1


@pytest.mark.parametrize(
    ("offset", "start", "end"), [("500", 1.5, 4.5), ("-500", 0.5, 3.5), ("3600000", 3601, 3604)]
)
def test_the_offset_of_the_video_is_added(
    offset: str, start: float, end: float, tmp_path: Path
) -> None:
    kind = "ELAN action moved by the offset of its media file"
    lines = ("file:///talk.wav -- offset: 70", f"file:///talk.mp4 -- offset: {offset}")
    for text in (
        eaf(f'{WAV} TIME_ORIGIN="70"', f'{MP4} TIME_ORIGIN="{offset}"'),
        export(*lines),
        export(*lines, columns=True),
    ):
        manifest, report = read(tmp_path, text)
        assert times(manifest)["talk"] == dict.fromkeys(BOTH, (start, end))
        assert report.joined[kind] == 2
        assert (
            f"'point' from 1 to {start:g} s, by {int(offset) / 1000:g} s" in (report.examples[kind])
        )


def test_an_offset_of_the_sound_does_not_move_the_actions(tmp_path: Path) -> None:
    for text in (
        eaf(f'{WAV} TIME_ORIGIN="70"', MP4),
        export("file:///talk.wav -- offset: 70", "file:///talk.mp4 -- offset: 0"),
    ):
        manifest, report = read(tmp_path, text)
        assert times(manifest)["talk"] == BOTH
        assert not report.joined


def test_an_offset_that_cannot_be_read_is_a_warning(tmp_path: Path) -> None:
    manifest, report = read(tmp_path, eaf(f'{MP4} TIME_ORIGIN="late"'))
    assert times(manifest)["talk"] == BOTH
    assert report.kept["ELAN offset that cannot be read (taken for 0)"] == 1


# Tiers


@pytest.mark.parametrize("text", [eaf(MP4), export(), export(columns=True)])
def test_tiers_are_chosen(text: str, tmp_path: Path) -> None:
    assert times(read(tmp_path, text)[0])["talk"] == BOTH
    manifest, report = read(tmp_path, text, tiers=["gesture"])
    assert times(manifest) == {"talk": {"point": (1.0, 4.0)}}
    assert manifest.classes == ("point",)
    assert not report.kept
    assert times(read(tmp_path, text, tiers=("transcription", "gesture"))[0])["talk"] == BOTH
    with pytest.raises(UsageError, match=r"no tier 'Gesture'; .* 'gesture', 'transcription'"):
        read(tmp_path, text, tiers=["gesture", "Gesture"])


def test_a_video_without_annotations_of_the_chosen_tier_stays(tmp_path: Path) -> None:
    (tmp_path / "one.eaf").write_text(eaf('MEDIA_URL="a.mp4"', tiers={"gesture": ["point"]}))
    (tmp_path / "two.eaf").write_text(eaf('MEDIA_URL="b.mp4"', tiers={"text": ["yes"]}))
    (tmp_path / "three.txt").write_text(export("file:///c.mp4", tiers={"text": ["yes"]}))
    manifest, report = read_annotations(tmp_path, tiers=["gesture"])
    assert times(manifest) == {"a": {"point": (1.0, 4.0)}, "b": {}, "c": {}}
    assert report.kept["video without actions"] == 2


def test_annotations_without_tiers_have_none_to_choose(tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("video,start,end,label\na,1,2,sit\n")
    with pytest.raises(UsageError, match="the annotations have no tiers; omit --tiers"):
        read_annotations(table, tiers=["gesture"])


def test_the_command_takes_tiers_separated_by_commas(mstemba: Runner, tmp_path: Path) -> None:
    (tmp_path / "talk.eaf").write_text(eaf(MP4))
    mstemba("init", "--annotations", "talk.eaf", "--tiers", "gesture", cwd=tmp_path)
    assert json.loads((tmp_path / "manifest.json").read_text())["classes"] == ["point"]
    for wrong in ("gestures", "gesture,x", " , "):
        args = ("init", "--annotations", "talk.eaf", "--tiers", wrong)
        assert "--tiers" in complaint(mstemba(*args, cwd=tmp_path, expect=2))
    alone = mstemba("init", "--videos", ".", "--tiers", "gesture", cwd=tmp_path, expect=2)
    assert "--tiers requires --annotations" in complaint(alone)


WORDS = [f"word {n}" for n in range(12)]


@pytest.mark.parametrize(
    ("tiers", "found"),
    [
        (TIERS, ["transcription"]),
        ({"gesture": ["point", "wave", "point"], "text": WORDS}, ["text"]),
        ({"a": ["so I went home then"], "b": ["and what did you do"]}, ["a", "b"]),
        ({"gesture": ["point"], "posture": ["sit", "stand"]}, []),
        ({"gesture": ["point", "wave"] * 8}, []),
        ({"opening a door": ["opening a door"], "pouring some milk": [""]}, []),
    ],
)
def test_a_tier_that_looks_like_a_transcription_is_told(
    tiers: dict[str, list[str]], found: list[str], tmp_path: Path
) -> None:
    for text in (eaf(MP4, tiers=tiers), export(tiers=tiers, columns=True)):
        report = read(tmp_path, text)[1]
        told = [line for line in report.lines("kept") if "looks like a transcription" in line]
        assert [line.split("'")[1] for line in told] == found
        assert all("--tiers" in line for line in told)
        assert len(found) != 1 or "gesture" in told[0]


def test_with_classes_other_tiers_are_ignored(mstemba: Runner, tmp_path: Path) -> None:
    (tmp_path / "talk.eaf").write_text(eaf(MP4, tiers={**TIERS, "gesture": ["point", "wave"]}))
    (tmp_path / "names.txt").write_text("Wave\npoint\n")
    (tmp_path / "few.txt").write_text("point\n")
    args = ("init", "--annotations", "talk.eaf", "--classes")
    said = mstemba(*args, "names.txt", cwd=tmp_path).stderr
    assert "annotation of a tier without any of the classes: 1 ignored" in said
    assert "'well I think so' of 'transcription' in talk.eaf" in said
    # Of a tier with classes, the others are unknown.
    said = mstemba(*args, "few.txt", cwd=tmp_path, expect=1).stderr
    assert "unknown class name: 1 skipped, for example ['wave'," in said
    with pytest.raises(ManifestError, match="all class names are unknown"):
        read_annotations(tmp_path / "talk.eaf", classes=("jump", "run"))


def test_a_tier_named_like_its_class_is_not_ignored(tmp_path: Path) -> None:
    tiers = {"sit": ["sit"], "stand": [""]}
    _, report = read(tmp_path, eaf(MP4, tiers=tiers), classes=("sit", "jump"))
    assert report.skipped == {"unknown class name": 1}


def test_a_table_whose_classes_mostly_occur_once_is_noted(tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    rows = [f"a,{n},{n + 1},{word}" for n, word in enumerate(WORDS)]
    table.write_text("\n".join(["video,start,end,label", *rows, ""]))
    (note,) = read_annotations(table)[1].notes
    assert note.startswith("12 of 12 classes occur once, for example 'word 0', 'word 1'")
    table.write_text("\n".join(["video,start,end,label", *rows, *rows, ""]))
    assert read_annotations(table)[1].notes == []


@pytest.mark.parametrize("end", ["1500", "1500.0", "1.5e3"])
def test_milliseconds_are_read_in_every_spelling(end: str, tmp_path: Path) -> None:
    text = f"Begin Time - msec\tEnd Time - msec\tgesture\n-500\t1500\tpoint\n0\t{end}\tpoint\n"
    manifest, _ = read(tmp_path, text)
    spans = [(a.start, a.end) for a in manifest.videos["talk"].actions]
    assert spans == [(0.0, 1.5), (0.0, 1.5)]  # the first one is cut at the start


@pytest.mark.parametrize(
    ("text", "program"),
    [
        (eaf(MP4), "ELAN"),
        (export(), "ELAN"),
        ("Observation id,Behavior,Start (s),Stop (s)\nmonday,dig,1,2\n", "BORIS"),
    ],
)
def test_seconds_are_not_taken_for_frames(text: str, program: str, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=f"the times of {program} are seconds; omit"):
        read(tmp_path, text, time_unit="frames")
