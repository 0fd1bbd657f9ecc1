"""What a training will do: its clips, its steps and its key, all known before torch is imported."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mstemba.data_manifests.manifest import SUBSETS, Manifest, Video
from mstemba.errors import UsageError
from mstemba.pipeline import distributed
from mstemba.pipeline.caching.keys import Fingerprints, cache_key
from mstemba.pipeline.dataset.annotated import not_annotated
from mstemba.pipeline.dataset.classes import (
    annotated_actions,
    class_names,
    point_classes,
    shown_classes,
)
from mstemba.pipeline.dataset.clips import Clip, load_clips, split_validation, with_features
from mstemba.pipeline.dataset.labels import VERSIONS
from mstemba.pipeline.features.sources import FeatureSource
from mstemba.pipeline.options import TrainOptions, TrainRunOptions
from mstemba.wording import counted


@dataclass(frozen=True)
class TrainPlan:
    """A training run, before it begins."""

    options: TrainOptions
    """`labels` is `strict` or `overlap`."""
    run_options: TrainRunOptions
    training: list[Clip]
    validation: list[Clip]
    notes: list[str]
    """How the options and the manifest were understood."""
    warnings: list[str]
    """What a user should know before the run starts."""
    key: str
    """The run's cache key."""
    trained_on: list[str]
    """Keys of the features of the training videos."""

    @property
    def name(self) -> str:
        """Of the run's folder in a workspace."""
        return f"{self.options.arch}-{self.key[:8]}"

    @property
    def untrained(self) -> list[int]:
        """Classes without a positive row in the training clips."""
        return np.flatnonzero(~_positive(self.training)).tolist()

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
    def summary(self) -> str:
        """What will be trained on and for how long, and which option decides the latter."""
        training, validation = len(self.training), len(self.validation)
        options, epochs = self.options, self.options.epochs * self.epoch
        said = (
            f"{counted(training, 'training video')}, {counted(validation, 'validation video')}; "
            f"{counted(self.steps, 'step')} of {counted(self.batch_size, 'clip')}"
        )
        if self.steps == epochs:
            return f"{said} ({counted(options.epochs, 'epoch')})"
        limits = [f"--min-steps {options.min_steps}"] if options.min_steps > epochs else []
        if self.steps == options.max_steps:
            limits.append(f"--max-steps {options.max_steps}")
        return (
            f"{said} ({' and '.join(limits)} instead of the {counted(epochs, 'step')} of --epochs "
            f"{options.epochs})"
        )

    @property
    def check_every(self) -> int:
        """Steps between two measurements of mAP: an epoch, at least a fiftieth of the run."""
        return max(self.epoch, math.ceil(self.steps / 50))

    @property
    def rate_epoch(self) -> int:
        """Steps between two changes of the released schedule's rate.

        Of a shortened run, the same fraction as of a whole one.
        """
        return max(1, round(self.steps / self.options.epochs))


def make_plan(
    options: TrainOptions,
    run_options: TrainRunOptions,
    manifest: Manifest,
    source: FeatureSource,
    fingerprints: Fingerprints,
) -> TrainPlan:
    """Plan a training.

    Raises:
        UsageError: There is nothing to train on, or a process would have no clip of a batch.
    """
    wanted = [v for s in ("training", "validation") for v in manifest.subset(s)]
    if not manifest.subset("training"):
        raise UsageError(
            f"no video is in the subset `training`; videos by subset: "
            f"{manifest.describe_subsets() or 'none'}. Mark training videos in the annotations "
            f"(column `subset`) and run `mstemba init` again; if no video is marked, it splits "
            f"them itself"
        )
    found = with_features(source, wanted, fingerprints)
    videos = found.videos
    options, note = _with_rule(options, manifest, videos)
    clips = load_clips(source, manifest, videos, options.labels)
    loaded = {clip.id for clip in clips}
    unlabelled = [video.id for video in videos if video.id not in loaded]
    if unlabelled and not any(clip.video.subset == "training" for clip in clips):
        raise UsageError(f"there is nothing to train on: {not_annotated(unlabelled)}")
    training, validation, reason = _split(options, manifest, clips)
    keys = [
        [[source.key(clip.video, fingerprints) or "", *_labels_key(clip)] for clip in clips]
        for clips in (training, validation)
    ]
    key = cache_key(
        "train",
        options=asdict(options),
        classes=manifest.classes,
        clips=keys,
        **({"labels_version": VERSIONS[rule]} if (rule := options.labels) in VERSIONS else {}),
    )
    trained_on = [str(features) for features, *_ in keys[0]]
    warnings = found.warnings + _warnings(options, training, found.missing, reason)
    warnings += _class_warnings(manifest, training)
    if unlabelled:
        warnings.append(not_annotated(unlabelled))
    unused = manifest.describe_subsets(unused=True)
    notes = [f"subsets other than {', '.join(SUBSETS)} are not used: {unused}"] if unused else []
    notes += [note] if note else []
    plan = TrainPlan(options, run_options, training, validation, notes, warnings, key, trained_on)
    processes = distributed.world_size()
    if processes > plan.batch_size:
        raise UsageError(
            f"{processes} processes share a batch of {counted(plan.batch_size, 'clip')} "
            f"(--batch-size, at most the number of training videos), expected at least one clip "
            f"for each process: raise --batch-size or start fewer processes"
        )
    return plan


