"""Everything done with PyAV: looking into a file, exact decoding, and writing the demo's videos."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import av.filter
import numpy as np
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from mstemba.errors import DecodeError


@dataclass(frozen=True)
class Probe:
    """What a container says about its best video stream, found by decoding one frame."""

    width: int
    height: int
    """Pixels as shown, rotation applied."""
    rotation: int
    """Degrees counter-clockwise that a player turns the picture, as the file asks."""
    codec: str
    container: str
    offset: float
    """Seconds: where the container's clock starts. All times are relative to it."""
    times: NDArray[np.float64] | None
    """(N,) presentation time of every packet, sorted; None when some are not in the file."""
    length: float
    """Seconds that the container's header promises, 0 when it says nothing."""
    rate: float
    """Nominal frames a second, 0 when unknown."""

    @property
    def looks_cut(self) -> bool:
        """Whether packets that the header promises are not there."""
        return self.times is not None and self.times[-1] < self.length - 1


def probe(path: Path) -> Probe:
    """Look into a file. Raises DecodeError when no frame of video can be had from it."""
    try:
        with av.open(str(path)) as container:
            stream = _video_stream(container, path)
            offset = (container.start_time or 0) / av.time_base
            first = _first_frame(container, stream, path)
            rotation = int(first.rotation) % 360
            turned = rotation in (90, 270)
            width, height = (first.height, first.width) if turned else (first.width, first.height)
            return Probe(
                width=width,
                height=height,
                rotation=rotation,
                codec=stream.codec_context.codec.canonical_name,
                container=container.format.name,
                offset=offset,
                times=_packet_times(path, offset),
                length=(container.duration or 0) / av.time_base,
                rate=float(stream.average_rate or 0),
            )
    except (av.FFmpegError, OSError) as error:
        raise DecodeError(f"{path}: not a readable video: {_reason(error)}") from None


def decode(
    path: Path, found: Probe, size: tuple[int, int], every: int, careful: bool = False
) -> Iterator[tuple[NDArray[np.uint8], float]]:
    """Every `every`-th frame as RGB (H, W, 3) of `size` = (W, H), with its time in seconds.

    `careful` is for a file known to be damaged: one thread, so that how many frames come out does
    not depend on the machine. A packet that cannot be decoded is skipped and counted; the count is
    raised as `DamagedPackets` after the last frame.
    """
    turns = found.rotation // 90
    scale_to = (size[1], size[0]) if turns % 2 else size
    damaged = number = 0
    with av.open(str(path)) as container:
        stream = _video_stream(container, path)
        stream.thread_type = "SLICE" if careful or found.looks_cut else "AUTO"
        scaler = _Scaler(stream, scale_to)
        for packet in container.demux(stream):
            try:
                frames = packet.decode()
            except av.FFmpegError:
                damaged += 1
                continue
            for frame in frames:
                if number % every == 0:
                    image = np.rot90(scaler(frame), turns) if turns else scaler(frame)
                    # A frame without a time is placed by the nominal rate.
                    if "avi" in found.container and found.times is not None:
                        # AVI has no presentation times; with B-frames FFmpeg's guesses go back.
                        time = found.times[min(number, len(found.times) - 1)]
                    elif frame.pts is not None:
                        # The very arithmetic of `_packet_times`: equal to the last bit.
                        time = frame.pts * float(stream.time_base or 0) - found.offset
                    else:
                        time = number / (found.rate or 1)
                    yield np.ascontiguousarray(image), float(time)
                number += 1
    if damaged:
        raise DamagedPackets(damaged, number)


class DamagedPackets(Exception):
    """Some packets could not be decoded; all frames that could be were given before."""

    def __init__(self, packets: int, frames: int) -> None:
        super().__init__(f"{packets} damaged packets skipped, {frames} frames decoded")


class _Scaler:
    """swscale in a filter graph: the conversion that decord does, bit for bit on 8-bit H.264."""

    def __init__(self, stream: VideoStream, size: tuple[int, int]) -> None:
        self._stream = stream
        self._size = size
        self._graph: av.filter.Graph | None = None
        self._format: tuple[int, int, str] | None = None

    def __call__(self, frame: VideoFrame) -> NDArray[np.uint8]:
        form = (frame.width, frame.height, frame.format.name)
        if self._graph is None or form != self._format:  # the picture may change size midway
            self._graph = self._build(frame)
            self._format = form
        self._graph.push(frame)
        scaled = self._graph.pull()
        assert isinstance(scaled, VideoFrame)
        return np.asarray(scaled.to_ndarray(), np.uint8)

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


def _packet_times(path: Path, offset: float) -> NDArray[np.float64] | None:
    """Presentation times of all packets: a pass over the file without decoding."""
    with av.open(str(path)) as container:
        stream = _video_stream(container, path)
        stamps = [p.pts for p in container.demux(stream) if p.size and not p.is_discard]
        if not stamps or any(pts is None for pts in stamps) or len(set(stamps)) < len(stamps):
            return None
        return np.sort(np.array(stamps, dtype=np.float64)) * float(stream.time_base or 0) - offset


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


def write_video(path: Path, frames: Iterable[NDArray[np.uint8]], fps: int) -> None:
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
