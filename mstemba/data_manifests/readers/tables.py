"""Parse tables of annotations, CSV or tab-separated, and read those in mstemba's own form.

That form has the columns `video`, `start`, `end`, `label` and optionally `subset`, `duration` and
`annotated_until`. A row with nothing but a video names a video without actions. Words such as `NA`
stand for empty cells.
"""

from __future__ import annotations

import csv
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from mstemba.data_manifests.manifest import is_missing, normalise_subset
from mstemba.data_manifests.readers.parsed import (
    AnnotationReport,
    ParsedAnnotations,
    ParsedVideo,
    RawAction,
)
from mstemba.data_manifests.readers.text import check_entries, read_text, split_lines
from mstemba.data_manifests.video_files import VIDEO_SUFFIXES, files_below
from mstemba.errors import ManifestError
from mstemba.limits import LONGEST_VIDEO
from mstemba.reading.typed import shown

SUFFIXES = frozenset({".csv", ".tsv", ".txt"})
COLUMNS = {
    "video": (
        *("video", "video_id", "video_name", "video_file", "video_path", "filename", "file_name"),
        *("video name", "video file", "video path", "file name", "file", "path", "media_file"),
    ),
    "start": ("start", "start_time", "begin", "t_start"),
    "end": ("end", "end_time", "stop", "t_end"),
    "label": ("label", "class", "action", "behavior", "behaviour"),
    "subset": ("subset", "split"),
    "duration": ("duration",),
    "annotated_until": ("annotated_until",),
}
"""The columns of mstemba's own form, with their accepted spellings."""
PLAIN_COLUMNS = tuple(COLUMNS[name] for name in ("video", "start", "end", "label"))
ONE_VIDEO_COLUMNS = PLAIN_COLUMNS[1:]
_ORDER = ("video", "label", "start", "end", "subset", "duration", "annotated_until")

Columns = tuple[tuple[str, ...], ...]
"""The columns that a form requires, each with its accepted spellings in lower case."""

_PREAMBLE = 100
_DELIMITERS = "\t;,"
_LONGEST_TIME = 100
"""Characters of a time."""
# The first field has no limit: 90:15 is 90 minutes.
_CLOCK = re.compile(r"(\d+)(?::([0-5]?\d))?:([0-5]?\d(?:\.\d+)?)", re.ASCII)
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2},\d{3}", re.ASCII)
"""A number whose comma may separate thousands or be the decimal mark."""
_ESCAPED = re.compile(r"'+[=+\-@\t\r]")
_MAY_BE_MISSING = frozenset({"", *"nNuU#<-?\N{EN DASH}\N{EM DASH}"})
"""First letters of words for a missing value."""
_NO_LABEL = frozenset({"na", "nan", "n/a", "#n/a", "<na>", "null", "-", "?"})
"""Words that are no class, even with times."""
_MORE_CELLS = (
    "malformed row with more cells than columns (quote a text with commas; decimal commas need "
    "semicolons or tabs between the cells)"
)
_LONGEST_PREAMBLE = 2**20
"""Characters of these lines: a pattern takes a hundred times their memory."""
_QUOTED = re.compile(r'(?:^|(?<=[\t;,]))"[^"]*(?:""[^"]*)*"(?=[\t;,\r\n]|$)', re.MULTILINE)
"""A cell in quotes, in which marks separate nothing."""
_DETECTIONS = ("video", "start", "end", "label", "class_id", "score")
"""The columns of the CSV files that `detect` writes."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a table: its cells, stripped of white space, and its place in the file."""

    cells: tuple[str, ...]
    where: str
    decimal_comma: bool = True
    """Whether a comma may be the decimal mark: False if commas separate the cells."""
    file: Path | None = None

    def __getitem__(self, column: int | None) -> str:
        """Return the cell of a column; empty if the table or a short row does not have it."""
        return "" if column is None or column >= len(self.cells) else self.cells[column]

    def time(self, text: str) -> float:
        """Parse a cell of this row. Raises ValueError like `parse_time`."""
        return parse_time(text, self.decimal_comma)


