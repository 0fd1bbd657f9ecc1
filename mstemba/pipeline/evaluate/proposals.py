"""Dense scores to ranked segments for detection mAP, which wants many and ranked ones.

`segments.find_segments` takes one threshold and is for people; here every class is cut at several,
because no one threshold suits short and long, frequent and rare actions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from mstemba.pipeline.evaluate.metrics import Index, Mask, SegmentArray, overlaps
from mstemba.records import TimeGrid

THRESHOLDS = tuple(1 / (1 + np.exp(-np.linspace(-4, 4, 9))))
"""Even in log-odds: 1.8, 4.7, 12, 27, 50, 73, 88, 95 and 98 %."""
MARGIN = 0.25
"""Of a segment's rows, on either side: what its score is compared with."""
MOST = 2000
"""Segments kept of one video, the best by score."""
SUPPRESS = 0.5
"""Temporal IoU beyond which the better of two segments of a class displaces the other."""


def propose(
    scores: NDArray[np.float32],
    grids: Sequence[TimeGrid],
    thresholds: Sequence[float] = THRESHOLDS,
) -> SegmentArray:
    """Segments of all videos, best first, from probabilities (N, C) on their grids.

    At every threshold the longest runs of rows that reach it. A segment's score is its mean
    probability less the mean over its margins (the outer-inner contrast of AutoLoc, Shou et al.,
    ECCV 2018), so that of nested runs the one with the sharpest ends ranks first.
    Of each video the MOST best go on to non-maximum suppression.
    """
    # Few of the very many runs at a low threshold are worth keeping until the others are known.
    found = [runs[_best(runs)] for runs in _runs(scores, grids, thresholds)]
    arrays = zip(*(vars(runs).values() for runs in found), strict=True)
    every = SegmentArray(*map(np.concatenate, arrays))
    return suppress(every[_best(every)])


def _runs(
    scores: NDArray[np.float32], grids: Sequence[TimeGrid], thresholds: Sequence[float]
) -> Iterator[SegmentArray]:
    """The runs at each threshold."""
    lengths = np.array([grid.count for grid in grids])
    video = np.repeat(np.arange(len(grids)), lengths)
    begin = np.cumsum(lengths) - lengths
    first = np.append(True, video[1:] != video[:-1])
    starts = np.concatenate([grid.starts for grid in grids])
    ends = np.concatenate([grid.ends for grid in grids])
    columns = np.ascontiguousarray(scores.T)
    total = np.zeros((len(columns), len(scores) + 1))
    np.cumsum(columns, axis=1, dtype=np.float64, out=total[:, 1:])
    for threshold in thresholds:
        class_id, low, high = _runs_of(columns >= threshold, first)
        rows, of = high - low, video[low]
        inside = total[class_id, high] - total[class_id, low]
        margin = np.maximum(np.round(MARGIN * rows).astype(int), 1)
        before = np.maximum(low - margin, begin[of])
        after = np.minimum(high + margin, begin[of] + lengths[of])
        outside = total[class_id, after] - total[class_id, before] - inside
        contrast = inside / rows - outside / np.maximum(after - before - rows, 1)
        yield SegmentArray(of, class_id, starts[low], ends[high - 1], contrast)


def _runs_of(active: Mask, first: Mask) -> tuple[Index, Index, Index]:
    """(class, first row, row after the last) of the runs in (C, N); none goes on over a `first`."""
    begins, ends = active.copy(), active.copy()
    begins[:, 1:] &= ~active[:, :-1] | first[1:]
    ends[:, :-1] &= ~active[:, 1:] | first[1:]
    class_id, low = np.nonzero(begins)
    return class_id, low, np.nonzero(ends)[1] + 1


def _best(found: SegmentArray) -> Mask:
    """The MOST best of each video, and those that score the same as the last of them."""
    if not len(found):
        return np.zeros(0, bool)
    key = 4.0 * found.video - found.score  # by video, best first: scores lie within -1 and 1
    ordered = np.sort(key)
    begin = np.searchsorted(ordered, 4.0 * np.arange(found.video.max() + 1) - 2.0)
    last = np.minimum(begin + MOST, np.append(begin[1:], len(key))) - 1
    mask: Mask = key <= ordered[last][found.video]
    return mask


def suppress(found: SegmentArray) -> SegmentArray:
    """Greedy non-maximum suppression within a video and class; best first."""
    found = found[np.argsort(-found.score, kind="stable")]
    better, worse, tiou = overlaps(found, found)
    close = (tiou > SUPPRESS) & (better < worse)
    better, worse = better[close], worse[close]
    kept = np.ones(len(found), bool)
    while len(better):
        # Those that nothing better is close to stay, and displace all that they are close to.
        settled = np.ones(len(found), bool)
        settled[worse] = False
        kept[worse[settled[better]]] = False
        open_ = ~settled[better] & kept[better] & kept[worse]
        better, worse = better[open_], worse[open_]
    return found[kept]
