"""Videos to features: what is to be done, under which names, and what is done already."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from mstemba.data_manifests.manifest import as_paths, find_videos, load_manifest
from mstemba.errors import StoreError, UsageError
from mstemba.extractors import registry
from mstemba.pipeline.claims import Claims
from mstemba.pipeline.files import as_local, as_path, read_json, remote, write_json
from mstemba.pipeline.keys import Fingerprints, entry_key, spec_key
from mstemba.pipeline.options import PRECISIONS, ExtractOptions
from mstemba.pipeline.progress import Event, Listener, silent
from mstemba.pipeline.store import IMPORTED, FeatureStore
from mstemba.pipeline.workspace import Workspace, find_workspace, set_current
from mstemba.records import FeatureSpec

FAILURES = "failures.json"


@dataclass
class ExtractResult:
    """What an extraction did."""

    store: Path
    made: list[str] = field(default_factory=list)
    cached: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    """Reason by video id."""
    without_file: list[str] = field(default_factory=list)
    """Videos of the manifest that name no file."""
    frames: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Job:
    """A video that needs features."""

    id: str
    path: Path
    fingerprint: str
    key: str
    """Of its entry in the store."""


def extract(
    videos: str | Path | Iterable[str | Path] = (),
    options: ExtractOptions | None = None,
    *,
    workspace: Workspace | str | Path | None = None,
    manifest: str | Path | None = None,
    store: str | Path | None = None,
    listen: Listener = silent,
) -> ExtractResult:
    """Extract the features of the workspace's videos, of a manifest's, or of files and folders.

    Finished entries whose key is unchanged are left alone; a video that fails does not stop the
    rest. Raises UsageError when there is nothing to read from or nowhere to write to.
    """
    options = options or ExtractOptions()
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
    options = with_precision(backbone, options, root, workspace.features if workspace else None)
    spec = make_spec(backbone, options)
    if root is None:
        assert workspace is not None
        root = workspace.features / store_name(spec)
    target = FeatureStore.prepare(root, spec, backbone.file)
    if videos:
        names = entry_names(target, inputs, fingerprints, workspace)
        inputs = {names[id]: path for id, path in inputs.items()}
    try:
        result = extract_into(target, inputs, backbone, fingerprints, options, listen)
    finally:
        if workspace is not None and root.parent == workspace.features and root.is_dir():
            set_current(workspace.features, root.name)
    result.without_file = without_file
    return result


def make_spec(backbone: registry.Resolved, options: ExtractOptions) -> FeatureSpec:
    """What decides the numbers, from a backbone and options whose precision is not `auto`."""
    about = backbone.about
    window, stride = options.window or about.window, options.stride or about.stride
    if about.kind == "whole-clip" and (window, stride) != (about.window, about.stride):
        raise UsageError(
            f"{backbone.name} gives one row of {about.window} frames every {about.stride}: leave "
            f"--window ({window}) and --stride ({stride}) out"
        )
    return FeatureSpec(
        backbone=backbone.name,
        model=backbone.model,
        weights=backbone.identity,
        width=about.width,
        input_size=about.input_size,
        short_side=about.short_side,
        window=window,
        stride=stride,
        every=options.every,
        precision=options.precision,
        dtype=options.dtype,
        decoder=options.decoder,
    )


def with_precision(
    backbone: registry.Resolved,
    options: ExtractOptions,
    root: Path | None,
    stores: Path | None,
) -> ExtractOptions:
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
    # Imported here: with everything done, no torch is needed.
    from mstemba.pipeline.engine import fast_precision

    return replace(options, precision=fast_precision(options))


def store_name(spec: FeatureSpec) -> str:
    """Folder name of a store in a workspace: readable, and its own for every specification."""
    return f"{spec.backbone}-w{spec.window}s{spec.stride}-{spec_key(spec)[:8]}.zarr"


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
    backbone: registry.Resolved,
    fingerprints: Fingerprints,
    options: ExtractOptions,
    listen: Listener = silent,
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
        if entry is not None and (entry["key"] == job.key or entry.get("source") == IMPORTED):
            result.cached.append(id)  # what was imported is said to be of this backbone
            continue
        if entry is not None:
            listen(
                Event(
                    "extract",
                    f"{id}: the video changed since its features were made; making them again",
                )
            )
        todo.append(job)
    fingerprints.save()
    if todo:
        # Imported here: when everything is done already, no decoder and no torch is needed.
        from mstemba.pipeline.encode import Encoding
        from mstemba.pipeline.engine import start

        if remote(store.root):
            store.make()  # what cannot be written should not cost a video's decoding first
        listen(Event("extract", f"loading {backbone.name} {backbone.model}"))
        with contextlib.closing(start(store.spec, backbone, options, listen)) as engine:
            Encoding(store, backbone.about, engine, listen, result).run(todo)
    _remember_failures(store, inputs, result.failed)
    result.seconds = time.perf_counter() - begin
    return result


def read_failures(root: Path) -> dict[str, str]:
    """Why videos failed, by id, as the last extractions into a store found."""
    try:
        failures = read_json(root / FAILURES)
    except (OSError, ValueError):
        return {}  # none yet, or damaged: the next failure writes it anew
    return failures if isinstance(failures, dict) else {}


def _remember_failures(
    store: FeatureStore, tried: Mapping[str, Path], failed: dict[str, str]
) -> None:
    file = store.root / FAILURES
    if not failed and not read_failures(store.root):
        return
    with Claims(store.root).whole():  # another process may do the same
        known = read_failures(store.root)
        now = {id: reason for id, reason in known.items() if id not in tried} | failed
        if now != known:
            store.make()
            write_json(file, now)
