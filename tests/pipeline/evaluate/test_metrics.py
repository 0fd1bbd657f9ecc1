"""Every measure by hand, by the plain loop, and against the numbers of the field's own code."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mstemba.data_manifests.manifest import Action
from mstemba.pipeline.evaluate.frame_metrics import (
    TAUS,
    action_conditional,
    average_precision,
    charades_points,
    legacy_points,
    mean_average_precision,
    near_boundary,
    rank_scores,
)
from mstemba.pipeline.evaluate.segment_metrics import (
    TIOU,
    SegmentArray,
    detection_average_precision,
    detection_average_precision_of_bin,
    duration_bin,
    duration_limits,
    match_detections,
    overlaps,
)
from mstemba.records import TimeGrid


def column(*values: float) -> np.ndarray:
    return np.array(values)[:, None]


@pytest.mark.parametrize(
    ("scores", "labels", "ap"),
    [
        ([0.9, 0.8, 0.1], [1, 1, 0], 1.0),
        ([0.9, 0.8, 0.1], [0, 1, 1], (1 / 2 + 2 / 3) / 2),
        ([0.1, 0.8, 0.9], [1, 0, 0], 1 / 3),
        ([0.9, 0.8], [0, 0], 0.0),
        ([0.9], [1], 1.0),
    ],
)
def test_average_precision_by_hand(scores: list[float], labels: list[int], ap: float) -> None:
    assert average_precision(column(*scores), column(*labels) > 0)[0] == pytest.approx(ap)


def test_the_mean_is_in_percent_over_the_classes_that_occur() -> None:
    ap = np.array([0.5, 0.0, 1.0])
    assert mean_average_precision(ap, np.array([3, 0, 1])) == pytest.approx(75.0)
    assert math.isnan(mean_average_precision(ap, np.array([0, 0, 0])))


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(N, C\)"):
        average_precision(np.zeros((3, 2)), np.zeros((2, 3), bool))
    with pytest.raises(ValueError, match=r"\(N, C\)"):
        average_precision(np.zeros(3), np.zeros(3, bool))


@given(seed=st.integers(0, 10_000), rows=st.integers(1, 60), classes=st.integers(1, 4))
def test_only_the_ranking_counts(seed: int, rows: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.permuted(np.tile(np.linspace(-3, 3, rows)[:, None], classes), axis=0)
    labels = rng.random((rows, classes)) < 0.3
    ap = average_precision(scores, labels)
    assert np.array_equal(average_precision(1 / (1 + np.exp(-scores)), labels), ap)
    assert np.array_equal(average_precision(7 * scores + 2, labels), ap)
    order = rng.permutation(rows)  # without ties the order of the steps does not matter either
    assert np.allclose(average_precision(scores[order], labels[order]), ap, atol=1e-12)
    assert ((ap >= 0) & (ap <= 1)).all()


@given(seed=st.integers(0, 10_000), rows=st.integers(1, 40))
def test_average_precision_equals_the_plain_loop(seed: int, rows: int) -> None:
    rng = np.random.default_rng(seed)
    scores, labels = rng.random(rows), rng.random(rows) < 0.4
    hits, precisions = 0, []
    for rank, index in enumerate(sorted(range(rows), key=lambda i: -scores[i]), 1):
        if labels[index]:
            hits += 1
            precisions.append(hits / rank)
    expected = sum(precisions) / len(precisions) if precisions else 0.0
    assert average_precision(column(*scores), labels[:, None])[0] == pytest.approx(expected)


def tracks(
    seed: int, rows: int, classes: int, videos: int
) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Scores without ties, labels in runs, and lengths of videos (some of them 0)."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((rows, classes), bool)
    for _ in range(rows * classes // 8 + 1):
        begin, length = rng.integers(rows), rng.integers(1, 8)
        labels[begin : begin + length, rng.integers(classes)] = True
    scores = rng.permuted(np.tile(np.linspace(0.01, 0.99, rows)[:, None], classes), axis=0)
    cuts = np.sort(rng.integers(0, rows + 1, videos - 1))
    return scores.astype(np.float32), labels, np.diff([0, *cuts, rows]).tolist()


@given(seed=st.integers(0, 10_000), rows=st.integers(1, 50), kind=st.sampled_from("fdeq"))
def test_ranks_keep_the_stable_order_of_every_kind_of_number(
    seed: int, rows: int, kind: str
) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(-3, 4, (rows, 2)).astype(kind)  # ties, and both signs
    if kind != "q":
        scores[rng.random(scores.shape) < 0.2] *= -0.0
        scores[rng.random(scores.shape) < 0.1] = np.nan
        scores[rng.random(scores.shape) < 0.1] = np.inf
    ranks = rank_scores(scores)
    assert rank_scores(ranks) is ranks
    expected = np.argsort(-scores, axis=0, kind="stable")
    assert np.array_equal(np.argsort(-ranks.astype(int), axis=0), expected)
    labels = rng.random(scores.shape) < 0.4
    assert np.array_equal(average_precision(ranks, labels), average_precision(scores, labels))


@given(seed=st.integers(0, 10_000), rows=st.integers(1, 60))
def test_rows_that_do_not_count_might_as_well_not_be_there(seed: int, rows: int) -> None:
    scores, labels, _ = tracks(seed, rows, 3, 1)
    counted = np.random.default_rng(seed).random(labels.shape) < 0.6
    found = average_precision(scores, labels, counted)
    for c in range(3):
        kept = counted[:, c]
        alone = average_precision(scores[kept, c : c + 1], labels[kept, c : c + 1])
        assert found[c] == pytest.approx(alone[0])


def test_the_mean_over_all_classes_takes_those_that_do_not_occur_as_0() -> None:
    assert mean_average_precision(np.array([0.5, 0.0, 1.0])) == pytest.approx(50.0)


def naive_conditional(
    scores: np.ndarray, labels: np.ndarray, lengths: list[int], tau: int
) -> dict[str, float]:
    precisions, recalls, aps = [], [], []
    for other in range(labels.shape[1]):
        given, begin = [], 0
        for length in lengths:
            for row in range(begin, begin + length):
                past = labels[max(begin, row - tau + 1) : row + 1, other]
                now = labels[row, other]
                given.append(bool(now) if tau == 0 else bool(past.any() and not now))
            begin += length
        for one in range(labels.shape[1]):
            truth, score = labels[given, one], scores[given, one]
            if one == other or not truth.any():
                continue
            called = score >= 0.5
            precisions.append((truth & called).sum() / max(called.sum(), 1))
            recalls.append((truth & called).sum() / truth.sum())
            aps.append(average_precision(score[:, None], truth[:, None])[0])
    if not aps:
        return dict.fromkeys(("precision", "recall", "f1", "map"), math.nan)
    p, r = float(np.mean(precisions)), float(np.mean(recalls))
    f1 = 200 * p * r / (p + r + 1e-9)
    return {"precision": 100 * p, "recall": 100 * r, "f1": f1, "map": 100 * float(np.mean(aps))}


@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(1, 60),
    classes=st.integers(1, 4),
    videos=st.integers(1, 5),
    tau=st.sampled_from([0, 1, 2, 5, 40]),
)
def test_conditional_measures_equal_the_plain_loop(
    seed: int, rows: int, classes: int, videos: int, tau: int
) -> None:
    scores, labels, lengths = tracks(seed, rows, classes, videos)
    found = action_conditional(scores, labels, lengths, (tau,))[tau]
    expected = naive_conditional(scores, labels, lengths, tau)
    assert found == pytest.approx(expected, nan_ok=True)


@given(seed=st.integers(0, 10_000), rows=st.integers(2, 60), videos=st.integers(2, 5))
def test_the_order_of_the_videos_does_not_matter(seed: int, rows: int, videos: int) -> None:
    scores, labels, lengths = tracks(seed, rows, 3, videos)
    order = np.random.default_rng(seed).permutation(videos)
    begins = np.cumsum([0, *lengths])
    moved = np.concatenate([np.arange(begins[v], begins[v + 1]) for v in order])
    again = (scores[moved], labels[moved], [lengths[v] for v in order])
    one, other = action_conditional(scores, labels, lengths), action_conditional(*again)
    for tau in TAUS:
        assert one[tau] == pytest.approx(other[tau], nan_ok=True)
    near = near_boundary(labels, lengths)
    assert np.array_equal(near_boundary(again[1], again[2]), near[moved])
    assert average_precision(scores, labels, near) == pytest.approx(
        average_precision(again[0], again[1], near[moved])
    )


@given(seed=st.integers(0, 10_000), rows=st.integers(1, 40), width=st.integers(1, 4))
def test_rows_near_a_boundary_equal_the_plain_loop(seed: int, rows: int, width: int) -> None:
    _, labels, lengths = tracks(seed, rows, 2, 3)
    expected = np.zeros_like(labels)
    begin = 0
    for length in lengths:
        for row in range(begin + 1, begin + length):
            for c in np.flatnonzero(labels[row] != labels[row - 1]):
                low, high = max(row - width, begin), min(row + width, begin + length)
                expected[low:high, c] = True
        begin += length
    assert np.array_equal(near_boundary(labels, lengths, width), expected)


def test_charades_looks_at_25_points_from_the_start_on() -> None:
    grid = TimeGrid(np.array([0.5, 2.0, 7.0]), 3.0)
    scores = np.array([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]], np.float32)
    actions = [Action(1, 0.4, 0.8), Action(0, 9.6, 30.0), Action(0, 3.0, 2.0)]
    found, labels = charades_points(scores, grid, actions, duration=10.0)
    times = np.arange(25) * 0.4
    assert found[:, 0] == pytest.approx(np.where(times >= 7, 0.5, np.where(times >= 2, 0.3, 0.1)))
    assert np.flatnonzero(labels[:, 1]).tolist() == [1, 2]  # both ends included
    assert np.flatnonzero(labels[:, 0]).tolist() == [24]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (1, []),
        (25, []),
        (26, range(1, 26)),
        (49, range(1, 26)),
        (50, range(1, 50, 2)),
        (411, range(1, 401, 16)),
    ],
)
def test_the_legacy_sampling_sees_the_beginning_only(rows: int, expected: list[int]) -> None:
    assert legacy_points(rows).tolist() == list(expected)


def segments(*rows: tuple[int, int, float, float, float]) -> SegmentArray:
    """Of (video, class, start, end, score)."""
    return SegmentArray.from_rows(rows)


def random_segments(seed: int, count: int, action: bool) -> SegmentArray:
    rng = np.random.default_rng([seed, action])
    start = rng.integers(0, 20, count)  # whole numbers: many overlaps are equal
    end = start + rng.integers(1, 8, count)
    score = rng.permutation(count) / max(count, 1)
    columns = (rng.integers(0, 3, count), rng.integers(0, 3, count), start, end, score)
    return segments(*zip(*columns, strict=True))


def tiou(one: np.ndarray, other: np.ndarray) -> float:
    shared = max(0.0, min(one[1], other[1]) - max(one[0], other[0]))
    return shared / (one[1] - one[0] + other[1] - other[0] - shared)


def naive_detection(
    truth: SegmentArray, found: SegmentArray, threshold: float, classes: int
) -> tuple[list[int], list[float]]:
    """ActivityNet's way: detection by detection, and precision lifted along the whole curve."""
    match, aps = [-1] * len(found), []
    for c in range(classes):
        taken: set[int] = set()
        hits = []
        for d in sorted(np.flatnonzero(found.class_id == c), key=lambda i: -found.score[i]):
            same = np.flatnonzero((truth.class_id == c) & (truth.video == found.video[d]))
            span = (found.start[d], found.end[d])
            overlap = {a: tiou(span, (truth.start[a], truth.end[a])) for a in same}
            best = sorted(same, key=lambda a: (-overlap[a], a))
            free = [a for a in best if overlap[a] >= threshold and a not in taken]
            hits.append(bool(free))
            if free:
                taken.add(free[0])
                match[d] = int(free[0])
        actions = int((truth.class_id == c).sum())
        recall = np.array([0, *np.cumsum(hits), actions]) / max(actions, 1)
        precision = np.array([0, *(np.cumsum(hits) / np.arange(1, len(hits) + 1)), 0])
        for i in range(len(precision) - 2, -1, -1):
            precision[i] = max(precision[i], precision[i + 1])
        aps.append(float((np.diff(recall) * precision[1:]).sum()) if actions else 0.0)
    return match, aps


