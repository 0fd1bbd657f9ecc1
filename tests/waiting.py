"""What a stage says while another process holds a lock."""

from __future__ import annotations

from collections.abc import Callable

from mstemba.pipeline.progress import Event


class Watcher:
    """Receives the events of a stage, and acts whenever it waits for a lock."""

    def __init__(self, on_wait: Callable[[], object]) -> None:
        self.on_wait = on_wait
        self.news: list[str] = []

    def __call__(self, event: Event) -> None:
        self.news.append(event.message)
        if event.message.startswith("waiting"):
            self.on_wait()
