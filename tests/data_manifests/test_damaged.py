"""Files that were cut off or are hostile: one line each, and the rest of a folder is read."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from mstemba.data_manifests.annotations import read_annotations
from mstemba.errors import ManifestError
from tests.command_line import Runner, complaint
from tests.data_manifests.test_boris import export as boris
from tests.data_manifests.test_elan import MP4, eaf
from tests.data_manifests.test_elan import export as elan
from tests.data_manifests.test_layouts import ONE_VIDEO, RECORDS
from tests.data_manifests.test_subtitles import SRT, VTT

FORMS = {
    "plain.csv": 'video,start,end,label\nmonday.mp4,1,4,"pour, slowly"\nmonday.mp4,5,6,stir\n',
    "one.csv": ONE_VIDEO["monday.csv"],
    "track.txt": ONE_VIDEO["monday.txt"],
    "boris.csv": boris("groom 5 9", "dig 12 20"),
    "aggregated.csv": boris("groom 5 9", "dig 12 20", aggregated=True),
    "elan.eaf": eaf(MP4),
    "elan.txt": elan("file:///talk.mp4 -- offset: 10"),
    "columns.txt": elan(columns=True),
    "records.json": str(RECORDS).replace("'", '"'),
    "records.jsonl": "\n".join(str(record).replace("'", '"') for record in RECORDS),
    "database.json": '{"database": {"v": {"annotations": [{"label": "x", "segment": [1, 2]}]}}}',
    "monday.srt": SRT,
    "monday.vtt": VTT,
}


@pytest.mark.parametrize("name", FORMS)
def test_a_file_that_was_cut_off_anywhere_is_read_or_refused_in_one_line(
    name: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    text = FORMS[name]
    path.write_text(text)
    assert not read_annotations(path)[1].skipped
    refused: list[str] = []
    for end in range(0, len(text), max(1, len(text) // 60)):
        path.write_text(text[:end])
        try:
            read_annotations(path)
        except ManifestError as error:
            refused.append(str(error))
    assert refused or name.endswith(".srt")  # an empty file of subtitles has no actions
    assert all(line.startswith(str(path)) and "\n" not in line for line in refused)


@pytest.mark.parametrize("name", ["elan.eaf", "database.json", "plain.csv", "monday.vtt"])
def test_a_damaged_file_is_an_error_alone_and_skipped_in_a_folder(
    name: str, mstemba: Runner, tmp_path: Path
) -> None:
    damaged = FORMS[name][: FORMS[name].index("pour,") + 5 if name == "plain.csv" else 50]
    folder = tmp_path / "labels"
    folder.mkdir()
    path = folder / name
    path.write_text(damaged if name != "monday.vtt" else "1\n" + SRT)
    alone = mstemba("init", "--annotations", path, cwd=tmp_path, expect=2)
    assert name in complaint(alone)
    if path.suffix == ".json":  # not read in folders
        return
    (folder / "fine.csv").write_text("video,start,end,label\na,1,2,sit\n")
    said = mstemba("init", "--annotations", folder, cwd=tmp_path, expect=1).stderr
    assert "file that cannot be read: 1 skipped" in said
    assert name in said
    assert list(read_annotations(folder)[0].videos) == ["a"]


LAUGHS = "<!DOCTYPE a [<!ENTITY l0 'ha'>{}]>".format(
    "".join(f"<!ENTITY l{n} '{f'&l{n - 1};' * 10}'>" for n in range(1, 12))
)


@pytest.mark.parametrize(
    "head",
    [
        LAUGHS,
        "<!DOCTYPE a [<!ENTITY x SYSTEM 'file:///etc/hostname'>]>",
        "<!DOCTYPE a SYSTEM 'http://example.com/a.dtd'>",
        "<!DOCTYPE a []>",
    ],
    ids=["laughs", "file", "dtd", "empty"],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_entities_are_never_expanded(head: str, encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "talk.eaf"
    text = FORMS["elan.eaf"].replace("well I think so", "&l11;")
    path.write_bytes(f"{head}{text}".encode(encoding))
    begin = time.process_time()
    with pytest.raises(ManifestError, match="declares a document type 'a'; expected none"):
        read_annotations(path)
    assert time.process_time() - begin < 1
