"""The stage `evaluate`: a checkpoint, or a file of predictions, on a labelled subset."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mstemba.errors import UsageError
from mstemba.pipeline.evaluate.inputs import DetectedSubset, InputLoader, ScoredSubset
from mstemba.pipeline.evaluate.metric_groups import (
    METRIC_GROUPS,
    DenseRows,
    MatchedDetections,
    measure_dense,
    measure_segments,
)
from mstemba.pipeline.evaluate.result import Evaluation
from mstemba.pipeline.options import EvaluateOptions
from mstemba.pipeline.progress import EventHandler, ignore_events
from mstemba.pipeline.workspace import Workspace, find_workspace


def evaluate(
    options: EvaluateOptions | None = None,
    *,
    workspace: Workspace | str | Path | None = None,
    metrics: Sequence[str] = METRIC_GROUPS,
    on_event: EventHandler = ignore_events,
) -> Evaluation:
    """Measure a checkpoint, or a file of predictions, on all videos of a subset.

    Every video is scored as a whole. With `options.released` the checkpoint is a file of weights as
    the authors publish them, which is run as their code does: every video is padded, or cut, to the
    clip length of the dataset's paper recipe.

    Args:
        options: What is measured, and on which videos.
        workspace: The workspace, or its folder; by default the nearest one upwards, if any.
        metrics: Groups of metrics: frame, charades, conditional, detection, breakdown,
            timing.
        on_event: Called with progress and warnings.

    Raises:
        UsageError: The subset is empty or has no features, the file does not hold predictions for
            these videos and classes, or a group of metrics is unknown.
        CheckpointError: The checkpoint was made for other classes or other features.
    """
    if unknown := [name for name in metrics if name not in METRIC_GROUPS]:
        raise UsageError(f"unknown metrics {unknown[0]!r}; there are {', '.join(METRIC_GROUPS)}")
    loader = InputLoader(options or EvaluateOptions(), find_workspace(workspace), on_event)
    return measure(loader.load(), metrics)


def measure(
    inputs: ScoredSubset | DetectedSubset, groups: Sequence[str] = METRIC_GROUPS
) -> Evaluation:
    """Measure the videos of a subset.

    Raises:
        UsageError: No row, or no action, is labelled.
    """
    classes = inputs.classes
    if isinstance(inputs, ScoredSubset):
        rows = DenseRows(inputs.videos, inputs.rule)
        positives, count = rows.positives, len(rows.labels)
        if not positives.any():
            raise UsageError(
                f"no row of subset {inputs.subset!r} falls into an action: nothing to measure"
            )
        tables = measure_dense(rows, groups)
    else:
        detections = MatchedDetections(inputs.videos, inputs.segments, len(classes))
        positives, count = detections.positives, 0
        if not positives.any():
            raise UsageError(f"subset {inputs.subset!r} has no action: nothing to measure")
        tables = measure_segments(detections, groups)
    # New columns come last: those of the CSV file stay where they have always been.
    last = ("detection", "timing")
    ordered = sorted(tables, key=lambda group: last.index(group) + 1 if group in last else 0)
    columns = {name: column for group in ordered for name, column in tables[group][1].items()}
    by_class = {
        class_name: {
            name: None if np.isnan(column[number]) else float(column[number])
            for name, column in columns.items()
        }
        for number, class_name in enumerate(classes)
    }
    metrics = {group: figures for group, (figures, _) in tables.items()}
    return Evaluation(
        map=metrics.get("frame", {}).get("map", math.nan),
        per_class={name: row.get("ap") for name, row in by_class.items()},
        positives=dict(zip(classes, positives.tolist(), strict=True)),
        subset=inputs.subset,
        videos=len(inputs.videos),
        rows=count,
        checkpoint=inputs.origin,
        missing=tuple(inputs.missing),
        time_unit=inputs.time_unit,
        untrained=inputs.untrained,
        labels=inputs.rule if isinstance(inputs, ScoredSubset) else None,
        metrics=metrics,
        classes=by_class,
    )
