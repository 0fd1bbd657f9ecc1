"""Detections for the page to show, and a small film for it to play."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mstemba.data_manifests.manifest import Action
from mstemba.pipeline.demo import write_video
from mstemba.pipeline.detect.segments import find_segments
from mstemba.pipeline.options import ExportOptions
from mstemba.pipeline.outputs import Detection
from mstemba.pipeline.outputs.detection import ManifestEntry
from mstemba.pipeline.outputs.html_page import write_html
from mstemba.records import Scores, Segment, TimeGrid

ODD_CLASSES = (
    "open <script>window.__pwned = 1</script>",
    '"><img src=x onerror="window.__pwned = 2">',
    "</script><script>window.__pwned = 3</script>",
    "two\nlines",
    "=SUM(A1)",
    "'; alert(1); '",
    "שלום עולם",
    "日本 & <b>bold</b>",
    "caf\udce9",
    "__proto__",
    "",
    "${title} $script",
)
KITCHEN = (
    "take cup", "pour water", "stir", "cut bread", "open fridge", "walk", "sit down", "drink",
    "read a book", "use phone", "wash hands", "close door", "write", "sweep the floor",
)  # fmt: skip


def smooth(rows: int, classes: int, seed: int = 0, wide: float = 5.0) -> NDArray[np.float32]:
    """(T, C) probabilities as a network gives them: mostly low, with smooth rises, and noise."""
    random = np.random.default_rng(seed)
    steps = np.arange(-3 * wide, 3 * wide + 1)
    bell = np.exp(-0.5 * (steps / wide) ** 2)
    bell /= np.sqrt((bell**2).sum())
    waves = random.normal(size=(rows, classes))
    waves = np.stack([np.convolve(w, bell, "same") for w in waves.T], axis=1)
    logits = 2.2 * waves - 2.6 + 0.15 * random.normal(size=(rows, classes))
    return (1 / (1 + np.exp(-logits))).astype(np.float32)


def uneven(rows: int, step: float = 0.64) -> TimeGrid:
    """A grid as real time stamps make it: no two steps quite alike."""
    jitter = np.random.default_rng(1).uniform(-0.01, 0.01, rows)
    return TimeGrid(step * np.arange(rows) + np.where(np.arange(rows) == 0, 0, jitter), step)


def scene(
    video: Path,
    classes: Iterable[str] = KITCHEN,
    rows: int = 90,
    probabilities: NDArray[np.float32] | None = None,
    truth: bool = True,
    grid: TimeGrid | None = None,
    anchor: float = 0.0,
    **changes: Any,
) -> Detection:
    """A detection of a video, which need not be there; labels lie near the detections."""
    classes = tuple(classes)
    if probabilities is None:
        probabilities = smooth(rows, len(classes), wide=4.0)
    grid = grid or uneven(len(probabilities))
    duration = float(grid.ends[-1]) - 0.3
    scores = Scores(probabilities, grid, classes, str(video), duration, 25.0, anchor=anchor)
    options = changes.pop("options", ExportOptions())
    found = find_segments(scores, options.threshold, options.low_threshold, options.min_length)
    labels = [_label(s, duration) for s in found[: max(1, len(found) - 3)]]
    facts = {"checkpoint": "runs/mstemba-1a2b3c4d/best", "arch": "mstemba"}
    made = {"id": video.stem, "subset": "testing", "options": options, **changes}
    detection = Detection(scores, found, None, facts, **made)
    return labelled(detection, labels) if truth else detection


def labelled(
    what: Detection, labels: Iterable[Segment], classes: Iterable[str] | None = None
) -> Detection:
    """A detection of a video that the manifest has with these labels, in seconds."""
    labels = list(labels)
    scored = what.scores.classes
    actions = tuple(Action(s.class_id, s.start, s.end) for s in labels)
    entry = ManifestEntry(tuple(classes or scored), scored, None, actions, actions)
    return replace(what, ground_truth=labels, listed=entry)


def _label(found: Segment, duration: float) -> Segment:
    """What an annotator would have written, in hundredths of a second."""
    start, end = max(0.0, found.start - 0.4), min(duration - 0.01, found.end + 0.7)
    return Segment(round(start, 2), round(end, 2), found.class_id, found.label, 1.0)


def page(what: Detection, folder: Path, name: str = "page.html") -> Path:
    """Write the page of a detection."""
    path = folder / name
    write_html(what, path)
    return path


def film(path: Path, seconds: float = 6.0, fps: int = 10, size: int = 128) -> Path:
    """A video of a square that goes round, as H.264."""
    y, x = np.mgrid[:size, : 16 * size // 9 // 2 * 2]
    width = x.shape[1]

    def images() -> Iterable[NDArray[np.uint8]]:
        for i in range(round(seconds * fps)):
            turn = 2 * np.pi * i / (3 * fps)
            a, b = size / 2 + size / 3 * np.sin(turn), width / 2 + width / 3 * np.cos(turn)
            near = (np.abs(y - a) < size / 8) & (np.abs(x - b) < size / 8)
            shade = 60 + 60 * y / size
            picture = np.stack([shade, shade + 20, 90 + 60 * x / width], axis=-1)
            picture[near] = (240, 200, 60)
            yield picture.astype(np.uint8)

    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, images(), fps)
    return path


def long_scene(video: Path, rows: int = 3600, classes: int = 157) -> Detection:
    """Forty minutes of very many classes: as dense as Charades' list of actions."""
    names = [f"{KITCHEN[i % len(KITCHEN)]}, kind {i // len(KITCHEN) + 1}" for i in range(classes)]
    grid = uneven(rows, 2400 / rows)
    return scene(video, names, probabilities=smooth(rows, classes), grid=grid)