@given(seed=st.integers(0, 10_000), actions=st.integers(0, 25), detections=st.integers(0, 40))
def test_detection_equals_the_plain_loop(seed: int, actions: int, detections: int) -> None:
    truth, found = random_segments(seed, actions, True), random_segments(seed, detections, False)
    matches = match_detections(truth, found)
    ap = detection_average_precision(truth, found, matches, 3)
    for row, threshold in enumerate(TIOU):
        match, expected = naive_detection(truth, found, threshold, 3)
        assert matches[row].tolist() == match
        assert ap[row] == pytest.approx(expected)
    one, other, overlap = overlaps(found, truth)
    pairs = {
        (i, j): tiou((found.start[i], found.end[i]), (truth.start[j], truth.end[j]))
        for i in range(len(found))
        for j in range(len(truth))
        if (found.video[i], found.class_id[i]) == (truth.video[j], truth.class_id[j])
    }
    assert dict(zip(zip(one.tolist(), other.tolist(), strict=True), overlap, strict=True)) == {
        pair: pytest.approx(value) for pair, value in pairs.items() if value > 0
    }


def test_an_action_is_found_once_and_precision_is_lifted() -> None:
    truth = segments((0, 0, 0, 10, 1), (0, 0, 20, 30, 1))
    found = segments((0, 0, 0, 10, 0.9), (0, 0, 1, 10, 0.8), (0, 0, 20, 29, 0.7), (1, 0, 0, 9, 1.0))
    matches = match_detections(truth, found, (0.5, 0.95))
    assert matches.tolist() == [[0, -1, 1, -1], [0, -1, -1, -1]]
    # By falling score: miss, hit (1/2), miss, hit (2/4): lifted both are 1/2.
    ap = detection_average_precision(truth, found, matches, 2)
    assert ap.tolist() == [[pytest.approx(0.5), 0.0], [pytest.approx(0.25), 0.0]]


