"""Decoding with decord, where it gives exactly the frames that are in the file."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mstemba.pipeline.decode.settings import (
    Block,
    CannotDecode,
    DecodedFrame,
    DecodeSettings,
    Image,
    Probe,
)

# decord decodes ahead of its consumer without a bound, so it is read in blocks from keyframe to
# keyframe, and made to forget what it has decoded ahead before their frames are handed on.
BLOCK = 128  # frames of the file, unless keyframes are further apart
LONGEST = 512


def why_not(found: Probe) -> str | None:
    """Why decord is not exact on such a file, or None when it is."""
    try:
        import decord  # noqa: F401
    except ImportError:
        return "decord is not installed on this platform"
    if "mpegts" in found.container or "gif" in found.container:
        return f"decord misplaces frames in {found.container}"
    if found.codec == "av1":
        return "decord's own FFmpeg has no AV1"
    if found.times is None:
        return "the file does not say the time of every frame"
    if found.times[0] + found.offset < 0:
        return "the first timestamp is negative"
    if not (found.fresh and found.closed):
        return "decord loses frames at keyframes that do not start afresh (open GOP)"
    if np.diff(found.keyframes, append=len(found.times)).max() > LONGEST:
        return f"its keyframes are more than {LONGEST} frames apart"
    return None


def decode(path: Path, found: Probe, plan: DecodeSettings) -> Iterator[DecodedFrame]:
    """The used frames from `plan.start` on; a block is read when its first picture is asked for.

    Raises CannotDecode, possibly after some frames.
    """
    assert found.times is not None
    reader = _open(path, found, plan)
    for numbers in _blocks(found, plan.start * plan.frame_step, plan.frame_step):
        block = Block(partial(_read, reader, plan.size), numbers)
        for number in numbers:
            time = float(found.times[number])
            yield DecodedFrame(number // plan.frame_step, time, partial(block.image, number))
        plan.heartbeat()


def _blocks(found: Probe, start: int, frame_step: int) -> Iterator[range]:
    """Every `frame_step`-th frame from `start` on, in blocks that end before keyframes."""
    assert found.times is not None
    edges = [*found.keyframes[found.keyframes > start].tolist(), len(found.times)]
    for edge, following in zip(edges, [*edges[1:], None], strict=True):
        if following is None or following - start > BLOCK:
            block = range(start, edge, frame_step)
            yield block
            start += len(block) * frame_step


def _read(reader: Any, size: tuple[int, int], numbers: range) -> Image:
    with _Complaints():
        images: Image = reader.get_batch(list(numbers)).asnumpy()
        reader.seek(0)
    expected = (len(numbers), size[1], size[0], 3)
    if images.shape != expected:
        raise CannotDecode(f"decord gave {images.shape}, expected {expected}")
    return images


def _open(path: Path, found: Probe, plan: DecodeSettings) -> Any:
    import decord

    assert found.times is not None
    width, height = plan.size
    with _Complaints():
        reader = decord.VideoReader(
            str(path), ctx=decord.cpu(0), width=width, height=height, num_threads=plan.threads
        )
        count = len(reader)
    if count != len(found.times):
        raise CannotDecode(f"decord counts {count} frames, the container {len(found.times)}")
    return reader


class _Complaints:
    """Turns what decord raises into CannotDecode."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        import decord

        if isinstance(error, (decord.DECORDError, RuntimeError, OSError, ValueError)):
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise CannotDecode(reason[0]) from None
