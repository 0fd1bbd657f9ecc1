"""Several processes that write results into one folder: each video once, and no mixed files."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from mstemba.pipeline.caching.locks import FolderLocks
from mstemba.pipeline.detect.export import export
from mstemba.pipeline.detect.scores_file import read_scores
from mstemba.pipeline.options import ExportOptions
from mstemba.pipeline.progress import Event
from tests.pipeline.detect.colours import film, run
from tests.waiting import Watcher

pytestmark = pytest.mark.usefixtures("one_thread")


def test_of_two_detections_each_video_is_scored_by_one(loaded: list[str], tmp_path: Path) -> None:
    videos = [film(tmp_path / f"{name}.mp4", [(name, 1)]) for name in ("red", "green")]
    out = tmp_path / "out"
    waits, results = threading.Event(), list[Any]()
    watcher = Watcher(waits.set)
    thread = threading.Thread(
        target=lambda: results.append(run(videos, out, ["red"], on_event=watcher))
    )

    def start_second(event: Event) -> None:
        if event.stage == "detect" and event.video == "green" and not thread.ident:
            thread.start()
            assert waits.wait(60), "the second detection does not wait"

    first = run(videos, out, ["red"], on_event=start_second)
    thread.join()
    (other,) = results
    assert (first.cached, other.cached) == (["red"], ["green"])
    assert first.failed == other.failed == {}
    assert list(first.files) == list(other.files) == ["green", "red"]
    assert f"waiting for process {os.getpid()}, which is detecting in green" in watcher.news
    assert list(out.glob(".*")) == [out / ".features"]


def test_videos_of_one_name_from_two_folders_never_share_files(
    loaded: list[str], tmp_path: Path
) -> None:
    """Also if another process takes the name after this one has chosen it."""
    out, paths = tmp_path / "out", [tmp_path / name / "v.mp4" for name in ("red", "green")]
    for path in paths:
        path.parent.mkdir()
        film(path, [(path.parent.name, 1)])
    one, other = paths
    done = []

    def on_event(event: Event) -> None:
        if event.stage == "extract" and event.message.startswith("loading") and not done:
            done.append(run(other, out, ["red"]))

    run(one, out, ["red"], on_event=on_event)
    scored = {Path(read_scores(file).scores.video) for file in out.glob("*.scores.npz")}
    assert scored == {one, other}
    assert len(list(out.glob("*.json"))) == 2


def test_other_labels_of_another_process_are_replaced_with_a_message(
    loaded: list[str], tmp_path: Path
) -> None:
    """As if it had ended before this one began."""
    video, out = film(tmp_path / "v.mp4", [("red", 1)]), tmp_path / "out"
    news, others = list[str](), list[Any]()

    def on_event(event: Event) -> None:
        news.append(event.message)
        if event.stage == "extract" and event.message.startswith("loading") and not others:
            others.append(run(video, out, ["green"], options=ExportOptions(formats=("csv",))))

    run(video, out, ["red"], on_event=on_event)
    (told,) = [line for line in news if line.startswith("replacing")]
    assert f"found in v ({out}); another --output keeps both" in told
    assert read_scores(out / "v.scores.npz").scores.classes == ("red",)
    again: list[str] = []
    run(video, out, ["red"], on_event=lambda event: again.append(event.message))
    assert not [line for line in again if line.startswith("replacing")]


def test_an_export_waits_for_the_files_of_a_video_that_is_detected(
    loaded: list[str], tmp_path: Path
) -> None:
    videos = [film(tmp_path / f"{name}.mp4", [(name, 1)]) for name in ("red", "green")]
    out = tmp_path / "out"
    run(videos, out, ["red"])
    lock = FolderLocks(out, "detecting in").acquire("green")
    assert lock is not None

    def release() -> None:
        assert (out / "red.csv").is_file()
        assert not (out / "green.csv").exists()
        lock.release()

    watcher = Watcher(release)
    result = export(out, ExportOptions(formats=("csv",)), on_event=watcher)
    assert list(result.files) == ["green", "red"]
    assert f"waiting for process {os.getpid()}, which is detecting in green" in watcher.news


def test_leftovers_of_killed_processes_go_and_are_no_results(
    loaded: list[str], tmp_path: Path
) -> None:
    video, out = film(tmp_path / "red.mp4", [("red", 1)]), tmp_path / "out"
    run(video, out, ["red"])
    (out / ".locks").mkdir()
    (out / ".locks" / "v.lock").write_text("4711 here detecting in\n")
    for name in (".writing-4711.json", ".writing-4711.scores.npz"):
        (out / name).write_text("half")
    assert list(export(out, ExportOptions(formats=("csv",))).files) == ["red"]
    assert list(out.glob(".*")) == [out / ".features"]
