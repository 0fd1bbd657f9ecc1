"""Correcting what the page shows, and reading the download by the real `mstemba init`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mstemba.data_manifests.annotations import read_annotations
from mstemba.data_manifests.manifest import Action, load_manifest
from mstemba.pipeline.outputs import Detection
from mstemba.records import Segment, TimeGrid
from tests.command_line import mstemba
from tests.pipeline.outputs.page.conftest import Browser
from tests.pipeline.outputs.page.scenes import ODD_CLASSES, film, labelled, page, scene

SHIFT, ALT, CONTROL, DELETE, ESCAPE = "\ue008", "\ue00a", "\ue009", "\ue017", "\ue00c"
ENTER, UP, DOWN, SPACE = "\ue007", "\ue013", "\ue015", " "


@pytest.fixture(scope="module")
def plain() -> Detection:
    """Three classes in rows of 0.5 s; one is from 4 to 8 s, another from 10 to 14 s."""
    # As far below 0.5 as the actions are above it: edges lie halfway between two rows.
    values = np.full((40, 3), [0.0995, 0.1995, 0.0995], np.float32)
    values[8:16, 0] = 0.9
    values[20:28, 1] = 0.8
    grid, video = TimeGrid.even(0.0, 0.5, 40), Path("nowhere/v.mp4")
    return scene(video, ["walk", "sit", "read"], probabilities=values, grid=grid, anchor=0.5)


@pytest.fixture
def opened(chromium: Browser, plain: Detection, tmp_path: Path) -> Browser:
    """Its page, fresh; the video lasts 19.7 s."""
    chromium.open(page(plain, tmp_path))
    assert chromium.items() == [(0, 4.0, 8.0), (1, 10.0, 14.0)]
    return chromium


def drag(browser: Browser, row: int, start: float, end: float, key: str = "") -> None:
    """Drag in a class's row from one time to another, with a key held down."""
    from selenium.webdriver import ActionChains

    box = browser.get("document.getElementById('canvas').getBoundingClientRect().toJSON()")
    y = round(row * browser.get("mstemba.timeline.rowHeight") + 8 - box["height"] / 2)
    x0, x1 = (
        round(min(x, box["width"] + 5) - box["width"] / 2)
        for x in browser.get("arguments[0].map((t) => mstemba.timeline.x(t))", [start, end])
    )
    chain = ActionChains(browser.driver, duration=20)
    if key:
        chain.key_down(key)
    canvas = browser.find("canvas")
    chain.move_to_element_with_offset(canvas, x0, y).click_and_hold()
    chain.move_to_element_with_offset(canvas, (x0 + x1) // 2, y)
    chain.move_to_element_with_offset(canvas, x1, y).release()
    if key:
        chain.key_up(key)
    chain.perform()
    browser.painted()


def test_dragging_an_edge_moves_it_to_a_row(opened: Browser) -> None:
    drag(opened, 0, 8.0, 9.1)
    assert opened.items() == [(0, 4.0, 9.0), (1, 10.0, 14.0)]
    drag(opened, 0, 4.0, 2.3)
    assert opened.items()[0] == (0, 2.5, 9.0)
    drag(opened, 1, 14.0, 16.26, ALT)
    assert opened.items()[1] == (1, 10.0, pytest.approx(16.26, abs=0.03))
    assert opened.items()[1][2] % 0.5 > 0.1
    drag(opened, 0, 9.0, 1.0)  # across the other edge: one row is left
    assert opened.items()[0] == (0, 2.5, 3.0)
    drag(opened, 0, 2.5, 9.0)
    assert opened.items()[0] == (0, 2.5, 3.0)
    drag(opened, 0, 3.0, 30.0)
    assert opened.items()[0] == (0, 2.5, pytest.approx(19.7))
    assert opened.complaints() == []


def test_a_drag_ends_where_the_button_is_let_go(opened: Browser) -> None:
    opened.js("mstemba.timeline.canvas.setPointerCapture = () => {}")
    for kind, time in (("pointerdown", 8.0), ("pointerup", 9.0)):  # no move between
        opened.js(
            "const [kind, time] = arguments, canvas = mstemba.timeline.canvas;"
            "const box = canvas.getBoundingClientRect();"
            "canvas.dispatchEvent(new PointerEvent(kind, { pointerId: 9, pointerType: 'mouse',"
            "  clientX: box.left + mstemba.timeline.x(time), clientY: box.top + 8 }))",
            kind,
            time,
        )
    assert opened.items()[0] == (0, 4.0, 9.0)


def test_the_selected_segment_moves_and_others_do_not(opened: Browser) -> None:
    drag(opened, 0, 6.0, 8.0)
    assert opened.items()[0] == (0, 4.0, 8.0)  # not selected: the playhead was dragged
    assert opened.get("mstemba.player.time") == pytest.approx(8.0, abs=0.05)
    drag(opened, 0, 6.0, 8.1)
    assert opened.items()[0] == (0, 6.0, 10.0)
    drag(opened, 0, 7.0, 100.0)
    assert opened.items() == [(1, 10.0, 14.0), (0, pytest.approx(15.7), 19.7)]


def test_shift_adds_on_an_empty_stretch_only(opened: Browser) -> None:
    drag(opened, 2, 3.1, 6.9, SHIFT)
    assert opened.items() == [(2, 3.0, 7.0), (0, 4.0, 8.0), (1, 10.0, 14.0)]
    drag(opened, 1, 11.0, 13.0, SHIFT)
    assert len(opened.items()) == 3
    opened.js("mstemba.seek(16); mstemba.markClass(2)")
    opened.press("n")
    assert opened.items()[-1] == (2, 16.0, 17.0)
    assert opened.get("mstemba.selected === mstemba.corrections.items.at(-1)")


def test_delete_undo_and_redo(opened: Browser) -> None:
    before = opened.items()
    opened.js("mstemba.goTo(mstemba.corrections.items[0])")
    opened.press(DELETE)
    assert opened.items() == before[1:]
    assert opened.find("undo").is_enabled()
    opened.press(CONTROL, "z")
    assert opened.items() == before
    opened.find("redo").click()
    assert opened.items() == before[1:]
    opened.find("undo").click()
    drag(opened, 0, 8.0, 9.0)
    assert not opened.find("redo").is_enabled()
    opened.press(CONTROL, "z")
    assert opened.items() == before
    assert opened.get("mstemba.corrections.count") == 0


def test_numbers_and_classes_are_typed_in_the_form(opened: Browser) -> None:
    assert not opened.find("edit-start").is_enabled()
    opened.js("mstemba.goTo(mstemba.corrections.items[0])")
    opened.set("edit-start", 3.21)
    opened.set("edit-end", 7.654)
    assert opened.items()[0] == (0, 3.21, 7.654)
    for field, value, says in (
        ("edit-start", 9, "must be before the end"),
        ("edit-end", 19.8, "lasts from 0 to 19.7"),
        ("edit-start", -1, "lasts from 0"),
        ("edit-end", "", "must be numbers"),
    ):
        opened.set(field, value)
        assert says in opened.text("editor-problem")
        assert opened.items()[0] == (0, 3.21, 7.654)
    opened.set("edit-class", 2)
    assert opened.items()[0] == (2, 3.21, 7.654)
    opened.set("edit-class", "new")
    assert opened.find("edit-new-class").is_displayed()
    opened.set("edit-new-class", "  ")
    assert "name" in opened.text("editor-problem")
    opened.set("edit-new-class", " jump <b> ")
    assert opened.items()[0] == (3, 3.21, 7.654)
    assert "jump <b>" in opened.texts("#labels button")
    opened.set("edit-class", "new")
    opened.set("edit-new-class", "sit")  # there is one already
    assert opened.items()[0] == (1, 3.21, 7.654)


def type_start(browser: Browser, item: int, text: str) -> None:
    """Select a segment and type its start, without leaving the field."""
    browser.js(
        "mstemba.goTo(mstemba.corrections.items[arguments[0]]);"
        "document.getElementById('edit-start').select()",
        item,
    )
    browser.press(text)
    assert browser.get("document.activeElement.value") == text


def test_what_is_typed_belongs_to_the_segment_of_the_form(opened: Browser) -> None:
    type_start(opened, 0, "4.5")
    drag(opened, 1, 12, 12)  # a click on the other one
    assert opened.items() == [(0, 4.5, 8.0), (1, 10.0, 14.0)]
    assert opened.get("mstemba.corrections.items.map((s) => Boolean(s.corrected))") == [True, False]
    assert opened.get("mstemba.selected.classId") == 1
    type_start(opened, 0, "5")
    opened.js("window.row = document.querySelectorAll('#segments tr')[1]")
    opened.driver.find_elements("css selector", "#segments tr td:nth-child(3)")[1].click()
    assert opened.get("mstemba.selected.classId") == 1
    assert opened.get("window.row.isConnected")
    assert opened.items()[0] == (0, 5.0, 8.0)
    type_start(opened, 0, "6")
    opened.press(ESCAPE)
    assert opened.items()[0] == (0, 5.0, 8.0)
    assert opened.get("document.getElementById('edit-start').value") == "5"
    assert opened.get("document.activeElement === document.body")


def test_classes_chosen_one_after_another_are_one_step_and_undone(opened: Browser) -> None:
    opened.js("mstemba.goTo(mstemba.corrections.items[0])")
    opened.js("document.getElementById('edit-class').focus()")
    opened.press(DOWN)
    opened.press(DOWN)
    assert opened.items()[0] == (2, 4.0, 8.0)
    assert opened.get("mstemba.corrections.count") == 1
    opened.press(CONTROL, "z")  # with the focus in the list of classes
    assert opened.items()[0] == (0, 4.0, 8.0)
    opened.js("mstemba.goTo(mstemba.corrections.items[0])")
    opened.set("edit-class", "new")
    opened.press("jump", ENTER)
    assert opened.get("mstemba.corrections.classes") == ["walk", "sit", "read", "jump"]
    assert opened.get("document.activeElement.id") == "edit-class"
    opened.js("mstemba.undo()")
    assert opened.get("mstemba.corrections.classes") == ["walk", "sit", "read"]
    assert "jump" not in opened.texts("#labels button")
    opened.js("mstemba.redo()")
    assert opened.get("mstemba.corrections.classes.at(-1)") == "jump"
    opened.js("mstemba.undo()")
    assert opened.find("redo").is_enabled()
    opened.set("threshold", 0.85)  # other segments: there is nothing to redo on them
    assert not opened.find("redo").is_enabled()


def test_a_class_chosen_by_mistake_leaves_nothing_behind(opened: Browser) -> None:
    opened.js("mstemba.goTo(mstemba.corrections.items[0])")
    for name in ("jmup", "jump"):
        opened.set("edit-class", "new")
        opened.set("edit-new-class", name)
    assert opened.get("mstemba.corrections.classes") == ["walk", "sit", "read", "jump"]
    assert opened.get("mstemba.corrections.count") == 1
    opened.set("edit-class", 2)
    assert opened.get("mstemba.corrections.classes") == ["walk", "sit", "read"]
    opened.set("edit-class", 0)  # what it was
    assert opened.get("mstemba.corrections.count") == 0
    assert opened.find("threshold").is_enabled()
    assert opened.get("mstemba.corrections.items.map((s) => Boolean(s.corrected))") == [False] * 2


def test_both_times_are_typed_one_after_the_other(opened: Browser) -> None:
    opened.js("mstemba.goTo(mstemba.corrections.items[0])")
    opened.set("edit-start", 10)
    assert "must be before the end" in opened.text("editor-problem")
    opened.set("edit-end", 14)
    assert opened.items()[0] == (0, 10.0, 14.0)
    assert opened.text("editor-problem") == ""
    assert opened.get("mstemba.corrections.count") == 1


def test_undo_shows_what_it_brings_back(opened: Browser) -> None:
    opened.js("mstemba.goTo(mstemba.corrections.items[0])")
    opened.press(DELETE)
    opened.js("mstemba.view.show(15, 2)")
    opened.press(CONTROL, "z")
    assert opened.get("mstemba.selected.start") == 4
    assert opened.get("mstemba.view.from <= 4 && mstemba.view.to >= 8")


def test_an_edge_shorter_than_a_row_moves_with_the_pointer(opened: Browser) -> None:
    opened.js("mstemba.goTo(mstemba.corrections.items[0])")
    opened.set("edit-end", 4.2)
    opened.js("mstemba.view.show(3, 2)")
    drag(opened, 0, 4.0, 4.1, ALT)
    assert opened.items()[0] == (0, pytest.approx(4.1, abs=0.01), 4.2)
    drag(opened, 0, 4.2, 4.15, ALT)
    start, end = opened.items()[0][1:]
    assert end == pytest.approx(4.15, abs=0.01)
    drag(opened, 0, start, 4.9)  # snaps, and does not cross
    assert opened.items()[0] == (0, start, end)
    drag(opened, 0, end, 4.6)
    assert opened.items()[0] == (0, start, 4.5)


@pytest.fixture
def longer(chromium: Browser, plain: Detection, tmp_path: Path) -> Browser:
    """The page of a video that goes on for 40 s after its scores, and has labels past its end."""
    labels = [Segment(-2.0, 3.0, 2, "read", 1.0), Segment(50.0, 70.0, 0, "walk", 1.0)]
    labels.append(Segment(61.0, 62.0, 1, "sit", 1.0))
    scores = replace(plain.scores, duration=60.0)
    chromium.open(page(labelled(replace(plain, scores=scores), labels), tmp_path))
    return chromium


def test_segments_are_added_and_moved_where_there_are_no_scores(longer: Browser) -> None:
    longer.js("mstemba.seek(30); mstemba.markClass(2)")
    longer.press("n")
    assert longer.items()[-1] == (2, 30.0, 32.0)
    drag(longer, 0, 8.0, 40.0)
    assert longer.items()[0] == (0, 4.0, pytest.approx(40, abs=0.1))
    drag(longer, 1, 45.0, 50.0, SHIFT)
    assert longer.items()[-1] == (1, pytest.approx(45, abs=0.1), pytest.approx(50, abs=0.1))


def test_labels_outside_the_video_are_drawn_at_its_ends(longer: Browser) -> None:
    longer.set("base", "labels")
    assert longer.items() == [(2, -2.0, 3.0), (0, 50.0, 70.0), (1, 61.0, 62.0)]
    # In the overview a class's bars stay in its own line.
    orange, width = longer.get(
        "(() => { mstemba.timeline.paint(); const c = document.getElementById('overview');"
        "const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data, found = [];"
        "const [r, g, b] = mstemba.timeline.colours.labelled.match(/[0-9]+/g).map(Number);"
        "for (let i = 0; i < d.length; i += 4) if (d[i] === r && d[i + 1] === g && d[i + 2] === b)"
        "  found.push([(i / 4) % c.width, Math.floor(i / 4 / c.width) / c.height]);"
        "return [found, c.width]; })()"
    )
    assert len(orange) > 100
    for x, y in orange:
        row, time = int(3 * y + 0.15), x / width * 60
        assert (row == 2 and time < 3.2) or time > (49.8, 59.5)[row], (x, y)


def test_a_relabelled_segment_stays_in_a_search(opened: Browser) -> None:
    opened.set("search", "walk")
    opened.js("mstemba.goTo(mstemba.corrections.items[0])")
    opened.set("edit-class", 2)
    assert opened.texts("#labels button") == ["walk", "read"]
    assert opened.texts("#segments tr.selected button") == ["read"]


def test_undo_while_dragging_ends_the_drag(opened: Browser) -> None:
    from selenium.webdriver import ActionChains

    drag(opened, 0, 8.0, 9.0)
    place = "document.getElementById('canvas').getBoundingClientRect()"
    x, y = opened.get(f"[{place}.left + mstemba.timeline.x(9), {place}.top + 8]")
    chain = ActionChains(opened.driver, duration=20)
    chain.w3c_actions.pointer_action.move_to_location(round(x), round(y))
    chain.click_and_hold().move_by_offset(40, 0).key_down(CONTROL).send_keys("z").key_up(CONTROL)
    chain.move_by_offset(20, 0).release().perform()
    assert opened.items() == [(0, 4.0, 8.0), (1, 10.0, 14.0)]
    assert opened.get("mstemba.corrections.count") == 0
    assert opened.get("mstemba.draft") is None
    drag(opened, 0, 8.0, 8.1)  # to where it was
    assert opened.get("mstemba.corrections.count") == 0


def test_escape_ends_a_drag_and_moves_nothing(opened: Browser) -> None:
    from selenium.webdriver import ActionChains

    place = "document.getElementById('canvas').getBoundingClientRect()"
    x, y = opened.get(f"[{place}.left + mstemba.timeline.x(8), {place}.top + 8]")
    chain = ActionChains(opened.driver, duration=20)
    chain.w3c_actions.pointer_action.move_to_location(round(x), round(y))
    chain.click_and_hold().move_by_offset(60, 0).perform()
    assert opened.get("mstemba.draft.segment.end") > 8
    opened.press(ESCAPE)
    assert opened.get("mstemba.draft") is None
    ActionChains(opened.driver, duration=20).move_by_offset(20, 0).release().perform()
    assert opened.items() == [(0, 4.0, 8.0), (1, 10.0, 14.0)]
    assert opened.get("mstemba.selected.classId") == 0  # the drag was left, not the segment


def test_keys_set_the_edges_and_the_focus_stays_in_the_table(opened: Browser) -> None:
    opened.driver.find_elements("css selector", "#segments button")[0].click()
    opened.js("mstemba.seek(5.25)")
    opened.press("i")
    opened.js("mstemba.seek(7.75)")
    opened.press("o")
    assert opened.items()[0] == (0, 5.25, 7.75)
    assert opened.get("document.activeElement.textContent") == "walk"
    opened.js("mstemba.seek(9)")
    opened.press("i")
    assert "must be before the end" in opened.text("editor-problem")
    opened.press(DOWN)
    assert opened.get("document.activeElement.textContent") == "sit"
    assert opened.get("mstemba.selected.classId") == 1
    opened.press(UP)
    opened.press(DELETE)
    assert opened.items() == [(1, 10.0, 14.0)]
    assert opened.get("document.activeElement.textContent") == "sit"
    opened.press(SPACE)  # the row has the focus by the keyboard: it is pressed
    assert opened.get("mstemba.selected.classId") == 1
    opened.js("mstemba.markClass(0); document.querySelector('#labels [tabindex=\"0\"]').focus()")
    opened.press(DOWN)
    assert opened.get("document.activeElement.textContent") == "sit"
    assert opened.get("document.activeElement.closest('#labels') !== null")


def test_a_finger_acts_when_it_is_lifted(opened: Browser) -> None:
    send = (
        "(kind) => document.getElementById('canvas').dispatchEvent(new PointerEvent(kind,"
        "{pointerId: 9, pointerType: 'touch', clientX: document.getElementById('canvas')"
        ".getBoundingClientRect().left + mstemba.timeline.x(6), clientY: document"
        ".getElementById('canvas').getBoundingClientRect().top + 8}))"
    )
    opened.js("mstemba.timeline.canvas.setPointerCapture = () => {}")
    opened.js(f"['pointerdown', 'pointercancel'].forEach({send})")  # the finger scrolls
    assert opened.get("[mstemba.selected, mstemba.player.time]") == [None, 0]
    opened.js(f"['pointerdown', 'pointerup'].forEach({send})")
    assert opened.get("mstemba.selected.classId") == 0
    assert opened.get("mstemba.player.time") == pytest.approx(6, abs=0.05)


def test_corrections_lock_the_threshold_and_can_be_discarded(opened: Browser) -> None:
    before = opened.items()
    assert not opened.find("locked").is_displayed()
    drag(opened, 0, 8.0, 9.0)
    assert not opened.find("threshold").is_enabled()
    assert "to keep 1 correction." in opened.text("locked-reason")
    assert "Not downloaded yet" in opened.text("locked-reason")
    opened.find("discard").click()
    assert opened.items() == before
    assert opened.find("threshold").is_enabled()
    opened.press(CONTROL, "z")  # which is no way to lose them
    assert opened.items()[0] == (0, 4.0, 9.0)
    assert not opened.find("threshold").is_enabled()
    assert "Not downloaded yet" in opened.text("locked-reason")
    opened.find("discard").click()
    opened.set("threshold", 0.85)
    ((class_id, start, end),) = opened.items()
    assert class_id == 0
    assert 4.0 < start < 4.25 < 7.75 < end < 8.0  # within half a row of the edges at 0.5
    for _ in range(3):
        opened.press(CONTROL, "z")
    assert opened.items() == [(0, start, end)]  # not of another threshold
    assert opened.find("threshold").is_enabled()
    assert not opened.find("undo").is_enabled()


def test_one_may_begin_from_the_labels_or_from_nothing(opened: Browser) -> None:
    opened.set("base", "labels")
    assert opened.items() == [(0, 3.6, 8.7)]
    assert opened.get("mstemba.timeline.kindOf(mstemba.corrections.items[0])") == "labelled"
    assert not opened.find("threshold").is_enabled()
    opened.js("mstemba.bar.fillAbout()")
    assert "mstemba export" not in opened.text("provenance")  # no line makes these
    opened.set("base", "empty")
    assert opened.items() == []
    assert "press N" in opened.text("none")
    opened.js("mstemba.seek(2)")
    opened.press("n")
    assert len(opened.items()) == 1
    opened.set("base", "detections")
    assert len(opened.items()) == 2
    opened.press(CONTROL, "z")
    assert len(opened.items()) == 1
    assert opened.get("document.getElementById('base').value") == "empty"


def test_without_labels_none_are_offered(chromium: Browser, tmp_path: Path) -> None:
    chromium.open(page(scene(tmp_path / "v.mp4", truth=False), tmp_path))
    assert chromium.get("document.querySelector('#base [value=labels]').disabled")
    assert "labelled" not in chromium.text("legend")


WARNED = (
    "(() => { const e = new Event('beforeunload', {cancelable: true}); dispatchEvent(e);"
    "return e.defaultPrevented; })()"
)


def test_leaving_is_warned_of_until_the_corrections_are_downloaded(opened: Browser) -> None:
    assert not opened.get(WARNED)
    drag(opened, 0, 8.0, 9.0)
    assert opened.get(WARNED)
    file = opened.downloaded(opened.find("download").click)
    assert not opened.get(WARNED)
    assert "Not downloaded" not in opened.text("locked-reason")
    assert file.name == "v.annotations.json"
    entry = json.loads(file.read_text())["videos"]["v"]
    assert entry == {
        "subset": "testing",
        "duration": None,  # as in the manifest
        "actions": [[0, 4.0, 9.0], [1, 10.0, 14.0]],
    }
    drag(opened, 0, 9.0, 10.0)
    assert opened.get(WARNED)
    opened.set("subset", "")
    file = opened.downloaded(opened.find("download").click)
    assert json.loads(file.read_text())["videos"]["v"]["subset"] is None


def test_of_a_manifest_in_frames_the_download_is_in_frames(
    chromium: Browser, tmp_path: Path
) -> None:
    """Seconds become frames by the real times of the rows, of 16 each; the end is beyond them."""
    grid = TimeGrid(np.cumsum(np.random.default_rng(3).uniform(0.3, 0.9, 40)), 0.64)
    values = np.full((40, 3), 0.1, np.float32)
    what = scene(
        tmp_path / "v.mp4", ["walk", "sit", "read"], probabilities=values, grid=grid, truth=False
    )
    dense = replace(what.scores, duration=float(grid.ends[-1]) + 1)
    chromium.open(page(replace(what, scores=dense, frames_per_row=16), tmp_path))
    middle = (grid.starts[4] + grid.starts[5]) / 2
    chromium.js("mstemba.add({classId: 1, start: arguments[0], end: arguments[1]})", grid.starts[2],
                middle)  # fmt: skip
    file = chromium.downloaded(chromium.find("download").click)
    read, _ = read_annotations(file)
    assert read.time_unit == "frames"
    video = read.videos["v"]
    assert video.actions == (Action(1, 32.0, pytest.approx(72.0, abs=1e-5)),)
    assert video.duration == pytest.approx(16 * 40 + 16 / 0.64, abs=1e-5)


IDS = ("plain", "'; \u202e <script>window.__pwned=1</script> ü", "__proto__")


@pytest.mark.slow
@pytest.mark.parametrize("id", IDS)
def test_init_reads_the_download(chromium: Browser, tmp_path: Path, id: str) -> None:
    id = id.replace("/", "\u2215")
    video = film(tmp_path / "videos" / f"{id}.mp4", seconds=2)
    values = np.full((20, len(ODD_CLASSES)), 0.2, np.float32)
    values[3:9] = 0.9
    grid = TimeGrid(np.arange(20) / 10 + 1e-9 * np.arange(20) ** 2, 0.1)
    what = scene(
        video, ODD_CLASSES, probabilities=values, grid=grid, id=id, subset=None, truth=False
    )
    chromium.open(page(what, tmp_path))
    chromium.js("mstemba.goTo(mstemba.corrections.items[5])")
    chromium.press(DELETE)
    new = "new \u05d0 \"'</script>\\n"
    chromium.js("mstemba.goTo(mstemba.corrections.items[2])")
    chromium.set("edit-class", "new")
    chromium.set("edit-new-class", new)
    chromium.set("edit-end", 1.2345)
    shown = chromium.items()
    file = chromium.downloaded(chromium.find("download").click)
    assert chromium.get("window.__pwned") is None
    printed = mstemba("init", "--annotations", file, "--videos", tmp_path / "videos", cwd=tmp_path)
    assert "training 1 video, 11 actions" in printed.stdout
    assert all(line.startswith("warning: class ") for line in printed.stderr.splitlines())
    manifest = load_manifest(tmp_path / "manifest.json")
    assert manifest.classes == (*ODD_CLASSES, new)
    assert list(manifest.videos) == [id]
    read = manifest.videos[id]
    assert read.path is not None
    assert read.path.resolve() == video.resolve()
    assert (read.subset, read.duration) == ("training", what.scores.duration)
    assert [tuple(action) for action in read.actions] == shown
    assert len(shown) == len(ODD_CLASSES) - 1
    assert (len(ODD_CLASSES), 1.2345) in {(c, end) for c, _, end in shown}
