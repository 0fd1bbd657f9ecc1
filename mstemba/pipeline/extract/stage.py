"""Videos to features: what is to be done, under which names, and what is done already."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mstemba.data_manifests.manifest import as_paths, find_videos, load_manifest
from mstemba.errors import StoreError, UsageError
from mstemba.extractors import registry
from mstemba.pipeline import devices
from mstemba.pipeline.caching.files import as_local, as_path, remote
from mstemba.pipeline.caching.keys import Fingerprints, entry_key
from mstemba.pipeline.extract.jobs import ExtractResult, Job, remember_failures
from mstemba.pipeline.features.spec import make_spec, store_name
from mstemba.pipeline.features.store import FeatureStore, is_imported
from mstemba.pipeline.options import PRECISIONS, FeatureOptions, RunOptions
from mstemba.pipeline.progress import Event, EventHandler, ignore_events
from mstemba.pipeline.workspace import Workspace, find_workspace, set_current
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

    Finished entries whose key is unchanged are left alone; a video that fails does not stop the
    rest. Raises UsageError when there is nothing to read from or nowhere to write to.
    """
    options, run_options = options or FeatureOptions(), run_options or RunOptions()
    workspace = find_workspace(workspace)
    videos = as_paths(videos)
    inputs, without_file = _inputs(videos, as_local(manifest), workspace)
    fingerprints = Fingerprints(workspace.fingerprints if workspace else None)
    backbone = registry.resolve(options.backbone, options.model, options.weights, fingerprints.of)
    root = as_path(store)
    if root is None and workspace is None:
        raise UsageError(
            "no workspace here: say where the features go with --store, or run `mstemba init`"
        )
    options = with_precision(
        backbone, options, run_options, root, workspace.features if workspace else None
    )
    spec = make_spec(backbone, options)
    if root is None:
        assert workspace is not None
        root = workspace.features / store_name(spec)
    target = FeatureStore.prepare(root, spec, backbone.file)
    if videos:
        names = entry_names(target, inputs, fingerprints, workspace)
        inputs = {names[id]: path for id, path in inputs.items()}
    try:
        result = extract_into(target, inputs, backbone, fingerprints, run_options, on_event)
    finally:
        if workspace is not None and root.parent == workspace.features and root.is_dir():
            set_current(workspace.features, root.name)
    result.without_file = without_file
    return result


def with_precision(
    backbone: registry.ResolvedBackbone,
    options: FeatureOptions,
    run_options: RunOptions,
    root: Path | None,
    stores: Path | None,
) -> FeatureOptions:
    """The options with `auto` made definite.

    What the store at `root`, or without one the folder `stores`, holds already wins over what is
    fast on this device, so that the same command on another machine finds the features done.
    """
    if options.precision != "auto":
        return options
    if root is not None:
        with contextlib.suppress(StoreError):  # none there yet, or of no use: `prepare` says so
            return replace(options, precision=FeatureStore.open(root).spec.precision)
    else:
        assert stores is not None
        for precision in PRECISIONS:
            definite = replace(options, precision=precision)
            if (stores / store_name(make_spec(backbone, definite))).is_dir():
                return definite
    return replace(options, precision=_fast_precision(run_options))


def _fast_precision(options: RunOptions) -> str:
    """What the machines that compute have instructions for."""
    if options.engine == "ray":
        from mstemba.pipeline.extract import ray_engine

        return ray_engine.fast_precision(options)
    return devices.fast_precision(options.device)


def _start_engine(
    spec: FeatureSpec,
    backbone: registry.ResolvedBackbone,
    options: RunOptions,
    on_event: EventHandler,
    videos: int,
) -> Engine:
    """The engine that the options name."""
    # Imported here: when everything is done already, no decoder and no torch is needed.
    if options.engine == "ray":
        from mstemba.pipeline.extract.ray_engine import RayEngine

        return RayEngine(spec, backbone, options, on_event, videos=videos)
    from mstemba.pipeline.extract.local_engine import LocalEngine

    return LocalEngine(spec, backbone, options, on_event, videos=videos)


