"""Scores of a video to its segments and its files: the end of `detect`, and all of `export`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mstemba.data_manifests.manifest import Video, load_manifest
from mstemba.errors import UsageError
from mstemba.pipeline.options import ExportOptions
from mstemba.pipeline.outputs import WRITERS, Detection
from mstemba.pipeline.segments import find_segments
from mstemba.pipeline.timeline import in_seconds
from mstemba.pipeline.workspace import Workspace
from mstemba.records import Scores, Segment


def check_formats(formats: Sequence[str]) -> None:
    """Raises UsageError, listing the formats there are, for another one."""
    if unknown := [name for name in formats if name not in WRITERS]:
        raise UsageError(f"unknown format {unknown[0]!r}; there are {', '.join(WRITERS)}")


class Known:
    """What the workspace's manifest knows of a video: its id, its subset, its labels."""

    def __init__(self, workspace: Workspace | None) -> None:
        self._videos: dict[Path, Video] = {}
        self._classes: tuple[str, ...] = ()
        self._time_unit = "seconds"
        if workspace is not None and workspace.manifest.is_file():
            manifest = load_manifest(workspace.manifest)
            self._classes, self._time_unit = manifest.classes, manifest.time_unit
            self._videos = {
                video.path.resolve(): video
                for video in manifest.videos.values()
                if video.path is not None
            }

    def video(self, path: Path) -> Video | None:
        """The manifest's entry of a file."""
        return self._videos.get(path.resolve())

    def ground_truth(self, scores: Scores, frames_per_row: int) -> list[Segment] | None:
        """Labelled actions in seconds; None for a video, or for classes, that it does not have."""
        video = self.video(Path(scores.video))
        if video is None or not video.actions or self._classes != scores.classes:
            return None
        frames = frames_per_row * np.arange(scores.grid.count + 1)
        return [
            Segment(a.start, a.end, a.class_id, scores.classes[a.class_id], 1.0)
            for a in in_seconds(video, self._time_unit, scores.grid, frames)
        ]


def make_detection(
    scores: Scores, id: str, provenance: dict[str, Any], known: Known, options: ExportOptions
) -> Detection:
    """Cut a video's scores into segments. `id` is its name if the manifest has no other."""
    video = known.video(Path(scores.video))
    spec = provenance.get("features", {})
    low = options.low_threshold
    return Detection(
        scores,
        find_segments(scores, options.threshold, low, options.min_length),
        known.ground_truth(scores, spec.get("stride", 1) * spec.get("every", 1)),
        {
            **provenance,
            "threshold": options.threshold,
            "low": low,
            "min_length": options.min_length,
        },
        id=video.id if video else id,
        subset=video.subset if video else None,
        options=options,
    )


def write_files(detection: Detection, folder: Path, name: str) -> list[Path]:
    """Write the formats that the options name; the files are `<name>.<suffix>`."""
    files = []
    for form in detection.options.formats:
        writer = WRITERS[form]
        file = folder / f"{name}.{writer.suffix}"
        writer.write(detection, file)
        files.append(file)
    return files
