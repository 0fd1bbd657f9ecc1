"""Metrics of dense scores: per frame, at sampled points, given another action, near boundaries.

They take (N, C) arrays, the rows of all videos one after another. Only the ranking of a class's
scores counts for an average precision, so ranks from `rank_scores` give the same result and need no
second sorting. docs/metrics.md says where each metric comes from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mstemba.data_manifests.manifest import Action
from mstemba.records import FloatArray, TimeGrid

Ranks = NDArray[np.uint32]
Mask = NDArray[np.bool_]
Index = NDArray[np.int64]

TAUS = (0, 20, 40)
CHARADES_POINTS = 25

_LOWEST = 0x7FFFFFFF
"""Ranks are below this, so that a rank and a label fit into 32 bits."""


def rank_scores(scores: NDArray[Any]) -> Ranks:
    """Replace scores by their ranks within each class, which give the same average precision.

    Args:
        scores: (N, C) scores of any numeric type; ranks are returned unchanged.

    Returns:
        (N, C) uint32 ranks, distinct, from 0 for the lowest score. Of equal scores the earlier row
        ranks higher; NaN ranks lowest.

    Raises:
        ValueError: There are more than 2^31 - 1 rows.
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
    """Return the stable order of falling scores (N,)."""
    if scores.dtype not in (np.float16, np.float32):
        return np.argsort(-scores.astype(np.float64), kind="stable")
    # Sorting one integer per row, made of its score and its index, is 20 times as fast as argsort:
    # the bits of floats are ordered like the floats once those of negative numbers are inverted.
    clean = np.where(np.isnan(scores), -np.inf, scores).astype(np.float32) + np.float32(0)
    bits = clean.view(np.uint32)
    rising = np.where(bits >> 31 == 1, ~bits, bits | np.uint32(1 << 31))
    keys = (~rising).astype(np.uint64) << np.uint64(32)
    return np.sort(keys | np.arange(len(keys), dtype=np.uint64)).astype(np.uint32)


def average_precision(
    scores: FloatArray | Ranks, labels: Mask, counted: Mask | None = None
) -> NDArray[np.float64]:
    """Compute the per-frame average precision of every class (the field's APMeter).

    The rows of a class are ranked by score; AP is the mean of the precision at every positive row.

    Args:
        scores: (N, C) scores or ranks of all rows of all videos.
        labels: (N, C) which rows are positive.
        counted: (N, C) which rows count; the other rows of a class are ignored.

    Returns:
        (C,) float64 in [0, 1]; 0 for a class without a positive row.

    Raises:
        ValueError: The shapes are not both (N, C).
    """
    if scores.shape != labels.shape or scores.ndim != 2:
        raise ValueError(f"scores {scores.shape} and labels {labels.shape} must both be (N, C)")
    keys = _keys(rank_scores(scores), labels)
    if counted is not None:
        keys = np.where(counted.T, keys, np.uint32(2 * _LOWEST))  # last, and negative
    return _precision_at_hits(keys)


def _keys(ranks: Ranks, labels: Mask) -> Ranks:
    """Return (C, N) sort keys: lowest for the best rows, and odd where the row is positive."""
    keys: Ranks = (np.uint32(_LOWEST - 1) - ranks.T) << np.uint32(1) | (labels.T != 0)
    return keys


def _precision_at_hits(keys: Ranks) -> NDArray[np.float64]:
    """Return (C,) means of the precision at each positive row; keys as `_keys` makes them."""
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
    """Average AP over the classes that occur.

    Args:
        ap: (C,) in [0, 1].
        positives: (C,) positive rows, or actions; without it all classes count.

    Returns:
        Percent; NaN when no class occurs.
    """
    occurring = np.ones(len(ap), bool) if positives is None else positives > 0
    return float(100 * ap[occurring].mean()) if occurring.any() else float("nan")


def charades_points(
    scores: FloatArray, grid: TimeGrid, actions: Sequence[Action], duration: float
) -> tuple[FloatArray, Mask]:
    """Sample one video as Charades' localisation protocol does.

    Charades_v1_localize (Sigurdsson et al., ECCV 2016) looks at t = duration * k / 25, k = 0..24;
    an action lasts from its start to its end, both included. A point has the scores of the row
    that contains it. The metric is `average_precision` over the points of all videos.

    Args:
        scores: (T, C) on the grid.
        grid: When the rows are.
        actions: The labelled actions, in the time unit of the grid.
        duration: Of the video, in the same unit.

    Returns:
        (25, C) scores and (25, C) labels of the points.
    """
    times = duration * np.arange(CHARADES_POINTS) / CHARADES_POINTS
    rows = np.searchsorted(grid.starts, times, side="right") - 1
    labels = np.zeros((CHARADES_POINTS, scores.shape[1]), bool)
    for action in actions:
        labels[(action.start <= times) & (times <= action.end), action.class_id] = True
    return scores[np.maximum(rows, 0)], labels


