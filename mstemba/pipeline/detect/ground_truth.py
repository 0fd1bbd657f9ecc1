"""The labelled actions of a workspace's manifest, as segments next to the detected ones."""

from __future__ import annotations

import numpy as np

from mstemba.data_manifests.manifest import Manifest, Video
from mstemba.data_manifests.merging import known_names
from mstemba.pipeline.features.row_times import in_seconds
from mstemba.pipeline.outputs.detection import ManifestEntry
from mstemba.pipeline.progress import Event, EventHandler
from mstemba.records import Scores, Segment
from mstemba.wording import counted


class GroundTruth:
    """The labels of a manifest."""

    def __init__(self, manifest: Manifest | None) -> None:
        self.time_unit = manifest.time_unit if manifest else "seconds"
        self._classes = manifest.classes if manifest else ()
        self._videos = manifest.videos if manifest else {}
        self._unscored: dict[str, str] = {}
        """A class that the scores lack, by the id of the video that is labelled with it."""

    def find(self, id: str) -> Video | None:
        """Return the entry of this id if its file is missing: then any file of this name is it."""
        video = self._videos.get(id)
        return None if video and video.path and video.path.is_file() else video

    def entry(
        self, video: Video | None, scores: Scores, frames_per_row: int | None
    ) -> ManifestEntry | None:
        """Return what the manifest says of a video, with its actions in seconds, too.

        None for a video that it does not have, and for actions in frames if it is not known how
        many frames a row has.
        """
        if video is None or (frames_per_row is None and self.time_unit == "frames"):
            return None
        frames = (frames_per_row or 1) * np.arange(scores.grid.count + 1)
        return ManifestEntry(
            classes=self._classes,
            scored=tuple(known_names(self._classes, scores.classes)),
            duration=video.duration,
            actions=video.actions,
            seconds=tuple(in_seconds(video, self.time_unit, scores.grid, frames)),
            annotated_until=video.annotated_until,
        )

    def segments(
        self, id: str, entry: ManifestEntry | None, scores: Scores
    ) -> list[Segment] | None:
        """Return the labelled actions of the classes that the scores have, in seconds.

        None for a video without labels, and if the manifest has none of the scores' classes.
        """
        if entry is None or not entry.actions:
            return None
        ids = {name: number for number, name in enumerate(entry.scored)}
        if not ids.keys() & set(entry.classes):  # labels in words share none
            return None
        found = []
        for action in entry.seconds:
            name = entry.classes[action.class_id]
            number = ids.get(name)
            if number is None:
                self._unscored.setdefault(id, name)
            else:
                label = scores.classes[number]
                found.append(Segment(action.start, action.end, number, label, 1.0))
        return found

    def warn(self, stage: str, on_event: EventHandler) -> None:
        """Report the videos with labels of classes that the scores lack."""
        if not self._unscored:
            return
        id, name = next(iter(self._unscored.items()))
        count = len(self._unscored) - 1
        more = f" and {counted(count, 'more video')}" if count else ""
        message = (
            f"the labels of {id}{more} have classes that these scores lack, for example {name!r}: "
            f"only the page shows those; `mstemba train` learns them"
        )
        on_event(Event(stage, message, warning=True))
