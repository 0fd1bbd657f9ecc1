"""Tables of annotations, CSV or tab-separated: the parser, and the plain form of users' own data.

The plain form has the columns `video`, `start`, `end`, `label`, and may have `subset` and
`duration`. A row with a video and nothing else names a video without actions.
"""

from __future__ import annotations

import csv
import io
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mstemba.data_manifests.manifest import VIDEO_SUFFIXES, files_below
from mstemba.data_manifests.readers.parsed import ParsedAnnotations, ParsedVideo, RawAction, Report
from mstemba.errors import ManifestError

SUFFIXES = frozenset({".csv", ".tsv", ".txt"})
COLUMNS = {
    "video": ("video", "video_id", "video_name", "filename"),
    "start": ("start", "start_time", "begin", "t_start"),
    "end": ("end", "end_time", "stop", "t_end"),
    "label": ("label", "class", "action", "behavior", "behaviour"),
    "subset": ("subset", "split"),
    "duration": ("duration",),
}
"""The plain form's columns, with the spellings that are read."""
REQUIRED = ("video", "start", "end", "label")

_PREAMBLE = 100
# The first field may be any number, as minutes are in 90:15.
_CLOCK = re.compile(r"(\d+)(?::([0-5]?\d))?:([0-5]?\d(?:\.\d+)?)", re.ASCII)
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2},\d{3}", re.ASCII)
"""A comma that may part thousands as well as be the decimal mark."""
_LITERAL = re.compile(r"'+[=+\-@\t\r]")
_DETECTIONS = ("video", "start", "end", "label", "class_id", "score")
"""The columns that `detect` writes."""


@dataclass(frozen=True)
class Row:
    """One row of a table: cells without the space around them, and where it stands."""

    cells: tuple[str, ...]
    where: str
    decimal_comma: bool = True
    """Whether a comma in a number may be the decimal mark: it is not what parts the cells."""
    file: Path | None = None

    def __getitem__(self, column: int | None) -> str:
        """The cell of a column; empty for a column that the table, or a short row, lacks."""
        return "" if column is None or column >= len(self.cells) else self.cells[column]

    def time(self, text: str) -> float:
        """The time that text of this row says. Raises ValueError as `parse_time`."""
        return parse_time(text, self.decimal_comma)


@dataclass(frozen=True)
class Table:
    """The rows of a file that hold something, from the header on if there is one."""

    path: Path
    rows: tuple[Row, ...]

    @property
    def header(self) -> tuple[str, ...]:
        return self.rows[0].cells

    def column(self, *names: str) -> int | None:
        """The first column of the header with one of these names, in any case."""
        header = [cell.casefold() for cell in self.header]
        return next((header.index(n.casefold()) for n in names if n.casefold() in header), None)

    def from_header(self, is_header: Callable[[tuple[str, ...]], bool]) -> Table | None:
        """The table from its header on, which may be below some lines; None where it has none."""
        for number, row in enumerate(self.rows[:_PREAMBLE]):
            if is_header(tuple(cell.casefold() for cell in row.cells)):
                return Table(self.path, self.rows[number:])
        return None


