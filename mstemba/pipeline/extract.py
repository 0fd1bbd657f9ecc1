"""Videos to features: decode in one process, encode in this one, skip what is done."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mstemba.data_manifests.manifest import as_paths, find_videos, load_manifest
from mstemba.errors import DecodeError, MstembaError, StoreError, UsageError
from mstemba.extractors import registry
from mstemba.extractors.windows import WindowPooler
from mstemba.pipeline.decode.reader import DecodeReport, DecodeRequest, Opened, Restart
from mstemba.pipeline.decode.worker import DecodeEvent, decode_all
from mstemba.pipeline.devices import pick_device
from mstemba.pipeline.files import read_json, write_json
from mstemba.pipeline.keys import Fingerprints, entry_key, spec_key
from mstemba.pipeline.options import ExtractOptions
from mstemba.pipeline.progress import Event, Listener, silent
from mstemba.pipeline.store import EntryWriter, FeatureStore
from mstemba.pipeline.workspace import Workspace, find_workspace, set_current
from mstemba.records import FeatureSpec, Frames

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


def extract(
    videos: str | Path | Iterable[str | Path] = (),
    options: ExtractOptions | None = None,
    *,
    workspace: Workspace | None = None,
    manifest: Path | None = None,
    store: Path | None = None,
    listen: Listener = silent,
) -> ExtractResult:
    """Extract the features of the workspace's videos, of a manifest's, or of files and folders.

    Finished entries whose key is unchanged are left alone; a video that fails does not stop the
    rest. Raises UsageError when there is nothing to read from or nowhere to write to.
    """
    options = options or ExtractOptions()
    workspace = workspace or find_workspace()
    videos = as_paths(videos)
    inputs, without_file = _inputs(videos, manifest, workspace)
    fingerprints = Fingerprints(workspace.fingerprints if workspace else None)
    backbone = registry.resolve(options.backbone, options.model, options.weights, fingerprints.of)
    spec = make_spec(backbone, options)
    if store is None:
        if workspace is None:
            raise UsageError(
                "no workspace here: say where the features go with --store, or run `mstemba init`"
            )
        store = workspace.features / store_name(spec)
    target = FeatureStore.prepare(store, spec, backbone.file)
    if videos:
        names = entry_names(target, inputs, fingerprints, workspace)
        inputs = {names[id]: path for id, path in inputs.items()}
    try:
        result = extract_into(target, inputs, backbone, fingerprints, options, listen)
    finally:
        if workspace is not None and store.parent == workspace.features and store.is_dir():
            set_current(workspace.features, store.name)
    result.without_file = without_file
    return result


def make_spec(backbone: registry.Resolved, options: ExtractOptions) -> FeatureSpec:
    """What decides the numbers, from a backbone and the options."""
    return FeatureSpec(
        backbone=backbone.name,
        model=backbone.model,
        weights=backbone.identity,
        width=backbone.width,
        input_size=backbone.input_size,
        window=options.window,
        stride=options.stride,
        every=options.every,
        precision=options.precision,
        dtype=options.dtype,
        decoder=options.decoder,
    )


def store_name(spec: FeatureSpec) -> str:
    """Folder name of a store in a workspace: readable, and its own for every specification."""
    return f"{spec.backbone}-w{spec.window}s{spec.stride}-{spec_key(spec)[:8]}.zarr"


def _inputs(
    videos: list[Path], manifest: Path | None, workspace: Workspace | None
) -> tuple[dict[str, Path], list[str]]:
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
        entry = None if id in reserved else store.entry(id)
        if id not in reserved and (entry is None or entry["key"] == entry_key(store.spec, sha)):
            return id
    except StoreError:
        return id  # damaged: to be made again
    except OSError:
        return id  # unreadable: fails under its own name
    return f"{id}@{sha[:8]}"


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
    todo: list[_Job] = []
    for id, path in inputs.items():
        try:
            fingerprint = fingerprints.of(path)
        except OSError as error:
            result.failed[id] = f"{path}: {error.strerror}"
            continue
        job = _Job(id, path, fingerprint, entry_key(store.spec, fingerprint))
        try:
            entry = store.entry(id)
        except StoreError:
            entry = None  # damaged: made again
        if entry is not None and entry["key"] == job.key:
            result.cached.append(id)
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
        _Run(store, backbone, options, listen, result).do(todo)
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
    known = read_failures(store.root)
    now = {id: reason for id, reason in known.items() if id not in tried} | failed
    if now != known:
        store.make()
        write_json(file, now)


@dataclass(frozen=True)
class _Job:
    id: str
    path: Path
    fingerprint: str
    key: str


class _Run:
    """One pass over the videos that need features."""

    def __init__(
        self,
        store: FeatureStore,
        backbone: registry.Resolved,
        options: ExtractOptions,
        listen: Listener,
        result: ExtractResult,
    ) -> None:
        self._store = store
        self._listen = listen
        self._result = result
        self._entry: _Entry | None = None
        device = pick_device(options.device)
        # Large batches only cost memory on a CPU (measured: 8 frames are 1.4 times as fast as 32).
        self._batch_size = options.batch_size or (8 if device == "cpu" else 64)
        listen(Event("extract", f"loading {backbone.name} {backbone.model} on {device}"))
        self._encode = backbone.load(device, options.precision)

    def do(self, jobs: list[_Job]) -> None:
        spec = self._store.spec
        requests = [
            DecodeRequest(j.path, spec.input_size, spec.every, self._batch_size, spec.decoder)
            for j in jobs
        ]
        progress = _Progress(jobs, self._listen)
        with contextlib.closing(decode_all(requests)) as events:
            for index, event in events:
                try:
                    self._take(jobs[index], event, progress)
                except MstembaError as error:
                    self._fail(jobs[index], error, progress)

    def _take(self, job: _Job, event: DecodeEvent, progress: _Progress) -> None:
        """One event of one video; events of a video that has failed are passed over."""
        if job.id in self._result.failed:
            return
        if isinstance(event, DecodeError):
            raise event
        if isinstance(event, Opened):
            progress.opened(event.seconds)
        elif isinstance(event, Frames):
            self._entry = self._entry or _Entry(self._store.writer(job.id), self._store.spec)
            self._entry.add(self._encode(event.images), event)
            self._result.frames += len(event.images)
            progress.frames(job, len(event.images), float(event.times[-1]))
        elif isinstance(event, Restart):
            self._entry = None  # what was written is no entry without its marker
        elif isinstance(event, DecodeReport):
            assert self._entry is not None, "a report follows frames"
            self._entry.finish(job, event)
            self._entry = None
            self._result.made.append(job.id)
            for warning in event.warnings:
                self._listen(Event("extract", f"{job.id}: {warning}", warning=True))
            progress.video(job)

    def _fail(self, job: _Job, error: MstembaError, progress: _Progress) -> None:
        self._entry = None
        self._result.failed[job.id] = str(error)
        self._listen(Event("extract", str(error), warning=True))
        progress.video(job)


class _Entry:
    """The features of one video on their way into the store."""

    def __init__(self, writer: EntryWriter, spec: FeatureSpec) -> None:
        self._writer = writer
        self._pooler = WindowPooler(spec.window, spec.stride)
        self._spec = spec

    def add(self, features: NDArray[np.float32], frames: Frames) -> None:
        """Raises MstembaError for features that are not finite, or not in the store's type."""
        if not np.isfinite(features.astype(self._spec.dtype)).all():
            raise MstembaError(
                f"the backbone gave NaN or infinity at {frames.times[0]:.1f} s: "
                f"try --precision float32 --dtype float32"
            )
        self._writer.append(*self._pooler.add(features, frames.times))

    def finish(self, job: _Job, report: DecodeReport) -> None:
        self._writer.append(*self._pooler.finish())
        self._writer.finish(
            key=job.key,
            step=self._spec.stride * self._spec.every / report.fps,
            duration=report.duration,
            fps=report.fps,
            frames=report.frames,
            fingerprint=job.fingerprint,
            source=job.path.name,
            decoder=report.decoder,
            warnings=report.warnings,
        )


class _Progress:
    """Work measured in bytes of video: the time left is known before all files are opened."""

    def __init__(self, jobs: list[_Job], listen: Listener) -> None:
        self._sizes = {job.id: job.path.stat().st_size for job in jobs}
        self._listen = listen
        self._done = self._frames = 0
        self._seconds = 0.0
        self._begin = time.perf_counter()

    def opened(self, seconds: float) -> None:
        self._seconds = seconds

    def frames(self, job: _Job, count: int, reached: float) -> None:
        self._frames += count
        share = min(1.0, reached / self._seconds) if self._seconds else 0.0
        self._tell(f"{job.id} at {reached:.0f} s", self._done + share * self._sizes[job.id])

    def video(self, job: _Job) -> None:
        self._done += self._sizes[job.id]
        self._tell(f"{job.id} done", self._done)

    def _tell(self, what: str, done: float) -> None:
        rate = self._frames / (time.perf_counter() - self._begin)
        message = f"{what}, {self._frames} frames, {rate:.0f} frames/s"
        self._listen(Event("extract", message, done, sum(self._sizes.values())))
