"""`mstemba export`: which saved scores it takes, where it writes, what it says when it cannot."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pympi
import pytest

from mstemba.__main__ import main
from mstemba.errors import UsageError
from mstemba.pipeline.catalog import file_stem
from mstemba.pipeline.detect.export import ExportResult, export
from mstemba.pipeline.detect.scores_file import SavedScores, read_scores, save_scores
from mstemba.pipeline.init import init
from mstemba.pipeline.options import ExportOptions
from mstemba.pipeline.outputs import WRITERS, Detection, Writer
from mstemba.pipeline.progress import Event
from mstemba.pipeline.workspace import Workspace, create_workspace
from mstemba.records import Scores, TimeGrid
from tests.cli.test_help import imported

CLASSES = ("sit", "drink")
PLAIN = ExportOptions(formats=("csv", "json"))


def keep(video: Path, scores_file: Path, fingerprint: str = "0123456789", id: str = "") -> Path:
    """Scores of a video in which `sit` lasts from 2 s to 5 s, with a dip to 0.4."""
    video.parent.mkdir(parents=True, exist_ok=True)
    video.touch()
    values = np.zeros((10, 2), np.float32)
    values[2:5, 0] = 0.9995, 0.4, 0.9995
    grid = TimeGrid.even(0.0, 1.0, 10)
    dense = Scores(values, grid, CLASSES, str(video), 10.0, 25.0, anchor=0.5)
    provenance = {"checkpoint": "runs/x", "features": {"stride": 1, "every": 25}}
    save_scores(scores_file, SavedScores(dense, "key", fingerprint, provenance, id))
    return scores_file


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """A workspace of the videos `a` and `b`, both scored; `a` is labelled."""
    made = create_workspace(tmp_path / "work")
    for name in ("a", "b"):
        keep(made.root / "videos" / f"{name}.mp4", made.detections / f"{name}.scores.npz")
    videos = {
        "a": {"path": "videos/a.mp4", "subset": "testing", "actions": [[1, 0.5, 1.5]]},
        "monday/b": {"path": "videos/b.mp4"},
    }
    manifest = {"format": "mstemba-manifest", "version": 1, "time_unit": "seconds"}
    made.manifest.write_text(json.dumps({**manifest, "classes": CLASSES, "videos": videos}))
    return made


def spans(result: ExportResult, name: str) -> list[tuple[float, float]]:
    return [(s.start, s.end) for s in result.detections[name].segments]


def test_all_of_a_workspace_is_exported_beside_the_scores(workspace: Workspace) -> None:
    result = export(options=PLAIN, workspace=workspace)
    folder = workspace.detections
    assert result.files == {n: [folder / f"{n}.csv", folder / f"{n}.json"] for n in ("a", "b")}
    assert all(file.is_file() for files in result.files.values() for file in files)
    assert spans(result, "a") == [(2.0, 5.0)]
    data = json.loads((folder / "a.json").read_text())
    assert data["provenance"]["checkpoint"] == "runs/x"
    assert data["provenance"]["low"] == pytest.approx(0.3)


def test_a_workspace_and_the_formats_may_be_text(workspace: Workspace) -> None:
    options = ExportOptions(formats="csv, json")
    assert options == PLAIN
    assert set(export(options=options, workspace=str(workspace.root)).files) == {"a", "b"}
    with pytest.raises(UsageError, match="not a workspace"):
        export(workspace=workspace.root / "videos")


def test_a_linked_video_keeps_its_name(workspace: Workspace, tmp_path: Path) -> None:
    link = tmp_path / "monday.mp4"
    link.symlink_to(workspace.root / "videos" / "a.mp4")
    file = workspace.detections / "monday.scores.npz"
    dense = read_scores(workspace.detections / "a.scores.npz").scores
    save_scores(file, SavedScores(replace(dense, video=os.path.relpath(link)), "key", "print"))
    assert read_scores(file).scores.video == str(link)
    result = export(file, PLAIN, workspace=workspace)
    assert json.loads(result.files["monday"][1].read_text())["video"] == str(link)


def test_a_link_in_the_manifest_is_followed(workspace: Workspace) -> None:
    (workspace.root / "link.mp4").symlink_to(workspace.root / "videos" / "a.mp4")
    text = workspace.manifest.read_text().replace("videos/a.mp4", "link.mp4")
    workspace.manifest.write_text(text)
    result = export(workspace.detections / "a.scores.npz", PLAIN, workspace=workspace)
    assert result.detections["a"].subset == "testing"


def test_another_threshold_gives_other_segments(workspace: Workspace) -> None:
    def cut(**options: Any) -> list[tuple[float, float]]:
        chosen = ExportOptions(formats=("csv",), **options)
        return spans(export("a", chosen, workspace=workspace), "a")

    whole = cut()
    (start, before), (after, end) = cut(low=0.5)
    assert whole == [(start, end)] == [(2.0, 5.0)]
    assert 2.5 < before < 3.5 < after < 4.5
    assert cut(min_length=3.0) == whole
    assert cut(min_length=3.1) == []


def test_the_manifest_is_known(workspace: Workspace) -> None:
    result = export(options=PLAIN, workspace=workspace)
    a, b = result.detections["a"], result.detections["b"]
    assert (a.id, a.subset, b.id, b.subset) == ("a", "testing", "monday/b", None)
    assert (a.frames_per_row, b.frames_per_row) == (None, None)
    assert a.ground_truth is not None
    assert [(s.start, s.end, s.label) for s in a.ground_truth] == [(0.5, 1.5, "drink")]
    assert b.ground_truth is None


@pytest.mark.parametrize(
    "named", ["videos/b.mp4", "b", "monday/b", "detections/b.scores.npz", "b.mp4", "gone"]
)
def test_scores_are_named_by_their_video_its_id_or_themselves(
    workspace: Workspace, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workspace.root)
    if named == "gone":
        shutil.move("videos/b.mp4", "videos/moved.mp4")
        named = "videos/b.mp4"
    assert list(export(named, PLAIN, workspace=workspace).files) == ["b"]


def test_outside_a_workspace_the_scores_beside_the_video_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    video = tmp_path / "films" / "v.mp4"
    for folder in (tmp_path / "detections", video.parent, video.parent / "detections"):
        file = keep(video, folder / "v.scores.npz")
        ((csv_file, _),) = export(video, PLAIN).files.values()
        assert csv_file.resolve() == (folder / "v.csv").resolve()
        file.unlink()


def test_another_video_of_the_same_name_is_not_taken_for_it(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workspace.root)
    other = workspace.root / "other" / "a.mp4"
    other.parent.mkdir()
    other.touch()
    with pytest.raises(UsageError, match=r"other/a\.mp4: no saved scores of it in .*detections"):
        export(other, PLAIN, workspace=workspace)
    keep(other, workspace.detections / "a@01234567.scores.npz")
    assert list(export(other, PLAIN, workspace=workspace).files) == ["a@01234567"]
    assert list(export("videos/a.mp4", PLAIN, workspace=workspace).files) == ["a"]


def test_a_namesake_in_a_folder_that_is_not_there_is_not_taken(workspace: Workspace) -> None:
    with pytest.raises(UsageError, match="no saved scores of it"):
        export("zzz/b.mp4", PLAIN, workspace=workspace)


def two_of_one_name(root: Path) -> Workspace:
    """A workspace with two videos `walk`, both scored, as `detect` names them."""
    made = create_workspace(root)
    for id in ("a/walk", "b/walk"):
        video = root / "videos" / f"{id}.mp4"
        keep(video, made.detections / f"{id.replace('/', '__')}.scores.npz", id=id)
    init(root / "videos", root=root)
    return made


def test_videos_of_one_name_stay_apart_from_scores_to_annotations(tmp_path: Path) -> None:
    made = two_of_one_name(tmp_path / "work")
    formats = ("csv", "tsv", "eaf", "activitynet")
    result = export(options=ExportOptions(formats=formats), workspace=made)
    assert [d.id for d in result] == ["a/walk", "b/walk"]
    (found,) = json.loads((made.detections / "a__walk.activitynet.json").read_text())["results"]
    assert found == "a/walk"
    for file in made.detections.glob("*.json"):
        file.unlink()
    again = init(made.root / "videos", made.detections, root=tmp_path / "again")
    actions = {id: len(video.actions) for id, video in again.manifest.videos.items()}
    assert actions == {"a/walk": 1, "b/walk": 1}
    assert (again.without_file, again.report.skipped.total()) == (0, 0)


@pytest.mark.parametrize("form", ["csv", "tsv", "eaf"])
def test_videos_that_differ_by_the_ending_stay_apart(form: str, tmp_path: Path) -> None:
    made = create_workspace(tmp_path / "work")
    for id in ("walk.avi", "walk.mp4"):
        keep(made.root / "videos" / id, made.detections / f"{id}.scores.npz", id=id)
    init(made.root / "videos", root=made.root)
    export(options=ExportOptions(formats=(form,)), workspace=made)
    again = init(made.root / "videos", made.detections, root=tmp_path / "again")
    found = {id: (v.path, len(v.actions)) for id, v in again.manifest.videos.items()}
    assert found == {id: (made.root / "videos" / id, 1) for id in ("walk.avi", "walk.mp4")}


def test_without_a_manifest_the_id_is_that_of_detect(tmp_path: Path) -> None:
    made = two_of_one_name(tmp_path / "work")
    made.manifest.unlink()
    assert [d.id for d in export(options=PLAIN, workspace=made)] == ["a/walk", "b/walk"]


def test_labels_of_other_classes_are_told_of_unless_none_is_the_same(workspace: Workspace) -> None:
    def warnings() -> list[str]:
        told: list[Event] = []
        export(options=PLAIN, workspace=workspace, on_event=told.append)
        return [event.message for event in told if event.warning]

    assert warnings() == []
    text = workspace.manifest.read_text()
    workspace.manifest.write_text(text.replace(json.dumps(CLASSES), '["Drink", "sit", "wave"]'))
    assert warnings() == []
    labels = export("a", PLAIN, workspace=workspace).detections["a"].ground_truth
    assert labels is not None
    assert [(s.class_id, s.label) for s in labels] == [(0, "sit")]  # by name, not by number
    workspace.manifest.write_text(text.replace(json.dumps(CLASSES), '["sit", "wave"]'))
    assert warnings() == [
        "the labels of a have classes that these scores lack, for example 'wave': only the page "
        "shows those; `mstemba train` learns them"
    ]
    workspace.manifest.write_text(text.replace(json.dumps(CLASSES), '["wave", "jump"]'))
    assert warnings() == []  # as of labels that were given in words


@pytest.mark.parametrize("named", ["videos/b/walk.mp4", "b/walk"])
def test_a_workspace_with_videos_in_folders_can_be_moved(
    tmp_path: Path, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = two_of_one_name(tmp_path / "work").root.rename(tmp_path / "elsewhere")
    monkeypatch.chdir(moved)
    (found,) = export(named, PLAIN, workspace=create_workspace(moved))
    assert found.scores.video == str(moved / "videos" / "b" / "walk.mp4")


def test_frames_of_unknown_length_give_no_ground_truth(workspace: Workspace) -> None:
    text = workspace.manifest.read_text().replace('"seconds"', '"frames"')
    workspace.manifest.write_text(text)
    assert export("a", PLAIN, workspace=workspace).detections["a"].ground_truth is not None
    frames = {d.id: d.frames_per_row for d in export(options=PLAIN, workspace=workspace)}
    assert frames == {"a": 25, "monday/b": 25}
    file = workspace.detections / "a.scores.npz"
    save_scores(file, replace(read_scores(file), provenance={}))
    assert export("a", PLAIN, workspace=workspace).detections["a"].ground_truth is None


def test_of_a_video_that_is_too_large_to_embed_nothing_is_written(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mstemba.pipeline.outputs.html_page.LARGEST_EMBEDDED", 3)
    (workspace.root / "videos" / "a.mp4").write_bytes(b"\0\0\0\x08moov")
    (workspace.root / "videos" / "b.mp4").unlink(missing_ok=True)
    result = export(options=ExportOptions(formats=("csv", "html"), embed=True), workspace=workspace)
    assert (list(result.detections), list(result.files)) == (["b"], ["b"])
    assert "to embed" in result.failed["a"]
    assert not (workspace.detections / "a.csv").exists()


def test_progress_is_told(workspace: Workspace) -> None:
    told: list[Event] = []
    export(options=PLAIN, workspace=workspace, on_event=told.append)
    assert [event.share for event in told if event.stage == "export"] == [0.0, 0.5, 1.0]


@pytest.mark.parametrize("name", ["walk.scores", "walk.activitynet", "Walk.SCORES"])
def test_no_format_of_a_video_overwrites_another_videos_files(name: str) -> None:
    stem = file_stem(name, "0123456789")
    assert stem == f"{name}@01234567"
    written = {f"{stem}.{writer.suffix}" for writer in WRITERS.values()}
    others = {f"{name.split('.')[0]}.{writer.suffix}" for writer in WRITERS.values()}
    assert not written & (others | {"walk.scores.npz", "Walk.SCORES.npz"})


def test_scores_named_twice_are_exported_once(workspace: Workspace) -> None:
    given = [workspace.detections, workspace.detections / "a.scores.npz", Path("a")]
    assert list(export(given, PLAIN, workspace=workspace).files) == ["a", "b"]


def test_scores_of_one_name_do_not_overwrite_each_other(tmp_path: Path) -> None:
    for folder in ("x", "y", "z"):
        keep(tmp_path / folder / "v.mp4", tmp_path / folder / "v.scores.npz", "0000000000")
    given = [tmp_path / folder for folder in ("x", "y", "z")]
    result = export(given, PLAIN, output=tmp_path / "out")
    assert list(result.files) == ["v", "v@00000000", "v (2)"]
    assert len(list((tmp_path / "out").glob("*.csv"))) == 3
    export(given, PLAIN)
    assert all((folder / "v.csv").is_file() for folder in given)


def test_in_another_folder_the_video_is_still_found(workspace: Workspace, tmp_path: Path) -> None:
    for output in (None, tmp_path / "far" / "away"):
        options = ExportOptions(formats=("eaf",))
        (file,) = export("a", options, workspace=workspace, output=output).files["a"]
        (media,) = pympi.Elan.Eaf(str(file)).media_descriptors
        found = (file.parent / media["RELATIVE_MEDIA_URL"]).resolve()
        assert found == (workspace.root / "videos" / "a.mp4").resolve()


def test_in_a_workspace_that_has_moved_the_manifest_says_where_the_video_is(
    workspace: Workspace,
) -> None:
    moved = workspace.root.rename(workspace.root.with_name("elsewhere"))
    there = create_workspace(moved)
    result = export("a", PLAIN, workspace=there)
    assert Path(result.detections["a"].scores.video) == moved / "videos" / "a.mp4"
    assert result.detections["a"].ground_truth is not None


def test_damaged_scores_stop_no_others(workspace: Workspace) -> None:
    (workspace.detections / "a.scores.npz").write_bytes(b"PK damaged")
    result = export(options=PLAIN, workspace=workspace)
    assert list(result.files) == ["b"]
    assert "not readable as saved scores" in result.failed["a"]
    assert "a" in export("a", PLAIN, workspace=workspace).failed


def test_a_format_named_twice_is_written_once(workspace: Workspace) -> None:
    options = ExportOptions(formats=("csv", "csv", "json", "csv"))
    files = export("a", options, workspace=workspace).files["a"]
    assert [file.name for file in files] == ["a.csv", "a.json"]


@pytest.mark.parametrize("formats", [("csv", "docx"), ()])
def test_an_unknown_format_or_none_lists_those_there_are(
    workspace: Workspace, formats: tuple[str, ...]
) -> None:
    with pytest.raises(UsageError, match=", ".join(WRITERS)):
        export("a", ExportOptions(formats=formats), workspace=workspace)


def test_an_output_that_is_a_file_is_refused_before_anything_is_written(
    workspace: Workspace, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    for output in (tmp_path / "file", tmp_path / "file" / "deeper"):
        with pytest.raises(UsageError, match=r"file.* is a file, expected a folder"):
            export(options=PLAIN, workspace=workspace, output=output)
    assert (tmp_path / "file").read_text() == "mine"


def test_an_output_that_may_not_be_written_to_is_refused(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Root, who may write anywhere, runs the tests too.
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    with pytest.raises(UsageError, match=f"{tmp_path} may not be written to"):
        export(options=PLAIN, workspace=workspace, output=tmp_path / "new" / "deeper")
    assert not (tmp_path / "new").exists()


def test_a_file_that_cannot_be_written_stops_no_others(workspace: Workspace) -> None:
    (workspace.detections / "a.json").mkdir()
    result = export(options=PLAIN, workspace=workspace)
    assert list(result.files) == list(result.detections) == ["b"]
    assert result.failed == {"a": f"{workspace.detections / 'a.json'}: Is a directory"}


def test_a_full_disk_ends_the_export(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(detection: Detection, path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setitem(WRITERS, "csv", Writer("csv", full))
    with pytest.raises(OSError, match="No space left"):
        export(options=PLAIN, workspace=workspace)


@pytest.mark.parametrize("given", ["nobody", "nobody.mp4", "no.scores.npz", "videos"])
def test_what_leads_to_no_scores_is_refused(
    workspace: Workspace, given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workspace.root)
    with pytest.raises(UsageError, match=f"{given}.*`mstemba detect` makes them"):
        export(given, PLAIN, workspace=workspace)


def test_without_a_workspace_the_scores_must_be_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="no workspace here: pass saved scores"):
        export()


# The command itself, in this process: what it imports is shown by one of its own


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Run a command in the workspace; gives exit code, standard output and standard error."""
    monkeypatch.chdir(workspace.root)

    def run(*args: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mstemba", *map(str, args)])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return run


def test_the_command_says_what_it_wrote(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    args = ("export", "a", "--format", "csv,vtt", "--output", out)
    code, said, _ = run(*args)
    assert code == 0
    assert said.splitlines()[0] == f"a: 1 segment: {out / 'a.csv'}, {out / 'a.vtt'}"
    assert run(*args, "--quiet") == (0, "", "")


def test_without_a_segment_files_are_written_and_the_highest_score_is_said(run: Run) -> None:
    args = ("export", "a", "--format", "csv,srt", "--threshold", "1", "--min-length", "2")
    code, said, _ = run(*args)
    assert code == 0
    assert "a: 0 segments (highest probability 0.999: sit at 2.5 s; threshold 1, " in said
    assert "shortest 2 s)" in said
    with Path("detections/a.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == []
    assert Path("detections/a.srt").is_file()
    kept = read_scores("detections/a.scores.npz")
    nearly = np.minimum(kept.scores.probabilities + 0.096, 0.996)
    dense = replace(kept.scores, probabilities=nearly.astype(np.float32))
    save_scores(Path("detections/a.scores.npz"), replace(kept, scores=dense))
    said = run("export", "a", "--format", "csv", "--threshold", "1")[1]
    assert "(highest probability 0.996: sit" in said  # not 1.00, which were enough
    said = run("export", "a", "--format", "csv", "--min-length", "60")[1]
    assert "a: 0 segments (all are shorter than 60 s)" in said


def test_damaged_scores_are_listed_and_the_exit_code_is_1(run: Run) -> None:
    Path("detections/a.scores.npz").write_bytes(b"")
    code, _, said = run("export", "--format", "csv")
    assert code == 1
    assert "failed: a: " in said
    assert "1 of 2 videos failed (a), the rest is done" in said
    assert Path("detections/b.csv").is_file()


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--format", "docx"), "unknown format 'docx'; there are json, csv, tsv, eaf"),
        (("--format", ","), "no format named; there are json"),
        (("--output", "file"), "file: this is a file, expected a folder"),
    ],
)
def test_a_slip_is_one_line_and_the_exit_code_is_2(
    run: Run, args: tuple[str, ...], says: str
) -> None:
    Path("file").touch()
    for command in (("export",), ("detect", "videos/a.mp4", "--checkpoint", "none")):
        code, out, said = run(*command, *args)
        assert (code, out, len(said.splitlines())) == (2, "", 1)
        assert f"mstemba: {says}" in said


def test_exporting_imports_nothing_heavy(workspace: Workspace) -> None:
    # Detect with saved scores is no more than an export.
    argv = ["mstemba", "export", "--workspace", str(workspace.root), "--format", ",".join(WRITERS)]
    code = f"import sys; sys.argv = {argv}; import mstemba.pipeline.detect.stage"
    code += "; import mstemba.__main__ as m"
    names = imported("-c", f"{code}; m.main()")
    assert "numpy" in names  # the listing works
    assert (workspace.detections / "a.png").is_file()
    assert names & {"torch", "zarr", "av", "decord", "open_clip", "numba", "matplotlib"} == set()
