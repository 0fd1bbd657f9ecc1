"""CSV: one row a segment, for spreadsheets and pandas."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from mstemba.data_manifests.readers.tables import escape_formula
from mstemba.pipeline.caching.files import write_text
from mstemba.pipeline.outputs.detection import Detection


def write_csv(detection: Detection, path: Path) -> None:
    """Write the columns video, start, end, label, class_id, score; times in seconds.

    The video is its file's name, or its id where that says more (`monday/walk`).
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["video", "start", "end", "label", "class_id", "score"])
    file = Path(detection.scores.video)
    video = file.name if detection.id in ("", file.stem) else detection.id
    for s in detection.segments:
        label = escape_formula(s.label)
        writer.writerow(
            [
                escape_formula(video),
                f"{s.start:.3f}",
                f"{s.end:.3f}",
                label,
                s.class_id,
                f"{s.score:.4f}",
            ]
        )
    write_text(path, text.getvalue())
