"""Metrics of segments: matching, average precision, and the same by duration.

docs/metrics.md says where each metric comes from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mstemba.pipeline.evaluate.frame_metrics import Index, Mask, concatenated_ranges

TIOU = tuple(round(0.1 * k, 1) for k in range(1, 10))
"""Thresholds of temporal intersection over union (IoU)."""
BINS = ("short", "medium", "long")
"""Of durations, by their number."""


@dataclass(frozen=True)
class SegmentArray:
    """K segments of several videos: labelled actions, or detections."""

    video: Index
    """(K,) number of the video."""
    class_id: Index
    """(K,)"""
    start: NDArray[np.float64]
    """(K,) in one time unit."""
    end: NDArray[np.float64]
    """(K,) after the start."""
    score: NDArray[np.float64]
    """(K,) of detections; ignored for actions."""

    @classmethod
    def from_rows(cls, rows: Sequence[tuple[int, int, float, float, float]]) -> SegmentArray:
        """Make an array of segments given as (video, class, start, end, score)."""
        table = np.array(rows, np.float64).reshape(-1, 5)
        video, class_id = table[:, :2].T.astype(np.int64)
        return cls(video, class_id, *table[:, 2:].T)

    def __len__(self) -> int:
        return len(self.video)

    def __getitem__(self, chosen: Index | Mask) -> SegmentArray:
        return SegmentArray(*(array[chosen] for array in vars(self).values()))

    @property
    def duration(self) -> NDArray[np.float64]:
        return np.asarray(self.end - self.start)


def overlaps(ones: SegmentArray, others: SegmentArray) -> tuple[Index, Index, NDArray[np.float64]]:
    """Find all overlapping pairs of the same video and class.

    Returns:
        (P,) indices into `ones`, (P,) indices into `others`, and (P,) their temporal IoU.
    """
    if not len(ones) or not len(others):
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
    # Every video and class gets a stretch of its own on one common time axis. There, the others
    # that may overlap lie between the first that ends late enough and the last that starts early
    # enough.
    classes = 1 + max(ones.class_id.max(), others.class_id.max())
    zero = min(ones.start.min(), others.start.min())
    stretch = max(ones.end.max(), others.end.max()) - zero + 1.0

    def on_axis(segments: SegmentArray, times: NDArray[np.float64]) -> NDArray[np.float64]:
        place = segments.video * classes + segments.class_id
        return np.asarray(place * stretch + (times - zero))

    order = np.argsort(on_axis(others, others.start), kind="stable")
    starts = on_axis(others, others.start)[order]
    ends = np.maximum.accumulate(on_axis(others, others.end)[order])
    first = np.searchsorted(ends, on_axis(ones, ones.start), side="right")
    count = np.maximum(np.searchsorted(starts, on_axis(ones, ones.end), side="left") - first, 0)
    i = np.repeat(np.arange(len(ones)), count)
    j = order[concatenated_ranges(first, count)]
    shared = np.minimum(ones.end[i], others.end[j]) - np.maximum(ones.start[i], others.start[j])
    overlapping = shared > 0
    i, j, shared = i[overlapping], j[overlapping], shared[overlapping]
    return i, j, shared / (ones.duration[i] + others.duration[j] - shared)


def match_detections(
    truth: SegmentArray, found: SegmentArray, thresholds: Sequence[float] = TIOU
) -> Index:
    """Match detections with actions by ActivityNet's rule.

    Detections of a class take, from the highest score down, the action of their video with the
    highest temporal IoU that no other detection has taken, if it is at least the threshold.

    Args:
        truth: Labelled actions.
        found: Detections.
        thresholds: Temporal IoU.

    Returns:
        (thresholds, detections) the number of the matched action, or -1.
    """
    detection, action, tiou = overlaps(found, truth)
    rank = np.empty(len(found), np.int64)
    rank[np.argsort(-found.score, kind="stable")] = np.arange(len(found))
    order = np.lexsort((action, -tiou, rank[detection]))
    detection, action, tiou = detection[order], action[order], tiou[order]
    matches = np.full((len(thresholds), len(found)), -1)
    first_of_detection, first_of_action = np.empty(len(found), int), np.empty(len(truth), int)
    for match, threshold in zip(matches, thresholds, strict=True):
        free = np.ones(len(truth), bool)
        pairs = np.flatnonzero(tiou >= threshold)
        while len(pairs):
            # Take at once all pairs that come first for both their detection and their action.
            first_of_detection[detection[pairs][::-1]] = pairs[::-1]
            first_of_action[action[pairs][::-1]] = pairs[::-1]
            first = first_of_detection[detection[pairs]] == pairs
            taken = pairs[first & (first_of_action[action[pairs]] == pairs)]
            match[detection[taken]] = action[taken]
            free[action[taken]] = False
            pairs = pairs[(match[detection[pairs]] < 0) & free[action[pairs]]]
    return matches


def detection_average_precision(
    truth: SegmentArray,
    found: SegmentArray,
    matches: Index,
    classes: int,
    counted: Mask | None = None,
) -> NDArray[np.float64]:
    """Compute the interpolated AP of matched detections.

    As in ActivityNet's evaluation and VOC 2010 to 2012: precision is made to fall with recall, and
    summed where recall rises.

    Args:
        truth: Labelled actions.
        found: Detections.
        matches: (thresholds, detections) from `match_detections`.
        classes: Number of classes, C.
        counted: (thresholds, detections) which detections count; the others are ignored.

    Returns:
        (thresholds, C) in [0, 1]; 0 for a class without an action.
    """
    order = np.lexsort((-found.score, found.class_id))
    class_id = found.class_id[order]
    begin = np.searchsorted(class_id, np.arange(classes))
    counted = np.ones((len(matches), 1), bool) if counted is None else counted[:, order]
    result = np.zeros((len(matches), classes))
    for ap, match, counts in zip(result, matches[:, order], counted, strict=True):
        before = np.append(0, np.cumsum(np.broadcast_to(counts, match.shape)))
        hit = np.flatnonzero((match >= 0) & counts)
        hit_class = class_id[hit]
        nth = np.arange(1, len(hit) + 1) - np.searchsorted(hit_class, np.arange(classes))[hit_class]
        precision = nth / (before[hit + 1] - before[begin[hit_class]])
        # The highest precision from here to the end of the class: later classes lie lower.
        offset = 2.0 * (classes - hit_class)
        highest = np.maximum.accumulate((precision + offset)[::-1])[::-1] - offset
        ap[:] = np.bincount(hit_class, highest, minlength=classes)
    result /= np.maximum(np.bincount(truth.class_id, minlength=classes), 1)
    return result


def duration_limits(durations: NDArray[np.floating]) -> tuple[float, float]:
    """Return the terciles of durations: below the first is short, from the second on long."""
    if not len(durations):
        return float("nan"), float("nan")
    first, second = np.quantile(durations, (1 / 3, 2 / 3))
    return float(first), float(second)


def duration_bin(durations: NDArray[np.floating], limits: tuple[float, float]) -> Index:
    """Return the number of each duration's bin in BINS."""
    return np.searchsorted(np.array(limits), durations, side="right")


def detection_average_precision_of_bin(
    bin: int,
    limits: tuple[float, float],
    truth: SegmentArray,
    found: SegmentArray,
    matches: Index,
    classes: int,
) -> NDArray[np.float64]:
    """Compute the (thresholds, C) AP of the actions of one bin of durations.

    COCO's rule for sizes (Lin et al., ECCV 2014): a detection that finds an action of another bin
    is ignored, and so is one that finds none and has itself a duration of another bin.
    """
    truth_bins = duration_bin(truth.duration, limits)
    found_bins = duration_bin(found.duration, limits)
    matched_bins = np.append(truth_bins, -1)[matches]
    counted = np.where(matches >= 0, matched_bins, found_bins) == bin
    return detection_average_precision(truth[truth_bins == bin], found, matches, classes, counted)
