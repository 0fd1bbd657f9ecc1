"""The detections of one video, as every writer receives them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mstemba.pipeline.options import ExportOptions
from mstemba.records import Scores, Segment


@dataclass(frozen=True)
class Detection:
    """The detections of one video. A notebook shows its timeline and segments."""

    scores: Scores
    """Dense probabilities, with their times."""
    segments: list[Segment]
    """By start, then end, then class."""
    ground_truth: list[Segment] | None
    """Labelled actions; None if the manifest has no labels of the video."""
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

    @property
    def name(self) -> str:
        """The video's id, or its file name if it has none."""
        return self.id or Path(self.scores.video).name

    def __repr__(self) -> str:
        classes = len({segment.class_id for segment in self.segments})
        return (
            f"Detection({self.name!r}, {len(self.segments)} segments of {classes} of "
            f"{len(self.scores.classes)} classes, {self.scores.duration:.1f} s)"
        )

    def _repr_html_(self) -> str:
        # Imported here: drawing is needed in notebooks only.
        from mstemba.pipeline.outputs.notebook import detection_as_html

        return detection_as_html(self.name, self.scores, self.segments, self.ground_truth)

    def _repr_png_(self) -> bytes:
        from mstemba.pipeline.outputs.notebook import timeline_as_png

        return timeline_as_png(self.scores, self.segments, self.ground_truth)
