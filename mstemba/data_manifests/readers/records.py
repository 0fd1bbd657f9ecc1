"""Read lists of records in JSON: [{"video", "start", "end", "label"}, ...], and JSON Lines.

The names are those of the columns of mstemba's own tables; `segment`, a list of start and end, may
stand in place of those two. Without a video, the file is named like it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mstemba.data_manifests.readers.parsed import ParsedAnnotations
from mstemba.data_manifests.readers.tables import COLUMNS, Row, add_row, ignored_synonym, synonyms
from mstemba.data_manifests.readers.text import split_lines
from mstemba.errors import ManifestError
from mstemba.reading.typed import parse_untyped, repeated, shown

LINES_SUFFIXES = frozenset({".jsonl", ".ndjson"})

_SEGMENT = ("segment", "interval")
# By members of the whole file, or of its first item.
_OTHERS: tuple[tuple[str, frozenset[str]], ...] = (
    ("COCO", frozenset({"images", "annotations", "categories"})),
    ("the VGG Image Annotator (VIA)", frozenset({"_via_settings"})),
    ("the VGG Video Annotator (VIA)", frozenset({"project", "config", "metadata", "file"})),
    ("Label Studio", frozenset({"annotations", "data"})),
    ("Label Studio", frozenset({"completions", "data"})),
    ("Labelbox", frozenset({"data_row", "projects"})),
    ("CVAT", frozenset({"tags", "shapes", "tracks"})),
)


def other_format(data: Any) -> str | None:
    """Return the name of another program whose annotations these are, if it is known."""
    item = data[0] if isinstance(data, list) and data else data
    names = item.keys() if isinstance(item, dict) else set()
    return next((title for title, members in _OTHERS if members <= names), None)


def find_records(data: Any) -> list[Any] | None:
    """Return the list of records that JSON is, or has in one of its members; None without one."""
    if isinstance(data, list):
        return data if any(map(_is_record, data)) else None
    members = data.values() if isinstance(data, dict) else ()
    lists = [value for value in members if isinstance(value, list)]
    found = [value for value in lists if any(map(_is_record, value))]
    return found[0] if len(found) == 1 else None


def read_lines(path: Path, text: str, parsed: ParsedAnnotations) -> list[Any]:
    """Return the objects of JSON Lines; report lines that hold none."""
    records, others, example = [], 0, ""
    for number, line in enumerate(split_lines(text), 1):
        line = line.strip()
        # Only what may be an object is parsed: millions of numbers would take minutes.
        record = _parse_line(line) if line.startswith("{") else None
        if record is not None:
            records.append(record)
        elif line:
            others += 1
            example = example or f"{shown(line)} in {path.name}, line {number}"
    if others:
        parsed.report.skip("malformed record", example, others)
    return records


def _parse_line(line: str) -> Any | None:
    """Return the object in a line; None if it is damaged."""
    try:
        return parse_untyped(line.encode(), "", ManifestError)
    except ManifestError:
        return None


def read_records(path: Path, records: list[Any], parsed: ParsedAnnotations) -> None:
    """Read the records of a file."""
    has_videos = any(isinstance(item, dict) and _values(item)["video"] for item in records)
    default = "" if has_videos else parsed.own_video(path)
    doubled: dict[tuple[str, ...], list[tuple[str, str]]] = {}
    for number, record in enumerate(records, 1):
        where = f"in {path.name}, record {number}"
        if not isinstance(record, dict):
            parsed.report.skip("malformed record", f"{shown(record)} {where}")
            continue
        for name in repeated(record):
            parsed.report.skip("second value of a name", f"{shown(name)} {where}")
        values, problem = _values(record), ""
        if (names := tuple(record)) not in doubled:
            doubled[names] = synonyms(names, (*COLUMNS.values(), _SEGMENT))
        for used, other in doubled[names]:
            if used.casefold() == other.casefold():
                problem = f"{shown(used)} and {shown(other)} are one name"
            else:
                ignored_synonym(parsed, used, other, where)
        if _segment(record) not in (None, [values["start"], values["end"]]):
            ignored_synonym(parsed, "start and end", "segment", where)
        if problem := problem or _problem(values):
            parsed.report.skip("malformed record", f"{shown(record)} {where}: {problem}")
            continue
        row = Row((shown(record),), where, decimal_comma=False, file=path)
        cells = {name: _cell(name, value) for name, value in values.items()}
        add_row(parsed, row, cells, default)


def _is_record(item: Any) -> bool:
    if not isinstance(item, dict):
        return False
    values = _values(item)
    return all(values[name] is not None for name in ("start", "end", "label"))


def _problem(values: Mapping[str, Any]) -> str:
    """Return what is wrong with the values of a record; empty if nothing is."""
    for name in ("video", "label", "subset"):
        value = values[name]
        if isinstance(value, bool) or not isinstance(value, str | int | None):
            return f"{name} is {shown(value)}, expected a text or a whole number"
    return ""


def _segment(record: Mapping[str, Any]) -> list[Any] | None:
    """Return the list of start and end, if there is one."""
    members = {name.casefold(): value for name, value in record.items()}
    segment = next((members[name] for name in _SEGMENT if name in members), None)
    return segment if isinstance(segment, list) and len(segment) == 2 else None


def _values(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a record by the names of columns; None for those it does not have."""
    # pandas writes NaN for a missing value.
    members = {n.casefold(): value for n, value in record.items() if value == value}
    values = {
        column: next((members[name] for name in names if name in members), None)
        for column, names in COLUMNS.items()
    }
    if values["start"] is None and values["end"] is None and (segment := _segment(members)):
        values["start"], values["end"] = segment
    return values


def _cell(name: str, value: Any) -> str | int:
    """Return a value as a cell of a table; a number is a label by its class id."""
    if value is None:
        return ""
    if name == "label" and isinstance(value, int) and not isinstance(value, bool):
        return value
    return value.strip() if isinstance(value, str) else repr(value)
