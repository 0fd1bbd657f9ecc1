"""Detections to files: one small writer a format."""

from collections.abc import Callable
from pathlib import Path

from mstemba.pipeline.outputs.csv_table import write_csv
from mstemba.pipeline.outputs.detection import Detection
from mstemba.pipeline.outputs.json_file import write_json_file
from mstemba.pipeline.outputs.png_timeline import write_png

WRITERS: dict[str, Callable[[Detection, Path], None]] = {
    "json": write_json_file,
    "csv": write_csv,
    "png": write_png,
}

__all__ = ["WRITERS", "Detection"]
