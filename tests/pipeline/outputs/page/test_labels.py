"""The labels of the manifest in the page, and the way back: what nobody touched stays as it was."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mstemba.pipeline.detect.scores_file import SavedScores, save_scores
from mstemba.pipeline.outputs import Detection
from mstemba.records import Scores, Segment, TimeGrid
from tests.command_line import Runner, complaint
from tests.pipeline.outputs.page.conftest import Browser
from tests.pipeline.outputs.page.scenes import film, labelled, page, scene
from tests.pipeline.outputs.page.test_corrections import CONTROL, DELETE, drag

CLASSES = ["walk", "sit", "read"]
# Not sorted; two alike, of a third of a second; points; past the end of 19.7 s, before 0, reversed.
ODD = [
    (1, 7.0, 9.000000000000002),
    (0, 1 / 3, 2.1),
    (0, 1 / 3, 2.1),
    (2, 5.0, 5.0),
    (0, 25.5, 5405.25),
    (1, -2.5, 1e-7),
    (2, 9.0, 3.0),
    (2, 18.1, 19.7000001),
    (2, 19.9, 19.9),
]


@pytest.fixture(scope="module")
def plain() -> Detection:
    """Three classes in rows of 0.5 s; one is detected from 4 to 8 s; labelled are `ODD`."""
    values = np.full((40, 3), 0.1, np.float32)
    values[8:16, 0] = 0.9
    grid = TimeGrid.even(0.0, 0.5, 40)
    what = scene(Path("nowhere/v.mp4"), CLASSES, probabilities=values, grid=grid)
    return labelled(what, [Segment(start, end, c, CLASSES[c], 1.0) for c, start, end in ODD])


@pytest.fixture
def opened(chromium: Browser, plain: Detection, tmp_path: Path) -> Browser:
    """Its page, begun from the labels."""
    chromium.open(page(plain, tmp_path))
    chromium.set("base", "labels")
    return chromium


def download(browser: Browser, folder: Path) -> Path:
    """Download the annotations, and move them: the next ones have no number in their name."""
    file = browser.downloaded(browser.find("download").click)
    return Path(shutil.move(file, folder / file.name))


def downloaded(browser: Browser) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        return dict(json.loads(download(browser, Path(folder)).read_text()))


def actions(browser: Browser) -> list[tuple[int, float, float]]:
    (entry,) = downloaded(browser)["videos"].values()
    return [(c, start, end) for c, start, end in entry["actions"]]


def select(browser: Browser, action: tuple[int, float, float]) -> None:
    browser.js(
        "mstemba.goTo(mstemba.corrections.items[arguments[0]])", browser.items().index(action)
    )


def test_labels_that_nobody_touched_are_downloaded_as_they_were(opened: Browser) -> None:
    assert opened.items() == sorted(ODD, key=lambda a: (a[1], a[2], a[0]))
    assert len(opened.texts("#segments tr")) == len(ODD)
    assert opened.text("lost") == ""
    assert actions(opened) == ODD
    for item in opened.items():  # selecting a label does not correct it
        select(opened, item)
    opened.js("mstemba.view.showAll(); mstemba.timeline.paint()")
    assert actions(opened) == ODD
    assert opened.complaints() == []


def test_a_correction_changes_one_label_and_its_other_edge_stays(opened: Browser) -> None:
    select(opened, (0, 25.5, 5405.25))
    assert opened.text("editor-legend") == "Selected segment, not all within the video, in seconds"
    opened.set("edit-class", 2)
    select(opened, (1, -2.5, 1e-7))
    opened.set("edit-end", 20)
    assert "lasts from 0 to 19.7" in opened.text("editor-problem")
    opened.set("edit-end", 4)
    select(opened, (2, 18.1, 19.7000001))
    opened.set("edit-start", 18.5)
    opened.js("mstemba.add({classId: 1, start: 3, end: 4})")
    expected = list(ODD)
    expected[4], expected[5], expected[7] = (2, 25.5, 5405.25), (1, -2.5, 4), (2, 18.5, 19.7000001)
    assert actions(opened) == [*expected, (1, 3, 4)]
    assert opened.text("lost") == "replaces 3 of 9 labels"
    for _ in range(4):
        opened.press(CONTROL, "z")
    assert actions(opened) == ODD


def test_the_page_tells_how_many_labels_the_detections_would_replace(
    chromium: Browser, plain: Detection, tmp_path: Path
) -> None:
    chromium.open(page(plain, tmp_path))
    assert actions(chromium) == chromium.items() != []
    assert chromium.text("lost") == "replaces 9 of 9 labels"
    chromium.set("base", "labels")
    assert chromium.text("lost") == ""
    select(chromium, (2, 9.0, 3.0))
    assert "ends before it starts" in chromium.text("editor-legend")
    chromium.press(DELETE)
    assert chromium.text("lost") == "replaces 1 of 9 labels"
    assert actions(chromium) == [action for action in ODD if action != (2, 9.0, 3.0)]


def marked(browser: Browser, row: int, time: float, y: int) -> bool:
    """Whether the timeline has the colour of labels at a time, `y` pixels below a class's edge."""
    return bool(
        browser.get(
            "(() => { const [row, time, y] = arguments, { timeline } = mstemba; timeline.paint();"
            "const d = timeline.canvas.getContext('2d').getImageData("
            "  Math.min(timeline.x(time), timeline.width - 2), row * timeline.rowHeight + y, 2, 1);"
            "const [r, g, b] = timeline.colours.labelled.match(/[0-9]+/g).map(Number);"
            "return [0, 4].some((i) =>"
            "  d.data[i] === r && d.data[i + 1] === g && d.data[i + 2] === b); })()",
            row,
            time,
            y,
        )
    )


