"""The stage `report`: one page that shows how good a model is, and where it fails."""

from __future__ import annotations

import json
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
    as_path,
    check_kept,
    check_target,
    folder_name,
    read_json,
    write_text,
)
from mstemba.pipeline.caching.keys import file_sha256
from mstemba.pipeline.checkpoint import CONFIG, DONE, Checkpoint, find_checkpoint
from mstemba.pipeline.dataset.labels import build_labels
from mstemba.pipeline.devices import pick_device
from mstemba.pipeline.evaluate.evaluation import FAMILIES
from mstemba.pipeline.evaluate.metrics import Mask
from mstemba.pipeline.evaluate.predictions import Predictions
from mstemba.pipeline.evaluate.stage import Evaluation, Scored, Stage, find_inputs
from mstemba.pipeline.options import EvaluateOptions, ExportOptions
from mstemba.pipeline.progress import Event, EventHandler, ignore_events
from mstemba.pipeline.report.error_analysis import (
    best_and_worst,
    mistaken,
    precision_recall,
    thinned,
    video_figures,
)
from mstemba.pipeline.report.page import render
from mstemba.pipeline.workspace import Workspace, find_workspace

METRICS = "metrics.jsonl"
CURVES, VIDEOS, MISTAKEN = 5, 10, 10
"""How many are shown: curves of best and of worst classes, best and worst videos, class pairs."""
POINTS = 200
"""Most points of a curve."""
PACKAGES = ("mstemba", "torch", "numpy", "numba")
"""Those whose version may move a digit."""


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

    The page is one HTML file without script sources, styles or pictures elsewhere: `output`, or
    `report-<subset>.html` in the run's folder (for what is of no run, here). The timelines show
    segments from `threshold` on. Equal inputs give an equal file. Raises what `evaluate` raises,
    and UsageError for predictions without dense scores and when the page cannot be where it is
    wanted.
    """
    options, cut = options or EvaluateOptions(), ExportOptions(threshold=threshold)
    workspace, source = find_workspace(workspace), as_path(options.features)
    found, subject = find_inputs(workspace, options)
    # All of it may be refused, before the work begins.
    _check_dense(subject)
    run = _run_folder(subject)
    page, training = _page_path(as_local(output), run, options.subset), _training(run)
    listed = workspace.manifest if workspace else None
    check_kept(
        page, "--output", options.predictions, options.checkpoint, options.manifest or listed
    )
    warnings: list[str] = []

    def heard(event: Event) -> None:
        if event.warning:
            warnings.append(event.message)
        on_event(event)

    stage = Stage(found, options.subset, FAMILIES, heard)
    scored = stage.score(subject, source, workspace, options.device)
    evaluation = stage.measure(scored)
    labels = _labels(scored, found)
    data = {
        "format": "mstemba-report",
        "version": 1,
        "evaluation": evaluation.as_dict(),
        "actions": _actions(scored, found),
        "precision_recall": _curves(scored, labels, evaluation),
        "mistaken": _mistaken(scored, labels, found.classes),
        "videos": _videos(scored, labels),
        "training": training,
        "provenance": _provenance(subject, found, cut, options.device),
        "warnings": warnings,
    }
    write_text(page, render(data, scored, evaluation, found.classes, cut))
    return Report(page, evaluation, data)


def page_of(
    options: EvaluateOptions,
    *,
    workspace: Workspace | str | Path | None = None,
    output: str | Path | None = None,
) -> Path:
    """Return where `report` writes its page when it is called with these.

    Raises UsageError as `report` does.
    """
    run = None
    if not options.released and options.predictions is None:
        checkpoint = as_local(options.checkpoint)
        run = _run_folder(find_checkpoint(checkpoint, find_workspace(workspace)))
    return _page_path(as_local(output), run, options.subset)


def _check_dense(subject: Checkpoint | Predictions) -> None:
    if isinstance(subject, Predictions) and subject.scores is None:
        raise UsageError(
            f"{subject.path}: predictions of segments, and a report is of dense scores, a row of "
            f"probabilities for every step: give those, or measure the segments by "
            f"`mstemba evaluate --predictions`"
        )


def _page_path(output: Path | None, run: Path | None, subset: str) -> Path:
    """Where the page goes. Raises UsageError where there can be no page."""
    if output is None:
        output = (run or Path()) / f"report-{folder_name(subset)}.html"
    check_target(output, "--output", "report.html")
    return output


def _run_folder(subject: Checkpoint | Predictions) -> Path | None:
    """The folder of the training that made the checkpoint; None for what stands alone."""
    if isinstance(subject, Predictions) or subject.released_length is not None:
        return None
    run = subject.folder.parent
    return run if any((run / name).is_file() for name in (METRICS, DONE)) else None


def _labels(scored: Scored, manifest: Manifest) -> list[Mask]:
    """(T, C) of every video, as the measures have them."""
    grids = [video.grid for video in scored.videos if video.grid is not None]
    actions = [video.actions for video in scored.videos]
    labels = build_labels(actions, grids, len(manifest.classes), "strict")
    return [labels.matrix(number) for number in range(len(grids))]


def _actions(scored: Scored, manifest: Manifest) -> dict[str, int]:
    """Labelled actions by class, in the videos that are measured."""
    counts = Counter(action.class_id for video in scored.videos for action in video.actions)
    return {name: counts[class_id] for class_id, name in enumerate(manifest.classes)}


def _curves(
    scored: Scored, labels: Sequence[Mask], evaluation: Evaluation
) -> dict[str, list[dict[str, Any]]]:
    """Precision-recall curves of the classes with the highest and the lowest AP."""
    names = list(evaluation.per_class)
    known = {name: ap for name, ap in evaluation.per_class.items() if ap is not None}
    ranking = sorted(known, key=lambda name: -known[name])

    def curve(name: str) -> dict[str, Any]:
        column = names.index(name)
        recall, precision = precision_recall(
            np.concatenate([scores[:, column] for scores in scored.scores]),
            np.concatenate([truth[:, column] for truth in labels]),
        )
        recall, precision = thinned(recall, precision, POINTS)
        return {
            "class": name,
            "ap": known[name],
            "recall": recall.tolist(),
            "precision": precision.tolist(),
        }

    best, worst = best_and_worst(ranking, CURVES)
    return {"best": [curve(name) for name in best], "worst": [curve(name) for name in worst]}


def _mistaken(
    scored: Scored, labels: Sequence[Mask], classes: Sequence[str]
) -> list[dict[str, Any]]:
    return [
        {**vars(pair), "labelled": classes[pair.labelled], "scored": classes[pair.scored]}
        for pair in mistaken(scored.scores, labels, MISTAKEN)
    ]


def _videos(scored: Scored, labels: Sequence[Mask]) -> dict[str, Any]:
    """The measured videos from the best to the worst; those without a positive row apart."""
    figures = [
        video_figures(number, scores, truth)
        for number, (scores, truth) in enumerate(zip(scored.scores, labels, strict=True))
    ]
    ranking = sorted((f for f in figures if f.positives), key=lambda f: (-f.ap, f.number))
    best, worst = best_and_worst([f.number for f in ranking], VIDEOS)

    def ids(numbers: Sequence[int]) -> list[str]:
        return [scored.videos[number].id for number in numbers]

    return {
        "ranking": [
            {
                "id": scored.videos[f.number].id,
                "ap": f.ap,
                "map": f.map,
                "chance": f.chance,
                "positives": f.positives,
                "rows": len(scored.scores[f.number]),
                "duration": scored.videos[f.number].duration,
            }
            for f in ranking
        ],
        "best": ids(best),
        "worst": ids(worst),
        "without_positives": ids([f.number for f in figures if not f.positives]),
    }


def _training(run: Path | None) -> dict[str, list[tuple[float, float]]] | None:
    """(step, value) of the loss and the mAPs; None when there is no record of the training."""
    if run is None or not (run / METRICS).is_file():
        return None
    try:
        lines = (run / METRICS).read_text(encoding="utf-8").splitlines()
        rows = [{k: float(v) for k, v in json.loads(line).items()} for line in lines]
        return {name: _curve(rows, name) for name in ("loss", "train_map", "val_map")}
    except (ValueError, AttributeError, TypeError, KeyError) as error:
        raise UsageError(
            f"{run / METRICS}: damaged: {error!r}; move it away to report without training curves"
        ) from None


def _curve(rows: Sequence[dict[str, float]], name: str) -> list[tuple[float, float]]:
    points = np.array([(row["step"], row[name]) for row in rows if name in row]).reshape(-1, 2)
    steps, values = points[np.isfinite(points).all(axis=1)].T
    steps, values = thinned(steps, values, POINTS)
    return list(zip(steps.tolist(), values.tolist(), strict=True))


def _provenance(
    subject: Checkpoint | Predictions, manifest: Manifest, options: ExportOptions, device: str
) -> dict[str, Any]:
    """What the figures were made from: one table of the page for each entry."""
    subsets = Counter(video.subset for video in manifest.videos.values())
    return {
        **_origin(subject),
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
            "device": None if isinstance(subject, Predictions) else pick_device(device),
        },
    }


def _origin(subject: Checkpoint | Predictions) -> dict[str, Any]:
    """Where the scores come from."""
    if isinstance(subject, Predictions):
        return {"predictions": {"file": str(subject.path), "sha256": file_sha256(subject.path)}}
    run = _run_folder(subject)
    config = {} if subject.folder.is_file() else read_json(subject.folder / CONFIG)
    return {
        "checkpoint": {
            "folder": str(subject.folder),
            "sha256": subject.sha256(),
            "key": subject.train_key,
        },
        "run": read_json(run / DONE) if run and (run / DONE).is_file() else {},
        "model": subject.model,
        "train": config.get("train", {}),
        "features": subject.spec.as_dict(),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
