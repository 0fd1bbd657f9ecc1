"""Turn dense scores into ranked segments for detection mAP, which needs many of them.

`detect/segments.py` uses one threshold and makes segments for people; here every class is cut at
several, because no single threshold suits short and long, frequent and rare actions. Edges lie
halfway between rows: interpolated ones would differ from threshold to threshold, so that the same
rows would be proposed several times.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from mstemba.pipeline.evaluate.frame_metrics import Index, Mask
from mstemba.pipeline.evaluate.segment_metrics import SegmentArray, overlaps

THRESHOLDS = tuple(1 / (1 + np.exp(-np.linspace(-4, 4, 9))))
"""Even in log-odds: 1.8, 4.7, 12, 27, 50, 73, 88, 95 and 98 %."""
MARGIN = 0.25
"""Share of a segment's rows, on either side, that its score is compared with."""
MAX_SEGMENTS = 2000
"""Segments kept per video, the best by score."""
MAX_OVERLAP = 0.5
"""Temporal IoU above which the better of two segments of a class suppresses the other."""


def propose(
    scores: NDArray[np.float32],
    bounds: Sequence[NDArray[np.float64]],
    thresholds: Sequence[float] = THRESHOLDS,
) -> SegmentArray:
    """Propose segments of all videos, best first.

    Segments are the longest runs of rows that reach a threshold. The score of one is its mean
    probability minus the mean over its margins (the outer-inner contrast of AutoLoc, Shou et al.,
    ECCV 2018), so that of nested runs the one with the sharpest ends ranks first. The best
    MAX_SEGMENTS of each video enter non-maximum suppression.

    Args:
        scores: (N, C) probabilities, the rows of all videos one after another.
        bounds: (T + 1,) of each video: when its rows begin and end, see `TimeGrid.bounds`.
        thresholds: Probabilities.
    """
    # Drop most of the very many runs at a low threshold before those at the next one are found.
    found = [runs[_best(runs)] for runs in _runs(scores, bounds, thresholds)]
    arrays = zip(*(vars(runs).values() for runs in found), strict=True)
    every = SegmentArray(*map(np.concatenate, arrays))
    return suppress(every[_best(every)])


def _runs(
    scores: NDArray[np.float32],
    bounds: Sequence[NDArray[np.float64]],
    thresholds: Sequence[float],
) -> Iterator[SegmentArray]:
    """Yield the runs at each threshold, with their scores."""
    lengths = np.array([len(of_video) - 1 for of_video in bounds])
    video = np.repeat(np.arange(len(lengths)), lengths)
    begin = np.cumsum(lengths) - lengths
    first = np.append(True, video[1:] != video[:-1])
    starts = np.concatenate([of_video[:-1] for of_video in bounds])
    ends = np.concatenate([of_video[1:] for of_video in bounds])
    columns = np.ascontiguousarray(scores.T)
    total = np.zeros((len(columns), len(scores) + 1))
    np.cumsum(columns, axis=1, dtype=np.float64, out=total[:, 1:])
    for threshold in thresholds:
        class_id, low, high = _find_runs(columns >= threshold, first)
        rows, run_video = high - low, video[low]
        inside = total[class_id, high] - total[class_id, low]
        margin = np.maximum(np.round(MARGIN * rows).astype(int), 1)
        before = np.maximum(low - margin, begin[run_video])
        after = np.minimum(high + margin, begin[run_video] + lengths[run_video])
        outside = total[class_id, after] - total[class_id, before] - inside
        contrast = inside / rows - outside / np.maximum(after - before - rows, 1)
        yield SegmentArray(run_video, class_id, starts[low], ends[high - 1], contrast)


def _find_runs(active: Mask, first: Mask) -> tuple[Index, Index, Index]:
    """Return (class, first row, row after the last) of each run in `active` (C, N).

    first: (N,) marks the first row of each video, where a run ends.
    """
    begins, ends = active.copy(), active.copy()
    begins[:, 1:] &= ~active[:, :-1] | first[1:]
    ends[:, :-1] &= ~active[:, 1:] | first[1:]
    class_id, low = np.nonzero(begins)
    return class_id, low, np.nonzero(ends)[1] + 1


def _best(found: SegmentArray) -> Mask:
    """Mark the MAX_SEGMENTS best of each video, and those that score like the last of them."""
    if not len(found):
        return np.zeros(0, bool)
    key = 4.0 * found.video - found.score  # by video, best first: scores lie within -1 and 1
    ordered = np.sort(key)
    begin = np.searchsorted(ordered, 4.0 * np.arange(found.video.max() + 1) - 2.0)
    last = np.minimum(begin + MAX_SEGMENTS, np.append(begin[1:], len(key))) - 1
    mask: Mask = key <= ordered[last][found.video]
    return mask


def suppress(found: SegmentArray) -> SegmentArray:
    """Apply greedy non-maximum suppression within each video and class; best first."""
    found = found[np.argsort(-found.score, kind="stable")]
    better, worse, tiou = overlaps(found, found)
    close = (tiou > MAX_OVERLAP) & (better < worse)
    better, worse = better[close], worse[close]
    kept = np.ones(len(found), bool)
    while len(better):
        # Segments without a better neighbour stay, and suppress all their neighbours.
        settled = np.ones(len(found), bool)
        settled[worse] = False
        kept[worse[settled[better]]] = False
        open_ = ~settled[better] & kept[better] & kept[worse]
        better, worse = better[open_], worse[open_]
    return found[kept]
