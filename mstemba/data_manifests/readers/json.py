"""Read annotations in JSON, in one of four forms.

- the manifest's: {"classes", "time_unit", "videos": {id: {subset, duration, annotated_until,
  actions}}};
- the same entries at the top level, as Charades, TSU and MultiTHUMOS are usually published;
- ActivityNet's: {"database": {id: {subset, duration, annotations: [{label, segment}]}}}, of which
  the entries may also stand in place of the others;
- records: [{video, start, end, label}], also as JSON Lines (records.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta, Struct

from mstemba.data_manifests.manifest import FORMAT, check_version, refuse_same_names
from mstemba.data_manifests.readers.parsed import (
    ParsedAnnotations,
    ParsedVideo,
    RawAction,
    plain_text,
    some_names,
)
from mstemba.data_manifests.readers.records import (
    LINES_SUFFIXES,
    find_records,
    other_format,
    read_lines,
    read_records,
)
from mstemba.data_manifests.readers.tables import ignored_synonym
from mstemba.data_manifests.readers.text import check_entries, read_text
from mstemba.errors import ManifestError
from mstemba.limits import LONGEST_NAME, LONGEST_VIDEO, MOST_CLASSES
from mstemba.reading.typed import (
    ClassName,
    Finite,
    FrameRate,
    Seconds,
    convert,
    parse_untyped,
    repeated,
    shown,
)

_FORMS = ("database", "videos")
_REPEATED_NAME = "second value of a name"
_EXPECTED = (
    '{id: {subset, duration, actions}}, {"classes", "videos"}, {"database"} or '
    '[{"video", "start", "end", "label"}]'
)

# Numbers are written to the manifest as they are, 60 and 60.0.
_Duration = Annotated[int, Meta(ge=0, le=int(LONGEST_VIDEO))] | Seconds
_Classes = Annotated[list[ClassName], Meta(max_length=MOST_CLASSES)]
_FACTS: dict[str, Any] = {
    "subset": str | None,
    "duration": _Duration | None,
    "annotated_until": _Duration | None,
}
_Rate: Any = FrameRate | None


class _Labelled(Struct):
    """An action of ActivityNet."""

    label: str
    segment: tuple[Finite, Finite]


def read_json(path: Path, parsed: ParsedAnnotations) -> None:
    """Read a JSON file of annotations. Raises ManifestError if it has none of the forms.

    The first of several entries of a video counts, as in tables.
    """
    data = _load(path, parsed)
    if isinstance(data, dict) and data.get("format") == FORMAT and "version" in data:
        check_version(data, path)
        parsed.fps = convert(data.get("fps"), _Rate, str(path), ManifestError, "$.fps")
    if title := other_format(data):
        raise ManifestError(
            f"{path}: this looks like an export of {title}, which is not supported; expected "
            f"{_EXPECTED}"
        )
    forms = [name for name in _FORMS if isinstance(data, dict) and isinstance(data.get(name), dict)]
    records = find_records(data)
    if len(forms) + (records is not None) > 1:
        found = " and ".join([*map(repr, forms), *(["records"] if records else [])])
        raise ManifestError(f"{path}: found {found}, expected one of them; delete the others")
    if records is not None:
        if isinstance(data, dict):
            _set_classes(path, data, parsed)
        read_records(path, records, parsed)
        return
    if not isinstance(data, dict):
        raise ManifestError(
            f"{path}: found {_described(data)}; expected a JSON object or a list of records: "
            f"{_EXPECTED}"
        )
    _read_entries(path, data, parsed)


def _set_classes(path: Path, data: dict[str, Any], parsed: ParsedAnnotations) -> None:
    """Set the classes and the time unit that a file defines."""
    parsed.time_unit = data.get("time_unit")
    if (given := data.get("classes")) is None:
        return
    if not isinstance(listed := _in_order(given), list):
        raise ManifestError(
            f"{path}: $.classes: found {shown(given)}, expected a list of names, or an object with "
            f"their numbers from 0 on"
        )
    names = convert(listed, _Classes, str(path), ManifestError, "$.classes")
    refuse_same_names(names, f"{path}: $.classes: ", plain_text)
    parsed.classes = tuple(names)


def _in_order(given: Any) -> Any:
    """Return the names of {number: name} or {name: number} in their order; other values as is."""
    if not isinstance(given, dict) or repeated(given):
        return given
    by_name = all(isinstance(value, int) for value in given.values())
    names = {str(number): name for name, number in given.items()} if by_name else given
    numbers = list(map(str, range(len(given))))
    return [names[number] for number in numbers] if names.keys() == set(numbers) else given


def _described(data: Any) -> str:
    first = data[0] if isinstance(data, list) and data else None
    if isinstance(first, dict):
        return f"a list of records with {some_names(map(shown, first), 10)}"
    return f"a {type(data).__name__}"


def _read_entries(path: Path, data: dict[str, Any], parsed: ParsedAnnotations) -> None:
    activitynet = isinstance(data.get("database"), dict)
    own = isinstance(data.get("videos"), dict)
    entries = data["database"] if activitynet else data["videos"] if own else data
    odd = [id for id, entry in entries.items() if not isinstance(entry, dict)]
    if odd or not entries:
        problem = f"{shown(odd[0])} is not an entry" if odd else "no entries"
        raise ManifestError(f"{path}: {problem}; expected {_EXPECTED}")
    if own and not activitynet:
        _set_classes(path, data, parsed)
    elif activitynet:  # its labels are names
        parsed.time_unit = data.get("time_unit")
    _report_repeated(entries, "second entry of a video", f"in {path.name}", parsed)
    if entries is not data:
        _report_repeated(data, _REPEATED_NAME, f"in {path.name}", parsed)
    for id, entry in entries.items():
        where = f"in {id[:LONGEST_NAME]}"
        _report_repeated(entry, _REPEATED_NAME, where, parsed)
        video = parsed.videos[id] = ParsedVideo()
        parsed.ids.add(id)
        for fact, kind in _FACTS.items():
            try:
                setattr(video, fact, convert(entry.get(fact), kind, where, ManifestError))
            except ManifestError:
                parsed.report.skip(f"malformed {fact}", f"{shown(entry[fact])} {where}")
        names = ("annotations", "actions") if activitynet else ("actions", "annotations")
        used = [name for name in names if name in entry]
        if len(used) > 1:
            ignored_synonym(parsed, used[0], used[1], where)
        video.lacks_actions, listed = not used, entry[used[0]] if used else []
        for item in listed if isinstance(listed, list) else [listed]:
            try:
                video.actions.append(_action(item, where))
            except ManifestError:
                parsed.report.skip("malformed action", f"{shown(item)} {where}")


def _load(path: Path, parsed: ParsedAnnotations) -> Any:
    text = read_text(path, parsed.report)
    # An action has two brackets in most forms.
    brackets, values = text.count("[") + text.count("{"), text.count(",") + text.count(":")
    check_entries(path, text, brackets // 2, values)
    if path.suffix.lower() in LINES_SUFFIXES:
        return read_lines(path, text, parsed)
    content = text.encode()
    del text
    return parse_untyped(content, str(path), ManifestError)


def _report_repeated(
    data: dict[str, Any], kind: str, where: str, parsed: ParsedAnnotations
) -> None:
    for name in repeated(data):
        parsed.report.skip(kind, f"{shown(name)} {where}")


def _action(item: Any, where: str) -> RawAction:
    """Convert [class, start, end], or {"label", "segment": [start, end]}."""
    if isinstance(item, list):
        return RawAction(*convert(item, tuple[int, Finite, Finite], where, ManifestError), where)
    action = convert(item, _Labelled, where, ManifestError)
    if repeated(item):
        raise ManifestError(f"{where}: second value of a name")
    return RawAction(action.label, *action.segment, where)
