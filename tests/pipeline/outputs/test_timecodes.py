"""EDL and OTIO count from the video's start timecode."""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import opentimelineio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentimelineio.opentime import RationalTime, from_timecode, to_timecode

from mstemba.pipeline.detect.segments import find_segments
from mstemba.pipeline.outputs import WRITERS, Detection
from mstemba.pipeline.outputs.editing import frame_number, timecode
from mstemba.records import Scores, TimeGrid

NTSC = Fraction(30_000, 1001)
DAY = {30: 2_589_408, 60: 5_178_816}  # frames of 24 hours of drop frame


def detection(fps: float, code: str, seconds: int = 20) -> Detection:
    """Two actions, from second 3 and from the last but one."""
    values = np.zeros((seconds, 2), np.float32)
    values[3:5, 0] = values[-2:, 1] = 1.0
    grid = TimeGrid.even(0.0, 1.0, seconds)
    end = float(seconds)
    dense = Scores(values, grid, ("sit", "drink"), "/v/walk.mp4", end, fps, code, anchor=0.5)
    return Detection(dense, find_segments(dense, 0.5, 0.3), None, {})


def edl(what: Detection, folder: Path) -> tuple[str, str, list[str], list[str]]:
    """The text, its frame count mode, the four timecodes of the event, and those of the markers."""
    path = folder / "walk.edl"
    WRITERS["edl"].write(what, path)
    text = path.read_text("utf-8")
    mode, event = re.findall(r"^FCM: (.*)\n001  AX       V     C        (.*)$", text, re.MULTILINE)[
        0
    ]
    return text, mode, event.split(), re.findall(r"^\* LOC: (\S+)", text, re.MULTILINE)


def otio(what: Detection, folder: Path) -> Any:
    path = folder / "walk.otio"
    WRITERS["otio"].write(what, path)
    (clip,) = opentimelineio.adapters.read_from_file(str(path)).find_clips()
    return clip


@pytest.mark.parametrize(
    ("fps", "code", "mode", "begin", "end", "markers"),
    [
        (25, "10:00:00:00", "NON-DROP FRAME", "10:00:00:00", "10:00:20:00", ["10:00:03:00"]),
        (25, "10:00:00;12", "NON-DROP FRAME", "10:00:00:12", "10:00:20:12", ["10:00:03:12"]),
        (23.976, "01:00:00;00", "NON-DROP FRAME", "01:00:00:00", "01:00:20:00", ["01:00:03:00"]),
        (30, "01:00:50;00", "NON-DROP FRAME", "01:00:50:00", "01:01:10:00", ["01:00:53:00"]),
        (29.97, "01:00:50:00", "NON-DROP FRAME", "01:00:50:00", "01:01:09:29", ["01:00:53:00"]),
        (29.97, "01:00:50;00", "DROP FRAME", "01:00:50;00", "01:01:10;01", ["01:00:53;00"]),
        (29.97, "01:09:50.00", "DROP FRAME", "01:09:50;00", "01:10:09;29", ["01:09:53;00"]),
        (59.94, "01:00:50;00", "DROP FRAME", "01:00:50;00", "01:01:10;03", ["01:00:53;00"]),
        (25, "23:59:50:00", "NON-DROP FRAME", "23:59:50:00", "00:00:10:00", ["23:59:53:00"]),
        (29.97, "23:59:58;00", "DROP FRAME", "23:59:58;00", "00:00:17;29", ["00:00:01;00"]),
        # No editing program has these rates.
        (10, "10:00:00:09", "NON-DROP FRAME", "10:00:00:00", "10:00:20:00", ["10:00:03:00"]),
        (120, "10:00:00;100", "NON-DROP FRAME", "10:00:00:00", "10:00:20:00", ["10:00:03:00"]),
    ],
)
def test_an_edl_counts_from_the_timecode(
    tmp_path: Path, fps: float, code: str, mode: str, begin: str, end: str, markers: list[str]
) -> None:
    _, found_mode, event, found_markers = edl(detection(fps, code), tmp_path)
    assert found_mode == mode
    assert event == [begin, end, begin, end]
    assert found_markers[:1] == markers
    assert len(found_markers) == 2


