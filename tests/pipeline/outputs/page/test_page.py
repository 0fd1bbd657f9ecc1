"""The page in a real browser: what it shows, what a user does with it, and what it never does."""

from __future__ import annotations

import os
import shutil
import statistics
import time
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from mstemba.pipeline.detect.segments import find_segments
from mstemba.pipeline.options import ExportOptions
from mstemba.pipeline.outputs import Detection
from mstemba.records import TimeGrid
from tests.pipeline.outputs.page.conftest import Browser
from tests.pipeline.outputs.page.scenes import (
    KITCHEN,
    ODD_CLASSES,
    film,
    long_scene,
    page,
    scene,
    smooth,
    uneven,
)

LEFT, SPACE, ESCAPE = "\ue012", " ", "\ue00c"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a film of six seconds."""
    folder = tmp_path_factory.mktemp("page")
    film(folder / "videos" / "six seconds.mp4")
    return folder


@pytest.fixture(scope="module")
def kitchen(folder: Path) -> Detection:
    """The film's detections: 60 rows of 0.1 s, 14 classes, labels."""
    grid = TimeGrid(np.append(0, 0.1 * np.arange(1, 60) + 0.003), 0.1)
    return scene(folder / "videos" / "six seconds.mp4", rows=60, grid=grid)


@pytest.fixture
def opened(chromium: Browser, kitchen: Detection, folder: Path) -> Browser:
    """The kitchen's page, fresh."""
    chromium.open(page(kitchen, folder))
    return chromium


def times(what: Detection, threshold: float) -> list[tuple[int, float, float]]:
    """What Python makes of the scores."""
    options = what.options
    low = options.low_threshold / options.threshold * threshold
    found = find_segments(what.scores, threshold, low, options.min_length)
    return [(s.class_id, s.start, s.end) for s in found]


# Looking


def test_the_page_shows_what_was_detected_and_asks_for_nothing_else(
    opened: Browser, kitchen: Detection, folder: Path
) -> None:
    opened.wait("mstemba.player.video.readyState >= 2")
    shown = [(s.class_id, s.start, s.end) for s in kitchen.segments]
    assert opened.items() == shown
    assert len(shown) > 5
    assert opened.get("document.querySelectorAll('#segments tr').length") == len(shown)
    assert opened.text("title") == "six seconds.mp4"
    names = opened.texts("#labels button")
    assert set(names) <= set(KITCHEN)
    assert {kitchen.scores.classes[c] for c, _, _ in shown} <= set(names)
    assert opened.complaints() == []
    # The browser's own buttons of the video are data: addresses.
    asked = {url for url in opened.requests() if not url.startswith(("data:", "blob:"))}
    here = folder.resolve().as_uri()
    assert asked == {f"{here}/page.html", f"{here}/videos/six%20seconds.mp4"}


@pytest.mark.slow
def test_the_canvas_has_every_colour(opened: Browser) -> None:
    painted = opened.get(
        "(() => { mstemba.timeline.paint(); const c = document.getElementById('canvas');"
        "const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
        "const seen = new Set();"
        "for (let i = 0; i < d.length; i += 4) seen.add(`rgb(${d[i]}, ${d[i+1]}, ${d[i+2]})`);"
        "return [...seen]; })()"
    )
    colours = opened.get("mstemba.timeline.colours")
    assert {colours["detected"], colours["labelled"]} <= set(painted)
    assert colours["corrected"] not in painted


@pytest.mark.slow
def test_there_is_no_shade_where_there_are_no_scores(chromium: Browser, tmp_path: Path) -> None:
    what = scene(tmp_path / "none.mp4", ("a", "b"), probabilities=np.full((50, 2), 0.4, np.float32))
    # As published features may: they end in the middle of the video.
    half = replace(what.scores, duration=2 * float(what.scores.grid.ends[-1]))
    chromium.open(page(replace(what, scores=half), tmp_path))
    alphas = chromium.get(
        "(() => { const { timeline } = mstemba; timeline.paint();"
        "const y = timeline.rowHeight + 18;"  # within the second class's shade
        "const d = timeline.canvas.getContext('2d');"
        "return [0.1, 0.49, 0.51, 0.9].map((share) =>"
        "  d.getImageData(share * timeline.width, y, 1, 1).data[3]); })()"
    )
    assert alphas == [pytest.approx(0.4 * 255, abs=2)] * 2 + [0, 0]


CUTS = {
    "default": ExportOptions(),
    "low and short": ExportOptions(threshold=0.4, low=0.1, min_length=0.25),
    "one threshold": ExportOptions(threshold=0.5, low=0.5),
    "no low": ExportOptions(threshold=0.3, low=0.0),
}


