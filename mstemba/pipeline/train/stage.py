"""The stage `train`: features and labels to a trained model, unless the run is finished."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mstemba.data_manifests.manifest import Manifest, Video, load_manifest, read_json_object
from mstemba.errors import UsageError
from mstemba.pipeline import distributed, recipes
from mstemba.pipeline.caching.files import as_local, as_path, write_json
from mstemba.pipeline.caching.keys import Fingerprints, cache_key
from mstemba.pipeline.checkpoint import CONFIG, DONE, checkpoint_config, read_done
from mstemba.pipeline.dataset.clips import Clip, load_clips, split_validation, with_features
from mstemba.pipeline.features.sources import FeatureSource, find_features
from mstemba.pipeline.options import TrainOptions, TrainRunOptions
from mstemba.pipeline.progress import Event, EventHandler, ignore_events
from mstemba.pipeline.train.loggers import check_installed
from mstemba.pipeline.workspace import Workspace, find_workspace, require_workspace, set_current

# What a run writes into its folder.
RUN_FILES = {
    "best",
    "last",
    "tensorboard",
    "wandb",
    "metrics.jsonl",
    "curves.png",
    "state.safetensors",
    DONE,
}


@dataclass(frozen=True)
class TrainResult:
    """The outcome of a training."""

    run: Path
    """Folder with `best/` and `last/` checkpoints, metrics.jsonl, curves.png and tensorboard/."""
    checkpoint: str
    """`best` (chosen on the validation videos) or `last` (there were none)."""
    score: float | None
    """Validation mAP in percent of the best checkpoint."""
    steps: int
    """Optimiser steps taken."""
    seconds: float
    cached: bool
    """Whether the run had finished before."""


def train(
    options: TrainOptions | None = None,
    run_options: TrainRunOptions | None = None,
    *,
    recipe: str | None = None,
    given: Collection[str] = (),
    workspace: Workspace | str | Path | None = None,
    manifest: str | Path | None = None,
    features: str | Path | None = None,
    output: str | Path | None = None,
    on_event: EventHandler = ignore_events,
) -> TrainResult:
    """Train a network on the training videos of a manifest.

    A finished run with the same key is returned as it is. An unfinished one is resumed from its
    last state and ends bit for bit (on a CPU) as if it had not been interrupted.

    Args:
        options: Those that decide the result. Default: `TrainOptions()`.
        run_options: Where the training runs, and where its metrics go.
        recipe: `paper`, `tuned`, `none`, or `auto` (`tuned` for the datasets that have it). It sets
            all options that are not given. Default: `auto` without `options`, otherwise `none`.
        given: Names of the options that take precedence over the recipe. Default: those of
            `options` that differ from their defaults.
        workspace: Default: the one around the current folder.
        manifest: Default: the workspace's.
        features: A store or a folder of .npy files. Default: the workspace's current ones.
        output: The run folder. Default: one in the workspace, named after the run's key.
        on_event: Called with progress and warnings.

    Raises:
        UsageError: There is nothing to train on, the recipe is unknown, or the processes of a
            distributed run do not share the run folder.
        MstembaError: The training diverged; see `Trainer.fit`.
    """
    workspace = find_workspace(workspace)
    labels = load_manifest(
        as_local(manifest) or require_workspace(workspace, "--manifest").manifest
    )
    recipe = recipes.choose(labels.dataset, recipe or ("none" if options else "auto"))
    options, description = recipes.apply(options or TrainOptions(), labels.dataset, recipe, given)
    run_options = run_options or TrainRunOptions()
    source = find_features(as_path(features), workspace)
    fingerprints = Fingerprints(workspace.fingerprints if workspace else None)
    plan = _make_plan(options, run_options, labels, source, fingerprints)
    run = as_local(output) or require_workspace(workspace, "--output").runs / plan.name
    _check_run_folder(run, plan.key)
    cached = _is_done(run, plan)
    on_event(Event("train", description))
    done = read_done(run) if cached else _train(plan, recipe, source, labels, run, on_event)
    if workspace is not None and run.parent == workspace.runs and distributed.is_first():
        set_current(workspace.runs, run.name)
    return TrainResult(
        run, done["checkpoint"], done["score"], done["steps"], done["seconds"], cached
    )


@dataclass(frozen=True)
class TrainPlan:
    """Everything that is known of a run before torch is imported."""

    options: TrainOptions
    run_options: TrainRunOptions
    training: list[Clip]
    validation: list[Clip]
    warnings: list[str]
    """What a user should know before the run starts."""
    key: str
    """The run's cache key."""

    @property
    def name(self) -> str:
        """Of the run's folder in a workspace."""
        return f"{self.options.arch}-{self.key[:8]}"

    @property
    def batch_size(self) -> int:
        """Clips in a batch."""
        return min(self.options.batch_size, len(self.training))

    @property
    def epoch(self) -> int:
        """Steps in one pass over the training videos."""
        return math.ceil(len(self.training) / self.batch_size)

    @property
    def steps(self) -> int:
        """Optimiser steps, unless the run stops early."""
        steps = max(self.options.epochs * self.epoch, self.options.min_steps)
        return min(steps, self.options.max_steps or steps)

    @property
    def check_every(self) -> int:
        """Steps between two measurements of mAP: an epoch, at least a fiftieth of the run."""
        return max(self.epoch, math.ceil(self.steps / 50))