@dataclass(frozen=True)
class Table:
    """The rows of a file that are not empty, from the header on if there is one."""

    path: Path
    rows: tuple[Row, ...]
    above: tuple[Row, ...] = ()
    """Rows above the header."""

    @property
    def header(self) -> tuple[str, ...]:
        return self.rows[0].cells

    def column(self, *names: str) -> int | None:
        """Return the first column with one of these names, ignoring case.

        Raises ManifestError if several have this name.
        """
        header = [cell.casefold() for cell in self.header]
        name = next((n.casefold() for n in names if n.casefold() in header), None)
        if name is None:
            return None
        if header.count(name) > 1:
            same = [shown(cell) for cell in self.header if cell.casefold() == name]
            raise ManifestError(
                f"{self.path}: several columns of one name, {', '.join(same)}; delete or rename "
                f"all but one"
            )
        return header.index(name)

    def from_header(self, is_header: Callable[[tuple[str, ...]], bool]) -> Table | None:
        """Return the table from its header on, which may be below other lines, or None."""
        for number, row in enumerate(self.rows[:_PREAMBLE]):
            if is_header(tuple(cell.casefold() for cell in row.cells)):
                return Table(self.path, self.rows[number:], self.rows[:number])
        return None


def has_columns(columns: Columns, header: tuple[str, ...]) -> bool:
    """Return whether a header in lower case has all of these columns."""
    return all(not set(header).isdisjoint(names) for names in columns)


def find_table(path: Path, report: AnnotationReport) -> Table | None:
    """Read a table with commas, semicolons or tabs between cells; return None if all are empty.

    Raises ManifestError, with the line if possible, for a file that is not a table.
    """
    text = read_text(path, report)
    # BORIS and Charades have lists in a cell, which semicolons separate.
    entries = text.count("\n") + text.count("\r") + text.count(";")
    check_entries(path, text, entries, max(map(text.count, _DELIMITERS)))
    delimiter = _find_delimiter(text)
    reader = csv.reader(split_lines(text), delimiter=delimiter, strict=True)
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


def _find_delimiter(text: str) -> str:
    """Return the delimiter that most of the first lines have, or of several the most frequent."""
    # Decimal commas, or commas in a title above the header, are in fewer lines.
    first = "".join(islice(filter(str.strip, split_lines(text)), _PREAMBLE))[:_LONGEST_PREAMBLE]
    lines = _QUOTED.sub("", first).splitlines()
    counts = {mark: [line.count(mark) for line in lines] for mark in _DELIMITERS}
    return max(counts, key=lambda mark: (sum(map(bool, counts[mark])), sum(counts[mark])))


def parse_time(text: str, decimal_comma: bool = True) -> float:
    """Parse `12.5`, `1e3`, `1:02.5` or `00:01:02.500`; with `decimal_comma` also `12,5`.

    Raises ValueError for anything else, including the ambiguous `1,234`.
    """
    if len(text) > _LONGEST_TIME:
        raise ValueError(f"{shown(text)} is not a time")
    plain = text.replace(",", ".") if decimal_comma and not _THOUSANDS.fullmatch(text) else text
    if clock := _CLOCK.fullmatch(plain):
        first, second, seconds = clock.groups()
        hours, minutes = (first, second) if second else ("0", first)
        time = 3600.0 * float(hours) + 60.0 * float(minutes) + float(seconds)
    elif _NUMBER.fullmatch(plain):
        time = float(plain)
    else:
        time = math.nan
    if not math.isfinite(time):
        raise ValueError(f"{shown(text)} is not a time")
    return time


def file_path(text: str, file: Path | None) -> str:
    """Return a path or URL of a video; a path that begins with a dot is relative to `file`."""
    plain = text.replace("\\", "/")
    return os.path.abspath(file.parent / plain) if file and plain[:1] == "." else text


def escape_formula(text: str) -> str:
    """Return a cell that no spreadsheet program runs as a formula."""
    formula = text.lstrip("'").startswith(("=", "+", "-", "@", "\t", "\r"))
    text = "'" + text if formula else text
    return text.replace("\r", " ")  # the csv module does not quote it


