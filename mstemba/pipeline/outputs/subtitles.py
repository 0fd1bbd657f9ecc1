"""VTT and SRT: subtitles with a line for each action in progress."""

from __future__ import annotations

import re
from collections.abc import Iterator
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
    names = distinct(_escaped(one_line(name)) for name in detection.scores.classes)
    cues = [
        f"{_time(start, '.')} --> {_time(end, '.')}\n" + "\n".join(names[c] for c in classes)
        for start, end, classes in under_way(detection)
    ]
    write_text(path, "\n\n".join(["WEBVTT", *cues]) + "\n")


def write_srt(detection: Detection, path: Path) -> None:
    """Write SubRip, the subtitles of video players."""
    names = distinct(_without_markup(one_line(name)) for name in detection.scores.classes)
    cues = [
        f"{number}\n{_time(start, ',')} --> {_time(end, ',')}\n"
        + "\n".join(names[c] for c in classes)
        for number, (start, end, classes) in enumerate(under_way(detection), 1)
    ]
    write_text(path, "\n\n".join(cues) + "\n")


def under_way(detection: Detection) -> Iterator[tuple[int, int, list[int]]]:
    """Yield the stretches between two changes, as start, end (milliseconds) and active classes.

    The classes are in their own order, so that a line stays in place while others come and go.
    Stretches without an action are omitted.
    """
    changes: dict[int, list[int]] = {}
    for segment in detection.segments:
        start, end = milliseconds(segment)
        # Counts from 1: 0 has no sign.
        changes.setdefault(start, []).append(segment.class_id + 1)
        changes.setdefault(end, []).append(-segment.class_id - 1)
    active: set[int] = set()
    since = 0
    for time in sorted(changes):
        if active:
            yield since, time, sorted(active)
        since = time
        # Ends first: a class may start again in the millisecond in which it ended.
        for change in sorted(changes[time]):
            if change > 0:
                active.add(change - 1)
            else:
                active.discard(-change - 1)


def _time(milliseconds: int, mark: str) -> str:
    """Return `00:01:02.345`, with `mark` before the milliseconds."""
    return f"{clock(milliseconds // 1000)}{mark}{milliseconds % 1000:03d}"


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _without_markup(text: str) -> str:
    return _MARKUP.sub(lambda found: _LOOKS_ALIKE[found[0]], text)
