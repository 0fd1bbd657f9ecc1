"""A tiny labelled set of feature arrays, and a network so small that a test can train it."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from mstemba.data_manifests.manifest import Action, Manifest, Video, manifest_json
from mstemba.pipeline.caching.files import write_text
from mstemba.pipeline.options import TrainOptions, TrainRunOptions
from mstemba.pipeline.progress import Event, EventHandler, ignore_events
from mstemba.pipeline.train.stage import TrainResult, train
from mstemba.pipeline.workspace import create_workspace, open_workspace

RUN = {field.name for field in fields(TrainRunOptions)}
CLASSES = ("walk", "sit", "drink")
FEATURES = 6
# Lengths that give crops of unequal length, and no multiple of two or three.
ROWS = (31, 17, 8, 23, 40)
TINY = {
    "width": 0.03,
    "epochs": 1,
    "min_steps": 6,
    "batch_size": 3,
    "clip_length": 24,
    "dropout": 0.0,
    "drop_path": 0.0,
}
HERE = {"device": "cpu", "trackers": "none", "checkpoint_seconds": 0.0}


def make_workspace(
    folder: Path,
    validation: Sequence[int] = (19, 26),
    dataset: str = "kitchen",
    idle: Collection[str] = (),
) -> Path:
    """A workspace with `npy`, whose classes can be learnt from the features.

    Videos are v0, v1, ...; those named `idle` have no action.
    """
    rng = np.random.default_rng(0)
    (folder / "npy").mkdir(parents=True)
    videos = {}
    subsets = ["training"] * len(ROWS) + ["validation"] * len(validation)
    for number, (rows, subset) in enumerate(zip((*ROWS, *validation), subsets, strict=True)):
        values = rng.normal(size=(rows, FEATURES)).astype(np.float32)
        actions = []
        for class_id in range(len(CLASSES)):
            start, end = sorted(rng.uniform(0, rows, 2))
            values[int(start) + 1 : int(end) + 1, class_id] += 2
            actions.append(Action(class_id, float(start), float(end)))
        id = f"v{number}"
        np.save(folder / "npy" / f"{id}.npy", values)
        videos[id] = Video(id, None, subset, float(rows), () if id in idle else tuple(actions))
    workspace = create_workspace(folder)
    manifest = Manifest(dataset, CLASSES, "seconds", videos)
    write_text(workspace.manifest, manifest_json(manifest, folder))
    return folder


def edit_videos(workspace: Path, **changes: Any) -> None:
    """Change fields of the manifest's videos, by id; a new id is a new video."""
    path = workspace / "manifest.json"
    content = json.loads(path.read_text())
    for id, change in changes.items():
        content["videos"][id] = content["videos"].get(id, {}) | change
    path.write_text(json.dumps(content))


def videos_of(workspace: Path) -> dict[str, Any]:
    """The manifest's entries by id."""
    return dict(json.loads((workspace / "manifest.json").read_text())["videos"])


def fit(
    workspace: Path,
    *,
    on_event: EventHandler = ignore_events,
    output: Path | None = None,
    **options: Any,
) -> TrainResult:
    """Train in a workspace of `make_workspace`; options of both classes, by name."""
    chosen = {**TINY, **HERE, **options}
    return train(
        TrainOptions(**{k: v for k, v in chosen.items() if k not in RUN}),
        TrainRunOptions(**{k: v for k, v in chosen.items() if k in RUN}),
        workspace=open_workspace(workspace),
        features=workspace / "npy",
        output=output,
        on_event=on_event,
    )


def records(run: Path, name: str) -> list[float]:
    """The values of one metric, in the order of the steps."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line[name] for line in lines if name in line]


class KilledError(Exception):
    """What `kill_at` raises."""


def kill_at(step: int, error: type[BaseException] = KilledError) -> Callable[[Event], None]:
    """Return an event handler that ends a training when it logs a step."""

    def on_event(event: Event) -> None:
        if event.total and event.done == step:
            raise error

    return on_event
