"""What a notebook shows of detections: the timeline picture and a short table of the segments."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from html import escape

from mstemba.pipeline.outputs.detection import Detection
from mstemba.pipeline.outputs.png_timeline import as_png
from mstemba.pipeline.progress import counted

MOST_SEGMENTS = 20
MOST_VIDEOS = 10


def as_html(detection: Detection) -> str:
    """A piece of HTML that needs nothing from outside: the PNG's picture, then the segments."""
    picture = base64.b64encode(as_png(detection)).decode()
    segments = detection.segments
    rows = [
        (f"{s.start:.2f}", f"{s.end:.2f}", s.label, f"{s.score:.2f}")
        for s in segments[:MOST_SEGMENTS]
    ]
    found = counted(len(segments), "segment")
    title = f"{detection.name}: {found} in {detection.scores.duration:.1f} s"
    return (
        f"<div><p {_LITERAL}>{_text(title)}</p>"
        f'<img style="max-width: 100%" alt="timeline" src="data:image/png;base64,{picture}">'
        + (_table(("start s", "end s", "label", "score"), rows) if rows else "")
        + _more(len(segments) - MOST_SEGMENTS, "segments")
        + "</div>"
    )


def all_as_html(detections: Mapping[str, Detection], failed: Mapping[str, str]) -> str:
    """The same of one video; a table of several, and the failures with their reasons."""
    if len(detections) == 1:
        (detection,) = detections.values()
        parts = [as_html(detection)]
    else:
        rows = [
            (id, f"{d.scores.duration:.1f}", str(len(d.segments)), _labels(d))
            for id, d in list(detections.items())[:MOST_VIDEOS]
        ]
        heads = ("video", "seconds", "segments", "labels")
        parts = [
            f"<p>{len(detections)} videos</p>",
            _table(heads, rows) if rows else "",
            _more(len(detections) - MOST_VIDEOS, "videos"),
        ]
    if failed:
        parts += [f"<p>{len(failed)} failed</p>", _table(("video", "reason"), failed.items())]
    return f"<div>{''.join(parts)}</div>"


# Names are shown as they are: line breaks kept, each in its own direction of writing.
_LITERAL = 'dir="auto" style="text-align: left; white-space: pre-wrap"'


def _labels(detection: Detection) -> str:
    return ", ".join(dict.fromkeys(segment.label for segment in detection.segments))


def _table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = "".join(f"<th>{_text(cell)}</th>" for cell in heads)
    body = "".join(
        f"<tr>{''.join(f'<td {_LITERAL}>{_text(cell)}</td>' for cell in row)}</tr>" for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _more(count: int, what: str) -> str:
    return f"<p>... and {count} more {what}</p>" if count > 0 else ""


def _text(text: str) -> str:
    return escape(text.encode("utf-8", "backslashreplace").decode())
