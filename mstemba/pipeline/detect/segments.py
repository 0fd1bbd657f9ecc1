"""Dense scores to segments: threshold with hysteresis, then a minimum length."""

from __future__ import annotations

import numpy as np

from mstemba.errors import UsageError
from mstemba.records import Scores, Segment


def find_segments(
    scores: Scores, threshold: float, low: float, min_length: float = 0.0
) -> list[Segment]:
    """Return the segments of all classes, by start, then end, then class.

    A segment is a longest run of rows at `low` or above with at least one row at `threshold` or
    above: this hysteresis keeps an action in one piece where its score dips. It lasts from the
    start of its first row to the end of its last one, at most to the end of the video. Its score is
    the mean probability of its rows.

    Args:
        scores: Dense probabilities of a video.
        threshold: Probability at which a segment begins.
        low: Probability down to which it continues.
        min_length: Seconds; shorter segments are dropped.

    Raises:
        UsageError: `low` is above the threshold.
    """
    if low > threshold:
        raise UsageError(f"low is {low}, expected no more than the threshold, {threshold}")
    values = scores.probabilities
    # All classes one after the other, each closed by a row that is in no run.
    edges = np.diff((values >= low).astype(np.int8), axis=0, prepend=0, append=0).T
    classes, first = np.nonzero(edges == 1)
    after = np.nonzero(edges == -1)[1]
    if not len(first):
        return []
    flat = np.pad(values, ((0, 1), (0, 0))).T.ravel()
    # Every other one of these stretches lies between two runs.
    stretches = (np.stack([first, after]) + classes * (len(values) + 1)).T.ravel()
    peaks = np.maximum.reduceat(flat, stretches)[::2]
    means = np.add.reduceat(flat, stretches, dtype=np.float64)[::2] / (after - first)
    starts = np.clip(scores.grid.starts, 0, scores.duration)[first]
    ends = np.minimum(scores.grid.ends, scores.duration)[after - 1]
    kept = (peaks >= threshold) & (ends > starts) & (ends - starts >= min_length)
    order = np.lexsort((classes, ends, starts))
    columns = (column[order[kept[order]]].tolist() for column in (starts, ends, classes, means))
    return [
        Segment(start, end, class_id, scores.classes[class_id], mean)
        for start, end, class_id, mean in zip(*columns, strict=True)
    ]
