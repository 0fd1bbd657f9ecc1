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


def scores(
    *columns: list[float], step: float = 1.0, duration: float | None = None, anchor: float = 0.0
) -> Scores:
    probabilities = np.array(columns, np.float32).T
    grid = TimeGrid.even(0.0, step, len(probabilities))
    classes = tuple(f"c{i}" for i in range(len(columns)))
    end = duration or float(grid.ends[-1])
    return Scores(probabilities, grid, classes, "v", end, 25.0, anchor=anchor)


def spans(found: list[Segment]) -> list[tuple[float, float]]:
    return [(s.start, s.end) for s in found]


def test_an_edge_lies_between_rows_where_the_log_odds_cross_the_threshold() -> None:
    # Log-odds of -2, 1, 1 and -1 times log(3): crossed after 2/3 and 1/2 of a row.
    column = [0.1, 0.75, 0.75, 0.25, 0.1]
    ((start, end),) = spans(find_segments(scores(column), 0.5, 0.5))
    assert start == pytest.approx(2 / 3, abs=2e-3)  # probabilities count in thousandths
    assert end == pytest.approx(2.5, abs=2e-3)
    # At the centres of the rows half a row later.
    ((later, latest),) = spans(find_segments(scores(column, anchor=0.5), 0.5, 0.5))
    assert (later - start, latest - end) == (pytest.approx(0.5, abs=2e-6),) * 2
    # A threshold of 0.75 is where rows 1 and 2 are.
    ((start, end),) = spans(find_segments(scores(column), 0.75, 0.75))
    assert 0.95 <= start < 1 < 2 < end <= 2.05


def test_hard_scores_begin_and_end_halfway_between_rows() -> None:
    column = [0.0, 0.0, 1.0, 1.0, 0.0]
    assert spans(find_segments(scores(column), 0.5, 0.3)) == [(1.5, 3.5)]
    assert spans(find_segments(scores(column, anchor=0.5), 0.5, 0.3)) == [(2.0, 4.0)]
    assert spans(find_segments(scores(column, step=0.64), 0.5, 0.3)) == [(0.96, 2.24)]


def test_hysteresis_bridges_a_dip_and_drops_a_run_that_never_reaches_the_threshold() -> None:
    #          0    1    2    3    4    5    6    7    8    9
    column = [0.1, 0.4, 0.9, 0.3, 0.8, 0.2, 0.4, 0.4, 0.1, 0.6]
    bridged = find_segments(scores(column), threshold=0.5, low=0.3)
    assert len(bridged) == 2
    assert bridged[0].score == pytest.approx((0.9 + 0.3 + 0.8) / 3)  # of rows 2 to 4
    assert (bridged[0].class_id, bridged[0].label) == (0, "c0")
    split = find_segments(scores(column), threshold=0.5, low=0.5)
    assert [s.score for s in split] == pytest.approx([0.9, 0.8, 0.6])
    # The edges are those at the threshold, however low the dips may be.
    assert spans(bridged) == [(split[0].start, split[1].end), (split[2].start, 10.0)]
    assert 1 < split[0].start < 2 < split[0].end < 3 < split[1].start < 4 < split[1].end < 5


def test_a_row_at_exactly_the_threshold_counts() -> None:
    ((start, end),) = spans(find_segments(scores([0.25, 0.5, 0.25]), threshold=0.5, low=0.25))
    assert 0 < start < 1 < end < 2
    assert spans(find_segments(scores([0.5, 0.5]), threshold=0.5, low=0.25)) == [(0.0, 2.0)]


def test_segments_of_several_classes_overlap_and_are_sorted_by_start() -> None:
    found = find_segments(scores([0.0, 1.0, 1.0], [1.0, 1.0, 0.0], [1.0, 0.0, 0.0]), 0.5, 0.3)
    assert [(s.start, s.end, s.class_id) for s in found] == [
        (0.0, 0.5, 2),
        (0.0, 1.5, 1),
        (0.5, 3.0, 0),
    ]


@pytest.mark.parametrize("anchor", [0.0, 0.5, 1.0])
def test_above_the_threshold_to_the_end_it_ends_with_the_last_row_or_the_video(
    anchor: float,
) -> None:
    whole = scores([0.9, 0.9], anchor=anchor)
    assert spans(find_segments(whole, 0.5, 0.3)) == [(0.0, 2.0)]
    assert spans(find_segments(replace(whole, duration=1.25), 0.5, 0.3)) == [(0.0, 1.25)]
    assert spans(find_segments(replace(whole, duration=9.0), 0.5, 0.3)) == [(0.0, 2.0)]
    late = replace(whole, grid=TimeGrid.even(3.0, 1.0, 2), duration=9.0)
    assert spans(find_segments(late, 0.5, 0.3)) == [(3.0, 5.0)]


def test_rows_outside_the_video_make_no_segment() -> None:
    dense = scores([1.0] * 3 + [0.0] * 7 + [1.0, 1.0], [0.0] * 9 + [1.0] * 3, duration=10.0)
    dense = replace(dense, grid=TimeGrid.even(-1.0, 1.0, 12))
    assert spans(find_segments(dense, 0.5, 0.3)) == [(0.0, 1.5), (7.5, 10.0), (8.5, 10.0)]
    dense = replace(dense, grid=TimeGrid.even(0.0, 1.0, 12))
    assert spans(find_segments(dense, 0.5, 0.3)) == [(0.0, 2.5), (8.5, 10.0), (9.5, 10.0)]
    dense = replace(dense, grid=TimeGrid.even(1.0, 1.0, 12))
    assert spans(find_segments(dense, 0.5, 0.3)) == [(1.0, 3.5), (9.5, 10.0)]


