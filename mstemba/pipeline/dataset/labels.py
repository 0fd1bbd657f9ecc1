"""Turn actions into labels of feature rows: which rows are positive for which class.

There are two rules. `strict` is the field's: a row is positive when its start lies strictly inside
the action. With `overlap` a row is positive when its centre lies inside the action; an action that
contains no centre gets the one row in which its middle lies, so that no action falls between two
rows. A network learns what holds at that place in the row: see ANCHORS.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mstemba.data_manifests.manifest import Action
from mstemba.records import TimeGrid

ANCHORS = {"strict": 0.0, "overlap": 0.5}
"""By rule, the place in a row whose state its label is: 0 is the row's start, 0.5 its centre."""
VERSIONS = {"overlap": 2}
"""By rule, raised when it labels other rows. In the key of trainings; a rule without has none."""


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
    if rule == "strict":
        first = np.searchsorted(grid.starts, start, side="right")
        after = np.searchsorted(grid.starts, stop, side="left")
        return first, after
    centres = grid.times(ANCHORS[rule])
    first, after = np.searchsorted(centres, start), np.searchsorted(centres, stop)
    # The middle of the part that has rows. An event without length has one, too.
    begin, end = np.maximum(start, grid.start), np.minimum(stop, grid.ends[-1])
    middle = (begin + end) / 2
    row = np.searchsorted(grid.starts, middle, side="right") - 1
    alone = (after <= first) & (start <= stop) & (begin <= end) & (middle < grid.ends[-1])
    # One that begins where the rows end, or ends where they begin, lies outside.
    alone &= (start == stop) | (begin < end)
    first, after = np.where(alone, row, first), np.where(alone, row + 1, after)
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
