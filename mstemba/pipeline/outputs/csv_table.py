"""CSV: one row a segment, for spreadsheets and pandas."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from mstemba.pipeline.files import write_text
from mstemba.pipeline.outputs.detection import Detection


def write_csv(detection: Detection, path: Path) -> None:
    """Columns video, start, end, label, class_id, score; seconds.

    The video is its file's name, or its id where that says more (`monday/walk`).
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["video", "start", "end", "label", "class_id", "score"])
    file = Path(detection.scores.video)
    video = file.name if detection.id in ("", file.stem) else detection.id
    for s in detection.segments:
        label = literal(s.label)
        writer.writerow(
            [literal(video), f"{s.start:.3f}", f"{s.end:.3f}", label, s.class_id, f"{s.score:.4f}"]
        )
    write_text(path, text.getvalue())


def literal(text: str) -> str:
    """A cell that no spreadsheet takes for a formula."""
    # A spreadsheet would run a cell that begins like a formula. `init` takes one apostrophe off.
    formula = text.lstrip("'").startswith(("=", "+", "-", "@", "\t", "\r"))
    text = "'" + text if formula else text
    return text.replace("\r", " ")  # the csv module does not quote it
