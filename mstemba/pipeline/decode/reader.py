"""One video to batches of timestamped frames: the choice of the decoder, and what became of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mstemba.errors import DecodeError, UsageError
from mstemba.pipeline.decode import decord as decord_reader
from mstemba.pipeline.decode import pyav as pyav_reader
from mstemba.pipeline.decode.settings import (
    CannotDecode,
    DecodedFrame,
    Decoder,
    DecodeSettings,
    Image,
    Probe,
    nothing,
)
from mstemba.records import Frames

DECODERS: dict[str, Decoder] = {
    "decord": decord_reader.decode,
    "av": pyav_reader.decode,
}


@dataclass(frozen=True)
class Resume:
    """Going on inside a video of which some frames are done."""

    frames: int
    """Used frames (after `frame_step`) already done: the next one is the first to be given."""
    decoder: str
    """Which decoder gave them: the rest comes from the same one, never a mix."""
    anchor: tuple[int, float]
    """(index of a used frame < frames, its time in seconds), exactly as it was given before."""


@dataclass(frozen=True)
class DecodeRequest:
    """A video to decode: its short side resized to `short_side`, and the centre square cut out."""

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
    """auto, or one of DECODERS."""
    single_threaded: bool = False
    """After another decoder failed on this file: PyAV uses one thread."""
    resume: Resume | None = None
    threads: int = 0
    """Of the decoder's library; 0 = its own choice."""

    def __post_init__(self) -> None:
        if self.decoder != "auto" and self.decoder not in DECODERS:
            known = ", ".join(["auto", *DECODERS])
            raise UsageError(f"--decoder {self.decoder}: no such decoder; there are {known}")
        if self.short_side is not None and self.short_side < self.size:
            raise UsageError(
                f"a square of {self.size} pixels cannot be cut out of frames whose short side is "
                f"{self.short_side}: resize to {self.size} or more"
            )


@dataclass(frozen=True)
class Opened:
    """The video is readable; its frames follow."""

    seconds: float
    """When its last frame is shown, as the container says; 0 when it does not."""
    decoder: str


@dataclass(frozen=True)
class Restart:
    """Forget the frames of this video so far: this decoder begins at the first frame."""

    decoder: str


@dataclass(frozen=True)
class DecodeReport:
    """How a video was decoded, after its last frame."""

    decoder: str
    frames: int
    """Used frames of the whole video, also those before `Resume.frames`."""
    fps: float
    """Mean frames a second of the file."""
    duration: float
    """Seconds from the start to the end of the last frame."""
    warnings: list[str] = field(default_factory=list)


def decode(
    request: DecodeRequest, heartbeat: Callable[[], None] = nothing
) -> Iterator[Opened | Frames | Restart | DecodeReport]:
    """Opened, batches of frames, a DecodeReport at the end.

    `auto` takes PyAV, and goes on with decord where that began. A Restart comes before the frames
    of a file that turned out damaged (PyAV decodes it whole, carefully), and of one that cannot be
    resumed. `alive` is called at least every few seconds for as long as there is progress.
    Raises DecodeError when there is nothing to be had.
    """
    if not request.path.is_file():
        raise DecodeError(f"{request.path}: no such file")
    found = pyav_reader.probe(request.path, heartbeat)
    name, single_threaded = _choose(request, found)
    yield Opened(0.0 if found.times is None else float(found.times[-1]), name)
    plan = DecodeSettings(
        resized(found.width, found.height, request.short_side or request.size),
        request.frame_step,
        threads=request.threads,
        single_threaded=single_threaded,
        heartbeat=heartbeat,
    )
    try:
        try:
            if request.resume and request.resume.decoder != name:
                raise _NotAsBefore
            yield from _batches(request, found, plan, name)
        except _NotAsBefore:
            yield Restart(name)
            yield from _batches(replace(request, resume=None), found, plan, name)
    except (CannotDecode, pyav_reader.FoundDamage) as error:
        if request.decoder != "auto" and not isinstance(error, pyav_reader.FoundDamage):
            raise _refusal(request, name, str(error)) from None
        yield Restart("av")
        again = replace(request, resume=None)
        yield from _batches(again, found, replace(plan, single_threaded=True), "av")


def _choose(request: DecodeRequest, found: Probe) -> tuple[str, bool]:
    """The decoder, and whether it must be careful. Raises DecodeError for one that cannot."""
    name = request.decoder
    if name == "auto":
        # PyAV is exact for every file, and here quicker than decord and leaner: decord's memory
        # grows with the length of the video (measured: docs/extract.md).
        name = request.resume.decoder if request.resume else "av"
        if name == "decord" and decord_reader.why_not(found):
            name = "av"
        return name, request.single_threaded
    reason = None
    if name == "decord":
        reason = decord_reader.why_not(found)
    if reason:
        raise _refusal(request, name, reason)
    return name, request.single_threaded


def _refusal(request: DecodeRequest, name: str, reason: str) -> DecodeError:
    return DecodeError(f"{request.path}: {name} cannot read it: {reason}. Try --decoder auto")


