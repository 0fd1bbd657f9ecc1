"""Features and labels to a trained model: plan the run, train or resume it, skip what is done."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mstemba.data_manifests.manifest import Manifest, load_manifest
from mstemba.errors import UsageError
from mstemba.pipeline.checkpoint import CONFIG, DONE, make_config
from mstemba.pipeline.dataset import Clip, load_clips, split_validation, with_features
from mstemba.pipeline.files import read_json, write_json
from mstemba.pipeline.keys import digest
from mstemba.pipeline.options import TrainOptions, numeric
from mstemba.pipeline.progress import Event, Listener, silent
from mstemba.pipeline.store import FeatureStore
from mstemba.pipeline.workspace import Workspace, find_workspace, get_current, set_current


@dataclass(frozen=True)
class TrainResult:
    """What a training did."""

    run: Path
    """Folder with `best/` and `last/` checkpoints, metrics.jsonl, curves.png and tensorboard/."""
    checkpoint: str
    """`best` (chosen on the validation videos) or `last` (there were too few to hold out)."""
    score: float | None
    """Validation mAP in percent of the best checkpoint."""
    steps: int
    seconds: float
    cached: bool


def train(
    options: TrainOptions | None = None,
    *,
    workspace: Workspace | None = None,
    manifest: Path | None = None,
    features: Path | None = None,
    output: Path | None = None,
    listen: Listener = silent,
) -> TrainResult:
    """Train MS-Temba on the training videos of a manifest.

    A finished run with the same key is returned as it is; an unfinished one goes on from its last
    state and ends bit for bit (on a CPU) as if it had not been stopped. Raises UsageError when
    there is nothing to train on.
    """
    options = options or TrainOptions()
    workspace = workspace or find_workspace()
    labels = load_manifest(manifest or _need(workspace, "--manifest").manifest)
    store = find_store(features, workspace)
    plan = _plan(options, labels, store)
    if plan.missing:
        listen(
            Event(
                "train",
                f"{len(plan.missing)} training or validation videos have no features "
                f"and are left out, for example {plan.missing[0]}",
                warning=True,
            )
        )
    if output is None:
        runs = _need(workspace, "--output").runs
        output = runs / f"{options.arch}-{plan.key[:8]}"
        set_current(runs, output.name)
    _check_run_folder(output, plan.key)
    if (output / DONE).is_file():
        return _result(output, cached=True)
    if not plan.validation:
        listen(
            Event(
                "train",
                f"{len(plan.training)} training videos are too few to hold some out "
                "for validation: the last averaged weights are kept",
            )
        )
    _run(plan, store, labels, output, listen)
    return _result(output, cached=False)


def find_store(given: Path | None, workspace: Workspace | None) -> FeatureStore:
    """The feature store named, else the one the workspace's last `extract` wrote to."""
    if given is not None:
        return FeatureStore.open(given)
    current = get_current(_need(workspace, "--features").features)
    if current is None:
        raise UsageError(
            "no features in this workspace yet: run `mstemba extract`, or name --features"
        )
    return FeatureStore.open(current)


def _need(workspace: Workspace | None, option: str) -> Workspace:
    if workspace is None:
        raise UsageError(f"no workspace here: give {option}, or make one with `mstemba init`")
    return workspace


@dataclass(frozen=True)
class _Plan:
    options: TrainOptions
    training: list[Clip]
    validation: list[Clip]
    missing: list[str]
    key: str

    @property
    def batch_size(self) -> int:
        return min(self.options.batch_size, len(self.training))

    @property
    def epoch(self) -> int:
        """Steps in one pass over the training videos."""
        return math.ceil(len(self.training) / self.batch_size)

    @property
    def steps(self) -> int:
        return max(self.options.epochs * self.epoch, self.options.min_steps)

    @property
    def check_every(self) -> int:
        """Steps between two measurements of mAP: an epoch, at least a fiftieth of the run."""
        return max(self.epoch, math.ceil(self.steps / 50))


def _plan(options: TrainOptions, manifest: Manifest, store: FeatureStore) -> _Plan:
    wanted = [v for s in ("training", "validation") for v in manifest.subset(s)]
    if not wanted:
        raise UsageError("the manifest has no video in the subset `training`")
    videos, missing = with_features(store, wanted)
    training, validation = split_validation(manifest, videos, options.val_fraction)
    parts = (load_clips(store, manifest, training), load_clips(store, manifest, validation))
    if not any(clip.labels.any() for clip in parts[0]):
        raise UsageError(
            "no row of the training features falls into an action: check the manifest's times"
        )
    key = digest(
        "train",
        options=numeric(options),
        classes=manifest.classes,
        clips=[_clip_keys(store, clips) for clips in parts],
    )
    return _Plan(options, *parts, missing, key)


def _clip_keys(store: FeatureStore, clips: Sequence[Clip]) -> list[list[str]]:
    keys = []
    for clip in clips:
        entry = store.entry(clip.id)
        assert entry is not None
        keys.append([entry["key"], hashlib.sha256(np.packbits(clip.labels).tobytes()).hexdigest()])
    return keys


def _check_run_folder(output: Path, key: str) -> None:
    if not output.exists() or not any(output.iterdir()):
        return
    config = output / "last" / CONFIG
    if not config.is_file():
        raise UsageError(f"{output}: exists and is no training run; give another --output")
    if read_json(config).get("key") != key:
        raise UsageError(
            f"{output}: holds a run with other options, features or labels; give another --output"
        )


def _result(run: Path, cached: bool) -> TrainResult:
    done = read_json(run / DONE)
    return TrainResult(
        run, done["checkpoint"], done["score"], done["steps"], done["seconds"], cached
    )


def _run(
    plan: _Plan, store: FeatureStore, manifest: Manifest, output: Path, listen: Listener
) -> None:
    # torch is imported here, not above: a run that is already done needs none of it.
    from mstemba.pipeline.trainer import Trainer

    begin = time.perf_counter()
    trainer = Trainer(plan.options, plan.training, plan.validation, plan.batch_size, plan.steps)
    config = make_config(
        trainer.model_config.to_dict(),
        manifest.classes,
        store.spec,
        store.weights_file,
        asdict(plan.options),
        plan.key,
    )
    if trainer.is_main:
        for name in ("best", "last") if plan.validation else ("last",):
            write_json(output / name / CONFIG, config)
    best = trainer.fit(output, plan.check_every, plan.key, listen)
    if trainer.is_main:
        done: dict[str, Any] = {
            "checkpoint": "last" if best is None else "best",
            "score": best,
            "steps": plan.steps,
            "seconds": time.perf_counter() - begin,
            "key": plan.key,
        }
        write_json(output / DONE, done)
        trainer.forget_state(output)
