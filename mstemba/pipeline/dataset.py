"""Feature store and manifest to clips: features with the labels of their rows."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mstemba.data_manifests.manifest import Action, Manifest, Video
from mstemba.errors import UsageError
from mstemba.pipeline.keys import Fingerprints, entry_key
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


def in_seconds(video: Video, time_unit: str, grid: TimeGrid, frames_per_row: int) -> list[Action]:
    """The video's actions with times in seconds; frame numbers by the real times of the rows."""
    if time_unit == "seconds":
        return list(video.actions)
    frames = frames_per_row * np.arange(grid.count + 1)
    seconds = np.append(grid.starts, grid.ends[-1])
    per_frame = grid.step / frames_per_row

    def time(frame: float) -> float:
        beyond = max(0.0, frame - frames[-1])
        return float(np.interp(frame, frames, seconds) + beyond * per_frame)

    return [Action(a.class_id, time(a.start), time(a.end)) for a in video.actions]


class Clip:
    """One video: its labels, and its features when they are asked for."""

    def __init__(self, id: str, labels: NDArray[np.bool_], store: FeatureStore, keep: bool) -> None:
        self.id = id
        self.labels = labels
        """(T, C)"""
        self._store = store
        self._keep = keep
        self._values: NDArray[np.float32] | None = None

    @property
    def features(self) -> NDArray[np.float32]:
        """(T, F) float32. Raises StoreError when they are damaged."""
        if self._values is not None:
            return self._values
        values = self._store.read(self.id).values.astype(np.float32, copy=False)
        if self._keep:
            self._values = values
        return values


def load_clips(store: FeatureStore, manifest: Manifest, videos: Sequence[Video]) -> list[Clip]:
    """The clips of these videos. Raises StoreError naming the first one without features.

    The features themselves are read later, and kept if all of them fit into MEMORY.
    """
    spec = store.spec
    grids = {video.id: store.grid(video.id) for video in videos}
    rows = sum(grid.count for grid in grids.values())
    keep = rows * spec.width * np.dtype(np.float32).itemsize <= MEMORY
    clips = []
    for video in videos:
        grid = grids[video.id]
        actions = in_seconds(video, manifest.time_unit, grid, spec.stride * spec.every)
        labels = label_matrix(actions, grid, len(manifest.classes))
        clips.append(Clip(video.id, labels, store, keep))
    return clips


def with_features(
    store: FeatureStore, videos: Sequence[Video], fingerprints: Fingerprints
) -> tuple[list[Video], list[str]]:
    """The videos whose features are in the store, and the ids of those whose are not.

    Features of another file than the manifest's, or of its former content, do not count. A video
    whose file is gone keeps the features it has.
    """
    have, missing = [], []
    for video in videos:
        entry = store.entry(video.id)
        current = entry is not None and (
            video.path is None
            or not video.path.is_file()
            or entry["key"] == entry_key(store.spec, fingerprints.of(video.path))
        )
        if current:
            have.append(video)
        else:
            missing.append(video.id)
    fingerprints.save()
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
