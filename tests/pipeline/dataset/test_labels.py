"""Labels of feature rows by both rules, against loops, and the actions that label no row."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mstemba.data_manifests.manifest import Action
from mstemba.pipeline.dataset.labels import count_missed, label_matrix
from mstemba.records import TimeGrid

# Times on a coarse lattice, so that actions often begin and end exactly where a row starts.
lattice = st.integers(-4, 44).map(lambda i: i / 4)
actions = st.lists(st.builds(Action, st.integers(0, 9), lattice, lattice), max_size=6)
steps = st.lists(st.integers(1, 5), min_size=1, max_size=30)
CLASSES = 10


def grid_of(steps: list[int]) -> TimeGrid:
    return TimeGrid(np.cumsum(steps) / 4 - 0.25, 1.0)


def naive_rows(action: Action, grid: TimeGrid) -> list[int]:
    """The rows whose centre lies in the action, or else the one in which its middle lies."""
    if action.end < action.start:
        return []
    rows = list(zip(grid.starts, grid.ends, strict=True))
    centred = [i for i, (a, b) in enumerate(rows) if action.start <= (a + b) / 2 < action.end]
    first, last = max(action.start, grid.start), min(action.end, grid.ends[-1])
    if centred or first > last or (first == last and action.start < action.end):
        return centred
    return [i for i, (a, b) in enumerate(rows) if a <= (first + last) / 2 < b]


@given(actions=actions, steps=steps)
def test_a_row_is_labelled_where_its_start_lies_strictly_inside_the_action(
    actions: list[Action], steps: list[int]
) -> None:
    grid = grid_of(steps)
    naive = np.zeros((grid.count, CLASSES), bool)
    for row, time in enumerate(grid.starts):
        for action in actions:
            if action.start < time < action.end:
                naive[row, action.class_id] = True
    assert np.array_equal(label_matrix(actions, grid, CLASSES), naive)


@given(actions=actions, steps=steps)
def test_with_the_overlap_rule_a_row_is_labelled_where_its_centre_lies_inside(
    actions: list[Action], steps: list[int]
) -> None:
    grid = grid_of(steps)
    naive = np.zeros((grid.count, CLASSES), bool)
    for action in actions:
        naive[naive_rows(action, grid), action.class_id] = True
    assert np.array_equal(label_matrix(actions, grid, CLASSES, "overlap"), naive)


@given(start=lattice, length=st.integers(0, 20).map(lambda i: i / 4), steps=steps)
def test_with_the_overlap_rule_no_action_falls_between_two_rows(
    start: float, length: float, steps: list[int]
) -> None:
    grid, action = grid_of(steps), Action(0, start, start + length)
    inside = action.start < grid.ends[-1] and action.end > grid.start
    inside |= action.start == action.end == grid.start
    assert count_missed([action], grid, "overlap") == (not inside)


@pytest.mark.parametrize("time", [0.0, 0.2, 0.5, 0.99, 1.0, 1.5, 4.999])
def test_an_event_without_length_is_one_row_at_its_time(time: float) -> None:
    grid = TimeGrid.even(0.0, 1.0, 5)
    labels = label_matrix([Action(0, time, time)], grid, 1, "overlap")[:, 0]
    assert np.flatnonzero(labels).tolist() == [int(time)]
    assert count_missed([Action(0, 5.0, 5.0), Action(0, -0.1, -0.1)], grid, "overlap") == 2


def test_actions_next_to_each_other_share_no_row() -> None:
    grid = TimeGrid.even(0.0, 1.0, 6)
    actions = [Action(0, 0.0, 1.5), Action(1, 1.5, 2.6), Action(2, 2.6, 6.0)]
    labels = label_matrix(actions, grid, 3, "overlap")
    assert labels.argmax(axis=1).tolist() == [0, 1, 1, 2, 2, 2]
    assert (labels.sum(axis=1) == 1).all()


@given(actions=actions, steps=steps)
@pytest.mark.parametrize("rule", ["strict", "overlap"])
def test_labels_are_the_union_of_the_rows_of_each_action(
    rule: str, actions: list[Action], steps: list[int]
) -> None:
    grid = grid_of(steps)
    single = [label_matrix([action], grid, CLASSES, rule) for action in actions]
    together = np.any([np.zeros((grid.count, CLASSES), bool), *single], axis=0)
    assert np.array_equal(label_matrix(actions, grid, CLASSES, rule), together)
    assert count_missed(actions, grid, rule) == sum(not one.any() for one in single)


def test_actions_between_two_rows_are_counted() -> None:
    grid = TimeGrid.even(0.0, 1.0, 5)
    short = [Action(0, 1.2, 1.8), Action(1, 0.5, 1.5), Action(2, 7.0, 9.0)]
    assert count_missed(short, grid, "strict") == 2
    assert count_missed(short, grid, "overlap") == 1  # after the last row
