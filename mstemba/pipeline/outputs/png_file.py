"""PNG: the timeline picture."""

from __future__ import annotations

from pathlib import Path

from mstemba.pipeline.caching.files import write_atomically
from mstemba.pipeline.outputs.detection import Detection
from mstemba.pipeline.outputs.png_timeline import draw_timeline


def write_png(detection: Detection, path: Path) -> None:
    """Draw the detected and labelled actions over the probabilities."""
    image = draw_timeline(detection.scores, detection.segments, detection.ground_truth)
    write_atomically(path, lambda temporary: image.save(temporary, format="png"))
