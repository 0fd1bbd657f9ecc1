"""Check the times of annotations: before the start, in another unit, or with another zero."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import median

from mstemba.data_manifests.class_ids import describe
from mstemba.data_manifests.manifest import Video
from mstemba.data_manifests.readers.parsed import AnnotationReport, ParsedAnnotations
from mstemba.errors import ManifestError
from mstemba.wording import counted

# If the median video has actions that end after this many durations, they are in another unit. In
# published files the median is 1, and the worst video has 6.
_IMPOSSIBLE = 2.0
# Durations after which the last action ends, if its times are frames or milliseconds.
_FRAMES = 240.0
_MILLISECONDS = (100.0, 1100.0)


def cut_before_start(parsed: ParsedAnnotations) -> None:
    """Let actions that begin before 0 begin at 0; remove and report those that are before it."""
    for video in parsed.videos.values():
        if not any(action.start < 0 or action.end < 0 for action in video.actions):
            continue
        kept = []
        for action in video.actions:
            if min(action.start, action.end) >= 0:
                kept.append(action)
            elif action.end > 0:
                kept.append(action._replace(start=0.0))
                parsed.report.keep(
                    "action that begins before 0, cut to begin at 0", describe(action)
                )
            else:
                parsed.report.skip("action before the start of the video", describe(action))
        video.actions = kept


def check_units(
    path: Path,
    unit: str,
    videos: Mapping[str, Video],
    report: AnnotationReport,
    measured: bool = False,
) -> None:
    """Raise ManifestError for times far beyond the durations, and say what they may be.

    Args:
        path: The annotations, for the message.
        unit: Their time unit.
        videos: Videos by id, with durations in seconds, or with their numbers of frames.
        report: Receives a note if durations that the annotations give are not in frames.
        measured: Whether the durations are those of the files.
    """
    ends = {
        id: max(action.end for action in video.actions) / video.duration
        for id, video in videos.items()
        if video.duration and video.actions
    }
    if not ends or median(ends.values()) <= _IMPOSSIBLE:
        return
    if unit == "frames" and not measured:
        report.notes.append("the durations look like seconds; expected frames, like the actions")
        return
    beyond = [videos[id] for id, end in ends.items() if end > _IMPOSSIBLE]
    video = beyond[0]
    guess = _guess(beyond, median(ends.values()))
    if unit == "frames":
        guess = "these may be milliseconds: divide them by 1000 and omit --time-unit frames"
    raise ManifestError(
        f"{path}: in {len(beyond)} of {counted(len(ends), 'video')} actions end far beyond the "
        f"duration, for example at {max(a.end for a in video.actions):.10g} in {video.id} of "
        f"{video.duration:g} {unit}; {guess}"
    )


def _guess(beyond: list[Video], ratio: float) -> str:
    """Return what times may be that end far beyond the videos, the likeliest first."""
    frames = "frames: pass --time-unit frames"
    milliseconds = "milliseconds: divide them by 1000"
    offset = "times of a clock, or with an offset: subtract the time at which the video begins"
    if all(_is_moved(video) for video in beyond):
        return f"these look like {offset}; or like {frames}; or like {milliseconds}"
    if ratio <= _FRAMES:
        found = f"these look like {frames}"
        return f"{found}; or like {milliseconds}" if ratio >= _MILLISECONDS[0] else found
    if ratio <= _MILLISECONDS[1]:
        return f"these look like {milliseconds}"
    return (
        f"expected seconds from the start of the video; found perhaps {milliseconds}; or {offset}"
    )


def _is_moved(video: Video) -> bool:
    """Return whether the actions begin after the video, but would fit into it."""
    duration = video.duration or 0.0
    first = min(action.start for action in video.actions)
    return first >= duration >= max(action.end for action in video.actions) - first
