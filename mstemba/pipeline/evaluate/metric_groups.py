"""The groups of metrics that `evaluate` reports; docs/metrics.md defines them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mstemba.data_manifests.manifest import Action
from mstemba.pipeline.dataset.labels import label_matrix
from mstemba.pipeline.detect.segments import cut_scores
from mstemba.pipeline.evaluate import frame_metrics, segment_metrics
from mstemba.pipeline.evaluate.frame_metrics import Mask, Ranks, mean_average_precision
from mstemba.pipeline.evaluate.proposals import propose
from mstemba.pipeline.evaluate.segment_metrics import BINS, TIOU, SegmentArray
from mstemba.pipeline.evaluate.timing import TimingErrors
from mstemba.pipeline.options import ExportOptions
from mstemba.records import Scores, TimeGrid

METRIC_GROUPS = ("frame", "charades", "conditional", "detection", "breakdown", "timing")
BOUNDARY_ROWS = 2
"""Rows on either side of a boundary that are near it."""

Table = tuple[dict[str, Any], dict[str, NDArray[np.float64]]]
"""The metrics of a group: figures by name, and columns by name: (C,) AP in percent, or errors in
the time unit; NaN for a class that does not occur."""


@dataclass(frozen=True)
class LabelledVideo:
    """A video to measure on, all times in one unit."""

    id: str
    actions: Sequence[Action]
    duration: float


@dataclass(frozen=True)
class ScoredVideo(LabelledVideo):
    """A video with dense scores."""

    grid: TimeGrid
    """When its rows are."""
    labels: Mask
    """(T, C) which rows are positive."""
    scores: NDArray[np.float32]
    """(T, C) probabilities."""
    anchor: float = 0.0
    """Where in its row a probability holds, see `Scores.anchor`."""

    def as_scores(self, classes: Sequence[str]) -> Scores:
        """Return the scores for `find_segments`, in the time unit of the video."""
        names = tuple(classes)
        return Scores(
            self.scores, self.grid, names, self.id, self.duration, 0.0, anchor=self.anchor
        )


class DenseRows:
    """The rows of all videos, one video after another, and what several groups compute of them."""

    def __init__(self, videos: Sequence[ScoredVideo], rule: str = "strict") -> None:
        """Join the rows of videos that are labelled by a rule, `strict` or `overlap`."""
        self.videos, self.rule = videos, rule
        self.grids = [video.grid for video in videos]
        self.lengths = [grid.count for grid in self.grids]
        self.scores = np.concatenate([video.scores for video in videos])
        self.labels = np.concatenate([video.labels for video in videos])
        self.positives = self.labels.sum(axis=0)
        self.classes = self.labels.shape[1]

    @cached_property
    def ranks(self) -> Ranks:
        return frame_metrics.rank_scores(self.scores)

    @cached_property
    def detections(self) -> MatchedDetections:
        """Segments proposed from the scores."""
        bounds = [video.grid.bounds(video.anchor) for video in self.videos]
        found = propose(self.scores, bounds)
        return MatchedDetections(self.videos, found, self.classes)

    @cached_property
    def segments(self) -> SegmentArray:
        """The segments that `detect` makes of the scores by default."""
        names, cut = [str(c) for c in range(self.classes)], ExportOptions()
        tables = [
            cut_scores(video.as_scores(names), cut.threshold, cut.low_threshold)
            for video in self.videos
        ]
        video = np.repeat(np.arange(len(tables)), [len(table.starts) for table in tables])
        columns = ("class_ids", "starts", "ends", "scores")
        joined = [np.concatenate([getattr(table, name) for table in tables]) for name in columns]
        return SegmentArray(video, *joined)


class MatchedDetections:
    """Detected segments, matched with the actions of their videos."""

    def __init__(self, videos: Sequence[LabelledVideo], found: SegmentArray, classes: int) -> None:
        """Match the segments.

        Actions are cut to their video; those without length then cannot be found: they are only
        counted.

        Args:
            videos: All videos, also those without a segment.
            found: Detected segments; `found.video` is an index into `videos`.
            classes: Number of classes.
        """
        listed = [(n, video, action) for n, video in enumerate(videos) for action in video.actions]
        cut = [(n, a, max(a.start, 0.0), min(a.end, v.duration)) for n, v, a in listed]
        kept = [(n, action, start, end) for n, action, start, end in cut if end > start]
        rows = [(n, action.class_id, start, end, 1.0) for n, action, start, end in kept]
        self.found, self.truth = found, SegmentArray.from_rows(rows)
        self.classes, self.without_length = classes, len(cut) - len(kept)
        self.limits = segment_metrics.duration_limits(self.truth.duration)
        self.bins = segment_metrics.duration_bin(self.truth.duration, self.limits)
        self.positives = np.bincount(self.truth.class_id, minlength=classes)
        self.matches = segment_metrics.match_detections(self.truth, found)
        self.durations = [video.duration for video in videos]
        self._videos, self._actions = len(videos), [(n, action) for n, action, _, _ in kept]

    def actions_of_bin(self, bin: int) -> list[list[Action]]:
        """Return the actions of one bin of durations, by video."""
        chosen: list[list[Action]] = [[] for _ in range(self._videos)]
        for (video, action), number in zip(self._actions, self.bins, strict=True):
            if number == bin:
                chosen[video].append(action)
        return chosen


def measure_frames(rows: DenseRows) -> Table:
    """Compute the AP of all rows."""
    ap = frame_metrics.average_precision(rows.ranks, rows.labels)
    return _means(ap, rows.positives), {"ap": _percent(ap, rows.positives)}


def measure_charades(rows: DenseRows) -> Table:
    """Compute the AP at Charades' 25 points a video, and at those of released code."""
    points = [
        frame_metrics.charades_points(v.scores, v.grid, v.actions, v.duration) for v in rows.videos
    ]
    scores, labels = (np.concatenate(arrays) for arrays in zip(*points, strict=True))
    ap, positives = frame_metrics.average_precision(scores, labels), labels.sum(axis=0)
    begins = np.cumsum(rows.lengths) - rows.lengths
    legacy = np.concatenate(
        [b + frame_metrics.legacy_points(n) for b, n in zip(begins, rows.lengths, strict=True)]
    )
    legacy_labels = rows.labels[legacy]
    legacy_ap = frame_metrics.average_precision(rows.ranks[legacy], legacy_labels)
    figures = {**_means(ap, positives), "legacy": _means(legacy_ap, legacy_labels.sum(axis=0))}
    return figures, {"charades_ap": _percent(ap, positives)}


