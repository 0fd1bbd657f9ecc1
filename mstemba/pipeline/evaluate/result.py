"""The result of `evaluate`, and its conversion to JSON and CSV."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass
from typing import Any

from mstemba.data_manifests.readers.tables import escape_formula


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
    """Of the durations and errors in `metrics` and `classes`."""
    untrained: tuple[str, ...]
    """Names of the subset's classes that training has shown nothing of, as far as is known."""
    labels: str | None
    """Rule by which rows are labelled: `strict` or `overlap`; None for predicted segments."""
    metrics: dict[str, Any]
    """By group, see docs/metrics.md."""
    classes: dict[str, dict[str, float | None]]
    """Each class's AP by metric, percent, and median onset and offset error; None where it does not
    occur."""

    def as_dict(self) -> dict[str, Any]:
        """Return the result for JSON; None stands for a number that does not exist."""
        metric = "detection mAP, percent" if math.isnan(self.map) else "per-frame mAP, percent"
        content: dict[str, Any] = _without_nan({**vars(self), "metric": metric})
        return {**content, "missing": list(self.missing), "untrained": list(self.untrained)}

    def as_csv(self) -> str:
        """Return one row per class: its name, positives and figures."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        columns = list(next(iter(self.classes.values()), {}))
        writer.writerow(["class", "positives", *columns])
        for name, values in self.classes.items():
            cells = ["" if value is None else f"{value:.4f}" for value in values.values()]
            writer.writerow([escape_formula(name), self.positives[name], *cells])
        return text.getvalue()


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
