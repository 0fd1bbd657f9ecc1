"""Files of ELAN as annotations: those that pympi or `mstemba detect` wrote, and damaged ones."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pympi
import pytest

from mstemba.data_manifests.annotations import read_annotations
from mstemba.data_manifests.manifest import Action
from mstemba.errors import ManifestError
from tests.pipeline.outputs.test_formats import CASES, NAMES, SOME, write


def corrected(folder: Path) -> pympi.Elan.Eaf:
    """What `mstemba detect` wrote, opened by another program."""
    return pympi.Elan.Eaf(str(write("eaf", SOME, folder)))


def test_detections_come_back_as_annotations(tmp_path: Path) -> None:
    manifest, report = read_annotations(write("eaf", SOME, tmp_path))
    assert report.skipped.total() == 0
    assert (list(manifest.videos), manifest.time_unit) == (["walk"], "seconds")
    found = sorted(
        (a.start, a.end, manifest.classes[a.class_id]) for a in manifest.videos["walk"].actions
    )
    # ELAN's times are whole milliseconds.
    assert found == sorted((round(s.start, 3), round(s.end, 3), s.label) for s in SOME.segments)


def test_odd_names_come_back(tmp_path: Path) -> None:
    manifest, report = read_annotations(write("eaf", CASES["odd names"], tmp_path))
    assert report.skipped.total() == 0
    # An empty annotation is of its tier's class.
    expected = {names.get("eaf", name).strip() or "(no name)" for name, names in NAMES.items()}
    assert set(manifest.classes) == expected


def test_a_video_without_detections_is_a_video_without_actions(tmp_path: Path) -> None:
    manifest, report = read_annotations(write("eaf", CASES["none"], tmp_path))
    assert manifest.videos["walk"].actions == ()
    assert report.kept["video without actions"] == 1


def test_what_was_corrected_in_elan_is_read(tmp_path: Path) -> None:
    eaf = corrected(tmp_path)
    for tier in eaf.get_tier_names():
        for start, _, _ in eaf.get_annotation_data_for_tier(tier):
            eaf.remove_annotation(tier, start)
    eaf.add_annotation("sit", 1000, 2500, "lie down")
    eaf.add_tier("a new class")
    eaf.add_annotation("a new class", 500, 750, "")
    path = tmp_path / "corrected.eaf"
    eaf.to_file(str(path))
    manifest, _ = read_annotations(path)
    assert manifest.classes == ("a new class", "lie down")
    assert manifest.videos["walk"].actions == (Action(1, 1.0, 2.5), Action(0, 0.5, 0.75))


def test_annotations_without_times_of_their_own_are_counted(tmp_path: Path) -> None:
    eaf = corrected(tmp_path)
    eaf.constraints["Symbolic_Association"] = "one to one"
    eaf.add_linguistic_type("note", "Symbolic_Association", timealignable=False)
    eaf.add_tier("notes", "note", "sit")
    time = next(iter(eaf.get_annotation_data_for_tier("sit")))[0]
    eaf.add_ref_annotation("notes", "sit", time, "sure?")
    path = tmp_path / "notes.eaf"
    eaf.to_file(str(path))
    manifest, report = read_annotations(path)
    kind = "ELAN annotation of a dependent tier without times of its own"
    assert (report.ignored, report.skipped.total()) == ({kind: 1}, 0)
    assert "ignored, for example 'sure?' in notes.eaf, annotation a" in report.lines()[-1]
    assert len(manifest.videos["walk"].actions) == len(SOME.segments)


def test_without_a_media_file_the_files_name_is_the_videos(tmp_path: Path) -> None:
    path = write("eaf", SOME, tmp_path).rename(tmp_path / "monday.eaf")
    path.write_text(re.sub("<MEDIA_DESCRIPTOR.*?/>", "", path.read_text()))
    assert list(read_annotations(path)[0].videos) == ["monday"]


def test_a_folder_of_files_of_elan_is_read_as_one(tmp_path: Path) -> None:
    text = write("eaf", SOME, tmp_path).read_text()
    (tmp_path / "two.EAF").write_text(text.replace("walk.mp4", "run.mp4"))
    (tmp_path / "three.csv").write_text("video,start,end,label\nfly,1,2,sit\n")
    assert set(read_annotations(tmp_path)[0].videos) == {"walk", "run", "fly"}


def test_an_annotation_that_should_have_times_and_has_none_is_left_out(tmp_path: Path) -> None:
    path = write("eaf", SOME, tmp_path)
    path.write_text(re.sub('(TIME_SLOT_ID="ts1") TIME_VALUE="[0-9]+"', r"\1", path.read_text()))
    _, report = read_annotations(path)
    assert report.skipped == {"ELAN annotation without times of its own": 1}


def test_two_time_slots_of_one_name_are_refused(tmp_path: Path) -> None:
    path = write("eaf", SOME, tmp_path)
    slot = '<TIME_SLOT TIME_SLOT_ID="ts1" TIME_VALUE="7"/></TIME_ORDER>'
    path.write_text(path.read_text().replace("</TIME_ORDER>", slot))
    with pytest.raises(ManifestError, match=r"walk\.eaf: two time slots 'ts1'"):
        read_annotations(path)


def test_markup_in_a_value_does_not_cut_it(tmp_path: Path) -> None:
    path = write("eaf", SOME, tmp_path)
    value = "<ANNOTATION_VALUE>x<b>y</b>z</ANNOTATION_VALUE>"
    text, changed = re.subn(
        r"<ANNOTATION_VALUE>.*?</ANNOTATION_VALUE>|<ANNOTATION_VALUE ?/>", value, path.read_text()
    )
    path.write_text(text)
    assert changed
    assert read_annotations(path)[0].classes == ("xyz",)


@pytest.mark.parametrize("name", ["100%", "100%25", "a%2Fb", "caf\udce9", "two\nlines"])
def test_odd_names_of_videos_come_back(tmp_path: Path, name: str) -> None:
    dense = replace(SOME.scores, video=f"/videos/{name}.mp4")
    path = write("eaf", replace(SOME, scores=dense, id=name), tmp_path)
    assert list(read_annotations(path)[0].videos) == [name]


@pytest.mark.parametrize("value", ["no JSON", "[]", "{}", '{"id": "x"}', '{"file": "walk.mp4"}'])
def test_a_damaged_property_is_as_good_as_none(tmp_path: Path, value: str) -> None:
    path = write("eaf", replace(SOME, id="a/walk"), tmp_path)
    text, changed = re.subn('("mstemba-video">).*<', rf"\1{value}<", path.read_text())
    path.write_text(text)
    assert changed == 1
    assert list(read_annotations(path)[0].videos) == ["walk"]


def test_another_media_file_is_another_video(tmp_path: Path) -> None:
    path = write("eaf", replace(SOME, id="a/walk"), tmp_path)
    assert list(read_annotations(path)[0].videos) == ["a/walk"]
    path.write_text(path.read_text().replace('/walk.mp4"', '/run.mp4"'))
    assert list(read_annotations(path)[0].videos) == ["run"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not readable as XML"),
        ("<ANNOTATION_DOCUMENT>", "not readable as XML"),
        ("<html/>", "found <html>, expected ELAN's ANNOTATION_DOCUMENT"),
        (
            '<ANNOTATION_DOCUMENT><HEADER TIME_UNITS="PAL-frames"/></ANNOTATION_DOCUMENT>',
            "time unit 'PAL-frames', expected milliseconds",
        ),
        (
            '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/hostname">]>'
            "<ANNOTATION_DOCUMENT>&x;</ANNOTATION_DOCUMENT>",
            "not readable as XML: it declares a document type 'a'; expected none",
        ),
    ],
)
def test_what_is_no_file_of_elan_is_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "labels.eaf"
    path.write_text(text)
    with pytest.raises(ManifestError, match=says):
        read_annotations(path)