def test_bins_of_durations_are_terciles_and_leave_the_others_detections_out() -> None:
    truth = segments((0, 0, 0, 1, 1), (0, 0, 10, 15, 1), (0, 0, 20, 60, 1))
    limits = duration_limits(truth.duration)
    assert duration_bin(truth.duration, limits).tolist() == [0, 1, 2]
    assert limits[0] < 5 < limits[1]
    found = segments(
        (0, 0, 20, 60, 0.9),  # the long one
        (0, 0, 70, 110, 0.8),  # long, and wrong
        (0, 0, 0, 1, 0.7),  # the short one
    )
    matches = match_detections(truth, found, (0.5,))
    aps = [
        detection_average_precision_of_bin(b, limits, truth, found, matches, 1)[0, 0]
        for b in range(3)
    ]
    assert aps == [1.0, 0.0, 1.0]
    assert detection_average_precision(truth, found, matches, 1)[0, 0] == pytest.approx(
        (1 + 2 / 3) / 3
    )


Golden = tuple[dict[str, Any], list[np.ndarray], list[np.ndarray]]


@pytest.fixture(scope="module")
def golden(shared: Path) -> Golden:
    """What the field's own code made of the scores and labels of six videos."""
    expected = json.loads((shared / "golden" / "metrics_expected.json").read_text())
    with np.load(shared / "golden" / "metrics_inputs.npz") as data:
        names = sorted(name for name in data if name.startswith("probs_"))
        scores = [data[name] for name in names]
        labels = [data[n.replace("probs", "labels")] > 0 for n in names]
    return expected, scores, labels


