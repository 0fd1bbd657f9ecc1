"""Onset and offset errors: how far from an action's start and end its detection begins and ends.

docs/metrics.md defines them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mstemba.pipeline.evaluate.frame_metrics import Index, Mask
from mstemba.pipeline.evaluate.segment_metrics import BINS, SegmentArray, overlaps

EDGES = ("onset", "offset")
Errors = NDArray[np.float64]


def pair_by_overlap(truth: SegmentArray, found: SegmentArray) -> tuple[Index, Index]:
    """Pair actions with detections of their video and class, the highest temporal IoU first.

    Args:
        truth: Labelled actions.
        found: Detections.

    Returns:
        (P,) indices of actions and (P,) of their detections; each occurs at most once.
    """
    actions, detections, tiou = overlaps(truth, found)
    order = np.lexsort((detections, actions, -tiou))
    action_free, detection_free = np.ones(len(truth), bool), np.ones(len(found), bool)
    pairs = []
    for action, detection in zip(actions[order], detections[order], strict=True):
        if action_free[action] and detection_free[detection]:
            action_free[action] = detection_free[detection] = False
            pairs.append((action, detection))
    table = np.array(pairs, np.int64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


class TimingErrors:
    """The errors of detections that are paired with actions."""

    def __init__(
        self,
        truth: SegmentArray,
        found: SegmentArray,
        durations: Sequence[float],
        steps: Sequence[float] | None,
    ) -> None:
        """Pair detections with actions, and compute the errors of the pairs.

        Args:
            truth: Labelled actions, cut to their video. Where one was cut, or begins or ends with
                its video, the edge cannot be measured and has no error.
            found: Detections.
            durations: Of the videos.
            steps: Time from one row to the next of each video; None for detections without rows.
        """
        self._truth, self._has_rows = truth, steps is not None
        self.action, detection = pair_by_overlap(truth, found)
        actions, detections = truth[self.action], found[detection]
        row = np.asarray(steps if steps is not None else np.ones(len(durations)))[actions.video]
        early = {
            "onset": detections.start - actions.start,
            "offset": detections.end - actions.end,
        }
        inside = {
            "onset": actions.start > 0,
            # The end of the rows, which may stand for the duration, is rounded.
            "offset": actions.end < np.asarray(durations)[actions.video] * (1 - 1e-9),
        }
        self._errors = {edge: np.where(inside[edge], early[edge], np.nan) for edge in EDGES}
        """(P,) by edge, positive where the detection is late; NaN if it cannot be measured."""
        self._in_rows = {edge: errors / row for edge, errors in self._errors.items()}

    def figures(self, chosen: Mask | None = None) -> dict[str, Any]:
        """Return the medians over the pairs of all actions, or of the `chosen` ones (A,)."""
        pairs = np.ones(len(self.action), bool) if chosen is None else chosen[self.action]
        actions = len(self._truth) if chosen is None else int(chosen.sum())
        figures: dict[str, Any] = {"actions": actions, "matched": int(pairs.sum())}
        for edge in EDGES:
            errors, in_rows = self._errors[edge][pairs], self._in_rows[edge][pairs]
            figures[edge] = {
                "edges": int(np.isfinite(errors).sum()),
                "median_absolute": _median(np.abs(errors)),
                "median": _median(errors),
                "median_absolute_rows": _median(np.abs(in_rows)) if self._has_rows else math.nan,
                "median_rows": _median(in_rows) if self._has_rows else math.nan,
            }
        return figures

    def by_bin(self, bins: Index) -> dict[str, dict[str, Any]]:
        """Return the figures of short, medium and long actions; `bins` (A,) are their bins."""
        return {name: self.figures(bins == number) for number, name in enumerate(BINS)}

    def by_class(self, classes: int) -> dict[str, Errors]:
        """Return the (C,) median absolute errors of each edge; NaN for a class without pairs."""
        class_id = self._truth.class_id[self.action]
        return {
            f"{edge}_error": np.array(
                [_median(np.abs(self._errors[edge][class_id == c])) for c in range(classes)]
            )
            for edge in EDGES
        }


def _median(errors: Errors) -> float:
    known = errors[np.isfinite(errors)]
    return float(np.median(known)) if len(known) else math.nan
