"""PNG: one band a class, probability as shade, detected segments above, labelled actions below."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from numpy.typing import NDArray

from mstemba.pipeline.files import write_atomically
from mstemba.pipeline.outputs.detection import Detection
from mstemba.pipeline.progress import one_line
from mstemba.records import FloatArray, Scores, Segment, TimeGrid

# Okabe and Ito's palette: told apart by colour-blind people.
DETECTED, LABELLED = "#0072B2", "#D55E00"
MOST_CLASSES = 30
# Classes that are drawn where nothing is detected.
LIKELIEST = 5
# About as many as the picture has pixels there.
COLUMNS = 1200
WIDTH, DPI = 12, 120
"""Inches, and pixels of one."""


def write_png(detection: Detection, path: Path) -> None:
    """Draw the classes that are detected or labelled; of very many the longest-lasting ones."""
    write_atomically(path, lambda temporary: _save(detection, temporary))


def as_png(detection: Detection) -> bytes:
    """The content of the file."""
    content = io.BytesIO()
    _save(detection, content)
    return content.getvalue()


def _save(detection: Detection, target: Path | BinaryIO) -> None:
    with warnings.catch_warnings():
        # The font lacks some scripts, whose letters are drawn as boxes.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        _draw(detection).savefig(target, format="png", dpi=DPI)


def _draw(detection: Detection) -> Figure:
    rows = _classes_to_draw(detection)
    names = [detection.scores.classes[class_id] for class_id in rows]
    figure = Figure(figsize=(WIDTH, 1.5 + 0.42 * max(1, len(rows))), dpi=DPI)
    axes = figure.subplots()
    scores = detection.scores
    axes.set(xlim=(0, scores.duration), ylim=(max(1, len(rows)), 0))
    axes.set_yticks(np.arange(len(rows)) + 0.5, [_plain(name) for name in names])
    if rows:
        _shade(axes, scores, rows)
    _bars(axes, detection.segments, rows, 0.08, DETECTED)
    _bars(axes, detection.ground_truth or [], rows, 0.66, LABELLED)
    axes.hlines(np.arange(len(rows)) + 1, 0, scores.duration, color="#DDDDDD", linewidth=0.6)
    handles = [axes.fill_between([], [], color=DETECTED, label="detected")]
    if detection.ground_truth is not None:
        handles.append(axes.fill_between([], [], color=LABELLED, label="labelled"))
    handles.append(
        axes.fill_between([], [], color="#888888", label="probability (darker is likelier)")
    )
    axes.legend(handles=handles, loc="lower right", bbox_to_anchor=(1, 1), ncols=3, frameon=False)
    axes.set_xlabel(f"seconds{_what_is_shown(detection, rows)}")
    # At the picture's edge, for it has the legend beside it.
    name = _plain(Path(scores.video).name)
    figure.text(0.1 / WIDTH, 1 - 0.1 / figure.get_figheight(), name, va="top", fontsize="large")
    _make_room(figure, axes)
    return figure


def _make_room(figure: Figure, axes: Axes) -> None:
    """Leave as much space on the left as the names need.

    matplotlib's own layouts measure every text many times, which takes longer than all the rest.
    """
    FigureCanvasAgg(figure)  # which becomes the figure's, and measures
    names = [name.get_window_extent().width for name in axes.get_yticklabels()]
    left = 0.25 + max(names, default=0.0) / DPI
    height = figure.get_figheight()
    figure.subplots_adjust(
        left=min(0.75, left / WIDTH),
        right=1 - 0.2 / WIDTH,
        bottom=0.55 / height,
        top=1 - 0.35 / height,
    )


def _classes_to_draw(detection: Detection) -> list[int]:
    """Those with segments or labels; where there are none, those with the highest probabilities."""
    lasting: dict[int, float] = {}
    for segment in [*detection.segments, *(detection.ground_truth or [])]:
        lasting[segment.class_id] = lasting.get(segment.class_id, 0.0) + segment.end - segment.start
    if not lasting:
        peaks = detection.scores.probabilities.max(axis=0)
        return sorted(np.argsort(-peaks, kind="stable")[:LIKELIEST].tolist())
    return sorted(sorted(lasting, key=lambda c: -lasting[c])[:MOST_CLASSES])


def _what_is_shown(detection: Detection, rows: list[int]) -> str:
    """Which classes these are, where it is not all that are detected or labelled."""
    found = {s.class_id for s in [*detection.segments, *(detection.ground_truth or [])]}
    if not found:
        return "; no action detected, these are the likeliest classes"
    if len(rows) < len(found):
        return f"; these {len(rows)} of {len(found)} classes last longest"
    return ""


def _shade(axes: Axes, scores: Scores, rows: list[int]) -> None:
    """Draw the probabilities as one mesh, which is far quicker than one for each class."""
    edges = np.linspace(0, scores.duration, COLUMNS + 1)
    # Between the classes' strips are clear ones.
    strips = np.full((2 * len(rows), COLUMNS), np.nan, np.float32)
    strips[::2] = highest(scores.probabilities[:, rows], scores.grid, edges).T
    heights = (np.arange(len(rows))[:, None] + [0.36, 0.62]).ravel()
    axes.pcolormesh(edges, heights, strips[:-1], cmap="Greys", vmin=0, vmax=1)


def highest(values: FloatArray, grid: TimeGrid, edges: NDArray[np.float64]) -> FloatArray:
    """(T, C) to (len(edges) - 1, C): the highest value of the rows that touch each stretch of time.

    `edges` are in seconds, ascending; where no row is, it is NaN.
    """
    first = np.maximum(0, np.searchsorted(grid.starts, edges[:-1], side="right") - 1)
    after = np.searchsorted(grid.starts, edges[1:], side="left")
    padded = np.concatenate([values, np.full((1, values.shape[1]), np.nan, values.dtype)])
    # Every other one of these runs goes from one stretch's end to the next one's start.
    found = np.maximum.reduceat(padded, np.stack([first, after], axis=1).ravel())[::2]
    found[(edges[1:] <= grid.starts[0]) | (edges[:-1] >= grid.ends[-1])] = np.nan
    return found


def _bars(axes: Axes, segments: list[Segment], rows: list[int], below: float, colour: str) -> None:
    """Draw segments as bars, so far below the upper edge of their class."""
    upper = {class_id: y + below for y, class_id in enumerate(rows)}
    corners = [
        [(s.start, y), (s.end, y), (s.end, y + 0.26), (s.start, y + 0.26)]
        for s in segments
        if (y := upper.get(s.class_id)) is not None
    ]
    # With an edge, so that what is shorter than a pixel is seen, too.
    bars = PolyCollection(corners, facecolors=colour, edgecolors=colour, linewidths=0.5)
    axes.add_collection(bars, autolim=False)


def _plain(text: str) -> str:
    # matplotlib would typeset $...$ and break lines; names are shown as they are.
    text = one_line(text)
    text = text if len(text) <= 60 else f"{text[:59]}…"
    return text.replace("$", r"\$")
