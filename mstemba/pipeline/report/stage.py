"""The stage `report`: one page that shows how good a model is, and where it fails."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from mstemba.data_manifests.manifest import Manifest
from mstemba.errors import UsageError
from mstemba.pipeline.caching.files import (
    as_local,
    check_kept,
    check_target,
    folder_name,
    write_result,
    write_text,
)
from mstemba.pipeline.caching.keys import file_sha256
from mstemba.pipeline.checkpoint import (
    DONE,
    Checkpoint,
    find_checkpoint,
    read_config,
    read_done,
)
from mstemba.pipeline.devices import pick_device
from mstemba.pipeline.evaluate.inputs import InputLoader, ScoredSubset
from mstemba.pipeline.evaluate.metric_groups import ScoredVideo
from mstemba.pipeline.evaluate.predictions import Predictions
from mstemba.pipeline.evaluate.result import Evaluation
from mstemba.pipeline.evaluate.stage import measure
from mstemba.pipeline.options import EvaluateOptions, ExportOptions
from mstemba.pipeline.progress import Event, EventHandler, ignore_events
from mstemba.pipeline.report.error_analysis import (
    best_and_worst,
    class_confusions,
    precision_recall,
    rank_videos,
    thin_curve,
)
from mstemba.pipeline.report.page import render
from mstemba.pipeline.train.metrics_file import METRICS, read_curves
from mstemba.pipeline.workspace import Workspace, find_workspace
from mstemba.wording import counted

MAX_CURVES, MAX_VIDEOS, MAX_CONFUSIONS = 5, 10, 10
"""How many are shown: curves of best and of worst classes, best and worst videos, class pairs."""
MAX_POINTS = 200
"""Points of a curve."""
PACKAGES = ("mstemba", "torch", "numpy", "numba")
"""Packages whose version may change a digit."""


@dataclass(frozen=True)
class Report:
    """A report that was written."""

    page: Path
    evaluation: Evaluation
    """The same figures as `evaluate` gives."""
    data: dict[str, Any]
    """What the page shows, as plain data; see docs/report.md."""


def report(
    options: EvaluateOptions | None = None,
    *,
    workspace: Workspace | str | Path | None = None,
    output: str | Path | None = None,
    threshold: float = ExportOptions.threshold,
    on_event: EventHandler = ignore_events,
) -> Report:
    """Measure a checkpoint, or dense predictions, as `evaluate` does, and write a page about it.

    The page is one HTML file that loads no scripts, styles or pictures. Equal inputs give an equal
    file.

    Args:
        options: What is measured, and on which videos.
        workspace: The workspace, or its folder; by default the nearest one upwards, if any.
        output: The page; by default `report-<subset>.html` in the run's folder, or in the current
            folder for predictions and for a checkpoint of no run.
        threshold: Probability from which the timelines show a segment.
        on_event: Called with progress and warnings.

    Raises:
        UsageError: As `evaluate` does, and for predictions without dense scores, and when the page
            cannot be written to `output`.
        CheckpointError: As `evaluate` does.
    """
    options, export_options = options or EvaluateOptions(), ExportOptions(threshold=threshold)
    workspace = find_workspace(workspace)
    warnings: list[str] = []

    def keep_warnings(event: Event) -> None:
        if event.warning:
            warnings.append(event.message)
        on_event(event)

    loader = InputLoader(options, workspace, keep_warnings)
    model, manifest = loader.model, loader.manifest
    # Refuse what cannot be done before the work begins.
    _check_dense(model)
    run = _run_folder(model)
    page = _page_path(as_local(output), run, options.subset)
    training = _read_training(run, keep_warnings)
    listed = options.manifest or (workspace.manifest if workspace else None)
    check_kept(page, "--output", options.predictions, options.checkpoint, listed)
    scored = loader.load_scores()
    evaluation = measure(scored)
    data = {
        "format": "mstemba-report",
        "version": 1,
        "evaluation": evaluation.as_dict(),
        **_analyse(scored, evaluation),
        "training": training,
        "provenance": _provenance(model, manifest, export_options, options.device),
        "warnings": warnings,
    }
    write = write_text if output is None else write_result
    write(page, render(data, scored, evaluation, export_options))
    return Report(page, evaluation, data)


def page_of(
    options: EvaluateOptions,
    *,
    workspace: Workspace | str | Path | None = None,
    output: str | Path | None = None,
) -> Path:
    """Return where `report` writes its page when it is called with these arguments.

    Raises:
        UsageError: The page cannot be written there, or there is no checkpoint.
    """
    run = None
    if not options.released and options.predictions is None:
        checkpoint = as_local(options.checkpoint)
        run = _run_folder(find_checkpoint(checkpoint, find_workspace(workspace)))
    return _page_path(as_local(output), run, options.subset)


def _check_dense(model: Checkpoint | Predictions) -> None:
    if isinstance(model, Predictions) and model.scores is None:
        raise UsageError(
            f"{model.path}: predictions of segments, but a report requires dense scores, one row "
            f"of probabilities per step. Pass those, or measure the segments with "
            f"`mstemba evaluate --predictions`"
        )


def _page_path(output: Path | None, run: Path | None, subset: str) -> Path:
    if output is None:
        output = (run or Path()) / f"report-{folder_name(subset)}.html"
    check_target(output, "--output", "report.html")
    return output


def _run_folder(model: Checkpoint | Predictions) -> Path | None:
    """Return the folder of the training that made the checkpoint, if there is one."""
    if isinstance(model, Predictions) or model.released_length is not None:
        return None
    run = model.folder.parent
    return run if any((run / name).is_file() for name in (METRICS, DONE)) else None


def _analyse(scored: ScoredSubset, evaluation: Evaluation) -> dict[str, Any]:
    counts = Counter(action.class_id for video in scored.videos for action in video.actions)
    return {
        "actions": {name: counts[class_id] for class_id, name in enumerate(scored.classes)},
        "precision_recall": _curves(scored.videos, evaluation),
        "mistaken": class_confusions(scored.videos, scored.classes, MAX_CONFUSIONS),
        "videos": rank_videos(scored.videos, MAX_VIDEOS),
    }


def _curves(
    videos: Sequence[ScoredVideo], evaluation: Evaluation
) -> dict[str, list[dict[str, Any]]]:
    """Compute the precision-recall curves of the classes with the highest and the lowest AP."""
    names = list(evaluation.per_class)
    known = {name: ap for name, ap in evaluation.per_class.items() if ap is not None}
    ranking = sorted(known, key=lambda name: -known[name])

    def curve(name: str) -> dict[str, Any]:
        column = names.index(name)
        recall, precision = precision_recall(
            np.concatenate([video.scores[:, column] for video in videos]),
            np.concatenate([video.labels[:, column] for video in videos]),
        )
        recall, precision = thin_curve(recall, precision, MAX_POINTS)
        return {
            "class": name,
            "ap": known[name],
            "recall": recall.tolist(),
            "precision": precision.tolist(),
        }

    best, worst = best_and_worst(ranking, MAX_CURVES)
    return {"best": [curve(name) for name in best], "worst": [curve(name) for name in worst]}


def _read_training(
    run: Path | None, on_event: EventHandler
) -> dict[str, list[tuple[float, float]]] | None:
    """Return (step, value) of the loss and the mAPs; None without a record of the training."""
    if run is None or not (run / METRICS).is_file():
        return None
    curves, damaged = read_curves(run / METRICS, ("loss", "train_map", "val_map"))
    if damaged:
        text = f"{run / METRICS}: {counted(damaged, 'damaged line')} ignored: the training curves "
        on_event(Event("report", f"{text}are those of the others", warning=True))
    found = {}
    for name, curve in curves.items():
        steps, values = thin_curve(curve[:, 0], curve[:, 1], MAX_POINTS)
        found[name] = list(zip(steps.tolist(), values.tolist(), strict=True))
    return found


def _provenance(
    model: Checkpoint | Predictions, manifest: Manifest, options: ExportOptions, device: str
) -> dict[str, Any]:
    """Describe what the figures were made from; each entry is a table of the page."""
    subsets = Counter(video.subset for video in manifest.videos.values())
    return {
        **_origin(model),
        "manifest": {
            "dataset": manifest.dataset,
            "classes": len(manifest.classes),
            "time_unit": manifest.time_unit,
            "videos": len(manifest.videos),
            **{f"videos, {name or 'no subset'}": count for name, count in subsets.items()},
            "actions": sum(len(video.actions) for video in manifest.videos.values()),
        },
        "segments": {"threshold": options.threshold, "low": options.low_threshold},
        "software": {
            **{name: _version(name) for name in PACKAGES},
            "python": platform.python_version(),
            "device": None if isinstance(model, Predictions) else pick_device(device),
        },
    }


def _origin(model: Checkpoint | Predictions) -> dict[str, Any]:
    """Describe where the scores come from."""
    if isinstance(model, Predictions):
        return {"predictions": {"file": str(model.path), "sha256": file_sha256(model.path)}}
    run = _run_folder(model)
    train = {} if model.folder.is_file() else read_config(model.folder).train
    return {
        "checkpoint": {
            "folder": str(model.folder),
            "sha256": model.sha256,
            "key": model.train_key,
        },
        "run": read_done(run) if run and (run / DONE).is_file() else {},
        "model": model.model,
        "train": train,
        "features": model.spec.as_dict(),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
