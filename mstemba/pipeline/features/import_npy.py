"""The stage `import`: published .npy features to a store, with times and provenance."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from mstemba.data_manifests.manifest import Manifest, Video, load_manifest
from mstemba.errors import MstembaError, StoreError, UsageError
from mstemba.extractors import registry
from mstemba.pipeline.caching.files import as_local, as_path, as_paths
from mstemba.pipeline.caching.keys import Fingerprints, cache_key
from mstemba.pipeline.caching.locks import EntryLock, StoreLocks
from mstemba.pipeline.features.entry import IMPORTED
from mstemba.pipeline.features.npy_folder import NpyFolder
from mstemba.pipeline.features.row_times import even_rows
from mstemba.pipeline.features.spec import make_spec, store_name
from mstemba.pipeline.features.store import FeatureStore
from mstemba.pipeline.options import FeatureOptions, ImportOptions
from mstemba.pipeline.progress import Event, EventHandler, ignore_events
from mstemba.pipeline.workspace import (
    Workspace,
    find_workspace,
    remember_current,
    require_workspace,
)
from mstemba.reading.files import real_path
from mstemba.records import FeatureSpec, FloatArray, TimeGrid
from mstemba.wording import counted


@dataclass
class ImportResult:
    """The outcome of an import."""

    store: Path
    made: list[str] = field(default_factory=list)
    """Ids of the imported videos."""
    cached: list[str] = field(default_factory=list)
    """Ids of the videos that were imported before."""
    failed: dict[str, str] = field(default_factory=dict)
    """Reason by video id."""
    missing: list[str] = field(default_factory=list)
    """Videos of the manifest that have no features."""
    unknown: list[str] = field(default_factory=list)
    """Features of videos that are not in the manifest, which are ignored."""
    rows: int = 0
    seconds: float = 0.0


def import_features(
    folder: str | Path,
    options: ImportOptions | None = None,
    *,
    workspace: Workspace | str | Path | None = None,
    manifest: str | Path | None = None,
    store: str | Path | None = None,
    on_event: EventHandler = ignore_events,
) -> ImportResult:
    """Import a folder of `<video id>.npy` into a feature store.

    Rows are spread evenly over a video's duration in the manifest, unless a file of timestamps
    gives their times; without a duration they are `stride` frames apart, which requires `fps`. With
    a backbone the store says that it made the features, and a network trained on them can run on
    raw video; only their width is checked.
    Finished entries of unchanged files are skipped. Several processes may import into one store:
    each video is imported by one of them.

    Args:
        folder: Searched with its subfolders.
        options: Backbone, window, stride, frame rate and axes of the features.
        workspace: Default: the one around the current folder.
        manifest: Default: the workspace's.
        store: Where the features go. Default: a store in the workspace.
        on_event: Called with progress.

    Raises:
        StoreError: Two files belong to one video, or it is not clear which axis is time.
        UsageError: The options do not fit the features, or no file has the name of a video.
    """
    options = options or ImportOptions()
    workspace = find_workspace(workspace)
    manifest_file = as_local(manifest) or require_workspace(workspace, "--manifest").manifest
    videos = load_manifest(manifest_file)
    source = NpyFolder(as_paths(folder)[0], videos.videos.values(), options.transposed)
    for note in source.notes:
        on_event(Event("import", note))
    fingerprints = Fingerprints(workspace.fingerprints if workspace else None)
    spec, weights_file = _make_spec(source, options, fingerprints)
    root = as_path(store)
    if root is None:
        # The name of an unknown specification says nothing: the folder's name is of more use.
        name = store_name(spec) if spec.is_known else f"{real_path(source.root).name}.zarr"
        root = require_workspace(workspace, "--store").features / name
    target = FeatureStore.prepare(root, spec, weights_file)
    ids = set(source.ids())
    missing = [id for id in videos.videos if id not in ids]
    result = ImportResult(target.root, missing=missing, unknown=source.unused)
    _Importer(source, target, videos, fingerprints, options, on_event, result).run()
    fingerprints.save()
    if workspace is not None and root.parent == workspace.features and root.is_dir():
        remember_current(workspace.features, root.name)
    return result


def _make_spec(
    source: NpyFolder, options: ImportOptions, fingerprints: Fingerprints
) -> tuple[FeatureSpec, str | None]:
    """Return the specification of the features, and the backbone's weights file if it is local."""
    if options.backbone is None:
        return source.spec, None
    backbone = registry.resolve(options.backbone, options.model, options.weights, fingerprints.of)
    wanted = FeatureOptions(window=options.window, stride=options.stride, precision="float32")
    spec = make_spec(backbone, wanted)
    if source.spec.width != spec.width:
        raise UsageError(
            f"{source.root}: {source.spec.width} features a row, but {spec.backbone} {spec.model} "
            f"gives {spec.width}: pass the backbone that made them, or omit --backbone"
        )
    return spec, backbone.file


