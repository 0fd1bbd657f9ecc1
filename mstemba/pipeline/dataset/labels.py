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
    """The labels of many videos, packed to bits: an eighth of the memory of (T, C) booleans.

    A class's rows are one after another, so that an action is a few bytes in a row.
    """

    bits: NDArray[np.uint8]
    """(C, ceil(T / 8)) of every video, one video after another."""
    places: NDArray[np.int64]
    """(videos + 1,): where in `bits` each begins."""
    offsets: NDArray[np.int64]
    """(videos + 1,): how many rows the videos before have."""
    action_offsets: NDArray[np.int64]
    """(videos + 1,): how many actions."""
    classes: int
    rows: NDArray[np.int64]
    """(actions of all videos,): how many rows each action made positive."""

    def matrix(self, video: int) -> NDArray[np.bool_]:
        """The labels (T, C) of one video."""
        count = int(self.offsets[video + 1] - self.offsets[video])
        packed = self.bits[self.places[video] : self.places[video + 1]]
        packed = packed.reshape(self.classes, -(-count // 8))
        return np.ascontiguousarray(np.unpackbits(packed, axis=1, count=count).view(bool).T)

    def matrices(self) -> NDArray[np.bool_]:
        """The labels (N, C) of all rows of all videos."""
        return np.concatenate([self.matrix(video) for video in range(len(self.offsets) - 1)])

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
    places = np.append(0, np.cumsum(classes * -(-np.diff(offsets) // 8)))
    bits = np.zeros(places[-1], np.uint8)
    rows = np.zeros(len(actions), np.int64)
    overlap = rule == "overlap"
    _paint(actions, action_offsets, starts, ends, offsets, places, overlap, bits, rows)
    return Labels(bits, places, offsets, action_offsets, classes, rows)


def label_matrix(
    actions: Sequence[Action], grid: TimeGrid, classes: int, rule: str = "strict"
) -> NDArray[np.bool_]:
    """(T, C) labels of one video."""
    return build_labels([actions], [grid], classes, rule).matrix(0)


@compiled()
def _paint(  # type: ignore[no-untyped-def]
    actions, action_offsets, starts, ends, offsets, places, overlap, bits, rows
):
    for video in range(len(offsets) - 1):
        begin, end = offsets[video], offsets[video + 1]
        origin, length = starts[begin], end - begin
        width = (length + 7) // 8  # bytes of a class
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
            count = max(after - first, 0)
            rows[a] = count
            if count == 0:
                continue
            first, last = first - begin, after - begin - 1
            place = places[video] + c * width
            left, right = np.uintp(place + (first >> 3)), np.uintp(place + (last >> 3))
            from_first = np.uint8(0xFF >> (first & 7))
            to_last = np.uint8((0xFF << (7 - (last & 7))) & 0xFF)
            if left == right:
                bits[left] |= from_first & to_last
                continue
            bits[left] |= from_first
            for between in range(left + np.uintp(1), right):
                bits[between] = 0xFF
            bits[right] |= to_last
