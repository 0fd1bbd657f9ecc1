"""The PNG: what is drawn and written, and where."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageDraw, ImageFont

from mstemba.pipeline.detect.segments import find_segments
from mstemba.pipeline.outputs import Detection, fonts
from mstemba.pipeline.outputs import png_timeline as png
from mstemba.pipeline.outputs.png_timeline import BAND, BAR, BOTTOM, SHADE, TOP, highest, ticks
from mstemba.records import Segment, TimeGrid
from tests.pipeline.outputs.test_outputs import CASES, GRID, MANY, NOTHING, detection, scores, write

UNEVEN = TimeGrid(np.cumsum(np.random.default_rng(0).uniform(0.01, 2, 60)), 1.0)


@dataclass(frozen=True)
class Written:
    """A piece of text in the picture."""

    text: str
    at: tuple[int, int]
    box: tuple[float, float, float, float]
    """Left, top, right, bottom."""


@dataclass(frozen=True)
class Picture:
    pixels: NDArray[np.uint8]
    texts: list[Written]
    left: int
    """The first column of the frame around the bands."""
    right: int

    def rows(self) -> list[str]:
        """The names beside the bands; each is at the middle of its own."""
        beside = [w for w in self.texts if w.at[1] > TOP and w.box[2] <= self.left]
        assert [w.at[1] for w in beside] == [TOP + BAND * n + BAND // 2 for n in range(len(beside))]
        return [w.text for w in beside]

    def head(self) -> list[Written]:
        """The title, and what the legend says from right to left."""
        title, *legend = sorted((w for w in self.texts if w.at[1] < TOP), key=lambda w: w.at[0])
        return [title, *legend]

    def numbers(self) -> list[Written]:
        """What the time axis has below its line."""
        return [w for w in self.texts if w.at[1] == len(self.pixels) - BOTTOM + 10]

    def label(self) -> str:
        """What the time axis has in its middle."""
        (found,) = (w for w in self.texts if w.at[1] == len(self.pixels) - 12)
        assert abs(found.at[0] - (self.left + self.right) / 2) <= 1
        return found.text


def drawn(what: Detection) -> Picture:
    """The picture as its file has it, and the calls that wrote into it."""
    texts = []
    write_text = ImageDraw.ImageDraw.text

    def text(pen: Any, xy: Any, text: str, fill: Any, font: Any, anchor: str) -> None:
        texts.append(Written(text, xy, pen.textbbox(xy, text, font, anchor)))
        write_text(pen, xy, text, fill, font, anchor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImageDraw.ImageDraw, "text", text)
        image = png.draw_timeline(what.scores, what.segments, what.ground_truth)
    pixels = np.asarray(image)
    frame = np.flatnonzero((pixels[TOP:-BOTTOM] == 0).all(axis=(0, 2)))
    return Picture(pixels, texts, int(frame[0]), int(frame[-1]))


def of_length(
    duration: float, names: tuple[str, ...] = ("sit", "stand"), rows: int = 40
) -> Detection:
    return detection(scores(names, TimeGrid.even(0.0, duration / rows, rows)))


# The file


def image_size(path: Path) -> tuple[int, int]:
    """Width and height of a PNG, its checksums checked."""
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    at, kinds, data = 8, [], b""
    while at < len(content):
        (length,) = struct.unpack(">I", content[at : at + 4])
        chunk = content[at + 4 : at + 8 + length]
        assert struct.unpack(">I", content[at + 8 + length : at + 12 + length])[0] == zlib.crc32(
            chunk
        )
        kinds.append(chunk[:4])
        data += chunk[4:] if chunk[:4] == b"IDAT" else b""
        at += 12 + length
    assert kinds[0] == b"IHDR"
    assert kinds[-1] == b"IEND"
    width, height = struct.unpack(">II", content[16:24])
    assert len(zlib.decompress(data)) == height * (3 * width + 1)
    return width, height


@pytest.mark.parametrize("case", CASES)
def test_the_file_has_a_band_for_every_class_it_draws(tmp_path: Path, case: str) -> None:
    what = CASES[case]
    found = {s.class_id for s in [*what.segments, *(what.ground_truth or [])]}
    # Of no segment, the likeliest classes.
    found = found or set(range(min(5, len(what.scores.classes))))
    path = write("png", what, tmp_path)
    assert image_size(path) == (1440, 110 + 50 * min(40, len(found)))
    assert np.array_equal(np.asarray(Image.open(path)), drawn(what).pixels)


def test_of_a_very_long_video_it_stays_small_and_has_every_peak(tmp_path: Path) -> None:
    dense = scores(("sit",), TimeGrid.even(0.0, 0.5, 50_000))
    peak = np.zeros((50_000, 1), np.float32)
    peak[12_345] = 1.0
    what = detection(replace(dense, probabilities=peak))
    assert len(what.segments) == 1
    path = write("png", what, tmp_path)
    assert image_size(path)[0] == 1440
    assert path.stat().st_size < 200_000
    picture = drawn(what)
    shade = picture.pixels[TOP + SHADE + 2, picture.left + 1 : picture.right, 0]
    share = (np.flatnonzero(shade == 0) + 1) / (picture.right - picture.left)
    assert share == pytest.approx(12_345 / 50_000, abs=0.001)


# What is drawn


@pytest.mark.parametrize("anchor", [0.0, 0.5])
@pytest.mark.parametrize("grid", [GRID, UNEVEN], ids=["even", "variable rate"])
def test_every_segment_and_probability_is_at_its_time(grid: TimeGrid, anchor: float) -> None:
    dense = replace(scores(grid=grid), anchor=anchor)
    shown = find_segments(dense, 0.7, 0.4)
    labelled = [Segment(1.0, 3.0, 1, "stand up", 1.0), Segment(19.99, 20.0, 2, "=SUM(A1)", 1.0)]
    picture = drawn(detection(dense, ground_truth=labelled))
    left, right = picture.left, picture.right
    bands = picture.pixels[TOP : TOP + 3 * BAND]
    time = (np.arange(left + 1, right) + 0.5 - left) / (right - left) * dense.duration
    pixel = dense.duration / (right - left)

    def near(moments: list[float]) -> Any:
        """Columns within two pixels of an edge, whose colour either side may give."""
        return (abs(time[:, None] - np.array([*moments, -9.0])) <= 2.5 * pixel).any(axis=1)

    for class_id in range(3):
        band = bands[class_id * BAND : (class_id + 1) * BAND, left + 1 : right]
        for segments, colour in ((shown, png.DETECTED), (labelled, png.LABELLED)):
            mine = [s for s in segments if s.class_id == class_id]
            coloured = (band == ImageColor.getrgb(colour)).all(axis=2).any(axis=0)
            expected = np.any([(time >= s.start) & (time < s.end) for s in mine], axis=0)
            sure = ~near([edge for s in mine for edge in (s.start, s.end)])
            assert np.array_equal(coloured[sure], np.broadcast_to(expected, coloured.shape)[sure])
            assert all(coloured[abs(time - s.start) <= 2.5 * pixel].any() for s in mine)
        shade = band[BAND // 2 - BAR // 4, :, 0]
        row = np.searchsorted(dense.bounds[:-1], time, side="right") - 1
        grey = np.where(row < 0, 255.0, 255 * (1 - dense.probabilities[row, class_id]))
        sure = ~near(dense.bounds.tolist())
        assert sure.mean() > 0.5
        assert abs(shade[sure] - grey[sure]).max() <= 1


def test_where_there_is_no_score_it_is_white() -> None:
    dense = scores(grid=TimeGrid.even(5.0, 0.25, 40))  # from 5 to 15 s, of 20
    picture = drawn(detection(replace(dense, duration=20.0)))
    shade = picture.pixels[TOP + SHADE + 2, picture.left + 1 : picture.right]
    quarter = len(shade) // 4
    assert (shade[: quarter - 2] == 255).all()
    assert (shade[3 * quarter + 4 :] == 255).all()
    assert (shade[quarter + 4 : 3 * quarter - 4].mean(axis=0) < 200).all()


def test_what_goes_beyond_the_video_ends_at_the_frame() -> None:
    labelled = [Segment(-5.0, -1.0, 0, "sit", 1.0), Segment(19.0, 50.0, 1, "stand up", 1.0)]
    picture = drawn(replace(detection(), segments=[], ground_truth=labelled))
    colour = ImageColor.getrgb(png.LABELLED)
    columns = np.flatnonzero((picture.pixels[TOP:-BOTTOM] == colour).all(axis=2).any(axis=0))
    assert picture.left < columns[0] <= picture.left + 2
    assert columns[-1] == picture.right - 1


@given(
    steps=st.lists(st.floats(0.01, 5), min_size=1, max_size=12),
    begin=st.floats(0, 5),
    count=st.integers(1, 20),
    end=st.floats(1, 60),
)
def test_every_stretch_of_the_picture_shows_its_highest_probability(
    steps: list[float], begin: float, count: int, end: float
) -> None:
    grid = TimeGrid(begin + np.cumsum([0.0, *steps[:-1]]), steps[-1])
    values = np.random.default_rng(0).random((grid.count, 2)).astype(np.float32)
    edges = np.linspace(0, end, count + 1)
    bounds = grid.bounds(0.5)
    found = highest(values, bounds, edges)
    assert found.shape == (count, 2)
    for after, before, shown in zip(edges[:-1], edges[1:], found, strict=True):
        rows = values[(bounds[:-1] < before) & (bounds[1:] > after)]
        assert np.array_equal(shown, rows.max(axis=0) if len(rows) else [np.nan] * 2, True)


# What is written


TIGHT = {
    "a title beside the legend": replace(
        CASES["labelled"], scores=replace(scores(), video=f"/v/{'long ' * 60}.mp4")
    ),
    "long names": of_length(3 * 3600.0, ("sit", "long " * 60)),
    "the shortest time there is": of_length(5e-324, rows=1),
    **{f"{d} s": of_length(d) for d in (1e-7, 1e-6, 3e-5, 0.1, 119.0, 3600.0, 7.2e5, 1e9)},
}


@pytest.mark.parametrize("what", [*CASES.values(), *TIGHT.values()], ids=[*CASES, *TIGHT])
def test_all_text_is_within_the_picture_and_none_runs_into_another(what: Detection) -> None:
    picture = drawn(what)
    boxes = [written.box for written in picture.texts]
    height, width, _ = picture.pixels.shape
    assert len(boxes) >= 6
    for number, (left, top, right, bottom) in enumerate(boxes):
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        for other in boxes[:number]:
            assert right < other[0] or other[2] < left or bottom <= other[1] or other[3] <= top


def test_every_row_has_its_class_title_and_legend_say_what_this_is() -> None:
    for what in (CASES["some"], CASES["labelled"]):
        picture = drawn(what)
        assert picture.rows() == ["sit", "stand up", "=SUM(A1)"]
        title, *legend = picture.head()
        assert (title.text, title.at[0]) == ("my walk.mp4", 12)
        colours = {"detected": png.DETECTED}
        if what.ground_truth is not None:
            colours["labelled"] = png.LABELLED
        colours["probability (darker is likelier)"] = png.PROBABILITY
        assert [written.text for written in legend] == list(colours)
        for written, colour in zip(legend, colours.values(), strict=True):
            patch = picture.pixels[written.at[1], written.at[0] - 40 : written.at[0] - 14]
            assert (patch == ImageColor.getrgb(colour)).all()


def test_of_very_many_classes_those_that_last_longest_are_drawn() -> None:
    seconds = np.zeros(157)
    for segment in MANY.segments:
        seconds[segment.class_id] += segment.end - segment.start
    least = np.sort(seconds)[-40]
    sure = {MANY.scores.classes[c] for c in np.flatnonzero(seconds > least)}
    possible = {MANY.scores.classes[c] for c in np.flatnonzero(seconds >= least)}
    picture = drawn(MANY)
    rows = picture.rows()
    assert len(rows) == 40
    assert sure <= set(rows) <= possible != set(MANY.scores.classes)
    assert rows == sorted(rows, key=MANY.scores.classes.index)
    found = np.count_nonzero(seconds)
    assert picture.label() == f"seconds; these 40 of {found} classes last longest"


def test_where_nothing_is_found_the_likeliest_classes_are_drawn() -> None:
    values = np.full((40, 9), 0.1, np.float32)
    values[7, [1, 3, 4, 6, 8]] = [0.5, 0.3, 0.2, 0.4, 0.6]
    dense = replace(scores(tuple("abcdefghi")), probabilities=values)
    what = detection(dense)
    assert not what.segments
    picture = drawn(what)
    assert picture.rows() == ["b", "d", "e", "g", "i"]
    remark = "seconds; no action detected, these are the likeliest classes"
    assert picture.label() == drawn(NOTHING).label() == remark


ODD_NAMES = {
    "$x$ and $": "$x$ and $",
    r"\alpha $\frac{1$": r"\alpha $\frac{1$",
    "two\nlines": r"two\nlines",
    "_hidden": "_hidden",
    "%": "%",
    "caf\udce9": r"caf\udce9",
    "שלום مرحبا": "שלום مرحبا",
    "": "(no name)",
    " ": "(no name)",
    "\u200b\u200b": "(no name)",
    "走る": "#0 走る",
    "앉기 now": "#0 앉기 now",
    "เดิน": "#0 เดิน",
    "चलना": "#0 चलना",
    "e\u0354": "#0 e\u0354",  # a mark that joins a letter
    "plain": "#0 plain",
    "plain\u200b": "#0 plain\u200b",
}


@pytest.fixture
def no_fonts(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine that has none of its own."""
    monkeypatch.setattr(fonts, "SYSTEM", ())


