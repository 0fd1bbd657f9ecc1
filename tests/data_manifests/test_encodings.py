"""Text in the encodings that spreadsheets and other programs write, and files that are not text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mstemba.data_manifests.annotations import read_annotations
from mstemba.data_manifests.manifest import Action
from mstemba.errors import ManifestError, UsageError
from mstemba.pipeline.init import init
from tests.command_line import Runner

FORMS = {
    "labels.csv": "video;start;end;label\nmonday.mp4;1,5;4,25;Tür öffnen\n",
    "labels.json": '{"database": {"monday": {"annotations": '
    '[{"label": "Tür öffnen", "segment": [1.5, 4.25]}]}}}',
    "monday.eaf": "<ANNOTATION_DOCUMENT><HEADER/>"
    '<TIME_ORDER><TIME_SLOT TIME_SLOT_ID="a" TIME_VALUE="1500"/>'
    '<TIME_SLOT TIME_SLOT_ID="b" TIME_VALUE="4250"/></TIME_ORDER>'
    '<TIER TIER_ID="t"><ANNOTATION><ALIGNABLE_ANNOTATION TIME_SLOT_REF1="a" TIME_SLOT_REF2="b">'
    "<ANNOTATION_VALUE>Tür öffnen</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION></TIER>"
    "</ANNOTATION_DOCUMENT>",
    "monday.txt": "actor\tanna\t00:00:01.500\t00:00:04.250\t00:00:02.750\tTür öffnen\n",
}


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize(
    "encoding",
    ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"],
)
def test_annotations_are_read_in_every_usual_encoding(
    name: str, encoding: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(FORMS[name].encode(encoding))
    manifest, report = read_annotations(path)
    assert manifest.classes == ("Tür öffnen",)
    assert manifest.videos["monday"].actions == (Action(0, 1.5, 4.25),)
    guessed = [line for line in report.lines("joined") if "read as Windows-1252" in line]
    assert len(guessed) == (encoding == "cp1252")
    assert all("Tür öffnen" in line and name in line for line in guessed)


def test_xml_says_its_encoding_itself(tmp_path: Path) -> None:
    path = tmp_path / "monday.eaf"
    head = '<?xml version="1.0" encoding="ISO-8859-1"?>\n'
    path.write_bytes((head + FORMS["monday.eaf"]).encode("latin-1"))
    manifest, report = read_annotations(path)
    assert manifest.classes == ("Tür öffnen",)
    assert not report.joined


def test_class_names_may_be_a_file_of_a_spreadsheet_program(tmp_path: Path) -> None:
    labels, names = tmp_path / "labels.json", tmp_path / "names.txt"
    labels.write_text(json.dumps({"v": {"actions": [[1, 0, 1]]}}))
    for encoding in ("utf-16", "cp1252"):
        names.write_bytes("Tür schließen\r\nTür öffnen\r\n".encode(encoding))
        made = init(annotations=labels, classes=names, root=tmp_path / "w")
        assert made.manifest.classes == ("Tür schließen", "Tür öffnen")
        said = [note for note in made.report.notes if "Windows-1252" in note]
        assert len(said) == (encoding == "cp1252")
    names.write_bytes(b"\x89PNG\r\n\x1a\n\x00\xff\xff")
    with pytest.raises(UsageError, match=r"--classes .*names\.txt: not readable as text"):
        init(annotations=labels, classes=names, root=tmp_path / "w")


@pytest.mark.parametrize("name", [*FORMS, "labels.tsv"])
@pytest.mark.parametrize(
    "content",
    [
        b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\xff\xfe",
        b"PK\x03\x04\x14\x00\x06\x00\x08\x00\x00\x00!\x00\xb5\xff",
        b"\x1f\x8b\x08\x00\xaf\x00\x00\x03\xed",
        "video;start;end;label\nüü".encode()[:-1],
        "video;start;end;label\nüü".encode("utf-16-le")[:-1],
    ],
    ids=["png", "zip", "gzip", "cut off", "cut off UTF-16"],
)
def test_what_is_not_text_is_refused_in_one_line(name: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ManifestError, match="not readable as") as refused:
        read_annotations(path)
    assert str(refused.value).startswith(str(path))
    assert len(str(refused.value).splitlines()) == 1


def test_one_file_that_is_not_text_does_not_stop_a_folder(mstemba: Runner, tmp_path: Path) -> None:
    folder = tmp_path / "labels"
    folder.mkdir()
    for number, encoding in enumerate(("utf-16", "cp1252")):
        text = FORMS["labels.csv"].replace("monday", f"v{number}")
        (folder / f"{number}.csv").write_bytes(text.encode(encoding))
    (folder / "damaged.csv").write_bytes(b"\x89PNG\r\n\x1a\n\x00\xff\xff")
    result = mstemba("init", "--annotations", folder, cwd=tmp_path, expect=1)
    assert "file that cannot be read: 1 skipped" in result.stderr
    assert "damaged.csv: not readable as text" in result.stderr
    saved = json.loads((tmp_path / "manifest.json").read_text())["videos"]
    assert {id: video["actions"] for id, video in saved.items()} == {
        "v0": [[0, 1.5, 4.25]],
        "v1": [[0, 1.5, 4.25]],
    }