def legacy_points(rows: int) -> Index:
    """Return the rows that released code calls "25 sampled" (sampled_25 in MS-TCT, MS-Temba).

    Every int(T / 25)-th row from the second on, at most 25, and none of a video of up to 25 rows;
    below 50 rows these cover only its beginning. For comparison with old logs.
    """
    return np.arange(1, rows, rows // 25)[:25] if rows > 25 else np.zeros(0, np.int64)


def action_conditional(
    scores: FloatArray,
    labels: Mask,
    lengths: Sequence[int],
    taus: Sequence[int] = TAUS,
    ranks: Ranks | None = None,
) -> dict[int, dict[str, float]]:
    """Measure each class in the rows where another class is active, or just was.

    For every ordered pair of classes (i, j), class i is measured over the rows in which j is active
    (tau = 0), or in which j is not active but was within the tau rows that end there (tau > 0).
    A pair counts when i is positive in such a row. Tirupattur et al., "Modeling Multi-Label Action
    Dependencies for Temporal Action Localization", CVPR 2021.

    Args:
        scores: (N, C) probabilities; a row is predicted positive from 0.5 on.
        labels: (N, C) which rows are positive.
        lengths: Rows of each video, in order.
        taus: Rows to look back.
        ranks: `rank_scores(scores)`, if it is known already.

    Returns:
        By tau: `precision`, `recall`, `f1` (the harmonic mean of these two) and `map` in percent,
        the means over all pairs; NaN where no pair counts.
    """
    positive, predicted = labels != 0, scores >= 0.5
    keys = np.ascontiguousarray(_keys(rank_scores(scores) if ranks is None else ranks, positive).T)
    result = {}
    for tau in taus:
        given, rows = _given_rows(positive.T, lengths, tau)
        begins = np.searchsorted(given, np.arange(1, labels.shape[1]))
        pairs = [
            _measure_pairs(given_rows, other, keys, positive, predicted)
            for other, given_rows in enumerate(np.split(rows, begins))
        ]
        measured = np.concatenate(pairs, axis=1)
        means = measured.mean(axis=1) if measured.size else np.full(3, np.nan)
        precision, recall, ap = means.tolist()
        f1 = 2 * precision * recall / (precision + recall + 1e-9)
        figures = {"precision": precision, "recall": recall, "f1": f1, "map": ap}
        result[tau] = {name: 100 * value for name, value in figures.items()}
    return result


def _measure_pairs(
    rows: Index, other: int, keys: Ranks, positive: Mask, predicted: Mask
) -> NDArray[np.float64]:
    """Return (3, pairs): precision, recall and AP of the classes that are positive in `rows`.

    The rows are those where class `other` is given; it makes no pair with itself.
    """
    true, claimed = positive[rows], predicted[rows]
    support = true.sum(axis=0)
    support[other] = 0
    classes = np.flatnonzero(support)
    hits, claims = (true & claimed)[:, classes].sum(axis=0), claimed[:, classes].sum(axis=0)
    ap = _precision_at_hits(keys[rows].T[classes])
    return np.stack([hits / np.maximum(claims, 1), hits / support[classes], ap])


def _given_rows(positive: Mask, lengths: Sequence[int], tau: int) -> tuple[Index, Index]:
    """Return the rows where a class is given, as (class, row), by class; positive: (C, N)."""
    if tau == 0:
        class_id, row = np.nonzero(positive)
        return class_id, row
    rows = positive.shape[1]
    padded = np.ascontiguousarray(np.pad(positive, ((0, 0), (1, 1))))
    begins = np.flatnonzero(padded[:, 1:] & ~padded[:, :-1])  # class * (rows + 1) + row
    class_id, end = np.nonzero(padded[:, :-1] & ~padded[:, 1:])
    later = np.searchsorted(begins, class_id * (rows + 1) + end)
    following = np.append(begins, len(positive) * (rows + 1))[later] - class_id * (rows + 1)
    # From the row after the action, as long as it is recent, not active again, and in its video.
    video_end = np.repeat(np.cumsum(lengths), lengths)[end - 1]
    count = np.maximum(np.minimum.reduce([end + tau - 1, following, video_end]) - end, 0)
    return np.repeat(class_id, count), concatenated_ranges(end, count)


def concatenated_ranges(first: Index, count: Index) -> Index:
    """Concatenate ranges: `count[0]` numbers from `first[0]`, then `count[1]` from `first[1]`..."""
    result: Index = np.arange(count.sum()) + np.repeat(first - (np.cumsum(count) - count), count)
    return result


def near_boundary(labels: Mask, lengths: Sequence[int], width: int = 2) -> Mask:
    """Mark the `width` rows on either side of where a class begins or ends within a video.

    `average_precision` over these rows alone tells how well boundaries are found, and over all
    other rows how well the action is recognised, wherever it begins.

    Args:
        labels: (N, C) which rows are positive.
        lengths: Rows of each video, in order.
        width: Rows.

    Returns:
        (N, C) which rows are near a boundary of the class.
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
