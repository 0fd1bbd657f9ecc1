"""The rows of the table that sums up an evaluation, in the console and on the report's page."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from mstemba.pipeline.evaluate.result import Evaluation
from mstemba.pipeline.evaluate.segment_metrics import BINS

SHOWN_TIOU = ("0.1", "0.3", "0.5", "0.7", "0.9")


def summary_rows(evaluation: Evaluation) -> list[tuple[str, str, str]]:
    """Return rows of (what is measured, mAP in percent, further figures) as text."""
    metrics, rows = evaluation.metrics, []
    if frame := metrics.get("frame"):
        more = f"all classes {two_decimals(frame['map_all_classes'])}"
        rows.append(("per-frame", frame["map"], more))
    if charades := metrics.get("charades"):
        more = (
            f"all classes {two_decimals(charades['map_all_classes'])}; "
            f"released code's 25 samples {two_decimals(charades['legacy']['map'])}"
        )
        rows.append(("Charades, 25 points a video", charades["map"], more))
    for tau, figures in metrics.get("conditional", {}).items():
        where = "during another action" if tau == "0" else f"{tau} rows after another action"
        names = ("precision", "recall", "f1")
        more = ", ".join(f"{name} {two_decimals(figures[name])}" for name in names)
        rows.append((where, figures["map"], more))
    if detection := metrics.get("detection"):
        more = ", ".join(f"{two_decimals(detection['map'][t])} at {t}" for t in SHOWN_TIOU)
        rows.append(("detection, tIoU 0.1 to 0.9", detection["average_map"], more))
    breakdown = metrics.get("breakdown", {})
    if "duration" in breakdown:
        rows += _duration_rows(breakdown["duration"], evaluation.time_unit)
    if "boundary" in breakdown:
        rows += _boundary_rows(breakdown["boundary"])
    return [(measured, two_decimals(value), more) for measured, value, more in rows]


def _duration_rows(durations: dict[str, Any], unit: str) -> Iterator[tuple[str, float, str]]:
    first, second = (f"{limit:.3g} {unit}" for limit in durations["limits"])
    names = (f"short: below {first}", f"medium: below {second}", "long: beyond")
    for bin, name in zip(BINS, names, strict=True):
        figures = durations[bin]
        detection, actions = figures["detection_map"], f"{figures['actions']} actions"
        if "frame_map" in figures:
            yield name, figures["frame_map"], f"detection {two_decimals(detection)}; {actions}"
        else:
            yield name, detection, actions


def _boundary_rows(boundary: dict[str, Any]) -> Iterator[tuple[str, float, str]]:
    near = f"up to {boundary['rows']} rows from a boundary"
    for name, where in (("near", near), ("far", "beyond")):
        figures = boundary[name]
        yield where, figures["map"], f"chance {two_decimals(figures['chance'])}"


def two_decimals(value: float | None) -> str:
    """Return the number with two decimals, or - where there is none."""
    return "-" if value is None or math.isnan(value) else f"{value:.2f}"
