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


def touches(action: Action, start: float, end: float) -> bool:
    """Whether an action and a row have some time in common; one moment of an action suffices."""
    if action.start == action.end:
        return start <= action.start < end
    return action.start < action.end and action.start < end and action.end > start


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
def test_with_the_overlap_rule_every_row_that_an_action_touches_is_labelled(
    actions: list[Action], steps: list[int]
) -> None:
    grid = grid_of(steps)
    naive = np.zeros((grid.count, CLASSES), bool)
    for row, (start, end) in enumerate(zip(grid.starts, grid.ends, strict=True)):
        for action in actions:
            naive[row, action.class_id] |= touches(action, start, end)
    assert np.array_equal(label_matrix(actions, grid, CLASSES, "overlap"), naive)


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