@pytest.mark.parametrize(
    "cut", ["default", *(pytest.param(c, marks=pytest.mark.slow) for c in CUTS if c != "default")]
)
@pytest.mark.parametrize("anchor", [0.0, 0.5])
def test_the_slider_cuts_as_python_does(
    chromium: Browser, tmp_path: Path, cut: str, anchor: float
) -> None:
    options, rows = CUTS[cut], 80
    # Probabilities on the thresholds themselves, and just beside them.
    thousandths = np.random.default_rng(2).integers(0, 1001, (rows, 4)).astype(np.float32) / 1000
    edge = thousandths.astype(np.float32)
    probabilities = np.clip(
        np.concatenate([edge, np.nextafter(edge, np.float32(0)), smooth(rows, 6)], axis=1), 0, 1
    )
    what = scene(
        tmp_path / "none.mp4",
        map(str, range(14)),
        probabilities=probabilities,
        grid=uneven(rows, 0.13),
        anchor=anchor,
        options=options,
    )
    chromium.open(page(what, tmp_path))
    found = chromium.get(
        "Array.from({length: 99}, (_, i) => { mstemba.thresholds.value = (i + 1) / 100;"
        "return [mstemba.thresholds.low, mstemba.thresholds.recompute()"
        ".map((s) => [s.classId, s.start, s.end, s.score])]; })"
    )
    for k, (low, shown) in enumerate(found, 1):
        # The page's thresholds are whole thousandths, which it says.
        share = options.low_threshold / options.threshold
        assert low == pytest.approx(share * k / 100, abs=0.000501)
        expected = find_segments(what.scores, k / 100, low, options.min_length)
        assert [s[0] for s in shown] == [s.class_id for s in expected], k
        for (_, *times, score), segment in zip(shown, expected, strict=True):
            assert times == pytest.approx([segment.start, segment.end], abs=1e-8), k
            assert score == pytest.approx(segment.score, abs=6e-4)
    assert len(found[0][1]) != len(found[50][1])


@pytest.mark.parametrize("anchor", [0.0, 0.5, 1.0])
def test_the_page_knows_when_a_row_holds(chromium: Browser, tmp_path: Path, anchor: float) -> None:
    rows, jitter = 40, np.random.default_rng(0).uniform(0.05, 2, 40)
    grid = TimeGrid(np.cumsum(jitter) - 3.0, 0.7)  # the first rows are before the video
    what = scene(tmp_path / "none.mp4", rows=rows, grid=grid, anchor=anchor)
    chromium.open(page(what, tmp_path))
    assert chromium.get("[...mstemba.scores.times]") == pytest.approx(what.scores.times)
    assert chromium.get("[...mstemba.scores.bounds]") == pytest.approx(what.scores.bounds)
    bounds = what.scores.bounds
    inside = np.flatnonzero(np.diff(bounds) > 0.01)
    middles = ((bounds[:-1] + bounds[1:]) / 2)[inside].tolist()
    row_at = "arguments[0].map((time) => mstemba.scores.rowAt(time))"
    assert chromium.get(row_at, middles) == inside.tolist()
    assert chromium.get("[-1, 1e6].map((time) => mstemba.scores.rowAt(time))") == [-1, rows - 1]
    # An edge that is dragged near the edge of a row snaps to it.
    edges = bounds[inside][1:].tolist()
    snapped = chromium.get("arguments[0].map((t) => mstemba.scores.snap(t + 0.001))", edges)
    assert snapped == pytest.approx(edges)


def test_moving_the_slider_changes_the_segments(opened: Browser, kitchen: Detection) -> None:
    before = opened.items()
    for threshold in (0.3, 0.8, 0.5):
        opened.set("threshold", threshold)
        assert opened.items() == times(kitchen, threshold)
        rows = opened.get("document.querySelectorAll('#segments tr').length")
        assert rows == len(times(kitchen, threshold))
    assert opened.items() == before
    opened.set("threshold-number", 0.645)
    assert opened.items() == times(kitchen, 0.645)
    assert "0.387" in opened.text("threshold-note")
    opened.js("mstemba.bar.fillAbout()")
    assert "--threshold 0.645 --low 0.387" in opened.text("provenance")
    opened.set("threshold-number", 0.4568)  # the page's scores are thousandths
    assert opened.items() == times(kitchen, 0.457)
    assert opened.get("document.getElementById('threshold-number').value") == "0.457"
    low = opened.find("threshold")
    assert low.get_attribute("min") == "0.01"


