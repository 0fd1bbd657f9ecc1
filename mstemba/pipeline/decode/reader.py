"""One video to batches of timestamped frames: the choice of the decoder, and what became of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mstemba.errors import DecodeError
from mstemba.pipeline.decode import decord_reader, pyav_reader
from mstemba.pipeline.decode.pyav_reader import Probe
from mstemba.records import Frames


@dataclass(frozen=True)
class DecodeRequest:
    """A video to decode, its short side resized to `size` pixels, and the centre square cut out."""

    path: Path
    size: int
    every: int = 1
    batch_size: int = 32
    decoder: str = "auto"


@dataclass(frozen=True)
class Opened:
    """The video is readable; its frames follow."""

    seconds: float
    """When its last frame is shown, as the container says; 0 when it does not."""


@dataclass(frozen=True)
class Restart:
    """Forget the frames of this video so far: another decoder begins again."""


@dataclass(frozen=True)
class DecodeReport:
    """How a video was decoded, after its last frame."""

    decoder: str
    frames: int
    """Frames given, after `every`."""
    fps: float
    """Mean frames a second of the file."""
    duration: float
    """Seconds from the start to the end of the last frame."""
    warnings: list[str] = field(default_factory=list)


def decode(request: DecodeRequest) -> Iterator[Opened | Frames | Restart | DecodeReport]:
    """Opened, batches of frames, a Restart when decord gave up midway, a DecodeReport at the end.

    `auto` takes decord where it is exact and PyAV for the rest; a file on which decord fails is
    decoded whole by PyAV. Raises DecodeError when there is nothing to be had.
    """
    if not request.path.is_file():
        raise DecodeError(f"{request.path}: no such file")
    found = pyav_reader.probe(request.path)
    yield Opened(0.0 if found.times is None else float(found.times[-1]))
    warnings: list[str] = []
    decode_av = pyav_reader.decode
    if request.decoder in ("auto", "decord"):
        reason = decord_reader.why_not(found)
        if reason is None:
            try:
                yield from _batches(request, found, decord_reader.decode, "decord", warnings)
                return
            except decord_reader.DecordFailed as error:
                reason = str(error)
                decode_av = partial(decode_av, careful=True)
                yield Restart()
        if request.decoder == "decord":
            raise DecodeError(
                f"{request.path}: decord cannot read it: {reason}. Try --decoder auto"
            )
    yield from _batches(request, found, decode_av, "av", warnings)


def resized(width: int, height: int, short_side: int) -> tuple[int, int]:
    """(W, H) with the short side at `short_side`, the other in proportion."""
    if width <= height:
        return short_side, max(short_side, round(height * short_side / width))
    return max(short_side, round(width * short_side / height)), short_side


_Decoder = Callable[[Path, Probe, tuple[int, int], int], Iterator[tuple[NDArray[np.uint8], float]]]


def _batches(
    request: DecodeRequest, found: Probe, decoder: _Decoder, name: str, warnings: list[str]
) -> Iterator[Frames | DecodeReport]:
    size = resized(found.width, found.height, request.size)
    left, top = (size[0] - request.size) // 2, (size[1] - request.size) // 2
    square = np.s_[top : top + request.size, left : left + request.size]
    images: list[NDArray[np.uint8]] = []
    times: list[float] = []
    clock = _Clock(found)
    try:
        for image, time in decoder(request.path, found, size, request.every):
            if not clock.accepts(time):
                continue
            images.append(image[square])
            times.append(time)
            if len(images) == request.batch_size:
                yield Frames(np.stack(images), np.array(times))
                images, times = [], []
    except pyav_reader.DamagedPackets as damage:
        warnings.append(str(damage))
    if images:
        yield Frames(np.stack(images), np.array(times))
    if clock.count == 0:
        raise DecodeError(f"{request.path}: no frame of its video stream can be decoded")
    if clock.refused:
        warnings.append(f"{clock.refused} frames left out whose time does not increase")
    fps = clock.rate(request.every)
    # The last frame kept may have `every` - 1 unused ones behind it.
    end = found.times[-1] if found.times is not None else clock.last
    duration = max(float(end), clock.last) + 1 / fps
    if found.times is not None and (seen := clock.count + clock.refused) < (
        said := len(found.times[:: request.every])
    ):
        warnings.append(f"{seen} of {said} frames could be decoded")
    if duration < found.length - 1:
        warnings.append(f"ends at {duration:.1f} s, its header says {found.length:.1f} s")
    yield DecodeReport(name, clock.count, fps, duration, warnings)


class _Clock:
    """Keeps time increasing, and knows the mean rate."""

    def __init__(self, found: Probe) -> None:
        self._nominal = found.rate
        self.first = self.last = -np.inf
        self.count = self.refused = 0

    def accepts(self, time: float) -> bool:
        if time <= self.last:
            self.refused += 1
            return False
        if self.count == 0:
            self.first = time
        self.last = time
        self.count += 1
        return True

    def rate(self, every: int) -> float:
        """Frames a second of the file; of a single frame the nominal rate, or 1."""
        if self.count < 2:
            return self._nominal or 1.0
        return float((self.count - 1) * every / (self.last - self.first))
