"""The rows of the table that sums up an evaluation, in the console and on the report's page."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from mstemba.pipeline.evaluate.result import Evaluation
from mstemba.pipeline.evaluate.segment_metrics import BINS
from mstemba.pipeline.evaluate.timing import EDGES
from mstemba.wording import counted

SHOWN_TIOU = ("0.1", "0.3", "0.5", "0.7", "0.9")


def summary_rows(evaluation: Evaluation) -> list[tuple[str, str, str]]:
    """Return rows of (what is measured, mAP in percent, further figures) as text."""
    metrics, rows = evaluation.metrics, []
    if frame := metrics.get("frame"):
        rows.append(("per-frame", frame["map"], _all_classes(frame)))
    if charades := metrics.get("charades"):
        more = (
            f"{_all_classes(charades)}; by released code's sampling "
            f"{two_decimals(charades['legacy']['map'])}"
        )
        rows.append(("at 25 moments of each video (Charades)", charades["map"], more))
    for tau, figures in metrics.get("conditional", {}).items():
        where = "during" if tau == "0" else f"up to {tau} rows after"
        names = {"precision": "precision", "recall": "recall", "f1": "F1"}
        more = ", ".join(f"{name} {two_decimals(figures[key])}" for key, name in names.items())
        rows.append((f"{where} another action", figures["map"], more))
    if detection := metrics.get("detection"):
        more = ", ".join(f"{t}: {two_decimals(detection['map'][t])}" for t in SHOWN_TIOU)
        rows.append(("segments, at temporal IoU 0.1 to 0.9", detection["average_map"], more))
    breakdown = metrics.get("breakdown", {})
    if "duration" in breakdown:
        rows += _duration_rows(breakdown["duration"], evaluation.time_unit)
    if "boundary" in breakdown:
        rows += _boundary_rows(breakdown["boundary"])
    if timing := metrics.get("timing"):
        rows += _timing_rows(timing, evaluation.time_unit)
    return [(measured, two_decimals(value), more) for measured, value, more in rows]


def _duration_rows(durations: dict[str, Any], unit: str) -> Iterator[tuple[str, float, str]]:
    first, second = (f"{limit:.3g}" for limit in durations["limits"])
    spans = (f"under {first}", f"{first} to {second}", f"{second} or more")
    for bin, span in zip(BINS, spans, strict=True):
        figures = durations[bin]
        detection, actions = figures["detection_map"], counted(figures["actions"], "action")
        if not figures["actions"]:
            continue
        name = f"{bin} actions ({span} {unit})"
        if "frame_map" in figures:
            yield name, figures["frame_map"], f"segments {two_decimals(detection)}; {actions}"
        else:
            yield name, detection, actions


def _boundary_rows(boundary: dict[str, Any]) -> Iterator[tuple[str, float, str]]:
    near = f"up to {counted(boundary['rows'], 'row')} from a start or end of an action"
    for name, where in (("near", near), ("far", "farther from starts and ends")):
        figures = boundary[name]
        yield where, figures["map"], f"chance {two_decimals(figures['chance'])}"


def _all_classes(figures: dict[str, Any]) -> str:
    return f"{two_decimals(figures['map_all_classes'])} if classes that do not occur count as 0"


def _timing_rows(timing: dict[str, Any], unit: str) -> Iterator[tuple[str, float, str]]:
    matched = f"{timing['matched']} of {counted(timing['actions'], 'action')} matched"
    for edge in EDGES:
        errors = timing[edge]
        if not errors["edges"]:
            yield f"{edge} error", math.nan, matched
            continue
        rows = errors["median_absolute_rows"]
        in_rows = "" if math.isnan(rows) else f" ({rows:.2f} rows)"
        median = f"median {errors['median_absolute']:.3g} {unit}{in_rows}"
        yield f"{edge} error", math.nan, f"{median}, signed {errors['median']:+.2g}; {matched}"


def two_decimals(value: float | None) -> str:
    """Return the number with two decimals, or - where there is none."""
    return "-" if value is None or math.isnan(value) else f"{value:.2f}"
