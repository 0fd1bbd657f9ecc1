"""Find where a model is right and where it is wrong: by class, by video, by pairs of classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from mstemba.pipeline.evaluate.frame_metrics import (
    Mask,
    average_precision,
    mean_average_precision,
    rank_scores,
)
from mstemba.pipeline.evaluate.metric_groups import ScoredVideo

Item = TypeVar("Item")
Curve = NDArray[np.float64]


def precision_recall(scores: NDArray[Any], labels: Mask) -> tuple[Curve, Curve]:
    """Compute the precision-recall curve of one class.

    The mean of the precision is the class's `average_precision`, because recall rises by 1/P at
    every positive row and nowhere else.

    Args:
        scores: (N,)
        labels: (N,) which rows are positive.

    Returns:
        (P,) recall and (P,) precision down to each of the P positive rows, in [0, 1].
    """
    ranks = rank_scores(scores[:, None])[:, 0]
    places = np.sort(len(scores) - ranks[labels].astype(np.int64))
    nth = np.arange(1, len(places) + 1)
    return nth / max(1, len(places)), nth / places


def thin_curve(x: Curve, y: Curve, max_points: int) -> tuple[Curve, Curve]:
    """Reduce a curve to the last x and the mean y of groups of nearly equal size.

    For a precision-recall curve, sum(precision * rise of recall) stays the AP.
    """
    groups = np.array_split(np.arange(len(x)), min(max_points, len(x)) or 1)
    groups = [group for group in groups if len(group)]
    return np.array([x[g[-1]] for g in groups]), np.array([y[g].mean() for g in groups])


def best_and_worst(ranking: Sequence[Item], most: int) -> tuple[list[Item], list[Item]]:
    """Return the first of a ranking, and the last with the very last first; none is in both."""
    half = min(most, (len(ranking) + 1) // 2)
    return list(ranking[:half]), list(ranking[half:][-most:])[::-1]


def video_figures(video: ScoredVideo) -> dict[str, Any]:
    """Measure how well the scores of one video fit its labels.

    Returns:
        `ap`: percent, AP of all pairs of a row and a class as one ranking, which scikit-learn's
        average_precision_score calls average="micro"; NaN without positives. Unlike `map`, it
        counts false alarms of classes that do not occur in the video, and is not perfect for a
        class that is always active.
        `map`: percent, mean AP over the classes that occur in the video.
        `chance`: percent of pairs that are positive: the AP of scores without any knowledge.
        `positives`: the number of positive pairs. And `id`, `rows` and `duration`.
    """
    scores, labels = video.scores, video.labels
    micro = average_precision(scores.reshape(-1, 1), labels.reshape(-1, 1))
    positives = int(labels.sum())
    return {
        "id": video.id,
        "ap": mean_average_precision(micro, np.array([positives])),
        "map": mean_average_precision(average_precision(scores, labels), labels.sum(axis=0)),
        "chance": 100 * positives / labels.size,
        "positives": positives,
        "rows": len(scores),
        "duration": video.duration,
    }


def rank_videos(videos: Sequence[ScoredVideo], most: int) -> dict[str, Any]:
    """Rank the videos by AP; those without a positive row are listed apart.

    Returns:
        `ranking`: the figures of the ranked videos; ids of `most` videos each at the ends of it,
        `best` and `worst`; and ids of videos `without_positives`.
    """
    figures = [video_figures(video) for video in videos]
    ranking = sorted((f for f in figures if f["positives"]), key=lambda f: -f["ap"])
    best, worst = best_and_worst([f["id"] for f in ranking], most)
    without = [f["id"] for f in figures if not f["positives"]]
    return {"ranking": ranking, "best": best, "worst": worst, "without_positives": without}


def class_confusions(
    videos: Sequence[ScoredVideo], classes: Sequence[str], most: int
) -> list[dict[str, Any]]:
    """Find the pairs of classes that are most often confused, the worst first.

    A class is confused with a labelled one if it gets more probability in the rows where it is
    itself not labelled but the other one is than in the rows where neither is. Pairs are ranked by
    the number of these rows times the difference.

    Returns:
        For each pair the names of the `labelled` and the `scored` class; `rows` where only the
        first is labelled; the mean `probability` of the second there, and `elsewhere`, where
        neither is labelled, in [0, 1].
    """
    count = len(classes)
    rows, mass = np.zeros((count, count)), np.zeros((count, count))
    unlabelled_rows, unlabelled_mass = np.zeros(count), np.zeros(count)
    for video in videos:
        labelled = video.labels.T.astype(np.float64)
        unlabelled = (~video.labels).astype(np.float64)
        false_scores = video.scores * unlabelled
        rows += labelled @ unlabelled
        mass += labelled @ false_scores
        unlabelled_rows += unlabelled.sum(axis=0)
        unlabelled_mass += false_scores.sum(axis=0)
    probability = mass / np.maximum(rows, 1)
    elsewhere = (unlabelled_mass - mass) / np.maximum(unlabelled_rows - rows, 1)
    # Sums in another order differ in their last bits, which must not change the ranking.
    excess = np.round(rows * (probability - elsewhere), 6)
    np.fill_diagonal(excess, 0)
    pairs = np.argsort(-excess, axis=None, kind="stable")[:most]
    return [
        {
            "labelled": classes[i],
            "scored": classes[j],
            "rows": int(rows[i, j]),
            "probability": float(probability[i, j]),
            "elsewhere": float(elsewhere[i, j]),
        }
        for i, j in zip(*np.unravel_index(pairs, excess.shape), strict=True)
        if excess[i, j] > 0
    ]