@pytest.mark.usefixtures("no_fonts")
@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names_are_drawn_as_they_are_or_with_their_class_number(name: str) -> None:
    odd = scores((name, "plain", "last"))
    picture = drawn(detection(replace(odd, video=f"/videos/{name}.mp4")))
    first, second, third = picture.rows()
    assert first == ODD_NAMES[name]
    assert second == ("#1 plain" if "plain" in name else "plain")
    assert third == "last"
    assert picture.head()[0].text == f"{name}.mp4".replace("\n", r"\n").replace("\udce9", r"\udce9")


def torn(font: bytes) -> bytes:
    """A font that opens, and whose glyphs are an error."""
    for at in range(12, 12 + 16 * int.from_bytes(font[4:6], "big"), 16):
        tag, _, offset, length = struct.unpack(">4sLLL", font[at : at + 16])
        if tag == b"glyf":
            return font[:offset] + b"\x01" * length + font[offset + length :]
    raise AssertionError("no glyphs")


def test_letters_that_our_font_lacks_come_from_one_of_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("wide ⌒ bow ⌓", "plain", "⌒ and 走")
    what = detection(replace(scores(names), video="/videos/⌒.mp4"))
    monkeypatch.setattr(fonts, "SYSTEM", ())
    without = drawn(what)
    assert without.rows() == ["#0 wide ⌒ bow ⌓", "plain", "#2 ⌒ and 走"]
    # One that is there, but has no such letter; one that is not; one that has it.
    own = Path(fonts.font(17).path)
    (tmp_path / "torn.ttf").write_bytes(torn(own.with_name("DejaVuSansMono.ttf").read_bytes()))
    others = [
        own.with_name("cmr10.ttf"),
        own.with_name("missing.ttf"),
        tmp_path / "torn.ttf",
        own.with_name("STIXSizOneSymReg.ttf"),  # has the letters of its own alone
        own.with_name("DejaVuSansMono.ttf"),
    ]
    monkeypatch.setattr(fonts, "SYSTEM", tuple(map(str, others)))
    found = drawn(what)
    assert found.rows() == ["wide ⌒ bow ⌓", "plain", "#2 ⌒ and 走"]
    wide = ImageFont.truetype(str(others[-1]), 17).getlength("wide ⌒ bow ⌓")
    (box,) = (w.box for w in found.texts if w.text == "wide ⌒ bow ⌓")
    assert box[2] - box[0] == pytest.approx(wide, abs=2)
    assert box[2] <= found.left
    assert found.head()[0].text == "⌒.mp4"
    assert not np.array_equal(found.pixels[:TOP], without.pixels[:TOP])  # no box
    # What may be put beside a name, its class's number for one, must be there, too.
    serif = str(own.with_name("DejaVuSerif.ttf"))
    monkeypatch.setattr(fonts, "SYSTEM", (str(others[-2]), serif))
    assert fonts.font_for("\u23b7", 17).path == serif


