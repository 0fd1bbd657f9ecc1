"""Scores of a video to its segments and its files: the end of `detect`, and all of `export`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mstemba.data_manifests.manifest import Video, load_manifest
from mstemba.errors import UsageError
from mstemba.pipeline.caching.files import first_existing, may_write_into
from mstemba.pipeline.detect.segments import find_segments
from mstemba.pipeline.features.row_times import in_seconds
from mstemba.pipeline.options import ExportOptions
from mstemba.pipeline.outputs import WRITERS, Detection
from mstemba.pipeline.outputs.html_page import check_embeddable
from mstemba.pipeline.progress import Event, EventHandler, counted, ignore_events
from mstemba.pipeline.workspace import Workspace
from mstemba.records import Scores, Segment


def check_formats(formats: Sequence[str]) -> None:
    """Raises UsageError, listing the formats there are, for another one, and for none at all."""
    if not formats:
        raise UsageError(f"no format named; there are {', '.join(WRITERS)}")
    if unknown := [name for name in formats if name not in WRITERS]:
        raise UsageError(f"unknown format {unknown[0]!r}; there are {', '.join(WRITERS)}")


def check_folder(folder: Path | None) -> None:
    """Raises UsageError where results cannot be written: a file is there, or no permission."""
    if folder is None:
        return
    first = first_existing(folder)
    named = "this" if first == folder else first
    if not first.is_dir():
        raise UsageError(
            f"{folder}: {named} is a file, expected a folder for the results; name another one by "
            f"--output"
        )
    if not may_write_into(first):
        raise UsageError(
            f"{folder}: {named} may not be written to, expected a folder for the results; name "
            f"another one by --output"
        )


class ManifestIndex:
    """What the workspace's manifest knows of a video: its id, its subset, its labels."""

    def __init__(self, workspace: Workspace | None) -> None:
        self._videos: dict[str, Video] = {}
        """Those that have a file, by id."""
        self._classes: tuple[str, ...] = ()
        self._unshown: list[str] = []
        """Ids of the videos whose labels were not given, because not all classes are the same."""
        self.time_unit = "seconds"
        if workspace is not None and workspace.manifest.is_file():
            manifest = load_manifest(workspace.manifest)
            self._classes, self.time_unit = manifest.classes, manifest.time_unit
            self._videos = {v.id: v for v in manifest.videos.values() if v.path is not None}

    def video(self, path: Path) -> Video | None:
        """The manifest's entry of a file."""
        real = path.resolve()
        # To resolve the paths of ten thousand videos takes a third of a second: namesakes first.
        alike = self._by_name.get(path.name, [])
        found = (v for v in alike if v.path is not None and v.path.resolve() == real)
        return next(found, None) or self._by_path.get(real)

    @cached_property
    def _by_name(self) -> dict[str, list[Video]]:
        """File names, before links are followed."""
        found: dict[str, list[Video]] = {}
        for video in self._videos.values():
            if video.path is not None:
                found.setdefault(video.path.name, []).append(video)
        return found

    @cached_property
    def _by_path(self) -> dict[Path, Video]:
        return {v.path.resolve(): v for v in self._videos.values() if v.path is not None}

    def id(self, path: Path) -> str | None:
        """The manifest's id of a file."""
        video = self.video(path)
        return video.id if video else None

    def path(self, id: str) -> Path | None:
        """The file of a video that the manifest knows by this id."""
        video = self._videos.get(id)
        return video.path if video else None

    def ground_truth(self, scores: Scores, frames_per_row: int | None) -> list[Segment] | None:
        """Labelled actions in seconds; None for a video, or for classes, that it does not have.

        None, too, for actions in frames if it is not known how many frames a row has.
        """
        video = self.video(Path(scores.video))
        if video is None or not video.actions:
            return None
        if self._classes != scores.classes:
            if set(self._classes) & set(scores.classes):  # none are the same without training
                self._unshown.append(video.id)
            return None
        if frames_per_row is None and self.time_unit == "frames":
            return None
        frames = (frames_per_row or 1) * np.arange(scores.grid.count + 1)
        return [
            Segment(a.start, a.end, a.class_id, scores.classes[a.class_id], 1.0)
            for a in in_seconds(video, self.time_unit, scores.grid, frames)
        ]

    def warn(self, stage: str, on_event: EventHandler) -> None:
        """Tell of labels that were not given."""
        if ids := self._unshown:
            more = f" and {counted(len(ids) - 1, 'more video')}" if len(ids) > 1 else ""
            message = (
                f"the labels of {ids[0]}{more} are not shown: the manifest has other classes than "
                f"these scores; `mstemba train` learns those"
            )
            on_event(Event(stage, message, warning=True))


def make_detection(
    scores: Scores,
    id: str,
    provenance: dict[str, Any],
    known: ManifestIndex,
    options: ExportOptions,
) -> Detection:
    """Cut a video's scores into segments. `id` is its name if the manifest has no other."""
    video = known.video(Path(scores.video))
    spec = provenance.get("features", {})
    stride = spec.get("stride")
    frames_per_row = stride and stride * spec.get("every", 1)
    low = options.low_threshold
    return Detection(
        scores,
        find_segments(scores, options.threshold, low, options.min_length),
        known.ground_truth(scores, frames_per_row),
        {
            **provenance,
            "threshold": options.threshold,
            "low": low,
            "min_length": options.min_length,
        },
        id=video.id if video else id,
        subset=video.subset if video else None,
        options=options,
        frames_per_row=frames_per_row if known.time_unit == "frames" else None,
    )


def write_files(
    detection: Detection, folder: Path, name: str, on_event: EventHandler = ignore_events
) -> list[Path]:
    """Write the formats that the options name; the files are `<name>.<suffix>`.

    Raises UsageError, before it writes any, for a video that is too large to embed.
    """
    options, video = detection.options, Path(detection.scores.video)
    if options.embed and "html" in options.formats and video.is_file():
        check_embeddable(video)
    files = []
    for form in dict.fromkeys(options.formats):
        writer = WRITERS[form]
        file = folder / f"{name}.{writer.suffix}"
        if writer.warn and (warning := writer.warn(detection)):
            on_event(Event(form, warning, warning=True, video=detection.id))
        writer.write(detection, file)
        files.append(file)
    return files


def why_nothing(detection: Detection) -> str:
    """What the highest score was, for a user who sees no segment; empty where there are some."""
    scores, options = detection.scores, detection.options
    if detection.segments or not scores.probabilities.size:
        return ""
    row, class_id = np.unravel_index(scores.probabilities.argmax(), scores.probabilities.shape)
    highest = scores.probabilities[row, class_id]
    if highest >= options.threshold:
        return f" (all are shorter than {options.min_length:g} s)"
    # Digits that tell it from the threshold: 0.996 is no 1.00.
    digits = next((d for d in range(2, 9) if round(float(highest), d) < options.threshold), 9)
    shortest = f", shortest {options.min_length:g} s" if options.min_length else ""
    return (
        f" (highest probability {highest:.{digits}f}: "
        f"{scores.classes[class_id]} at {scores.grid.starts[row]:.1f} s; "
        f"threshold {options.threshold:g}{shortest})"
    )
