"""The detections of one video, as every writer receives them and a notebook shows them."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from mstemba.data_manifests.manifest import Action
from mstemba.pipeline.options import ExportOptions
from mstemba.records import Scores, Segment
from mstemba.wording import counted

# What a notebook shows of many.
MOST_SEGMENTS = 20
MOST_VIDEOS = 10
# Names are shown as they are: line breaks kept, each in its own direction of writing.
_LITERAL = 'dir="auto" style="text-align: left; white-space: pre-wrap"'


@dataclass(frozen=True)
class ManifestEntry:
    """What the manifest says of a video. The page shows it, and gives back what is not corrected.

    Class ids are indices of `classes`.
    """

    classes: tuple[str, ...]
    """All classes of the manifest, in its order."""
    scored: tuple[str, ...]
    """(C,) the classes of the scores, in the manifest's spelling where it has them."""
    duration: float | None
    """In the manifest's time unit."""
    actions: tuple[Action, ...]
    """In the manifest's time unit and order."""
    seconds: tuple[Action, ...]
    """The same actions with times in seconds."""
    annotated_until: float | None = None
    """In the manifest's time unit; None where the whole video is annotated."""


@dataclass(frozen=True)
class Detection:
    """The detections of one video. A notebook shows its timeline and segments."""

    scores: Scores
    """Dense probabilities, with their times."""
    segments: list[Segment]
    """By start, then end, then class."""
    ground_truth: list[Segment] | None
    """Labelled actions of the scores' classes; None if the manifest has none of the video."""
    provenance: dict[str, Any]
    """Checkpoint, features and thresholds that the segments come from."""
    id: str = ""
    """The video's, the manifest's if it has the video."""
    subset: str | None = None
    """In the manifest."""
    options: ExportOptions = field(default_factory=ExportOptions)
    """How segments were cut from the scores."""
    frames_per_row: int | None = None
    """Frames from one row to the next, where the manifest counts time in frames; else None."""
    listed: ManifestEntry | None = None
    """The manifest's entry of the video; None if it has none."""

    @property
    def name(self) -> str:
        """The video's id, or its file name if it has none."""
        return self.id or Path(self.scores.video).name

    def __repr__(self) -> str:
        classes = len({segment.class_id for segment in self.segments})
        return (
            f"Detection({self.name!r}, {counted(len(self.segments), 'segment')} of {classes} of "
            f"{counted(len(self.scores.classes), 'class')}, {self.scores.duration:.1f} s)"
        )

    def _repr_png_(self) -> bytes:
        # Imported here: drawing is needed in notebooks only.
        from mstemba.pipeline.outputs.png_timeline import draw_timeline

        content = io.BytesIO()
        draw_timeline(self.scores, self.segments, self.ground_truth).save(content, format="png")
        return content.getvalue()

    def _repr_html_(self) -> str:
        count, seconds = len(self.segments), self.scores.duration
        title = f"{self.name}: {counted(count, 'segment')} in {seconds:.1f} s"
        picture = base64.b64encode(self._repr_png_()).decode()
        rows = [
            (f"{s.start:.2f}", f"{s.end:.2f}", s.label, f"{s.score:.2f}")
            for s in self.segments[:MOST_SEGMENTS]
        ]
        return (
            f"<div><p {_LITERAL}>{_text(title)}</p>"
            f'<img style="max-width: 100%" alt="timeline" src="data:image/png;base64,{picture}">'
            f"{_table(('start s', 'end s', 'label', 'score'), rows)}"
            f"{_more(count - MOST_SEGMENTS, 'segment')}</div>"
        )


def results_as_html(detections: Mapping[str, Detection], failed: Mapping[str, str]) -> str:
    """Return self-contained HTML: the only detection, or a table of several, then the failures.

    Args:
        detections: By the video's id.
        failed: Reasons by the video's id.
    """
    if len(detections) == 1:
        (shown,) = (detection._repr_html_() for detection in detections.values())
    else:
        rows = []
        for id, d in list(detections.items())[:MOST_VIDEOS]:
            labels = ", ".join(dict.fromkeys(s.label for s in d.segments))
            rows.append((id, f"{d.scores.duration:.1f}", str(len(d.segments)), labels))
        shown = f"<p>{len(detections)} videos</p>"
        shown += _table(("video", "seconds", "segments", "labels"), rows)
        shown += _more(len(detections) - MOST_VIDEOS, "video")
    failures = f"<p>{len(failed)} failed</p>" if failed else ""
    return f"<div>{shown}{failures}{_table(('video', 'reason'), failed.items())}</div>"


def _table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table; nothing if it has no row."""
    head = "".join(f"<th>{_text(cell)}</th>" for cell in heads)
    body = "".join(
        f"<tr>{''.join(f'<td {_LITERAL}>{_text(cell)}</td>' for cell in row)}</tr>" for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>" if body else ""


def _more(count: int, one: str) -> str:
    return f"<p>... and {counted(count, f'more {one}')}</p>" if count > 0 else ""


def _text(text: str) -> str:
    return escape(text.encode("utf-8", "backslashreplace").decode())