def test_of_long_names_the_beginning_is_drawn() -> None:
    names = ("long " * 60, "long " * 60 + "too", "short")
    first, second, third = drawn(detection(scores(names))).rows()
    for number, shown in enumerate((first, second)):
        assert shown.startswith(f"#{number} long long ")
        assert shown.endswith("…")
        assert names[0].startswith(shown[3:-1])
    assert third == "short"


# The time axis


def in_seconds(text: str) -> float:
    total = 0.0
    for part in text.split(":"):
        total = 60 * total + float(part)
    return total


@pytest.mark.parametrize("duration", [3e-5, 0.1, 12.0, 119.0, 120.0, 2400.0, 3600.0, 10_800.0, 1e6])
def test_every_number_of_the_time_axis_is_below_its_time(duration: float) -> None:
    picture = drawn(of_length(duration))
    numbers = picture.numbers()
    assert len(numbers) > 3
    below = picture.pixels[3 - BOTTOM, :, 0]
    marks = np.flatnonzero(below == 0)
    length = picture.right - picture.left
    for written, mark in zip(numbers, marks, strict=True):
        share = in_seconds(written.text) / duration
        assert mark == pytest.approx(picture.left + length * share, abs=1)
        # The first and the last give way to the picture's edge.
        if written.box[0] - 1 > 4 and written.box[2] + 1 < 1436:
            assert written.at[0] == mark
        else:
            assert written in (numbers[0], numbers[-1])
            assert abs(written.at[0] - mark) < 32
    unit = "seconds" if duration < 120 else "minutes:seconds"
    assert picture.label() == (unit if duration < 3600 else "hours:minutes:seconds")


