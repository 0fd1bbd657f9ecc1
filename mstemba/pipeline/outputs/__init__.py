"""Detections to files: one small writer a format."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mstemba.pipeline.outputs.csv_table import write_csv
from mstemba.pipeline.outputs.detection import Detection
from mstemba.pipeline.outputs.json_file import write_json_file
from mstemba.pipeline.outputs.png_timeline import write_png


@dataclass(frozen=True)
class Writer:
    """How one format is written."""

    suffix: str
    """Of the file: `walk.mp4` becomes `walk.<suffix>`."""
    write: Callable[[Detection, Path], None]


WRITERS = {
    "json": Writer("json", write_json_file),
    "csv": Writer("csv", write_csv),
    "png": Writer("png", write_png),
}

__all__ = ["WRITERS", "Detection", "Writer"]
