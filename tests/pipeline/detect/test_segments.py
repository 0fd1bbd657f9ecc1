"""Dense scores to segments."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mstemba.errors import UsageError
from mstemba.pipeline.detect.segments import find_segments
from mstemba.records import Scores, Segment, TimeGrid


def scores(*columns: list[float], step: float = 1.0, duration: float | None = None) -> Scores:
    probabilities = np.array(columns, np.float32).T
    grid = TimeGrid.even(0.0, step, len(probabilities))
    classes = tuple(f"c{i}" for i in range(len(columns)))
    return Scores(probabilities, grid, classes, "v", duration or float(grid.ends[-1]), 25.0)


def spans(found: list[Segment]) -> list[tuple[float, float]]:
    return [(s.start, s.end) for s in found]


def test_hysteresis_bridges_a_dip_and_drops_a_run_that_never_reaches_the_threshold() -> None:
    #          0    1    2    3    4    5    6    7    8    9
    column = [0.1, 0.4, 0.9, 0.3, 0.8, 0.2, 0.4, 0.4, 0.1, 0.6]
    found = find_segments(scores(column), threshold=0.5, low=0.3)
    assert spans(found) == [(1.0, 5.0), (9.0, 10.0)]
    assert found[0].score == pytest.approx((0.4 + 0.9 + 0.3 + 0.8) / 4)
    assert (found[0].class_id, found[0].label) == (0, "c0")
    assert spans(find_segments(scores(column), threshold=0.5, low=0.5)) == [
        (2.0, 3.0),
        (4.0, 5.0),
        (9.0, 10.0),
    ]


def test_a_run_at_exactly_the_threshold_counts() -> None:
    assert spans(find_segments(scores([0.5, 0.25]), threshold=0.5, low=0.25)) == [(0.0, 2.0)]


def test_segments_of_several_classes_overlap_and_are_sorted_by_start() -> None:
    found = find_segments(scores([0.0, 0.9, 0.9], [0.9, 0.9, 0.0], [0.9, 0.0, 0.0]), 0.5, 0.3)
    assert [(s.start, s.end, s.class_id) for s in found] == [
        (0.0, 1.0, 2),
        (0.0, 2.0, 1),
        (1.0, 3.0, 0),
    ]


def test_a_segment_ends_where_the_video_ends() -> None:
    assert spans(find_segments(scores([0.9, 0.9], duration=1.25), 0.5, 0.3)) == [(0.0, 1.25)]


def test_rows_outside_the_video_make_no_segment() -> None:
    dense = scores([0.9] * 3 + [0.0] * 7 + [0.9, 0.9], [0.0] * 9 + [0.9] * 3, duration=10.0)
    dense = replace(dense, grid=TimeGrid.even(-1.0, 1.0, 12))
    assert spans(find_segments(dense, 0.5, 0.3)) == [(0.0, 2.0), (8.0, 10.0), (9.0, 10.0)]
    dense = replace(dense, grid=TimeGrid.even(0.0, 1.0, 12))
    assert spans(find_segments(dense, 0.5, 0.3)) == [(0.0, 3.0), (9.0, 10.0)]


def test_low_is_not_above_the_threshold() -> None:
    with pytest.raises(UsageError, match=r"low is 0.9, expected no more than the threshold, 0.5"):
        find_segments(scores([0.7]), 0.5, 0.9)


def test_the_shortest_length_is_in_seconds_and_inclusive() -> None:
    column = [0.9, 0.0, 0.9, 0.9, 0.0, 0.9, 0.9, 0.9]
    found = find_segments(scores(column, step=0.5), 0.5, 0.3, min_length=1.0)
    assert spans(found) == [(1.0, 2.0), (2.5, 4.0)]


def test_nothing_found_is_an_empty_list() -> None:
    assert find_segments(scores([0.0, 0.1]), 0.5, 0.3) == []
    assert find_segments(scores([0.0]), 0.5, 0.0) == []


@st.composite
def cases(draw: st.DrawFn) -> tuple[Scores, float, float, float]:
    rows, classes = draw(st.integers(1, 30)), draw(st.integers(1, 3))
    steps = draw(hnp.arrays(np.float64, rows, elements=st.floats(0.01, 3)))
    starts = np.cumsum(steps)
    probabilities = draw(
        hnp.arrays(np.float32, (rows, classes), elements=st.floats(0, 1, width=32))
    )
    step = draw(st.floats(0.01, 3))
    duration = float(starts[-1]) + draw(st.floats(0.01, 1)) * step
    names = tuple(f"c{i}" for i in range(classes))
    found = Scores(probabilities, TimeGrid(starts, step), names, "v", duration, 25.0)
    threshold = draw(st.floats(0.05, 1))
    low = draw(st.floats(0, 1)) * threshold
    return found, threshold, low, draw(st.sampled_from([0.0, 0.5, 2.0]))


@given(case=cases())
def test_segments_keep_their_promises(case: tuple[Scores, float, float, float]) -> None:
    dense, threshold, low, min_length = case
    found = find_segments(dense, threshold, low, min_length)
    assert found == sorted(found)
    starts = dense.grid.starts
    # Rows are compared as float32, as the scores are.
    threshold32, low32 = np.float32(threshold), np.float32(low)
    for s in found:
        rows = dense.probabilities[(starts >= s.start) & (starts < s.end), s.class_id]
        assert s.start in starts
        assert s.end == dense.duration or s.end in starts
        assert s.end <= dense.duration
        assert s.end - s.start >= min_length
        assert (rows >= low32).all()
        assert (rows >= threshold32).any()
        assert rows.min() - 1e-6 <= s.score <= rows.max() + 1e-6
        assert s.label == dense.classes[s.class_id]
    for class_id in range(len(dense.classes)):
        own = [s for s in found if s.class_id == class_id]
        for before, after in pairwise(own):
            # Disjoint, and not even touching: between two segments lies a row below `low`.
            assert before.end < after.start
    if min_length == 0:
        covered = np.zeros(dense.probabilities.shape, bool)
        for s in found:
            covered[(starts >= s.start) & (starts < s.end), s.class_id] = True
        assert covered[dense.probabilities >= threshold32].all()
