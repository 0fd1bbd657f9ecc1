"""How the frames of a video become the inputs of a backbone, and its outputs feature rows.

For every backbone, row i starts at frame i * stride. An image backbone takes single frames, and a
row is the mean over a window of them. A clip backbone takes a window at a time. A whole-clip
backbone takes long overlapping stretches, and returns many rows for each.

Frame and row numbers count from the start of the video. A sampling can start at any row, if the
rows before it are already in the store.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mstemba.extractors.backbone_spec import BackboneSpec

FeatureArray = NDArray[np.float32]


@dataclass(frozen=True)
class FrameRange:
    """Frames [first, last) of a video, with the last one repeated `repeat` more times."""

    first: int
    last: int
    repeat: int = 0


class Sampling(ABC):
    """How the frames of one video go through a backbone, starting at a feature row."""

    length: int | None
    """Frames in a sample; a range holds one or more samples. None: a range is one sample."""

    def __init__(self, stride: int, row: int) -> None:
        self._stride = stride
        self._next = row * stride
        self.first = self.needed()
        """The first frame that it needs."""

    @abstractmethod
    def runs(self, frames: int, ended: bool) -> Iterator[FrameRange]:
        """Yield the ranges that are complete once frames [first, frames) are decoded.

        A range is yielded once. `ended`: the video has no further frames.
        """

    def needed(self) -> int:
        """Return the first frame that later ranges need."""
        return self._next

    @abstractmethod
    def rows(self, features: FeatureArray) -> FeatureArray:
        """Return the (M, F) rows that (N, R, F) features of N more samples complete."""

    def finish(self) -> FeatureArray:
        """Return the (M, F) rows that are left after the features of the last range."""
        return np.empty((0, 0), np.float32)


def sampling(backbone: BackboneSpec, window: int, stride: int, row: int = 0) -> Sampling:
    """Return the sampling of one video for a backbone, starting at a feature row."""
    if backbone.kind == "image":
        return Images(window, stride, row)
    if backbone.kind == "clip":
        return Clips(window, stride, row)
    return WholeClip(backbone.chunk, backbone.context, stride, row)


class Images(Sampling):
    """Single frames; rows are means over windows.

    Row i is the mean over frames [i * stride, i * stride + window). Windows at the end of the video
    are shorter, so N frames give ceil(N / stride) rows. Frames between windows (stride > window)
    are skipped.
    """

    length = 1

    def __init__(self, window: int, stride: int, row: int = 0) -> None:
        super().__init__(stride, row)
        self._window = window
        self._pending: FeatureArray | None = None

    def runs(self, frames: int, ended: bool) -> Iterator[FrameRange]:
        while self._next < frames:
            into = self._next % self._stride
            if self._stride > self._window and into >= self._window:
                self._next += self._stride - into  # over the gap
                continue
            gapless = self._stride <= self._window
            last = frames if gapless else min(frames, self._next - into + self._window)
            yield FrameRange(self._next, last)
            self._next = last

    def rows(self, features: FeatureArray) -> FeatureArray:
        features = features[:, 0]
        if self._pending is not None:
            features = np.concatenate([self._pending, features])
        self._pending = features
        return self._take(self._window)

    def finish(self) -> FeatureArray:
        return self._take(1)

    def _take(self, least: int) -> FeatureArray:
        """Return the rows whose windows have at least `least` frames so far."""
        if self._pending is None:  # an earlier run had computed all rows
            return np.empty((0, 0), np.float32)
        step = min(self._window, self._stride)  # the frames of gaps are not among the features
        count = max(0, math.ceil((len(self._pending) - least + 1) / step))
        begins = range(0, count * step, step)
        # Each summed in frame order, so the batches of frames do not change a bit.
        rows = [self._pending[begin : begin + self._window].mean(axis=0) for begin in begins]
        width = self._pending.shape[1]
        self._pending = self._pending[count * step :]
        return np.array(rows, np.float32).reshape(-1, width)


class Clips(Sampling):
    """Windows of frames, one row each; a short one at the end repeats its last frame."""

    def __init__(self, window: int, stride: int, row: int = 0) -> None:
        super().__init__(stride, row)
        self.length = self._window = window

    def runs(self, frames: int, ended: bool) -> Iterator[FrameRange]:
        while self._next + (1 if ended else self._window) <= frames:
            last = min(self._next + self._window, frames)
            yield FrameRange(self._next, last, self._window - (last - self._next))
            self._next += self._stride

    def rows(self, features: FeatureArray) -> FeatureArray:
        return features[:, 0]


class WholeClip(Sampling):
    """The convolution over the whole video, in stretches that overlap enough to give the same rows.

    Row i is the mean over two steps of the last feature map, `stride` frames each; N frames give
    max(1, ceil(N / stride) - 1) rows. A stretch gives the rows of `chunk` frames.
    """

    length = None

    def __init__(self, chunk: int, context: int, stride: int, row: int = 0) -> None:
        self._chunk, self._context = chunk, context
        super().__init__(stride, row)
        # The rows to keep of the ranges whose features are pending.
        self._valid = deque[slice]()

    def runs(self, frames: int, ended: bool) -> Iterator[FrameRange]:
        while self._next + self._chunk + self._stride + self._context <= frames:
            yield self._run(self._next + self._chunk + self._stride + self._context, self._chunk)
        rows = max(1, math.ceil(frames / self._stride) - 1)
        while ended and (left := rows * self._stride - self._next) > 0:
            # I3D pads odd lengths on another side. To pad all stretches alike, copies of the last
            # frame make the length a multiple of 4.
            yield self._run(frames, min(left, self._chunk), repeat=-frames % 4)

    def needed(self) -> int:
        return max(0, self._next - self._context)

    def rows(self, features: FeatureArray) -> FeatureArray:
        return np.concatenate([f[self._valid.popleft()] for f in features])

    def _run(self, last: int, given: int, repeat: int = 0) -> FrameRange:
        run = FrameRange(self.needed(), last, repeat)
        skipped = (self._next - run.first) // self._stride
        self._valid.append(slice(skipped, skipped + given // self._stride))
        self._next += given
        return run
