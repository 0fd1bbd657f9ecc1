"""How a stage tells what it is doing: events to a callback."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Event:
    """One piece of news: progress when it has a `total`, else a line to show."""

    stage: str
    message: str = ""
    done: float = 0.0
    total: float | None = None
    warning: bool = False


Listener = Callable[[Event], None]


def silent(event: Event) -> None:
    """The listener that ignores everything."""