@dataclass
class _Importer:
    """The import of one command's arrays into a store."""

    source: NpyFolder
    target: FeatureStore
    manifest: Manifest
    fingerprints: Fingerprints
    options: ImportOptions
    on_event: EventHandler
    result: ImportResult

    def run(self) -> None:
        """Import every array that is not in the store; those that others import come last."""
        begin = time.perf_counter()
        self.target.sweep()
        locks = StoreLocks(self.target.root, "importing")
        held = [id for id in self.source.ids() if not self._import(id, locks.acquire)]
        for lock in locks.each(held, self._report):
            with lock:
                self._import(lock.id, lambda id, lock=lock: lock)  # type: ignore[misc]
        self.result.seconds = time.perf_counter() - begin

    def _import(self, id: str, acquire: Callable[[str], EntryLock | None]) -> bool:
        """Import an array, unless it is in the store; False if another process holds its entry."""
        result = self.result
        try:
            array = self._read(id)
            cached = self._is_cached(id, array.key, self._report)
            if not cached:
                if (lock := acquire(id)) is None:
                    return False
                with lock:
                    # By another process meanwhile.
                    cached = self._is_cached(id, array.key)
                    if not cached:
                        self._write(id, array)
            (result.cached if cached else result.made).append(id)
            result.rows += len(array.values)
        except MstembaError as error:
            result.failed[id] = str(error)
        done = len(result.cached) + len(result.made) + len(result.failed)
        self.on_event(Event("import", id, done, len(self.source.ids())))
        return True

    def _report(self, line: str) -> None:
        self.on_event(Event("import", line))

    def _is_cached(
        self, id: str, key: str, on_damage: Callable[[str], object] = lambda line: None
    ) -> bool:
        entry = self.target.find(id, on_damage)
        return entry is not None and entry.key == key

    def _read(self, id: str) -> _Array:
        source, manifest, spec = self.source, self.manifest, self.target.spec
        video, grid = manifest.videos[id], None
        file_key = source.key(video, self.fingerprints)  # before it is read, and confirmed after
        values = source.values(id)
        if manifest.time_unit == "seconds" and source.has_times(id):
            grid = source.timeline(video, manifest.time_unit)[1]
            video = replace(video, duration=video.duration or float(grid.ends[-1]))
        stride = spec.stride or self.options.stride
        times = _times(video, len(values), manifest, self.options.fps, stride)
        grid = grid or even_rows(times["duration"], len(values))
        key = cache_key(
            "features",
            spec=spec.as_dict(),
            array=file_key,
            step=grid.step,
            frames=times["frames"],
        )

        def confirm() -> None:
            if source.key(video, self.fingerprints) != file_key:
                raise StoreError(f"{id}: its features changed while they were imported; run again")

        return _Array(values, grid, times, key, confirm)

    def _write(self, id: str, array: _Array) -> None:
        writer = self.target.writer(id, array.key, IMPORTED, confirm=array.confirm)
        writer.append(array.values, array.grid.starts)
        facts = {"source": IMPORTED, "decoder": IMPORTED, "warnings": []}
        writer.finish(array.grid.step, **array.times, **facts)


@dataclass(frozen=True, eq=False)
class _Array:
    """The features of one file, with their times and their cache key."""

    values: FloatArray
    grid: TimeGrid
    times: dict[str, float]
    key: str
    confirm: Callable[[], None]
    """Raises StoreError if the file has changed since."""


def _times(
    video: Video, rows: int, manifest: Manifest, fps: float | None, stride: int | None
) -> dict[str, float]:
    """Return the duration in seconds, the frame rate, and the frames that a video's rows stand for.

    They follow from the duration in the manifest, or from the stride if it has none.
    """
    fps = fps or manifest.fps
    if manifest.time_unit == "seconds" and video.duration:
        # Only displayed, nothing is computed from it.
        rate = fps or (stride or 16) / (video.duration / rows)
        return {"duration": video.duration, "fps": rate, "frames": rate * video.duration}
    frames = video.duration or (stride * rows if stride else None)
    if not fps or not frames:
        missing = "--fps" if frames else "--stride and --fps" if not fps else "--stride"
        raise UsageError(
            f"{video.id}: the times of its {counted(rows, 'row')} are unknown, because the "
            f"manifest has {'no duration' if not video.duration else 'only its length in frames'}; "
            f"pass {missing}"
        )
    return {"duration": frames / fps, "fps": fps, "frames": frames}
