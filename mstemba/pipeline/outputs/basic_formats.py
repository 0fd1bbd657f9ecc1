"""JSON, ActivityNet's JSON, NPZ and PNG: the formats that a library writes by itself."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from mstemba.pipeline.caching.files import write_atomically, write_json
from mstemba.pipeline.outputs.detection import Detection
from mstemba.pipeline.outputs.png_timeline import draw_timeline


def write_json_file(detection: Detection, path: Path) -> None:
    """Write segments, time grid and provenance; times in seconds."""
    scores = detection.scores
    segments = [
        {
            "label": s.label,
            "class_id": s.class_id,
            "start": round(s.start, 6),
            "end": round(s.end, 6),
            "score": round(s.score, 6),
        }
        for s in detection.segments
    ]
    content = {
        "video": os.path.abspath(scores.video),
        "duration": scores.duration,
        "fps": scores.fps,
        **({"timecode": scores.timecode} if scores.timecode else {}),
        "classes": list(scores.classes),
        "grid": {**scores.grid.as_dict(), "anchor": scores.anchor},
        "segments": segments,
        "provenance": detection.provenance,
    }
    write_json(path, content)


def write_activitynet(detection: Detection, path: Path) -> None:
    """Write ActivityNet's results JSON, which the field's evaluation code reads.

    It has `results` by the video's id: label, score, segment in seconds; the likeliest first.
    """
    results = [
        {
            "label": s.label,
            "score": round(s.score, 6),
            "segment": [round(s.start, 6), round(s.end, 6)],
        }
        for s in sorted(detection.segments, key=lambda segment: -segment.score)
    ]
    id = detection.id or Path(detection.scores.video).stem
    # The version is that of the data set whose form this is.
    write_json(path, {"version": "VERSION 1.3", "results": {id: results}, "external_data": {}})


def write_npz(detection: Detection, path: Path) -> None:
    """Write T rows, C classes and N segments as NumPy arrays; seconds; nothing is pickled.

    probabilities (T, C); starts, ends, times (T,); classes (C,); segment_starts, segment_ends,
    segment_classes (numbers that count from 0), segment_scores (N,); video, id, duration, fps.
    """
    scores, segments = detection.scores, detection.segments
    arrays = {
        "probabilities": scores.probabilities,
        "starts": scores.grid.starts,
        "ends": scores.grid.ends,
        "times": scores.times,
        "classes": np.array(scores.classes, dtype=np.str_),
        "segment_starts": np.array([s.start for s in segments], dtype=np.float64),
        "segment_ends": np.array([s.end for s in segments], dtype=np.float64),
        "segment_classes": np.array([s.class_id for s in segments], dtype=np.int64),
        "segment_scores": np.array([s.score for s in segments], dtype=np.float32),
        "video": np.array(scores.video),
        "id": np.array(detection.id),
        "duration": np.array(scores.duration),
        "fps": np.array(scores.fps),
    }
    # Not compressed: probabilities hardly shrink, and it would take longer than all the rest.
    write_atomically(path, lambda temporary: np.savez(temporary, **arrays))  # type: ignore[arg-type]


def write_png(detection: Detection, path: Path) -> None:
    """Draw the detected and labelled actions over the probabilities."""
    image = draw_timeline(detection.scores, detection.segments, detection.ground_truth)
    write_atomically(path, lambda temporary: image.save(temporary, format="png"))
