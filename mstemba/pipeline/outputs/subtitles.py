"""VTT and SRT: subtitles with a line for each action in progress."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from html import escape
from pathlib import Path

from mstemba.pipeline.caching.files import write_text
from mstemba.pipeline.outputs.detection import Detection
from mstemba.pipeline.outputs.fields import clock, distinct, milliseconds
from mstemba.pipeline.progress import one_line

# What a player may take for markup in SRT, which has no escapes.
_MARKUP = re.compile(r"<(?=[A-Za-z/!])|\{(?=[\\A-Za-z])|-->")
_LOOKS_ALIKE = {"<": "＜", "{": "｛", "-->": "→"}  # noqa: RUF001


def write_vtt(detection: Detection, path: Path) -> None:
    """Write WebVTT (www.w3.org/TR/webvtt1), the subtitles of web browsers."""
    cues = _cues(detection, ".", lambda name: escape(name, quote=False))
    write_text(path, "\n\n".join(["WEBVTT", *cues]) + "\n")


def write_srt(detection: Detection, path: Path) -> None:
    """Write SubRip, the subtitles of video players."""

    def without_markup(name: str) -> str:
        return _MARKUP.sub(lambda found: _LOOKS_ALIKE[found[0]], name)

    cues = _cues(detection, ",", without_markup)
    write_text(path, "\n\n".join(f"{n}\n{cue}" for n, cue in enumerate(cues, 1)) + "\n")


def _cues(detection: Detection, mark: str, escaped: Callable[[str], str]) -> Iterator[str]:
    """Yield the text of each stretch between two changes: its times, then the active classes.

    The classes are in their own order, so that a line stays in place while others come and go.
    Stretches without an action are omitted.
    """
    names = distinct(escaped(one_line(name)) for name in detection.scores.classes)
    starting, ending = defaultdict[int, set[int]](set), defaultdict[int, set[int]](set)
    for segment in detection.segments:
        start, end = milliseconds(segment)
        starting[start].add(segment.class_id)
        ending[end].add(segment.class_id)
    active: set[int] = set()
    since = 0
    for time in sorted(starting.keys() | ending.keys()):
        if active:
            times = f"{_time(since, mark)} --> {_time(time, mark)}"
            yield "\n".join([times, *(names[class_id] for class_id in sorted(active))])
        since = time
        # A class may start again in the millisecond in which it ended.
        active = (active - ending[time]) | starting[time]


def _time(milliseconds: int, mark: str) -> str:
    """Return `00:01:02.345`, with `mark` before the milliseconds."""
    return f"{clock(milliseconds // 1000)}{mark}{milliseconds % 1000:03d}"
