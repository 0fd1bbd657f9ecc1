"""Combine features and manifest into clips: feature rows with their labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mstemba.data_manifests.manifest import Action, Manifest, Video
from mstemba.data_manifests.splits import id_hash
from mstemba.errors import StoreError, UsageError
from mstemba.pipeline.caching.keys import Fingerprints
from mstemba.pipeline.dataset.annotated import annotated_part, annotated_until
from mstemba.pipeline.dataset.labels import count_missed, label_matrix
from mstemba.pipeline.features.entry import DamagedEntry
from mstemba.pipeline.features.sources import FeatureSource
from mstemba.records import TimeGrid
from mstemba.wording import counted

# Features are kept in memory up to this many bytes in all; a larger set is read again when needed.
MEMORY = 8 << 30


@dataclass(eq=False)
class Clip:
    """The annotated part of a video: actions, labels of rows, features when they are asked for."""

    video: Video
    actions: Sequence[Action]
    """In the time unit of the grid."""
    grid: TimeGrid
    """Of the T annotated rows."""
    rows: int
    """Rows of the whole video."""
    labels: NDArray[np.bool_]
    """(T, C)"""
    missed: int
    """Actions without a positive row."""
    source: FeatureSource
    keep_features: bool = True
    """Whether features stay in memory once they are read."""
    _features: NDArray[np.float32] | None = field(default=None, init=False, repr=False)

    @property
    def id(self) -> str:
        return self.video.id

    @property
    def features(self) -> NDArray[np.float32]:
        """(T, F) float32. Raises StoreError when they are damaged."""
        values = self.whole_features
        return values[: self.grid.count] if self.grid.count < self.rows else values

    @property
    def whole_features(self) -> NDArray[np.float32]:
        """(rows, F) float32, the whole video. Raises StoreError when they are damaged."""
        if self._features is not None:
            return self._features
        values = self.source.values(self.id)
        if len(values) != self.rows:
            raise StoreError(
                f"{self.source.root}: {counted(len(values), 'row')} of {self.id!r}, expected "
                f"{self.rows}; did it change just now?"
            )
        if self.keep_features:
            self._features = values
        return values


def load_clips(
    source: FeatureSource, manifest: Manifest, videos: Sequence[Video], rule: str = "strict"
) -> list[Clip]:
    """Return the clips of these videos, labelled by the rule `strict` or `overlap`.

    A clip is the annotated part of its video. Videos without a row in that part have no clip. The
    features themselves are read later, and stay in memory if all of them fit into MEMORY.

    Raises:
        StoreError: A video has no features; the message names the first one.
    """
    unit, classes = manifest.time_unit, len(manifest.classes)
    timelines = [source.timeline(video, unit) for video in videos]
    row_bytes = source.spec.width * np.dtype(np.float32).itemsize
    keep = sum(grid.count for _, grid in timelines) * row_bytes <= MEMORY
    clips = []
    for video, (listed, whole) in zip(videos, timelines, strict=True):
        if part := annotated_part(listed, whole, annotated_until(video, unit, source)):
            actions, grid = part
            labels = label_matrix(actions, grid, classes, rule)
            missed = count_missed(actions, grid, rule)
            clips.append(Clip(video, actions, grid, whole.count, labels, missed, source, keep))
    return clips


@dataclass(frozen=True)
class FoundFeatures:
    """Which videos have features."""

    videos: list[Video]
    """Those that do."""
    missing: list[str]
    """Ids of those that do not."""
    damaged: list[str]
    """What is damaged, a line for each video; their ids are in `missing`, too."""

    @property
    def warnings(self) -> list[str]:
        """What a user should know about damaged features."""
        if not self.damaged:
            return []
        return [
            f"skipped {counted(len(self.damaged), 'video')} with damaged features, for example "
            f"{self.damaged[0]}"
        ]


def with_features(
    source: FeatureSource, videos: Sequence[Video], fingerprints: Fingerprints
) -> FoundFeatures:
    """Return the videos that have features, and those that have none.

    Features of another file than the manifest's, or of its former content, do not count, and
    neither do damaged ones. A video whose file is gone keeps the features it has.
    """
    have, missing, damaged = [], [], []
    for video in videos:
        try:
            key = source.key(video, fingerprints)
        except DamagedEntry as error:
            key = None
            damaged.append(str(error))
        if key is None:
            missing.append(video.id)
        else:
            have.append(video)
    fingerprints.save()
    return FoundFeatures(have, missing, damaged)


def split_validation(
    manifest: Manifest, videos: Sequence[Video], fraction: float
) -> tuple[list[Video], list[Video]]:
    """Return the videos to train on and those to validate with.

    The validation videos are the manifest's own subset if it has one, otherwise `fraction` of the
    training videos: the same ones on every machine, because a hash of their ids chooses them. With
    fewer than two to hold out or to keep there are none. The test subset is never touched.

    Raises:
        UsageError: No video of the training subset has features.
    """
    training = [v for v in videos if v.subset == "training"]
    validation = [v for v in videos if v.subset == "validation"]
    if not training:
        count = len(manifest.subset("training"))
        raise UsageError(
            f"none of the videos in the subset `training` ({count}) has features: run "
            f"`mstemba extract`, and `mstemba status` to see which videos failed"
        )
    if validation or fraction == 0:
        return training, validation
    count = round(fraction * len(training))
    if min(count, len(training) - count) < 2:
        return training, []
    by_hash = sorted(training, key=lambda v: id_hash(v.id))
    held_out = {v.id for v in by_hash[:count]}
    return (
        [v for v in training if v.id not in held_out],
        [v for v in training if v.id in held_out],
    )