def measure_conditional(rows: DenseRows) -> Table:
    """Compute the action-conditional metrics, by tau."""
    found = frame_metrics.action_conditional(
        rows.scores, rows.labels, rows.lengths, ranks=rows.ranks
    )
    return {str(tau): figures for tau, figures in found.items()}, {}


def measure_detection(detections: MatchedDetections) -> Table:
    """Compute the AP of segments at each threshold of temporal IoU."""
    d = detections
    ap = segment_metrics.detection_average_precision(d.truth, d.found, d.matches, d.classes)
    maps = [mean_average_precision(row, d.positives) for row in ap]
    figures = {
        "average_map": float(np.mean(maps)),
        "map": {str(tiou): value for tiou, value in zip(TIOU, maps, strict=True)},
        "actions": len(d.truth),
        "actions_without_length": d.without_length,
        "detections": len(d.found),
    }
    columns = {
        "detection_ap": _percent(ap.mean(axis=0), d.positives),
        "detection_ap_0.5": _percent(ap[TIOU.index(0.5)], d.positives),
    }
    return figures, columns


def measure_durations(detections: MatchedDetections) -> dict[str, Any]:
    """Compute the detection mAP of short, medium and long actions."""
    d = detections
    figures: dict[str, Any] = {"limits": list(d.limits)}
    for number, name in enumerate(BINS):
        ap = segment_metrics.detection_average_precision_of_bin(
            number, d.limits, d.truth, d.found, d.matches, d.classes
        )
        positives = np.bincount(d.truth.class_id[d.bins == number], minlength=d.classes)
        figures[name] = {
            "actions": int(positives.sum()),
            "detection_map": mean_average_precision(ap.mean(axis=0), positives),
        }
    return figures


