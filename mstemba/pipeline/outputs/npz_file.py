"""NPZ: dense scores with their times, and the segments, as NumPy arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mstemba.pipeline.caching.files import write_atomically
from mstemba.pipeline.outputs.detection import Detection


def write_npz(detection: Detection, path: Path) -> None:
    """T rows, C classes, N segments; seconds; nothing in it is pickled.

    probabilities (T, C); starts, ends (T,); classes (C,); segment_starts, segment_ends,
    segment_classes (numbers that count from 0), segment_scores (N,); video, id, duration, fps.
    """
    scores, segments = detection.scores, detection.segments
    arrays = {
        "probabilities": scores.probabilities,
        "starts": scores.grid.starts,
        "ends": scores.grid.ends,
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
