"""PNG: one band a class, probability as shade, detected segments above, labelled actions below."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mstemba.pipeline.files import write_atomically
from mstemba.pipeline.outputs.detection import Detection
from mstemba.records import Segment

# Okabe and Ito's palette: told apart by colour-blind people.
DETECTED, LABELLED = "#0072B2", "#D55E00"
MOST_CLASSES = 40
MOST_COLUMNS = 4000


def write_png(detection: Detection, path: Path) -> None:
    """Draw the classes that are detected or labelled; of very many the longest-lasting ones."""
    rows = _classes_to_draw(detection)
    names = [detection.scores.classes[class_id] for class_id in rows]
    figure = Figure(figsize=(12, 1.5 + 0.42 * max(1, len(rows))), layout="constrained")
    axes = figure.subplots()
    scores = detection.scores
    axes.set(xlim=(0, scores.duration), ylim=(max(1, len(rows)), 0), xlabel="seconds")
    axes.set_yticks(np.arange(len(rows)) + 0.5, [_plain(name) for name in names])
    for y, class_id in enumerate(rows):
        _shade(axes, detection, class_id, y)
        _bars(axes, detection.segments, class_id, y + 0.08, DETECTED)
        _bars(axes, detection.ground_truth or [], class_id, y + 0.66, LABELLED)
        axes.axhline(y + 1, color="#DDDDDD", linewidth=0.6)
    handles = [axes.fill_between([], [], color=DETECTED, label="detected")]
    if detection.ground_truth is not None:
        handles.append(axes.fill_between([], [], color=LABELLED, label="labelled"))
    handles.append(
        axes.fill_between([], [], color="#888888", label="probability (darker is likelier)")
    )
    axes.legend(handles=handles, loc="lower right", bbox_to_anchor=(1, 1), ncols=3, frameon=False)
    title = Path(scores.video).name
    if not rows:
        axes.text(
            0.5, 0.5, "no action detected", transform=axes.transAxes, ha="center", va="center"
        )
    axes.set_title(_plain(title), loc="left")
    with warnings.catch_warnings():
        # The font lacks some scripts, whose letters are drawn as boxes.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=120))


def _classes_to_draw(detection: Detection) -> list[int]:
    lasting: dict[int, float] = {}
    for segment in [*detection.segments, *(detection.ground_truth or [])]:
        lasting[segment.class_id] = lasting.get(segment.class_id, 0.0) + segment.end - segment.start
    return sorted(sorted(lasting, key=lambda c: -lasting[c])[:MOST_CLASSES])


def _shade(axes: Axes, detection: Detection, class_id: int, y: float) -> None:
    scores = detection.scores
    column, starts = scores.probabilities[:, class_id], scores.grid.starts
    group = max(1, -(-len(column) // MOST_COLUMNS))
    column = np.maximum.reduceat(column, np.arange(0, len(column), group))
    edges = np.append(starts[::group], scores.grid.ends[-1])
    axes.pcolormesh(
        edges, [y + 0.36, y + 0.62], column[None], cmap="Greys", vmin=0, vmax=1, rasterized=True
    )


def _bars(axes: Axes, segments: list[Segment], class_id: int, y: float, colour: str) -> None:
    spans = [(s.start, max(0.0, s.end - s.start)) for s in segments if s.class_id == class_id]
    axes.broken_barh(spans, (y, 0.26), facecolors=colour)


def _plain(text: str) -> str:
    # matplotlib would typeset $...$ and break lines; names are shown as they are.
    text = text.encode("utf-8", "backslashreplace").decode()
    text = text if len(text) <= 60 else f"{text[:59]}…"
    return text.replace("$", r"\$").replace("\n", " ")
