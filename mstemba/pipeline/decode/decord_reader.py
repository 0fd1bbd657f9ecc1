"""Decoding with decord, where it gives exactly the frames that are in the file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mstemba.pipeline.decode.pyav_reader import Probe

# decord decodes ahead of its consumer without a bound, so it is read in blocks of this many frames,
# each by a reader that is closed before its frames are handed on.
BLOCK = 512


class DecordFailed(Exception):
    """decord cannot read this file, or does not give what the container says is in it."""


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
    return None


def decode(
    path: Path, found: Probe, size: tuple[int, int], every: int
) -> Iterator[tuple[NDArray[np.uint8], float]]:
    """Every `every`-th frame as RGB (H, W, 3) of `size` = (W, H), with its time in seconds.

    Raises DecordFailed, possibly after some frames.
    """
    assert found.times is not None
    wanted = range(0, len(found.times), every)
    for first in range(0, len(wanted), BLOCK):
        block = wanted[first : first + BLOCK]
        images = _read(path, size, list(block), len(found.times))
        yield from zip(images, found.times[block.start : block.stop : every].tolist(), strict=True)


def _read(path: Path, size: tuple[int, int], indices: list[int], count: int) -> NDArray[np.uint8]:
    import decord

    width, height = size
    try:
        reader = decord.VideoReader(str(path), ctx=decord.cpu(0), width=width, height=height)
        if len(reader) != count:
            raise DecordFailed(f"decord counts {len(reader)} frames, the container {count}")
        images: NDArray[np.uint8] = reader.get_batch(indices).asnumpy()
    except (decord.DECORDError, RuntimeError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise DecordFailed(reason[0]) from None
    if images.shape != (len(indices), height, width, 3):
        raise DecordFailed(
            f"decord gave {images.shape}, expected {(len(indices), height, width, 3)}"
        )
    return images