def unescape_formula(text: str) -> str:
    """Undo `escape_formula` for a cell of a table of detections."""
    return text[1:] if _ESCAPED.match(text) else text


def add_action(
    parsed: ParsedAnnotations, name: str, row: Row, label: str | int, start: str, end: str
) -> None:
    """Add the action of a row to a video, or report the row as malformed."""
    video = parsed.video(name)
    try:
        times = row.time(start), row.time(end)
        if label == "":
            raise ValueError
        if ":" in start:
            parsed.seconds_of = f"a clock, such as {start},"
        video.actions.append(RawAction(label, *times, row.where, row.file))
    except ValueError:
        if label == "" or is_missing(start) or is_missing(end):
            malformed(parsed, row)
        else:
            kind = "time that is neither a number nor a clock time (0:01:02.5)"
            parsed.report.skip(kind, f"{shown(start)} to {shown(end)} {row.where}")


def malformed(parsed: ParsedAnnotations, row: Row) -> None:
    """Report a row that cannot be read."""
    parsed.report.skip("malformed row", f"{shown(','.join(row.cells))} {row.where}")


def synonyms(
    names: Sequence[str], meanings: Iterable[tuple[str, ...]] = tuple(COLUMNS.values())
) -> list[tuple[str, str]]:
    """Return pairs of names with one meaning: the one that is read, and one that is not."""
    pairs = []
    for spellings in meanings:
        found = [name for spelling in spellings for name in names if name.casefold() == spelling]
        pairs += [(found[0], other) for other in found[1:]]
    return pairs


def ignored_synonym(parsed: ParsedAnnotations, used: str, other: str, where: str) -> None:
    """Report a name that is not read because another one has its meaning."""
    kind = "two names for the same thing"
    parsed.report.doubt(kind, f"{shown(other)} ({shown(used)} is read) {where}")


def whole_rows(rows: Sequence[Row], parsed: ParsedAnnotations, columns: int) -> Iterator[Row]:
    """Yield the rows without text in more cells than there are columns; report the others."""
    for row in rows:
        if any(row.cells[columns:]):
            parsed.report.skip(_MORE_CELLS, f"{shown(','.join(row.cells))} {row.where}")
        else:
            yield row


def rows_below_header(table: Table, parsed: ParsedAnnotations) -> Iterator[Row]:
    """Yield the rows with no more cells than the header; report the others."""
    return whole_rows(table.rows[1:], parsed, len(table.header))


def parse_duration(text: str, decimal_comma: bool = True) -> float | None:
    """Parse a positive duration; return None for anything else."""
    try:
        duration = parse_time(text, decimal_comma)
    except ValueError:
        return None
    return duration if 0 < duration <= LONGEST_VIDEO else None


def read_plain(table: Table, parsed: ParsedAnnotations) -> None:
    """Read a table in mstemba's own form, described at the top of this module.

    Without a column of videos, the table describes the video with the file's name.
    """
    at = {name: table.column(*spellings) for name, spellings in COLUMNS.items()}
    for used, other in synonyms(table.header):
        ignored_synonym(parsed, used, other, f"in {table.path.name}")
    default = ""
    if at["video"] is None:
        _refuse_unknown_names(table, at)
        default = parsed.own_video(table.path)
    is_detection = table.header == _DETECTIONS
    for row in rows_below_header(table, parsed):
        cells: dict[str, str | int] = {name: row[column] for name, column in at.items()}
        if is_detection:
            cells |= {name: unescape_formula(row[at[name]]) for name in ("video", "label")}
        add_row(parsed, row, cells, default, exact=is_detection)


def _refuse_unknown_names(table: Table, at: Mapping[str, int | None]) -> None:
    """Raise ManifestError for a column that has names of videos under an unknown name."""
    known = set(at.values())
    for column, name in enumerate(table.header):
        for row in table.rows[1:] if column not in known else ():
            if os.path.splitext(row[column])[1].lower() in VIDEO_SUFFIXES:
                raise ManifestError(
                    f"{table.path}: the column {shown(name)} has names of videos, for example "
                    f"{shown(row[column])}; expected them in the column 'video': rename it"
                )


