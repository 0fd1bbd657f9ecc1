"""Measures of dense detection."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def average_precision(
    scores: NDArray[np.floating], labels: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Per-frame average precision of every class.

    scores, labels: (N, C), all steps of all videos. Each class's steps are ranked by score; AP is
    the mean of the precision at every positive (the field's APMeter). A class without a positive
    has AP 0. Returns (C,) in [0, 1].
    """
    if scores.shape != labels.shape or scores.ndim != 2:
        raise ValueError(f"scores {scores.shape} and labels {labels.shape} must both be (N, C)")
    order = np.argsort(-scores, axis=0, kind="stable")
    hits = np.take_along_axis(labels.astype(bool), order, axis=0)
    ranks = np.arange(1, len(hits) + 1)[:, None]
    precision = np.where(hits, np.cumsum(hits, axis=0) / ranks, 0.0)
    result: NDArray[np.float64] = precision.sum(axis=0) / np.maximum(hits.sum(axis=0), 1)
    return result


def mean_average_precision(ap: NDArray[np.floating], positives: NDArray[np.integer]) -> float:
    """Mean AP in percent over the classes that occur; NaN when none does."""
    occurring = positives > 0
    return float(100 * ap[occurring].mean()) if occurring.any() else float("nan")
