"""One video to batches of timestamped frames: the choice of the decoder, and what became of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from mstemba.errors import DecodeError, UsageError
from mstemba.pipeline.decode import decord, pyav
from mstemba.pipeline.decode.resize import resized
from mstemba.pipeline.decode.settings import (
    Decoder,
    DecoderFailed,
    DecodeSettings,
    VideoInfo,
    no_heartbeat,
)
from mstemba.records import Frames

DECODERS: dict[str, Decoder] = {"decord": decord.decode, "av": pyav.decode}


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
    """auto, or one of DECODERS."""
    single_threaded: bool = False
    """For a damaged file: PyAV uses one thread."""
    resume: Resume | None = None
    threads: int = 0
    """Of the decoder's library; 0 = its own choice."""

    def __post_init__(self) -> None:
        if self.decoder != "auto" and self.decoder not in DECODERS:
            known = ", ".join(["auto", *DECODERS])
            raise UsageError(f"--decoder {self.decoder}: unknown decoder; expected one of {known}")
        if self.short_side is not None and self.short_side < self.size:
            raise UsageError(
                f"a square of {self.size} pixels cannot be cut out of frames whose short side is "
                f"{self.short_side}: resize to {self.size} or more"
            )


@dataclass(frozen=True)
class Opened:
    """The video is readable; its frames follow."""

    seconds: float
    """When its last frame is displayed, according to the container; 0 when it does not say."""
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
    """Mean frames per second of the file."""
    duration: float
    """Seconds from the start to the end of the last frame."""
    warnings: list[str] = field(default_factory=list)


def decode(
    request: DecodeRequest, heartbeat: Callable[[], None] = no_heartbeat
) -> Iterator[Opened | Frames | Restart | DecodeReport]:
    """Decode one video.

    `auto` takes PyAV, or continues with decord where an earlier run had used it. A file that turns
    out to be damaged is decoded again, as a whole, by PyAV with a single thread.

    Args:
        request: The video, and what to make of it.
        heartbeat: Called at least every few seconds for as long as there is progress.

    Yields:
        Opened, batches of frames, and a DecodeReport at the end. A Restart comes before the frames
        of a second try, and of a video whose earlier frames are not those that `resume` describes.

    Raises:
        DecodeError: The video has no frame that can be decoded, or not by the requested decoder.
    """
    if not request.path.is_file():
        raise DecodeError(f"{request.path}: no such file")
    info = pyav.probe(request.path, heartbeat)
    decoder = _choose(request, info)
    yield Opened(0.0 if info.times is None else float(info.times[-1]), decoder)
    while True:
        try:
            yield from _decode(request, info, decoder, heartbeat)
            return
        except _ResumeMismatch:
            request = replace(request, resume=None)
        except DecoderFailed as error:
            if request.decoder == "decord":
                raise _refusal(request, str(error)) from None
            decoder = "av"
            request = replace(request, resume=None, single_threaded=True)
        yield Restart(decoder)


def _choose(request: DecodeRequest, info: VideoInfo) -> str:
    """Return the decoder. Raises DecodeError when the requested one is not exact."""
    if request.decoder == "decord" and (reason := decord.why_inexact(info)):
        raise _refusal(request, reason)
    if request.decoder != "auto":
        return request.decoder
    # PyAV is exact for every file, and here quicker than decord and leaner: decord's memory grows
    # with the length of the video (measured: docs/extract.md).
    began = request.resume.decoder if request.resume else "av"
    return "decord" if began == "decord" and not decord.why_inexact(info) else "av"


def _refusal(request: DecodeRequest, reason: str) -> DecodeError:
    return DecodeError(f"{request.path}: decord cannot read it: {reason}. Try --decoder auto")


class _ResumeMismatch(Exception):
    """The frames are not those that an earlier run has seen."""


def _decode(
    request: DecodeRequest, info: VideoInfo, decoder: str, heartbeat: Callable[[], None]
) -> Iterator[Frames | DecodeReport]:
    """Decode with one decoder from the first frame on. Frames before `resume` are not resized."""
    resume, side = request.resume, request.size
    if resume and resume.decoder != decoder:
        raise _ResumeMismatch
    width, height = resized(info.width, info.height, request.short_side or side)
    left, top = (width - side) // 2, (height - side) // 2
    square = np.s_[top : top + side, left : left + side]
    settings = DecodeSettings(
        (width, height),
        request.frame_step,
        threads=request.threads,
        single_threaded=request.single_threaded,
        heartbeat=heartbeat,
    )
    done = resume.frames if resume else 0
    times: list[float] = []
    ignored = 0
    batch, filled = np.empty((request.batch_size, side, side, 3), np.uint8), 0
    for frame in DECODERS[decoder](request.path, info, settings):
        if times and frame.time <= times[-1]:
            ignored += 1
            continue
        if resume and len(times) == resume.anchor[0] and frame.time != resume.anchor[1]:
            raise _ResumeMismatch
        times.append(frame.time)
        if len(times) > done:
            batch[filled] = frame.image()[square]
            filled += 1
            if filled == len(batch):
                yield Frames(batch, np.array(times[-filled:]))
                batch, filled = np.empty_like(batch), 0
    if filled:
        yield Frames(batch[:filled], np.array(times[-filled:]))
    if not times:
        raise DecodeError(f"{request.path}: no frame of its video stream can be decoded")
    if len(times) < done:
        raise _ResumeMismatch
    yield _report(decoder, info, request.frame_step, times, ignored, settings.warnings)


def _report(
    decoder: str,
    info: VideoInfo,
    frame_step: int,
    times: list[float],
    ignored: int,
    warnings: list[str],
) -> DecodeReport:
    if len(times) > 1:
        fps = (len(times) - 1) * frame_step / (times[-1] - times[0])
    else:
        fps = info.rate or 1.0
    duration = times[-1] + 1 / fps
    if ignored:
        warnings.append(f"{ignored} frames ignored whose time does not increase")
    if info.times is not None:
        # The last used frame may have `frame_step` - 1 unused ones behind it.
        duration = max(duration, float(info.times[-1]) + 1 / fps)
        decoded, expected = len(times) + ignored, len(info.times[::frame_step])
        if decoded < expected:
            warnings.append(f"{decoded} of {expected} frames could be decoded")
    if duration < info.duration - 1:
        warnings.append(f"ends at {duration:.1f} s, its header says {info.duration:.1f} s")
    return DecodeReport(decoder, len(times), fps, duration, warnings)
