"""What a manifest contains, and what in it looks like a mistake."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from mstemba.data_manifests.manifest import Manifest, Video
from mstemba.data_manifests.readers.parsed import AnnotationReport

# A video of which less is labelled is reported.
_SPARSE = 0.1
# How rarely all actions of a video would be in its first part if they were anywhere in it.
_UNLIKELY = 0.01
# Seconds by which the duration in the header of a file may be wrong.
_INEXACT = 0.5


@dataclass
class ClassCounts:
    """How often a class occurs."""

    name: str
    actions: int = 0
    time: float = 0.0
    """Sum of the actions' lengths, in the manifest's unit."""
    videos: int = 0


def count_classes(manifest: Manifest) -> list[ClassCounts]:
    """Return the counts of every class, in the order of the classes."""
    counts = [ClassCounts(name) for name in manifest.classes]
    for video in manifest.videos.values():
        for class_id, start, end in video.actions:
            counts[class_id].actions += 1
            counts[class_id].time += max(0.0, end - start)
        for class_id in {action.class_id for action in video.actions}:
            counts[class_id].videos += 1
    return counts


def labelled_time(video: Video) -> float:
    """Return how long at least one action of a video happens, in the manifest's unit."""
    total = reached = 0.0
    for _, start, end in sorted(video.actions, key=lambda action: action.start):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def report_doubts(
    manifest: Manifest, durations: Mapping[str, float], report: AnnotationReport
) -> None:
    """Report what looks like a mistake in the annotations.

    Args:
        manifest: The joined manifest.
        durations: In its time unit, of the videos of which they are known.
        report: Receives the doubts.
    """
    for counts in count_classes(manifest):
        if counts.actions <= 1:
            how_often = "with one action" if counts.actions else "without an action"
            report.doubt(f"class {how_often}", repr(counts.name))
    for video in manifest.videos.values():
        for action, count in Counter(video.actions).items():
            if count > 1:
                name = manifest.classes[action.class_id]
                example = f"{name!r} from {action.start:g} to {action.end:g} in {video.id!r}"
                report.doubt("action that is given more than once", example)
        duration = video.duration or durations.get(video.id)
        if video.actions and duration:
            _doubt_times(video, duration, report)
        if duration and not video.duration:  # otherwise it has been compared on reading
            _report_beyond(video, duration, manifest, report)


def _report_beyond(
    video: Video, duration: float, manifest: Manifest, report: AnnotationReport
) -> None:
    for class_id, start, end in video.actions:
        if start < duration and end > duration + _INEXACT:
            name = manifest.classes[class_id]
            example = f"{name!r} from {start:g} to {end:g} in {video.id!r} of {duration:g}"
            report.keep("action that ends after the video", example)
        elif start >= duration + _INEXACT:
            name = manifest.classes[class_id]
            example = f"{name!r} from {start:g} in {video.id!r} of {duration:g}"
            report.keep("action that begins after the video", example)


def _doubt_times(video: Video, duration: float, report: AnnotationReport) -> None:
    until = video.annotated_until
    annotated = min(duration, until) if until else duration
    first = min(action.start for action in video.actions)
    last = max(action.end for action in video.actions)
    where = f"{video.id!r}, whose actions are from {first:g} to {last:g} of {duration:g}"
    if first >= duration:
        kind = "video whose actions all begin after its end (another zero, or another time unit?)"
        report.doubt(kind, where)
    elif min(1.0, last / annotated) ** len(video.actions) < _UNLIKELY:
        kind = (
            "video whose actions are all in its first part (if the rest is not annotated, set "
            "annotated_until)"
        )
        report.doubt(kind, where)
    elif (time := labelled_time(video)) < _SPARSE * annotated:
        kind = f"video of which less than {_SPARSE:.0%} is labelled"
        report.doubt(kind, f"{video.id!r}, {time:g} of {annotated:g}")