def measure_breakdown(rows: DenseRows) -> Table:
    """Compute the metrics by duration of the actions, and near boundaries and beyond."""
    durations, columns = measure_durations(rows.detections), {}
    for number, name in enumerate(BINS):
        actions = rows.detections.actions_of_bin(number)
        pairs = zip(actions, rows.grids, strict=True)
        labels = np.concatenate([label_matrix(a, g, rows.classes, rows.rule) for a, g in pairs])
        # Rows of the class inside actions of another bin are neither right nor wrong.
        counted = labels | ~rows.labels
        ap = frame_metrics.average_precision(rows.ranks, labels, counted)
        durations[name]["frame_map"] = mean_average_precision(ap, labels.sum(axis=0))
        columns[f"{name}_ap"] = _percent(ap, labels.sum(axis=0))
    near = frame_metrics.near_boundary(rows.labels, rows.lengths, BOUNDARY_ROWS)
    boundary = {"near": _measure_part(rows, near), "far": _measure_part(rows, ~near)}
    figures = {"duration": durations, "boundary": {"rows": BOUNDARY_ROWS, **boundary}}
    return figures, columns


def measure_timing(
    detections: MatchedDetections, found: SegmentArray, steps: Sequence[float] | None
) -> Table:
    """Compute the onset and offset errors of detections.

    Args:
        detections: Has the actions.
        found: The detections to measure.
        steps: Time from one row to the next of each video; None for detections without rows.
    """
    errors = TimingErrors(detections.truth, found, detections.durations, steps)
    figures = {"detections": len(found), **errors.figures(), **errors.by_bin(detections.bins)}
    if steps is not None:
        cut = ExportOptions()
        figures = {"threshold": cut.threshold, "low": cut.low_threshold, **figures}
    return figures, errors.by_class(detections.classes)


def measure_dense(rows: DenseRows, groups: Collection[str]) -> dict[str, Table]:
    """Compute the groups that are named; "frame" is always among them."""
    functions: dict[str, Callable[[DenseRows], Table]] = {
        "frame": measure_frames,
        "charades": measure_charades,
        "conditional": measure_conditional,
        "detection": lambda rows: measure_detection(rows.detections),
        "breakdown": measure_breakdown,
        "timing": lambda rows: measure_timing(
            rows.detections, rows.segments, [grid.step for grid in rows.grids]
        ),
    }
    return {name: functions[name](rows) for name in METRIC_GROUPS if name in {"frame", *groups}}


def measure_segments(detections: MatchedDetections, groups: Collection[str]) -> dict[str, Table]:
    """Compute the groups that exist for segments; "detection" is always among them."""
    tables = {"detection": measure_detection(detections)}
    if "breakdown" in groups:
        tables["breakdown"] = {"duration": measure_durations(detections)}, {}
    if "timing" in groups:
        tables["timing"] = measure_timing(detections, detections.found, None)
    return tables


def _measure_part(rows: DenseRows, counted: Mask) -> dict[str, float]:
    """Compute the mAP on some rows alone, and what scores without any knowledge would reach."""
    positives = (rows.labels & counted).sum(axis=0)
    ap = frame_metrics.average_precision(rows.ranks, rows.labels, counted)
    chance = positives / np.maximum(counted.sum(axis=0), 1)
    return {
        "map": mean_average_precision(ap, positives),
        "chance": mean_average_precision(chance, positives),
    }


def _means(ap: NDArray[np.float64], positives: NDArray[np.integer]) -> dict[str, Any]:
    return {
        "map": mean_average_precision(ap, positives),
        "map_all_classes": mean_average_precision(ap),
    }


def _percent(ap: NDArray[np.float64], positives: NDArray[np.integer]) -> NDArray[np.float64]:
    return np.where(positives > 0, 100 * ap, np.nan)