def resized(width: int, height: int, short_side: int) -> tuple[int, int]:
    """(W, H) with the short side at `short_side`, the other in proportion."""
    if width <= height:
        return short_side, max(short_side, round(height * short_side / width))
    return max(short_side, round(width * short_side / height)), short_side


class _NotAsBefore(Exception):
    """The frames are not those that an earlier run has seen."""


def _batches(
    request: DecodeRequest, found: Probe, plan: DecodeSettings, name: str
) -> Iterator[Frames | DecodeReport]:
    (width, height), side = plan.size, request.size
    left, top = (width - side) // 2, (height - side) // 2
    square = np.s_[top : top + side, left : left + side]
    batch = _Batch(request.batch_size, side)
    clock = _Clock(found, request.resume)
    warnings: list[str] = []
    try:
        for shown in _shown(request, found, plan, name):
            if clock.accepts(shown) and clock.is_new:
                batch.add(shown.image()[square], shown.time)
                if batch.is_full:
                    yield batch.take()
    except pyav_reader.DamagedPackets as damage:
        warnings.append(str(damage))
    if batch.times:
        yield batch.take()
    if clock.count == 0:
        raise DecodeError(f"{request.path}: no frame of its video stream can be decoded")
    if clock.is_short:
        raise _NotAsBefore
    yield _report(name, clock, found, request.frame_step, warnings)


def _shown(
    request: DecodeRequest, found: Probe, plan: DecodeSettings, name: str
) -> Iterator[DecodedFrame]:
    """The used frames, from one that is known to be at its place on."""
    decoder = DECODERS[name]
    start = _known(request.resume, found, request.frame_step, plan.single_threaded)
    try:
        yield from decoder(request.path, found, replace(plan, start=start))
    except pyav_reader.SeekMissed:
        yield from decoder(request.path, found, plan)


def _known(resume: Resume | None, found: Probe, frame_step: int, single_threaded: bool) -> int:
    """The used frame that decoding can begin at: the resume's anchor if the file's own times say
    that it is where it was given, so that no frame was lost before it; else the first."""
    if (
        resume is None
        or found.times is None
        or single_threaded
        or found.looks_cut
        or not found.fresh
    ):
        return 0
    index, time = resume.anchor
    number = index * frame_step
    return index if number < len(found.times) and found.times[number] == time else 0


def _report(
    name: str, clock: _Clock, found: Probe, frame_step: int, warnings: list[str]
) -> DecodeReport:
    if clock.refused:
        warnings.append(f"{clock.refused} frames left out whose time does not increase")
    fps = clock.rate(frame_step)
    # The last frame kept may have `frame_step` - 1 unused ones behind it.
    end = found.times[-1] if found.times is not None else clock.last
    duration = max(float(end), clock.last) + 1 / fps
    if found.times is not None and (seen := clock.count + clock.refused) < (
        said := len(found.times[::frame_step])
    ):
        warnings.append(f"{seen} of {said} frames could be decoded")
    if duration < found.length - 1:
        warnings.append(f"ends at {duration:.1f} s, its header says {found.length:.1f} s")
    return DecodeReport(name, clock.count, fps, duration, warnings)


class _Batch:
    """Frames on their way into one Frames event."""

    def __init__(self, size: int, side: int) -> None:
        self._shape = (size, side, side, 3)
        self._images: Image = np.empty(self._shape, np.uint8)
        self.times: list[float] = []

    def add(self, image: Image, time: float) -> None:
        if not self.times:
            self._images = np.empty(self._shape, np.uint8)
        self._images[len(self.times)] = image
        self.times.append(time)

    @property
    def is_full(self) -> bool:
        return len(self.times) == len(self._images)

    def take(self) -> Frames:
        times: NDArray[np.float64] = np.array(self.times)
        self.times = []
        return Frames(self._images[: len(times)], times)


class _Clock:
    """Keeps time increasing, counts the used frames of the whole video, knows the mean rate."""

    def __init__(self, found: Probe, resume: Resume | None) -> None:
        self._found = found
        self._done = resume.frames if resume else 0
        self._anchor = resume.anchor if resume else None
        self._first = self.last = -np.inf
        self.count = self.refused = 0

    def accepts(self, shown: DecodedFrame) -> bool:
        """Whether the frame is later than the one before. Raises _NotAsBefore when it is the
        resume's anchor and has another time."""
        if shown.time <= self.last:
            self.refused += 1
            return False
        if self.count == 0:
            # A decoder that begins further on does so only where the probe's times are right.
            self.count = shown.index
            times = self._found.times
            self._first = shown.time if times is None or not shown.index else float(times[0])
        if self._anchor and self.count == self._anchor[0] and shown.time != self._anchor[1]:
            raise _NotAsBefore
        self.last = shown.time
        self.count += 1
        return True

    @property
    def is_new(self) -> bool:
        """Whether the frame just accepted was not done before."""
        return self.count > self._done

    @property
    def is_short(self) -> bool:
        """Whether fewer frames came than were there before."""
        return self.count < self._done

    def rate(self, frame_step: int) -> float:
        """Frames a second of the file; of a single frame the nominal rate, or 1."""
        if self.count < 2:
            return self._found.rate or 1.0
        return float((self.count - 1) * frame_step / (self.last - self._first))
