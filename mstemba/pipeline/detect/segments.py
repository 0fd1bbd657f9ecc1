"""Dense scores to segments: threshold with hysteresis, edges between rows, then a minimum length.

`outputs/page/segments.js` follows the same rule, so that the page cuts as this module does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mstemba.errors import UsageError
from mstemba.records import LEVELS, FloatArray, Scores, Segment, to_levels

CLOSEST = 0.05
"""Share of the distance between two rows that an edge keeps from both of them."""
DECIMALS = 9
"""Of the seconds of an edge, so that the last bits of a logarithm do not matter."""


@dataclass(frozen=True)
class SegmentTable:
    """N segments of one video as columns, by start, then end, then class."""

    starts: NDArray[np.float64]
    """(N,) seconds."""
    ends: NDArray[np.float64]
    """(N,) seconds."""
    class_ids: NDArray[np.int64]
    """(N,)"""
    scores: NDArray[np.float64]
    """(N,) mean probabilities."""


def find_segments(
    scores: Scores, threshold: float, low: float, min_length: float = 0.0
) -> list[Segment]:
    """Return the segments of all classes, by start, then end, then class.

    A segment reaches from the first to the last row at `threshold` or above of a longest run of
    rows at `low` or above: this hysteresis keeps an action in one piece where its score dips. It
    begins and ends between two rows, where the probability crosses the threshold (see
    `crossings`), within the video. A segment with the first row begins where the row starts, and
    one with the last row ends where the row ends. Its score is the mean probability of its rows.

    Args:
        scores: Dense probabilities of a video.
        threshold: Probability at which a segment begins and ends.
        low: Probability down to which rows between two parts of a segment do not split it.
        min_length: Seconds; shorter segments are dropped.

    Raises:
        UsageError: `low` is above the threshold.
    """
    found = cut_scores(scores, threshold, low, min_length)
    columns = (c.tolist() for c in (found.starts, found.ends, found.class_ids, found.scores))
    return [
        Segment(start, end, class_id, scores.classes[class_id], mean)
        for start, end, class_id, mean in zip(*columns, strict=True)
    ]


def cut_scores(
    scores: Scores, threshold: float, low: float, min_length: float = 0.0
) -> SegmentTable:
    """Return the segments that `find_segments` returns, as columns."""
    if low > threshold:
        raise UsageError(f"low is {low}, expected no more than the threshold, {threshold}")
    values = scores.probabilities
    classes, first, last = _find_rows(values, threshold, low)
    # All classes one after the other, each closed by a row of zeros.
    flat = np.pad(values, ((0, 1), (0, 0))).T.ravel()
    # Every other one of these stretches lies between two segments.
    stretches = (np.stack([first, last + 1]) + classes * (len(values) + 1)).T.ravel()
    means = np.add.reduceat(flat, stretches, dtype=np.float64)[::2] / (last + 1 - first)
    starts = _find_edges(scores, classes, first, -1, threshold)
    ends = _find_edges(scores, classes, last, 1, threshold)
    kept = (ends > starts) & (ends - starts >= min_length)
    order = np.lexsort((classes, ends, starts))
    order = order[kept[order]]
    return SegmentTable(starts[order], ends[order], classes[order], means[order])


def _find_rows(
    values: NDArray[np.float32], threshold: float, low: float
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return the class, the first row and the last row of every segment, by class."""
    rows = len(values)
    edges = np.diff((values >= low).astype(np.int8), axis=0, prepend=0, append=0).T
    classes, first = np.nonzero(edges == 1)
    after = np.nonzero(edges == -1)[1]
    # Among the rows at the threshold or above, numbered class by class: those of each run.
    high = np.flatnonzero((values >= threshold).T)
    begin = np.searchsorted(high, classes * rows + first)
    end = np.searchsorted(high, classes * rows + after)
    found = end > begin
    classes, begin, end = classes[found], begin[found], end[found]
    return classes, high[begin] - classes * rows, high[end - 1] - classes * rows


def _find_edges(
    scores: Scores,
    classes: NDArray[np.int64],
    inner: NDArray[np.int64],
    direction: int,
    threshold: float,
) -> NDArray[np.float64]:
    """Return the seconds at which segments begin (`direction` -1) or end (1).

    `inner` (N,) is their first or last row, the one next to the edge.
    """
    times, values, rows = scores.times, scores.probabilities, scores.grid.count
    outer = np.clip(inner + direction, 0, rows - 1)
    share = crossings(values[outer, classes], values[inner, classes], threshold)
    between = times[outer] + share * (times[inner] - times[outer])
    outermost = scores.bounds[0 if direction < 0 else -1]
    edges = np.where(inner == outer, outermost, np.round(between, DECIMALS))
    return np.clip(edges, 0, scores.duration)


def crossings(below: FloatArray, above: FloatArray, threshold: float) -> NDArray[np.float64]:
    """Return where the probability crosses a threshold on the way between pairs of rows.

    Log-odds are interpolated, because networks are linear in these: in tests with known times
    the errors were smaller than with probabilities (`benchmarks/timing.py`). Probabilities count in
    thousandths, as in the page.

    Args:
        below: (N,) probabilities of the rows below the threshold.
        above: (N,) probabilities of the rows at the threshold or above.
        threshold: Probability.

    Returns:
        (N,) shares of the way from the row below, between CLOSEST and 1 - CLOSEST.
    """
    # A level stands for the probabilities up to the next one: half a level more on average.
    odds = _log_odds(to_levels(below).astype(np.float64) + 0.5)
    rise = _log_odds(to_levels(above).astype(np.float64) + 0.5) - odds
    # Rows of one level lie close on either side of a threshold that is not a whole level.
    share = np.full(len(rise), 0.5)
    crossed = _log_odds(np.array(LEVELS * threshold)) - odds
    np.divide(crossed, rise, out=share, where=rise > 0)
    return np.asarray(np.clip(share, CLOSEST, 1 - CLOSEST))


def _log_odds(level: NDArray[np.float64]) -> NDArray[np.float64]:
    level = np.clip(level, 0.5, LEVELS - 0.5)  # a threshold may be 0
    return np.asarray(np.log(level / (LEVELS - level)))