@pytest.mark.parametrize(
    ("fps", "code", "rate"),
    [(25, "10:00:00:05", 25), (29.97, "10:00:50;02", NTSC), (59.94, "01:08:59;59", 2 * NTSC)],
)
def test_opentimelineio_reads_the_timecodes_of_an_edl(
    tmp_path: Path, fps: float, code: str, rate: Fraction
) -> None:
    text, _, _, markers = edl(detection(fps, code), tmp_path)
    (clip,) = opentimelineio.adapters.read_from_string(
        text, "cmx_3600", rate=float(rate)
    ).find_clips()
    first = from_timecode(code, float(rate)).value
    assert clip.source_range.start_time.value == first
    assert clip.duration().value == round(20 * rate)
    found = [from_timecode(marker, float(rate)).value for marker in markers]
    assert found == [first + round(second * rate) for second in (3, 18)]


@pytest.mark.parametrize(
    ("fps", "code", "seconds"),
    [
        (25, "10:00:00:05", 36_000.2),
        (29.97, "01:00:00:00", 3603.6),
        (29.97, "01:00:00;00", 107_892 / NTSC),
        (59.94, "00:01:00;04", 3600 / (2 * NTSC)),
        (23.976, "01:00:00:00", 3603.6),
        (10, "10:00:00:09", 36_000),
    ],
)
def test_otio_counts_real_seconds_from_the_timecode(
    tmp_path: Path, fps: float, code: str, seconds: float
) -> None:
    clip = otio(detection(fps, code), tmp_path)
    begin = pytest.approx(float(seconds), abs=1e-6)
    for whole in (clip.source_range, clip.media_reference.available_range):
        assert whole.start_time.to_seconds() == begin
        assert whole.duration == RationalTime(20_000, 1000)
    for marker, second in zip(clip.markers, (3, 18), strict=True):
        assert marker.marked_range.start_time.to_seconds() - second == begin
        assert marker.marked_range.duration == RationalTime(2000, 1000)


def test_without_a_timecode_they_count_from_0_and_beyond_a_day(tmp_path: Path) -> None:
    _, mode, event, markers = edl(detection(29.97, "", 90_000), tmp_path)
    assert mode == "NON-DROP FRAME"
    assert event == 2 * ["00:00:00:00", "24:58:30:03"]
    assert markers == ["00:00:03:00", "24:58:28:03"]
    assert otio(detection(29.97, ""), tmp_path).source_range.start_time == RationalTime(0, 1000)


@given(st.data(), st.sampled_from([30, 60]))
def test_drop_frame_there_and_back_is_exact_all_day(data: st.DataObject, rate: int) -> None:
    frame = data.draw(st.integers(0, DAY[rate] - 1))
    code = timecode(frame, rate, drop=True)
    assert frame_number(code, rate, drop=True) == frame
    # OpenTimelineIO has the same arithmetic of its own.
    ntsc = float(rate * Fraction(1000, 1001))
    assert code == to_timecode(RationalTime(frame, ntsc), ntsc, drop_frame=True)
    # It keeps up with the clock: 0.09 s are lost in a day, and up to 0.06 s are made up for after
    # at most ten minutes.
    hours, minutes, seconds, frames = map(int, re.split("[:;]", code))
    clock = 3600 * hours + 60 * minutes + seconds + frames / rate
    assert clock == pytest.approx(frame / ntsc, abs=0.16)
    assert frame_number(timecode(frame, rate), rate) == frame


def test_a_day_of_drop_frame_ends_with_its_last_frame() -> None:
    for rate, frames in DAY.items():
        assert timecode(frames - 1, rate, drop=True) == f"23:59:59;{rate - 1}"
        assert frame_number("24:00:00;00", rate, drop=True) == frames


def test_a_timecode_that_is_none_is_refused() -> None:
    for code in ("10:00", "1:00:00:00", "10:00:00:00 ", "-1:00:00:00"):
        with pytest.raises(ValueError, match="expected one like '10:00:00:00'"):
            detection(25, code)