def test_low_is_not_above_the_threshold() -> None:
    with pytest.raises(UsageError, match=r"low is 0.9, expected no more than the threshold, 0.5"):
        find_segments(scores([0.7]), 0.5, 0.9)


def test_the_shortest_length_is_in_seconds_and_inclusive() -> None:
    column = [0.0, 1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 0.0]
    found = find_segments(scores(column, step=0.5), 0.5, 0.3, min_length=1.0)
    assert spans(found) == [(1.25, 2.25), (2.75, 4.25)]


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
    grid, anchor = TimeGrid(starts, step), draw(st.sampled_from([0.0, 0.5, 1.0]))
    found = Scores(probabilities, grid, names, "v", duration, 25.0, anchor=anchor)
    # Whole thousandths are what the page cuts at.
    threshold = draw(st.floats(0.05, 1) | st.integers(50, 1000).map(lambda k: k / 1000))
    low = draw(st.floats(0, 1)) * threshold
    return found, threshold, low, draw(st.sampled_from([0.0, 0.5, 2.0]))


@given(case=cases())
def test_segments_keep_their_promises(case: tuple[Scores, float, float, float]) -> None:
    dense, threshold, low, min_length = case
    found = find_segments(dense, threshold, low, min_length)
    assert found == sorted(found)
    times, bounds = dense.times, dense.bounds
    # Rows are compared as float32, as the scores are.
    threshold32, low32 = np.float32(threshold), np.float32(low)
    for s in found:
        # The first and the last row of all may hold exactly where the rows begin or end.
        first, *_ = inside = np.flatnonzero((times >= s.start) & (times <= s.end))
        last = inside[-1]
        rows = dense.probabilities[first : last + 1, s.class_id]
        assert 0 <= s.start < s.end <= dense.duration
        assert s.end - s.start >= min_length
        assert (rows >= low32).all()
        assert min(rows[0], rows[-1]) >= threshold32
        assert rows.min() - 1e-6 <= s.score <= rows.max() + 1e-6
        assert s.label == dense.classes[s.class_id]
        # Each edge lies between its own row and the next one outside, which is lower.
        for row, edge, step in ((first, s.start, -1), (last, s.end, 1)):
            if 0 <= row + step < len(times):
                assert dense.probabilities[row + step, s.class_id] < threshold32
                near, far = sorted((times[row], times[row + step]))
                assert near < edge < far or far - near < 1e-4
            else:
                assert edge == bounds[0 if step < 0 else -1]
    for class_id in range(len(dense.classes)):
        own = [s for s in found if s.class_id == class_id]
        for before, after in pairwise(own):
            # Disjoint, and not even touching: between two segments lies a row below `low`.
            assert before.end < after.start
            between = (times > before.end) & (times < after.start)
            assert (dense.probabilities[between, class_id] < low32).any()
    if min_length == 0:
        covered = np.zeros(dense.probabilities.shape, bool)
        for s in found:
            covered[(times >= s.start) & (times <= s.end), s.class_id] = True
        assert covered[dense.probabilities >= threshold32].all()


@given(
    start=st.floats(3, 8),
    length=st.floats(3, 8),
    width=st.floats(0.3, 1),
    anchor=st.sampled_from([0.0, 0.5]),
)
def test_smooth_scores_give_the_times_of_the_action(
    start: float, length: float, width: float, anchor: float
) -> None:
    """Log-odds rise and fall around the edges of an action, by rows that see them smoothed."""
    grid = TimeGrid.even(0.0, 1.0, 20)
    times = grid.times(anchor)
    odds = np.minimum(times - start, start + length - times) / width
    probabilities = (1 / (1 + np.exp(-odds)))[:, None]
    dense = Scores(probabilities, grid, ("c",), "v", 20.0, 25.0, anchor=anchor)  # type: ignore[arg-type]
    ((found_start, found_end),) = spans(find_segments(dense, 0.5, 0.3))
    # What the thousandths of probabilities near the edges cost, and the 0.05 of a row that an edge
    # keeps from both rows.
    assert found_start == pytest.approx(start, abs=0.055)
    assert found_end == pytest.approx(start + length, abs=0.055)


@given(start=st.floats(2, 15), length=st.floats(1.01, 4), anchor=st.sampled_from([0.0, 0.5]))
def test_hard_scores_are_off_by_at_most_half_a_row(
    start: float, length: float, anchor: float
) -> None:
    grid = TimeGrid.even(0.0, 1.0, 24)
    times = grid.times(anchor)
    hard = ((times >= start) & (times < start + length)).astype(np.float32)[:, None]
    dense = Scores(hard, grid, ("c",), "v", 24.0, 25.0, anchor=anchor)
    ((found_start, found_end),) = spans(find_segments(dense, 0.5, 0.3))
    assert abs(found_start - start) <= 0.5
    assert abs(found_end - (start + length)) <= 0.5


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("threshold", [0.0, 0.0001, 1.0])
def test_the_lowest_and_the_highest_threshold_need_no_warning(threshold: float) -> None:
    found = spans(find_segments(scores([0.0, 1.0, 0.0]), threshold, threshold))
    assert found == ([(0.0, 3.0)] if threshold == 0 else [(0.05, 1.95)] if threshold < 1 else found)
    assert len(found) == 1
