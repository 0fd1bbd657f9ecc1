"""Read annotations in JSON, in one of four forms.

- the manifest's: {"classes", "time_unit", "videos": {id: {subset, duration, annotated_until,
  actions}}};
- the same entries at the top level, as Charades, TSU and MultiTHUMOS are usually published;
- ActivityNet's: {"database": {id: {subset, duration, annotations: [{label, segment}]}}};
- records: [{video, start, end, label}], also as JSON Lines (records.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mstemba.data_manifests.manifest import is_duration, parse_action, parse_json, repeated
from mstemba.data_manifests.readers.parsed import ParsedAnnotations, ParsedVideo, RawAction
from mstemba.data_manifests.readers.records import (
    LINES_SUFFIXES,
    find_records,
    other_format,
    read_lines,
    read_records,
)
from mstemba.data_manifests.readers.text import read_text
from mstemba.errors import ManifestError

_REPEATED_NAME = "second value of a name"
_EXPECTED = (
    '{id: {subset, duration, actions}}, {"classes", "videos"}, {"database"} or '
    '[{"video", "start", "end", "label"}]'
)


def read_json(path: Path, parsed: ParsedAnnotations) -> None:
    """Read a JSON file of annotations. Raises ManifestError if it has none of the forms.

    The first of several entries of a video counts, as in tables.
    """
    data = _load(path, parsed)
    if title := other_format(data):
        raise ManifestError(
            f"{path}: this looks like an export of {title}, which is not supported; expected "
            f"{_EXPECTED}"
        )
    known = isinstance(data, dict) and any(
        isinstance(data.get(name), dict) for name in ("database", "videos")
    )
    if not known and (records := find_records(data)) is not None:
        if isinstance(data, dict):
            _set_classes(data, parsed)
        read_records(path, records, parsed)
        return
    if not isinstance(data, dict):
        raise ManifestError(
            f"{path}: found {_described(data)}; expected a JSON object or a list of records: "
            f"{_EXPECTED}"
        )
    _read_entries(path, data, parsed)


def _set_classes(data: dict[str, Any], parsed: ParsedAnnotations) -> None:
    """Set the classes and the time unit that a file defines."""
    parsed.time_unit = data.get("time_unit")
    if isinstance(data.get("classes"), list):
        parsed.classes = tuple(map(str, data["classes"]))


def _described(data: Any) -> str:
    first = data[0] if isinstance(data, list) and data else None
    if isinstance(first, dict):
        return f"a list of records with {', '.join(map(repr, first))}"
    return f"a {type(data).__name__}"


def _read_entries(path: Path, data: dict[str, Any], parsed: ParsedAnnotations) -> None:
    activitynet = isinstance(data.get("database"), dict)
    _set_classes({"time_unit": data.get("time_unit")} if activitynet else data, parsed)
    own = isinstance(data.get("videos"), dict)
    entries = data["database"] if activitynet else data["videos"] if own else data
    odd = [id for id, entry in entries.items() if not isinstance(entry, dict)]
    if odd or not entries:
        problem = f"{odd[0]!r} is not an entry" if odd else "no entries"
        raise ManifestError(f"{path}: {problem}; expected {_EXPECTED}")
    _report_repeated(entries, "second entry of a video", f"in {path.name}", parsed)
    if entries is not data:
        _report_repeated(data, _REPEATED_NAME, f"in {path.name}", parsed)
    for id, entry in entries.items():
        _report_repeated(entry, _REPEATED_NAME, f"in {id}", parsed)
        video = parsed.videos[id] = ParsedVideo(entry.get("subset"))
        parsed.ids.add(id)
        for fact in ("duration", "annotated_until"):
            time = entry.get(fact)
            if time is None or is_duration(time):
                setattr(video, fact, time)
            else:
                parsed.report.skip(f"malformed {fact}", f"{time!r} in {id}")
        name = "annotations" if activitynet else "actions"
        video.lacks_actions, listed = name not in entry, entry.get(name, [])
        for item in listed if isinstance(listed, list) else [listed]:
            try:
                video.actions.append(_action(item, activitynet, f"in {id}"))
            except ValueError:
                parsed.report.skip("malformed action", f"{item!r} in {id}")


def _load(path: Path, parsed: ParsedAnnotations) -> Any:
    text = read_text(path, parsed.report)
    if path.suffix.lower() in LINES_SUFFIXES:
        return read_lines(path, text, parsed)
    try:
        return parse_json(text)
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{path}: not readable as JSON: {error}") from None


def _report_repeated(
    data: dict[str, Any], kind: str, where: str, parsed: ParsedAnnotations
) -> None:
    for name in repeated(data):
        parsed.report.skip(kind, f"{name!r} {where}")


def _action(item: Any, activitynet: bool, where: str) -> RawAction:
    """Parse [class, start, end], or {"label", "segment": [start, end]}. Raises ValueError."""
    if not activitynet:
        return RawAction(*parse_action(item), where)
    label = item.get("label") if isinstance(item, dict) else None
    segment = item.get("segment") if isinstance(item, dict) else None
    if not isinstance(label, str) or not isinstance(segment, list) or repeated(item):
        raise ValueError(f"expected a label and a segment, found {item!r}")
    _, start, end = parse_action([0, *segment])
    return RawAction(label, start, end, where)