def _make_plan(
    options: TrainOptions,
    run_options: TrainRunOptions,
    manifest: Manifest,
    source: FeatureSource,
    fingerprints: Fingerprints,
) -> TrainPlan:
    wanted = [v for s in ("training", "validation") for v in manifest.subset(s)]
    if not wanted:
        raise UsageError("the manifest has no video in the subset `training`")
    videos, missing = with_features(source, wanted, fingerprints)
    training, validation, reason = _split(options, manifest, source, videos)
    key = cache_key(
        "train",
        options=asdict(options),
        classes=manifest.classes,
        clips=[
            [[source.key(clip.video, fingerprints), _labels_sha256(clip)] for clip in clips]
            for clips in (training, validation)
        ],
    )
    warnings = _warnings(options, training, missing, reason)
    plan = TrainPlan(options, run_options, training, validation, warnings, key)
    processes = distributed.world_size()
    if processes > plan.batch_size:
        raise UsageError(
            f"{processes} processes share a batch of {plan.batch_size} clips (--batch-size, at "
            f"most the number of training videos), expected at least one clip for each process: "
            f"raise --batch-size or start fewer processes"
        )
    return plan


def _warnings(
    options: TrainOptions, training: list[Clip], missing: list[str], reason: str
) -> list[str]:
    """Return what a user should know before the run starts.

    Raises:
        UsageError: There are no validation clips, for the given reason, but the run needs them.
    """
    warnings = []
    if missing:
        warnings.append(
            f"{len(missing)} training or validation videos are skipped: they have no features, or "
            f"features of a file that has changed, for example {missing[0]}"
        )
    if missed := sum(clip.missed for clip in training):
        actions = sum(len(clip.actions) for clip in training)
        hint = " (--labels overlap would count every row that an action touches)"
        warnings.append(
            f"{missed} of {actions} training actions fall between two rows, or outside the video, "
            f"and make no row positive{'' if options.labels == 'overlap' else hint}"
        )
    if reason and options.schedule == "released":
        raise UsageError(
            "--schedule released follows the loss on validation videos, but there are none: mark "
            "some as `validation` in the manifest, raise --val-fraction, or use --schedule cosine"
        )
    if reason:
        warnings.append(f"{reason}: the last averaged weights are kept")
        if options.patience:
            warnings.append("--patience has no effect without validation videos")
    return warnings


