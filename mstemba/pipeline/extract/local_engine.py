"""Extraction on this machine: decoder processes, batches, and forward passes on its devices."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future

import numpy as np

from mstemba.errors import MstembaError
from mstemba.extractors.backbone_spec import BackboneSpec
from mstemba.extractors.registry import ResolvedBackbone
from mstemba.extractors.windows import FeatureArray, sampling
from mstemba.pipeline import devices
from mstemba.pipeline.decode.request import DecodeReport, Opened, Restart
from mstemba.pipeline.decode.worker import DecodeEvent, DecodePool
from mstemba.pipeline.extract.batches import Batcher, FrameBatch, FrameBuffer
from mstemba.pipeline.extract.engine import EngineEvent, FeatureRows, VideoRequest
from mstemba.pipeline.extract.forward import ForwardPool
from mstemba.pipeline.options import RunOptions
from mstemba.pipeline.progress import EventHandler
from mstemba.records import FeatureSpec, Frames


class LocalEngine:
    """Decoder processes and forward threads at work on several videos.

    The frames of all videos share the batches, so that many short clips are as fast as one long
    film.
    """

    def __init__(
        self,
        spec: FeatureSpec,
        backbone: ResolvedBackbone,
        options: RunOptions,
        on_event: EventHandler,
        *,
        videos: int | None = None,
        cores: int | None = None,
    ) -> None:
        """Start loading the backbone, and the decoders.

        Args:
            videos: How many videos will be started, if that is known: more decoders would only
                take cores from the others.
            cores: CPU cores that decoding may use; by default those of this process.
        """
        self._spec, self._backbone_spec = spec, backbone.spec
        self._forward = ForwardPool(spec, backbone, options, on_event)
        self._ahead = 2 * self._forward.threads  # batches that keep every device busy
        length = sampling(self._backbone_spec, spec.window, spec.stride).length
        self._batcher = Batcher(self._forward.batch_size, length)
        self._videos: dict[str, _VideoFrames] = {}
        self._pending: deque[tuple[FrameBatch, Future[FeatureArray]]] = deque()
        self._events: deque[tuple[str, EngineEvent]] = deque()
        count = options.workers or decoders(cores or devices.cores(), self._forward.gpus)
        self._decoders: DecodePool[str] = DecodePool(
            min(count, videos or count), options.decode_timeout
        )

    @property
    def room(self) -> int:
        """How many more videos can be started without waiting."""
        return self._decoders.room

    def wait_loaded(self) -> None:
        """Wait until the backbone is loaded. Raises MstembaError when it cannot be."""
        self._forward.wait_loaded()

    def start(self, id: str, request: VideoRequest) -> None:
        """Begin a video."""
        while not self._decoders.room:  # what is left is being decoded for cancelled videos
            self._take_decoded()
        self._videos[id] = _VideoFrames(id, self._backbone_spec, self._spec, request.first_row)
        self._decoders.submit(id, request.decode)

    def cancel(self, id: str) -> None:
        """Give no more events of a video; its decoder runs to its end, and is not listened to."""
        self._videos.pop(id, None)
        self._events = deque(event for event in self._events if event[0] != id)

    def next_event(self) -> tuple[str, EngineEvent]:
        """Wait for the next event of any video under way."""
        while not self._events:
            if any(video.report is None for video in self._videos.values()):
                self._take_decoded()
            else:  # no more frames will come that could fill the last batch
                self._submit(self._batcher.flush())
                self._collect(0)
        return self._events.popleft()

    def close(self) -> None:
        """Stop at once, without finishing what is under way."""
        try:
            self._decoders.close()
        finally:
            self._forward.close()

    def _take_decoded(self) -> None:
        """Take the next event of the decoders."""
        id, event = self._decoders.next_event()
        if id in self._videos:  # otherwise it was cancelled
            self._handle(self._videos[id], event)
        self._collect(self._ahead)

    def _handle(self, video: _VideoFrames, event: DecodeEvent) -> None:
        """Take one event of a video's decoder."""
        if isinstance(event, MstembaError):
            self._end(video, event)
            return
        if isinstance(event, Opened):
            self._events.append((video.id, event))
        elif isinstance(event, Restart):
            # Batches under way may still give features of the old frames; nobody owns them now.
            video = self._videos[video.id] = _VideoFrames(video.id, self._backbone_spec, self._spec)
            self._events.append((video.id, event))
        elif isinstance(event, Frames):
            video.add(event)
        else:
            video.report = event
        for frames in video.sampling.runs(video.buffer.end, ended=video.report is not None):
            video.in_flight += self._batcher.samples(frames)
            self._submit(self._batcher.add(video, video.buffer, frames))
        video.buffer.forget(video.sampling.needed())
        self._end_if_complete(video)

    def _submit(self, batches: Iterable[FrameBatch]) -> None:
        self._pending.extend((batch, self._forward.submit(batch)) for batch in batches)

    def _collect(self, allowed: int) -> None:
        """Give finished batches' features to their videos; wait while more than `allowed` are not
        finished."""
        while self._pending and (len(self._pending) > allowed or self._pending[0][1].done()):
            batch, future = self._pending.popleft()
            owners = [owner for owner in batch.owners if self._videos.get(owner[0].id) is owner[0]]
            try:
                features = future.result()
            except MstembaError as error:
                for video in {video.id: video for video, *_ in owners}.values():
                    self._end(video, error)
                continue
            for video, samples, reached in owners:
                self._events.append((video.id, video.rows(features[samples], reached)))
                self._end_if_complete(video)

    def _end_if_complete(self, video: _VideoFrames) -> None:
        if video.report is not None and not video.in_flight:
            self._events.append((video.id, video.last_rows()))
            self._end(video, video.report)

    def _end(self, video: _VideoFrames, event: DecodeReport | MstembaError) -> None:
        del self._videos[video.id]
        self._events.append((video.id, event))


