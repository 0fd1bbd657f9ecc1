"""Decoding with PyAV: exact for every file that FFmpeg reads."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from itertools import islice
from pathlib import Path

import av
from av.video.stream import VideoStream

from mstemba.pipeline.decode.probe import open_video
from mstemba.pipeline.decode.request import (
    Damaged,
    DecodedFrame,
    DecodeRequest,
    DecoderFailed,
    VideoInfo,
)
from mstemba.pipeline.decode.resize import FrameResizer
from mstemba.pipeline.decode.timeline import FrameClock
from mstemba.wording import counted


def decode(
    request: DecodeRequest, info: VideoInfo, heartbeat: Callable[[], None]
) -> Iterator[DecodedFrame]:
    """Yield the used frames; those that `frame_step` skips are not resized.

    Raises:
        Damaged: A packet cannot be decoded, and how many frames several threads then give depends
            on the machine. A single thread skips such packets, with a warning.
    """
    single_threaded = request.single_threaded or info.is_cut
    clock = FrameClock(info.timeline)
    number = damaged = 0
    with open_video(request.path) as (container, stream):
        stream.thread_type = "SLICE" if single_threaded else "AUTO"
        stream.codec_context.thread_count = 1 if single_threaded else request.threads
        resize = FrameResizer(stream, info, request)
        for packet in container.demux(stream):
            heartbeat()
            try:
                frames = packet.decode()
            except av.FFmpegError:
                if not single_threaded:
                    raise Damaged("a packet is damaged") from None
                damaged += 1
                clock.skip()
                continue
            for frame in frames:
                time = clock.time(frame.pts)
                if number % request.frame_step == 0:
                    yield time, partial(resize, frame)
                number += 1
    if damaged:
        skipped, decoded = counted(damaged, "damaged packet"), counted(number, "frame")
        info.warnings.append(f"{skipped} skipped, {decoded} decoded")


def copies(path: Path, info: VideoInfo, pieces: list[int]) -> Iterator[io.BytesIO]:
    """Yield a video as in-memory files, remuxed without decoding.

    Args:
        path: The video file.
        info: What `probe` returned for it.
        pieces: The number of packets in each file.

    Raises:
        DecoderFailed: The packets cannot be read, or not be written to Matroska.
    """
    with open_video(path) as (container, stream):
        packets = (packet for packet in container.demux(stream) if packet.size)
        for count in pieces:
            file = io.BytesIO()
            # Matroska keeps all that MP4 says about colours; MP4 itself does not.
            try:
                with av.open(file, "w", format="matroska") as output:
                    # Opaque: FFmpeg cannot encode the codec, and need not.
                    copy = output.add_stream_from_template(stream, opaque=True)
                    assert isinstance(copy, VideoStream)
                    # Without a rate in the header, decord cannot count the frames.
                    rate = Fraction(info.timeline.fps).limit_denominator(1000)
                    copy.codec_context.framerate = rate
                    for packet in islice(packets, count):
                        packet.stream = copy
                        output.mux(packet)
            except (av.FFmpegError, ValueError) as error:
                raise DecoderFailed(f"its packets cannot be copied: {error}") from None
            file.seek(0)
            yield file