def test_a_click_seeks(opened: Browser) -> None:
    from selenium.webdriver import ActionChains

    opened.wait("mstemba.player.video.readyState >= 2")
    box = opened.get("document.getElementById('canvas').getBoundingClientRect().toJSON()")
    duration = opened.get("mstemba.facts.duration")
    for share in (0.25, 0.75):
        x = round(box["width"] * (share - 0.5))
        ActionChains(opened.driver).move_to_element_with_offset(
            opened.find("canvas"), x, 0
        ).click().perform()
        opened.wait(f"Math.abs(mstemba.player.time - {share * duration}) < 0.02")
        opened.wait(f"Math.abs(mstemba.player.video.currentTime - {share * duration}) < 0.02")
    ActionChains(opened.driver).click_and_hold(opened.find("ruler-lane")).move_by_offset(
        -100, 0
    ).release().perform()
    expected = (0.5 - 100 / box["width"]) * duration
    opened.wait(f"Math.abs(mstemba.player.time - {expected}) < 0.02")
    opened.js("document.querySelector('#segments tr:nth-child(3)').click()")
    opened.wait(f"Math.abs(mstemba.player.time - {opened.items()[2][1]}) < 0.01")
    assert opened.get("mstemba.selected === mstemba.corrections.items[2]")


def test_the_pointer_reads_the_probability(opened: Browser, kitchen: Detection) -> None:
    from selenium.webdriver import ActionChains

    opened.wait("mstemba.player.video.readyState >= 2")
    opened.painted()
    box = opened.get("document.getElementById('canvas').getBoundingClientRect().toJSON()")
    above = -round(box["height"] / 2) + 20  # the first class
    canvas, said = opened.find("canvas"), ""
    for _ in range(20):  # a browser under load leaves out moves, and one to where it is
        pointer = ActionChains(opened.driver, duration=20)
        pointer.move_to_element_with_offset(canvas, 5, above)
        pointer.move_to_element_with_offset(canvas, 0, above).perform()
        opened.painted()
        if said := opened.text("corner"):
            break
    row = opened.get("mstemba.scores.rowAt(mstemba.timeline.timeAt(mstemba.timeline.width / 2))")
    probability = kitchen.scores.probabilities[row, opened.get("mstemba.rows[0]")]
    assert float(said.split()[-1]) == pytest.approx(probability, abs=0.006)


def test_the_playhead_follows_the_video(opened: Browser) -> None:
    opened.wait("mstemba.player.video.readyState >= 3")
    place = (
        "document.querySelector('#lane .playhead').getBoundingClientRect().left + 1"
        " - document.getElementById('lane').getBoundingClientRect().left"
    )
    opened.find("play").click()
    opened.wait("mstemba.player.video.currentTime > 0.4")
    opened.js("mstemba.view.show(4, 1)")  # the user looks elsewhere
    opened.wait("mstemba.player.video.currentTime > 0.6")
    assert opened.get("mstemba.view.from") == 4
    opened.js("mstemba.view.showAll()")
    opened.wait(f"{place} > 5")
    assert opened.text("play") == "Pause"
    opened.find("play").click()
    opened.wait("mstemba.player.video.paused")
    expected = "mstemba.player.video.currentTime / mstemba.facts.duration * mstemba.timeline.width"
    opened.wait(f"Math.abs({place} - {expected}) < 1")
    opened.wait("document.getElementById('play').textContent === 'Play'")  # after the event


def test_what_lasts_now_is_marked_and_the_view_goes_along(
    chromium: Browser, tmp_path: Path
) -> None:
    names = [f"class {i}" for i in range(40)]
    what = scene(tmp_path / "gone.mp4", names, rows=90, truth=False)
    chromium.open(page(what, tmp_path))
    item = max(what.segments, key=lambda s: s.class_id)
    chromium.js("mstemba.view.show(0, 2); mstemba.seek(arguments[0])", item.start + 0.01)
    assert chromium.get("mstemba.view.from") == 0  # a click elsewhere moves no view
    lasting = {s.label for s in what.segments if s.start <= item.start + 0.01 < s.end}
    assert set(chromium.texts("#segments tr.now button")) == lasting
    row = what.segments.index(item)
    chromium.js("document.querySelectorAll('#segments tr')[arguments[0]].click()", row)
    shown = chromium.get("[mstemba.view.from, mstemba.view.to]")
    assert shown[0] <= item.start
    assert shown[1] >= item.end
    assert chromium.get(
        "(() => { const { timeline } = mstemba, y = mstemba.rows.indexOf(arguments[0])"
        " * timeline.rowHeight - timeline.scroller.scrollTop;"
        "return y >= 0 && y + timeline.rowHeight <= timeline.scroller.clientHeight; })()",
        item.class_id,
    )
    # Without a video its clock goes on from where it is sent, and the view with it.
    chromium.js("mstemba.view.show(10, 1); mstemba.seek(10.5)")
    chromium.press(SPACE)
    chromium.wait("mstemba.player.time > 10.8")
    assert 10.6 <= chromium.js("mstemba.seek(10.6); return mstemba.player.time") < 10.7
    chromium.wait("mstemba.player.time > 11.2")
    assert chromium.get("mstemba.view.contains(mstemba.player.time)")
    chromium.press(SPACE)


