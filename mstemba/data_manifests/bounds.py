"""Skip what annotations may have and no manifest can: endless names, times beyond a year."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from unicodedata import normalize

from mstemba.data_manifests.class_ids import describe
from mstemba.data_manifests.manifest import Action, Video, normalise_subset
from mstemba.data_manifests.readers.parsed import (
    AnnotationReport,
    ParsedAnnotations,
    RawAction,
)
from mstemba.errors import ManifestError
from mstemba.limits import LONGEST_NAME, LONGEST_VIDEO
from mstemba.reading.typed import Name, convert, shown
from mstemba.wording import counted


def skip_unusable_entries(parsed: ParsedAnnotations) -> None:
    """Remove and report actions with unusable class names, and unusable subsets."""
    faults: dict[int | str, str | None] = {}

    def is_usable(action: RawAction) -> bool:
        label = action.label
        if label not in faults:
            # Classes are compared and written in this form, which may be longer.
            faults[label] = _fault(normalize("NFC", label)) if isinstance(label, str) else None
        if fault := faults[label]:
            parsed.report.skip(f"class name {fault}", describe(action))
        return faults[label] is None

    for name, video in parsed.videos.items():
        if video.subset and (fault := _fault(normalise_subset(video.subset) or "-")):
            parsed.report.skip(f"subset {fault}", f"{shown(video.subset)} of {shown(name)}")
            video.subset = None
        video.actions = list(filter(is_usable, video.actions))


def skip_unusable_videos(parsed: ParsedAnnotations) -> None:
    """Remove and report videos whose ids are unusable."""
    for id in list(parsed.videos):
        if fault := _fault(id):
            actions = counted(len(parsed.videos.pop(id).actions), "action")
            parsed.report.skip(f"video name {fault}", f"{shown(id)}, which has {actions}")


def skip_impossible_times(
    videos: Mapping[str, Video], classes: Sequence[str], report: AnnotationReport
) -> dict[str, Video]:
    """Return the videos without actions beyond a year, which are reported."""

    def is_possible(action: Action, id: str) -> bool:
        if max(action.start, action.end) <= LONGEST_VIDEO:
            return True
        times = f"from {action.start:.10g} to {action.end:.10g}"
        kind = f"action beyond {LONGEST_VIDEO:.0f}, the seconds of a year"
        report.skip(kind, f"{shown(classes[action.class_id])} {times} in {shown(id)}")
        return False

    return {
        id: replace(video, actions=tuple(a for a in video.actions if is_possible(a, id)))
        for id, video in videos.items()
    }


def _fault(name: str) -> str | None:
    """Return why a name cannot be used, or None."""
    if not name:
        return "that is empty"
    if len(name) > LONGEST_NAME:
        return f"longer than {LONGEST_NAME:,} characters"
    try:
        convert(name, Name, "", ManifestError)
    except ManifestError:
        return "with a NUL or a lone surrogate"
    return None
