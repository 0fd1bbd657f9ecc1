"""Decoding with decord, where it gives exactly the frames that are in the file."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

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
# Bytes of resized frames that decord may have decoded ahead: two minutes or so of a film.
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
    if not info.keeps_parameters:
        return f"decord does not notice when the size of {info.codec} frames changes"
    if any(name != "transpose" or way not in "12" for name, way in info.upright):
        return "decord does not mirror frames, nor turn them by other than right angles"
    if info.turned_by_frames:
        return "decord turns frames only as the container asks"
    return "the file is cut off" if info.is_cut else None


def is_lean(info: VideoInfo, request: DecodeRequest) -> bool:
    """Return whether decord can have all frames of a video in memory.

    It decodes ahead of a slow consumer without a bound (measured: 8 GB for an hour).
    """
    width, height = displayed_size(info, info.pixel_aspect, info.width, info.height, request)
    return 3 * width * height * len(info.timeline.times) <= MOST_BYTES


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
    with _its_errors(DecoderFailed):
        reader = decord.VideoReader(
            f"file:{request.path}",
            width=width,
            height=height,
            num_threads=request.threads,
            fault_tol=_NO_COPIES,
        )
        count, expected = len(reader), len(info.timeline.times)
    if count != expected:
        raise DecoderFailed(f"decord counts {count} frames, the container {expected}")
    for number, time in enumerate(info.timeline.times.tolist()):
        with _its_errors(Damaged):
            frame = reader.next()
        if frame.shape != (height, width, 3):
            raise DecoderFailed(f"decord gives frames of {frame.shape}")
        heartbeat()
        if number % request.frame_step == 0:
            yield time, partial(_square, frame, request.size)


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