def test_a_point_event_is_a_mark_that_can_be_selected_moved_and_deleted(opened: Browser) -> None:
    for y in (8, 27):  # among the segments, and among the labels below
        assert marked(opened, 2, 5.0, y)
        assert not marked(opened, 2, 5.4, y)
        assert marked(opened, 2, 19.7, y)  # the one at 19.9 s, after the end
    drag(opened, 2, 5.0, 5.0)  # a click
    assert opened.get("mstemba.selected.start") == 5
    assert opened.text("editor-legend") == "Selected point event, in seconds"
    opened.js("mstemba.goTo(mstemba.selected)")
    assert "0:05.00" in opened.texts("#segments tr.now td:nth-child(3)")
    drag(opened, 2, 5.0, 11.1)
    assert (2, 11.25, 11.25) in opened.items()
    opened.set("edit-start", 12)  # a point has one time: first the one, then the other
    opened.set("edit-end", 12)
    assert (2, 12.0, 12.0) in opened.items()
    opened.set("edit-end", 13.5)
    expected = [(2, 12.0, 13.5) if action == (2, 5.0, 5.0) else action for action in ODD]
    assert actions(opened) == expected
    drag(opened, 2, 19.7, 19.7)
    assert opened.get("mstemba.selected.start") == 19.9
    opened.press(DELETE)
    assert actions(opened) == expected[:-1]


def test_a_label_past_the_end_is_cut_where_it_is_dragged(opened: Browser) -> None:
    select(opened, (2, 18.1, 19.7000001))
    drag(opened, 2, 19.0, 17.0)
    moved = next(item for item in opened.items() if item[1] == 16.25)
    assert moved == (2, 16.25, pytest.approx(17.85))
    select(opened, (1, -2.5, 1e-7))
    opened.set("edit-end", 4)
    drag(opened, 1, 4.0, 5.1)
    assert (1, -2.5, 5.25) in opened.items()
    drag(opened, 1, 3.0, 4.1)  # all of it: what is within the video
    assert (1, 1.25, 6.5) in opened.items()


