"""What `init` says after it has read annotations, and what it decides where they do not say."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from mstemba.data_manifests.manifest import load_manifest
from mstemba.errors import ManifestError, UsageError
from mstemba.pipeline.demo import write_video
from mstemba.pipeline.init import InitResult, init
from tests.command_line import Runner


def table(folder: Path, *rows: str, head: str = "video,start,end,label") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "labels.csv"
    path.write_text("\n".join([head, *rows, ""]), encoding="utf-8")
    return path


def touch(folder: Path, *names: str) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    return [folder / name for name in names]


def made(tmp_path: Path, *rows: str, head: str = "video,start,end,label") -> InitResult:
    return init(annotations=table(tmp_path, *rows, head=head), root=tmp_path / "w")


def doubts(result: InitResult) -> dict[str, str]:
    """Return the examples of what looks like a mistake, by the beginning of its kind."""
    report = result.report
    return {kind.split(" (")[0]: report.examples[kind] for kind in report.doubts}


@pytest.mark.parametrize(
    ("count", "subsets"),
    [
        (1, {"training": 1}),
        (6, {"training": 6}),
        (7, {"training": 5, "validation": 1, "testing": 1}),
        (100, {"training": 70, "validation": 15, "testing": 15}),
    ],
)
def test_videos_without_subsets_are_divided(
    count: int, subsets: dict[str, int], tmp_path: Path
) -> None:
    rows = [f"v{n},{t},{t + 1},pour" for n in range(count) for t in (0, 3)]
    first, again = made(tmp_path / "a", *rows), made(tmp_path / "b", *reversed(rows))
    assert first.subsets == subsets
    assert {v.id: v.subset for v in first.manifest.videos.values()} == {
        v.id: v.subset for v in again.manifest.videos.values()
    }
    (note,) = first.report.notes
    assert "no subsets" in note
    assert "add a column `subset`" in note
    assert not first.report.warnings()


def test_subsets_that_some_videos_have_are_not_completed(tmp_path: Path) -> None:
    rows = ["a,0,1,pour,train", "a,2,3,pour,", "b,0,1,pour,NA", "c,0,1,pour,dev2"]
    result = made(tmp_path, *rows, head="video,start,end,label,subset")
    assert result.subsets == {"training": 1, "without a subset": 1, "dev2": 1}
    warnings = " ".join(result.report.warnings())
    assert "video without a subset (not used by train and evaluate): 1" in warnings
    assert "unknown subset (not used; expected training, validation, testing): 1" in warnings
    kept = init(annotations=table(tmp_path, "a,0,1,x"), root=tmp_path / "n", split="none")
    assert kept.subsets == {"without a subset": 1}


def test_annotations_that_are_merged_without_a_subset_are_for_training(tmp_path: Path) -> None:
    made(tmp_path, *(f"v{n},0,1,pour" for n in range(10)))
    more = table(tmp_path / "more", "new,0,1,pour", "v0,2,3,pour")
    result = init(annotations=more, root=tmp_path / "w", merge=True)
    before = {"training": 6, "validation": 2, "testing": 2}
    assert result.subsets == before | {"training": 7}
    assert any("used for training: 1 video, for example new" in n for n in result.report.notes)


def test_spellings_of_a_class_are_told_and_joined_on_request(tmp_path: Path) -> None:
    labels = ["Walk", "walk", "walk", "pick up", "pick_up", "pick  up", "o\u0308ffnen", "öffnen"]
    rows = [f"a,{n},{n + 1},{label}" for n, label in enumerate(labels)]
    told = made(tmp_path, *rows)
    assert told.manifest.classes == ("Walk", "pick  up", "pick up", "pick_up", "walk", "öffnen")
    kind = "class that differs from another one in spelling only"
    assert doubts(told)[kind] == "'Walk' and 'walk'"
    joined = init(annotations=table(tmp_path, *rows), root=tmp_path / "j", join_spellings=True)
    assert joined.manifest.classes == ("pick up", "walk", "öffnen")
    assert [c.actions for c in joined.classes] == [3, 3, 2]
    assert joined.report.joined == {"class in another spelling": 3}


def test_what_looks_wrong_is_a_warning_that_says_why(tmp_path: Path) -> None:
    many = [f"half,{t},{t + 2},pour,100" for t in range(0, 40, 3)]
    rows = ["late,5405,5409,pour,30", "sparse,50,51,stir,100", *many, "good,1,29,pour,30"]
    result = made(tmp_path, *rows, head="video,start,end,label,duration")
    found = doubts(result)
    assert found["class with one action"] == "'stir'"
    late = found["video whose actions all begin after its end"]
    assert late == "'late', whose actions are from 5405 to 5409 of 30"
    half = found["video whose actions are all in its first part"]
    assert half == "'half', whose actions are from 0 to 41 of 100"
    assert found["video of which less than 10% is labelled"] == "'sparse', 1 of 100"


def test_with_strict_a_warning_is_an_error_and_nothing_is_written(
    tmp_path: Path, mstemba: Runner
) -> None:
    labels = table(tmp_path, "a,0,1,pour", "a,2,3,stir", "a,4,5,stir")
    says = "--strict: nothing is written, because of 1 warning: class with one action: 1"
    with pytest.raises(ManifestError, match=says):
        init(annotations=labels, root=tmp_path / "w", strict=True)
    asked = mstemba("init", "--annotations", labels, "--strict", cwd=tmp_path, expect=2)
    assert says in asked.stderr
    assert not (tmp_path / "manifest.json").exists()
    fine = table(tmp_path, "a,0,1,pour", "a,2,3,pour")
    np.save(tmp_path / "x.npy", np.zeros((4, 8), np.float32))
    np.save(tmp_path / "a.npy", np.zeros((4, 8), np.float32))
    both = ("--annotations", fine, "--features", tmp_path)
    asked = mstemba("init", *both, "--strict", cwd=tmp_path, expect=2)
    assert "features without annotation (not used): 1" in asked.stderr
    assert not (tmp_path / "manifest.json").exists()
    mstemba("init", "--annotations", fine, "--strict", cwd=tmp_path)
    assert load_manifest(tmp_path / "manifest.json").classes == ("pour",)


def test_one_screen_shows_what_there_is(tmp_path: Path, mstemba: Runner) -> None:
    labels = ["pour"] * 30 + [f"c{n:02d}" for n in range(40) for _ in range(n % 3 + 1)]
    rows = [f"videos/a.mp4,{n},{n + 1},{label}" for n, label in enumerate(labels)]
    touch(tmp_path / "videos", "a.mp4", "b.mp4")
    table(tmp_path, *rows)
    asked = mstemba(
        "init", "--videos", "videos", "--annotations", "labels.csv", "--json", "i.json",
        cwd=tmp_path,
    )  # fmt: skip
    lines = asked.stdout.splitlines()
    assert lines[0] == (
        f"manifest.json: 2 videos (2 with a file), 41 classes, {len(rows)} actions, "
        f"1:{len(rows) - 60:02d} min labelled"
    )
    assert lines[1] == f"training 1 video, {len(rows)} actions; not annotated 1 video, 0 actions"
    assert lines[3].split() == ["pour", "30", "30", "1"]
    assert "(21 more; --json lists all)" in asked.stdout
    assert "video named otherwise than its file: 1, for example 'videos/a.mp4'" in asked.stdout
    assert "warning: video file without annotation: 1" in asked.stderr
    assert len(lines) + len(asked.stderr.splitlines()) <= 35
    told = json.loads((tmp_path / "i.json").read_text(encoding="utf-8"))
    counts = {entry["name"]: entry["actions"] for entry in told["classes"]}
    assert counts == Counter(labels)
    assert told["videos_by_subset"] == {"training": 1, "not annotated": 1}
    assert told["doubts"][0]["count"] == sum(n % 3 == 0 for n in range(40))
    assert told["joined"][0]["example"].startswith("'videos/a.mp4' is ")


def test_videos_as_a_shell_expands_them(tmp_path: Path, mstemba: Runner) -> None:
    files = touch(tmp_path / "videos", "a.mp4", "b.mp4", "c.mp4")
    table(tmp_path, "a,0,1,pour", "b,0,1,pour", "c,0,1,pour")
    mstemba("init", "--videos", *files, "--annotations", "labels.csv", cwd=tmp_path)
    videos = load_manifest(tmp_path / "manifest.json").videos.values()
    assert [video.path is not None for video in videos] == [True] * 3
    mstemba("init", "videos", "--annotations", "labels.csv", "--workspace", "w", cwd=tmp_path)
    more = ["labels.csv", "more.csv"]
    refused = mstemba("init", "--videos", *files, "--annotations", *more, cwd=tmp_path, expect=2)
    assert "more.csv: not a video; --annotations takes one file" in refused.stderr


def test_only_the_annotated_part_of_a_video_is_judged(tmp_path: Path) -> None:
    head = "video,start,end,label,duration,annotated_until"
    rows = [f"monday,{n},{n + 1},pour,100,10" for n in range(9)]
    assert doubts(made(tmp_path, *rows, head=head)) == {}
    without = made(tmp_path, *(row.removesuffix("10") for row in rows), head=head)
    assert list(doubts(without)) == ["video whose actions are all in its first part"]


def test_thousands_of_actions_beyond_the_end_are_no_arithmetic_error(tmp_path: Path) -> None:
    rows = [f"monday,{n % 15},{n % 15 + 1},pour,10" for n in range(4000)]
    result = made(tmp_path, *rows, head="video,start,end,label,duration")
    assert result.report.kept["action that ends after the video"] > 1000
    assert list(doubts(result)) == ["action that is given more than once"]


def test_an_id_from_a_file_name_that_is_not_utf8_is_divided_too(tmp_path: Path) -> None:
    path = tmp_path / "labels.json"
    entry = {"duration": 9, "actions": [[0, 1, 8], [0, 2, 9]]}
    path.write_text(json.dumps({f"caf\udce9{n}": entry for n in range(7)}), encoding="utf-8")
    result = init(annotations=path, root=tmp_path / "w")
    assert result.subsets == {"training": 5, "validation": 1, "testing": 1}


def test_a_damaged_previous_manifest_is_kept(tmp_path: Path) -> None:
    made(tmp_path, "monday,0,1,pour")
    previous = tmp_path / "w/manifest.json"
    previous.write_bytes(b"\xff\xfe not JSON")
    result = made(tmp_path, "monday,0,1,pour")
    assert result.backup is not None
    assert result.backup.read_bytes() == b"\xff\xfe not JSON"
    assert load_manifest(previous).classes == ("pour",)


def test_a_file_of_classes_without_a_name_is_refused(tmp_path: Path) -> None:
    labels, empty = table(tmp_path, "monday,0,1,pour"), tmp_path / "classes.txt"
    empty.write_text("\n \n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"--classes .*classes\.txt: the file is empty"):
        init(annotations=labels, root=tmp_path / "w", classes=empty)


def test_options_of_annotations_require_them(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--join-spellings requires --annotations"):
        init(touch(tmp_path, "a.mp4"), root=tmp_path / "w", join_spellings=True)


@pytest.mark.parametrize("option", ["--annotations", "--classes"])
def test_the_result_does_not_replace_what_is_read(
    option: str, tmp_path: Path, mstemba: Runner
) -> None:
    table(tmp_path, "a.mp4,0,1,pour")
    (tmp_path / "classes.txt").write_text("pour\n", encoding="utf-8")
    files = {"--annotations": "labels.csv", "--classes": "classes.txt"}
    before = (tmp_path / files[option]).read_bytes()
    args = [text for pair in files.items() for text in pair]
    asked = mstemba("init", *args, "--json", files[option], cwd=tmp_path, expect=2)
    assert f"{files[option]} is also an input; choose another file with --json" in asked.stderr
    assert (tmp_path / files[option]).read_bytes() == before


def test_times_are_compared_with_the_files(tmp_path: Path) -> None:
    pictures = np.zeros((40, 16, 16, 3), np.uint8)
    (tmp_path / "videos").mkdir()
    write_video(tmp_path / "videos" / "a.mp4", pictures, 10)
    rows = ["a,0,2,pour", "a,0,2,pour", "a,1,2,pour", "a,3,6,pour", "a,5,6,pour"]
    result = init([tmp_path / "videos"], table(tmp_path, *rows), root=tmp_path / "w")
    examples = result.report.examples
    assert examples["action that ends after the video"] == "'pour' from 3 to 6 in 'a' of 4"
    assert examples["action that begins after the video"] == "'pour' from 5 in 'a' of 4"
    assert examples["action that is given more than once"] == "'pour' from 0 to 2 in 'a'"
    milliseconds = table(tmp_path, "a,500,1500,pour", "a,2000,3000,pour")
    with pytest.raises(ManifestError, match=r"3000 in a of 40 frames; these may be milliseconds"):
        init([tmp_path / "videos"], milliseconds, root=tmp_path / "m", time_unit="frames")
    frames = table(tmp_path, "a,5,15,pour", "a,20,30,pour")
    made_of_frames = init([tmp_path / "videos"], frames, root=tmp_path / "m", time_unit="frames")
    assert made_of_frames.manifest.time_unit == "frames"


def test_merged_labels_take_the_spelling_of_the_manifest(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    touch(tmp_path / "videos", "a.mp4")
    first = table(tmp_path / "1", "a,0,1,lift", "a,2,3,lift")
    init([tmp_path / "videos"], first, root=tmp_path / "w")
    alone = table(tmp_path / "2", "a,0,1,Lift", "a,2,3,Lift")
    merged = init(annotations=alone, root=tmp_path / "w", merge=True)
    assert merged.manifest.classes == ("lift",)
    assert merged.report.joined == {"class in another spelling": 1}
    several = table(tmp_path / "3", "a,0,1,Lift", "a,2,3,LIFT", "b,0,1,lift")
    told = init(annotations=several, root=tmp_path / "w", merge=True)
    assert told.manifest.classes == ("lift", "LIFT", "Lift")
    assert "class that differs from another one in spelling only" in doubts(told)
    assert told.report.kept["annotated video without a file"] == 1
    init([tmp_path / "videos"], first, root=tmp_path / "w")
    joined = init(annotations=several, root=tmp_path / "w", merge=True, join_spellings=True)
    assert joined.manifest.classes == ("lift",)
    assert joined.report.joined == {"class in another spelling": 2}


def test_annotations_of_which_nothing_can_be_used_are_refused(tmp_path: Path) -> None:
    says = r"no action can be used: time that is neither.*: 2 skipped, for example .*line 2"
    with pytest.raises(ManifestError, match=says):
        made(tmp_path, "a,soon,later,pour", "b,1,x,pour")
    assert not (tmp_path / "w").exists()
