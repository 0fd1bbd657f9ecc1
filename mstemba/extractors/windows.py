"""Frames to what a backbone takes in one go, and what it gives to feature rows.

Row i of the features starts at frame i * stride, whatever the backbone. Image backbones see every
frame by itself, and a row is the mean over a window of them; clip backbones see the window at once;
the whole-clip form sees long overlapping stretches and gives many rows for each.

Frame and row numbers count from the start of the video. A sampling may begin at any row, when the
rows before it are in the store already.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mstemba.extractors.backbone_spec import BackboneSpec

FeatureArray = NDArray[np.float32]


@dataclass(frozen=True)
class FrameRange:
    """Frames [first, last) of a video to encode, the last one given `repeat` times more."""

    first: int
    last: int
    repeat: int = 0


class Sampling(Protocol):
    """How one video's frames go through a backbone."""

    length: int | None
    """Frames in one sample; a run holds one or more samples. None: a run is one sample."""
    first: int
    """The first frame it needs."""

    def runs(self, frames: int, ended: bool) -> Iterator[FrameRange]:
        """The runs not given before that are whole, now that [first, frames) are there."""
        ...

    def needed(self) -> int:
        """The first frame that runs yet to come need."""
        ...

    def rows(self, features: FeatureArray) -> FeatureArray:
        """(N, R, F) features of the next N samples to the (M, F) rows that are complete."""
        ...

    def finish(self) -> FeatureArray:
        """The (M, F) rows that are left, after the features of the last run."""
        ...


def sampling(about: BackboneSpec, window: int, stride: int, row: int = 0) -> Sampling:
    """The sampling of one video for this backbone, from this feature row on."""
    if about.kind == "image":
        return Images(window, stride, row)
    if about.kind == "clip":
        return Clips(window, stride, row)
    return WholeClip(about.chunk, about.context, stride, row)


class Images:
    """Every frame by itself; rows are means over windows.

    Row i is the mean over frames [i * stride, i * stride + window). Windows at the end keep the
    frames there are, so N frames give ceil(N / stride) rows. Frames between windows
    (stride > window) are not encoded.
    """

    length: int | None = 1

    def __init__(self, window: int, stride: int, row: int = 0) -> None:
        self._window, self._stride = window, stride
        self._next = self.first = row * stride
        self._pooler = WindowPooler(window, min(window, stride))

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

    def needed(self) -> int:
        return self._next

    def rows(self, features: FeatureArray) -> FeatureArray:
        return self._pooler.add(features[:, 0])

    def finish(self) -> FeatureArray:
        return self._pooler.finish()


class Clips:
    """Windows of frames at once, one row each; a short one at the end repeats its last frame."""

    def __init__(self, window: int, stride: int, row: int = 0) -> None:
        self.length: int | None = window
        self._stride = stride
        self._next = self.first = row * stride

    def runs(self, frames: int, ended: bool) -> Iterator[FrameRange]:
        assert self.length is not None
        while self._next + (1 if ended else self.length) <= frames:
            last = min(self._next + self.length, frames)
            yield FrameRange(self._next, last, self.length - (last - self._next))
            self._next += self._stride

    def needed(self) -> int:
        return self._next

    def rows(self, features: FeatureArray) -> FeatureArray:
        return features[:, 0]

    def finish(self) -> FeatureArray:
        return np.empty((0, 0), np.float32)


class WholeClip:
    """The convolution over the whole clip, in stretches that see enough on both sides to be equal.

    Row i is the mean over two steps of the last feature map, `stride` frames each; N frames give
    max(1, ceil(N / stride) - 1) rows. A stretch gives the rows of `chunk` frames.
    """

    length: int | None = None

    def __init__(self, chunk: int, context: int, stride: int, row: int = 0) -> None:
        self._chunk, self._context, self._stride = chunk, context, stride
        self._begin = row * stride
        self.first = self.needed()
        self._valid: deque[slice] = deque()  # the rows to keep of runs whose features are to come

    def runs(self, frames: int, ended: bool) -> Iterator[FrameRange]:
        while self._begin + self._chunk + self._stride + self._context <= frames:
            yield self._run(self._begin + self._chunk + self._stride + self._context, self._chunk)
        while ended and (left := self._left(frames)) > 0:
            # I3D pads another side of odd lengths; so that all stretches are padded alike, a clip
            # whose length is no multiple of 4 gets copies of its last frame.
            yield self._run(frames, min(left, self._chunk), repeat=-frames % 4)

    def needed(self) -> int:
        return max(0, self._begin - self._context)

    def rows(self, features: FeatureArray) -> FeatureArray:
        return np.concatenate([f[self._valid.popleft()] for f in features])

    def finish(self) -> FeatureArray:
        return np.empty((0, 0), np.float32)

    def _left(self, frames: int) -> int:
        """Frames whose rows are still to be given."""
        rows = max(1, math.ceil(frames / self._stride) - 1)
        return rows * self._stride - self._begin

    def _run(self, last: int, given: int, repeat: int = 0) -> FrameRange:
        run = FrameRange(self.needed(), last, repeat)
        skipped = (self._begin - run.first) // self._stride
        self._valid.append(slice(skipped, skipped + given // self._stride))
        self._begin += given
        return run


class WindowPooler:
    """Streams (N, F) frame features into rows: means over windows.

    Every row is summed over one array in frame order: how the frames were batched changes no bit.
    """

    def __init__(self, window: int, stride: int) -> None:
        self.window = window
        self.stride = stride
        self._features: FeatureArray | None = None

    def add(self, features: FeatureArray) -> FeatureArray:
        """Take (N, F) features; give the (M, F) rows that are complete."""
        if self._features is not None:
            features = np.concatenate([self._features, features])
        self._features = features
        return self._take(self.window)

    def finish(self) -> FeatureArray:
        """The last, shorter windows."""
        return self._take(1)

    def _take(self, least: int) -> FeatureArray:
        if self._features is None:  # of a video that an earlier run had encoded to its end
            return np.empty((0, 0), np.float32)
        count = max(0, math.ceil((len(self._features) - least + 1) / self.stride))
        begins = range(0, count * self.stride, self.stride)
        rows = [self._features[begin : begin + self.window].mean(axis=0) for begin in begins]
        width = self._features.shape[1]
        self._features = self._features[count * self.stride :]
        return np.array(rows, np.float32).reshape(-1, width)
