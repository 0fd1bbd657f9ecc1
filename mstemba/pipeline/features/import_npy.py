"""Published features to a store: .npy files with, from now on, their times and their origin."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from mstemba.data_manifests.manifest import Manifest, Video, load_manifest
from mstemba.errors import MstembaError, UsageError
from mstemba.extractors import registry
from mstemba.pipeline.caching.files import as_local, as_path
from mstemba.pipeline.caching.keys import Fingerprints, cache_key
from mstemba.pipeline.features.row_times import even_rows
from mstemba.pipeline.features.sources import NpyFolder
from mstemba.pipeline.features.spec import make_spec, store_name
from mstemba.pipeline.features.store import FeatureStore
from mstemba.pipeline.options import FeatureOptions, ImportOptions
from mstemba.pipeline.progress import Event, EventHandler, ignore_events
from mstemba.pipeline.workspace import Workspace, find_workspace, set_current
from mstemba.records import FeatureSpec, TimeGrid


@dataclass
class ImportResult:
    """What an import did."""

    store: Path
    made: list[str] = field(default_factory=list)
    cached: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    """Reason by video id."""
    missing: list[str] = field(default_factory=list)
    """Videos of the manifest for which there is no file of features."""
    unknown: list[str] = field(default_factory=list)
    """Features of videos that are not in the manifest; they are left out."""
    rows: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class _Times:
    """When the rows of a video are, and how many frames they stand for."""

    grid: TimeGrid
    duration: float
    fps: float
    frames: float


def import_features(
    folder: str | Path,
    options: ImportOptions | None = None,
    *,
    workspace: Workspace | str | Path | None = None,
    manifest: str | Path | None = None,
    store: str | Path | None = None,
    on_event: EventHandler = ignore_events,
) -> ImportResult:
    """Bring a folder of `<video id>.npy` into a store that has everything a store has.

    Rows are spread evenly over the manifest's duration of a video; where it has none, they are
    `stride` frames apart, which needs `fps`. With a backbone the store says that the features
    came from it, and a network trained on them can run on raw video; nothing checks that it is
    true, but the width. Finished entries of unchanged files are left alone. Raises UsageError for
    options that do not fit.
    """
    options = options or ImportOptions()
    workspace = find_workspace(workspace)
    if manifest is None and workspace is None:
        raise UsageError("no workspace here: give --manifest, or make one with `mstemba init`")
    labels = load_manifest(as_local(manifest) or workspace.manifest)  # type: ignore[union-attr]
    source = NpyFolder(Path(folder))
    fingerprints = Fingerprints(workspace.fingerprints if workspace else None)
    spec, file = _specification(source, options, fingerprints)
    root = as_path(store)
    if root is None:
        if workspace is None:
            raise UsageError("no workspace here: say where the features go with --store")
        # Without a backbone a specification says next to nothing: the folder's name is of more use.
        name = store_name(spec) if options.backbone else f"{source.root.resolve().name}.zarr"
        root = workspace.features / name
    target = FeatureStore.prepare(root, spec, file)
    rate = options.fps, spec.stride or options.stride
    result = _import_all(source, target, labels, fingerprints, rate, on_event)
    if workspace is not None and root.parent == workspace.features and root.is_dir():
        set_current(workspace.features, root.name)
    return result


def _specification(
    source: NpyFolder, options: ImportOptions, fingerprints: Fingerprints
) -> tuple[FeatureSpec, str | None]:
    """What the features are, and the local file of the backbone's weights if there is one."""
    if options.backbone is None:
        return source.spec, None
    backbone = registry.resolve(options.backbone, options.model, options.weights, fingerprints.of)
    wanted = FeatureOptions(window=options.window, stride=options.stride, precision="float32")
    spec = make_spec(backbone, wanted)
    _check_width(source, spec)
    return spec, backbone.file


def _check_width(source: NpyFolder, spec: FeatureSpec) -> None:
    if source.spec.width != spec.width:
        raise UsageError(
            f"{source.root}: {source.spec.width} features a row, {spec.backbone} {spec.model} "
            f"gives {spec.width}: name the backbone they came from, or none"
        )


def _import_all(
    source: NpyFolder,
    target: FeatureStore,
    manifest: Manifest,
    fingerprints: Fingerprints,
    rate: tuple[float | None, int | None],
    on_event: EventHandler,
) -> ImportResult:
    begin = time.perf_counter()
    ids = source.ids()
    result = ImportResult(
        target.root,
        missing=[id for id in manifest.videos if id not in set(ids)],
        unknown=[id for id in ids if id not in manifest.videos],
    )
    known = [manifest.videos[id] for id in ids if id in manifest.videos]
    if not known:
        raise UsageError(
            f"{source.root}: not one of its {len(ids)} files is named after a video of the "
            f"manifest; found {ids[0]}.npy, expected for example {next(iter(manifest.videos), '')}"
            f".npy"
        )
    for number, video in enumerate(known, 1):
        try:
            _import_one(source, target, video, manifest, fingerprints, rate, result)
        except MstembaError as error:
            result.failed[video.id] = str(error)
        on_event(Event("import", video.id, number, len(known)))
    fingerprints.save()
    result.seconds = time.perf_counter() - begin
    return result


def _import_one(
    source: NpyFolder,
    target: FeatureStore,
    video: Video,
    manifest: Manifest,
    fingerprints: Fingerprints,
    rate: tuple[float | None, int | None],
    result: ImportResult,
) -> None:
    values = source.values(video.id)
    times = _times(video, len(values), manifest, *rate)
    key = cache_key(
        "features",
        spec=target.spec.as_dict(),
        array=source.key(video, fingerprints),
        step=times.grid.step,
        frames=times.frames,
    )
    result.rows += len(values)
    entry = target.entry(video.id)
    if entry is not None and entry["key"] == key:
        result.cached.append(video.id)
        return
    target.import_entry(
        video.id,
        key,
        values,
        times.grid,
        duration=times.duration,
        fps=times.fps,
        frames=times.frames,
    )
    result.made.append(video.id)


def _times(
    video: Video, rows: int, manifest: Manifest, fps: float | None, stride: int | None
) -> _Times:
    """From the manifest's duration, else from the stride."""
    fps = fps or manifest.fps
    if manifest.time_unit == "seconds" and video.duration:
        grid = even_rows(video.duration, rows)
        rate = fps or (stride or 16) / grid.step  # only told, not counted with
        return _Times(grid, video.duration, rate, rate * video.duration)
    frames = video.duration or (stride * rows if stride else None)
    if not fps or not frames:
        missing = "--fps" if frames else "--stride and --fps" if not fps else "--stride"
        raise UsageError(
            f"{video.id}: it is not known when its {rows} rows are: the manifest has "
            f"{'no duration of it' if not video.duration else 'its length in frames only'}; "
            f"give {missing}"
        )
    return _Times(even_rows(frames / fps, rows), frames / fps, fps, frames)
