"""Decoding with decord, where it gives exactly the frames that are in the file."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from mstemba.pipeline.decode.pyav import copies
from mstemba.pipeline.decode.request import (
    DecodedFrame,
    DecodeRequest,
    DecoderFailed,
    Image,
    VideoInfo,
)
from mstemba.pipeline.decode.resize import crop, displayed_size
from mstemba.wording import counted

# Formats in which decord finds the first frame again after it has counted them.
CONTAINERS = {"mp4", "matroska", "avi"}
# decord decodes ahead of a slow consumer without limit. If the resized frames of a video exceed
# MOST_BYTES, it is split at closed groups of pictures into pieces of at least PIECE_FRAMES frames.
MOST_BYTES, PIECE_FRAMES = 1 << 29, 64
# Codecs whose keyframes are known to reset everything that FFmpeg remembers. For MPEG-4 and HEVC
# they are not: it remembers the encoder, and frames that are still to be shown.
_CUT = {"h264", "vp8", "vp9", "av1"}
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
    if sum(info.closed_groups) != len(info.timeline.times):
        return "some of its packets are not shown, or share a time"
    if not info.keeps_parameters:
        return f"decord does not notice when the size of {info.codec} frames changes"
    if info.codec == "hevc" and len(info.closed_groups) > 1:
        return "decord stops where a packet of HEVC gives several frames, as at the end of a group"
    if info.upright:
        return "its display matrix may turn or mirror its frames"
    return "the file is cut off" if info.is_cut else None


def fits_in_memory(info: VideoInfo, request: DecodeRequest) -> bool:
    """Return whether decord can have all frames of the longest piece in memory."""
    return max(_pieces(info, request)) <= _most_frames(info, request)


def _most_frames(info: VideoInfo, request: DecodeRequest) -> int:
    width, height = displayed_size(info, info.pixel_aspect, info.width, info.height, request)
    return MOST_BYTES // (3 * width * height)


def _pieces(info: VideoInfo, request: DecodeRequest) -> list[int]:
    """Return how many packets are in each piece; a short video is one piece."""
    total = sum(info.closed_groups)
    can_cut = info.codec in _CUT and "avi" not in info.containers
    if total <= _most_frames(info, request) or not can_cut:
        return [total]
    pieces = [0]
    for packets in info.closed_groups:
        if pieces[-1] >= PIECE_FRAMES:
            pieces.append(0)
        pieces[-1] += packets
    return pieces


def decode(
    request: DecodeRequest, info: VideoInfo, heartbeat: Callable[[], None]
) -> Iterator[DecodedFrame]:
    """Yield the used frames. decord also resizes those that `frame_step` skips.

    It reads from the first frame to the last and never seeks, since seeking loses frames.

    Raises:
        DecoderFailed: decord cannot read the file, or decode one of its frames.
    """
    import decord

    width, height = displayed_size(info, info.pixel_aspect, info.width, info.height, request)
    times = enumerate(info.timeline.times.tolist())
    pieces = _pieces(info, request)
    whole = [f"file:{request.path}"]
    files = copies(request.path, info, pieces) if len(pieces) > 1 else whole
    for packets, file in zip(pieces, files, strict=True):
        with _its_errors():
            reader = decord.VideoReader(
                file, width=width, height=height, num_threads=request.threads, fault_tol=_NO_COPIES
            )
        if len(reader) != packets:
            found = counted(len(reader), "frame")
            raise DecoderFailed(f"decord counts {found} in {counted(packets, 'packet')}")
        for number, time in itertools.islice(times, packets):
            with _its_errors():
                frame = reader.next()
            if frame.shape[:2] != (height, width) or frame.shape[2] < 3:
                raise DecoderFailed(f"decord gives frames of {frame.shape}")
            heartbeat()
            if number % request.frame_step == 0:
                yield time, partial(_square, frame, request.size)


def _square(frame: Any, size: int) -> Image:
    # Where FFmpeg pads the rows of a narrow picture, decord takes the padding for more channels.
    height, width, channels = frame.shape
    rows = frame.asnumpy().reshape(height, width * channels)
    return crop(rows[:, : 3 * width].reshape(height, width, 3), size)


@contextlib.contextmanager
def _its_errors() -> Iterator[None]:
    """Raise DecoderFailed for the exceptions of decord, without the places in its source code."""
    try:
        yield
    except Exception as error:  # decord has several kinds that are not related
        reason = re.sub(r"\[\d+:\d+:\d+\] \S+: ", "", str(error)).strip().splitlines()
        raise DecoderFailed(reason[0] if reason else type(error).__name__) from None
