"""Actions to labels of rows: which rows of a time grid are positive for which class.

Two rules. `strict` is the field's: a row is positive when its start lies strictly inside the
action. `overlap` takes every row that the action touches, so that none falls between two rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from mstemba.data_manifests.manifest import Action
from mstemba.model.compiled import compiled
from mstemba.records import TimeGrid

RULES = ("strict", "overlap")


@dataclass(frozen=True, eq=False)
class Labels:
    """The labels of many videos, packed to bits: an eighth of the memory of (T, C) booleans."""

    bits: NDArray[np.uint8]
    """(rows of all videos, ceil(C / 8)), class 0 in the highest bit."""
    offsets: NDArray[np.int64]
    """(videos + 1,): rows `offsets[v]` to `offsets[v + 1]` are video v's."""
    action_offsets: NDArray[np.int64]
    """(videos + 1,): the same of the actions."""
    classes: int
    rows: NDArray[np.int64]
    """(actions of all videos,): how many rows each action made positive."""

    def of(self, video: int) -> NDArray[np.uint8]:
        """The packed labels (T, ceil(C / 8)) of one video; `unpack` makes them booleans."""
        return self.bits[self.offsets[video] : self.offsets[video + 1]]

    def missed(self, video: int) -> int:
        """Actions of one video that fall between two rows, or outside all of them."""
        rows = self.rows[self.action_offsets[video] : self.action_offsets[video + 1]]
        return int((rows == 0).sum())


def build_labels(
    actions: Sequence[Sequence[Action]], grids: Sequence[TimeGrid], classes: int, rule: str
) -> Labels:
    """The labels of every video from its actions and its grid, both in one time unit."""
    numbers = chain.from_iterable(chain.from_iterable(actions))  # class, start, end, class...
    return paint_labels(
        np.fromiter(numbers, np.float64).reshape(-1, 3),
        np.cumsum([0, *(len(video) for video in actions)]),
        np.concatenate([np.empty(0), *(grid.starts for grid in grids)]),
        np.array([grid.starts[-1] + grid.step for grid in grids], np.float64),
        np.cumsum([0, *(grid.count for grid in grids)]),
        classes,
        rule,
    )


def paint_labels(
    actions: NDArray[np.float64],
    action_offsets: NDArray[np.int64],
    starts: NDArray[np.float64],
    ends: NDArray[np.float64],
    offsets: NDArray[np.int64],
    classes: int,
    rule: str,
) -> Labels:
    """`build_labels` on arrays: of video v, actions and rows from `offsets[v]` on.

    actions: (A, 3) class, start, end. starts: of every row. ends: of every video's last row.
    """
    bits = np.zeros((len(starts), (classes + 7) // 8), np.uint8)
    rows = np.zeros(len(actions), np.int64)
    _paint(actions, action_offsets, starts, ends, offsets, rule == "overlap", bits, rows)
    return Labels(bits, offsets, action_offsets, classes, rows)


def unpack(bits: NDArray[np.uint8], classes: int) -> NDArray[np.bool_]:
    """Packed labels (T, ceil(C / 8)) as booleans (T, C)."""
    return np.unpackbits(bits, axis=1, count=classes).view(bool)


def label_matrix(
    actions: Sequence[Action], grid: TimeGrid, classes: int, rule: str = "strict"
) -> NDArray[np.bool_]:
    """(T, C) labels of one video."""
    labels = build_labels([actions], [grid], classes, rule)
    return unpack(labels.of(0), classes)


@compiled()
def _paint(  # type: ignore[no-untyped-def]
    actions, action_offsets, starts, ends, offsets, overlap, bits, rows
):
    flat, width = bits.reshape(-1), np.uintp(bits.shape[1])
    for video in range(len(offsets) - 1):
        begin, end = offsets[video], offsets[video + 1]
        origin, length = starts[begin], end - begin
        # Rows are about evenly spaced: guess where a time is, then step to the exact place.
        per_second = length / (ends[video] - origin)
        for a in range(action_offsets[video], action_offsets[video + 1]):
            c, start, stop = int(actions[a, 0]), actions[a, 1], actions[a, 2]
            # Unsigned indices, here and below, because numba need not ask whether they count from
            # the end: a fifth of the time.
            first = begin + int(min(max((start - origin) * per_second, 0.0), float(length)))
            while first > begin and starts[np.uintp(first - 1)] > start:
                first -= 1
            while first < end and starts[np.uintp(first)] <= start:
                first += 1  # ...to the first row that starts after the action
            after = begin + int(min(max((stop - origin) * per_second, 0.0), float(length)))
            while after > begin and starts[np.uintp(after - 1)] >= stop:
                after -= 1
            while after < end and starts[np.uintp(after)] < stop:
                after += 1  # ...to the first row that starts where the action has ended, or later
            inside = start < ends[video] and (stop > origin if stop > start else stop >= origin)
            if overlap and stop >= start and inside:
                first = max(first - 1, begin)
                after = max(after, first + 1)  # an action without length is in this row alone
            bit, at = np.uint8(128 >> (c & 7)), np.uintp(first) * width + np.uintp(c >> 3)
            for _ in range(first, after):
                flat[at] |= bit
                at += width
            rows[a] = max(after - first, 0)