def test_the_fields_own_meter_gives_the_same_numbers(golden: Golden) -> None:
    expected, scores, labels = golden
    truth = np.concatenate(labels)
    ap = average_precision(np.concatenate(scores), truth)
    assert ap == pytest.approx(np.array(expected["ap_per_class"]), abs=1e-6)
    assert mean_average_precision(ap) == pytest.approx(expected["map_all_classes"], rel=1e-6)
    present = mean_average_precision(ap, truth.sum(axis=0))
    assert present == pytest.approx(expected["map_present_classes"], rel=1e-6)


def test_the_fields_25_samples_give_the_same_numbers(golden: Golden) -> None:
    expected, scores, labels = golden
    rows = [legacy_points(len(video)) for video in scores]
    ap = average_precision(
        np.concatenate([video[chosen] for video, chosen in zip(scores, rows, strict=True)]),
        np.concatenate([video[chosen] for video, chosen in zip(labels, rows, strict=True)]),
    )
    assert ap == pytest.approx(np.array(expected["sampled25_ap_per_class"]), abs=1e-6)
    assert mean_average_precision(ap) == pytest.approx(expected["sampled25_map_all"], rel=1e-6)


def test_the_fields_conditional_measures_give_the_same_numbers(golden: Golden) -> None:
    expected, scores, labels = golden
    lengths = [len(video) for video in scores]
    found = action_conditional(
        np.concatenate(scores)[:, :8], np.concatenate(labels)[:, :8], lengths
    )
    for tau in (0, 20, 40):
        fractions = {name: value / 100 for name, value in found[tau].items()}
        assert fractions == pytest.approx(expected[f"conditional_t{tau}"], abs=1e-6)
