"""Runs of frames from many videos to full batches of one size.

A block of decoded frames is handled here without being looked at: it may be an array, or a
reference to one on another machine.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mstemba.extractors.windows import FrameRange

Block = Any
"""(N, S, S, 3) uint8 frames, or what stands for them."""


@dataclass(frozen=True)
class Piece:
    """Frames [start, stop) of a block, the last one given `repeat` times more."""

    block: Block
    start: int
    stop: int
    repeat: int = 0


@dataclass
class Batch:
    """What goes through the backbone at once, and whose it is."""

    capacity: int
    """Samples it has room for. The forward pass always has this size: results do not depend on
    how full a batch was."""
    length: int
    """Frames in a sample."""
    pieces: list[Piece] = field(default_factory=list)
    owners: list[tuple[Any, int, int]] = field(default_factory=list)
    """(owner, samples, the video's frame after the last of them), in the order of the pieces."""
    samples: int = 0


class FrameBuffer:
    """The frames of one video that are still needed."""

    def __init__(self, first: int) -> None:
        self.end = first
        """The frame after the last one."""
        self._blocks: deque[tuple[int, int, Block]] = deque()  # first frame, count, block

    def add(self, block: Block, count: int) -> None:
        self._blocks.append((self.end, count, block))
        self.end += count

    def pieces(self, first: int, last: int, repeat: int = 0) -> Iterator[Piece]:
        """Frames [first, last) of the video."""
        for begin, count, block in self._blocks:
            start, stop = max(first, begin), min(last, begin + count)
            if start < stop:
                more = repeat if stop == last else 0
                yield Piece(block, start - begin, stop - begin, more)

    def forget(self, first: int) -> None:
        """Drop what lies before a frame."""
        while self._blocks and self._blocks[0][0] + self._blocks[0][1] <= first:
            self._blocks.popleft()


class Batcher:
    """Fills batches of `capacity` samples from whatever video has frames."""

    def __init__(self, capacity: int, length: int | None) -> None:
        self._capacity = capacity
        self._length = length
        self._open: Batch | None = None

    def add(self, owner: Any, buffer: FrameBuffer, run: FrameRange) -> Iterator[Batch]:
        """Take one run; give the batches that are full now."""
        if self._length is None:  # every run is a batch, as long as it is
            frames = run.last - run.first + run.repeat
            pieces = list(buffer.pieces(run.first, run.last, run.repeat))
            yield Batch(1, frames, pieces, [(owner, 1, run.last)], 1)
            return
        first = run.first
        while first < run.last:
            batch = self._open = self._open or Batch(self._capacity, self._length)
            room = (self._capacity - batch.samples) * self._length
            last = min(run.last, first + room)
            repeat = run.repeat if last == run.last else 0
            samples = self.samples(FrameRange(first, last, repeat))
            batch.pieces += buffer.pieces(first, last, repeat)
            batch.owners.append((owner, samples, last))
            batch.samples += samples
            first = last
            if batch.samples == self._capacity:
                self._open = None
                yield batch

    def samples(self, run: FrameRange) -> int:
        """How many samples a run holds."""
        frames = run.last - run.first + run.repeat
        return frames // (self._length or frames)

    def flush(self) -> Iterator[Batch]:
        """The last batch, which may not be full."""
        if self._open is not None:
            yield self._open
            self._open = None


def assemble(pieces: list[Piece], out: NDArray[np.uint8]) -> None:
    """Copy the frames of pieces whose blocks are arrays into `out` (N, S, S, 3), zeros behind."""
    position = 0
    for piece in pieces:
        frames = piece.block[piece.start : piece.stop]
        out[position : position + len(frames)] = frames
        position += len(frames)
        out[position : position + piece.repeat] = frames[-1]
        position += piece.repeat
    out[position:] = 0
