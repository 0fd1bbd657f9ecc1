"""Decoding with PyAV: exact for every file that FFmpeg reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import av

from mstemba.pipeline.decode.probe import open_video
from mstemba.pipeline.decode.request import Damaged, DecodedFrame, DecodeRequest, VideoInfo
from mstemba.pipeline.decode.resize import FrameResizer
from mstemba.pipeline.decode.timeline import FrameClock


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
        info.warnings.append(f"{damaged} damaged packets skipped, {number} frames decoded")
