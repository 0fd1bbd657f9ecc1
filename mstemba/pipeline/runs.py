"""The training runs of a workspace: their results, and the options in which they differ."""

from __future__ import annotations

import json
import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import safetensors

from mstemba.errors import MstembaError
from mstemba.pipeline.caching.files import visible
from mstemba.pipeline.checkpoint import (
    CONFIG,
    DONE,
    WEIGHTS,
    CheckpointConfig,
    read_config,
    read_done,
)
from mstemba.pipeline.options import TrainOptions
from mstemba.pipeline.workspace import Workspace, get_current

# For options that an older config.json does not have: their defaults change nothing.
_DEFAULTS = {f.name: f.default for f in fields(TrainOptions)} | {"labels": "strict"}


def leaderboard(workspace: Workspace) -> dict[str, Any]:
    """Return the runs by decreasing score, as plain data for `mstemba runs`.

    Returns:
        `differing`: the names of the options that are not the same in all readable runs; those of
        the features begin with `features.`. `runs`: each as in `list_runs`, with `differs`, its
        values of these options. Runs without a score follow those with one; damaged ones are last.
    """
    runs = list_runs(workspace)
    configs = {run["name"]: _flat(run.pop("config")) for run in runs}
    known = [config for config in configs.values() if config]
    names = sorted({name for config in known for name in config})
    differing = [
        name
        for name in names
        if len({json.dumps(config.get(name), sort_keys=True) for config in known}) > 1
    ]
    order = {"done": 0, "unfinished": 1, "damaged": 2}
    runs.sort(key=lambda run: (order[run["state"]], -_number(run["score"]), run["name"]))
    for run in runs:
        config = configs[run["name"]]
        run["differs"] = {name: config.get(name) for name in differing if config}
    return {"runs": runs, "differing": differing}


def list_runs(workspace: Workspace) -> list[dict[str, Any]]:
    """Return every run, by name, as plain data.

    `state` is done, unfinished or damaged (`problem` says why); `score` is the validation mAP in
    percent; `config` is the CheckpointConfig. Unknown values are None.
    """
    current = get_current(workspace.runs)
    folders = [p for p in visible(workspace.runs, "*") if (p / "last" / CONFIG).is_file()]
    return [{"name": run.name, "current": run == current, **_read(run)} for run in folders]


def _read(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = dict.fromkeys(
        ("arch", "backbone", "checkpoint", "score", "steps", "seconds", "parameters", "recipe")
    )
    found |= {"state": "unfinished", "problem": None, "config": None}
    try:
        config = read_config(run / "last")
        found["arch"] = config.model.get("arch")
        found["backbone"] = config.spec.backbone
        found["recipe"] = config.train.get("recipe", "none")
        if (run / DONE).is_file():
            done = read_done(run)
            found |= {name: done.get(name) for name in ("checkpoint", "score", "steps", "seconds")}
            found["parameters"] = _count_parameters(run / done["checkpoint"] / WEIGHTS)
            found["state"] = "done"
    except (MstembaError, ValueError) as error:
        return {**found, "state": "damaged", "problem": str(error)}
    return {**found, "config": config}


def _count_parameters(weights: Path) -> int | None:
    """Count the parameters in a weights file by its header; None if the file was deleted."""
    if not weights.is_file():
        return None
    try:
        with safetensors.safe_open(weights, "numpy") as file:
            shapes: list[list[int]] = [
                file.get_slice(name).get_shape()
                for name in file.keys()  # noqa: SIM118, it is not a dict
            ]
    except safetensors.SafetensorError as error:
        raise ValueError(f"{weights}: {error}") from error
    return sum(map(math.prod, shapes))


def _flat(config: CheckpointConfig | None) -> dict[str, Any]:
    """Return the training options and the specification of the features in one dict."""
    if config is None:
        return {}
    train = {name: value for name, value in config.train.items() if name != "recipe"}
    features = {f"features.{name}": value for name, value in config.features.items()}
    return {**_DEFAULTS, **train, **features}


def _number(score: float | None) -> float:
    return -math.inf if score is None else score
