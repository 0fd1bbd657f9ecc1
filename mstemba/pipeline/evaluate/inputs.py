"""What is measured: the videos of a subset, with scores or segments and the labels of the manifest.

The scores are those of a checkpoint, which is run here, or come from a file of predictions.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mstemba.data_manifests.manifest import SUBSETS, Video, load_manifest
from mstemba.errors import CheckpointError, UsageError
from mstemba.pipeline import recipes
from mstemba.pipeline.caching.files import as_local, as_path, as_paths
from mstemba.pipeline.caching.keys import Fingerprints
from mstemba.pipeline.checkpoint import (
    Checkpoint,
    find_checkpoint,
    open_released,
    score,
    short_key,
)
from mstemba.pipeline.dataset.annotated import (
    annotated_part,
    annotated_until,
    cut_actions,
    is_annotated_in_part,
    not_annotated,
)
from mstemba.pipeline.dataset.classes import (
    annotated_actions,
    class_names,
    point_classes,
    shown_classes,
)
from mstemba.pipeline.dataset.clips import load_clips, with_features
from mstemba.pipeline.dataset.labels import ANCHORS, label_matrix
from mstemba.pipeline.devices import pick_device
from mstemba.pipeline.evaluate.metric_groups import LabelledVideo, ScoredVideo
from mstemba.pipeline.evaluate.predictions import Predictions, read_predictions
from mstemba.pipeline.evaluate.segment_metrics import SegmentArray
from mstemba.pipeline.features.row_times import even_rows
from mstemba.pipeline.features.sources import FeatureSource, StoreFeatures, find_features
from mstemba.pipeline.options import EvaluateOptions
from mstemba.pipeline.progress import Event, EventHandler, report_import
from mstemba.pipeline.workspace import Workspace, require_workspace
from mstemba.records import FeatureSpec, TimeGrid
from mstemba.wording import counted


@dataclass(frozen=True)
class Inputs:
    """What is known of the videos to measure, apart from their scores or segments."""

    subset: str
    classes: tuple[str, ...]
    origin: str
    """The checkpoint's folder, or the file of predictions."""
    missing: list[str]
    """Ids of the subset's videos without features, or without predictions."""
    time_unit: str
    """Of all times below."""
    untrained: tuple[str, ...]
    """Names of the subset's classes that training has shown nothing of, as far as is known."""


@dataclass(frozen=True)
class ScoredSubset(Inputs):
    """The videos of a subset with dense scores."""

    videos: Sequence[ScoredVideo]
    rule: str
    """By which the rows are labelled: `strict` or `overlap`."""


@dataclass(frozen=True)
class DetectedSubset(Inputs):
    """The videos of a subset with predicted segments."""

    videos: Sequence[LabelledVideo]
    segments: SegmentArray
    """`segments.video` is an index into `videos`."""


