"""What the reader and every decoder say to each other about one file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Probe:
    """What a container says about its best video stream, found by decoding one frame."""

    width: int
    height: int
    """Pixels as shown, rotation applied."""
    rotation: int
    """Degrees counter-clockwise that a player turns the picture, as the file asks."""
    codec: str
    container: str
    offset: float
    """Seconds: where the container's clock starts. All times are relative to it."""
    times: NDArray[np.float64] | None
    """(N,) presentation time of every packet, sorted; None when some are not in the file."""
    keyframes: NDArray[np.intp]
    """(K,) indices into `times` of the frames that the file marks as keyframes, increasing."""
    fresh: bool
    """Whether decoding can begin at any keyframe: what is shown from there on is as undisturbed."""
    closed: bool
    """Whether nothing that is shown before a keyframe comes after it in the file."""
    length: float
    """Seconds that the container's header promises, 0 when it says nothing."""
    rate: float
    """Nominal frames a second, 0 when unknown."""

    @property
    def looks_cut(self) -> bool:
        """Whether packets that the header promises are not there."""
        return self.times is not None and self.times[-1] < self.length - 1


def nothing() -> None:
    """Where nobody asks whether the decoder is still at work."""


@dataclass(frozen=True)
class DecodeSettings:
    """How one decoder reads one file. Every `frame_step`-th frame of the file is used."""

    size: tuple[int, int]
    """(W, H) that a frame is resized to."""
    frame_step: int = 1
    start: int = 0
    """The used frame to begin at; not 0 only where its time is known to be the probe's."""
    threads: int = 0
    single_threaded: bool = False
    heartbeat: Callable[[], None] = nothing
    """To be called at least every few seconds for as long as there is progress."""


@dataclass(frozen=True, slots=True)
class DecodedFrame:
    """One used frame."""

    index: int
    """Among the used frames of the whole file, as far as this decoder has seen it."""
    time: float
    """Seconds from the start of the video."""
    image: Callable[[], Image]
    """Makes the resized (H, W, 3) RGB picture, valid until the next frame is asked for."""


Decoder = Callable[[Path, Probe, DecodeSettings], Iterator[DecodedFrame]]


class CannotDecode(Exception):
    """This decoder cannot read this file, or does not give what the container says is in it."""


class Block:
    """Consecutive used frames that are decoded together, when the first picture is asked for."""

    def __init__(self, read: Callable[[range], Image], numbers: range) -> None:
        self._read = read
        self._images: Image | None = None
        self.numbers = numbers
        """Indices of the frames in the file; those passed over at the beginning are not read."""

    def image(self, number: int) -> Image:
        """The (H, W, 3) picture of frame `number` of the file."""
        if self._images is None:
            self.numbers = self.numbers[self.numbers.index(number) :]
            self._images = self._read(self.numbers)
        image: Image = self._images[self.numbers.index(number)]
        return image
