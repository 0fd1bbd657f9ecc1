"""Sources of features: a store that `extract` or `import` made, or a folder of .npy files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mstemba.data_manifests.manifest import Action, Video
from mstemba.errors import StoreError, UsageError
from mstemba.pipeline.caching.files import remote
from mstemba.pipeline.caching.keys import Fingerprints, entry_key
from mstemba.pipeline.features.npy_folder import NpyFolder
from mstemba.pipeline.features.row_times import in_seconds
from mstemba.pipeline.features.spec import store_name
from mstemba.pipeline.features.store import FeatureStore
from mstemba.pipeline.features.store_files import METADATA, lacks_metadata
from mstemba.pipeline.workspace import Workspace, get_current, given_transposed, require_workspace
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

    @property
    def notes(self) -> Sequence[str]:
        """What a user should know about how the features are read, one line each."""

    def key(self, video: Video, fingerprints: Fingerprints) -> str | None:
        """Return the key of a video's features; None if it has none, or its file has changed.

        Raises DamagedEntry if they are damaged.
        """

    def values(self, id: str) -> NDArray[np.float32]:
        """Return the features (T, F) of a video.

        Raises StoreError if they are missing or damaged, or no longer have the key that `key` gave.
        """

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

    notes = ()

    def __init__(self, store: FeatureStore) -> None:
        self.root, self.spec, self.weights_file = store.root, store.spec, store.weights_file
        self._store = store
        self._keys: dict[str, str] = {}
        """Keys that were asked for, by video id."""

    def key(self, video: Video, fingerprints: Fingerprints) -> str | None:
        entry = self._store.entry(video.id)
        if entry is None:
            return None
        self._keys[video.id] = entry.key
        if video.path is None or entry.is_imported:
            return entry.key  # nothing to compare the features with
        try:
            fingerprint = fingerprints.of(video.path)
        except UsageError:
            return entry.key  # the video is gone, or cannot be read
        return entry.key if entry.key == entry_key(self.spec, fingerprint) else None

    def values(self, id: str) -> NDArray[np.float32]:
        features = self._store.read(id)
        if features.key != self._keys.get(id, features.key):
            raise StoreError(
                f"{self.root}: the features of {id!r} have just been replaced by those of another "
                f"file or other content; run the same command again"
            )
        return features.values.astype(np.float32, copy=False)

    def timeline(self, video: Video, time_unit: str) -> tuple[list[Action], TimeGrid]:
        entry = self._store.finished(video.id)
        grid = entry.grid
        if entry.is_imported:
            frames = np.arange(grid.count + 1) / (grid.count / entry.frames)
        else:
            frames = np.arange(grid.count + 1.0) * (self.spec.stride * self.spec.frame_step)
        return in_seconds(video, time_unit, grid, frames), grid


def open_features(
    root: Path,
    videos: Iterable[Video] | None = None,
    workspace: Workspace | None = None,
    transposed: bool | None = None,
) -> FeatureSource:
    """Open the features at a path.

    Args:
        root: A store or a folder of .npy files.
        videos: Those of the manifest, after which .npy files are named; see `NpyFolder`.
        workspace: It knows whether the arrays of its own folder are (F, T), if that was given.
        transposed: Whether the arrays in a folder are (F, T).

    Raises:
        StoreError: There are no features.
        UsageError: No file of the folder belongs to a video, or `transposed` is for a store.
    """
    if not remote(root) and root.is_dir() and not (root / METADATA).exists():
        if lacks_metadata(root):
            raise StoreError(
                f"{root}: a feature store without its {METADATA}; `mstemba extract` (or "
                f"`mstemba import`) makes it again"
            )
        if transposed is None and workspace is not None:
            transposed = given_transposed(workspace.features, root)
        return NpyFolder(root, videos, transposed)
    if transposed is not None:
        raise UsageError(f"{root}: --transposed is for a folder of .npy files")
    return StoreFeatures(FeatureStore.open(root))


def find_features(
    given: Path | None,
    workspace: Workspace | None,
    spec: FeatureSpec | None = None,
    videos: Iterable[Video] | None = None,
) -> FeatureSource:
    """Open the features that a command uses.

    Args:
        given: A store or a folder of .npy files.
        workspace: Without `given`, its features are used: those of its last `extract`, `import` or
            `init`.
        spec: What a checkpoint needs. Without `given`, only features that have it are used.
        videos: Those of the manifest, after which .npy files are named.

    Raises:
        UsageError: Nothing is given and the workspace has no such features, or no .npy file
            belongs to a video.
        StoreError: There are no features at the path.
    """
    if given is not None:
        return open_features(given, videos, workspace)
    workspace = require_workspace(workspace, "--features")
    current = get_current(workspace.features)
    if current is not None:
        source = open_features(current, videos, workspace)
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