class InputLoader:
    """Loads what the options of `evaluate` or `report` name."""

    def __init__(
        self, options: EvaluateOptions, workspace: Workspace | None, on_event: EventHandler
    ) -> None:
        """Open the manifest, and the checkpoint or the predictions.

        Raises:
            UsageError: There is no manifest, or the predictions cannot be read.
            CheckpointError: The checkpoint cannot be read.
        """
        self._options, self._workspace, self._on_event = options, workspace, on_event
        self._features = as_path(options.features)
        self.model: Checkpoint | Predictions
        """Where scores or segments come from."""
        predictions = as_local(options.predictions)
        if predictions is None and not options.released:
            # Before the manifest: without a workspace, its message says more.
            self.model = find_checkpoint(as_local(options.checkpoint), workspace)
        self.manifest = load_manifest(
            as_local(options.manifest) or require_workspace(workspace, "--manifest").manifest
        )
        classes, videos = self.manifest.classes, self.manifest.videos.values()
        self._points = point_classes(annotated_actions(videos))
        """Classes whose actions have no length: the rule `strict` could not measure them."""
        self._rule = "overlap" if self._points else "strict"
        if predictions is not None:
            self.model = read_predictions(predictions, classes, videos)
        elif options.released:
            report_import("evaluate", on_event)
            spec = find_features(self._features, workspace, videos=videos).spec
            rows = recipes.clip_length(self.manifest.dataset)
            self.model = open_released(as_paths(str(options.checkpoint))[0], classes, spec, rows)

    def load(self) -> ScoredSubset | DetectedSubset:
        """Return the videos of the subset with their scores, or their segments.

        Raises:
            UsageError: The subset is empty or has no features, or the predictions are not of its
                videos.
            CheckpointError: The checkpoint was made for other classes or other features.
        """
        if isinstance(self.model, Predictions) and self.model.scores is None:
            return self._load_segments(self.model)
        return self.load_scores()

    def load_scores(self) -> ScoredSubset:
        """Return the videos of the subset with their scores, as `load` does."""
        if self._points:
            self._warn(
                f"rows are labelled by the rule overlap, not by the field's rule strict, which "
                f"gives no row to the actions without length of "
                f"{class_names(self._points, self.manifest.classes)}"
            )
        if isinstance(self.model, Checkpoint):
            return self._run_checkpoint(self.model)
        return self._load_predictions(self.model)

    def _run_checkpoint(self, checkpoint: Checkpoint) -> ScoredSubset:
        """Run the checkpoint on every video of the subset that has features."""
        if self.manifest.classes != checkpoint.classes:
            raise _class_difference(checkpoint, self.manifest.classes)
        source = self._matching_features(checkpoint)
        subset = self._subset_videos()
        fingerprints = Fingerprints(self._workspace.fingerprints if self._workspace else None)
        found = with_features(source, subset, fingerprints)
        videos, missing = found.videos, found.missing
        for warning in found.warnings:
            self._warn(warning)
        if not videos:
            raise UsageError(
                f"no video of the subset {self._options.subset!r} has features in {source.root}: "
                f"run `mstemba extract`, or pass another subset with --subset"
            )
        self._warn_missing(missing, len(subset), "skipped because they have no features")
        keys = [short_key(source.key(video, fingerprints) or "") for video in videos]
        if used := sum(key in checkpoint.trained_on for key in keys):
            self._warn(
                f"the checkpoint was trained on {used} of {counted(len(videos), 'video')}: the "
                f"figures do not show how good it is on new ones"
            )
        elif not checkpoint.trained_on:
            self._warn_training_subset()
        clips = load_clips(source, self.manifest, videos, self._rule)
        self._warn_not_annotated(videos, {clip.id for clip in clips})
        if missed := sum(clip.missed for clip in clips):
            actions = counted(sum(len(clip.actions) for clip in clips), "action")
            self._warn(
                f"{missed} of {actions} without a positive row: between the starts of two rows, or "
                f"outside the video"
            )
        report_import("evaluate", self._on_event)
        anchor = ANCHORS[checkpoint.labels]
        network = checkpoint.load(pick_device(self._options.device), self._on_event)
        scored = []
        for number, clip in enumerate(clips, 1):
            # The whole video is scored; released code cuts long videos.
            scores = score(network, clip.whole_features, checkpoint.released_length)
            rows, grid = min(len(scores), clip.grid.count), clip.grid
            if rows < grid.count:
                grid = TimeGrid(grid.starts[:rows], grid.step)
            duration = self._duration(clip.video, grid, is_cut=rows < clip.rows)
            labels, scores = clip.labels[:rows], scores[:rows]
            video = ScoredVideo(clip.id, clip.actions, duration, grid, labels, scores, anchor)
            scored.append(video)
            self._on_event(Event("evaluate", clip.id, number, len(clips), video=clip.id))
        about = self._about(checkpoint.folder, missing, source)
        return ScoredSubset(**about, videos=scored, rule=self._rule)

    def _matching_features(self, checkpoint: Checkpoint) -> FeatureSource:
        """Return the features that the checkpoint was trained on."""
        source = self._open_features(checkpoint.spec)
        if difference := source.spec.differences(checkpoint.spec):
            raise CheckpointError(
                f"{checkpoint.folder} does not fit the features in {source.root}: they have "
                f"{difference}. Extract them as the checkpoint needs them, or train on these"
            )
        if not checkpoint.spec.is_known:
            self._warn(
                f"it is not known how the features were made that {checkpoint.folder} needs: of "
                f"those in {source.root} only the width, {checkpoint.spec.width}, could be compared"
            )
        return source

    def _load_predictions(self, predictions: Predictions) -> ScoredSubset:
        """Give the rows the times of the features, or spread them evenly over the duration."""
        source, path, tables = self._named_features(), predictions.path, predictions.scores or {}
        subset, missing = self._match_ids(predictions, "skipped because they have no predictions")
        scored = []
        predicted = [video for video in subset if video.id in tables]
        for video in predicted:
            scores = tables[video.id]
            rows = len(scores)
            if source is not None:
                actions, grid = source.timeline(video, self.manifest.time_unit)
                if grid.count != rows:
                    raise UsageError(
                        f"{path}: {counted(rows, 'row')} of {video.id!r}, but its features in "
                        f"{source.root} have {grid.count}. Omit --features to spread the rows "
                        f"over the duration"
                    )
            elif video.duration:
                actions, grid = list(video.actions), even_rows(video.duration, rows)
            else:
                raise UsageError(
                    f"the manifest gives {video.id!r} no duration, so the times of its "
                    f"{counted(rows, 'row')} "
                    f"in {path} are unknown: add `duration`, or pass --features"
                )
            until = annotated_until(video, self.manifest.time_unit, source)
            part = annotated_part(actions, grid, until)
            if part is None:
                continue
            actions, grid = part
            labels = label_matrix(actions, grid, len(self.manifest.classes), self._rule)
            duration, scores = self._duration(video, grid), scores[: grid.count]
            scored.append(ScoredVideo(video.id, actions, duration, grid, labels, scores))
        self._warn_not_annotated(predicted, {video.id for video in scored})
        about = self._about(path, missing, source)
        return ScoredSubset(**about, videos=scored, rule=self._rule)

    def _duration(self, video: Video, grid: TimeGrid, is_cut: bool = False) -> float:
        """Return the duration of what is measured of a video; the grid is that of its rows."""
        # A manifest in frames has its durations in frames, but the grid of a store is in seconds.
        is_whole = not is_cut and not is_annotated_in_part(video)
        known = video.duration if is_whole and self.manifest.time_unit == "seconds" else None
        return known or float(grid.ends[-1])

    def _load_segments(self, predictions: Predictions) -> DetectedSubset:
        source = self._named_features()
        wanted, missing = self._match_ids(
            predictions, "without segments: all their actions are missed"
        )
        about = self._about(predictions.path, missing, source)
        if predictions.in_seconds and about["time_unit"] != "seconds":
            raise UsageError(
                f"{predictions.path}: its segments are in seconds, but the manifest is in "
                f"{self.manifest.time_unit}. Pass --features, which relate the two"
            )
        unit, videos, rows, count, late = self.manifest.time_unit, [], [], 0, 0
        for number, video in enumerate(wanted):
            actions, duration = list(video.actions), video.duration or np.inf
            if source is not None:
                actions, grid = source.timeline(video, unit)
                duration = self._duration(video, grid)
            found = (predictions.segments or {}).get(video.id, [])
            count += len(found)
            late += sum(segment.start >= duration for segment in found)
            end = np.inf
            if (until := annotated_until(video, unit, source)) is not None:
                end, actions, duration = until, cut_actions(actions, until), min(duration, until)
            videos.append(LabelledVideo(video.id, actions, duration))
            rows += [
                (number, s.class_id, s.start, min(s.end, end), s.score)
                for s in found
                if s.start < end
            ]
        if 2 * late > count:
            raise UsageError(
                f"{predictions.path}: {late} of {counted(count, 'segment')} with a start after "
                f"the end of the video: the segments seem to be in another time unit than {unit}"
            )
        if late:
            self._warn(
                f"{late} of {counted(count, 'segment')} with a start after the end of the video"
            )
        return DetectedSubset(**about, videos=videos, segments=SegmentArray.from_rows(rows))

    def _named_features(self) -> FeatureSource | None:
        """Return the features that --features names: they say when the rows of predictions are."""
        return self._open_features() if self._features else None

    def _open_features(self, spec: FeatureSpec | None = None) -> FeatureSource:
        videos = self.manifest.videos.values()
        source = find_features(self._features, self._workspace, spec, videos)
        for note in source.notes:
            self._on_event(Event("evaluate", note))
        return source

    def _subset_videos(self) -> list[Video]:
        videos = self.manifest.subset(self._options.subset)
        if not videos:
            raise UsageError(
                f"no video is in the subset {self._options.subset!r}; videos by subset: "
                f"{self.manifest.describe_subsets()}. Pass one of these with --subset"
            )
        unused = self.manifest.describe_subsets(unused=True)
        if unused and self._options.subset in SUBSETS:
            message = f"subsets other than {', '.join(SUBSETS)} are not measured: {unused}"
            self._on_event(Event("evaluate", message))
        return videos

    def _match_ids(
        self, predictions: Predictions, consequence: str
    ) -> tuple[list[Video], list[str]]:
        """Return the videos of the subset and the ids of those without predictions.

        Warns of what does not fit, and raises UsageError when no prediction is of the subset.
        """
        for note in predictions.notes:
            self._on_event(Event("evaluate", note))
        for warning in predictions.warnings:
            self._warn(warning)
        self._warn_training_subset()
        videos = self._subset_videos()
        ids, predicted = {video.id for video in videos}, set(predictions.ids)
        others = [id for id in predictions.ids if id not in ids]
        if not ids & predicted:
            example = f", for example {others[0]!r}," if others else ""
            raise UsageError(
                f"{predictions.path}: none of its videos ({len(others)}){example} is in the subset "
                f"{self._options.subset!r} of the manifest, which has {videos[0].id!r}"
            )
        unknown = [id for id in others if id not in self.manifest.videos]
        if elsewhere := len(others) - len(unknown):
            self._warn(
                f"not measured: {counted(elsewhere, 'prediction')} for videos of other subsets"
            )
        if unknown:
            self._warn(
                f"not measured: {counted(len(unknown), 'prediction')} for videos that the manifest "
                f"does not have, for example {unknown[0]!r}"
            )
        missing = [video.id for video in videos if video.id not in predicted]
        self._warn_missing(missing, len(videos), consequence)
        return videos, missing

    def _about(
        self, origin: Path, missing: list[str], source: FeatureSource | None
    ) -> dict[str, Any]:
        """Return the fields of `Inputs`."""
        # The grids of a store are in seconds, also where the manifest is in frames.
        in_seconds = isinstance(source, StoreFeatures)
        return {
            "subset": self._options.subset,
            "classes": self.manifest.classes,
            "origin": str(origin),
            "missing": missing,
            "time_unit": "seconds" if in_seconds else self.manifest.time_unit,
            "untrained": self._untrained(),
        }

    def _untrained(self) -> tuple[str, ...]:
        """Return the classes of the subset that training has shown nothing of, and warn of them.

        A checkpoint knows them. Otherwise they are those without an action in the manifest's
        training videos, if any video has one; of released weights nothing is known.
        """
        classes, model = self.manifest.classes, self.model
        videos = self.manifest.subset(self._options.subset)
        measured = shown_classes(annotated_actions(videos))
        if isinstance(model, Checkpoint) and model.untrained is not None:
            found = {number for number in measured if classes[number] in model.untrained}
            lack = "a positive row in the training of this checkpoint"
        else:
            trained = shown_classes(annotated_actions(self.manifest.subset("training")))
            is_known = trained and not self._options.released
            found = measured - trained if is_known else set()
            lack = "an action in the training videos of the manifest"
        if found:
            self._warn(
                f"subset {self._options.subset!r} has {counted(len(found), 'class')} "
                f"without {lack}: {class_names(found, classes)}"
            )
        return tuple(classes[number] for number in sorted(found))

    def _warn_not_annotated(self, videos: Sequence[Video], used: Collection[str]) -> None:
        """Warn of the videos without an annotated row; raise UsageError if there are no others."""
        if without := [video.id for video in videos if video.id not in used]:
            message = not_annotated(without)
            if not used:
                raise UsageError(f"subset {self._options.subset!r}: {message}")
            self._warn(message)

    def _warn_training_subset(self) -> None:
        if self._options.subset == "training":
            self._warn(
                "these are training videos: the figures do not show how good a network is on new "
                "videos; measure those with --subset testing"
            )

    def _warn_missing(self, missing: Sequence[str], count: int, consequence: str) -> None:
        if missing:
            some = f"{len(missing)} of {counted(count, 'video')}"
            self._warn(f"{some} {consequence}, for example {missing[0]}")

    def _warn(self, message: str) -> None:
        self._on_event(Event("evaluate", message, warning=True))


def _class_difference(checkpoint: Checkpoint, classes: tuple[str, ...]) -> CheckpointError:
    odd = sorted(set(checkpoint.classes) ^ set(classes))
    what = f"for example {odd[0]!r} is in one of them only" if odd else "their order differs"
    return CheckpointError(
        f"{checkpoint.folder} was trained for {counted(len(checkpoint.classes), 'class')}, the "
        f"manifest has {len(classes)}: {what}. Train for these classes, or name the manifest of "
        f"those with --manifest"
    )
