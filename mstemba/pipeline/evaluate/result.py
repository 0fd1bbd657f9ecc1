"""The result of `evaluate`, and its conversion to JSON and CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mstemba.data_manifests.readers.tables import escape_formula
from mstemba.pipeline.evaluate.metric_groups import MetricTable


@dataclass(frozen=True)
class Evaluation:
    """How well scores rank the rows of every class, or segments find its actions."""

    map: float
    """Percent: mean of AP over the classes that occur. NaN for predicted segments."""
    per_class: dict[str, float | None]
    """AP in percent by class name; None for a class that does not occur."""
    positives: dict[str, int]
    """Positive rows by class name; for predicted segments, actions."""
    subset: str
    videos: int
    rows: int
    checkpoint: str
    """The checkpoint's folder, or the file of predictions."""
    missing: tuple[str, ...]
    """Ids of the subset's videos without features or predictions. They are not in the figures; only
    for predicted segments their actions count as missed."""
    time_unit: str
    """Of the durations in `metrics`."""
    metrics: dict[str, Any]
    """By group, see docs/metrics.md."""
    classes: dict[str, dict[str, float | None]]
    """Each class's AP by metric, percent; None where it does not occur."""

    def as_dict(self) -> dict[str, Any]:
        """Return the result for JSON; None stands for a number that does not exist."""
        metric = "detection mAP, percent" if math.isnan(self.map) else "per-frame mAP, percent"
        content: dict[str, Any] = _without_nan({**vars(self), "metric": metric})
        return {**content, "missing": list(self.missing)}

    def as_csv(self) -> str:
        """Return one row per class: its name, positives and APs."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        columns = list(next(iter(self.classes.values()), {}))
        writer.writerow(["class", "positives", *columns])
        for name, values in self.classes.items():
            cells = ["" if value is None else f"{value:.4f}" for value in values.values()]
            writer.writerow([escape_formula(name), self.positives[name], *cells])
        return text.getvalue()


def make_evaluation(
    tables: Mapping[str, MetricTable],
    positives: NDArray[np.integer],
    classes: Sequence[str],
    **about: Any,
) -> Evaluation:
    """Combine the tables of all groups.

    Args:
        tables: By group.
        positives: (C,) positive rows, or actions.
        classes: (C,) names.
        about: The other fields of `Evaluation`.
    """
    metrics = {name: table.figures for name, table in tables.items()}
    # The columns of detection come last, as they always have in the CSV file.
    ordered = sorted(tables, key=lambda group: group == "detection")
    columns = {name: column for group in ordered for name, column in tables[group].columns.items()}
    by_class = {
        class_name: {
            name: None if np.isnan(column[number]) else float(column[number])
            for name, column in columns.items()
        }
        for number, class_name in enumerate(classes)
    }
    return Evaluation(
        map=metrics.get("frame", {}).get("map", math.nan),
        per_class={name: row.get("ap") for name, row in by_class.items()},
        positives=dict(zip(classes, positives.tolist(), strict=True)),
        metrics=metrics,
        classes=by_class,
        **about,
    )


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
