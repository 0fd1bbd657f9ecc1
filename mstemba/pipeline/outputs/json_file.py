"""JSON: segments, time grid, provenance. Seconds throughout."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mstemba.pipeline.caching.files import write_json
from mstemba.pipeline.outputs.detection import Detection


def as_dict(detection: Detection) -> dict[str, Any]:
    """Return the content of the file as plain data."""
    scores = detection.scores
    return {
        "video": os.path.abspath(scores.video),
        "duration": scores.duration,
        "fps": scores.fps,
        "classes": list(scores.classes),
        "grid": scores.grid.as_dict(),
        "segments": [
            {
                "label": s.label,
                "class_id": s.class_id,
                "start": round(s.start, 6),
                "end": round(s.end, 6),
                "score": round(s.score, 6),
            }
            for s in detection.segments
        ],
        "provenance": detection.provenance,
    }


def write_json_file(detection: Detection, path: Path) -> None:
    """Write segments, time grid and provenance; times in seconds."""
    write_json(path, as_dict(detection))
