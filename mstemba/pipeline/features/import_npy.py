"""The stage `import`: published .npy features to a store, with times and provenance."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from mstemba.data_manifests.manifest import Manifest, Video, load_manifest
from mstemba.errors import MstembaError, UsageError
from mstemba.extractors import registry
from mstemba.pipeline.caching.files import as_local, as_path, as_paths
from mstemba.pipeline.caching.keys import Fingerprints, cache_key
from mstemba.pipeline.features.npy_folder import NpyFolder
from mstemba.pipeline.features.row_times import even_rows
from mstemba.pipeline.features.spec import make_spec, store_name
from mstemba.pipeline.features.store import IMPORTED, FeatureStore
from mstemba.pipeline.options import FeatureOptions, ImportOptions
from mstemba.pipeline.progress import Event, EventHandler, ignore_events
from mstemba.pipeline.workspace import Workspace, find_workspace, require_workspace, set_current
from mstemba.records import FeatureSpec
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
    Finished entries of unchanged files are skipped.

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
        name = store_name(spec) if spec.is_known else f"{source.root.resolve().name}.zarr"
        root = require_workspace(workspace, "--store").features / name
    target = FeatureStore.prepare(root, spec, weights_file)
    result = _import_all(source, target, videos, fingerprints, options, on_event)
    fingerprints.save()
    if workspace is not None and root.parent == workspace.features and root.is_dir():
        set_current(workspace.features, root.name)
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


def _import_all(
    source: NpyFolder,
    target: FeatureStore,
    manifest: Manifest,
    fingerprints: Fingerprints,
    options: ImportOptions,
    on_event: EventHandler,
) -> ImportResult:
    begin = time.perf_counter()
    known, spec = [manifest.videos[id] for id in source.ids()], target.spec
    missing = [id for id in manifest.videos if id not in set(source.ids())]
    result = ImportResult(target.root, missing=missing, unknown=source.unused)
    for number, video in enumerate(known, 1):
        try:
            values = source.values(video.id)
            grid = None
            if manifest.time_unit == "seconds" and source.has_times(video.id):
                grid = source.timeline(video, manifest.time_unit)[1]
                video = replace(video, duration=video.duration or float(grid.ends[-1]))
            times = _times(video, len(values), manifest, options.fps, spec.stride or options.stride)
            grid = grid or even_rows(times["duration"], len(values))
            key = cache_key(
                "features",
                spec=spec.as_dict(),
                array=source.key(video, fingerprints),
                step=grid.step,
                frames=times["frames"],
            )
            result.rows += len(values)
            entry = target.entry(video.id)
            if entry is not None and entry["key"] == key:
                result.cached.append(video.id)
            else:
                writer = target.writer(video.id, key, IMPORTED)
                writer.append(values, grid.starts)
                facts = {"source": IMPORTED, "decoder": IMPORTED, "warnings": []}
                writer.finish(grid.step, **times, **facts)
                result.made.append(video.id)
        except MstembaError as error:
            result.failed[video.id] = str(error)
        on_event(Event("import", video.id, number, len(known)))
    result.seconds = time.perf_counter() - begin
    return result


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
