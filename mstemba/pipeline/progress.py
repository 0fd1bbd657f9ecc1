"""Progress of a stage, reported as events to a callback."""

from __future__ import annotations

import sys
import time
import unicodedata
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

# Seconds over which speed is measured: the speed of an hour ago says little about what is left.
SPAN = 60.0
# Seconds of measurement before a speed is reported: a first batch says nothing.
SETTLED = 3.0
# Control characters (which a terminal obeys) and the separators of lines and paragraphs.
_UNPRINTED = {"Cc", "Zl", "Zp"}


@dataclass(frozen=True)
class Event:
    """A message from a stage: progress if it has a `total`, otherwise a line to show."""

    stage: str
    """Name of the stage: `extract`, `train`, `evaluate`, `detect`, ..."""
    message: str = ""
    """One line to show, without the name of the stage, the share done and the time left."""
    done: float = 0.0
    """Amount of `total` that is done; only their ratio has a meaning."""
    total: float | None = None
    """None for a message that is not progress."""
    warning: bool = False
    """Whether the user should look at it."""
    video: str | None = None
    """Id of the video in question."""
    failed: bool = False
    """Whether this video failed, for the reason in `message`; then `warning` is True, too."""
    count: int | None = None
    """What this call has processed so far, in `unit`."""
    unit: str = ""
    """Unit of `count` and `rate`: frames, steps or videos."""
    rate: float | None = None
    """`unit` per second over the last minute; None in the first seconds."""
    eta: float | None = None
    """Estimated seconds left in this stage; None in the first seconds."""

    @property
    def share(self) -> float | None:
        """Fraction that is done, 0 to 1; None for a message that is not progress."""
        if self.total is None:
            return None
        return min(1.0, self.done / self.total) if self.total else 1.0


EventHandler = Callable[[Event], None]
"""A callback for events, in the thread that called the stage. Its exceptions end the stage."""


def ignore_events(event: Event) -> None:
    """Ignore an event."""


def report_import(stage: str, on_event: EventHandler) -> None:
    """Report that PyTorch will be imported, which takes seconds, unless it has been.

    To be called before the import: on a slow machine it takes up to half a minute.
    """
    if "torch" not in sys.modules:
        on_event(Event(stage, "loading PyTorch"))


class ProgressReporter:
    """Reports the progress of one stage with its speed and the time left."""

    def __init__(
        self,
        stage: str,
        total: float,
        unit: str,
        on_event: EventHandler,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clock` returns seconds."""
        self._stage, self._total, self._unit = stage, total, unit
        self._on_event, self._clock = on_event, clock
        # Times before the first progress, of loading and compiling, are not measured.
        self._samples = deque[tuple[float, float, int]]()

    def update(self, what: str, done: float, count: int, video: str | None = None) -> None:
        """Report that `done` of the total is reached, and that this call has processed `count`."""
        now = self._clock()
        rate, eta = self._speed(now, done, count) if count else (None, None)
        if done >= self._total:
            eta = 0.0
        speed = ""
        if rate is not None:
            speed = f", {rate:{'.0f' if rate >= 10 else '.2g'}} {self._unit}/s"
        self._on_event(
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
        """Return the rate of the last minute and the seconds left at it; None if unknown."""
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
    r"""Return text, such as a name, as one line that is safe to print on any terminal.

    Control characters and undecodable bytes are escaped as in Python, `\n`, `\x1b`.
    """
    if text.isascii() and text.isprintable():
        return text
    shown = "".join(repr(c)[1:-1] if unicodedata.category(c) in _UNPRINTED else c for c in text)
    return shown.encode("utf-8", "backslashreplace").decode()


def in_words(seconds: float) -> str:
    """Return a duration for people: `42 s`, `7:03 min`, `2:05:00 h`."""
    whole = round(seconds)
    minutes, rest = divmod(whole, 60)
    hours, minutes_left = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes_left:02d}:{rest:02d} h"
    return f"{minutes}:{rest:02d} min" if minutes else f"{whole} s"