def read_text(path: Path) -> str:
    """The text of a file: UTF-8, or UTF-16 with its mark. ManifestError when it is none."""
    try:
        raw = path.read_bytes()
        return raw.decode("utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except FileNotFoundError:
        raise ManifestError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError(f"{path}: not readable as text: {error}") from None


def read_table(path: Path) -> Table:
    """The table in a file. Raises ManifestError as `find_table`, and when the file is empty."""
    table = find_table(path)
    if table is None:
        raise ManifestError(f"{path}: the file is empty; expected a table of annotations")
    return table


def find_table(path: Path) -> Table | None:
    """The table in a file, with commas, semicolons or tabs between cells; None where all are empty.

    Raises ManifestError, with the line where there is one, when the file is no table.
    """
    text = read_text(path)
    first = next((line for line in text.splitlines() if line.strip()), "")
    delimiter = max("\t;,", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows = []
    try:
        for cells in reader:
            stripped = tuple(cell.strip() for cell in cells)
            if any(stripped):
                where = f"in {path.name}, line {reader.line_num}"
                rows.append(Row(stripped, where, delimiter != ",", path))
    except csv.Error as error:
        raise ManifestError(f"{path}, line {reader.line_num}: {error}") from None
    return Table(path, tuple(rows)) if rows else None


def parse_time(text: str, decimal_comma: bool = True) -> float:
    """Seconds or frames: `12.5`, `1e3`, `1:02.5` or `00:01:02.500`; `12,5` with `decimal_comma`.

    Raises ValueError for others, among them `1,234`, which may be a thousand.
    """
    plain = text.replace(",", ".") if decimal_comma and not _THOUSANDS.fullmatch(text) else text
    if clock := _CLOCK.fullmatch(plain):
        first, second, seconds = clock.groups()
        hours, minutes = (first, second) if second else ("0", first)
        time = 3600.0 * float(hours) + 60.0 * float(minutes) + float(seconds)
    elif _NUMBER.fullmatch(plain):
        time = float(plain)
    else:
        raise ValueError(f"{text!r} is not a time")
    if not math.isfinite(time):
        raise ValueError(f"{text!r} is not a time")
    return time


def video_id(text: str, known: Mapping[str, str] | None = None) -> str:
    """The id of a video that a table names: a known one's, or without the ending of a video."""
    if known and text in known:
        return known[text]
    path = PurePosixPath(text)
    return text[: -len(path.suffix)] if path.suffix.lower() in VIDEO_SUFFIXES else text


def media_id(text: str, known: Mapping[str, str] | None = None) -> str:
    """The id of a video that a tool names by a path or URL of its own: by the file's name."""
    return video_id(re.split(r"[/\\]", text)[-1], known)


def media_path(text: str, file: Path | None) -> Path:
    """The path of a video that `file` names by a path, maybe from its own folder, or a URL."""
    plain = re.sub("^file:/*", "/", text.replace("\\", "/"))
    return Path(os.path.abspath(file.parent / plain)) if file and plain[:1] == "." else Path(plain)


def without_apostrophe(text: str) -> str:
    """A cell of a table of detections without what keeps a spreadsheet from running it."""
    return text[1:] if _LITERAL.match(text) else text


def add_action(
    entry: ParsedVideo, report: Report, row: Row, label: str | int, start: str, end: str
) -> None:
    """Take a row's action, or count the row as malformed."""
    try:
        if label == "":
            raise ValueError
        times = row.time(start), row.time(end)
        entry.actions.append(RawAction(label, *times, row.where, row.file))
    except ValueError:
        malformed(report, row)


def malformed(report: Report, row: Row) -> None:
    """Count a row that cannot be read."""
    report.count(report.left_out, "malformed row", f"{','.join(row.cells)!r} {row.where}")


def parse_duration(text: str, decimal_comma: bool = True) -> float | None:
    """A positive duration; None where the cell is empty or says otherwise."""
    try:
        duration = parse_time(text, decimal_comma)
    except ValueError:
        return None
    return duration if duration > 0 else None


def is_plain(header: Iterable[str]) -> bool:
    """Whether these are the plain form's columns."""
    names = set(header)
    return all(names.intersection(COLUMNS[column]) for column in REQUIRED)


def read_plain(table: Table, found: ParsedAnnotations, report: Report) -> None:
    """Read users' own data (this module's heading tells the form)."""
    at = {name: table.column(*spellings) for name, spellings in COLUMNS.items()}
    cell = without_apostrophe if table.header == _DETECTIONS else str
    for row in table.rows[1:]:
        if not row[at["video"]]:
            malformed(report, row)
            continue
        video = cell(row[at["video"]])
        entry = found.entry(video_id(video, found.known))
        if video != video_id(video):
            entry.told_of(Path(video), row.where, report)
        _agree(entry, row, row[at["subset"]], row[at["duration"]], report)
        action = cell(row[at["label"]]), row[at["start"]], row[at["end"]]
        if any(action):
            add_action(entry, report, row, *action)


def _agree(entry: ParsedVideo, row: Row, subset: str, duration: str, report: Report) -> None:
    """Take what a row says of its video; where rows differ, the first one counts."""
    if subset:
        entry.subset = entry.subset or subset
        if entry.subset != subset:
            example = f"{entry.subset!r} and {subset!r} {row.where}"
            report.count(report.left_out, "second subset of a video", example)
    if duration:
        length = parse_duration(duration, row.decimal_comma)
        entry.duration = entry.duration or length
        if length is None:
            report.count(report.left_out, "malformed duration", f"{duration!r} {row.where}")
        elif entry.duration != length:
            example = f"{entry.duration} and {length} {row.where}"
            report.count(report.left_out, "second duration of a video", example)


def tables_below(folder: Path) -> list[Path]:
    """The files below a folder that may hold tables, in order."""
    return files_below(
        folder, lambda file: file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
    )


def escape_formula(text: str) -> str:
    """A cell that no spreadsheet takes for a formula."""
    # A spreadsheet would run a cell that begins like a formula. `init` takes one apostrophe off.
    formula = text.lstrip("'").startswith(("=", "+", "-", "@", "\t", "\r"))
    text = "'" + text if formula else text
    return text.replace("\r", " ")  # the csv module does not quote it
