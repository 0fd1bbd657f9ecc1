"""Features and manifest to clips: features with the labels of their rows."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mstemba.data_manifests.manifest import Action, Manifest, Video
from mstemba.errors import StoreError, UsageError
from mstemba.pipeline.caching.keys import Fingerprints
from mstemba.pipeline.dataset.labels import Labels, build_labels
from mstemba.pipeline.features.sources import FeatureSource
from mstemba.records import TimeGrid

# Features are kept in memory up to this many bytes in all; a larger set is read again when needed.
MEMORY = 8 << 30


class Clip:
    """One video: its actions, its labels, and its features when they are asked for."""

    def __init__(
        self,
        video: Video,
        actions: Sequence[Action],
        grid: TimeGrid,
        labels: tuple[Labels, int],
        source: FeatureSource,
        keep: bool,
    ) -> None:
        self.video = video
        self.actions = actions
        """In the time unit of the grid."""
        self.grid = grid
        self._labels, self._number = labels
        self._source, self._keep = source, keep
        self._values: NDArray[np.float32] | None = None

    @property
    def id(self) -> str:
        return self.video.id

    @property
    def labels(self) -> NDArray[np.bool_]:
        """(T, C), unpacked anew."""
        return self._labels.matrix(self._number)

    @property
    def missed(self) -> int:
        """Actions without a positive row."""
        return self._labels.missed(self._number)

    @property
    def features(self) -> NDArray[np.float32]:
        """(T, F) float32. Raises StoreError when they are damaged."""
        if self._values is not None:
            return self._values
        values = self._source.values(self.id)
        if len(values) != self.grid.count:
            raise StoreError(
                f"{self._source.root}: {len(values)} rows of {self.id!r}, expected "
                f"{self.grid.count}; did it change just now?"
            )
        if self._keep:
            self._values = values
        return values


def load_clips(
    source: FeatureSource, manifest: Manifest, videos: Sequence[Video], rule: str = "strict"
) -> list[Clip]:
    """The clips of these videos, labelled by one of `labels.RULES`.

    Raises StoreError naming the first one without features. The features themselves are read
    later, and kept if all of them fit into MEMORY.
    """
    lines = [source.timeline(video, manifest.time_unit) for video in videos]
    classes = len(manifest.classes)
    labels = build_labels([a for a, _ in lines], [grid for _, grid in lines], classes, rule)
    keep = int(labels.offsets[-1]) * source.spec.width * np.dtype(np.float32).itemsize <= MEMORY
    return [
        Clip(video, actions, grid, (labels, i), source, keep)
        for i, (video, (actions, grid)) in enumerate(zip(videos, lines, strict=True))
    ]


def with_features(
    source: FeatureSource, videos: Sequence[Video], fingerprints: Fingerprints
) -> tuple[list[Video], list[str]]:
    """The videos whose features are there, and the ids of those whose are not.

    Features of another file than the manifest's, or of its former content, do not count. A video
    whose file is gone keeps the features it has.
    """
    keys = {video.id: source.key(video, fingerprints) for video in videos}
    fingerprints.save()
    have = [video for video in videos if keys[video.id] is not None]
    missing = [id for id, key in keys.items() if key is None]
    return have, missing


def split_validation(
    manifest: Manifest, videos: Sequence[Video], fraction: float
) -> tuple[list[Video], list[Video]]:
    """(training, validation) videos.

    The manifest's own validation subset if it has one; else `fraction` of the training videos, the
    same ones on every machine because they are chosen by a hash of their ids. Fewer than two to
    hold out or to keep leaves the validation empty. The test subset is never touched.
    """
    training = [v for v in videos if v.subset == "training"]
    validation = [v for v in videos if v.subset == "validation"]
    if not training:
        raise UsageError(
            "no training video has features: mark videos with subset `training` and extract them"
        )
    if validation or fraction == 0:
        return training, validation
    count = round(fraction * len(training))
    if min(count, len(training) - count) < 2:
        return training, []
    by_hash = sorted(training, key=lambda v: hashlib.sha256(v.id.encode()).hexdigest())
    held_out = {v.id for v in by_hash[:count]}
    return (
        [v for v in training if v.id not in held_out],
        [v for v in training if v.id in held_out],
    )
