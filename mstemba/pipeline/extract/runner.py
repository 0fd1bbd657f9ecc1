"""Videos that need features: decoded frames in, rows of features into the store.

Decoding, forward passes and writing go on at the same time. The frames of all videos share the
batches, so that a thousand short clips go as fast as one long film, and what the passes give back
is dealt out to the videos again.
"""

from __future__ import annotations

import contextlib
from array import array
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future

import numpy as np

from mstemba.errors import DecodeError, MstembaError, StoreError
from mstemba.extractors.backbone_spec import BackboneSpec
from mstemba.extractors.windows import FeatureArray, sampling
from mstemba.pipeline.caching.locks import EntryLock, StoreLocks
from mstemba.pipeline.decode.reader import DecodeReport, DecodeRequest, Opened, Restart, Resume
from mstemba.pipeline.extract.batches import Batch, Batcher, FrameBuffer
from mstemba.pipeline.extract.engine import Engine, EngineEvent, FramesLost
from mstemba.pipeline.extract.jobs import ExtractResult, Job
from mstemba.pipeline.features.store import EntryWriter, FeatureStore, Unfinished
from mstemba.pipeline.progress import Event, EventHandler, ProgressReporter
from mstemba.records import Frames

# Frames in one message of a decoder.
_BLOCK = 32
# How often a video is begun again whose frames were lost with a machine.
_MOST_LOSSES = 5