def test_of_segments_on_top_of_each_other_the_selected_one_is_taken(
    chromium: Browser, tmp_path: Path
) -> None:
    values = np.full((40, 1), 0.1, np.float32)
    values[4:36] = 0.9
    chromium.open(page(scene(tmp_path / "gone.mp4", "a", probabilities=values), tmp_path))
    chromium.js("mstemba.add({classId: 0, start: 10, end: 12}); mstemba.select(null)")
    inside = "mstemba.timeline.locate(mstemba.timeline.x(11), 8).item"
    assert chromium.get(f"{inside}.start") == 10  # the shorter one
    chromium.js("mstemba.select(mstemba.corrections.items[0])")
    assert chromium.get(f"{inside} === mstemba.selected")
    assert chromium.get(f"{inside}.start") < 10


def test_the_timeline_follows_the_system_from_light_to_dark(opened: Browser) -> None:
    light = opened.get("mstemba.timeline.colours.background")
    opened.dark(True)
    try:
        opened.wait(f"mstemba.timeline.colours.background !== {light!r}")
    finally:
        opened.dark(False)
    opened.wait(f"mstemba.timeline.colours.background === {light!r}")


def test_keys(opened: Browser) -> None:
    opened.wait("mstemba.player.video.readyState >= 2")
    items = opened.items()
    opened.press("]")
    assert opened.get("mstemba.corrections.items.indexOf(mstemba.selected)") >= 0
    first = opened.get("mstemba.corrections.items.indexOf(mstemba.selected)")
    opened.press("]")
    assert opened.get("mstemba.corrections.items.indexOf(mstemba.selected)") == first + 1
    opened.wait(f"Math.abs(mstemba.player.time - {items[first + 1][1]}) < 0.01")
    opened.press("[")
    assert opened.get("mstemba.corrections.items.indexOf(mstemba.selected)") == first
    opened.js("mstemba.seek(3)")
    opened.press(LEFT)
    opened.wait("Math.abs(mstemba.player.time - 2) < 0.01")
    opened.press(".")
    opened.wait("Math.abs(mstemba.player.time - 2.003) < 0.01")
    opened.press("+")
    assert opened.get("mstemba.view.span") == pytest.approx(opened.get("mstemba.view.duration") / 2)
    opened.press("0")
    assert opened.get("mstemba.view.span") == opened.get("mstemba.view.duration")
    opened.press(SPACE)
    opened.wait("mstemba.player.playing")
    opened.press(SPACE)
    opened.wait("!mstemba.player.playing")
    for button in ("#segments button", "#zoom-out"):  # Space is for the video after a click
        opened.driver.find_element("css selector", button).click()
        opened.press(SPACE)
        opened.wait("mstemba.player.playing")
        opened.press(SPACE)
        opened.wait("!mstemba.player.playing")
    opened.js("document.getElementById('threshold').focus()")
    opened.press(SPACE)
    opened.wait("mstemba.player.playing")
    opened.press(SPACE)
    opened.press("?")
    assert opened.get("document.getElementById('help').open")
    opened.press(ESCAPE)
    assert not opened.get("document.getElementById('help').open")
    opened.press("/")
    assert opened.get("document.activeElement.id") == "search"
    opened.press("0", "n", ".")
    assert opened.get("document.getElementById('search').value") == "0n."
    assert opened.items() == items


def test_a_video_stands_where_it_was_sent(opened: Browser) -> None:
    opened.wait("mstemba.player.video.readyState >= 2")
    # Firefox rounds to 2 ms: 2.003 s become 2.002, which is in the row before.
    opened.js(
        "const own = Object.getOwnPropertyDescriptor(HTMLMediaElement.prototype, 'currentTime');"
        "Object.defineProperty(mstemba.player.video, 'currentTime', {set: own.set,"
        "get() { return Math.floor(own.get.call(this) * 500) / 500; }})"
    )
    opened.js("mstemba.seek(2)")
    for row in (20, 21, 22):
        opened.press(".")
        assert opened.get("mstemba.player.time") == opened.get(f"mstemba.scores.starts[{row}]")