def _split(
    options: TrainOptions, manifest: Manifest, source: FeatureSource, videos: Sequence[Video]
) -> tuple[list[Clip], list[Clip], str]:
    """Return the training clips, the validation clips, and why there are none of the latter.

    Validation clips without any positive row count as none.
    """
    parts = split_validation(manifest, videos, options.val_fraction)
    training, validation = (load_clips(source, manifest, part, options.labels) for part in parts)
    if not any(clip.labels.any() for clip in training):
        raise UsageError(
            "no row of the training features falls into an action: check the times in the manifest"
        )
    if any(clip.labels.any() for clip in validation):
        return training, validation, ""
    if validation and validation[0].video.subset == "validation":
        reason = (
            f"no row of the {len(validation)} videos in the subset `validation` falls into an "
            f"action, so they are not used"
        )
    elif validation:
        order = {video.id: place for place, video in enumerate(videos)}
        reason = (
            f"no row of the {len(validation)} videos held out for validation falls into an "
            f"action, so they are used for training"
        )
        training = sorted(training + validation, key=lambda clip: order[clip.id])
    elif options.val_fraction == 0:
        reason = "no videos are held out for validation, as --val-fraction 0 asks"
    else:
        reason = f"{len(training)} training videos are too few to hold some out for validation"
    return training, [], reason


def _labels_sha256(clip: Clip) -> str:
    return hashlib.sha256(np.packbits(clip.labels).tobytes()).hexdigest()


def _check_run_folder(output: Path, key: str) -> None:
    """Raise UsageError if a folder holds anything other than this run, finished or not."""
    config = output / "last" / CONFIG
    if config.is_file():
        if read_json_object(config).get("key") != key:
            raise UsageError(
                f"{output}: holds a run with other options, features or labels; "
                f"pass another --output"
            )
    elif output.is_dir():
        names = {file.name for file in output.iterdir() if not file.name.startswith(".")}
        if foreign := sorted(names - RUN_FILES):
            raise UsageError(
                f"{output}: not a training run, it holds {foreign[0]}; pass another --output"
            )


def _is_done(run: Path, plan: TrainPlan) -> bool:
    """Return whether the run has finished before.

    Raises:
        UsageError: In every process, if they find different things: otherwise one would wait
            forever for another that has nothing to do.
    """
    done = (run / DONE).is_file()
    if distributed.world_size() == 1:
        return done  # no torch: a finished run does not need it
    from mstemba.pipeline.train.state import STATE, saved_step

    step = saved_step(run / STATE)
    mine = "a finished run" if done else "no state" if step is None else f"the state of step {step}"
    found = distributed.gather(plan.run_options.device, plan.options.precision, mine)
    if len(set(found)) > 1:
        raise UsageError(
            f"{run}: process 0 finds {found[0]} there, others find "
            f"{', '.join(sorted(set(found) - {found[0]}))}; the run folder must be shared by all "
            f"machines: pass an --output on a file system that all of them see"
        )
    return done


def _train(
    plan: TrainPlan,
    recipe: str,
    source: FeatureSource,
    manifest: Manifest,
    run: Path,
    on_event: EventHandler,
) -> dict[str, Any]:
    """Train, and return the content of done.json, which only the first process is sure to see."""
    check_installed(plan.run_options.tracker_names)
    for message in plan.warnings:
        on_event(Event("train", message, warning=True))
    # torch is imported here: a finished run does not need it.
    from mstemba.pipeline.train.state import STATE
    from mstemba.pipeline.train.trainer import Trainer

    begin = time.perf_counter()
    trainer = Trainer(
        plan.options,
        plan.run_options,
        plan.training,
        plan.validation,
        batch_size=plan.batch_size,
        # Of a shortened run, the same fraction as of a whole one.
        epoch=max(1, round(plan.steps / plan.options.epochs)),
        steps=plan.steps,
    )
    if trainer.is_main:
        config = checkpoint_config(
            trainer.model_config.to_dict(),
            manifest.classes,
            source.spec,
            source.weights_file,
            {**asdict(plan.options), "recipe": recipe},
            plan.key,
        )
        # `last` first: a run folder is recognised by it.
        for name in ("last", "best") if plan.validation else ("last",):
            write_json(run / name / CONFIG, config)
    best = trainer.fit(run, plan.check_every, plan.key, on_event)
    done = {
        "checkpoint": "last" if best is None else "best",
        "score": best,
        "steps": trainer.step,
        "planned_steps": plan.steps,
        "stopped": "patience" if trainer.out_of_patience else "end",
        "seconds": time.perf_counter() - begin,
        "key": plan.key,
    }
    if trainer.is_main:
        write_json(run / DONE, done)
        (run / STATE).unlink(missing_ok=True)
    trainer.wait_for_everyone()
    return done
