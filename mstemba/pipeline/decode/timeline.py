"""When the frames of a file are displayed: from the times of its packets to seconds."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Seconds. ffmpeg takes a longer step in a broadcast format for a new clock, not for a pause.
_NEW_CLOCK = 10.0
# Seconds by which the clock of a damaged file may go back without starting again.
_JITTER = 0.5
# A pause is reported if it is longer than this many seconds, and than this many usual steps.
_LONG_PAUSE = (60.0, 100)


@dataclass
class PacketTimes:
    """The times in the packets of a video stream, in the order of the file, in its time unit."""

    presented: list[int | None] = field(default_factory=list)
    decoded: list[int | None] = field(default_factory=list)
    durations: list[int] = field(default_factory=list)
    keyframes: list[bool] = field(default_factory=list)
    resets: list[bool] = field(default_factory=list)
    """Whether a packet makes the decoder forget all that came before it."""
    hidden: int = 0
    """More packets, which are decoded but not shown, because an edit list begins after them."""

    def closed_groups(self, by_number: bool) -> list[int]:
        """Return the lengths of the parts of which each can be decoded without the others.

        They are closed groups of pictures: no frame of a later part is shown before its keyframe.
        """
        count = len(self.presented) + self.hidden
        if by_number or self.hidden or None in self.presented:
            return [count]
        times = np.array(self.presented, np.int64)
        latest_start = np.minimum.accumulate(times[::-1])[::-1]
        begins = np.flatnonzero(np.array(self.resets, bool) & (times == latest_start))
        return [int(length) for length in np.diff([0, *begins[begins > 0], count])]

    def timed(self, by_number: bool) -> PacketTimes:
        """Return the packets that have a time; by number, that of decoding is their time.

        Those without one belong to frames that are not shown, or are second fields.
        """
        times = self.decoded if by_number else self.presented
        rows = zip(times, self.decoded, self.durations, self.keyframes, strict=True)
        kept = [row for row in rows if row[0] is not None]
        if not kept:
            return PacketTimes()
        presented, decoded, durations, keyframes = map(list, zip(*kept, strict=True))
        return PacketTimes(presented, decoded, durations, keyframes)


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
        packets: PacketTimes,
        unit: float,
        start: float | None,
        *,
        by_number: bool = False,
        broadcast: bool = False,
    ) -> Timeline | None:
        """Return the times that packets give; None if some have none.

        Args:
            packets: At least one.
            unit: Seconds of one tick of the packets' clock.
            start: Seconds on that clock at which the video starts; None = at its first frame.
            by_number: The container numbers its frames in decoding order, and that is all (AVI).
            broadcast: The container is one whose recordings can be joined (MPEG-TS and -PS): a step
                of more than ten seconds is a new clock there, as it is for ffmpeg.
        """
        by_number |= not any(time is not None for time in packets.presented)
        packets = packets.timed(by_number)
        if not packets.presented:
            return None
        presented = np.array(packets.presented, np.int64)
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
            end = int(ticks[-1][-1]) + (packets.durations[last] or usual or 1)
        together = np.concatenate(ticks)
        offset = together[0] * unit if start is None else start
        times = together * unit - offset
        fps = typical_fps(times, unit) or 1 / (end * unit - offset - times[-1])
        end_time = end * unit - offset
        return cls(np.concatenate(stamps), times, end_time, fps, by_number, unit, len(starts) + 1)

    def pause(self) -> tuple[float, float] | None:
        """Return start and length, in seconds, of the longest pause if it is a remarkable one."""
        steps = np.diff(self.times)
        longest = int(steps.argmax()) if len(steps) else 0
        least, usual_steps = _LONG_PAUSE
        if not len(steps) or steps[longest] < max(least, usual_steps / self.fps):
            return None
        return float(self.times[longest]), float(steps[longest])


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


def _clock_starts(packets: PacketTimes, unit: float, broadcast: bool) -> list[int]:
    """Return the packets, by number, at which the clock of the file starts again."""
    # In decoding order times only increase; the first packets may lack theirs.
    known = [number for number, time in enumerate(packets.decoded) if time is not None]
    steps = np.zeros(len(packets.decoded) - 1)
    steps[[number - 1 for number in known[1:]]] = (
        np.diff([packets.decoded[number] for number in known]) * unit
    )
    key = np.array(packets.keyframes[1:], bool)
    again = (steps < -_JITTER) | (key & (steps < 0))
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
