"""Measures of dense detection: per-frame, at sampled points, given another action, and by segment.

The per-frame measures take (N, C) arrays, the rows of all videos one after another; only the
ranking of a class's scores counts for an average precision, so `ranked` scores give the same and
need no second sorting. docs/metrics.md says where each measure comes from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mstemba.data_manifests.manifest import Action
from mstemba.records import FloatArray, TimeGrid

Ranks = NDArray[np.uint32]
Mask = NDArray[np.bool_]
Index = NDArray[np.int64]

TIOU = tuple(round(0.1 * k, 1) for k in range(1, 10))
TAUS = (0, 20, 40)
CHARADES_POINTS = 25

_LOWEST = 0x7FFFFFFF
"""Ranks are below this, so that a rank and a label fit into 32 bits."""


def ranked(scores: NDArray[Any]) -> Ranks:
    """(N, C) scores as ranks within their class, from 0 for the lowest: distinct, and as good.

    Of equal scores the earlier row ranks higher; NaN ranks lowest. Ranks stay what they are.
    Raises ValueError for more than 2^31 - 1 rows.
    """
    if scores.dtype == np.uint32:
        return np.asarray(scores, np.uint32)
    if len(scores) > _LOWEST:
        raise ValueError(f"{len(scores)} rows, expected at most {_LOWEST}")
    ranks = np.empty(scores.shape[::-1], np.uint32)
    falling = np.arange(len(scores), dtype=np.uint32)[::-1]
    for row, column in zip(ranks, np.ascontiguousarray(scores.T), strict=True):
        row[_best_first(column)] = falling
    return ranks.T


def _best_first(scores: NDArray[Any]) -> NDArray[Any]:
    """The stable order of falling scores (N,)."""
    if scores.dtype not in (np.float16, np.float32):
        return np.argsort(-scores.astype(np.float64), kind="stable")
    # One integer a row, of its score and its index, sorts 20 times as fast as argsort does:
    # the bits of a float are ordered like it once the negative ones are turned round.
    clean = np.where(np.isnan(scores), -np.inf, scores).astype(np.float32) + np.float32(0)
    bits = clean.view(np.uint32)
    rising = np.where(bits >> 31 == 1, ~bits, bits | np.uint32(1 << 31))
    keys = (~rising).astype(np.uint64) << np.uint64(32)
    return np.sort(keys | np.arange(len(keys), dtype=np.uint64)).astype(np.uint32)


def average_precision(
    scores: FloatArray | Ranks, labels: Mask, counted: Mask | None = None
) -> NDArray[np.float64]:
    """Per-frame average precision of every class.

    scores, labels: (N, C), all steps of all videos. Each class's steps are ranked by score; AP is
    the mean of the precision at every positive (the field's APMeter). A class without a positive
    has AP 0. With `counted` (N, C) a class's other rows are left out. Returns (C,) in [0, 1].
    """
    if scores.shape != labels.shape or scores.ndim != 2:
        raise ValueError(f"scores {scores.shape} and labels {labels.shape} must both be (N, C)")
    keys = _keys(ranked(scores), labels)
    if counted is not None:
        keys = np.where(counted.T, keys, np.uint32(2 * _LOWEST))  # last, and negative
    return _precision_at_hits(keys)


def _keys(ranks: Ranks, labels: Mask) -> Ranks:
    """(C, N): the best rows have the lowest keys, and a key is odd where its row is positive."""
    keys: Ranks = (np.uint32(_LOWEST - 1) - ranks.T) << np.uint32(1) | (labels.T != 0)
    return keys


def _precision_at_hits(keys: Ranks) -> NDArray[np.float64]:
    """Mean over a class's positives of the precision down to there; keys as `_keys` makes them."""
    classes = len(keys)
    class_id, place = np.nonzero(np.sort(keys, axis=1) & np.uint32(1))
    positives = np.bincount(class_id, minlength=classes)
    before = np.cumsum(positives) - positives
    nth = np.arange(1, len(class_id) + 1) - before[class_id]
    total = np.bincount(class_id, nth / (place + 1), minlength=classes)
    result: NDArray[np.float64] = total / np.maximum(positives, 1)
    return result


def mean_average_precision(
    ap: NDArray[np.floating], positives: NDArray[np.integer] | None = None
) -> float:
    """Mean AP in percent over the classes that occur, all of them without `positives`.

    NaN when there is none.
    """
    occurring = np.ones(len(ap), bool) if positives is None else positives > 0
    return float(100 * ap[occurring].mean()) if occurring.any() else float("nan")


def charades_points(
    scores: FloatArray, grid: TimeGrid, actions: Sequence[Action], duration: float
) -> tuple[FloatArray, Mask]:
    """One video as Charades' localisation protocol sees it: (25, C) scores and labels.

    Charades_v1_localize (Sigurdsson et al., ECCV 2016) looks at t = duration * k / 25, k = 0..24;
    an action holds from its start to its end, both included. A point's scores are those of the row
    that lasts over it. AP over the points of all videos is then `average_precision`.

    scores: (T, C) on the grid; all times in one unit.
    """
    times = duration * np.arange(CHARADES_POINTS) / CHARADES_POINTS
    rows = np.searchsorted(grid.starts, times, side="right") - 1
    labels = np.zeros((CHARADES_POINTS, scores.shape[1]), bool)
    for action in actions:
        labels[(action.start <= times) & (times <= action.end), action.class_id] = True
    return scores[np.maximum(rows, 0)], labels


def legacy_points(rows: int) -> Index:
    """The rows that the field's released code calls "25 sampled" (sampled_25 in MS-TCT, MS-Temba).

    Every int(T / 25)-th from the second on, 25 at most, and none of a video of up to 25 rows: below
    50 rows that is its beginning only. For comparison with old logs.
    """
    return np.arange(1, rows, rows // 25)[:25] if rows > 25 else np.zeros(0, np.int64)


@dataclass(frozen=True)
class Conditional:
    """Action-conditional measures in percent: the means over all pairs of classes that occur."""

    precision: float
    recall: float
    f1: float
    """Harmonic mean of the two means."""
    map: float


def action_conditional(
    scores: FloatArray,
    labels: Mask,
    lengths: Sequence[int],
    taus: Sequence[int] = TAUS,
    threshold: float = 0.5,
    ranks: Ranks | None = None,
) -> dict[int, Conditional]:
    """Precision, recall, F1 and mAP of a class in the rows where another class is or just was.

    For every ordered pair of classes (i, j): class i's measures over the rows in which j is active
    (tau = 0), or in which j is not active but was within the tau rows that end there (tau > 0).
    A pair counts when i is positive in such a row. Tirupattur et al., "Modeling Multi-Label Action
    Dependencies for Temporal Action Localization", CVPR 2021.

    scores: (N, C) probabilities, called positive from `threshold` on; lengths: the videos' rows in
    order; ranks: `ranked(scores)`, if known. By tau; NaN without any pair.
    """
    positive, called = labels != 0, scores >= threshold
    keys = np.ascontiguousarray(_keys(ranked(scores) if ranks is None else ranks, positive).T)
    result = {}
    for tau in taus:
        given, rows = _given_rows(positive.T, lengths, tau)
        begins = np.searchsorted(given, np.arange(1, labels.shape[1]))
        pairs = [
            _of_pairs(there, other, keys, positive, called)
            for other, there in enumerate(np.split(rows, begins))
        ]
        precision, recall, ap = np.concatenate(pairs, axis=1)
        result[tau] = _mean_over_pairs(precision, recall, ap)
    return result


def _of_pairs(
    rows: Index, other: int, keys: Ranks, positive: Mask, called: Mask
) -> NDArray[np.float64]:
    """(3, pairs): precision, recall and AP of the classes that are positive in some of the rows.

    The rows are those where class `other` is given; it makes no pair with itself.
    """
    true, claimed = positive[rows], called[rows]
    support = true.sum(axis=0)
    support[other] = 0
    classes = np.flatnonzero(support)
    hits, claims = ((true & claimed)[:, classes].sum(axis=0), claimed[:, classes].sum(axis=0))
    ap = _precision_at_hits(keys[rows].T[classes])
    return np.stack([hits / np.maximum(claims, 1), hits / support[classes], ap])


def _mean_over_pairs(precisions: FloatArray, recalls: FloatArray, ap: FloatArray) -> Conditional:
    if not len(ap):
        return Conditional(*[float("nan")] * 4)
    precision, recall = float(precisions.mean()), float(recalls.mean())
    f1 = 2 * precision * recall / (precision + recall + 1e-9)
    return Conditional(100 * precision, 100 * recall, 100 * f1, 100 * float(ap.mean()))


def _given_rows(positive: Mask, lengths: Sequence[int], tau: int) -> tuple[Index, Index]:
    """The rows where a class is given, as (class, row), by class and row; positive: (C, N)."""
    if tau == 0:
        class_id, row = np.nonzero(positive)
        return class_id, row
    rows = positive.shape[1]
    padded = np.ascontiguousarray(np.pad(positive, ((0, 0), (1, 1))))
    begins = np.flatnonzero(padded[:, 1:] & ~padded[:, :-1])  # class * (rows + 1) + row
    class_id, end = np.nonzero(padded[:, :-1] & ~padded[:, 1:])
    later = np.searchsorted(begins, class_id * (rows + 1) + end)
    following = np.append(begins, len(positive) * (rows + 1))[later] - class_id * (rows + 1)
    # From the row after the action on, while it is recent, not there again, and in its video.
    video_end = np.repeat(np.cumsum(lengths), lengths)[end - 1]
    count = np.maximum(np.minimum.reduce([end + tau - 1, following, video_end]) - end, 0)
    return np.repeat(class_id, count), _ranges(end, count)


def _ranges(first: Index, count: Index) -> Index:
    """first[0], first[0] + 1, ... `count[0]` numbers, then those from first[1] on, and so on."""
    result: Index = np.arange(count.sum()) + np.repeat(first - (np.cumsum(count) - count), count)
    return result


def near_boundary(labels: Mask, lengths: Sequence[int], width: int = 2) -> Mask:
    """(N, C): the `width` rows on either side of where a class begins or ends within a video.

    `average_precision` over these rows alone tells how well boundaries are found, and over all
    others how well the action is told from the rest, wherever it begins.
    """
    video = np.repeat(np.arange(len(lengths)), lengths)
    changes = (labels[1:] != labels[:-1]) & (video[1:] == video[:-1])[:, None]
    after, class_id = np.nonzero(changes)
    after += 1
    near = np.zeros(labels.shape, bool)
    for offset in range(-width, width):
        row = np.clip(after + offset, 0, len(labels) - 1)
        same = video[row] == video[after]
        near[row[same], class_id[same]] = True
    return near


@dataclass(frozen=True)
class SegmentArray:
    """Segments of several videos, one an entry: labelled actions, or detections."""

    video: Index
    """(K,) number of the video."""
    class_id: Index
    """(K,)"""
    start: NDArray[np.float64]
    """(K,) in the unit that all of them share."""
    end: NDArray[np.float64]
    """(K,) after the start."""
    score: NDArray[np.float64]
    """(K,) of a detection; of an action it means nothing."""

    def __len__(self) -> int:
        return len(self.video)

    def __getitem__(self, chosen: Index | Mask) -> SegmentArray:
        return SegmentArray(*(array[chosen] for array in vars(self).values()))

    @property
    def duration(self) -> NDArray[np.float64]:
        return np.asarray(self.end - self.start)


def overlaps(ones: SegmentArray, others: SegmentArray) -> tuple[Index, Index, NDArray[np.float64]]:
    """All pairs of the same video and class that overlap: their indices, and temporal IoU."""
    if not len(ones) or not len(others):
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
    # Every video and class gets a stretch of one time axis of its own. There the others that may
    # overlap lie between the first that ends late enough and the last that starts early enough.
    classes = 1 + max(ones.class_id.max(), others.class_id.max())
    zero = min(ones.start.min(), others.start.min())
    stretch = max(ones.end.max(), others.end.max()) - zero + 1.0

    def axis(of: SegmentArray, times: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray((of.video * classes + of.class_id) * stretch + (times - zero))

    order = np.argsort(axis(others, others.start), kind="stable")
    starts = axis(others, others.start)[order]
    ends = np.maximum.accumulate(axis(others, others.end)[order])
    first = np.searchsorted(ends, axis(ones, ones.start), side="right")
    count = np.maximum(np.searchsorted(starts, axis(ones, ones.end), side="left") - first, 0)
    i = np.repeat(np.arange(len(ones)), count)
    j = order[_ranges(first, count)]
    shared = np.minimum(ones.end[i], others.end[j]) - np.maximum(ones.start[i], others.start[j])
    found = shared > 0
    i, j, shared = i[found], j[found], shared[found]
    return i, j, shared / (ones.duration[i] + others.duration[j] - shared)


def match_detections(
    truth: SegmentArray, found: SegmentArray, thresholds: Sequence[float] = TIOU
) -> Index:
    """(thresholds, detections): the action that each detection finds, or -1.

    ActivityNet's rule: detections of a class take, from the highest score down, the action of their
    video with the highest temporal IoU that no other has taken, if it is at least the threshold.
    """
    one, action, tiou = overlaps(found, truth)
    rank = np.empty(len(found), np.int64)
    rank[np.argsort(-found.score, kind="stable")] = np.arange(len(found))
    order = np.lexsort((action, -tiou, rank[one]))
    one, action, tiou = one[order], action[order], tiou[order]
    matches = np.full((len(thresholds), len(found)), -1)
    first_of_one, first_of_action = np.empty(len(found), int), np.empty(len(truth), int)
    for match, threshold in zip(matches, thresholds, strict=True):
        free = np.ones(len(truth), bool)
        pairs = np.flatnonzero(tiou >= threshold)
        while len(pairs):
            # A pair that no earlier one can disturb is taken; all such pairs at once.
            first_of_one[one[pairs][::-1]] = pairs[::-1]
            first_of_action[action[pairs][::-1]] = pairs[::-1]
            sure = first_of_one[one[pairs]] == pairs
            taken = pairs[sure & (first_of_action[action[pairs]] == pairs)]
            match[one[taken]] = action[taken]
            free[action[taken]] = False
            pairs = pairs[(match[one[pairs]] < 0) & free[action[pairs]]]
    return matches


def detection_average_precision(
    truth: SegmentArray,
    found: SegmentArray,
    matches: Index,
    classes: int,
    counted: Mask | None = None,
) -> NDArray[np.float64]:
    """(thresholds, C) interpolated AP in [0, 1] of detections, matched by `match_detections`.

    As ActivityNet's evaluation and VOC 2010 to 2012 have it: precision made to fall with recall,
    and summed where recall rises. A class without an action has AP 0. With `counted` (thresholds,
    detections) the other detections are left out.
    """
    order = np.lexsort((-found.score, found.class_id))
    class_id = found.class_id[order]
    begin = np.searchsorted(class_id, np.arange(classes))
    counted = np.ones((len(matches), 1), bool) if counted is None else counted[:, order]
    result = np.zeros((len(matches), classes))
    for ap, match, counts in zip(result, matches[:, order], counted, strict=True):
        before = np.append(0, np.cumsum(np.broadcast_to(counts, match.shape)))
        hit = np.flatnonzero((match >= 0) & counts)
        of = class_id[hit]
        nth = np.arange(1, len(hit) + 1) - np.searchsorted(of, np.arange(classes))[of]
        precision = nth / (before[hit + 1] - before[begin[of]])
        # The highest precision from here to the end of the class: later classes lie lower.
        lifted = precision + 2.0 * (classes - of)
        highest = np.maximum.accumulate(lifted[::-1])[::-1] - 2.0 * (classes - of)
        ap[:] = np.bincount(of, highest, minlength=classes)
    result /= np.maximum(np.bincount(truth.class_id, minlength=classes), 1)
    return result


def duration_limits(durations: NDArray[np.floating]) -> tuple[float, float]:
    """The terciles of the actions' durations: below the first is short, from the second on long."""
    if not len(durations):
        return float("nan"), float("nan")
    first, second = np.quantile(durations, (1 / 3, 2 / 3))
    return float(first), float(second)


def duration_bin(durations: NDArray[np.floating], limits: tuple[float, float]) -> Index:
    """0 for short, 1 for medium, 2 for long."""
    return np.searchsorted(np.array(limits), durations, side="right")


def detection_average_precision_of(
    bin: int,
    limits: tuple[float, float],
    truth: SegmentArray,
    found: SegmentArray,
    matches: Index,
    classes: int,
) -> NDArray[np.float64]:
    """(thresholds, C) AP of the actions of one bin of durations.

    COCO's rule for sizes (Lin et al., ECCV 2014): a detection that finds an action of another bin
    is left out, and so is one that finds none and is itself of another bin's duration.
    """
    of_truth, of_found = duration_bin(truth.duration, limits), duration_bin(found.duration, limits)
    of_action = np.append(of_truth, -1)[matches]
    counted = np.where(matches >= 0, of_action, of_found) == bin
    return detection_average_precision(truth[of_truth == bin], found, matches, classes, counted)
