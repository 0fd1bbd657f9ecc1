"""The labelled actions of a workspace's manifest, as segments next to the detected ones."""

from __future__ import annotations

import numpy as np

from mstemba.data_manifests.manifest import Manifest, Video
from mstemba.pipeline.features.row_times import in_seconds
from mstemba.pipeline.progress import Event, EventHandler
from mstemba.records import Scores, Segment
from mstemba.wording import counted


class GroundTruth:
    """The labels of a manifest, as far as they fit the scores of a video."""

    def __init__(self, manifest: Manifest | None) -> None:
        self.time_unit = manifest.time_unit if manifest else "seconds"
        self._classes = manifest.classes if manifest else ()
        self._skipped: list[str] = []
        """Ids of the videos whose labels are not used because only some classes are the same."""

    def segments(
        self, video: Video | None, scores: Scores, frames_per_row: int | None
    ) -> list[Segment] | None:
        """Return the labelled actions of a video, in seconds.

        None for a video without labels, for labels of other classes than the scores have, and for
        actions in frames if it is not known how many frames a row has.
        """
        if video is None or not video.actions:
            return None
        if self._classes != scores.classes:
            if set(self._classes) & set(scores.classes):  # labels in words share none
                self._skipped.append(video.id)
            return None
        if frames_per_row is None and self.time_unit == "frames":
            return None
        frames = (frames_per_row or 1) * np.arange(scores.grid.count + 1)
        return [
            Segment(a.start, a.end, a.class_id, scores.classes[a.class_id], 1.0)
            for a in in_seconds(video, self.time_unit, scores.grid, frames)
        ]

    def warn(self, stage: str, on_event: EventHandler) -> None:
        """Report the labels that were not used."""
        if ids := self._skipped:
            more = f" and {counted(len(ids) - 1, 'more video')}" if len(ids) > 1 else ""
            message = (
                f"the labels of {ids[0]}{more} are not shown: the manifest has other classes than "
                f"these scores; `mstemba train` learns those"
            )
            on_event(Event(stage, message, warning=True))
