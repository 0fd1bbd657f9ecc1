"""The page, and every other format, of the real exercise recording, by the real commands.

With MSTEMBA_SCREENSHOTS=1 a picture without the video goes into docs/images/.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from mstemba.pipeline.outputs import WRITERS
from tests.pipeline.outputs.page.conftest import Browser
from tests.pipeline.outputs.page.test_page import AT_REST, NO_BUTTONS, SHOTS
from tests.pipeline.outputs.test_formats import READERS
from tests.test_exercise import EXTRACT, folder, run

__all__ = ["folder"]  # the recording, cut into a training and a test clip

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def detected(folder: Path) -> Path:
    """The workspace after one `detect` that writes every format."""
    run(folder, "init", "--videos", "videos", "--annotations", "exercise_routine_labels.json")
    run(folder, *EXTRACT)
    # A linear probe learns this recording in seconds.
    run(folder, "train", "--arch", "linear", "--min-steps", "300", "--lr", "0.01")
    run(folder, "detect", "videos/exercise_test.mp4", "--format", ",".join(WRITERS))
    return folder


def test_one_detect_writes_every_format(detected: Path) -> None:
    written = json.loads((detected / "detections" / "exercise_test.json").read_text())
    assert len(written["segments"]) > 5
    for form, writer in WRITERS.items():
        file = detected / "detections" / f"exercise_test.{writer.suffix}"
        assert file.stat().st_size > 100, file
        if form in READERS:
            assert len(READERS[form](file)) == len(written["segments"]), form


def test_the_page_shows_the_recording(detected: Path, chromium: Browser, tmp_path: Path) -> None:
    chromium.open(detected / "detections" / "exercise_test.html")
    chromium.wait("mstemba.player.video.readyState >= 3")
    written = json.loads((detected / "detections" / "exercise_test.json").read_text())
    assert [(c, round(start, 6), round(end, 6)) for c, start, end in chromium.items()] == [
        (s["class_id"], s["start"], s["end"]) for s in written["segments"]
    ]
    assert chromium.get("mstemba.truth.length") > 3
    chromium.js(f"{NO_BUTTONS}; mstemba.seek(3.05); mstemba.select(mstemba.corrections.items[7])")
    chromium.wait(AT_REST)
    chromium.painted()
    shot = tmp_path / "page-exercise.png"
    assert chromium.driver.save_screenshot(str(shot))
    assert shot.stat().st_size < 500_000
    assert chromium.complaints() == []
    if os.environ.get("MSTEMBA_SCREENSHOTS"):
        # The pictures in docs/ show what was detected, and not the people.
        chromium.js("mstemba.player.video.style.visibility = 'hidden'")
        chromium.painted()
        assert chromium.driver.save_screenshot(str(SHOTS / shot.name))


def test_labels_go_through_the_page_and_leave_the_manifest_as_it_is(
    detected: Path, chromium: Browser
) -> None:
    before = (detected / "manifest.json").read_bytes()
    chromium.open(detected / "detections" / "exercise_test.html")
    chromium.set("base", "labels")
    file = chromium.downloaded(chromium.find("download").click)
    run(detected, "init", "--annotations", str(file), "--merge")
    assert (detected / "manifest.json").read_bytes() == before
