"""Videos that need features: decode in one process, encode in this one, write to the store."""

from __future__ import annotations

import contextlib
import time

import numpy as np
from numpy.typing import NDArray

from mstemba.errors import DecodeError, MstembaError
from mstemba.extractors import registry
from mstemba.extractors.windows import WindowPooler
from mstemba.pipeline.decode.reader import DecodeReport, DecodeRequest, Opened, Restart
from mstemba.pipeline.decode.worker import DecodeEvent, decode_all
from mstemba.pipeline.devices import pick_device
from mstemba.pipeline.extract import ExtractResult, Job
from mstemba.pipeline.options import ExtractOptions
from mstemba.pipeline.progress import Event, Listener
from mstemba.pipeline.store import EntryWriter, FeatureStore
from mstemba.records import FeatureSpec, Frames


class Encoding:
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

    def run(self, jobs: list[Job]) -> None:
        """Decode and encode these videos; what became of each goes into the result."""
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

    def _take(self, job: Job, event: DecodeEvent, progress: _Progress) -> None:
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

    def _fail(self, job: Job, error: MstembaError, progress: _Progress) -> None:
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

    def finish(self, job: Job, report: DecodeReport) -> None:
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

    def __init__(self, jobs: list[Job], listen: Listener) -> None:
        self._sizes = {job.id: job.path.stat().st_size for job in jobs}
        self._listen = listen
        self._done = self._frames = 0
        self._seconds = 0.0
        self._begin = time.perf_counter()

    def opened(self, seconds: float) -> None:
        self._seconds = seconds

    def frames(self, job: Job, count: int, reached: float) -> None:
        self._frames += count
        share = min(1.0, reached / self._seconds) if self._seconds else 0.0
        self._tell(f"{job.id} at {reached:.0f} s", self._done + share * self._sizes[job.id])

    def video(self, job: Job) -> None:
        self._done += self._sizes[job.id]
        self._tell(f"{job.id} done", self._done)

    def _tell(self, what: str, done: float) -> None:
        rate = self._frames / (time.perf_counter() - self._begin)
        message = f"{what}, {self._frames} frames, {rate:.0f} frames/s"
        self._listen(Event("extract", message, done, sum(self._sizes.values())))
