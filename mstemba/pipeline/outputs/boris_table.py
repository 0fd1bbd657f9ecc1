"""TSV: the tabular events of BORIS (boris.unito.it), a row for each start and each end.

The columns are those of BORIS 8 and 9, which its users' scripts and `mstemba init` read.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from mstemba.data_manifests.readers.boris import DETECTIONS
from mstemba.data_manifests.readers.tables import escape_formula
from mstemba.pipeline.caching.files import write_text
from mstemba.pipeline.outputs.detection import Detection
from mstemba.pipeline.outputs.fields import distinct, media_path, milliseconds

COLUMNS = (
    "Observation id",
    "Observation date",
    "Description",
    "Observation duration",
    "Observation type",
    "Source",
    "Time offset (s)",
    "Media duration (s)",
    "FPS",
    "Subject",
    "Behavior",
    "Behavioral category",
    "Behavior type",
    "Time",
    "Media file name",
    "Image index",
    "Image file path",
    "Comment",
)


def write_tsv(detection: Detection, path: Path) -> None:
    """Write state events by time in seconds; image index is the frame, comment the score."""
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    writer.writerow(COLUMNS)
    scores = detection.scores
    media = media_path(scores.video, path)
    # BORIS separates files and players in this column by these characters.
    source = "" if ";" in media or "|" in media else f"player #1:{media}"
    duration = f"{scores.duration:.3f}"
    id = escape_formula(detection.id or path.stem)
    about = [id, "", DETECTIONS, duration, "Media file(s)"]
    about += [source, "0", duration, f"{scores.fps:.3f}", "No focal subject"]
    for time, status, label, comment in _events(detection):
        seconds = time / 1000
        frame = round(seconds * scores.fps)
        row = [
            *about,
            escape_formula(label),
            "",
            status,
            f"{seconds:.3f}",
            media,
            frame,
            "NA",
            comment,
        ]
        writer.writerow(row)
    write_text(path, text.getvalue().replace("\r", " "))


def _events(detection: Detection) -> Iterator[tuple[int, str, str, str]]:
    """Yield milliseconds, START or STOP, the class's name and the comment, by time."""
    # BORIS pairs a STOP with the START of the same name.
    names = distinct(detection.scores.classes)
    events = []
    for segment in detection.segments:
        start, end = milliseconds(segment)
        events.append((start, 1, segment.class_id, f"score {segment.score:.4f}"))
        events.append((end, 0, segment.class_id, ""))
    for time, begins, class_id, comment in sorted(events):
        yield time, "START" if begins else "STOP", names[class_id], comment
