"""The JSON forms of annotations that are about.

{"classes", "time_unit", "videos": {id: {subset, duration, actions}}}, the manifest's own; the
same entries at the top level (Charades, TSU and MultiTHUMOS as the field publishes them); and
ActivityNet's {"database": {id: {subset, duration, annotations: [{label, segment}]}}}.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mstemba.data_manifests.manifest import (
    TIME_UNITS,
    is_duration,
    parse_action,
    read_json_object,
    repeated,
)
from mstemba.data_manifests.readers.parsed import ParsedAnnotations, ParsedVideo, RawAction, Report
from mstemba.errors import ManifestError

_SECOND = "second value of a name"


def read_json(path: Path, found: ParsedAnnotations, report: Report) -> None:
    """Read a JSON file of annotations. Raises ManifestError when it is none as a whole.

    Of a video that is there twice the first entry counts, as in the tables.
    """
    data = read_json_object(path)
    found.time_unit = data.get("time_unit")
    if found.time_unit not in (None, *TIME_UNITS):
        raise ManifestError(
            f"{path}: time unit {found.time_unit!r}; expected one of {', '.join(TIME_UNITS)}"
        )
    activitynet = isinstance(data.get("database"), dict)
    own = isinstance(data.get("videos"), dict)
    entries = data["database"] if activitynet else data["videos"] if own else data
    odd = [id for id, entry in entries.items() if not isinstance(entry, dict)]
    if odd or not entries:
        said = f"{odd[0]!r} is not an entry" if odd else "no entries"
        raise ManifestError(
            f"{path}: {said}; expected {{id: {{subset, duration, actions}}}}, "
            f'{{"classes", "videos"}} or {{"database"}}'
        )
    if isinstance(data.get("classes"), list) and not activitynet:
        found.classes = tuple(map(str, data["classes"]))
    _count_repeated(entries, "second entry of a video", f"in {path.name}", report)
    if entries is not data:
        _count_repeated(data, _SECOND, f"in {path.name}", report)
    for id, entry in entries.items():
        _count_repeated(entry, _SECOND, f"in {id}", report)
        read = ParsedVideo(entry.get("subset"), _duration(id, entry.get("duration"), report))
        actions = "annotations" if activitynet else "actions"
        read.ignore_events, listed = actions not in entry, entry.get(actions, [])
        for item in listed if isinstance(listed, list) else [listed]:
            try:
                read.actions.append(_action(item, activitynet, f"in {id}"))
            except ValueError:
                report.count(report.left_out, "malformed action", f"{item!r} in {id}")
        found.entries[id] = read


def _count_repeated(data: dict[str, Any], kind: str, where: str, report: Report) -> None:
    for name in repeated(data):
        report.count(report.left_out, kind, f"{name!r} {where}")


def _action(item: Any, activitynet: bool, where: str) -> RawAction:
    """[class, start, end], or {"label", "segment": [start, end]}. ValueError for others."""
    if not activitynet:
        return RawAction(*parse_action(item), where)
    label = item.get("label") if isinstance(item, dict) else None
    segment = item.get("segment") if isinstance(item, dict) else None
    if not isinstance(label, str) or not isinstance(segment, list) or repeated(item):
        raise ValueError(f"expected a label and a segment, found {item!r}")
    _, start, end = parse_action([0, *segment])
    return RawAction(label, start, end, where)


def _duration(id: str, duration: Any, report: Report) -> float | None:
    if duration is None or is_duration(duration):
        return duration
    report.count(report.left_out, "malformed duration", f"{duration!r} in {id}")
    return None