def _inputs(
    videos: list[Path], manifest: Path | None, workspace: Workspace | None
) -> tuple[dict[str, Path], list[str]]:
    if videos and manifest:
        raise UsageError(f"give videos or --manifest {manifest}, not both")
    if videos:
        return find_videos(videos), []
    if manifest is None and workspace is None:
        raise UsageError(
            "nothing to extract: give videos or --manifest, or make a workspace with `mstemba init`"
        )
    entries = load_manifest(manifest or workspace.manifest).videos  # type: ignore[union-attr]
    inputs = {video.id: video.path for video in entries.values() if video.path is not None}
    return inputs, [video.id for video in entries.values() if video.path is None]


def entry_names(
    store: FeatureStore,
    inputs: Mapping[str, Path],
    fingerprints: Fingerprints,
    workspace: Workspace | None,
) -> dict[str, str]:
    """What videos that are given by hand are called in the store, by their id.

    A video of the workspace's manifest has its id there. Another one keeps the id it has from its
    file name, or gets some of its fingerprint added where another video has that name.
    """
    known: dict[Path, str] = {}
    if workspace is not None and workspace.manifest.is_file():
        entries = load_manifest(workspace.manifest).videos.values()
        known = {v.path.resolve(): v.id for v in entries if v.path is not None}
    reserved = set(known.values())
    return {
        id: known.get(path.resolve()) or _free_name(store, id, path, fingerprints, reserved)
        for id, path in inputs.items()
    }


def _free_name(
    store: FeatureStore, id: str, path: Path, fingerprints: Fingerprints, reserved: set[str]
) -> str:
    try:
        sha = fingerprints.of(path)
    except OSError:
        return id  # unreadable: fails under its own name
    other = f"{id}@{sha[:8]}"
    if id in reserved:
        return other
    try:
        entry = store.entry(id)
    except StoreError:
        return id  # damaged: to be made again
    return id if entry is None or entry["key"] == entry_key(store.spec, sha) else other


def extract_into(
    store: FeatureStore,
    inputs: Mapping[str, Path],
    backbone: registry.ResolvedBackbone,
    fingerprints: Fingerprints,
    options: RunOptions,
    on_event: EventHandler = ignore_events,
) -> ExtractResult:
    """Bring the store's entries for `inputs` (video id to file) up to date."""
    result = ExtractResult(store.root)
    begin = time.perf_counter()
    todo: list[Job] = []
    for id, path in inputs.items():
        try:
            fingerprint = fingerprints.of(path)
        except OSError as error:
            result.failed[id] = f"{path}: {error.strerror}"
            continue
        job = Job(id, path, fingerprint, entry_key(store.spec, fingerprint))
        try:
            entry = store.entry(id)
        except StoreError:
            entry = None  # damaged: made again
        if entry is not None and (entry["key"] == job.key or is_imported(entry)):
            result.cached.append(id)  # what was imported is said to be of this backbone
            continue
        if entry is not None:
            on_event(
                Event(
                    "extract",
                    f"{id}: the video changed since its features were made; making them again",
                )
            )
        todo.append(job)
    fingerprints.save()
    if todo:
        # Imported here: when everything is done already, no decoder and no torch is needed.
        from mstemba.pipeline.extract.runner import ExtractionRunner

        if remote(store.root):
            store.make()  # what cannot be written should not cost a video's decoding first
        on_event(Event("extract", f"loading {backbone.name} {backbone.model}"))
        with contextlib.closing(
            _start_engine(store.spec, backbone, options, on_event, len(todo))
        ) as engine:
            ExtractionRunner(store, backbone.spec, engine, on_event, result).run(todo)
    remember_failures(store, inputs, result.failed)
    result.seconds = time.perf_counter() - begin
    return result