def _with_rule(
    options: TrainOptions, manifest: Manifest, videos: Sequence[Video]
) -> tuple[TrainOptions, str]:
    """Return the options with the rule that `--labels auto` stands for, and the note about it."""
    if options.labels != "auto":
        return options, ""
    points = point_classes(annotated_actions(v for v in videos if v.subset == "training"))
    if not points:
        return replace(options, labels="strict"), ""
    names = class_names(points, manifest.classes)
    return replace(options, labels="overlap"), (
        f"labels overlap: the training actions of {names} have no length, and the rule strict "
        f"would give them no row"
    )


def _positive(clips: Sequence[Clip]) -> NDArray[np.bool_]:
    """Return (C,) which classes have a positive row."""
    positive: NDArray[np.bool_] = np.any([clip.labels.any(axis=0) for clip in clips], axis=0)
    return positive


def _class_warnings(manifest: Manifest, training: Sequence[Clip]) -> list[str]:
    """Return the warnings about classes that training shows nothing of."""
    shown = shown_classes(action for clip in training for action in clip.actions)
    listed = shown_classes(a for video in manifest.videos.values() for a in video.actions)
    found = {
        "no action in any video": set(range(len(manifest.classes))) - listed,
        "actions only where nothing is trained on": listed - shown,
        "no positive row in training": shown - set(np.flatnonzero(_positive(training))),
    }
    return [
        f"{counted(len(ids), 'class')} cannot be learnt ({why}): "
        f"{class_names(ids, manifest.classes)}"
        for why, ids in found.items()
        if ids
    ]


def _warnings(
    options: TrainOptions, training: list[Clip], missing: list[str], reason: str
) -> list[str]:
    """Return what a user should know before the run starts.

    Raises:
        UsageError: There are no validation clips, for the given reason, but the run needs them.
    """
    warnings = []
    if missing:
        skipped = counted(len(missing), "training or validation video")
        warnings.append(
            f"skipped {skipped} without features, or with features of a file that has changed, for "
            f"example {missing[0]}; see `mstemba status`"
        )
    if missed := sum(clip.missed for clip in training):
        actions = counted(sum(len(clip.actions) for clip in training), "training action")
        hint = " (with --labels overlap every action within the video has a row)"
        warnings.append(
            f"{missed} of {actions} without a positive row: between the starts of two rows, or "
            f"outside the video{'' if options.labels == 'overlap' else hint}"
        )
    if reason and options.schedule == "released":
        raise UsageError(
            "--schedule released needs validation videos, whose loss sets the learning rate, but "
            "there are none: mark some as `validation` in the manifest, raise --val-fraction, or "
            "use --schedule cosine"
        )
    if reason:
        warnings.append(f"{reason}: the last averaged weights are kept")
        if options.patience:
            warnings.append("--patience has no effect without validation videos")
    return warnings


def _split(
    options: TrainOptions, manifest: Manifest, clips: Sequence[Clip]
) -> tuple[list[Clip], list[Clip], str]:
    """Return the training clips, the validation clips, and the reason if validation is empty.

    If no validation clip has a positive row, validation is empty.
    """
    by_id = {clip.id: clip for clip in clips}
    parts = split_validation(manifest, [clip.video for clip in clips], options.val_fraction)
    training, validation = ([by_id[video.id] for video in part] for part in parts)
    if not any(clip.labels.any() for clip in training):
        hint = "" if options.labels == "overlap" else ", or pass --labels overlap"
        raise UsageError(
            f"no row of the training features falls into an action: check the times in the "
            f"manifest{hint}"
        )
    if any(clip.labels.any() for clip in validation):
        return training, validation, ""
    if validation and validation[0].video.subset == "validation":
        reason = (
            f"no row of the {counted(len(validation), 'video')} in the subset `validation` falls "
            f"into an action (not used)"
        )
    elif validation:
        order = {clip.id: place for place, clip in enumerate(clips)}
        reason = (
            f"no row of the {counted(len(validation), 'video')} held out for validation falls into "
            f"an action (used for training)"
        )
        training = sorted(training + validation, key=lambda clip: order[clip.id])
    elif options.val_fraction == 0:
        reason = "no videos are held out for validation, because of --val-fraction 0"
    else:
        reason = f"too few training videos ({len(training)}) to hold some out for validation"
    return training, [], reason


def _labels_key(clip: Clip) -> list[str | int]:
    """Return what a cache key holds of a clip's labels; of a part of a video also its rows."""
    labels = hashlib.sha256(np.packbits(clip.labels).tobytes()).hexdigest()
    return [labels] if clip.grid.count == clip.rows else [labels, clip.grid.count]
