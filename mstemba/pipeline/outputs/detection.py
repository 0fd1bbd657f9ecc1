"""What every writer is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mstemba.records import Scores, Segment


@dataclass(frozen=True)
class Detection:
    """The detections of one video."""

    scores: Scores
    segments: list[Segment]
    ground_truth: list[Segment] | None
    """Labelled actions, where the manifest has them; None where it does not know the video."""
    provenance: dict[str, Any]
    """Checkpoint, features and thresholds that gave these segments."""
