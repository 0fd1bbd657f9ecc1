"""What every writer is given."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mstemba.pipeline.options import ExportOptions
from mstemba.records import Scores, Segment


@dataclass(frozen=True)
class Detection:
    """The detections of one video."""

    scores: Scores
    segments: list[Segment]
    """By start, then end, then class."""
    ground_truth: list[Segment] | None
    """Labelled actions, where the manifest has them; None where it does not know the video."""
    provenance: dict[str, Any]
    """Checkpoint, features and thresholds that gave these segments."""
    id: str = ""
    """The video's, in the manifest if that has it."""
    subset: str | None = None
    """In the manifest."""
    options: ExportOptions = field(default_factory=ExportOptions)
    """How the scores became these segments."""