@given(st.floats(1e-6, 1e7), st.integers(684, 1384))
def test_time_axis_has_a_handful_of_round_numbers(duration: float, width: int) -> None:
    times, texts = zip(*ticks(duration, width), strict=True)
    assert 3 <= len(times) <= png.MOST_TICKS + 1
    assert times[0] == 0
    assert times[-1] <= duration * (1 + 1e-6)
    assert times[-1] + times[1] > duration
    assert len(set(texts)) == len(times)
    assert np.allclose([in_seconds(text) for text in texts], times, rtol=1e-6)
    assert np.allclose(np.diff(times), times[1], rtol=1e-6)
    if times[1] in (15.0, 30.0, 900.0, 1800.0) and duration >= 120:
        return
    unit = 1 if duration < 120 else 60 if times[1] < 3600 else 3600
    assert f"{times[1] / unit:.0e}"[0] in "125"


@pytest.mark.parametrize(
    ("duration", "expected"),
    [
        (5e-324, "0"),
        (0.3, "0.00 0.05 0.10 0.15 0.20 0.25 0.30"),
        (12.0, "0 2 4 6 8 10 12"),
        (119.9, "0 20 40 60 80 100"),
        (120.0, "0:00 0:15 0:30 0:45 1:00 1:15 1:30 1:45 2:00"),
        (2400.0, "0:00 5:00 10:00 15:00 20:00 25:00 30:00 35:00 40:00"),
        (3600.0, "0:00:00 0:10:00 0:20:00 0:30:00 0:40:00 0:50:00 1:00:00"),
        (10 * 3600.0, "0:00:00 1:00:00 2:00:00 3:00:00 4:00:00 5:00:00 6:00:00 7:00:00 8:00:00 "
         "9:00:00 10:00:00"),
    ],
)  # fmt: skip
def test_time_axis_counts_as_a_clock_from_two_minutes_on(duration: float, expected: str) -> None:
    assert [text for _, text in ticks(duration, 1300)] == expected.split()


def test_wide_numbers_are_fewer() -> None:
    assert len(ticks(1e-5, 1300)) > len(ticks(1e-5, 700)) > 3
