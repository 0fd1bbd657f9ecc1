"""What the reader and the decoders tell each other about one file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]


@dataclass(frozen=True)
class VideoInfo:
    """What a container says about its best video stream, found by decoding one frame."""

    width: int
    height: int
    """Pixels as displayed, rotation applied."""
    rotation: int
    """Degrees counter-clockwise by which a player turns the picture, as the file asks."""
    codec: str
    container: str
    offset: float
    """Seconds: where the container's clock starts. All times are relative to it."""
    times: NDArray[np.float64] | None
    """(N,) presentation time of every packet, sorted; None when some are not in the file."""
    keyframes: NDArray[np.intp] | None
    """(K,) indices into `times`, increasing, of the frames marked as keyframes; None when decoding
    at one of them may lose or disturb frames (open groups of pictures)."""
    duration: float
    """Seconds that the container's header promises, 0 when it says nothing."""
    rate: float
    """Nominal frames per second, 0 when unknown."""

    @property
    def looks_cut(self) -> bool:
        """Whether packets that the header promises are missing."""
        return self.times is not None and self.times[-1] < self.duration - 1


def no_heartbeat() -> None:
    """Do nothing, for callers who do not watch the decoder."""


@dataclass(frozen=True)
class DecodeSettings:
    """How one decoder reads one file."""

    size: tuple[int, int]
    """(W, H) that a frame is resized to."""
    frame_step: int = 1
    """Every `frame_step`-th frame of the file is used."""
    threads: int = 0
    """Of the decoder's library; 0 = its own choice."""
    single_threaded: bool = False
    """For a damaged file, of which several threads give a different number of frames each time."""
    heartbeat: Callable[[], None] = no_heartbeat
    """To be called at least every few seconds for as long as there is progress."""
    warnings: list[str] = field(default_factory=list)
    """Where the decoder puts what the user should know about the file."""


@dataclass(frozen=True, slots=True)
class DecodedFrame:
    """One used frame."""

    time: float
    """Seconds from the start of the video."""
    image: Callable[[], Image]
    """Makes the resized (H, W, 3) RGB picture, valid until the next frame is asked for."""


Decoder = Callable[[Path, VideoInfo, DecodeSettings], Iterator[DecodedFrame]]


class DecoderFailed(Exception):
    """A decoder cannot read a file, or does not give the frames that are in it."""