class ExtractionRunner:
    """One extraction of the videos that need features into one store."""

    def __init__(
        self,
        store: FeatureStore,
        about: BackboneSpec,
        engine: Engine,
        on_event: EventHandler,
        result: ExtractResult,
    ) -> None:
        self._store, self._about, self._engine = store, about, engine
        self._listen, self._result = on_event, result
        self._claims = StoreLocks(store.root)
        self._tracks: dict[str, VideoExtraction] = {}
        self._elsewhere: list[Job] = []
        self._found_done: list[str] = []
        self._lost: list[Job] = []
        self._losses: Counter[str] = Counter()
        self._pending: deque[tuple[Batch, Future[FeatureArray]]] = deque()
        length = sampling(about, store.spec.window, store.spec.stride).length
        self._batcher = Batcher(engine.batch_size, length)

    def run(self, jobs: list[Job]) -> None:
        """Make these entries; what became of each goes into the result."""
        self._progress = _Progress(jobs, self._listen)
        try:
            self._pass_over(jobs)
            while self._lost or self._elsewhere:
                while self._lost:
                    jobs, self._lost = self._lost, []
                    self._pass_over(jobs)
                if self._elsewhere:
                    jobs, self._elsewhere = self._elsewhere, []
                    self._listen(Event("extract", _waiting_for(jobs)))
                    self._claims.wait_for(*(job.id for job in jobs)).release()
                    self._pass_over(jobs)
        finally:
            for _, future in self._pending:
                future.cancel()
            for track in self._tracks.values():
                track.claim.release()

    def _pass_over(self, jobs: list[Job]) -> None:
        with contextlib.closing(self._engine.decode(self._requests(jobs), len(jobs))) as events:
            for id, event in events:
                if id in self._tracks:  # else it has failed; what still comes is passed over
                    self._handle(id, event)
                self._collect(self._engine.ahead)
        self._submit(self._batcher.flush())
        self._collect(0)
        while self._found_done:
            self._result.cached.append(self._found_done.pop())
            self._progress.video(self._result.cached[-1])

    def _requests(self, jobs: Iterable[Job]) -> Iterator[tuple[str, DecodeRequest]]:
        """What to decode, claimed one by one as the decoders ask for more, in their threads."""
        spec = self._store.spec
        for job in jobs:
            claim = self._claims.acquire(job.id)
            if claim is None:
                self._elsewhere.append(job)
                continue
            if self._made_meanwhile(job):
                claim.release()
                self._found_done.append(job.id)
                continue
            unfinished = self._store.unfinished(job.id, job.key)
            track = VideoExtraction(job, claim, self._store, self._about, unfinished)
            self._tracks[job.id] = track
            yield (
                job.id,
                DecodeRequest(
                    job.path,
                    spec.input_size,
                    spec.short_side,
                    spec.frame_step,
                    _BLOCK,
                    spec.decoder,
                    resume=track.resume,
                ),
            )

    def _made_meanwhile(self, job: Job) -> bool:
        try:
            entry = self._store.entry(job.id)
        except StoreError:
            return False
        return entry is not None and entry["key"] == job.key

    @contextlib.contextmanager
    def _charged_to(self, track: VideoExtraction) -> Iterator[None]:
        """What goes wrong is this video's failure, and no other's."""
        try:
            yield
        except MstembaError as error:
            self._fail(track.job.id, error)

    def _handle(self, id: str, event: EngineEvent) -> None:
        """One event of one video."""
        with self._charged_to(self._tracks[id]):
            self._take(self._tracks[id], event)
        track = self._tracks.get(id)
        if track is not None:
            # An error here, as of the backbone's weights, is no video's.
            self._encode(track)
            with self._charged_to(track):
                self._finish_if_whole(track)

    def _take(self, track: VideoExtraction, event: EngineEvent) -> None:
        if isinstance(event, FramesLost):
            self._lose(track, event)
        elif isinstance(event, DecodeError):
            raise event
        elif isinstance(event, Opened):
            track.decoder = event.decoder
            self._progress.opened(track.job.id, event.seconds)
        elif isinstance(event, Restart):
            # Of the old track, batches under way may give features; nobody owns them any more.
            self._tracks[track.job.id] = track.again(event.decoder)
        elif isinstance(event, Frames):
            track.add(event)
            self._result.frames += len(event.times)
        elif isinstance(event, DecodeReport):
            track.report = event

    def _encode(self, track: VideoExtraction) -> None:
        """Put what frames there are into batches."""
        runs = track.sampling.runs(track.buffer.end, ended=track.report is not None)
        for run in runs:
            track.under_way += self._batcher.samples(run)
            self._submit(self._batcher.add(track, track.buffer, run))
        track.buffer.forget(track.sampling.needed())

    def _submit(self, batches: Iterable[Batch]) -> None:
        for batch in batches:
            self._pending.append((batch, self._engine.submit(batch)))

    def _collect(self, allowed: int) -> None:
        """Deal out finished batches, and wait for one as long as more than `allowed` are not."""
        while self._pending and (len(self._pending) > allowed or self._pending[0][1].done()):
            batch, future = self._pending.popleft()
            try:
                features = future.result()
            except MstembaError as error:
                for track in {id(owner): owner for owner, _, _ in batch.owners}.values():
                    if not self._is_current(track):
                        continue
                    if isinstance(error, FramesLost):
                        self._lose(track, error)
                    else:
                        self._fail(track.job.id, error)
                continue
            position = 0
            for track, samples, reached in batch.owners:
                if self._is_current(track):
                    self._deal(track, features[position : position + samples], reached)
                position += samples

    def _deal(self, track: VideoExtraction, features: FeatureArray, reached: int) -> None:
        track.under_way -= len(features)
        with self._charged_to(track):
            track.write(track.sampling.rows(features))
            self._progress.frames(track.job.id, reached - track.reached, track.time_of(reached - 1))
            track.reached = reached
            self._finish_if_whole(track)

    def _finish_if_whole(self, track: VideoExtraction) -> None:
        if track.report is None or track.under_way:
            return
        track.finish()
        for warning in track.report.warnings:
            self._warn(track.job.id, f"{track.job.id}: {warning}")
        self._result.made.append(track.job.id)
        self._done_with(track)

    def _fail(self, id: str, error: MstembaError) -> None:
        self._result.failed[id] = str(error)
        self._warn(id, str(error))
        self._done_with(self._tracks[id])

    def _lose(self, track: VideoExtraction, reason: FramesLost) -> None:
        """Do the video again later, from its last whole shard."""
        id = track.job.id
        self._losses[id] += 1
        if self._losses[id] > _MOST_LOSSES:
            self._fail(id, MstembaError(f"{id}: given up after {_MOST_LOSSES} tries: {reason}"))
            return
        self._warn(id, f"{id}: {reason}; doing it again")
        del self._tracks[id]
        track.claim.release()
        self._lost.append(track.job)

    def _warn(self, id: str, message: str) -> None:
        self._listen(Event("extract", message, warning=True, video=id))

    def _done_with(self, track: VideoExtraction) -> None:
        del self._tracks[track.job.id]
        track.claim.release()
        self._progress.video(track.job.id)

    def _is_current(self, track: VideoExtraction) -> bool:
        return self._tracks.get(track.job.id) is track


