"""Dense scores to ranked segments, against the plain loop."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mstemba.pipeline.evaluate import proposals
from mstemba.pipeline.evaluate.proposals import MAX_OVERLAP, propose, suppress
from mstemba.pipeline.evaluate.segment_metrics import SegmentArray
from mstemba.records import TimeGrid


def scores_of(seed: int, rows: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.repeat(rng.integers(0, 21, (rows, 2)) / 20, 2, axis=0).astype(np.float32)


def naive_runs(
    scores: np.ndarray, grid: TimeGrid, threshold: float
) -> dict[tuple[float, ...], float]:
    """Contrast by (class, start, end)."""
    found = {}
    for c, column in enumerate(scores.T):
        row = 0
        while row < len(column):
            begin = row
            while row < len(column) and column[row] >= threshold:
                row += 1
            if row > begin:
                margin = max(round((row - begin) / 4), 1)
                outside = [*column[max(begin - margin, 0) : begin], *column[row : row + margin]]
                contrast = column[begin:row].mean() - (np.mean(outside) if outside else 0)
                found[c, grid.bounds(0.0)[begin], grid.bounds(0.0)[row]] = float(contrast)
            row += 1
    return found


@given(seed=st.integers(0, 10_000), rows=st.lists(st.integers(1, 12), min_size=1, max_size=3))
def test_runs_at_one_threshold_equal_the_plain_loop(seed: int, rows: list[int]) -> None:
    videos = [scores_of(seed + n, count) for n, count in enumerate(rows)]
    grids = [TimeGrid.even(0.5, 1.5, len(video)) for video in videos]
    found = propose(np.concatenate(videos), [g.bounds(0.0) for g in grids], thresholds=(0.4,))
    for number, (video, grid) in enumerate(zip(videos, grids, strict=True)):
        mine = found[found.video == number]
        spans = zip(mine.class_id, mine.start, mine.end, strict=True)
        assert dict(zip(spans, mine.score, strict=True)) == pytest.approx(
            naive_runs(video, grid, 0.4), abs=1e-6
        )
    assert (np.diff(found.score) <= 0).all()


@given(seed=st.integers(0, 10_000), count=st.integers(0, 40))
def test_suppression_equals_the_plain_loop(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    start = rng.integers(0, 12, count).astype(float)
    found = SegmentArray(
        rng.integers(0, 2, count),
        rng.integers(0, 2, count),
        start,
        start + rng.integers(1, 9, count),
        rng.permutation(count) / 50,
    )
    kept: list[int] = []
    for i in np.argsort(-found.score, kind="stable"):
        for j in kept:
            same = (found.video[i], found.class_id[i]) == (found.video[j], found.class_id[j])
            shared = min(found.end[i], found.end[j]) - max(found.start[i], found.start[j])
            union = found.duration[i] + found.duration[j] - shared
            if same and shared / union > MAX_OVERLAP:
                break
        else:
            kept.append(int(i))
    assert suppress(found).score.tolist() == found.score[kept].tolist()


def test_the_level_with_the_sharpest_ends_wins() -> None:
    column = [0.01, 0.01, 0.6, 0.9, 0.9, 0.6, 0.01, 0.01]
    grid = TimeGrid.even(0.0, 2.0, 8)
    found = propose(np.array(column, np.float32)[:, None], [grid.bounds(0.5)])
    best = found[:1]
    assert (best.start[0], best.end[0]) == (4.0, 12.0)
    assert best.score[0] == pytest.approx(0.75 - 0.01)


def test_only_the_best_of_each_video_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proposals, "MAX_SEGMENTS", 2)
    column = np.array([0.9, 0.0, 0.8, 0.0, 0.7, 0.0], np.float32)[:, None]
    bounds = [TimeGrid.even(0.0, 1.0, 6).bounds(0.5)] * 2
    found = propose(np.concatenate([column, column]), bounds, thresholds=(0.5,))
    assert sorted(found.video.tolist()) == [0, 0, 1, 1]
    assert found.score == pytest.approx([0.9, 0.9, 0.8, 0.8])


def test_scores_below_every_threshold_give_no_segment() -> None:
    assert len(propose(np.zeros((4, 2), np.float32), [np.arange(5.0)])) == 0
