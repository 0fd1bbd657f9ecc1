"""A video to decode, what is known of it, and what the reader tells about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mstemba.pipeline.decode.timeline import Timeline

Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Resume:
    """The first frames of a video, which an earlier run has done: decoded, but not returned."""

    frames: int
    """How many used frames (after `frame_step`) are done."""
    decoder: str
    """Which decoder gave them: the rest comes from the same one, never a mix."""
    anchor: tuple[int, float]
    """(index of a used frame < frames, its time in seconds), exactly as it was given before."""


@dataclass(frozen=True)
class DecodeRequest:
    """A video to decode: its short side is resized to `short_side`, its centre square cut out."""

    path: Path
    size: int
    """Pixels: the side of the square."""
    short_side: int | None = None
    """Pixels, at least `size`; None = `size`."""
    frame_step: int = 1
    """Take every n-th frame."""
    batch_size: int = 32
    """Frames in one Frames event."""
    decoder: str = "auto"
    """auto, decord or av."""
    single_threaded: bool = False
    """For a damaged file, of which several threads of PyAV give a different number of frames each
    time, and after a crash or a hang."""
    resume: Resume | None = None
    threads: int = 0
    """Of the decoder's library; 0 = its own choice."""
    fps: float | None = None
    """Frames per second of a file that does not say when its frames are displayed."""

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """(N, H, W, 3) of a full batch."""
        return self.batch_size, self.size, self.size, 3


@dataclass(frozen=True)
class VideoInfo:
    """What a file says about its video stream."""

    width: int
    height: int
    """Pixels of the first frame as they are stored: before it is turned upright and displayed."""
    codec: str
    containers: frozenset[str]
    """FFmpeg's names of the file's format."""
    pixel_aspect: Fraction | None
    """Width of a displayed pixel by its height; None if each frame says."""
    interlaced: bool
    upright: tuple[tuple[str, str], ...]
    """FFmpeg's filters, with their arguments, that turn a frame as players do."""
    timeline: Timeline
    closed_groups: list[int]
    """Packets in each part of the stream that can be decoded without the others."""
    is_cut: bool
    """Whether packets that the header promises are missing."""
    keeps_parameters: bool
    """Whether all keyframes are known to have the same size and format."""
    timecode: str
    """Of the first frame, as 10:00:00:00; empty if the file has none."""
    warnings: list[str]
    """What the user should know about the file; decoders add to it."""


@dataclass(frozen=True)
class Opened:
    """The video is readable; its frames follow."""

    seconds: float
    """When its last frame ends, according to the container."""
    decoder: str


@dataclass(frozen=True)
class Restart:
    """The frames of this video so far are void: a decoder starts again at its first frame."""

    decoder: str


@dataclass(frozen=True)
class DecodeReport:
    """How a video was decoded, after its last frame."""

    decoder: str
    frames: int
    """Used frames of the whole video, also those before `Resume.frames`."""
    fps: float
    """Frames per second of the file, pauses not counted."""
    duration: float
    """Seconds from the start to the end of the last frame."""
    timecode: str = ""
    """Of the first frame, as 10:00:00:00; empty if the file has none."""
    warnings: list[str] = field(default_factory=list)


DecodedFrame = tuple[float, Callable[[], Image]]
"""Seconds from the start, and what makes the (size, size, 3) RGB square, which is valid until the
next frame is asked for."""
Decoder = Callable[[DecodeRequest, VideoInfo, Callable[[], None]], Iterator[DecodedFrame]]
"""Yields every `frame_step`-th frame, and calls the heartbeat at least every few seconds."""


class DecoderFailed(Exception):
    """A decoder cannot read a file, or does not give the frames that are in it."""


class Damaged(DecoderFailed):
    """A decoder cannot decode some packets of a file."""


def no_heartbeat() -> None:
    """Do nothing, for callers who do not watch the decoder."""
