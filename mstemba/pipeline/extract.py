"""Videos to features: decode in one process, encode in this one, skip what is done."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mstemba.data_manifests.manifest import as_paths, find_videos, load_manifest
from mstemba.errors import DecodeError, StoreError, UsageError
from mstemba.extractors import registry
from mstemba.extractors.windows import WindowPooler
from mstemba.pipeline.decode.reader import DecodeReport, DecodeRequest, Opened, Restart
from mstemba.pipeline.decode.worker import decode_all
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
    inputs, without_file = _inputs(as_paths(videos), manifest, workspace)
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


def _remember_failures(
    store: FeatureStore, tried: Mapping[str, Path], failed: dict[str, str]
) -> None:
    file = store.root / FAILURES
    known: dict[str, str] = read_json(file) if file.is_file() else {}
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
        entry: _Entry | None = None
        for index, event in decode_all(requests):
            job = jobs[index]
            if isinstance(event, Opened):
                progress.opened(event.seconds)
            elif isinstance(event, Frames):
                entry = entry or _Entry(self._store.writer(job.id), spec)
                entry.add(self._encode(event.images), event)
                self._result.frames += len(event.images)
                progress.frames(job, len(event.images), float(event.times[-1]))
            elif isinstance(event, Restart):
                entry = None  # what was written is no entry without its marker
            elif isinstance(event, DecodeReport):
                assert entry is not None, "a report follows frames"
                entry.finish(job, event)
                entry = None
                self._result.made.append(job.id)
                for warning in event.warnings:
                    self._listen(Event("extract", f"{job.id}: {warning}", warning=True))
                progress.video(job)
            elif isinstance(event, DecodeError):
                entry = None
                self._result.failed[job.id] = str(event)
                self._listen(Event("extract", str(event), warning=True))
                progress.video(job)


class _Entry:
    """The features of one video on their way into the store."""

    def __init__(self, writer: EntryWriter, spec: FeatureSpec) -> None:
        self._writer = writer
        self._pooler = WindowPooler(spec.window, spec.stride)
        self._spec = spec

    def add(self, features: Any, frames: Frames) -> None:
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
