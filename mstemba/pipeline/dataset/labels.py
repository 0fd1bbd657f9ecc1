"""Turn actions into labels of feature rows: which rows are positive for which class.

There are two rules. `strict` is the field's: a row is positive when its start lies strictly inside
the action. `overlap` takes every row that the action touches, so that no action falls between two
rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mstemba.data_manifests.manifest import Action
from mstemba.records import TimeGrid


def row_ranges(
    actions: Sequence[Action], grid: TimeGrid, rule: str = "strict"
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Find the rows that each action makes positive.

    Args:
        actions: The A actions of one video.
        grid: When its rows are, in the time unit of the actions.
        rule: `strict` or `overlap`.

    Returns:
        (A,) the first positive row of each action and (A,) the row after its last one; the second
        is not above the first where no row is positive.
    """
    _, start, stop = np.array(actions, np.float64).reshape(-1, 3).T
    first = np.searchsorted(grid.starts, start, side="right")
    after = np.searchsorted(grid.starts, stop, side="left")
    if rule == "overlap":
        # An action without length touches the one row that it lies in.
        ends_inside = np.where(stop > start, stop > grid.start, stop >= grid.start)
        touches = (stop >= start) & (start < grid.ends[-1]) & ends_inside
        first = np.where(touches, np.maximum(first - 1, 0), first)
        after = np.where(touches, np.maximum(after, first + 1), after)
    return first, after


def label_matrix(
    actions: Sequence[Action], grid: TimeGrid, classes: int, rule: str = "strict"
) -> NDArray[np.bool_]:
    """Return the (T, classes) labels of one video; actions and grid are in one time unit."""
    labels = np.zeros((grid.count, classes), bool)
    ranges = zip(actions, *row_ranges(actions, grid, rule), strict=True)
    for action, first, after in ranges:
        labels[first:after, action.class_id] = True
    return labels


def count_missed(actions: Sequence[Action], grid: TimeGrid, rule: str = "strict") -> int:
    """Count the actions without a positive row: between two rows, or outside all of them."""
    first, after = row_ranges(actions, grid, rule)
    return int((after <= first).sum())
