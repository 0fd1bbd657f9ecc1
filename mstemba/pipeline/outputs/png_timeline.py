"""The timeline picture: a band for each class, with detected segments above a strip whose shade is
the probability, and labelled actions below it.

It is drawn with Pillow: importing matplotlib takes longer than the rest of an export.
"""

from __future__ import annotations

import math
import os
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from mstemba.pipeline.outputs.fields import NAMELESS, clock
from mstemba.pipeline.outputs.fonts import Font, font, font_for, in_font
from mstemba.pipeline.progress import one_line
from mstemba.records import FloatArray, Scores, Segment

# Okabe and Ito's palette, which colour-blind people can distinguish.
DETECTED, LABELLED, PROBABILITY = "#0072B2", "#D55E00", "#888888"
MOST_CLASSES = 40
# Classes that are drawn where nothing is detected.
LIKELIEST = 5
MOST_TICKS = 10
# Seconds: videos of CLOCK or more have minutes on the time axis; below SHORTEST, only a 0.
CLOCK, SHORTEST = 120, 1e-6

# All in pixels.
WIDTH, BAND, TOP, BOTTOM, RIGHT = 1440, 50, 44, 66, 32
BAR = 13
# Upper edges of the three strips of a band, relative to the band's.
ABOVE, SHADE, BELOW = 4, 19, 34
# A segment is at least as wide as this, to be visible.
NARROWEST = 2
LONGEST_NAME = 600
# Between two numbers of the time axis, and between a number and the picture's edge.
GAP, MARGIN = 20, 4
SMALL, LARGE = 17, 20


@dataclass(frozen=True)
class _Plot:
    """Where the timeline is in the picture."""

    left: int
    classes: list[int]
    """One for each band."""
    duration: float
    """Seconds from the left edge to the right one."""

    @property
    def right(self) -> int:
        return WIDTH - RIGHT

    @property
    def bottom(self) -> int:
        return TOP + BAND * max(1, len(self.classes))

    def x(self, seconds: float) -> int:
        share = min(1.0, max(0.0, seconds / self.duration))
        return self.left + round((self.right - self.left) * share)


