"""When the frames of a file are displayed: from the times of its packets to seconds."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mstemba.limits import MOST_FPS

# Seconds. ffmpeg takes a longer step in a broadcast format for a new clock, not for a pause.
_NEW_CLOCK = 10.0
# Seconds by which the clock of a damaged file may go back without starting again.
_JITTER = 0.5


# One packet, with its times in the unit of the stream. `resets`: it makes the decoder forget all
# that came before it. A packet that is decoded but not shown has no time.
PACKET = np.dtype(
    [(name, np.int64) for name in ("presented", "decoded", "duration", "keyframe", "resets")]
)
NO_TIME = np.iinfo(np.int64).min
Packets = NDArray[np.void]
"""(N,) of PACKET, in the order of the file."""


def closed_groups(packets: Packets, by_number: bool) -> list[int]:
    """Return how many packets are in each part that can be decoded without the others.

    They are closed groups of pictures: no frame of a later part is shown before its keyframe.
    """
    times = packets["presented"]
    if by_number or (times == NO_TIME).any():
        return [len(packets)]
    latest_start = np.minimum.accumulate(times[::-1])[::-1]
    begins = np.flatnonzero((packets["resets"] > 0) & (times == latest_start))
    lengths: list[int] = np.diff([0, *begins[begins > 0], len(packets)]).tolist()
    return lengths


@dataclass(frozen=True)
class Timeline:
    """The frames of a file in the order in which they are displayed."""

    stamps: NDArray[np.int64]
    """(N,) times in the file's own unit; in joined recordings they start again."""
    times: NDArray[np.float64]
    """(N,) seconds from the start of the video, strictly increasing."""
    end: float
    """Seconds: when the last frame ends, by its own duration."""
    fps: float
    """Frames per second without pauses: from the median time between two frames."""
    by_number: bool
    """Whether the i-th decoded frame has the i-th time, because frames have no times to compare."""
    unit: float = 0.0
    """Seconds of one tick of the file's clock."""
    clocks: int = 1
    """How many recordings are joined in the file, each with its own clock."""

    @classmethod
    def counted(cls, frames: int, fps: float) -> Timeline:
        """Return the times of a file that has none, at an assumed rate."""
        numbers = np.arange(frames)
        return cls(numbers, numbers / fps, frames / fps, fps, by_number=True)

    @classmethod
    def of_packets(
        cls,
        packets: Packets,
        unit: float,
        start: float | None,
        *,
        by_number: bool = False,
        broadcast: bool = False,
    ) -> Timeline | None:
        """Return the times that packets give; None if some have none.

        Args:
            packets: At least one. Those without a time are not shown, or are second fields.
            unit: Seconds of one tick of the packets' clock.
            start: Seconds on that clock at which the video starts; None = at its first frame.
            by_number: The container numbers its frames in decoding order, and that is all (AVI).
            broadcast: The container is one whose recordings can be joined (MPEG-TS and -PS): a step
                of more than ten seconds is a new clock there, as it is for ffmpeg.
        """
        by_number |= bool((packets["presented"] == NO_TIME).all())
        presented = packets["decoded" if by_number else "presented"]
        packets, presented = packets[presented != NO_TIME], presented[presented != NO_TIME]
        if not len(presented):
            return None
        starts = _clock_starts(packets, unit, broadcast)
        stamps: list[NDArray[np.int64]] = []
        ticks: list[NDArray[np.int64]] = []
        end = 0
        for begin, stop in pairwise([0, *starts, len(presented)]):
            piece = np.unique(presented[begin:stop])
            stamps.append(piece)
            usual = int(np.median(np.diff(piece))) if len(piece) > 1 else 0
            if stop < len(presented) and len(piece) > 1:
                # FFmpeg's guess for the last frame before a new clock may be too late.
                piece = np.minimum(piece, [*piece[:-1], piece[-2] + usual])
            last = begin + int(presented[begin:stop].argmax())
            ticks.append(piece + (end - piece[0] if ticks else 0))
            end = int(ticks[-1][-1]) + (int(packets["duration"][last]) or usual or 1)
        together = np.concatenate(ticks)
        offset = together[0] * unit if start is None else start
        times = together * unit - offset
        end_time = end * unit - offset
        fps = typical_fps(times, unit) or min(MOST_FPS, 1 / (end_time - times[-1]))
        return cls(np.concatenate(stamps), times, end_time, fps, by_number, unit, len(starts) + 1)


class FrameClock:
    """Gives decoded frames their times, one after the other."""

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline
        self._next = 0

    def time(self, stamp: int | None) -> float:
        """Return the time of the next frame in seconds.

        Args:
            stamp: The frame's time in the file's unit. Frames that are missing are skipped by it.
        """
        line, place = self._timeline, self._next
        stamps, times = line.stamps, line.times
        known = stamp is not None and not line.by_number
        if known and not (place < len(stamps) and stamps[place] == stamp):
            places = np.flatnonzero(stamps == stamp)
            if not len(places):  # no packet has it: by the clock of the frame before
                before = max(place - 1, 0)
                return float(times[before] + (stamp - stamps[before]) * line.unit)
            later = places[places > place]
            place = int(later[0] if len(later) else places[-1])
        self._next = max(self._next, place + 1)
        if place < len(times):
            return float(times[place])
        return float(line.end + (place - len(times)) / line.fps)

    def skip(self) -> None:
        """Note that a frame is lost, so that frames without a time of their own keep theirs."""
        self._next += self._timeline.by_number


def _clock_starts(packets: Packets, unit: float, broadcast: bool) -> list[int]:
    """Return the packets, by number, at which the clock of the file starts again."""
    # In decoding order times only increase; the first packets may lack theirs.
    known = np.flatnonzero(packets["decoded"] != NO_TIME)
    steps = np.zeros(len(packets) - 1)
    steps[known[1:] - 1] = np.diff(packets["decoded"][known]) * unit
    again = (steps < -_JITTER) | ((packets["keyframe"][1:] > 0) & (steps < 0))
    if broadcast:
        again |= steps > _NEW_CLOCK
    return (np.flatnonzero(again) + 1).tolist()


def typical_fps(times: NDArray[np.float64], unit: float) -> float:
    """Return the frames per second of the median step of times, 0 if there is none.

    Steps within the precision of the clock count as the median one: 33 and 34 ms are 30 frames/s.
    """
    steps: NDArray[Any] = np.diff(times)
    if not len(steps):
        return 0.0
    usual = np.quantile(steps, 0.5, method="lower")  # one of them, never between two
    return float(1 / steps[np.abs(steps - usual) <= 1.5 * unit].mean())
