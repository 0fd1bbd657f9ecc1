"""Frames of many videos to full batches of one size."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mstemba.extractors.windows import FrameRange

Block = NDArray[np.uint8]
"""(N, S, S, 3) decoded frames."""


@dataclass(frozen=True)
class Piece:
    """Frames [start, stop) of a block, then the last of them `repeat` more times."""

    block: Block
    start: int
    stop: int
    repeat: int = 0


@dataclass
class FrameBatch:
    """The frames of one forward pass, and the videos that they belong to."""

    capacity: int
    """Samples of a full batch. Every forward pass has this size: results do not depend on how full
    a batch is."""
    length: int
    """Frames in a sample."""
    pieces: list[Piece] = field(default_factory=list)
    owners: list[tuple[Any, slice, int]] = field(default_factory=list)
    """(video, its samples in the batch, the video's frame after the last of them)."""
    samples: int = 0


class FrameBuffer:
    """Holds the frames of one video that are still needed."""

    def __init__(self, first: int) -> None:
        self.end = first
        """The frame after the last one."""
        self._blocks: deque[tuple[int, int, Block]] = deque()  # first frame, count, block

    def add(self, block: Block, count: int) -> None:
        self._blocks.append((self.end, count, block))
        self.end += count

    def pieces(self, first: int, last: int, repeat: int = 0) -> Iterator[Piece]:
        """Yield frames [first, last) of the video, block by block."""
        for begin, count, block in self._blocks:
            start, stop = max(first, begin), min(last, begin + count)
            if start < stop:
                more = repeat if stop == last else 0
                yield Piece(block, start - begin, stop - begin, more)

    def forget(self, first: int) -> None:
        """Drop the blocks that end before a frame."""
        while self._blocks and self._blocks[0][0] + self._blocks[0][1] <= first:
            self._blocks.popleft()


class Batcher:
    """Fills batches of `capacity` samples with the frames of any videos.

    If `length` is None, every range of frames is one sample, and `capacity` must be 1.
    """

    def __init__(self, capacity: int, length: int | None) -> None:
        self._capacity = capacity
        self._length = length
        self._open: FrameBatch | None = None

    def add(self, owner: Any, buffer: FrameBuffer, frames: FrameRange) -> Iterator[FrameBatch]:
        """Take a range of a video's frames; yield the batches that are full now."""
        length = self._length or frames.last - frames.first + frames.repeat
        first = frames.first
        while first < frames.last:
            batch = self._open = self._open or FrameBatch(self._capacity, length)
            room = (self._capacity - batch.samples) * length
            last = min(frames.last, first + room)
            repeat = frames.repeat if last == frames.last else 0
            samples = self.samples(FrameRange(first, last, repeat))
            batch.pieces += buffer.pieces(first, last, repeat)
            end = batch.samples + samples
            batch.owners.append((owner, slice(batch.samples, end), last))
            batch.samples = end
            first = last
            if batch.samples == self._capacity:
                self._open = None
                yield batch

    def samples(self, frames: FrameRange) -> int:
        """Return how many samples a range of frames holds."""
        length = frames.last - frames.first + frames.repeat
        return length // (self._length or length)

    def flush(self) -> Iterator[FrameBatch]:
        """Yield the last batch, which may not be full."""
        if self._open is not None:
            yield self._open
            self._open = None


def assemble(pieces: list[Piece], out: NDArray[np.uint8]) -> None:
    """Copy the frames of `pieces` into `out` (N, S, S, 3), and zeros after them."""
    position = 0
    for piece in pieces:
        frames = piece.block[piece.start : piece.stop]
        out[position : position + len(frames)] = frames
        position += len(frames)
        out[position : position + piece.repeat] = frames[-1]
        position += piece.repeat
    out[position:] = 0
