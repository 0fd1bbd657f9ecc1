"""The main loop of an extraction: claim videos, start them in an engine, write their rows."""

from __future__ import annotations

from collections import Counter, deque
from pathlib import Path

import numpy as np

from mstemba.errors import MstembaError, UsageError
from mstemba.extractors.backbone_spec import BackboneSpec
from mstemba.extractors.windows import sampling
from mstemba.pipeline.caching.keys import Fingerprints
from mstemba.pipeline.caching.locks import EntryLock, StoreLocks
from mstemba.pipeline.decode.request import DecodeReport, DecodeRequest, Opened, Restart, Resume
from mstemba.pipeline.extract.engine import (
    Engine,
    EngineEvent,
    FeatureRows,
    VideoLost,
    VideoRequest,
)
from mstemba.pipeline.extract.jobs import ExtractResult, Job
from mstemba.pipeline.features.entry import Unfinished
from mstemba.pipeline.features.entry_writer import EntryWriter
from mstemba.pipeline.features.store import FeatureStore
from mstemba.pipeline.progress import Event, EventHandler, ProgressReporter
from mstemba.reading.files import file_size
from mstemba.wording import counted

# Frames in one message of a decoder.
_BLOCK = 32
# How often a video is tried again whose rows were lost with a worker.
_MAX_RETRIES = 5


class ExtractionRunner:
    """Extracts the videos of one command into one store.

    Other processes may work on the same store: each video is claimed by a lock before it is
    started, and videos that others have claimed come last.
    """

    def __init__(
        self,
        store: FeatureStore,
        backbone: BackboneSpec,
        engine: Engine,
        fingerprints: Fingerprints,
        on_event: EventHandler,
        result: ExtractResult,
    ) -> None:
        self._store, self._backbone_spec, self._engine = store, backbone, engine
        self._fingerprints, self._on_event, self._result = fingerprints, on_event, result
        self._locks = StoreLocks(store.root, "extracting")
        self._todo: deque[Job] = deque()
        self._claimed_elsewhere: list[Job] = []
        self._videos: dict[str, VideoExtraction] = {}
        self._retries: Counter[str] = Counter()

    def run(self, jobs: list[Job]) -> None:
        """Extract these videos, and record in the result what became of each."""
        self._progress = _Progress(jobs, self._on_event)
        self._todo.extend(jobs)
        try:
            while self._todo or self._videos or self._claimed_elsewhere:
                while self._todo and self._may_start(self._todo[0]):
                    self._claim(self._todo.popleft())
                if self._videos:
                    self._handle(*self._engine.next_event())
                elif self._claimed_elsewhere:
                    self._wait_for_others()
        finally:
            for video in self._videos.values():
                video.lock.release()

    def _may_start(self, job: Job) -> bool:
        """Return whether the engine takes this video now.

        A video that was lost twice runs alone: if it is what kills the workers, it takes no others
        along.
        """
        if not self._videos:
            return True
        suspects = [id for id in (job.id, *self._videos) if self._retries[id] > 1]
        return bool(self._engine.room) and not suspects

    def _claim(self, job: Job) -> None:
        """Start a video, unless another process has claimed or finished it."""
        lock = self._locks.acquire(job.id)
        if lock is None:
            self._claimed_elsewhere.append(job)
        elif self._is_finished(job):
            lock.release()
            self._result.cached.append(job.id)
            self._progress.finished(job.id)
        else:
            video = VideoExtraction(job, lock, self._store, self._backbone_spec, self._fingerprints)
            self._videos[job.id] = video
            try:
                file_size(job.path)  # a decoder would wait for a pipe
            except UsageError as error:
                self._fail(video, error)
            else:
                self._engine.start(job.id, video.request)

    def _is_finished(self, job: Job) -> bool:
        entry = self._store.find(job.id, lambda line: None)  # told before it was claimed
        return entry is not None and entry.key == job.key

    def _wait_for_others(self) -> None:
        """Wait until one of the videos that other processes have claimed is free."""
        jobs, self._claimed_elsewhere = self._claimed_elsewhere, []
        self._locks.wait_for(
            *(job.id for job in jobs), on_wait=lambda line: self._on_event(Event("extract", line))
        ).release()
        self._todo.extend(jobs)

    def _handle(self, id: str, event: EngineEvent) -> None:
        """Take one event of one video. What goes wrong is that video's failure, and no other's."""
        video = self._videos[id]
        try:
            if isinstance(event, VideoLost):
                self._retry(video, event)
            elif isinstance(event, MstembaError):
                self._fail(video, event)
            elif isinstance(event, Opened):
                video.decoder = event.decoder
                self._progress.opened(id, event.seconds)
            elif isinstance(event, Restart):
                video.restart(event.decoder)
            elif isinstance(event, FeatureRows):
                video.write(event)
                self._result.frames += event.frames
                self._progress.encoded(id, event)
            else:
                self._finish(video, event)
        except MstembaError as error:
            self._engine.cancel(id)
            self._fail(video, error)

    def _finish(self, video: VideoExtraction, report: DecodeReport) -> None:
        video.finish(report)
        for warning in report.warnings:
            self._warn(video.job.id, f"{video.job.id}: {warning}")
        self._result.made.append(video.job.id)
        self._release(video)

    def _fail(self, video: VideoExtraction, error: MstembaError) -> None:
        id, reason = video.job.id, str(error)
        self._result.failed[id] = reason
        self._on_event(Event("extract", reason, warning=True, video=id, failed=True))
        self._release(video)

    def _retry(self, video: VideoExtraction, reason: VideoLost) -> None:
        """Extract a video again from its last whole shard."""
        id = video.job.id
        self._retries[id] += 1
        if self._retries[id] > _MAX_RETRIES:
            raise MstembaError(f"{id}: given up after {_MAX_RETRIES} tries: {reason}")
        self._warn(id, f"{id}: {reason}; trying it again")
        del self._videos[id]
        video.lock.release()
        self._todo.append(video.job)

    def _release(self, video: VideoExtraction) -> None:
        del self._videos[video.job.id]
        video.lock.release()
        self._progress.finished(video.job.id)

    def _warn(self, id: str, message: str) -> None:
        self._on_event(Event("extract", message, warning=True, video=id))