class VideoExtraction:
    """One video on its way from frames to rows in the store."""

    def __init__(
        self,
        job: Job,
        claim: EntryLock,
        store: FeatureStore,
        about: BackboneSpec,
        unfinished: Unfinished | None = None,
    ) -> None:
        self.job, self.claim = job, claim
        self._store, self._about, self._unfinished = store, about, unfinished
        self._row = 0 if unfinished is None else unfinished.rows
        self.sampling = sampling(about, store.spec.window, store.spec.stride, self._row)
        self.buffer = FrameBuffer(self.sampling.first)
        self.decoder = ""
        self.report: DecodeReport | None = None
        self.under_way = 0
        """Samples whose features have not come yet."""
        self.reached = self.sampling.first
        """The frame after the last one whose features have come."""
        self._times = array("d")
        self._writer: EntryWriter | None = None

    @property
    def resume(self) -> Resume | None:
        """Where decoding begins, when some rows are there from an earlier run."""
        done = self._unfinished
        if done is None or self.sampling.first == 0:
            return None
        anchor = min(done.rows - 1, (self.sampling.first - 1) // self._store.spec.stride)
        frame = anchor * self._store.spec.stride
        return Resume(self.sampling.first, done.decoder, (frame, float(done.starts[anchor])))

    def again(self, decoder: str) -> VideoExtraction:
        """The same video from its beginning, by another decoder."""
        track = VideoExtraction(self.job, self.claim, self._store, self._about)
        track.decoder = decoder
        return track

    def add(self, frames: Frames) -> None:
        self.buffer.add(frames.images, len(frames.times))
        self._times.extend(frames.times)

    def time_of(self, frame: int) -> float:
        """Seconds at which a frame that was decoded in this run is shown."""
        return self._times[frame - self.sampling.first]

    def write(self, rows: FeatureArray) -> None:
        """Append (M, F) rows to the entry.

        Raises MstembaError for features that are not finite, or not in the store's type.
        """
        spec = self._store.spec
        if not len(rows):
            return
        first = self._row * spec.stride - self.sampling.first
        starts = np.array(self._times[first : first + len(rows) * spec.stride : spec.stride])
        self._row += len(rows)
        with np.errstate(over="ignore"):
            stored = rows.astype(spec.dtype)
        bad = ~np.isfinite(stored).all(axis=1)
        if bad.any():
            raise MstembaError(
                f"{self.job.id}: the backbone gave NaN or infinity at {starts[bad][0]:.1f} s: "
                f"try --precision float32 --dtype float32"
            )
        self._open().append(stored, starts)

    def finish(self) -> None:
        """Write the last rows and the marker that makes the entry exist."""
        report, spec = self.report, self._store.spec
        assert report is not None
        self.write(self.sampling.finish())
        self._open().finish(
            step=spec.stride * spec.frame_step / report.fps,
            duration=report.duration,
            fps=report.fps,
            frames=report.frames,
            fingerprint=self.job.fingerprint,
            source=self.job.path.name,
            decoder=report.decoder,
            warnings=report.warnings,
        )

    def _open(self) -> EntryWriter:
        if self._writer is None:
            self._writer = self._store.writer(
                self.job.id, self.job.key, self.decoder, self._unfinished
            )
        return self._writer


def _waiting_for(jobs: list[Job]) -> str:
    others = f" and {len(jobs) - 1} more" if len(jobs) > 1 else ""
    return f"waiting for another process, which is extracting {jobs[0].id}{others}"


class _Progress:
    """Work measured in bytes of video: the time left is known before all files are opened."""

    def __init__(self, jobs: list[Job], on_event: EventHandler) -> None:
        self._sizes = {job.id: job.path.stat().st_size for job in jobs}
        self._meter = ProgressReporter("extract", sum(self._sizes.values()), "frames", on_event)
        self._done = 0
        self._frames = 0
        self._seconds: dict[str, float] = {}
        self._shares: dict[str, float] = {}
        """Bytes done of videos under way."""

    def opened(self, id: str, seconds: float) -> None:
        self._seconds[id] = seconds

    def frames(self, id: str, count: int, reached: float) -> None:
        """`count` more frames are encoded, up to the time `reached` of the video."""
        self._frames += count
        seconds = self._seconds.get(id, 0.0)
        self._shares[id] = self._sizes[id] * (min(1.0, reached / seconds) if seconds else 0.0)
        self._tell(id, f"at {reached:.0f} s" + (f" of {seconds:.0f} s" if seconds else ""))

    def video(self, id: str) -> None:
        self._done += self._sizes[id]
        self._shares.pop(id, None)
        self._tell(id, "done")

    def _tell(self, id: str, what: str) -> None:
        done = self._done + sum(self._shares.values())
        self._meter.update(f"{id} {what}, {self._frames} frames", done, self._frames, id)
