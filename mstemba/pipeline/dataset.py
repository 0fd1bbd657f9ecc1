"""Feature store and manifest to clips: features with the labels of their rows."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mstemba.data_manifests.manifest import Action, Manifest, Video
from mstemba.errors import UsageError
from mstemba.pipeline.store import FeatureStore
from mstemba.records import TimeGrid

# Features are kept in memory up to this many bytes in all; a larger set is read again when needed.
MEMORY = 8 << 30


def label_matrix(actions: Sequence[Action], grid: TimeGrid, classes: int) -> NDArray[np.bool_]:
    """(T, C) labels: a row is positive for an action when its start lies strictly inside it.

    Times in seconds. The rule is the field's: start < time of the row < end.
    """
    labels = np.zeros((grid.count, classes), dtype=bool)
    for action in actions:
        first = np.searchsorted(grid.starts, action.start, side="right")
        after = np.searchsorted(grid.starts, action.end, side="left")
        labels[first:after, action.class_id] = True
    return labels


def in_seconds(video: Video, time_unit: str, fps: float) -> list[Action]:
    """The video's actions with times in seconds."""
    if time_unit == "seconds":
        return list(video.actions)
    return [Action(a.class_id, a.start / fps, a.end / fps) for a in video.actions]


@dataclass
class Clip:
    """One video: its labels, and its features on demand."""

    id: str
    labels: NDArray[np.bool_]
    """(T, C)"""
    _store: FeatureStore
    _values: NDArray[np.float32] | None

    @property
    def features(self) -> NDArray[np.float32]:
        """(T, F) float32."""
        if self._values is not None:
            return self._values
        return self._store.read(self.id).values.astype(np.float32, copy=False)


def load_clips(store: FeatureStore, manifest: Manifest, videos: Sequence[Video]) -> list[Clip]:
    """The clips of these videos. Raises StoreError naming the first one without features."""
    clips = []
    used = 0
    for video in videos:
        features = store.read(video.id)
        actions = in_seconds(video, manifest.time_unit, features.fps)
        labels = label_matrix(actions, features.grid, len(manifest.classes))
        values = features.values.astype(np.float32, copy=False)
        used += values.nbytes
        clips.append(Clip(video.id, labels, store, values if used <= MEMORY else None))
    return clips


def with_features(store: FeatureStore, videos: Sequence[Video]) -> tuple[list[Video], list[str]]:
    """The videos that have features in the store, and the ids of those that have not."""
    have = [video for video in videos if store.entry(video.id) is not None]
    return have, [video.id for video in videos if store.entry(video.id) is None]


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


def random_batch(
    clips: Sequence[Clip], step: int, batch_size: int, length: int, min_crop: float, seed: int
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]:
    """The batch of one step: random crops, padded at the end to the longest.

    A crop has `min_crop` to all of the rows that fit into `length`, at a random place.

    Videos come in a new random order every epoch. Everything is drawn from (seed, step) alone, so
    a resumed run draws what the killed one would have. Returns features (B, L, F), labels
    (B, L, C), and the mask of real rows (B, L).
    """
    epoch, slot = divmod(step * batch_size, len(clips))
    order = _order(len(clips), epoch, seed) + _order(len(clips), epoch + 1, seed)
    chosen = [clips[i] for i in order[slot : slot + batch_size]]
    rng = np.random.default_rng([seed, 1, step])
    crops = []
    for clip in chosen:
        rows = len(clip.labels)
        most = min(rows, length)
        count = int(rng.integers(max(1, round(min_crop * most)), most + 1))
        begin = int(rng.integers(0, rows - count + 1))
        window = slice(begin, begin + count)
        crops.append((clip.features[window], clip.labels[window]))
    longest = max(len(labels) for _, labels in crops)
    features = np.zeros((len(crops), longest, crops[0][0].shape[1]), np.float32)
    labels = np.zeros((len(crops), longest, crops[0][1].shape[1]), np.float32)
    mask = np.zeros((len(crops), longest), bool)
    for row, (values, truth) in enumerate(crops):
        features[row, : len(values)] = values
        labels[row, : len(values)] = truth
        mask[row, : len(values)] = True
    return features, labels, mask


def _order(count: int, epoch: int, seed: int) -> list[int]:
    order: list[int] = np.random.default_rng([seed, 0, epoch]).permutation(count).tolist()
    return order
