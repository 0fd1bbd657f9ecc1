"""Everything done with PyAV: looking into a file, exact decoding, and writing the demo's videos."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import av
import numpy as np
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from mstemba.errors import DecodeError
from mstemba.pipeline.decode.resize import FrameResizer
from mstemba.pipeline.decode.settings import (
    DecodedFrame,
    DecoderFailed,
    DecodeSettings,
    Image,
    VideoInfo,
    no_heartbeat,
)


def probe(path: Path, heartbeat: Callable[[], None] = no_heartbeat) -> VideoInfo:
    """Read what a file says about its video: one decoded frame, and a pass over its packets.

    Args:
        path: The video file.
        heartbeat: Called for every packet.

    Raises:
        DecodeError: The file is not a video, or none of its frames can be decoded.
    """
    try:
        with av.open(str(path)) as container:
            stream = _video_stream(container, path)
            offset = (container.start_time or 0) / av.time_base
            first = _first_frame(container, stream, path)
            rotation = int(first.rotation) % 360
            width, height = first.width, first.height
            if rotation in (90, 270):
                width, height = height, width
            times, keyframes = _packets(path, offset, heartbeat)
            return VideoInfo(
                width=width,
                height=height,
                rotation=rotation,
                codec=stream.codec_context.codec.canonical_name,
                container=container.format.name,
                offset=offset,
                times=times,
                keyframes=keyframes,
                duration=(container.duration or 0) / av.time_base,
                rate=float(stream.average_rate or 0),
            )
    except (av.FFmpegError, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DecodeError(f"{path}: not a readable video: {reason}") from None


def decode(path: Path, info: VideoInfo, settings: DecodeSettings) -> Iterator[DecodedFrame]:
    """Yield the used frames.

    Raises:
        DecoderFailed: The file is damaged, so how many frames several threads give depends on the
            machine. A single thread skips the packets that cannot be decoded, with a warning.
    """
    single_threaded = settings.single_threaded or info.looks_cut
    number = damaged = 0
    with av.open(str(path)) as container:
        stream = _video_stream(container, path)
        stream.thread_type = "SLICE" if single_threaded else "AUTO"
        stream.codec_context.thread_count = 1 if single_threaded else settings.threads
        resize = FrameResizer(stream, info.rotation, settings.size)
        for packet in container.demux(stream):
            settings.heartbeat()
            try:
                frames = packet.decode()
            except av.FFmpegError:
                if not single_threaded:
                    raise DecoderFailed("a packet is damaged") from None
                damaged += 1
                continue
            for frame in frames:
                if number % settings.frame_step == 0:
                    yield DecodedFrame(_time(frame, stream, info, number), partial(resize, frame))
                number += 1
    if damaged:
        settings.warnings.append(f"{damaged} damaged packets skipped, {number} frames decoded")


def _time(frame: VideoFrame, stream: VideoStream, info: VideoInfo, number: int) -> float:
    """Return the seconds at which the frame is displayed."""
    if "avi" in info.container and info.times is not None:
        # AVI has no presentation times; with B-frames FFmpeg's guesses go back.
        return float(info.times[min(number, len(info.times) - 1)])
    if frame.pts is not None:
        return float(frame.pts * float(stream.time_base or 0) - info.offset)
    return number / (info.rate or 1)


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


def _packets(
    path: Path, offset: float, heartbeat: Callable[[], None]
) -> tuple[NDArray[np.float64] | None, NDArray[np.intp] | None]:
    """Return `times` and `keyframes` of VideoInfo, from the packets of the file, undecoded."""
    stamps: list[int | None] = []
    keys: list[int] = []
    closed = True
    with av.open(str(path)) as container:
        stream = _video_stream(container, path)
        is_h264 = stream.codec_context.codec.canonical_name == "h264"
        unit = float(stream.time_base or 0)
        for packet in container.demux(stream):
            heartbeat()
            if packet.size and not packet.is_discard:
                if packet.is_keyframe:
                    keys.append(len(stamps))
                    closed = closed and (not is_h264 or _is_idr(bytes(packet)))
                stamps.append(packet.pts)
    if not stamps or None in stamps or len(set(stamps)) < len(stamps):
        return None, None
    pts = np.array(stamps, dtype=np.float64)
    places = np.argsort(np.argsort(pts))
    # The same arithmetic as in `_time`: equal to the last bit.
    times = np.sort(pts) * unit - offset
    still_to_come = np.minimum.accumulate(pts[::-1])[::-1]
    closed = closed and keys[:1] == [0] and bool((still_to_come[keys] == pts[keys]).all())
    return times, np.sort(places[keys]) if closed else None


def _is_idr(packet: bytes) -> bool:
    """Whether an H.264 keyframe, as MP4 and Matroska store it, resets the decoder.

    Other recovery points may need frames before them.
    """
    place = 0
    while place + 4 < len(packet):
        if packet[place + 4] & 31 == 5:
            return True
        place += 4 + int.from_bytes(packet[place : place + 4], "big")  # the length of the unit
    return False


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
