"""Dense scores to segments: threshold with hysteresis, then a minimum length."""

from __future__ import annotations

import numpy as np

from mstemba.records import Scores, Segment


def find_segments(
    scores: Scores, threshold: float, low: float, min_length: float = 0.0
) -> list[Segment]:
    """The segments of every class, by start, then end, then class.

    A segment is a longest run of rows at `low` or above that holds a row at `threshold` or above;
    hysteresis keeps one action from falling apart where its score dips. It lasts from the start of
    its first row to the end of its last, no further than the video, in seconds; shorter ones than
    `min_length` are dropped. Its score is the mean probability over its rows.
    """
    starts, ends = scores.grid.starts, np.minimum(scores.grid.ends, scores.duration)
    segments = []
    for class_id, label in enumerate(scores.classes):
        column = scores.probabilities[:, class_id]
        edges = np.diff(np.concatenate([[0], column >= low, [0]]).astype(np.int8))
        for first, after in zip(
            np.flatnonzero(edges == 1), np.flatnonzero(edges == -1), strict=True
        ):
            run = column[first:after]
            start, end = float(starts[first]), float(ends[after - 1])
            if run.max() >= threshold and end - start >= min_length:
                segments.append(Segment(start, end, class_id, label, float(run.mean())))
    return sorted(segments)
