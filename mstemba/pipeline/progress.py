"""How a stage tells what it is doing: events to a callback."""

from __future__ import annotations

import time
import unicodedata
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

# Seconds over which speed is measured: what was slow an hour ago says little of what is left.
SPAN = 60.0
# Seconds that are measured before anything is said of speed: a first batch tells nothing.
SETTLED = 3.0
# Control characters (which a terminal obeys) and the separators of lines and paragraphs.
_UNPRINTED = {"Cc", "Zl", "Zp"}


@dataclass(frozen=True)
class Event:
    """One piece of news: progress when it has a `total`, else a line to show."""

    stage: str
    """`extract`, `train`, `evaluate`, `detect`, ...: what is under way."""
    message: str = ""
    """For people: one line, without the stage's name, the share done and the time left."""
    done: float = 0.0
    """Of `total`, in a unit of the stage's own: only their ratio means something."""
    total: float | None = None
    """None for a piece of news that is no progress."""
    warning: bool = False
    """Whether it is something that the user should look at."""
    video: str | None = None
    """Id of the video that it is about."""
    count: int | None = None
    """What this call has worked off so far, in `unit`."""
    unit: str = ""
    """What `count` and `rate` count: frames, steps, videos."""
    rate: float | None = None
    """`unit` a second, over the last minute; None in the first seconds."""
    eta: float | None = None
    """Seconds left of this stage; None in the first seconds."""

    @property
    def share(self) -> float | None:
        """The part that is done, 0 to 1; None for news that is no progress."""
        if self.total is None:
            return None
        return min(1.0, self.done / self.total) if self.total else 1.0


EventHandler = Callable[[Event], None]
"""What a stage calls, in the thread that called the stage. What it raises ends the stage."""


def ignore_events(event: Event) -> None:
    """The listener that ignores everything."""


class ProgressReporter:
    """Progress of one stage, with its speed and the time left."""

    def __init__(
        self,
        stage: str,
        total: float,
        unit: str,
        on_event: EventHandler,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clock` gives seconds."""
        self._stage, self._total, self._unit = stage, total, unit
        self._listen, self._clock = on_event, clock
        # From the first progress on: what came before it, loading and compiling, comes once.
        self._samples = deque[tuple[float, float, int]]()

    def update(self, what: str, done: float, count: int, video: str | None = None) -> None:
        """`done` of the total is reached, and this call has worked off `count`."""
        now = self._clock()
        rate, eta = self._speed(now, done, count) if count else (None, None)
        if done >= self._total:
            eta = 0.0
        speed = "" if rate is None else f", {_short(rate)} {self._unit}/s"
        self._listen(
            Event(
                self._stage,
                what + speed,
                done,
                self._total,
                video=video,
                count=count,
                unit=self._unit,
                rate=rate,
                eta=eta,
            )
        )

    def _speed(self, now: float, done: float, count: int) -> tuple[float | None, float | None]:
        """Of the last minute, and the seconds left at this speed; None where unknown."""
        while len(self._samples) > 1 and self._samples[1][0] <= now - SPAN:
            self._samples.popleft()
        if not self._samples or now - self._samples[-1][0] >= SPAN / 60:
            self._samples.append((now, done, count))
        began, done_then, count_then = self._samples[0]
        seconds = now - began
        if seconds < SETTLED:
            return None, None
        left = max(0.0, self._total - done)
        eta = left * seconds / (done - done_then) if done > done_then else None
        return (count - count_then) / seconds, eta


def one_line(text: str) -> str:
    r"""The text as one line that every terminal prints: names may hold anything.

    Control characters and bytes that are no text are shown as Python writes them, `\n`, `\x1b`.
    """
    shown = "".join(repr(c)[1:-1] if unicodedata.category(c) in _UNPRINTED else c for c in text)
    return shown.encode("utf-8", "backslashreplace").decode()


def counted(count: int, one: str, many: str = "") -> str:
    """`1 video`, `2 videos`; `many` where the plural is not made with an s."""
    return f"{count} {one if count == 1 else many or f'{one}s'}"


def in_words(seconds: float) -> str:
    """A length of time for people: `42 s`, `7:03 min`, `2:05:00 h`."""
    whole = round(seconds)
    minutes, rest = divmod(whole, 60)
    hours, minutes_left = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes_left:02d}:{rest:02d} h"
    return f"{minutes}:{rest:02d} min" if minutes else f"{whole} s"


def _short(rate: float) -> str:
    return f"{rate:.0f}" if rate >= 10 else f"{rate:.2g}"