def draw_timeline(
    scores: Scores, segments: Sequence[Segment], ground_truth: Sequence[Segment] | None
) -> Image.Image:
    """Draw the classes that are detected or labelled; of very many the longest-lasting ones.

    Args:
        scores: Dense probabilities.
        segments: Detected actions.
        ground_truth: Labelled actions; None if there are no labels, which the legend then omits.
    """
    labelled = ground_truth or []
    classes, remark = _classes_to_draw(scores, [*segments, *labelled])
    names = _row_names(scores, classes)
    widest = max((used.getlength(name) for name, used in names), default=0.0)
    plot = _Plot(24 + math.ceil(widest), classes, scores.duration)
    image = Image.fromarray(_shades(scores, plot))
    pen = ImageDraw.Draw(image)
    for band, (name, used) in enumerate(names):
        middle = TOP + BAND * band + BAND // 2
        pen.text((plot.left - 12, middle), name, "black", used, anchor="rm")
        pen.line([(plot.left - 5, middle), (plot.left, middle)], "black")
        pen.line([(plot.left, middle + BAND // 2), (plot.right, middle + BAND // 2)], "#DDDDDD")
    _bars(pen, plot, segments, ABOVE, DETECTED)
    _bars(pen, plot, labelled, BELOW, LABELLED)
    pen.rectangle([plot.left, TOP, plot.right, plot.bottom], outline="black")
    _time_axis(pen, plot, remark)
    _legend(pen, has_labels=ground_truth is not None)
    title, used = _fitting(os.path.basename(scores.video), LARGE)
    # At the picture's edge, because the legend is next to it.
    pen.text((12, TOP // 2), title, "black", used, anchor="lm")
    return image


def _row_names(scores: Scores, classes: list[int]) -> list[tuple[str, Font]]:
    """Return the rows' names, with the class's number where two could not be told apart."""
    names = [_fitting(scores.classes[class_id], SMALL) for class_id in classes]
    looks = [bytes(used.getmask(name)) for name, used in names]
    rows = []
    for class_id, (name, used), look in zip(classes, names, looks, strict=True):
        unclear = looks.count(look) > 1 or not all(in_font(letter, used) for letter in name)
        rows.append((f"#{class_id} " * unclear + (name if any(look) else NAMELESS), used))
    return rows


def _classes_to_draw(scores: Scores, segments: Sequence[Segment]) -> tuple[list[int], str]:
    """Return the classes in their order, and a remark where these are not just all with segments.

    Without segments they are the classes with the highest probabilities.
    """
    seconds: dict[int, float] = {}
    for segment in segments:
        seconds[segment.class_id] = seconds.get(segment.class_id, 0.0) + segment.end - segment.start
    if not seconds:
        peaks = scores.probabilities.max(axis=0)
        likeliest = sorted(np.argsort(-peaks, kind="stable")[:LIKELIEST].tolist())
        return likeliest, "; no action detected, these are the likeliest classes"
    longest = sorted(sorted(seconds, key=lambda c: -seconds[c])[:MOST_CLASSES])
    if len(longest) == len(seconds):
        return longest, ""
    return longest, f"; these {len(longest)} of {len(seconds)} classes last longest"


def _shades(scores: Scores, plot: _Plot) -> NDArray[np.uint8]:
    """Return the picture's pixels, white except for the probabilities."""
    pixels = np.full((plot.bottom + BOTTOM, WIDTH, 3), 255, np.uint8)
    edges = np.linspace(0, scores.duration, plot.right - plot.left + 1)
    likeliest = np.nan_to_num(highest(scores.probabilities[:, plot.classes], scores.bounds, edges))
    for band, row in enumerate(likeliest.T):
        y = TOP + BAND * band + SHADE
        pixels[y : y + BAR, plot.left : plot.right] = np.rint(255 * (1 - row))[:, None]
    return pixels


def highest(
    values: FloatArray, bounds: NDArray[np.float64], edges: NDArray[np.float64]
) -> FloatArray:
    """Return the highest value of the rows that touch each stretch of time.

    Args:
        values: (T, C).
        bounds: (T + 1,) seconds between which the T rows are shown.
        edges: (N + 1,) ascending seconds, where the stretches begin and end.

    Returns:
        (N, C); NaN where there is no row.
    """
    first = np.maximum(0, np.searchsorted(bounds[:-1], edges[:-1], side="right") - 1)
    after = np.searchsorted(bounds[:-1], edges[1:], side="left")
    padded = np.concatenate([values, np.full((1, values.shape[1]), np.nan, values.dtype)])
    # Every other run goes from one stretch's end to the next one's start.
    found = np.maximum.reduceat(padded, np.stack([first, after], axis=1).ravel())[::2]
    found[(edges[1:] <= bounds[0]) | (edges[:-1] >= bounds[-1])] = np.nan
    return found


def _bars(
    pen: ImageDraw.ImageDraw, plot: _Plot, segments: Sequence[Segment], below: int, colour: str
) -> None:
    """Draw segments as bars, `below` pixels under the upper edge of their class's band."""
    upper = {class_id: TOP + BAND * band + below for band, class_id in enumerate(plot.classes)}
    for segment in segments:
        if (y := upper.get(segment.class_id)) is not None:
            start = min(plot.x(segment.start), plot.right - NARROWEST)
            # Pillow includes the last row and column.
            last = max(plot.x(segment.end), start + NARROWEST) - 1
            pen.rectangle([start, y, last, y + BAR - 1], fill=colour)


def _time_axis(pen: ImageDraw.ImageDraw, plot: _Plot, remark: str) -> None:
    for seconds, text in ticks(plot.duration, plot.right - plot.left):
        x = plot.x(seconds)
        pen.line([(x, plot.bottom), (x, plot.bottom + 5)], "black")
        room = math.ceil(font(SMALL).getlength(text) / 2) + MARGIN
        x = min(WIDTH - room, max(room, x))
        pen.text((x, plot.bottom + 10), text, "black", font(SMALL), anchor="mt")
    units = ("seconds", "minutes:seconds", "hours:minutes:seconds")
    label = units[(plot.duration >= CLOCK) + (plot.duration >= 3600)] + remark
    at = ((plot.left + plot.right) // 2, plot.bottom + BOTTOM - 12)
    pen.text(at, label, "black", font(SMALL), anchor="ms")


def ticks(duration: float, width: int) -> list[tuple[float, str]]:
    """Return the numbers of a time axis, 0 and at most `MOST_TICKS` more, as (seconds, text).

    Args:
        duration: Seconds.
        width: Of the axis, in pixels.
    """
    for step, decimals in _steps(duration):
        last = math.floor(duration / step + 1e-9)  # 0.3 / 0.1 is below 3
        if last > MOST_TICKS:
            continue
        made = [(n * step, _time(n * step, decimals, duration)) for n in range(last + 1)]
        widest = max(font(SMALL).getlength(text) for _, text in made)
        if last == 0 or widest + GAP <= width * (step / duration):
            return made
    return [(0.0, "0")]


def _steps(duration: float) -> Iterator[tuple[float, int]]:
    """Yield steps between numbers in seconds, ascending, and the decimals that they need."""
    if duration >= CLOCK:
        yield from ((step, 0) for step in (15, 30, 60, 120, 300, 600, 900, 1800))
        yield from ((3600.0 * factor * 10**n, 0) for n in count() for factor in (1, 2, 5))
    elif duration >= SHORTEST:
        least = math.floor(math.log10(duration / MOST_TICKS))
        yield from ((f * 10.0**n, max(0, -n)) for n in count(least) for f in (1, 2, 5))


def _time(seconds: float, decimals: int, duration: float) -> str:
    """Return seconds; `m:ss` for a video of minutes and `h:mm:ss` for hours."""
    if duration < CLOCK:
        return f"{seconds:.{decimals}f}"
    time = clock(round(seconds))
    return (time if duration >= 3600 else time[-5:]).removeprefix("0")


def _legend(pen: ImageDraw.ImageDraw, has_labels: bool) -> None:
    """Explain the colours in the upper right corner."""
    colours = [("detected", DETECTED), ("probability (darker is likelier)", PROBABILITY)]
    if has_labels:
        colours.insert(1, ("labelled", LABELLED))
    x, y = WIDTH - RIGHT, TOP // 2
    for text, colour in reversed(colours):
        x -= math.ceil(font(SMALL).getlength(text))
        pen.text((x, y), text, "black", font(SMALL), anchor="lm")
        pen.rectangle([x - 46, y - BAR // 2, x - 12, y + BAR // 2], fill=colour)
        x -= 46 + 32


def _fitting(text: str, size: int) -> tuple[str, Font]:
    """Return the text as one line of at most `LONGEST_NAME` pixels, and its font."""
    text = one_line(text)
    used = font_for(text, size)

    def too_long(shown: str) -> bool:
        return used.getlength(shown) > LONGEST_NAME

    if not too_long(text):
        return text, used
    kept = bisect_left(range(len(text)), True, key=lambda n: too_long(f"{text[:n]}…")) - 1
    return f"{text[:kept]}…", used
