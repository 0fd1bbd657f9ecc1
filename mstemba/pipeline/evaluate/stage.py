"""The stage `evaluate`: a checkpoint, or a file of predictions, on a labelled subset."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mstemba.data_manifests.manifest import Action, Manifest, Video, load_manifest
from mstemba.errors import CheckpointError, UsageError
from mstemba.pipeline import recipes
from mstemba.pipeline.caching.files import as_local, as_path
from mstemba.pipeline.caching.keys import Fingerprints
from mstemba.pipeline.checkpoint import Checkpoint, find_checkpoint, open_released, score
from mstemba.pipeline.dataset.clips import load_clips, with_features
from mstemba.pipeline.devices import pick_device
from mstemba.pipeline.evaluate.evaluation import (
    FAMILIES,
    DenseMeasures,
    DetectionMeasures,
    Evaluation,
    LabelledVideo,
    MetricTable,
    segment_array,
)
from mstemba.pipeline.evaluate.metrics import SegmentArray
from mstemba.pipeline.evaluate.predictions import Predictions, read_predictions
from mstemba.pipeline.features.row_times import even_rows
from mstemba.pipeline.features.sources import FeatureSource, StoreFeatures, find_features
from mstemba.pipeline.options import EvaluateOptions
from mstemba.pipeline.progress import Event, EventHandler, ignore_events
from mstemba.pipeline.workspace import Workspace, find_workspace
from mstemba.records import TimeGrid

__all__ = ["Evaluation", "evaluate"]


def evaluate(
    options: EvaluateOptions | None = None,
    *,
    workspace: Workspace | str | Path | None = None,
    metrics: Sequence[str] = FAMILIES,
    on_event: EventHandler = ignore_events,
) -> Evaluation:
    """Measure a checkpoint on every video of the subset, whole, or a file of predictions.

    With `released` the checkpoint is a file of weights as the authors publish them, which is run as
    their code does: every video padded, or cut, to the clip length of the dataset's paper recipe.
    Raises UsageError when the subset is empty or has no features, when the file is not one of
    predictions for these videos and classes, and for an unknown family of measures;
    CheckpointError when the checkpoint was made for other classes or other features.
    """
    if unknown := [name for name in metrics if name not in FAMILIES]:
        raise UsageError(f"unknown metrics {unknown[0]!r}; there are {', '.join(FAMILIES)}")
    options = options or EvaluateOptions()
    workspace, source = find_workspace(workspace), as_path(options.features)
    listed, subject = find_inputs(workspace, options)
    stage = Stage(listed, options.subset, tuple(metrics), on_event)
    if isinstance(subject, Predictions) and subject.scores is None:
        return stage.segments(subject, source, workspace)
    return stage.measure(stage.score(subject, source, workspace, options.device))


def find_inputs(
    workspace: Workspace | None, options: EvaluateOptions
) -> tuple[Manifest, Checkpoint | Predictions]:
    """The manifest, and what is to be measured on it. Raises as `evaluate` does."""
    checkpoint, predictions = options.checkpoint, options.predictions
    found = None
    if (
        not options.released and predictions is None
    ):  # first: where there is no workspace, it says most
        found = find_checkpoint(as_local(checkpoint), workspace)
    listed = find_manifest(options.manifest, workspace)
    if found is not None:
        return listed, found
    if options.released:
        spec = find_features(as_path(options.features), workspace).spec
        length = recipes.clip_length(listed.dataset)
        return listed, open_released(Path(str(checkpoint)), listed.classes, spec, length)
    path = Path(str(as_local(predictions)))
    return listed, read_predictions(path, listed.classes, listed.videos.values())


def find_manifest(given: str | Path | None, workspace: Workspace | None) -> Manifest:
    """The manifest named, else the workspace's. Raises UsageError when there is none."""
    if given is None:
        if workspace is None:
            raise UsageError("no workspace here: give --manifest, or make one with `mstemba init`")
        given = workspace.manifest
    return load_manifest(Path(given))


@dataclass(frozen=True)
class Scored:
    """The videos of a subset with their dense scores: what `evaluate` measures, `report` draws."""

    videos: Sequence[LabelledVideo]
    scores: Sequence[NDArray[np.float32]]
    """(T, C) of every video."""
    where: str
    """The checkpoint's folder, or the file of predictions."""
    missing: list[str]
    """Videos of the subset without features, or without predictions."""
    time_unit: str
    """Of the videos' grids and actions."""