class VideoExtraction:
    """One video from its claim to its finished entry in the store."""

    def __init__(
        self,
        job: Job,
        lock: EntryLock,
        store: FeatureStore,
        backbone: BackboneSpec,
        fingerprints: Fingerprints,
    ) -> None:
        self.job, self.lock, self._fingerprints = job, lock, fingerprints
        self.decoder = ""
        self._store, self._backbone_spec = store, backbone
        self._partial: Unfinished | None = store.unfinished(job.id, job.key)
        self._writer: EntryWriter | None = None

    @property
    def request(self) -> VideoRequest:
        """What an engine is asked for: the rows that no earlier run has written."""
        spec = self._store.spec
        first_row = self._partial.rows if self._partial else 0
        decode = DecodeRequest(
            self.job.path,
            spec.input_size,
            spec.short_side,
            spec.frame_step,
            _BLOCK,
            spec.decoder,
            resume=self._resume(first_row),
            fps=spec.fps,
        )
        return VideoRequest(decode, first_row)

    def _resume(self, first_row: int) -> Resume | None:
        """Return which frames to skip, and a frame that an earlier run has seen, to compare."""
        stride = self._store.spec.stride
        first = sampling(self._backbone_spec, self._store.spec.window, stride, first_row).first
        if self._partial is None or first == 0:
            return None
        row = min(first_row - 1, (first - 1) // stride)
        seen = (row * stride, float(self._partial.starts[row]))
        return Resume(first, self._partial.decoder, seen)

    def restart(self, decoder: str) -> None:
        """Begin the entry anew: its rows come from the first one on, by this decoder."""
        self.decoder, self._partial, self._writer = decoder, None, None

    def write(self, rows: FeatureRows) -> None:
        """Append rows to the entry.

        Raises:
            MstembaError: features that are not finite, or not in the store's type.
        """
        if not len(rows.values):
            return
        with np.errstate(over="ignore"):
            stored = rows.values.astype(self._store.spec.dtype)
        bad = ~np.isfinite(stored).all(axis=1)
        if bad.any():
            raise MstembaError(
                f"{self.job.id}: the backbone gave NaN or infinity at {rows.starts[bad][0]:.1f} s: "
                f"try --precision float32 --dtype float32"
            )
        self._open_writer().append(stored, rows.starts)

    def finish(self, report: DecodeReport) -> None:
        """Write the marker that makes the entry exist."""
        spec = self._store.spec
        self._open_writer().finish(
            step=spec.stride * spec.frame_step / report.fps,
            duration=report.duration,
            fps=report.fps,
            frames=report.frames,
            fingerprint=self.job.fingerprint,
            source=self.job.path.name,
            decoder=report.decoder,
            timecode=report.timecode,
            warnings=report.warnings,
        )

    def _confirm(self) -> None:
        """Raise MstembaError if the video has changed since it was fingerprinted."""
        if self._fingerprints.of(self.job.path) != self.job.fingerprint:
            raise MstembaError(f"{self.job.path}: changed while it was being extracted; run again")

    def _open_writer(self) -> EntryWriter:
        if self._writer is None:
            self._writer = self._store.writer(
                self.job.id, self.job.key, self.decoder, self._partial, self._confirm
            )
        return self._writer


class _Progress:
    """Work measured in bytes of video: the time left is known before all files are opened."""

    def __init__(self, jobs: list[Job], on_event: EventHandler) -> None:
        self._sizes = {job.id: _bytes_of(job.path) for job in jobs}
        self._reporter = ProgressReporter("extract", sum(self._sizes.values()), "frames", on_event)
        self._done = 0
        self._frames = 0
        self._seconds: dict[str, float] = {}
        self._partly_done: dict[str, float] = {}
        """Bytes of videos under way."""

    def opened(self, id: str, seconds: float) -> None:
        """Learn how long a video is."""
        self._seconds[id] = seconds

    def encoded(self, id: str, rows: FeatureRows) -> None:
        """Report that a video is encoded up to the time of these rows."""
        self._frames += rows.frames
        seconds = self._seconds.get(id, 0.0)
        share = min(1.0, rows.time / seconds) if seconds else 0.0
        self._partly_done[id] = self._sizes[id] * share
        if rows.frames:
            length = f" of {seconds:.0f} s" if seconds else ""
            self._report(id, f"at {rows.time:.0f} s{length}")

    def finished(self, id: str) -> None:
        """Report that nothing more is to be done for a video."""
        self._done += self._sizes[id]
        self._partly_done.pop(id, None)
        self._report(id, "done")

    def _report(self, id: str, what: str) -> None:
        done = self._done + sum(self._partly_done.values())
        self._reporter.update(
            f"{id} {what}, {counted(self._frames, 'frame')}", done, self._frames, id
        )


def _bytes_of(path: Path) -> int:
    """Return the size of a video; 0 if it has vanished, which its turn will show."""
    try:
        return file_size(path)
    except UsageError:
        return 0
