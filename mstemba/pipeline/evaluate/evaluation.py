"""What `evaluate` reports: families of measures over the videos of a subset, all in percent."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mstemba.data_manifests.manifest import Action
from mstemba.data_manifests.readers.tables import escape_formula
from mstemba.pipeline.dataset.labels import build_labels
from mstemba.pipeline.evaluate import metrics as m
from mstemba.pipeline.evaluate.proposals import propose
from mstemba.records import TimeGrid

FAMILIES = ("frame", "charades", "conditional", "detection", "breakdown")
BINS = ("short", "medium", "long")
NEAR = 2
"""Rows on either side of a boundary that are near it."""
_SHOWN = ("0.1", "0.3", "0.5", "0.7", "0.9")


@dataclass(frozen=True)
class Evaluation:
    """How well scores rank the steps of every class, or segments find its actions."""

    map: float
    """Percent: mean of AP over the classes that occur. NaN for predictions that are segments."""
    per_class: dict[str, float | None]
    """AP in percent by class name; None for a class that does not occur."""
    positives: dict[str, int]
    """Positive rows by class name; of segments, actions."""
    subset: str
    videos: int
    rows: int
    checkpoint: str
    """The checkpoint's folder, or the file of predictions."""
    missing: tuple[str, ...]
    """Videos of the subset without features or predictions: not in the figures, except that of
    predicted segments their actions are missed ones."""
    time_unit: str
    """Of the durations in `metrics`."""
    metrics: dict[str, Any]
    """By family, see docs/metrics.md."""
    classes: dict[str, dict[str, float | None]]
    """Each class's AP by measure, percent; None where it does not occur."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON: a number that does not exist is None."""
        metric = "detection mAP, percent" if math.isnan(self.map) else "per-frame mAP, percent"
        content: dict[str, Any] = _without_nan({**vars(self), "metric": metric})
        return {**content, "missing": list(self.missing)}

    def summary(self) -> list[tuple[str, str, str]]:
        """(measure, mAP in percent, what else there is) for a table."""
        rows = []
        if frame := self.metrics.get("frame"):
            rows.append(
                ("per-frame", frame["map"], f"all classes {_two(frame['map_all_classes'])}")
            )
        if charades := self.metrics.get("charades"):
            also = (
                f"all classes {_two(charades['map_all_classes'])}; "
                f"released code's 25 samples {_two(charades['legacy']['map'])}"
            )
            rows.append(("Charades, 25 points a video", charades["map"], also))
        for tau, given in self.metrics.get("conditional", {}).items():
            where = "beside another action" if tau == "0" else f"{tau} rows after another action"
            also = ", ".join(
                f"{name} {_two(given[name])}" for name in ("precision", "recall", "f1")
            )
            rows.append((where, given["map"], also))
        if found := self.metrics.get("detection"):
            also = ", ".join(f"{_two(found['map'][tiou])} at {tiou}" for tiou in _SHOWN)
            rows.append(("detection, tIoU 0.1 to 0.9", found["average_map"], also))
        rows += _breakdown_rows(self.metrics.get("breakdown", {}), self.time_unit)
        return [(measure, _two(value), also) for measure, value, also in rows]

    def as_csv(self) -> str:
        """One row a class: its name, positives and APs."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        columns = list(next(iter(self.classes.values()), {}))
        writer.writerow(["class", "positives", *columns])
        for name, values in self.classes.items():
            shown = ["" if value is None else f"{value:.4f}" for value in values.values()]
            writer.writerow([escape_formula(name), self.positives[name], *shown])
        return text.getvalue()


def _breakdown_rows(found: dict[str, Any], unit: str) -> list[tuple[str, float, str]]:
    rows = []
    if durations := found.get("duration"):
        first, second = (f"{limit:.3g} {unit}" for limit in durations["limits"])
        names = (f"short: below {first}", f"medium: below {second}", "long: beyond")
        for bin, name in zip(BINS, names, strict=True):
            of = durations[bin]
            detection, actions = of["detection_map"], of["actions"]
            if "frame_map" in of:
                also = f"detection {_two(detection)}; {actions} actions"
                rows.append((name, of["frame_map"], also))
            else:
                rows.append((name, detection, f"{actions} actions"))
    if boundary := found.get("boundary"):
        width = boundary["rows"]
        for name, where in (("near", f"up to {width} rows from a boundary"), ("far", "beyond")):
            rows.append((where, boundary[name]["map"], f"chance {_two(boundary[name]['chance'])}"))
    return rows


def _two(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


@dataclass(frozen=True)
class LabelledVideo:
    """A video to measure on, all times in one unit."""

    id: str
    actions: Sequence[Action]
    duration: float
    grid: TimeGrid | None = None
    """When its rows are, if there are any."""


@dataclass(frozen=True)
class MetricTable:
    """Figures by family, and (C,) columns of AP in percent, NaN where a class does not occur."""

    metrics: dict[str, Any]
    columns: dict[str, NDArray[np.float64]]
    positives: NDArray[np.int64]
    """(C,) rows, or actions."""


class DenseMeasures:
    """The measures of dense scores (N, C): the rows of all videos in order."""

    def __init__(
        self, videos: Sequence[LabelledVideo], scores: NDArray[np.float32], classes: int
    ) -> None:
        self._videos, self._scores, self._classes = videos, scores, classes
        self._grids = [video.grid for video in videos if video.grid is not None]
        self._lengths = [grid.count for grid in self._grids]
        self.labels = self._labels_of([video.actions for video in videos])
        self._columns: dict[str, NDArray[np.float64]] = {}

    @property
    def rows(self) -> int:
        return len(self.labels)

    @property
    def any_positive(self) -> bool:
        return bool(self.labels.any())

    def measure(self, families: Iterable[str]) -> MetricTable:
        """The figures of these of FAMILIES; "frame" is always there."""
        methods: dict[str, Callable[[], dict[str, Any]]] = {
            "frame": self._frame,
            "charades": self._charades,
            "conditional": self._conditional,
            "detection": lambda: self._detection.figures(),
            "breakdown": self._breakdown,
        }
        wanted = {"frame", *families}
        found = {name: method() for name, method in methods.items() if name in wanted}
        if "detection" in wanted:
            self._columns |= self._detection.columns()
        return MetricTable(found, self._columns, self.labels.sum(axis=0))

    @cached_property
    def _ranks(self) -> m.Ranks:
        return m.ranked(self._scores)

    @cached_property
    def _detection(self) -> DetectionMeasures:
        return DetectionMeasures(self._videos, propose(self._scores, self._grids), self._classes)

    def _labels_of(self, actions: Sequence[Sequence[Action]]) -> m.Mask:
        return build_labels(actions, self._grids, self._classes, "strict").matrices()

    def _frame(self) -> dict[str, Any]:
        ap = m.average_precision(self._ranks, self.labels)
        counts = self.labels.sum(axis=0)
        self._columns["ap"] = _percent(ap, counts)
        return _means(ap, counts)

    def _charades(self) -> dict[str, Any]:
        ends = np.cumsum(self._lengths)
        parts = [
            (video, self._scores[end - grid.count : end], grid)
            for video, grid, end in zip(self._videos, self._grids, ends, strict=True)
        ]
        points = [m.charades_points(s, grid, v.actions, v.duration) for v, s, grid in parts]
        scores, labels = (np.concatenate(arrays) for arrays in zip(*points, strict=True))
        ap, counts = m.average_precision(scores, labels), labels.sum(axis=0)
        self._columns["charades_ap"] = _percent(ap, counts)
        legacy = np.concatenate(
            [end - n + m.legacy_points(n) for n, end in zip(self._lengths, ends, strict=True)]
        )
        old_labels = self.labels[legacy]
        old = m.average_precision(self._ranks[legacy], old_labels)
        return {**_means(ap, counts), "legacy": _means(old, old_labels.sum(axis=0))}

    def _conditional(self) -> dict[str, Any]:
        found = m.action_conditional(
            self._scores, self.labels, self._lengths, m.TAUS, ranks=self._ranks
        )
        return {str(tau): dict(vars(values)) for tau, values in found.items()}

    def _breakdown(self) -> dict[str, Any]:
        by_duration = self._detection.by_duration()
        for number, name in enumerate(BINS):
            labels = self._labels_of(self._detection.actions_of(number))
            # Rows of the class inside actions of another bin are neither right nor wrong.
            counted = labels | ~self.labels
            ap = m.average_precision(self._ranks, labels, counted)
            figures = by_duration[name]
            figures["frame_map"] = m.mean_average_precision(ap, labels.sum(axis=0))
            self._columns[f"{name}_ap"] = _percent(ap, labels.sum(axis=0))
        near = m.near_boundary(self.labels, self._lengths, NEAR)
        return {
            "duration": by_duration,
            "boundary": {"rows": NEAR, "near": self._where(near), "far": self._where(~near)},
        }

    def _where(self, counted: m.Mask) -> dict[str, float]:
        """mAP on these rows alone, and what scores without any knowledge would reach there."""
        positives = (self.labels & counted).sum(axis=0)
        ap = m.average_precision(self._ranks, self.labels, counted)
        chance = positives / np.maximum(counted.sum(axis=0), 1)
        return {
            "map": m.mean_average_precision(ap, positives),
            "chance": m.mean_average_precision(chance, positives),
        }


class DetectionMeasures:
    """The measures of segments."""

    def __init__(
        self, videos: Sequence[LabelledVideo], found: m.SegmentArray, classes: int
    ) -> None:
        """found: detections, their video a number in `videos`.

        Actions are cut to their video; those that have no length then cannot be found and are left
        out, and counted.
        """
        self._found, self._classes = found, classes
        listed = [(n, video, action) for n, video in enumerate(videos) for action in video.actions]
        cut = [(n, a, max(a.start, 0.0), min(a.end, v.duration)) for n, v, a in listed]
        kept = [(n, action, start, end) for n, action, start, end in cut if end > start]
        self._kept = [(n, action) for n, action, _, _ in kept]
        self._videos, self._without_length = len(videos), len(cut) - len(kept)
        self._truth = segment_array([(n, a.class_id, start, end, 1.0) for n, a, start, end in kept])
        self._limits = m.duration_limits(self._truth.duration)
        self._counts = np.bincount(self._truth.class_id, minlength=classes)
        self._matches = m.match_detections(self._truth, found)
        self._ap = m.detection_average_precision(self._truth, found, self._matches, classes)

    def measure(self, families: Iterable[str]) -> MetricTable:
        """What there is for detections that come without dense scores."""
        found = {}
        if "detection" in families:
            found["detection"] = self.figures()
        if "breakdown" in families:
            found["breakdown"] = {"duration": self.by_duration()}
        return MetricTable(found, self.columns(), self._counts)

    def figures(self) -> dict[str, Any]:
        maps = [m.mean_average_precision(row, self._counts) for row in self._ap]
        return {
            "average_map": float(np.mean(maps)),
            "map": {str(tiou): value for tiou, value in zip(m.TIOU, maps, strict=True)},
            "actions": len(self._truth),
            "actions_without_length": self._without_length,
            "detections": len(self._found),
        }

    def columns(self) -> dict[str, NDArray[np.float64]]:
        return {
            "detection_ap": _percent(self._ap.mean(axis=0), self._counts),
            "detection_ap_0.5": _percent(self._ap[m.TIOU.index(0.5)], self._counts),
        }

    def by_duration(self) -> dict[str, Any]:
        bins = m.duration_bin(self._truth.duration, self._limits)
        result: dict[str, Any] = {"limits": list(self._limits)}
        for number, name in enumerate(BINS):
            ap = m.detection_average_precision_of(
                number, self._limits, self._truth, self._found, self._matches, self._classes
            )
            counts = np.bincount(self._truth.class_id[bins == number], minlength=self._classes)
            result[name] = {
                "actions": int(counts.sum()),
                "detection_map": m.mean_average_precision(ap.mean(axis=0), counts),
            }
        return result

    def actions_of(self, bin: int) -> list[list[Action]]:
        """Of every video, the actions of one bin of durations."""
        chosen: list[list[Action]] = [[] for _ in range(self._videos)]
        bins = m.duration_bin(self._truth.duration, self._limits)
        for (video, action), number in zip(self._kept, bins, strict=True):
            if number == bin:
                chosen[video].append(action)
        return chosen


def segment_array(rows: Sequence[tuple[int, int, float, float, float]]) -> m.SegmentArray:
    """Segments given as (video, class, start, end, score)."""
    table = np.array(rows, np.float64).reshape(-1, 5)
    video, class_id = table[:, :2].T.astype(np.int64)
    return m.SegmentArray(video, class_id, *table[:, 2:].T)


def _means(ap: NDArray[np.float64], counts: NDArray[np.integer]) -> dict[str, Any]:
    return {
        "map": m.mean_average_precision(ap, counts),
        "map_all_classes": m.mean_average_precision(ap),
    }


def _percent(ap: NDArray[np.float64], counts: NDArray[np.integer]) -> NDArray[np.float64]:
    return np.where(counts > 0, 100 * ap, np.nan)
