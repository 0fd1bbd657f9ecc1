"""Curves, figures of a video and confused classes, against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mstemba.pipeline.evaluate.frame_metrics import average_precision
from mstemba.pipeline.evaluate.metric_groups import ScoredVideo
from mstemba.pipeline.features.row_times import even_rows
from mstemba.pipeline.report.error_analysis import (
    best_and_worst,
    class_confusions,
    precision_recall,
    rank_videos,
    thin_curve,
    video_figures,
)

ROWS = st.lists(st.tuples(st.floats(0, 1, width=32), st.booleans()), min_size=1, max_size=40)


def scored(id: str, scores: np.ndarray, labels: np.ndarray) -> ScoredVideo:
    return ScoredVideo(id, [], 9.0, even_rows(9.0, len(scores)), labels, scores)


def loop_ap(scores: list[float], labels: list[bool]) -> float:
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    found, total = 0, 0.0
    for place, i in enumerate(order, 1):
        if labels[i]:
            found += 1
            total += found / place
    return total / found if found else 0.0


@given(ROWS)
def test_the_curve_is_the_loops_and_its_area_the_ap(rows: list[tuple[float, bool]]) -> None:
    scores, labels = np.array([r[0] for r in rows], np.float32), np.array([r[1] for r in rows])
    recall, precision = precision_recall(scores, labels)
    order = sorted(range(len(rows)), key=lambda i: -rows[i][0])
    hits = [n for n in range(1, len(rows) + 1) if labels[order[n - 1]]]
    expected = [labels[order[:n]].sum() for n in hits]
    assert recall.tolist() == [found / labels.sum() for found in expected]
    assert precision.tolist() == [found / n for found, n in zip(expected, hits, strict=True)]
    ap = average_precision(scores[:, None], labels[:, None])[0]
    for most in (1, 3, 100):
        x, y = thin_curve(recall, precision, most)
        assert len(x) <= most
        assert np.sum(np.diff(x, prepend=0) * y) == pytest.approx(ap)


@given(st.integers(0, 60), st.integers(1, 12))
def test_best_and_worst_are_the_ends_and_share_nothing(count: int, most: int) -> None:
    best, worst = best_and_worst(range(count), most)
    assert best == list(range(count))[: len(best)]
    assert worst == list(range(count))[::-1][: len(worst)]
    assert not set(best) & set(worst)
    assert len(best) + len(worst) == min(count, 2 * most)
    assert 0 <= len(best) - len(worst) <= 1


@given(st.integers(0, 2**32 - 1))
def test_a_videos_figures_are_the_loops(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores, labels = rng.random((7, 3)).astype(np.float32), rng.random((7, 3)) < 0.3
    found = video_figures(scored("v", scores, labels))
    assert (found["id"], found["rows"], found["positives"]) == ("v", 7, labels.sum())
    if not labels.any():
        assert np.isnan(found["ap"])
        return
    assert found["ap"] == pytest.approx(
        100 * loop_ap(scores.ravel().tolist(), labels.ravel().tolist())
    )
    of_classes = [
        loop_ap(scores[:, c].tolist(), labels[:, c]) for c in range(3) if labels[:, c].any()
    ]
    assert found["map"] == pytest.approx(100 * np.mean(of_classes))
    assert found["chance"] == pytest.approx(100 * labels.mean())


def test_class_confusions_are_the_loops() -> None:
    rng = np.random.default_rng(3)
    scores = [rng.random((n, 4)).astype(np.float32) for n in (9, 5)]
    labels = [rng.random((n, 4)) < 0.4 for n in (9, 5)]
    labels[0][:, 3] = labels[1][:, 3] = False
    expected = {}
    all_scores, all_labels = np.concatenate(scores), np.concatenate(labels)
    for i in range(4):
        for j in range(4):
            there = all_labels[:, i] & ~all_labels[:, j]
            neither = ~all_labels[:, i] & ~all_labels[:, j]
            if i != j and there.any():
                one, other = all_scores[there, j].mean(), all_scores[neither, j].mean()
                if one > other:
                    expected[i, j] = (there.sum(), one, other)
    videos = [scored("v", *pair) for pair in zip(scores, labels, strict=True)]
    found = class_confusions(videos, "abcd", 99)
    numbers = ("rows", "probability", "elsewhere")
    assert {(p["labelled"], p["scored"]): tuple(p[n] for n in numbers) for p in found} == {
        ("abcd"[i], "abcd"[j]): pytest.approx(values) for (i, j), values in expected.items()
    }
    excess = [p["rows"] * (p["probability"] - p["elsewhere"]) for p in found]
    assert excess == sorted(excess, reverse=True)
    assert class_confusions(videos, "abcd", 2) == found[:2]


def test_videos_of_equal_ap_keep_their_order_and_those_without_positives_are_apart() -> None:
    right, wrong = np.array([[0.9], [0.1]], np.float32), np.array([[0.1], [0.9]], np.float32)
    labels = np.array([[True], [False]])
    tables = {"a": wrong, "b": right, "none": right, "c": right, "d": wrong}
    videos = [
        scored(id, t, labels if id != "none" else ~labels & False) for id, t in tables.items()
    ]
    found = rank_videos(videos, 1)
    assert [row["id"] for row in found["ranking"]] == ["b", "c", "a", "d"]
    assert (found["best"], found["worst"]) == (["b"], ["d"])
    assert found["without_positives"] == ["none"]