class _VideoFrames:
    """The frames of one video between its decoder and the backbone."""

    def __init__(self, id: str, backbone: BackboneSpec, spec: FeatureSpec, row: int = 0) -> None:
        self.id = id
        self.sampling = sampling(backbone, spec.window, spec.stride, row)
        self.buffer = FrameBuffer(self.sampling.first)
        self.report: DecodeReport | None = None
        self.in_flight = 0
        """Samples whose features have not come yet."""
        self._stride = spec.stride
        self._row = row
        self._first = self._reached = self.sampling.first
        self._times = array("d")

    def add(self, frames: Frames) -> None:
        """Take the next decoded frames."""
        self.buffer.add(frames.images, len(frames.times))
        self._times.extend(frames.times)

    def rows(self, features: FeatureArray, reached: int) -> FeatureRows:
        """Return the rows that the next (N, R, F) features complete, up to frame `reached`."""
        self.in_flight -= len(features)
        frames, self._reached = reached - self._reached, reached
        return self._rows(self.sampling.rows(features), frames)

    def last_rows(self) -> FeatureRows:
        """Return the rows that are left after the last features.

        Frames that no row needs, behind the last window, count as encoded.
        """
        frames, self._reached = self.buffer.end - self._reached, self.buffer.end
        return self._rows(self.sampling.finish(), frames)

    def _rows(self, values: FeatureArray, frames: int) -> FeatureRows:
        first = self._row * self._stride - self._first
        starts = self._times[first : first + len(values) * self._stride : self._stride]
        self._row += len(values)
        time = self._times[self._reached - self._first - 1] if self._reached > self._first else 0.0
        return FeatureRows(values, np.array(starts), frames, time)


def decoders(cores: int, gpus: int | None) -> int:
    """Decoder processes: a CPU backbone needs the cores itself, GPUs want all the frames they get.

    One core decodes about as many frames as three cores encode with a small backbone. The two
    threads of a GPU may keep a core each busy while they wait for it; where that would be most of
    the cores, half of them decode.
    """
    if gpus is None:
        return max(1, cores // 4)
    return max(1, min(max(cores - 2 * gpus, cores // 2), 16 * gpus))
