"""Decoding with decord, where it gives exactly the frames that are in the file."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from mstemba.pipeline.decode.settings import (
    DecodedFrame,
    DecoderFailed,
    DecodeSettings,
    Image,
    VideoInfo,
)

# decord decodes ahead of its consumer without a bound, so it is read in blocks from keyframe to
# keyframe, and made to forget what it has decoded ahead before their frames are handed on.
BLOCK = 128  # frames of the file, unless keyframes are further apart
LONGEST = 512
# Where decord finds the keyframes, and can begin at any of them. Its own FFmpeg has no AV1.
CONTAINERS = ("mp4", "matroska")
CODECS = ("h264", "hevc", "vp8", "vp9", "mpeg4", "mjpeg")


def why_inexact(info: VideoInfo) -> str | None:
    """Return why decord does not give such a file's exact frames, or None when it does."""
    try:
        import decord  # noqa: F401
    except ImportError:
        return "decord is not installed on this platform"
    if not any(name in info.container for name in CONTAINERS):
        return f"decord may misplace frames in {info.container}"
    if info.codec not in CODECS:
        return f"decord may lose frames of {info.codec}"
    if info.times is None:
        return "the file does not say the time of every frame"
    if info.times[0] + info.offset < 0:
        return "the first timestamp is negative"
    if info.keyframes is None:
        return "decord loses frames at keyframes of open groups of pictures"
    if np.diff(info.keyframes, append=len(info.times)).max() > LONGEST:
        return f"its keyframes are more than {LONGEST} frames apart"
    return None


def decode(path: Path, info: VideoInfo, settings: DecodeSettings) -> Iterator[DecodedFrame]:
    """Yield the used frames; a block is read when its first picture is asked for.

    Raises:
        DecoderFailed: decord cannot read the file, possibly after some frames.
    """
    assert info.times is not None
    reader = _open(path, info, settings)
    for numbers in _blocks(info, settings.frame_step):
        images = cache(partial(_read, reader, settings.size, numbers))
        for place, number in enumerate(numbers):
            yield DecodedFrame(float(info.times[number]), partial(_picture, images, place))
        settings.heartbeat()


def _picture(images: Callable[[], Image], place: int) -> Image:
    image: Image = images()[place]
    return image


def _blocks(info: VideoInfo, frame_step: int) -> Iterator[range]:
    """Yield every `frame_step`-th frame, in blocks that end before keyframes."""
    assert info.times is not None
    assert info.keyframes is not None
    start = 0
    for edge, following in pairwise([*info.keyframes[1:].tolist(), len(info.times), np.inf]):
        if following - start > BLOCK:
            block = range(start, edge, frame_step)
            yield block
            start += len(block) * frame_step


def _read(reader: Any, size: tuple[int, int], numbers: range) -> Image:
    with _its_errors():
        images: Image = reader.get_batch(list(numbers)).asnumpy()
        reader.seek(0)
    expected = (len(numbers), size[1], size[0], 3)
    if images.shape != expected:
        raise DecoderFailed(f"decord gave {images.shape}, expected {expected}")
    return images


def _open(path: Path, info: VideoInfo, settings: DecodeSettings) -> Any:
    import decord

    assert info.times is not None
    width, height = settings.size
    with _its_errors():
        reader = decord.VideoReader(
            str(path), ctx=decord.cpu(0), width=width, height=height, num_threads=settings.threads
        )
        count = len(reader)
    if count != len(info.times):
        raise DecoderFailed(f"decord counts {count} frames, the container {len(info.times)}")
    return reader


@contextlib.contextmanager
def _its_errors() -> Iterator[None]:
    """Raise DecoderFailed for the errors of decord."""
    import decord

    try:
        yield
    except (decord.DECORDError, RuntimeError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise DecoderFailed(reason[0]) from None
