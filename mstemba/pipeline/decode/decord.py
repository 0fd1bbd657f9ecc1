"""Decoding with decord, where it gives exactly the frames that are in the file."""

from __future__ import annotations

import contextlib
import io
import itertools
import re
from collections import deque
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
from av.video.stream import VideoStream

from mstemba.pipeline.decode.probe import open_video
from mstemba.pipeline.decode.request import (
    Damaged,
    DecodedFrame,
    DecodeRequest,
    DecoderFailed,
    Image,
    VideoInfo,
)
from mstemba.pipeline.decode.resize import crop, displayed_size

# Formats in which decord finds the first frame again after it has counted them.
CONTAINERS = {"mp4", "matroska", "avi"}
# decord gets a video in pieces, since it decodes ahead of a slow consumer without a bound: groups
# of pictures until there are so many frames, or so many bytes.
PIECE_FRAMES, PIECE_BYTES = 64, 1 << 24
# Bytes of resized frames of a piece. Only videos with one keyframe a minute or less have more.
MOST_BYTES = 1 << 29
# decord replaces frames that it cannot decode by copies, up to this share; 0 would mean any number.
_NO_COPIES = 1e-9


def why_inexact(info: VideoInfo) -> str | None:
    """Return why decord does not give such a file's exact frames, or None when it does."""
    try:
        import decord  # noqa: F401
    except (ImportError, OSError):
        return "decord is not installed, or not made for this platform"
    if not CONTAINERS & info.containers:
        return f"decord may lose frames in {min(info.containers)}"
    if info.timeline.clocks > 1:
        return "its clock starts again"
    if sum(info.groups) != len(info.timeline.times):
        return "not every packet is a frame that is shown"
    if not info.keeps_parameters:
        return f"decord does not notice when the size of {info.codec} frames changes"
    if any(name != "transpose" or way not in "12" for name, way in info.upright):
        return "decord does not mirror frames, nor turn them by other than right angles"
    if info.turned_by_frames:
        return "decord turns frames only as the container asks"
    return "the file is cut off" if info.is_cut else None


def is_lean(info: VideoInfo, request: DecodeRequest) -> bool:
    """Return whether decord can have all frames of the longest piece in memory."""
    width, height = displayed_size(info, info.pixel_aspect, info.width, info.height, request)
    longest = min(PIECE_FRAMES + max(info.groups), sum(info.groups))
    return 3 * width * height * longest <= MOST_BYTES


def decode(
    request: DecodeRequest, info: VideoInfo, heartbeat: Callable[[], None]
) -> Iterator[DecodedFrame]:
    """Yield the used frames. decord also resizes those that `frame_step` skips.

    It reads from the first frame to the last and never seeks, since seeking loses frames.

    Raises:
        DecoderFailed: decord cannot read the file.
        Damaged: It cannot decode one of its frames.
    """
    import decord

    width, height = displayed_size(info, info.pixel_aspect, info.width, info.height, request)
    times = enumerate(info.timeline.times.tolist())
    for piece, packets in _pieces(request.path, info):
        with _its_errors(DecoderFailed):
            reader = decord.VideoReader(
                piece,
                width=width,
                height=height,
                num_threads=request.threads,
                fault_tol=_NO_COPIES,
            )
        if len(reader) != packets:
            raise DecoderFailed(f"decord counts {len(reader)} frames in {packets} packets")
        for number, time in itertools.islice(times, packets):
            with _its_errors(Damaged):
                frame = reader.next()
            if frame.shape != (height, width, 3):
                raise DecoderFailed(f"decord gives frames of {frame.shape}")
            heartbeat()
            if number % request.frame_step == 0:
                yield time, partial(_square, frame, request.size)


def _pieces(path: Path, info: VideoInfo) -> Iterator[tuple[io.BytesIO, int]]:
    """Yield the video as short files in memory, and how many packets are in each."""
    file_format = min(CONTAINERS & info.containers)
    # decord fails where HEVC gives several frames for one packet, as at the end of a group.
    most = 1 if info.codec == "hevc" else PIECE_FRAMES
    with open_video(path) as (container, stream):
        packets = (packet for packet in container.demux(stream) if packet.size)
        groups = deque(info.groups)
        while groups:
            piece = io.BytesIO()
            count = 0
            with _its_errors(DecoderFailed), av.open(piece, "w", format=file_format) as output:
                # Opaque: FFmpeg cannot encode the codec, and need not.
                copy = output.add_stream_from_template(stream, opaque=True)
                assert isinstance(copy, VideoStream)
                # Without a rate in the header, decord cannot count the frames of Matroska.
                copy.codec_context.framerate = Fraction(info.timeline.fps).limit_denominator(1000)
                while groups and count < most and piece.tell() < PIECE_BYTES:
                    group = groups.popleft()
                    for packet in itertools.islice(packets, group):
                        packet.stream = copy
                        output.mux(packet)
                    count += group
            piece.seek(0)
            yield piece, count


def _square(frame: Any, size: int) -> Image:
    return crop(frame.asnumpy(), size)


@contextlib.contextmanager
def _its_errors(kind: type[DecoderFailed]) -> Iterator[None]:
    """Raise this exception for those of decord, without the places in its source code."""
    try:
        yield
    except Exception as error:  # decord has several kinds that are not related
        reason = re.sub(r"\[\d+:\d+:\d+\] \S+: ", "", str(error)).strip().splitlines()
        raise kind(reason[0] if reason else type(error).__name__) from None
