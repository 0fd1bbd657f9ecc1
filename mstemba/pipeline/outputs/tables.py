"""CSV: a row for each segment. TSV: the tabular events of BORIS, a row for each start and end."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path

from mstemba.data_manifests.readers.boris import DETECTIONS
from mstemba.data_manifests.readers.tables import escape_formula
from mstemba.pipeline.caching.files import write_text
from mstemba.pipeline.outputs.detection import Detection
from mstemba.pipeline.outputs.fields import distinct, media_path, milliseconds

CSV_COLUMNS = ("video", "start", "end", "label", "class_id", "score")
# Of BORIS 8 and 9 (boris.unito.it), which its users' scripts and `mstemba init` read.
BORIS_COLUMNS = (
    "Observation id", "Observation date", "Description", "Observation duration",
    "Observation type", "Source", "Time offset (s)", "Media duration (s)", "FPS", "Subject",
    "Behavior", "Behavioral category", "Behavior type", "Time", "Media file name", "Image index",
    "Image file path", "Comment",
)  # fmt: skip


def write_csv(detection: Detection, path: Path) -> None:
    """Write the columns video, start, end, label, class_id, score; times in seconds.

    The video is its file's name, or its id where that says more (`monday/walk`).
    """
    file = Path(detection.scores.video)
    video = escape_formula(file.name if detection.id in ("", file.stem) else detection.id)
    rows = []
    for s in detection.segments:
        times = f"{s.start:.3f}", f"{s.end:.3f}"
        rows.append((video, *times, escape_formula(s.label), s.class_id, f"{s.score:.4f}"))
    write_text(path, _table(CSV_COLUMNS, rows, ","))


def write_tsv(detection: Detection, path: Path) -> None:
    """Write state events by time in seconds; image index is the frame, comment the score."""
    scores = detection.scores
    media = media_path(scores.video, path)
    # BORIS separates files and players in this column by these characters.
    source = "" if ";" in media or "|" in media else f"player #1:{media}"
    duration = f"{scores.duration:.3f}"
    id = escape_formula(detection.id or path.stem)
    about = [id, "", DETECTIONS, duration, "Media file(s)", source, "0", duration]
    about += [f"{scores.fps:.3f}", "No focal subject"]
    # BORIS pairs a STOP with the START of the same name.
    names = [escape_formula(name) for name in distinct(scores.classes)]
    events = []
    for segment in detection.segments:
        start, end = milliseconds(segment)
        events.append((start, 1, segment.class_id, f"score {segment.score:.4f}"))
        events.append((end, 0, segment.class_id, ""))
    rows = []
    for time, begins, class_id, comment in sorted(events):
        seconds = time / 1000
        event = (names[class_id], "", "START" if begins else "STOP", f"{seconds:.3f}")
        rows.append((*about, *event, media, round(seconds * scores.fps), "NA", comment))
    write_text(path, _table(BORIS_COLUMNS, rows, "\t").replace("\r", " "))


def _table(columns: Iterable[str], rows: Iterable[Iterable[object]], delimiter: str) -> str:
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, lineterminator="\n").writerows([columns, *rows])
    return text.getvalue()
