"""Everything done with PyAV: looking into a file, exact decoding, and writing the demo's videos."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import av
import av.filter
import numpy as np
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from mstemba.errors import DecodeError
from mstemba.pipeline.decode.settings import DecodedFrame, DecodeSettings, Image, Probe, nothing

# Where a keyframe is what it says, and the container finds it: others are decoded from the start.
_SEEK_CODECS = {"h264", "hevc", "vp8", "vp9", "av1", "mpeg4", "mjpeg"}
_SEEK_CONTAINERS = ("mp4", "matroska")


def probe(path: Path, heartbeat: Callable[[], None] = nothing) -> Probe:
    """Look into a file. Raises DecodeError when no frame of video can be had from it.

    `alive` is called for every packet of the pass over the file.
    """
    try:
        with av.open(str(path)) as container:
            stream = _video_stream(container, path)
            offset = (container.start_time or 0) / av.time_base
            first = _first_frame(container, stream, path)
            rotation = int(first.rotation) % 360
            turned = rotation in (90, 270)
            width, height = (first.height, first.width) if turned else (first.width, first.height)
            packets = _look_through(path, offset, heartbeat)
            return Probe(
                width=width,
                height=height,
                rotation=rotation,
                codec=stream.codec_context.codec.canonical_name,
                container=container.format.name,
                offset=offset,
                times=packets.times,
                keyframes=packets.keyframes,
                fresh=packets.fresh and any(c in container.format.name for c in _SEEK_CONTAINERS),
                closed=packets.closed,
                length=(container.duration or 0) / av.time_base,
                rate=float(stream.average_rate or 0),
            )
    except (av.FFmpegError, OSError) as error:
        raise DecodeError(f"{path}: not a readable video: {_reason(error)}") from None


def decode(path: Path, found: Probe, plan: DecodeSettings) -> Iterator[DecodedFrame]:
    """The used frames from `plan.start` on.

    `plan.careful` is for a file known to be damaged: one thread, so that how many frames come out
    does not depend on the machine. A packet that cannot be decoded is skipped and counted; the
    count is raised as `DamagedPackets` after the last frame. Raises `SeekMissed` before the first
    frame when `plan.start` cannot be reached.
    """
    damaged = 0
    number = plan.start * plan.frame_step
    with av.open(str(path)) as container:
        stream = _video_stream(container, path)
        _set_threads(stream, found, plan)
        picture = _Picture(stream, found.rotation, plan.size)
        if wanted := number:
            _seek(container, stream, found, wanted)
        for packet in container.demux(stream):
            plan.heartbeat()
            try:
                frames = packet.decode()
            except av.FFmpegError:
                if not _alone(found, plan):
                    raise FoundDamage from None
                damaged += 1
                continue
            for frame in frames:
                time = _time(frame, stream, found, number)
                if wanted:
                    assert found.times is not None
                    if damaged or time > found.times[wanted]:
                        raise SeekMissed
                    if time < found.times[wanted]:
                        continue
                    wanted = 0
                if number % plan.frame_step == 0:
                    yield DecodedFrame(number // plan.frame_step, time, partial(picture, frame))
                number += 1
    if wanted:
        raise SeekMissed
    if damaged:
        raise DamagedPackets(damaged, number)


class DamagedPackets(Exception):
    """Some packets could not be decoded; all frames that could be were given before."""

    def __init__(self, packets: int, frames: int) -> None:
        super().__init__(f"{packets} damaged packets skipped, {frames} frames decoded")


class FoundDamage(Exception):
    """The file is damaged: how many of its frames several threads give depends on the machine."""


class SeekMissed(Exception):
    """Seeking did not lead to the frame that decoding was to begin at."""


def _set_threads(stream: VideoStream, found: Probe, plan: DecodeSettings) -> None:
    alone = _alone(found, plan)
    stream.thread_type = "SLICE" if alone else "AUTO"
    stream.codec_context.thread_count = 1 if alone else plan.threads


def _alone(found: Probe, plan: DecodeSettings) -> bool:
    """Whether one thread decodes."""
    return plan.single_threaded or found.looks_cut


def _seek(
    container: av.container.InputContainer, stream: VideoStream, found: Probe, number: int
) -> None:
    """Go to the keyframe before the one that frame `number` needs: what is shown right after a
    keyframe may still lean on frames before it."""
    assert found.times is not None
    before = int(np.searchsorted(found.keyframes, number, "right")) - 2
    if before > 0:
        time = found.times[found.keyframes[before]] + found.offset
        try:
            container.seek(round(time / float(stream.time_base or 1)), stream=stream)
        except av.FFmpegError:
            raise SeekMissed from None


def _time(frame: VideoFrame, stream: VideoStream, found: Probe, number: int) -> float:
    """Seconds at which the frame is shown."""
    if "avi" in found.container and found.times is not None:
        # AVI has no presentation times; with B-frames FFmpeg's guesses go back.
        return float(found.times[min(number, len(found.times) - 1)])
    if frame.pts is not None:
        # The very arithmetic of `_look_through`: equal to the last bit.
        return float(frame.pts * float(stream.time_base or 0) - found.offset)
    return number / (found.rate or 1)


class _Picture:
    """A decoded frame as upright RGB pixels, resized."""

    def __init__(self, stream: VideoStream, rotation: int, size: tuple[int, int]) -> None:
        self._turns = rotation // 90
        self._scaler = _Scaler(stream, (size[1], size[0]) if self._turns % 2 else size)

    def __call__(self, frame: VideoFrame) -> Image:
        return np.rot90(self._scaler(frame), self._turns) if self._turns else self._scaler(frame)


class _Scaler:
    """swscale in a filter graph: the conversion that decord does, bit for bit on 8-bit H.264."""

    def __init__(self, stream: VideoStream, size: tuple[int, int]) -> None:
        self._stream = stream
        self._size = size
        self._graph: av.filter.Graph | None = None
        self._format: tuple[int, int, str] | None = None

    def __call__(self, frame: VideoFrame) -> Image:
        form = (frame.width, frame.height, frame.format.name)
        if self._graph is None or form != self._format:  # the picture may change size midway
            self._graph = self._build(frame)
            self._format = form
        self._graph.push(frame)
        scaled = self._graph.pull()
        assert isinstance(scaled, VideoFrame)
        plane = scaled.planes[0]
        lines = np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, plane.line_size)
        image: Image = lines[:, : 3 * plane.width].reshape(plane.height, plane.width, 3)
        return image

    def _build(self, frame: VideoFrame) -> av.filter.Graph:
        graph = av.filter.Graph()
        source = graph.add_buffer(
            width=frame.width,
            height=frame.height,
            format=frame.format,
            time_base=self._stream.time_base,
        )
        width, height = self._size
        scale = graph.add("scale", f"{width}:{height}:flags=bilinear")
        rgb = graph.add("format", "rgb24")
        graph.link_nodes(source, scale, rgb, graph.add("buffersink")).configure()
        return graph


def _video_stream(container: av.container.InputContainer, path: Path) -> VideoStream:
    stream = container.streams.best("video")
    if not isinstance(stream, VideoStream):
        kinds = ", ".join(sorted({s.type for s in container.streams})) or "nothing"
        raise DecodeError(f"{path}: no video stream in it, only {kinds}")
    return stream


def _first_frame(
    container: av.container.InputContainer, stream: VideoStream, path: Path
) -> VideoFrame:
    for packet in container.demux(stream):
        try:
            for frame in packet.decode():
                assert isinstance(frame, VideoFrame)
                return frame
        except av.FFmpegError:
            continue
    raise DecodeError(f"{path}: no frame of its video stream can be decoded")


class _Packets(NamedTuple):
    """What the packets of a stream say, undecoded; as in Probe."""

    times: NDArray[np.float64] | None
    keyframes: NDArray[np.intp]
    fresh: bool
    closed: bool


def _look_through(path: Path, offset: float, heartbeat: Callable[[], None]) -> _Packets:
    """A pass over the file without decoding."""
    stamps: list[int | None] = []
    keys: list[int] = []
    with av.open(str(path)) as container:
        stream = _video_stream(container, path)
        codec = stream.codec_context.codec.canonical_name
        fresh = codec in _SEEK_CODECS
        unit = float(stream.time_base or 0)
        lengths = (stream.codec_context.extradata or b"")[:1] == b"\1"
        for packet in container.demux(stream):
            heartbeat()
            if packet.size and not packet.is_discard:
                if packet.is_keyframe:
                    keys.append(len(stamps))
                    fresh = fresh and (codec != "h264" or _is_idr(bytes(packet), lengths))
                stamps.append(packet.pts)
    if not stamps or None in stamps or len(set(stamps)) < len(stamps):
        return _Packets(None, np.zeros(0, np.intp), False, False)
    pts = np.array(stamps, dtype=np.float64)
    places = np.argsort(np.argsort(pts))
    still_to_come = np.minimum.accumulate(pts[::-1])[::-1]
    return _Packets(
        np.sort(pts) * unit - offset,
        np.sort(places[keys]),
        fresh and keys[:1] == [0],
        bool((still_to_come[keys] == pts[keys]).all()),
    )


def _is_idr(packet: bytes, lengths: bool) -> bool:
    """Whether an H.264 keyframe forgets all before it: other recovery points may need time.

    Its units follow their own 4-byte lengths, as MP4 and Matroska have it, or start codes.
    """
    if not lengths:
        return re.search(b"\0\0\1[\x25\x45\x65]", packet) is not None
    place = 0
    while place + 4 < len(packet):
        if packet[place + 4] & 31 == 5:
            return True
        place += 4 + int.from_bytes(packet[place : place + 4], "big")
    return False


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


def write_video(path: Path, frames: Iterable[Image], fps: int) -> None:
    """Encode (H, W, 3) RGB frames as H.264 in the container that the file name asks for."""
    with av.open(str(path), "w") as container:
        stream = None
        for image in frames:
            if stream is None:
                stream = container.add_stream(
                    "libx264", rate=fps, options={"crf": "23", "preset": "fast"}
                )
                stream.height, stream.width = image.shape[:2]
                stream.pix_fmt = "yuv420p"
            container.mux(stream.encode(VideoFrame.from_ndarray(image, format="rgb24")))
        if stream is None:
            raise ValueError("no frames to write")
        container.mux(stream.encode())
