"""Detections to files: one small writer for each format."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mstemba.pipeline.outputs.basic_formats import (
    write_activitynet,
    write_json_file,
    write_npz,
    write_png,
)
from mstemba.pipeline.outputs.detection import Detection
from mstemba.pipeline.outputs.editing import write_edl, write_otio
from mstemba.pipeline.outputs.elan_file import write_eaf
from mstemba.pipeline.outputs.html_page import missing_video, write_html
from mstemba.pipeline.outputs.subtitles import write_srt, write_vtt
from mstemba.pipeline.outputs.tables import write_csv, write_tsv


@dataclass(frozen=True)
class Writer:
    """How one format is written."""

    suffix: str
    """Of the file: `walk.mp4` becomes `walk.<suffix>`."""
    write: Callable[[Detection, Path], None]
    warn: Callable[[Detection], str] | None = None
    """Says what the file will lack, if anything."""


WRITERS = {
    "json": Writer("json", write_json_file),
    "csv": Writer("csv", write_csv),
    "tsv": Writer("tsv", write_tsv),
    "eaf": Writer("eaf", write_eaf),
    "vtt": Writer("vtt", write_vtt),
    "srt": Writer("srt", write_srt),
    "edl": Writer("edl", write_edl),
    "otio": Writer("otio", write_otio),
    "activitynet": Writer("activitynet.json", write_activitynet),
    "npz": Writer("npz", write_npz),
    "png": Writer("png", write_png),
    "html": Writer("html", write_html, missing_video),
}

__all__ = ["WRITERS", "Detection", "Writer"]