class Stage:
    """One call of `evaluate`, or the part of `report` that it shares: score, then measure."""

    def __init__(
        self, manifest: Manifest, subset: str, families: tuple[str, ...], on_event: EventHandler
    ) -> None:
        self.manifest = manifest
        self._subset, self._families, self._listen = subset, families, on_event

    def score(
        self,
        subject: Checkpoint | Predictions,
        features: Path | None,
        workspace: Workspace | None,
        device: str,
    ) -> Scored:
        """Dense scores of the subset's videos; predictions must hold them."""
        if isinstance(subject, Predictions):
            return self._predicted(subject, _given(features, workspace))
        return self._run(subject, features, workspace, device)

    def _run(
        self, found: Checkpoint, features: Path | None, workspace: Workspace | None, device: str
    ) -> Scored:
        """Run the checkpoint on every video of the subset that has features."""
        if self.manifest.classes != found.classes:
            raise CheckpointError(_class_difference(found, self.manifest.classes))
        source = _matching_features(found, features, workspace)
        if not found.spec.is_known:
            self._warn(
                f"it is not known how the features were made that {found.folder} needs: "
                f"of those in {source.root} only the width, {found.spec.width}, could be compared"
            )
        wanted = self._wanted()
        fingerprints = Fingerprints(workspace.fingerprints if workspace else None)
        videos, missing = with_features(source, wanted, fingerprints)
        if not videos:
            raise UsageError(
                f"subset {self._subset!r} has no video with features: run `mstemba extract`"
            )
        self._tell_missing(missing, len(wanted), "have no features and are left out")
        clips = load_clips(source, self.manifest, videos)
        if missed := sum(clip.missed for clip in clips):
            self._warn(
                f"{missed} of {sum(len(clip.actions) for clip in clips)} actions fall between two "
                f"rows, or outside the video, and make no row positive"
            )
        model = found.load(pick_device(device), self._listen)
        labelled, scores = [], []
        for number, clip in enumerate(clips, 1):
            scores.append(score(model, clip.features, found.released_length))
            labelled.append(self._labelled(clip.video, clip.actions, clip.grid, len(scores[-1])))
            self._listen(Event("evaluate", clip.id, number, len(clips), video=clip.id))
        return Scored(labelled, scores, str(found.folder), missing, self._unit(source))

    def _predicted(self, read: Predictions, source: FeatureSource | None) -> Scored:
        wanted, missing = self._told(read, "have no predictions and are left out")
        videos, scores = [], []
        for video in wanted:
            if read.scores and video.id in read.scores:
                scores.append(read.scores[video.id])
                videos.append(self._timed(video, len(scores[-1]), read, source))
        return Scored(videos, scores, str(read.path), missing, self._unit(source))

    def _told(self, read: Predictions, without: str) -> tuple[list[Video], list[str]]:
        """The videos of the subset, and those not predicted, after a word on what is odd."""
        for warning in read.warnings:
            self._warn(warning)
        wanted = self._wanted()
        self._check_ids(read, wanted)
        missing = [video.id for video in wanted if video.id not in set(read.ids)]
        self._tell_missing(missing, len(wanted), without)
        return wanted, missing

    def _wanted(self) -> list[Video]:
        """The videos of the subset. Raises UsageError when there are none."""
        wanted = self.manifest.subset(self._subset)
        if not wanted:
            counts = Counter(video.subset for video in self.manifest.videos.values())
            there = [f"{n} in {repr(name) if name else 'none'}" for name, n in counts.items()]
            raise UsageError(
                f"subset {self._subset!r} has no video: of the manifest's videos are "
                f"{', '.join(there)}; name one of its subsets, or mark videos in the manifest"
            )
        return wanted

    def _check_ids(self, read: Predictions, wanted: Sequence[Video]) -> None:
        """Tell of predictions that are of no video of the subset; an error if all of them are."""
        here = {video.id for video in wanted}
        others = [id for id in read.ids if id not in here]
        if len(others) == len(read.ids):
            example = f", for example {others[0]!r}" if others else ""
            raise UsageError(
                f"{read.path}: predictions of {len(others)} videos{example}, and none of them is "
                f"in subset {self._subset!r} of the manifest, which has {wanted[0].id!r}"
            )
        unknown = [id for id in others if id not in self.manifest.videos]
        if len(others) > len(unknown):
            self._warn(
                f"{len(others) - len(unknown)} predictions are of videos of other subsets, "
                f"and not measured"
            )
        if unknown:
            self._warn(
                f"{len(unknown)} predictions are of videos that the manifest does not have, "
                f"for example {unknown[0]!r}, and not measured"
            )

    def _timed(
        self, video: Video, rows: int, read: Predictions, source: FeatureSource | None
    ) -> LabelledVideo:
        """When the rows are: as those of the features, else evenly over the duration."""
        if source is not None:
            actions, grid = source.timeline(video, self.manifest.time_unit)
            if grid.count != rows:
                raise UsageError(
                    f"{read.path}: {rows} rows of {video.id!r}, its features in {source.root} have "
                    f"{grid.count}: leave --features out to spread the rows over the duration"
                )
            return self._labelled(video, actions, grid, rows)
        if not video.duration:
            raise UsageError(
                f"the manifest gives {video.id!r} no duration, so it is not known when the {rows} "
                f"rows in {read.path} are: add `duration`, or give --features"
            )
        return self._labelled(video, video.actions, even_rows(video.duration, rows), rows)

    def _labelled(
        self, video: Video, actions: Sequence[Action], grid: TimeGrid, rows: int
    ) -> LabelledVideo:
        """The video up to its last row that has scores: released code cuts long ones."""
        if rows < grid.count:
            grid = TimeGrid(grid.starts[:rows], grid.step)
            return LabelledVideo(video.id, actions, float(grid.ends[-1]), grid)
        # A manifest in frames has its durations in frames, which a store's grid is not in.
        known = video.duration if self.manifest.time_unit == "seconds" else None
        return LabelledVideo(video.id, actions, known or float(grid.ends[-1]), grid)

    def segments(
        self, read: Predictions, features: Path | None, workspace: Workspace | None
    ) -> Evaluation:
        """Measure predicted segments, which have no dense scores."""
        source = _given(features, workspace)
        wanted, missing = self._told(read, "have no segments: all actions are missed")
        if read.in_seconds and self._unit(source) != "seconds":
            raise UsageError(
                f"{read.path}: segments in seconds, and the manifest is in "
                f"{self.manifest.time_unit}: give --features, which tell one from the other"
            )
        videos = []
        for video in wanted:
            if source is not None:
                actions, grid = source.timeline(video, self.manifest.time_unit)
                videos.append(self._labelled(video, actions, grid, grid.count))
            else:
                videos.append(LabelledVideo(video.id, video.actions, video.duration or np.inf))
        found = segment_array(
            [
                (number, s.class_id, s.start, s.end, s.score)
                for number, video in enumerate(wanted)
                for s in (read.segments or {}).get(video.id, [])
            ]
        )
        self._check_times(read, found, np.array([video.duration for video in videos]))
        measures = DetectionMeasures(videos, found, len(self.manifest.classes))
        measured = measures.measure({"detection", *self._families})
        if not measured.positives.any():
            raise UsageError(f"subset {self._subset!r} has no action: nothing to measure")
        return self._result(measured, str(read.path), len(videos), 0, missing, self._unit(source))

    def _check_times(
        self, read: Predictions, found: SegmentArray, durations: NDArray[np.float64]
    ) -> None:
        late = int((found.start >= durations[found.video]).sum())
        if 2 * late > len(found):
            raise UsageError(
                f"{read.path}: {late} of {len(found)} segments begin after their video ends: "
                f"they seem to be in another time unit than {self.manifest.time_unit}"
            )
        if late:
            self._warn(f"{late} of {len(found)} segments begin after their video ends")

    def measure(self, scored: Scored) -> Evaluation:
        """The families of measures that were asked for."""
        classes = len(self.manifest.classes)
        measures = DenseMeasures(scored.videos, np.concatenate(scored.scores), classes)
        if not measures.any_positive:
            raise UsageError(
                f"no row of subset {self._subset!r} falls into an action: nothing to measure"
            )
        measured = measures.measure(self._families)
        return self._result(
            measured,
            scored.where,
            len(scored.videos),
            measures.rows,
            scored.missing,
            scored.time_unit,
        )

    def _result(
        self,
        measured: MetricTable,
        where: str,
        videos: int,
        rows: int,
        missing: list[str],
        unit: str,
    ) -> Evaluation:
        names = self.manifest.classes
        table = {
            name: {
                column: None if np.isnan(values[number]) else float(values[number])
                for column, values in measured.columns.items()
            }
            for number, name in enumerate(names)
        }
        return Evaluation(
            map=measured.metrics.get("frame", {}).get("map", float("nan")),
            per_class={name: row.get("ap") for name, row in table.items()},
            positives=dict(zip(names, measured.positives.tolist(), strict=True)),
            subset=self._subset,
            videos=videos,
            rows=rows,
            checkpoint=where,
            missing=tuple(missing),
            time_unit=unit,
            metrics=measured.metrics,
            classes=table,
        )

    def _unit(self, source: FeatureSource | None) -> str:
        """The time unit of the grids: a store's are in seconds."""
        return "seconds" if isinstance(source, StoreFeatures) else self.manifest.time_unit

    def _tell_missing(self, missing: Sequence[str], wanted: int, what: str) -> None:
        if missing:
            self._warn(f"{len(missing)} of {wanted} videos {what}, for example {missing[0]}")

    def _warn(self, message: str) -> None:
        self._listen(Event("evaluate", message, warning=True))


def _given(features: Path | None, workspace: Workspace | None) -> FeatureSource | None:
    """The features whose times are those of the predictions, where some are named."""
    return None if features is None else find_features(features, workspace)


def _matching_features(
    found: Checkpoint, given: Path | None, workspace: Workspace | None
) -> FeatureSource:
    """The features that the checkpoint was trained on."""
    source = find_features(given, workspace, found.spec)
    if difference := source.spec.differences(found.spec):
        raise CheckpointError(
            f"{found.folder} does not fit the features in {source.root}: they have {difference}. "
            f"Extract them as the checkpoint needs them, or train on these"
        )
    return source


def _class_difference(found: Checkpoint, classes: tuple[str, ...]) -> str:
    odd = sorted(set(found.classes) ^ set(classes))
    what = f"for example {odd[0]!r} is in one of them only" if odd else "their order differs"
    return (
        f"{found.folder} was trained for {len(found.classes)} classes, "
        f"the manifest has {len(classes)}: {what}. Train for these classes, or name the manifest "
        f"of those with --manifest"
    )
