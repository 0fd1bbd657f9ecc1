"""Where a model is right and where it is wrong: curves of a class, ranked videos, mistaken classes.

Scores and labels are those of the per-frame measures in metrics.py: (N, C), rows of feature time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from mstemba.pipeline.evaluate.metrics import (
    Mask,
    average_precision,
    mean_average_precision,
    ranked,
)

Item = TypeVar("Item")
Curve = NDArray[np.float64]


def precision_recall(scores: NDArray[Any], labels: Mask) -> tuple[Curve, Curve]:
    """(P,) recall and precision of one class, down to each of its P positives, in [0, 1].

    scores, labels: (N,). The mean of the precision is the class's `average_precision`, because
    recall rises by 1/P at every positive and nowhere else.
    """
    ranks = ranked(scores[:, None])[:, 0]
    places = np.sort(len(scores) - ranks[labels].astype(np.int64))
    nth = np.arange(1, len(places) + 1)
    return nth / max(1, len(places)), nth / places


def thinned(x: Curve, y: Curve, most: int) -> tuple[Curve, Curve]:
    """At most so many points of a curve: the last x and the mean y of runs of nearly equal length.

    Of a precision-recall curve, sum(precision * rise of recall) stays the AP.
    """
    parts = np.array_split(np.arange(len(x)), min(most, len(x)) or 1)
    kept = [part for part in parts if len(part)]
    return np.array([x[part[-1]] for part in kept]), np.array([y[part].mean() for part in kept])


@dataclass(frozen=True)
class VideoFigures:
    """How well the scores of one video fit its labels."""

    number: int
    """Of the video among those scored."""
    ap: float
    """Percent: AP of all rows and classes of the video as one ranking. NaN without positives."""
    map: float
    """Percent: mean over the classes that occur in it of their AP in its rows."""
    chance: float
    """Percent of (row, class) pairs that are positive: what scores without knowledge would get."""
    positives: int
    """(row, class) pairs."""


def video_figures(number: int, scores: NDArray[np.float32], labels: Mask) -> VideoFigures:
    """The figures of one video; scores, labels: (T, C).

    `ap` counts every pair of a row and a class once, which scikit-learn's average_precision_score
    calls average="micro": unlike `map` it sees false alarms of classes that do not occur in the
    video, and is not perfect for a class that never stops.
    """
    one = average_precision(scores.reshape(-1, 1), labels.reshape(-1, 1))
    positives = int(labels.sum())
    return VideoFigures(
        number,
        mean_average_precision(one, np.array([positives])),
        mean_average_precision(average_precision(scores, labels), labels.sum(axis=0)),
        100 * positives / labels.size,
        positives,
    )


def best_and_worst(ranking: Sequence[Item], most: int) -> tuple[list[Item], list[Item]]:
    """The first of a ranking, and the last with the very last first; no item is in both."""
    half = min(most, (len(ranking) + 1) // 2)
    return list(ranking[:half]), list(ranking[half:][-most:])[::-1]


@dataclass(frozen=True)
class ClassConfusion:
    """A class that gets probability where another one is labelled and it is not."""

    labelled: int
    """Class number."""
    scored: int
    """Class number."""
    rows: int
    """Where the one is labelled and the other is not."""
    probability: float
    """Mean of the scored class in these rows, in [0, 1]."""
    elsewhere: float
    """Mean of it in the rows where neither is labelled."""


def mistaken(
    scores: Sequence[NDArray[np.float32]], labels: Sequence[Mask], most: int
) -> list[ClassConfusion]:
    """The pairs of classes that are most mistaken for each other, the worst first.

    scores, labels: (T, C) of every video. Ranked by rows * (probability - elsewhere), the false
    probability that goes with the labelled class; pairs without any are left out.
    """
    classes = labels[0].shape[1]
    rows, mass = np.zeros((classes, classes)), np.zeros((classes, classes))
    absent, total = np.zeros(classes), np.zeros(classes)
    for one, truth in zip(scores, labels, strict=True):
        there, free = truth.T.astype(np.float64), (~truth).astype(np.float64)
        false = one * free
        rows += there @ free
        mass += there @ false
        absent += free.sum(axis=0)
        total += false.sum(axis=0)
    probability = mass / np.maximum(rows, 1)
    elsewhere = (total - mass) / np.maximum(absent - rows, 1)
    # Sums in another order differ in their last bits, which must not change the ranking.
    excess = np.round(rows * (probability - elsewhere), 6)
    np.fill_diagonal(excess, 0)
    pairs = np.argsort(-excess, axis=None, kind="stable")[:most]
    return [
        ClassConfusion(
            int(i), int(j), int(rows[i, j]), float(probability[i, j]), float(elsewhere[i, j])
        )
        for i, j in zip(*np.unravel_index(pairs, excess.shape), strict=True)
        if excess[i, j] > 0
    ]