def test_the_search_filters_rows_and_segments(opened: Browser) -> None:
    opened.set("search", "WA")
    names = opened.texts("#labels button")
    assert names == ["pour water", "walk", "wash hands"]
    listed = opened.texts("#segments button")
    assert set(listed) <= set(names)
    assert listed
    opened.set("search", "sit")
    assert opened.text("summary").startswith(f"{len(opened.texts('#segments tr'))} of ")
    opened.set("search", "no such class")
    assert opened.get("document.querySelectorAll('#labels button').length") == 0
    before = opened.items()
    opened.js("document.activeElement.blur()")
    opened.press("n")
    assert opened.items() == before
    assert "No class matches" in opened.text("editor-problem")
    opened.press("/")
    opened.press("x", ESCAPE)
    assert opened.get("document.getElementById('search').value") == ""
    assert len(opened.texts("#labels button")) == 14
    opened.set("search", "")
    opened.set("order", "name")
    names = opened.texts("#labels button")
    assert names == sorted(names)
    opened.set("order", "time")
    lengths = opened.get(
        "mstemba.rows.map((id) => mstemba.itemsByClass.get(id) || mstemba.truthByClass.get(id))"
        ".map((list) => (list || []).reduce((sum, s) => sum + s.end - s.start, 0))"
    )
    assert lengths == sorted(lengths, reverse=True)


def test_zoom_and_pan(opened: Browser) -> None:
    opened.js("mstemba.seek(1.5)")
    opened.find("zoom-in").click()
    at_playhead = "mstemba.timeline.x(1.5) / mstemba.timeline.width"
    assert opened.get(at_playhead) == pytest.approx(1.5 / opened.get("mstemba.view.duration"))
    opened.js(
        "document.getElementById('canvas').dispatchEvent(new WheelEvent('wheel',"
        "{ctrlKey: true, deltaY: -100, clientX: 700, bubbles: true, cancelable: true}))"
    )
    assert opened.get("mstemba.view.span") < opened.get("mstemba.view.duration") / 2
    before = opened.get("mstemba.view.from")
    opened.js(
        "document.getElementById('canvas').dispatchEvent(new WheelEvent('wheel',"
        "{deltaX: 60, clientX: 700, bubbles: true, cancelable: true}))"
    )
    assert opened.get("mstemba.view.from") > before
    sides = "((id) => { const b = document.getElementById(id).getBoundingClientRect();"
    sides += "return [b.left, b.right]; })"
    assert opened.get(f"{sides}('overview')") == pytest.approx(opened.get(f"{sides}('ruler')"))
    opened.find("overview").click()
    middle = opened.get("(mstemba.view.from + mstemba.view.to) / 2")
    assert middle == pytest.approx(opened.get("mstemba.view.duration") / 2, abs=0.05)
    opened.find("zoom-all").click()
    assert opened.get("[mstemba.view.from, mstemba.view.to]") == [
        0,
        opened.get("mstemba.view.duration"),
    ]


def test_names_are_shown_and_not_executed(chromium: Browser, tmp_path: Path) -> None:
    name = "<img src=x onerror=window.__pwned=4> 'a' &amp; \u202erot"
    video = film(tmp_path / "videos" / f"{name}.mp4", seconds=0.5)
    values = np.full((20, len(ODD_CLASSES)), 0.9, np.float32)
    what = scene(video, ODD_CLASSES, probabilities=values, id="</script><script>window.__pwned=5")
    chromium.open(page(what, tmp_path, "=odd '\"<b>.html"))
    chromium.wait("mstemba.player.video.readyState >= 2")
    assert chromium.text("title") == f"{name}.mp4"
    listed = chromium.texts("#segments button")
    visible = {"two\nlines": "two⏎lines", "caf\udce9": "caf\\xe9", "": "“”"}
    assert sorted(listed) == sorted(visible.get(name, name) for name in ODD_CLASSES)
    labels = chromium.get("[...document.querySelectorAll('#labels button')].map(b => b.title)")
    assert sorted(labels) == sorted(listed)
    chromium.js("mstemba.goTo(mstemba.corrections.items[0])")
    chromium.find("about-button").click()
    assert str(video) in chromium.text("provenance")
    assert chromium.get("window.__pwned") is None
    assert chromium.get("document.querySelectorAll('img, iframe, body script').length") <= 2
    assert chromium.complaints() == []
    assert all(url.startswith(("file:", "data:", "blob:")) for url in chromium.requests())


