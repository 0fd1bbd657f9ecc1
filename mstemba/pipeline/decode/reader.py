"""One video to batches of timestamped frames: the choice of the decoder, and what became of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from mstemba.errors import DecodeError
from mstemba.pipeline.decode import decord, pyav
from mstemba.pipeline.decode.probe import probe
from mstemba.pipeline.decode.request import (
    Damaged,
    Decoder,
    DecodeReport,
    DecodeRequest,
    DecoderFailed,
    Opened,
    Restart,
    VideoInfo,
    no_heartbeat,
)
from mstemba.reading.files import file_size
from mstemba.records import Frames
from mstemba.wording import counted

DECODERS: dict[str, Decoder] = {"decord": decord.decode, "av": pyav.decode}


def new_array(request: DecodeRequest) -> NDArray[np.uint8]:
    """Return memory for a batch of frames, (N, H, W, 3)."""
    return np.empty(request.batch_shape, np.uint8)


def decode(
    request: DecodeRequest,
    heartbeat: Callable[[], None] = no_heartbeat,
    new_batch: Callable[[DecodeRequest], NDArray[np.uint8]] = new_array,
) -> Iterator[Opened | Frames | Restart | DecodeReport]:
    """Decode one video.

    `auto` takes decord where it is exact, and PyAV for the other files and whenever decord fails.
    A file that turns out to be damaged is decoded again, as a whole, by PyAV with one thread.

    Args:
        request: The video, and what to make of it.
        heartbeat: Called at least every few seconds for as long as there is progress.
        new_batch: Gives memory for the next batch; an unfinished batch is given up at a Restart.

    Yields:
        Opened, batches of frames, and a DecodeReport at the end. A Restart comes before the frames
        of a second try, and of a video whose earlier frames are not those that `resume` describes.

    Raises:
        DecodeError: The video has no frame that can be decoded, or not by the requested decoder.
    """
    file_size(request.path, DecodeError)
    info = probe(request.path, request.fps, heartbeat)
    decoder = _choose(request, info)
    yield Opened(info.timeline.end, decoder)
    while True:
        try:
            yield from _decode(request, info, decoder, heartbeat, new_batch)
            return
        except _ResumeMismatch:
            request = replace(request, resume=None)
        except DecoderFailed as error:
            if request.decoder == "decord":
                raise _refusal(request, str(error)) from None
            damaged = isinstance(error, Damaged)
            request = replace(request, resume=None, single_threaded=damaged)
            decoder = "av"
        yield Restart(decoder)


def _choose(request: DecodeRequest, info: VideoInfo) -> str:
    """Return the decoder. Raises DecodeError when the requested one is not exact."""
    if request.decoder == "av":  # even loading decord may be what failed before
        return "av"
    reason = decord.why_inexact(info)
    if request.decoder == "decord":
        if reason:
            raise _refusal(request, reason)
        return "decord"
    if request.resume:
        return "av" if reason else request.resume.decoder
    # decord resizes all frames, also those that are skipped.
    lean = request.frame_step == 1 and decord.fits_in_memory(info, request)
    return "decord" if lean and not reason else "av"


def _refusal(request: DecodeRequest, reason: str) -> DecodeError:
    return DecodeError(f"{request.path}: not decoded with decord: {reason}. Try --decoder auto")


class _ResumeMismatch(Exception):
    """The frames are not those that an earlier run has seen."""


def _decode(
    request: DecodeRequest,
    info: VideoInfo,
    decoder: str,
    heartbeat: Callable[[], None],
    new_batch: Callable[[DecodeRequest], NDArray[np.uint8]],
) -> Iterator[Frames | DecodeReport]:
    """Decode with one decoder from the first frame on. Frames before `resume` are not resized."""
    resume = request.resume
    if resume and resume.decoder != decoder:
        raise _ResumeMismatch
    done = resume.frames if resume else 0
    times: list[float] = []
    ignored = filled = 0
    batch = np.empty(0, np.uint8)
    for time, image in DECODERS[decoder](request, info, heartbeat):
        if times and time <= times[-1]:
            ignored += 1
            continue
        if resume and len(times) == resume.anchor[0] and time != resume.anchor[1]:
            raise _ResumeMismatch
        times.append(time)
        if len(times) <= done:
            continue
        batch = batch if filled else new_batch(request)
        batch[filled] = image()
        filled += 1
        if filled == len(batch):
            yield Frames(batch, np.array(times[-filled:]))
            filled = 0
    if filled:
        yield Frames(batch[:filled], np.array(times[-filled:]))
    if not times:
        raise DecodeError(f"{request.path}: no frame of its video stream can be decoded")
    if len(times) < done:
        raise _ResumeMismatch
    decoded, expected = len(times) + ignored, len(info.timeline.times[:: request.frame_step])
    fps = info.timeline.fps
    if info.interlaced and abs(2 * decoded - expected) <= 1:  # two packets are one frame
        fps, expected = fps / 2, decoded
    warnings = list(info.warnings)
    if ignored:
        warnings.append(f"{counted(ignored, 'frame')} ignored: out of order in time")
    if decoded < expected:
        warnings.append(f"{decoded} of {counted(expected, 'frame')} could be decoded")
    end = info.timeline.end
    yield DecodeReport(decoder, len(times), fps, end, info.timecode, warnings)
