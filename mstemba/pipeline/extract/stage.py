"""The extract stage: videos to feature stores. Only what is not in the store yet is extracted."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mstemba.data_manifests.manifest import load_manifest
from mstemba.data_manifests.video_files import find_videos
from mstemba.errors import StoreError, UsageError
from mstemba.extractors import registry
from mstemba.pipeline import devices
from mstemba.pipeline.caching.files import as_local, as_path, as_paths, remote
from mstemba.pipeline.caching.keys import Fingerprints, entry_key
from mstemba.pipeline.catalog import Catalog, CatalogVideo, workspace_manifest
from mstemba.pipeline.extract.jobs import ExtractResult, Job, remember_failures
from mstemba.pipeline.features.spec import make_spec, store_name
from mstemba.pipeline.features.store import FeatureStore
from mstemba.pipeline.options import PRECISIONS, FeatureOptions, RunOptions
from mstemba.pipeline.progress import Event, EventHandler, ignore_events, report_import
from mstemba.pipeline.workspace import Workspace, find_workspace, remember_current
from mstemba.records import FeatureSpec

if TYPE_CHECKING:
    from mstemba.pipeline.extract.engine import Engine


def extract(
    videos: str | Path | Iterable[str | Path] = (),
    options: FeatureOptions | None = None,
    run_options: RunOptions | None = None,
    *,
    workspace: Workspace | str | Path | None = None,
    manifest: str | Path | None = None,
    store: str | Path | None = None,
    on_event: EventHandler = ignore_events,
) -> ExtractResult:
    """Extract the features of the workspace's videos, of a manifest's, or of files and folders.

    Finished entries whose key is unchanged are kept; a video that fails does not stop the others.

    Args:
        videos: Files and folders of videos; by default those of the manifest.
        options: What decides the numbers.
        run_options: Where and how fast it runs.
        workspace: By default the one of the current folder.
        manifest: Read this manifest instead of the workspace's.
        store: Folder or URL of the store; by default one in the workspace.
        on_event: Receives progress and messages.

    Raises:
        UsageError: There is nothing to read from or nowhere to write to.
    """
    options, run_options = options or FeatureOptions(), run_options or RunOptions()
    workspace = find_workspace(workspace)
    fingerprints = Fingerprints(workspace.fingerprints if workspace else None)
    given = as_paths(videos)
    catalog = _find_inputs(given, as_local(manifest), workspace, fingerprints, on_event)
    backbone = registry.resolve(options.backbone, options.model, options.weights, fingerprints.of)
    root = as_path(store)
    if root is None and workspace is None:
        raise UsageError(
            "no workspace here: say where the features go with --store, or run `mstemba init`"
        )
    stores = workspace.features if workspace else None
    options = with_precision(backbone, options, run_options, root, stores, on_event)
    spec = make_spec(backbone, options)
    if root is None:
        assert stores is not None
        root = stores / store_name(spec)
    target = FeatureStore.prepare(root, spec, backbone.file)
    entries = {catalog.entry_name(video, target): video for video in catalog.videos}
    fingerprints.save()
    try:
        result = extract_into(target, entries, backbone, run_options, fingerprints, on_event)
    finally:
        if stores is not None and root.parent == stores and root.is_dir():
            remember_current(stores, root.name)
    if not given:
        result.without_file = catalog.without_file
    return result


def _find_inputs(
    videos: list[Path],
    manifest: Path | None,
    workspace: Workspace | None,
    fingerprints: Fingerprints,
    on_event: EventHandler,
) -> Catalog:
    if videos and manifest:
        raise UsageError(f"videos cannot be combined with --manifest {manifest}: pass one of them")
    if videos:
        files = find_videos(videos, lambda line: on_event(Event("extract", line)))
        return Catalog(files, workspace_manifest(workspace), fingerprints)
    if manifest is None and workspace is None:
        raise UsageError(
            "nothing to extract: give videos or --manifest, or make a workspace with `mstemba init`"
        )
    listed = load_manifest(manifest or workspace.manifest)  # type: ignore[union-attr]
    files = {id: video.path for id, video in listed.videos.items() if video.path is not None}
    return Catalog(files, listed, fingerprints)


def with_precision(
    backbone: registry.ResolvedBackbone,
    options: FeatureOptions,
    run_options: RunOptions,
    root: Path | None,
    stores: Path | None,
    on_event: EventHandler = ignore_events,
) -> FeatureOptions:
    """Return the options with a definite precision in place of `auto`.

    The precision of the store at `root`, or without `root` that of one in the folder `stores`, wins
    over what is fast on this device, so that the same command on another machine finds the features
    cached.
    """
    if options.precision != "auto":
        return options
    if root is not None:
        with contextlib.suppress(StoreError):  # none yet, or not usable: `prepare` reports it
            return replace(options, precision=FeatureStore.open(root).spec.precision)
    else:
        assert stores is not None
        for precision in PRECISIONS:
            definite = replace(options, precision=precision)
            if (stores / store_name(make_spec(backbone, definite))).is_dir():
                return definite
    report_import("extract", on_event)
    if run_options.engine == "ray":
        from mstemba.pipeline.extract import ray_engine

        return replace(options, precision=ray_engine.fast_precision(run_options))
    return replace(options, precision=devices.fast_precision(run_options.device))


def _start_engine(
    spec: FeatureSpec,
    backbone: registry.ResolvedBackbone,
    options: RunOptions,
    on_event: EventHandler,
    videos: int,
) -> Engine:
    """Start the engine that the options name."""
    # Imported here: a cached run needs no decoder and no torch.
    if options.engine == "ray":
        from mstemba.pipeline.extract.ray_engine import RayEngine

        return RayEngine(spec, backbone, options, on_event, videos=videos)
    from mstemba.pipeline.extract.local_engine import LocalEngine

    return LocalEngine(spec, backbone, options, on_event, videos=videos)


def extract_into(
    store: FeatureStore,
    entries: Mapping[str, CatalogVideo],
    backbone: registry.ResolvedBackbone,
    options: RunOptions,
    fingerprints: Fingerprints,
    on_event: EventHandler = ignore_events,
) -> ExtractResult:
    """Bring the store's entries, by name, up to date with their videos."""
    begin = time.perf_counter()
    result = ExtractResult(store.root)
    store.sweep()
    todo = []
    for name, video in entries.items():
        if video.problem:
            result.failed[name] = video.problem
            continue
        job = Job(name, video.path, video.fingerprint, entry_key(store.spec, video.fingerprint))
        if _is_current(store, job, on_event):
            result.cached.append(name)
        else:
            todo.append(job)
    if todo:
        # Imported here: a cached run needs no decoder and no torch.
        from mstemba.pipeline.extract.runner import ExtractionRunner

        if remote(store.root):
            store.make()  # an address that cannot be written to should not cost a video's decoding
        model = "" if backbone.model == backbone.name else f" {backbone.model}"
        on_event(Event("extract", f"loading {backbone.name}{model}"))
        with contextlib.closing(
            _start_engine(store.spec, backbone, options, on_event, videos=len(todo))
        ) as engine:
            runner = ExtractionRunner(store, backbone.spec, engine, fingerprints, on_event, result)
            runner.run(todo)
    remember_failures(store, entries, result.failed)
    result.seconds = time.perf_counter() - begin
    return result


def _is_current(store: FeatureStore, job: Job, on_event: EventHandler) -> bool:
    """Return whether the store has the job's features already."""
    entry = store.find(job.id, lambda line: on_event(Event("extract", line)))
    if entry is None:
        return False
    # Imported features are taken to be of this backbone; their key is that of the imported file.
    if entry.key == job.key or entry.is_imported:
        return True
    message = f"{job.id}: the video changed since its features were made; making them again"
    on_event(Event("extract", message))
    return False