def test_a_missing_video_leaves_the_timeline(chromium: Browser, tmp_path: Path) -> None:
    name = "gone\u202e\u2069.mp4"
    chromium.open(page(scene(tmp_path / name, rows=60), tmp_path))
    assert f"“{name}” was not found" in chromium.text("no-video-reason")
    isolated = chromium.texts("#no-video-reason bdi")  # what follows is read from left to right
    assert isolated == [name, str(tmp_path / name)]
    assert chromium.find("no-video").is_displayed()
    assert not chromium.find("video").is_displayed()
    chromium.press(SPACE)
    chromium.wait("mstemba.player.time > 0.1")
    chromium.press(SPACE)
    assert not chromium.get("mstemba.player.playing")
    assert chromium.complaints() == []
    odd = film(tmp_path / "elsewhere" / "it's.avi", seconds=1)
    chromium.find("file").send_keys(str(odd))
    chromium.wait("!document.getElementById('no-video').hidden && !mstemba.player.usesVideo")
    assert "“it's.avi” cannot be played here" in chromium.text("no-video-reason")
    assert "-c:a aac 'file:it'\"'\"'s.playable.mp4'" in chromium.text("no-video-command")
    chosen = film(tmp_path / "elsewhere" / "copy.mp4", seconds=38)
    chromium.js("mstemba.seek(2)")
    chromium.find("file").send_keys(str(chosen))
    chromium.wait("mstemba.player.usesVideo && mstemba.player.video.readyState >= 2")
    chromium.wait("Math.abs(mstemba.player.video.currentTime - 2) < 0.1")
    assert chromium.find("video").is_displayed()


def test_a_chosen_video_gives_way_to_another(chromium: Browser, tmp_path: Path) -> None:
    long = np.full((5, 14), 0.2, np.float32)  # 2.9 s
    chromium.open(page(scene(tmp_path / "gone.mp4", probabilities=long), tmp_path))
    assert not chromium.find("choose-again").is_displayed()
    for name, height in (("wrong.mp4", 128), ("right.mp4", 192)):
        chosen = film(tmp_path / "elsewhere" / name, seconds=3, size=height)
        chromium.find("file").send_keys(str(chosen))
        chromium.wait(f"mstemba.player.video.videoHeight === {height}")
        assert chromium.find("choose-again").is_displayed()
    chromium.js("document.getElementById('file').addEventListener('click', (event) => {"
                "  window.asked = true; event.preventDefault(); })")  # fmt: skip
    chromium.find("choose-again").click()
    assert chromium.get("window.asked")
    odd = film(tmp_path / "elsewhere" / "odd.avi", seconds=3)
    chromium.find("file").send_keys(str(odd))
    chromium.wait("!document.getElementById('no-video').hidden")
    assert not chromium.find("choose-again").is_displayed()
    assert chromium.complaints() == []


def with_sound(path: Path, codec: str, seconds: int = 3) -> Path:
    """A film of noise in this codec, with a tone."""
    random = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        video = container.add_stream(codec, rate=10)
        video.width, video.height, video.pix_fmt = 128, 96, "yuv420p"
        sound = container.add_stream("aac", rate=48000)
        tone = np.sin(np.arange(48000 * seconds) / 20).astype(np.float32)[None]
        heard = av.AudioFrame.from_ndarray(tone, format="fltp", layout="mono")
        heard.sample_rate = 48000
        container.mux(sound.encode(heard))
        container.mux(sound.encode())
        for _ in range(10 * seconds):
            image = random.integers(0, 255, (96, 128, 3), np.uint8)
            container.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(video.encode())
    return path


def test_sound_alone_is_not_taken_for_the_video(chromium: Browser, tmp_path: Path) -> None:
    video = with_sound(tmp_path / "old.mp4", "mpeg4")
    chromium.open(page(scene(video, rows=60), tmp_path))
    chromium.wait("!document.getElementById('no-video').hidden && !mstemba.player.usesVideo")
    assert "cannot be played here" in chromium.text("no-video-reason")
    assert chromium.get("mstemba.player.video.paused")


