"""Turn the report's figures into SVG paths and positions, which the page's template draws."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mstemba.data_manifests.manifest import Action
from mstemba.pipeline.evaluate.metric_groups import ScoredVideo
from mstemba.records import Segment

WIDTH, HEIGHT = 460, 300
"""Size of a chart with its axes, in units of its view box."""
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 10, 42
"""Margins of a chart around its lines."""
TIMELINE_WIDTH = 1000
"""Width of a timeline, in units of its view box."""
MAX_CLASSES = 12
"""Classes drawn in a timeline."""
MAX_COLUMNS = 240
"""Columns of shades in a timeline."""
LEVELS = 8
"""Shades of probability."""

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Axis:
    """One axis of a chart."""

    low: float
    high: float
    begin: float
    """Position of `low`, in units of the view box."""
    end: float
    """Position of `high`."""
    log: bool = False

    def position(self, value: float) -> float:
        """Return the position of a value, to a tenth of a unit."""
        scaled = math.log if self.log else float
        low, high, value = map(scaled, (self.low, self.high, value))
        share = (value - low) / (high - low) if high > low else 0.5
        return round(self.begin + share * (self.end - self.begin), 1)

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """The (position, text) of values to write next to the axis."""
        from matplotlib.ticker import LogLocator, MaxNLocator

        values: list[float] = []
        if self.log:
            values = self._inside(LogLocator(subs=(1, 2, 5)).tick_values(self.low, self.high))
        if len(values) < 2:  # also for less than a decade
            even = MaxNLocator(5, steps=[1, 2, 5, 10])
            values = self._inside(even.tick_values(self.low, self.high))
        return [(self.position(value), f"{value:.6g}") for value in values]

    def _inside(self, values: Sequence[float]) -> list[float]:
        slack = 1e-9 * (abs(self.low) + abs(self.high))
        return [float(v) for v in values if self.low - slack <= v <= self.high + slack]


@dataclass(frozen=True)
class Chart:
    """Lines in one pair of axes."""

    x: Axis
    y: Axis
    x_label: str
    y_label: str
    lines: list[tuple[str, str]]
    """(name, SVG path)"""


def make_chart(
    lines: Mapping[str, Points],
    labels: tuple[str, str],
    x: tuple[float, float],
    y: tuple[float, float],
    *,
    log: bool = False,
    steps: bool = False,
) -> Chart:
    """Make a chart.

    Args:
        lines: Points by name.
        labels: Of the axes.
        x: Limits of the axis.
        y: Limits of the axis.
        log: Whether the y axis is logarithmic.
        steps: Whether each y holds from the x before.
    """
    x_axis = Axis(*x, LEFT, WIDTH - RIGHT)
    y_axis = Axis(*y, HEIGHT - BOTTOM, TOP, log)
    paths = [(name, _line(points, x_axis, y_axis, steps)) for name, points in lines.items()]
    return Chart(x_axis, y_axis, *labels, paths)


def _line(points: Points, x: Axis, y: Axis, steps: bool) -> str:
    placed = [(f"{x.position(a):g}", f"{y.position(b):g}") for a, b in points]
    if not steps and len(placed) == 1:  # a line of one point is a dash
        return "M{} {}m-4 0h8".format(*placed[0])
    if not steps:
        return "M" + "L".join(f"{a} {b}" for a, b in placed)
    return f"M{x.begin:g} {placed[0][1]}" + "".join(f"V{b}H{a}" for a, b in placed)


def pr_chart(curves: Sequence[dict[str, Any]]) -> Chart:
    """Draw precision over recall in percent; curves: as in the data of the report."""
    lines = {
        f"{number}": [(100 * r, 100 * p) for r, p in zip(c["recall"], c["precision"], strict=True)]
        for number, c in enumerate(curves, 1)
    }
    return make_chart(lines, ("recall (%)", "precision (%)"), (0, 100), (0, 100), steps=True)


def training_charts(training: dict[str, Any] | None) -> list[tuple[str, Chart]]:
    """Return (title, chart) of the loss and the mAP over the steps, where the run has them."""
    if training is None:
        return []
    steps = [step for points in training.values() for step, _ in points]
    limits = (0.0, float(max(steps, default=1)))
    found = []
    if losses := [(s, value) for s, value in training["loss"] if value > 0]:
        values = [value for _, value in losses]
        low, high = min(values), max(values)
        if low == high:
            low, high = low / 2, high * 2
        shape = make_chart({"loss": losses}, ("step", "loss"), limits, (low, high), log=True)
        found.append(("Training loss", shape))
    names = {"val_map": "validation videos", "train_map": "training videos"}
    if maps := {names[key]: training[key] for key in names if training[key]}:
        shape = make_chart(maps, ("step", "per-frame mAP (%)"), limits, (0, 100))
        found.append(("mAP of the averaged weights", shape))
    return found


@dataclass(frozen=True)
class Band:
    """One class of a timeline, as paths of horizontal strokes."""

    class_id: int
    shades: list[tuple[int, str]]
    """(level 1 to LEVELS, path)"""
    detected: str
    labelled: str


@dataclass(frozen=True)
class Timeline:
    """One video: the classes that are labelled or detected in it, over its whole length."""

    bands: list[Band]
    hidden: int
    """Classes that are labelled or detected, and not drawn."""
    ticks: list[tuple[float, str]]
    """(percent of the width, text)"""


def make_timeline(video: ScoredVideo, segments: Sequence[Segment], unit: str) -> Timeline:
    """Make the timeline of a video; of very many classes it shows those that last longest."""
    scores = video.scores
    end = max(video.duration, float(video.grid.ends[-1]))
    actions = [a for a in video.actions if a.end > 0 and a.start < end]
    lengths: dict[int, float] = {}
    spans: Sequence[Action | Segment] = [*segments, *actions]
    for span in spans:
        lengths[span.class_id] = lengths.get(span.class_id, 0.0) + span.end - span.start
    drawn = sorted(sorted(lengths, key=lambda c: (-lengths[c], c))[:MAX_CLASSES])
    group = -(-len(scores) // MAX_COLUMNS)
    bounds = video.grid.bounds(video.anchor)
    edges = np.append(bounds[:-1:group], bounds[-1]) * (TIMELINE_WIDTH / end)
    # Each column shows its likeliest row, so that no short peak is lost.
    columns = np.maximum.reduceat(scores, np.arange(0, len(scores), group), axis=0)
    return Timeline(
        [
            Band(
                class_id,
                _shades(columns[:, class_id], edges),
                _strokes([s for s in segments if s.class_id == class_id], end),
                _strokes([a for a in actions if a.class_id == class_id], end),
            )
            for class_id in drawn
        ],
        len(lengths) - len(drawn),
        _time_ticks(end, unit),
    )


def _shades(column: NDArray[np.float32], edges: NDArray[np.float64]) -> list[tuple[int, str]]:
    """Return a path for each level of probability; what rounds to 0 is not drawn."""
    levels = np.rint(np.clip(np.nan_to_num(column), 0, 1) * LEVELS).astype(int)
    begins = np.flatnonzero(np.diff(levels, prepend=-1))
    ends = np.append(begins[1:], len(levels))
    paths: dict[int, str] = {}
    for begin, end in zip(begins, ends, strict=True):
        level = int(levels[begin])
        paths[level] = paths.get(level, "") + _stroke(edges[begin], edges[end])
    return sorted((level, path) for level, path in paths.items() if level)


def _strokes(spans: Sequence[Action] | Sequence[Segment], end: float) -> str:
    cut = [(max(0.0, span.start), min(span.end, end)) for span in spans]
    # Spans shorter than a pixel must still be visible.
    placed = [(TIMELINE_WIDTH * a / end, TIMELINE_WIDTH * b / end) for a, b in cut]
    return "".join(_stroke(a, max(b, a + 1)) for a, b in placed)


def _stroke(begin: float, end: float) -> str:
    first, last = round(begin, 1), round(end, 1)
    return f"M{first:g} 0H{last:g}"


def _time_ticks(end: float, unit: str) -> list[tuple[float, str]]:
    from matplotlib.ticker import MaxNLocator

    clock = unit == "seconds" and end >= 120
    # Whole minutes, or round parts of one, where times are written as minutes and seconds.
    scale, steps = (60.0, [1, 1.5, 2, 3, 5, 10]) if clock else (1.0, [1, 2, 5, 10])
    values = np.asarray(MaxNLocator(6, steps=steps).tick_values(0, end / scale)) * scale
    inside = [float(value) for value in values if 0 <= value <= 0.94 * end]
    return [(round(100 * value / end, 2), time_text(value, clock)) for value in inside]


def time_text(value: float, clock: bool) -> str:
    """Format minutes and seconds with `clock`, otherwise the bare number."""
    whole = round(value)
    return f"{whole // 60}:{whole % 60:02d}" if clock else f"{value:.6g}"
