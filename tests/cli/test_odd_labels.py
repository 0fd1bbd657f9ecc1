"""Difficult class and file names from annotations to every format: literal, and never executed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mstemba.__main__ import main
from mstemba.pipeline.detect.scores_file import SavedScores, save_scores
from mstemba.pipeline.outputs import WRITERS
from mstemba.pipeline.progress import one_line
from mstemba.records import Scores, TimeGrid

LABELS = (
    "</script><script>alert(1)</script>",
    'say "it\'s" & go',
    "two\nlines",
    "\r\n* LOC: 01:00:00:00 RED",
    "00:00:01.000 --> 00:00:02.000",
    "שלום \u202e עולם",
    "日本語 🎬",
    '=HYPERLINK("x")',
    "@SUM(A1)",
    "\x1b[2Jescape\x07",
    "a" * 300,
)
VIDEOS = (
    "<img src=x onerror=alert(1)>.mp4",
    "=1+1.mp4",
    "two\nlines.mp4",
    "שלום.mp4",
    "caf\udce9.mp4",
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="such names are not files there")
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run a command in a folder of its own; gives exit code, standard output and error."""
    monkeypatch.delenv("MSTEMBA_WORKSPACE", raising=False)
    monkeypatch.chdir(tmp_path)

    def run(*args: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mstemba", *map(str, args)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        said = capfd.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return run


def annotations() -> dict[str, object]:
    """Every class once in every video, one after another and overlapping."""
    actions = [[c, 0.5 * c, 0.5 * c + 1.0] for c in range(len(LABELS))]
    video = {"subset": "training", "duration": 10.0, "actions": actions}
    # A name that is no text cannot stand in JSON.
    ids = [Path(name).stem for name in VIDEOS if name.isascii() or "\udce9" not in name]
    return {"classes": list(LABELS), "time_unit": "seconds", "videos": dict.fromkeys(ids, video)}


def keep(name: str, classes: tuple[str, ...]) -> None:
    """Kept scores of a video, in which each class has its turn."""
    count = 20
    rows = np.full((count, len(classes)), 0.05, np.float32)
    for class_id in range(len(classes)):
        rows[class_id : class_id + 3, class_id] = 0.9
    path = Path("videos", name)
    scores = Scores(rows, TimeGrid.even(0.0, 0.5, count), classes, str(path), 10.0, 10.0)
    kept = SavedScores(scores, "key", "ab" * 32, {"arch": "mstemba"})
    save_scores(Path("detections", f"{path.stem}.scores.npz"), kept)


def test_odd_names_go_all_the_way(run: Run) -> None:
    Path("videos").mkdir()
    for name in VIDEOS:
        Path("videos", name).write_bytes(name.encode(errors="surrogateescape"))
    Path("labels.json").write_text(json.dumps(annotations()), encoding="utf-8")
    code, out, err = run("init", "--videos", "videos", "--annotations", "labels.json")
    assert code == 0, err
    manifest = json.loads(Path("manifest.json").read_text(encoding="utf-8"))
    assert manifest["classes"] == list(LABELS)
    for name in VIDEOS:
        keep(name, LABELS)
    code, out, err = run("export", "--format", ",".join(WRITERS))
    assert code == 0, err
    assert "\x1b" not in out + err
    assert "\x07" not in out + err
    assert len(out.splitlines()) == len(VIDEOS) + 1
    for name in VIDEOS:
        stem = Path(name).stem
        assert f"{one_line(stem)}: {len(LABELS)} segments: " in out
        for writer in WRITERS.values():
            assert Path("detections", f"{stem}.{writer.suffix}").stat().st_size > 0
        result = json.loads(Path("detections", f"{stem}.json").read_text(encoding="utf-8"))
        assert sorted(s["label"] for s in result["segments"]) == sorted(LABELS)
        page = Path("detections", f"{stem}.html").read_text(encoding="utf-8")
        for bad in ("<script>alert", "<img src=x", "</script><script>alert"):
            assert bad not in page
    assert f"{len(VIDEOS)} exported, 0 failed" in out


def test_a_video_that_is_not_there_is_a_warning_and_all_files_are_written(run: Run) -> None:
    keep("gone.mp4", ("sit", "run"))
    code, _, err = run("export", "detections", "--format", ",".join(WRITERS))
    assert code == 0
    assert err.startswith("warning: ")
    assert "gone.mp4" in err
    for writer in WRITERS.values():
        assert Path("detections", f"gone.{writer.suffix}").stat().st_size > 0


def test_nothing_found_is_said_and_all_files_are_written(run: Run) -> None:
    Path("videos").mkdir()
    Path("videos", "v.mp4").touch()
    keep("v.mp4", LABELS)
    code, out, err = run(
        "export", "detections", "--threshold", "0.95", "--format", ",".join(WRITERS)
    )
    assert (code, err) == (0, "")
    assert "v: 0 segments (highest probability 0.90" in out
    for writer in WRITERS.values():
        assert Path("detections", f"v.{writer.suffix}").stat().st_size > 0