def test_a_picture_may_come_after_the_sound(chromium: Browser, tmp_path: Path) -> None:
    both = with_sound(tmp_path / "new.mp4", "libx264")
    scores = np.full((5, 14), 0.2, np.float32)  # 2.9 s
    chromium.open(page(scene(tmp_path / "gone.mp4", probabilities=scores), tmp_path))
    chromium.js(
        "const own = Object.getOwnPropertyDescriptor(HTMLVideoElement.prototype, 'videoWidth');"
        "mstemba.player.video.addEventListener('loadeddata', () => setTimeout("
        "  () => { window.late = true; }, 300), { once: true });"
        "Object.defineProperty(mstemba.player.video, 'videoWidth', { configurable: true,"
        "  get() { return window.late ? own.get.call(this) : 0; } })"
    )
    chromium.find("file").send_keys(str(both))
    chromium.wait("window.late")
    time.sleep(1)  # longer than the page waits for a picture
    assert chromium.get("mstemba.player.usesVideo")
    assert not chromium.find("no-video").is_displayed()


def test_a_video_of_another_length_is_not_taken_for_this_one(
    chromium: Browser, tmp_path: Path
) -> None:
    chromium.open(page(scene(tmp_path / "gone.mp4", rows=90), tmp_path))  # 57.3 s
    chromium.find("file").send_keys(str(film(tmp_path / "short.mp4", seconds=2)))
    chromium.wait("document.getElementById('no-video-reason').textContent.includes('lasts 0:02')")
    assert "this page is of a video of 0:57.3" in chromium.text("no-video-reason")
    assert not chromium.get("mstemba.player.usesVideo")
    assert not chromium.find("no-video-command").is_displayed()
    assert chromium.find("file").is_displayed()


def test_a_video_that_no_browser_plays_says_how_to_copy_it(
    chromium: Browser, tmp_path: Path
) -> None:
    video = film(tmp_path / "concat:it's odd.avi", seconds=1)
    chromium.open(page(scene(video, rows=60), tmp_path))
    chromium.wait("!document.getElementById('no-video').hidden")
    assert "cannot be played here" in chromium.text("no-video-reason")
    assert "ffmpeg -i 'file:concat:it'\"'\"'s odd.avi' -c:v" in chromium.text("no-video-command")
    chromium.js("mstemba.seek(10)")
    assert chromium.get("mstemba.player.time") == 10


def test_an_embedded_video_plays_from_the_page_alone(
    chromium: Browser, kitchen: Detection, tmp_path: Path
) -> None:
    options = replace(kitchen.options, embed=True)
    chromium.open(page(replace(kitchen, options=options), tmp_path))
    chromium.wait("mstemba.player.video.readyState >= 2")
    chromium.js("mstemba.seek(4)")
    chromium.wait("Math.abs(mstemba.player.video.currentTime - 4) < 0.01")
    assert {url for url in chromium.requests() if url.startswith("file:")} == {
        (tmp_path / "page.html").resolve().as_uri()
    }
    assert chromium.complaints() == []


def test_nothing_detected_says_so(chromium: Browser, tmp_path: Path) -> None:
    nothing = np.full((30, 3), 0.2, np.float32)
    chromium.open(page(scene(tmp_path / "v.mp4", "abc", probabilities=nothing), tmp_path))
    assert "No segments at this threshold" in chromium.text("none")
    assert "lower it" in chromium.text("none")
    chromium.set("threshold", 0.15)
    assert len(chromium.items()) == 3
    assert chromium.complaints() == []


@pytest.mark.slow
def test_without_decompression_the_page_says_what_it_lacks(
    chromium: Browser, kitchen: Detection, folder: Path
) -> None:
    script = {"source": "delete window.DecompressionStream"}
    added = chromium.driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", script)
    try:
        chromium.driver.get(page(kitchen, folder).as_uri())
        chromium.wait("document.getElementById('notices').textContent")
        assert "too old" in chromium.text("notices")
        assert chromium.complaints() == []
    finally:
        chromium.driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)


@pytest.mark.slow
def test_the_page_fits_a_phone(opened: Browser) -> None:
    opened.metrics(375, 740)
    opened.painted()
    assert opened.get("document.documentElement.scrollWidth") <= 375
    opened.metrics(1280, 500)  # too low for all at once: the page scrolls
    opened.painted()
    assert opened.get("document.getElementById('scroller').clientHeight") > 150
    opened.metrics(1280, 800)
    opened.painted()
    assert opened.get("document.documentElement.scrollHeight") <= 800


# Of text, and of what only has to be seen: WCAG 2, 1.4.6, 1.4.3 and 1.4.11.
LEAST_CONTRAST = {"text": 7, "quiet": 4.5, "detected": 3, "labelled": 3, "corrected": 3}


def luminance(colour: str) -> float:
    """Relative luminance of `rgb(r, g, b)`, after WCAG 2."""
    parts = [float(c) / 255 for c in colour[4:-1].split(",")]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.slow