def read_track(table: Table, parsed: ParsedAnnotations) -> bool:
    """Read label tracks of Audacity: start, end and label, without a header.

    Returns False for other tables. Lines that begin with a backslash are ranges of frequencies.
    """
    rows = [row for row in table.rows if row[0] != "\\"]
    if not rows or len(rows[0].cells) != 3 or not _is_time(rows[0][0]) or not _is_time(rows[0][1]):
        return False
    if _is_time(rows[0][2]):  # a matrix
        return False
    name = parsed.own_video(table.path)
    for row in whole_rows(rows, parsed, 3):
        add_action(parsed, name, row, row[2], row[0], row[1])
    return True


def _is_time(text: str) -> bool:
    try:
        parse_time(text)
    except ValueError:
        return False
    return True


def add_row(
    parsed: ParsedAnnotations,
    row: Row,
    cells: Mapping[str, str | int],
    default: str = "",
    exact: bool = False,
) -> None:
    """Add what a row says, or report it as malformed.

    Args:
        parsed: Gets the video and its action.
        row: The row, for messages.
        cells: The values by the names in COLUMNS; a row with nothing but a video has no action.
        default: Name of the video of a row without one; empty if it has to have one.
        exact: Whether words for missing values are names, as in what mstemba writes.
    """
    values = [cells[column] for column in _ORDER]
    if not exact:
        # A first letter rules most values out, which is fast.
        values = [
            "" if isinstance(v, str) and v[:1] in _MAY_BE_MISSING and is_missing(v) else v
            for v in values
        ]
    name, label, start, end, subset, duration, until = values
    name = str(name) or default
    if not name:
        malformed(parsed, row)
        return
    video = parsed.video(name)
    if subset or duration:
        _set_facts(video, row, str(subset), str(duration), parsed.report)
    if until:
        _set_annotated_until(video, row, str(until), parsed.report)
    if label == "" and (start or end) and str(cells["label"]).casefold() not in _NO_LABEL:
        label = cells["label"]  # `none` may be a class
    if label != "" or start or end:
        add_action(parsed, name, row, label, str(start), str(end))


def _set_facts(
    video: ParsedVideo, row: Row, subset: str, duration: str, report: AnnotationReport
) -> None:
    """Set subset and duration of a video; if rows differ, the first one counts."""
    if not is_missing(subset):
        video.subset = video.subset or subset
        if normalise_subset(video.subset) != normalise_subset(subset):
            example = f"{shown(video.subset)} and {shown(subset)} {row.where}"
            report.skip("second subset of a video", example)
    if not is_missing(duration):
        length = parse_duration(duration, row.decimal_comma)
        video.duration = video.duration or length
        if length is None:
            report.skip("malformed duration", f"{shown(duration)} {row.where}")
        elif video.duration != length:
            example = f"{video.duration} and {length} {row.where}"
            report.skip("second duration of a video", example)


def _set_annotated_until(video: ParsedVideo, row: Row, text: str, report: AnnotationReport) -> None:
    """Set the time up to which a video is annotated; if rows differ, the first one counts."""
    if is_missing(text):
        return
    try:
        time = row.time(text)
    except ValueError:
        time = -1.0
    if not 0 <= time <= LONGEST_VIDEO:
        report.skip("malformed annotated_until", f"{shown(text)} {row.where}")
    elif video.annotated_until is None:
        video.annotated_until = time
    elif video.annotated_until != time:
        example = f"{video.annotated_until} and {time} {row.where}"
        report.skip("second annotated_until of a video", example)


def files_with(folder: Path, suffixes: Iterable[str], report: AnnotationReport) -> list[Path]:
    """Return the files below a folder with one of these suffixes, in order, without hidden ones.

    Pipes, devices and sockets are reported.
    """
    return files_below(
        folder,
        lambda file: file.suffix.lower() in suffixes and not file.name.startswith("."),
        lambda file, kind: report.ignore("pipe, device or socket", f"{file}: {kind}"),
    )
