"""ActivityNet's results JSON, which the field's evaluation code reads."""

from __future__ import annotations

from pathlib import Path

from mstemba.pipeline.caching.files import write_json
from mstemba.pipeline.outputs.detection import Detection


def write_activitynet(detection: Detection, path: Path) -> None:
    """Write `results` by the video's id: label, score, segment in seconds; the likeliest first."""
    segments = sorted(detection.segments, key=lambda segment: -segment.score)
    write_json(
        path,
        {
            "version": "VERSION 1.3",  # of the data set whose form this is
            "results": {
                detection.id or Path(detection.scores.video).stem: [
                    {
                        "label": s.label,
                        "score": round(s.score, 6),
                        "segment": [round(s.start, 6), round(s.end, 6)],
                    }
                    for s in segments
                ]
            },
            "external_data": {},
        },
    )