def test_colours_contrast_in_light_and_dark(opened: Browser) -> None:
    seen = set()
    for _ in range(2):
        opened.find("theme").click()
        colours = opened.get("mstemba.timeline.colours")
        seen.add(colours["background"])
        for name, least in LEAST_CONTRAST.items():
            light, dark = sorted(
                (luminance(colours[name]), luminance(colours["background"])), reverse=True
            )
            assert (light + 0.05) / (dark + 0.05) >= least, (name, colours)
    assert len(seen) == 2


@pytest.mark.slow
def test_everything_that_can_be_pressed_has_a_name(opened: Browser) -> None:
    nameless = opened.get(
        "[...document.querySelectorAll('button, input, select, [role=slider], [role=img]')]"
        ".filter((e) => !(e.textContent.trim() || e.ariaLabel || e.labels?.length))"
        ".map((e) => e.outerHTML)"
    )
    assert nameless == []


@pytest.mark.slow
def test_a_long_table_is_shown_in_parts(chromium: Browser, tmp_path: Path) -> None:
    values = np.zeros((600, 1), np.float32)
    values[::2] = 0.9
    chromium.open(page(scene(tmp_path / "v.mp4", "a", probabilities=values), tmp_path))
    assert len(chromium.items()) == 300
    assert chromium.text("page-range") == "1 to 100 of 300"
    chromium.find("later").click()
    assert len(chromium.texts("#segments tr")) == 100
    assert chromium.text("page-range") == "101 to 200 of 300"
    chromium.js("mstemba.goTo(mstemba.corrections.items[250])")
    assert chromium.text("page-range") == "201 to 300 of 300"
    assert not chromium.find("later").is_enabled()
    box = chromium.get(
        "['list', 'segments'].map((id) => document.getElementById(id)).map((e, i) => "
        "(i ? e.querySelector('.selected') : e).getBoundingClientRect().toJSON())"
    )
    assert box[0]["top"] <= box[1]["top"] <= box[1]["bottom"] <= box[0]["bottom"] + 1
    chromium.set("threshold", 0.95)
    assert chromium.texts("#segments tr") == []


@pytest.mark.slow
def test_the_slider_is_quick_with_very_many_classes(chromium: Browser, tmp_path: Path) -> None:
    chromium.open(page(long_scene(tmp_path / "v.mp4"), tmp_path))
    assert len(chromium.items()) > 3000
    medians = []
    for _ in range(3):  # other work on the machine is not the page's
        seconds = chromium.slider_seconds([0.05, 0.5, 0.3, 0.7, 0.2, 0.9, 0.4, 0.1, 0.6, 0.8])
        print(f"\nslider: {', '.join(f'{1000 * s:.0f}' for s in seconds)} ms")
        medians.append(statistics.median(seconds))
    assert min(medians) < 0.1
    assert chromium.complaints() == []


# Pictures for the documentation


# Loaded, and where it was sent.
AT_REST = "mstemba.player.video.readyState === 4 && !mstemba.player.video.seeking"
# The browser's own buttons over the picture have a wheel that turns for seconds after a seek.
NO_BUTTONS = "mstemba.player.video.controls = false"
SHOTS = Path(__file__).parents[4] / "docs" / "images"


@pytest.mark.slow
def test_pictures_of_the_page(chromium: Browser, tmp_path: Path) -> None:
    keep = bool(os.environ.get("MSTEMBA_SCREENSHOTS"))
    shots = SHOTS if keep else tmp_path
    video = film(tmp_path / "videos" / "kitchen monday.mp4", seconds=57, size=360)
    what = scene(video)
    chromium.open(page(what, tmp_path), size=(1280, 800))
    chromium.js(f"{NO_BUTTONS}; mstemba.goTo(mstemba.corrections.items[3])")
    chromium.wait(AT_REST)
    for name, dark in (("light", False), ("dark", True)):
        chromium.dark(dark)
        chromium.painted()
        chromium.driver.save_screenshot(str(shots / f"page-{name}.png"))
    chromium.dark(False)
    chromium.js(
        "const [a, b] = mstemba.corrections.items.slice(4); mstemba.change(a, {end: a.end + 3})"
    )
    chromium.js("mstemba.seek(40); mstemba.markClass(9); mstemba.addHere()")
    chromium.wait(AT_REST)
    chromium.painted()
    chromium.driver.save_screenshot(str(shots / "page-edit.png"))
    for name in ("light", "dark", "edit"):
        size = (shots / f"page-{name}.png").stat().st_size
        assert 20_000 < size < 300_000
    shutil.rmtree(tmp_path / "videos")