def test_classes_that_the_scores_lack_are_labelled_and_keep_their_order(
    chromium: Browser, plain: Detection, tmp_path: Path
) -> None:
    known = ("jump", "sit", "hop")  # of the scores' classes, sit alone
    times = [Segment(1.0, 2.0, 2, "hop", 1.0), Segment(3.0, 4.0, 1, "sit", 1.0)]
    chromium.open(page(labelled(replace(plain, subset=None), times, known), tmp_path))
    assert set(chromium.texts("#labels button")) == {"walk", "sit", "hop", "read"}
    chromium.set("base", "labels")
    content = downloaded(chromium)
    assert content["classes"] == list(known)
    assert content["videos"]["v"] == {
        "subset": None,
        "duration": None,
        "actions": [[2, 1, 2], [1, 3, 4]],
    }
    select(chromium, (chromium.get("mstemba.corrections.classes.indexOf('hop')"), 1.0, 2.0))
    chromium.set("edit-class", chromium.get("mstemba.corrections.classes.indexOf('read')"))
    content = downloaded(chromium)
    assert content["classes"] == [*known, "read"]
    assert content["videos"]["v"]["actions"] == [[3, 1, 2], [1, 3, 4]]


def test_a_video_can_be_labelled_to_the_end_that_the_player_finds(
    chromium: Browser, plain: Detection, tmp_path: Path
) -> None:
    video = film(tmp_path / "six.mp4", seconds=6)
    two = replace(plain.scores, video=str(video), duration=2.0)
    labels = [Segment(1.0, 1.5, 0, "walk", 1.0), Segment(4.5, 5.75, 0, "walk", 1.0)]
    short = replace(plain, scores=two, segments=[])
    chromium.open(page(labelled(short, labels), tmp_path))
    chromium.wait("mstemba.length > 5.9")
    assert chromium.get("mstemba.view.to") == pytest.approx(6, abs=0.05)
    assert chromium.text("time").endswith("0:06.0")
    chromium.set("base", "labels")
    chromium.js("mstemba.markClass(1); mstemba.seek(4)")
    chromium.wait("Math.abs(mstemba.player.video.currentTime - 4) < 0.05")
    chromium.press("n")
    added = chromium.items()[1]
    assert added[:2] == (1, 4.0)
    drag(chromium, 0, 5.75, 5.0)
    assert actions(chromium) == [(0, 1, 1.5), (0, 4.5, pytest.approx(5, abs=0.02)), added]
    chromium.open(page(replace(short, listed=None), tmp_path))
    chromium.wait("mstemba.length > 5.9")
    assert downloaded(chromium)["videos"]["v"]["duration"] == pytest.approx(6, abs=0.05)


def keep_scores(root: Path, video: str, stem: str, id: str, classes: tuple[str, ...]) -> None:
    """What `detect` would keep of a video: rows of 16 frames at uneven times, nothing detected."""
    grid = TimeGrid(np.cumsum(np.random.default_rng(3).uniform(0.3, 0.9, 40)), 0.64)
    values = np.full((40, len(classes)), 0.1, np.float32)
    dense = Scores(values, grid, classes, str(root / "videos" / video), 20.0, 25.0)
    provenance = {"features": {"stride": 16, "every": 1}}
    save_scores(
        root / "detections" / f"{stem}.scores.npz", SavedScores(dense, "k", "f", provenance, id)
    )


# Two that differ by the ending alone, two of one name in different folders, and odd ones.
FILES = {
    "walk.mp4": "walk.mp4",
    "walk.avi": "walk.avi",
    "monday/cam": "monday/cam.mp4",
    "tuesday/cam": "tuesday/cam.mp4",
    "__proto__": "__proto__.mp4",
    "cafe\u0301 \u05d0": "cafe\u0301 \u05d0.mp4",
    "1": "1.mp4",
    "bad \udce9": "bad \udce9.mp4",
}


