"""What a notebook shows of detections: the timeline picture and a short table of the segments."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from mstemba.pipeline.outputs.png_timeline import draw_timeline
from mstemba.pipeline.progress import counted
from mstemba.records import Scores, Segment

MOST_SEGMENTS = 20
MOST_VIDEOS = 10


def timeline_as_png(
    scores: Scores, segments: Sequence[Segment], ground_truth: Sequence[Segment] | None
) -> bytes:
    """Return the timeline picture as the content of a PNG file."""
    content = io.BytesIO()
    draw_timeline(scores, segments, ground_truth).save(content, format="png")
    return content.getvalue()


def detection_as_html(
    name: str,
    scores: Scores,
    segments: Sequence[Segment],
    ground_truth: Sequence[Segment] | None,
) -> str:
    """Return self-contained HTML: the timeline picture, then the first segments."""
    picture = base64.b64encode(timeline_as_png(scores, segments, ground_truth)).decode()
    rows = [
        (f"{s.start:.2f}", f"{s.end:.2f}", s.label, f"{s.score:.2f}")
        for s in segments[:MOST_SEGMENTS]
    ]
    title = f"{name}: {counted(len(segments), 'segment')} in {scores.duration:.1f} s"
    return (
        f"<div><p {_LITERAL}>{_text(title)}</p>"
        f'<img style="max-width: 100%" alt="timeline" src="data:image/png;base64,{picture}">'
        + (_table(("start s", "end s", "label", "score"), rows) if rows else "")
        + _more(len(segments) - MOST_SEGMENTS, "segments")
        + "</div>"
    )


def videos_as_html(videos: Mapping[str, tuple[float, Sequence[Segment]]]) -> str:
    """Return a table of several videos, given their durations in seconds and segments by id."""
    rows = [
        (
            id,
            f"{duration:.1f}",
            str(len(segments)),
            ", ".join(dict.fromkeys(s.label for s in segments)),
        )
        for id, (duration, segments) in list(videos.items())[:MOST_VIDEOS]
    ]
    return (
        f"<p>{len(videos)} videos</p>"
        + (_table(("video", "seconds", "segments", "labels"), rows) if rows else "")
        + _more(len(videos) - MOST_VIDEOS, "videos")
    )


def failures_as_html(failed: Mapping[str, str]) -> str:
    """Return a table of the videos that failed, with the reasons; nothing if there are none."""
    if not failed:
        return ""
    return f"<p>{len(failed)} failed</p>{_table(('video', 'reason'), failed.items())}"


# Names are shown as they are: line breaks kept, each in its own direction of writing.
_LITERAL = 'dir="auto" style="text-align: left; white-space: pre-wrap"'


def _labels(segments: Sequence[Segment]) -> str:
    return ", ".join(dict.fromkeys(segment.label for segment in segments))


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
