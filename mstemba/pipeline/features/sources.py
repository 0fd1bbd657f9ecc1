"""Sources of features: a store that `extract` or `import` made, or a folder of .npy files."""

from __future__ import annotations

from collections import defaultdict
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mstemba.data_manifests.manifest import Action, Video
from mstemba.data_manifests.video_files import files_below
from mstemba.errors import StoreError, UsageError
from mstemba.pipeline.caching.files import remote
from mstemba.pipeline.caching.keys import Fingerprints, cache_key, entry_key
from mstemba.pipeline.features.row_times import even_rows, in_seconds
from mstemba.pipeline.features.spec import store_name
from mstemba.pipeline.features.store import FeatureStore, is_imported
from mstemba.pipeline.workspace import Workspace, get_current, require_workspace
from mstemba.records import FeatureSpec, TimeGrid


class FeatureSource(Protocol):
    """Features of many videos, all made by one specification."""

    root: Path

    @property
    def spec(self) -> FeatureSpec:
        """How the features were made."""

    @property
    def weights_file(self) -> str | None:
        """Path of the backbone's weights, if they were a local file."""

    def key(self, video: Video, fingerprints: Fingerprints) -> str | None:
        """Return the key of a video's features; None if it has none, or its file has changed."""

    def values(self, id: str) -> NDArray[np.float32]:
        """Return the features (T, F) of a video. Raises StoreError if missing or damaged."""

    def timeline(self, video: Video, time_unit: str) -> tuple[list[Action], TimeGrid]:
        """Return a video's actions and the times of its rows, in the same time unit.

        Args:
            video: Its actions are in `time_unit`.
            time_unit: `seconds` or `frames`.

        Raises:
            StoreError: The features are missing or damaged.
        """


class StoreFeatures:
    """The features in a store. Timelines are in seconds."""

    def __init__(self, store: FeatureStore) -> None:
        self.root, self.spec, self.weights_file = store.root, store.spec, store.weights_file
        self._store = store

    def key(self, video: Video, fingerprints: Fingerprints) -> str | None:
        entry = self._store.entry(video.id)
        if entry is None:
            return None
        key = str(entry["key"])
        if video.path is None or not video.path.is_file() or is_imported(entry):
            return key  # nothing to compare the features with
        try:
            return key if key == entry_key(self.spec, fingerprints.of(video.path)) else None
        except FileNotFoundError:
            return key  # a playlist whose pieces are gone

    def values(self, id: str) -> NDArray[np.float32]:
        return self._store.read(id).values.astype(np.float32, copy=False)

    def timeline(self, video: Video, time_unit: str) -> tuple[list[Action], TimeGrid]:
        grid = self._store.grid(video.id)
        entry = self._store.entry(video.id)
        if entry is not None and is_imported(entry):
            frames = np.arange(grid.count + 1) / (grid.count / entry["frames"])
        else:
            frames = self.spec.stride * self.spec.frame_step * np.arange(grid.count + 1)
        return in_seconds(video, time_unit, grid, frames), grid


class NpyFolder:
    """A folder with one `<video id>.npy` of shape (T, F), (T, 1, 1, F) or (1, T, F) for each video.

    This is how features are published. Rows are spread evenly over the video's duration in the
    manifest. Timelines are in the manifest's unit, which makes them exactly those of the authors.
    """

    weights_file = None

    def __init__(self, root: Path) -> None:
        self.root = root
        found = defaultdict(list)
        for file in files_below(root, lambda f: f.suffix == ".npy" and not f.name.startswith(".")):
            found[file.stem].append(file)
        if not found:
            raise StoreError(f"{root}: neither a feature store nor a folder of .npy files")
        if twice := [files for files in found.values() if len(files) > 1]:
            raise StoreError(
                f"{root}: {twice[0][0]} and {twice[0][1]} belong to the same video; "
                f"expected one file for each video"
            )
        self._files = {id: files[0] for id, files in found.items()}

    @cached_property
    def spec(self) -> FeatureSpec:
        return FeatureSpec.unknown(self._open(next(iter(self._files))).shape[-1])

    def ids(self) -> list[str]:
        """Return the ids of the videos that have features."""
        return list(self._files)

    def bytes_of(self, id: str) -> int | None:
        """Return the size of a video's file; None if it has none."""
        return self._files[id].stat().st_size if id in self._files else None

    def key(self, video: Video, fingerprints: Fingerprints) -> str | None:
        if video.id not in self._files:
            return None
        return cache_key("features", array=fingerprints.of(self._files[video.id]))

    def values(self, id: str) -> NDArray[np.float32]:
        values = np.array(self._open(id), np.float32)
        if values.shape[1] != self.spec.width:
            raise StoreError(
                f"{self._files[id]}: {values.shape[1]} features a row, but the other files have "
                f"{self.spec.width}"
            )
        if not np.isfinite(values).all():
            raise StoreError(f"{self._files[id]}: contains NaN or infinity")
        return values

    def timeline(self, video: Video, time_unit: str) -> tuple[list[Action], TimeGrid]:
        rows = len(self._open(video.id))
        if not video.duration:
            raise StoreError(
                f"{self._files[video.id]}: the manifest gives {video.id!r} no duration, so it is "
                f"not known when these {rows} rows are; add `duration` (in {time_unit}), or use "
                f"`mstemba import --fps FPS --stride STRIDE`"
            )
        return list(video.actions), even_rows(video.duration, rows)

    def _open(self, id: str) -> NDArray[np.floating]:
        """Return an array as (T, F), which is read when it is used."""
        if id not in self._files:
            raise StoreError(f"{self.root}: no features of {id!r}, expected {id}.npy")
        file = self._files[id]
        try:
            array: NDArray[np.floating] = np.load(file, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise StoreError(f"{file}: not readable as an array: {error}") from None
        # Lengths of 1 between, or a single one before, are left out.
        shape = array.shape
        if len(shape) == 3 and shape[0] == 1 and shape[1] > 1:
            shape = shape[1:]
        if len(shape) < 2 or set(shape[1:-1]) - {1} or not array.size or array.dtype.kind != "f":
            raise StoreError(
                f"{file}: found {array.dtype} of shape {array.shape}, expected floating-point "
                f"numbers of shape (T, F) or (T, 1, 1, F)"
            )
        return array.reshape(shape[0], shape[-1])


def open_features(root: Path) -> FeatureSource:
    """Open the features at a path. Raises StoreError if there are none."""
    if not remote(root) and root.is_dir() and not (root / "zarr.json").exists():
        return NpyFolder(root)
    return StoreFeatures(FeatureStore.open(root))


def find_features(
    given: Path | None, workspace: Workspace | None, spec: FeatureSpec | None = None
) -> FeatureSource:
    """Open the features that a command uses.

    Args:
        given: A store or a folder of .npy files.
        workspace: Without `given`, its features are used: those of its last `extract`, `import` or
            `init`.
        spec: What a checkpoint needs. Without `given`, only features that have it are used.

    Raises:
        UsageError: Nothing is given and the workspace has no such features.
        StoreError: There are no features at the path.
    """
    if given is not None:
        return open_features(given)
    workspace = require_workspace(workspace, "--features")
    current = get_current(workspace.features)
    if current is not None:
        source = open_features(current)
        if spec is None or source.spec == spec:
            return source
    if spec is None:
        raise UsageError(
            "no features in this workspace yet: run `mstemba extract`, or pass --features"
        )
    if not spec.is_known:
        raise UsageError(
            "the checkpoint was trained on published features, which are not the workspace's "
            "current ones: pass them with --features"
        )
    return open_features(workspace.features / store_name(spec))