@pytest.mark.parametrize("unit", ["seconds", "frames"])
def test_a_manifest_is_the_same_after_labels_went_through_the_page(
    chromium: Browser, tmp_path: Path, mstemba: Runner, unit: str
) -> None:
    for file in FILES.values():
        (tmp_path / "videos" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "videos" / file).write_bytes(file.encode(errors="surrogateescape"))
    subsets = ["training", None, "testing", "mine"]
    times = [[c, start * n, end * n] for n, (c, start, end) in enumerate(ODD, 1)]
    durations = [None, 19.7, None, *[1e6] * 5]  # most fit: then nothing looks like frames
    entries = {
        id: {"subset": subsets[n % 4], "duration": durations[n], "actions": times[n:]}
        | ({"annotated_until": 7 + n / 3} if n % 2 else {})
        for n, id in enumerate(FILES)
    }
    content = {"classes": ["hop", "Sit down", "walk"], "time_unit": unit, "videos": entries}
    (tmp_path / "labels.json").write_text(json.dumps(content))
    mstemba("init", "--videos", "videos", "--annotations", "labels.json", cwd=tmp_path)
    before = (tmp_path / "manifest.json").read_bytes()
    for number, (id, file) in enumerate(FILES.items()):
        # The network has other classes, in another order.
        keep_scores(tmp_path, file, f"{number}", id, ("walk", "sit_down", "jump"))
    said = mstemba("export", "--format", "html", cwd=tmp_path)
    assert "classes that these scores lack, for example 'hop'" in said.stderr
    for number in range(len(FILES)):
        chromium.open(tmp_path / "detections" / f"{number}.html")
        chromium.set("base", "labels")
        file = download(chromium, tmp_path)
        merged = mstemba("init", "--annotations", file, "--merge", cwd=tmp_path)
        assert "removed or changed" not in merged.stdout
        assert "new classes: none" in merged.stdout
        assert (tmp_path / "manifest.json").read_bytes() == before
    assert not (tmp_path / "manifest.json.bak").exists()


def test_the_labels_of_a_video_that_has_moved_are_still_its(
    chromium: Browser, tmp_path: Path, mstemba: Runner
) -> None:
    (tmp_path / "labels.json").write_text(json.dumps({"v": {"actions": [[0, 1.0, 1.0]]}}))
    (tmp_path / "names.txt").write_text("walk\n")
    mstemba("init", "--annotations", "labels.json", "--classes", "names.txt", cwd=tmp_path)
    before = (tmp_path / "manifest.json").read_bytes()
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "v.mp4").touch()
    keep_scores(tmp_path, "v.mp4", "v", "v", ("walk",))
    mstemba("export", "--format", "html", cwd=tmp_path)
    chromium.open(tmp_path / "detections" / "v.html")
    file = download(chromium, tmp_path)
    said = mstemba("init", "--annotations", file, "--merge", cwd=tmp_path, expect=2)
    assert "1 of 1 video would have fewer actions" in complaint(said)
    assert "(0 in place of 1, without 'walk' from 1 to 1 seconds); pass --yes" in complaint(said)
    chromium.set("base", "labels")
    file = download(chromium, tmp_path)
    mstemba("init", "--annotations", file, "--merge", cwd=tmp_path)
    assert (tmp_path / "manifest.json").read_bytes() == before


@pytest.mark.parametrize("unit", ["seconds", "frames"])
def test_a_download_on_its_own_makes_a_manifest_of_this_video(
    chromium: Browser, tmp_path: Path, mstemba: Runner, unit: str
) -> None:
    entry: dict[str, Any] = {"subset": "mine", "duration": 21.25, "annotated_until": 0.1 + 0.2}
    entry["actions"] = [[c, start, min(end, 40.0)] for c, start, end in ODD]
    content = {"classes": ["hop", "sit", "walk"], "time_unit": unit, "videos": {"v": entry}}
    (tmp_path / "labels.json").write_text(json.dumps(content))
    mstemba("init", "--annotations", "labels.json", "--dataset", "one", cwd=tmp_path)
    keep_scores(tmp_path, "v.mp4", "v", "v", ("walk", "jump"))
    mstemba("export", "--format", "html", cwd=tmp_path)
    chromium.open(tmp_path / "detections" / "v.html")
    chromium.set("base", "labels")
    file = download(chromium, tmp_path)
    alone = tmp_path / "alone"
    mstemba("init", "--annotations", file, "--workspace", alone, "--dataset", "one", cwd=tmp_path)
    assert (alone / "manifest.json").read_bytes() == (tmp_path / "manifest.json").read_bytes()
