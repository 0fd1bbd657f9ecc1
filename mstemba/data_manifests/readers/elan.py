"""Read tab-delimited text exports of ELAN (archive.mpi.nl/tla/elan), and CSV of the same columns.

With one column per tier there is a header: `Begin Time - ss.msec`, `End Time - ss.msec`, ..., and
the names of the tiers. Otherwise there is none: tier, participant, times and annotation are told
apart by the form of the times, hh:mm:ss.ms, which is ELAN's default.

The class is the text of an annotation, or the name of the tier if that is empty. A file is one
video, named by its media line (`"#file:///videos/a.mp4 -- offset: 0"`) if there is one, otherwise
by the file; an export of several files names them in a column.
"""

from __future__ import annotations

import re
from urllib.parse import unquote

from mstemba.data_manifests.readers.parsed import ParsedAnnotations
from mstemba.data_manifests.readers.tables import (
    Row,
    Table,
    add_action,
    file_path,
    malformed,
)

_CLOCK = re.compile(r"\d+:\d\d:\d\d[.,]\d+", re.ASCII)
_MEDIA_LINE = re.compile(r"#(.*?)(?: -- offset: (-?\d+))?", re.DOTALL)
_FORMATS = (("ss.msec", 1), ("hh:mm:ss.ms", 1), ("msec", 1000))
"""Supported time formats, with the number of their units per second."""
_FILE = ("file name", "file path", "filename", "file")
_OTHER = ("tier", "tier name", "participant", "annotation", *_FILE)


def read_export(table: Table, parsed: ParsedAnnotations) -> bool:
    """Read an export of ELAN; return False for other tables."""
    first = [row for row in table.rows if not row.cells[0].startswith("#")][:1]
    if whole := table.from_header(_is_header):
        above = table.rows[: len(table.rows) - len(whole.rows)]
        _read_with_header(whole, above, parsed)
    elif first and sum(_CLOCK.fullmatch(cell) is not None for cell in first[0].cells) >= 2:
        _read_without_header(table, parsed)
    else:
        return False
    return True


def _is_header(header: tuple[str, ...]) -> bool:
    return all(any(c.startswith(f"{time} time - ") for c in header) for time in ("begin", "end"))


def _read_with_header(table: Table, media: tuple[Row, ...], parsed: ParsedAnnotations) -> None:
    """Read an export with one column per tier; `media` are the rows above the header."""
    begin, units = _time_column(table, "begin")
    end, _ = _time_column(table, "end")
    file = table.column(*_FILE)
    times = ("begin time - ", "end time - ", "duration - ")
    annotation, tier = table.column("annotation"), table.column("tier", "tier name")
    tiers = [
        number
        for number, name in enumerate(table.header)
        if not name.casefold().startswith(times) and name.casefold() not in _OTHER
    ]
    video = _Video(table, media, parsed)
    for row in table.rows[1:]:
        if video.is_media(row):
            continue
        name = video.name(row[file])
        labels = [row[column] for column in tiers if row[column]]
        if annotation is not None:
            labels = [row[annotation] or row[tier]]
        if not labels:
            malformed(parsed, row)
        for label in labels:
            start, stop = (_seconds(row[column], units) for column in (begin, end))
            add_action(parsed, name, row, label, start, stop)


def _read_without_header(table: Table, parsed: ParsedAnnotations) -> None:
    """Read an export with the columns tier, participant, begin, end, duration, annotation."""
    video = _Video(table, (), parsed)
    for row in table.rows:
        if video.is_media(row):
            continue
        clocks = [n for n, cell in enumerate(row.cells) if _CLOCK.fullmatch(cell)]
        if len(clocks) < 2:
            malformed(parsed, row)
            continue
        begin, end = clocks[:2]
        # Begin, end and duration have the same number of columns each, one per format.
        text = end + (end - begin)
        if text in clocks:
            text += end - begin
        file = next((cell for cell in row.cells[text + 1 :] if cell.endswith(".eaf")), "")
        tier = row.cells[0] if begin else ""
        add_action(parsed, video.name(file), row, row[text] or tier, row[begin], row[end])


def _time_column(table: Table, name: str) -> tuple[int | None, int]:
    for form, units in _FORMATS:
        column = table.column(f"{name} time - {form}")
        if column is not None:
            return column, units
    return None, 1  # no supported format: every row is malformed


def _seconds(text: str, units: int) -> str:
    return repr(int(text) / units) if units != 1 and text.isdecimal() else text


class _Video:
    """The video that the current rows belong to."""

    def __init__(self, table: Table, media: tuple[Row, ...], parsed: ParsedAnnotations) -> None:
        self._report = parsed.report
        self._current = table.path.stem
        self._named = False
        for row in media:
            self.is_media(row)

    def is_media(self, row: Row) -> bool:
        """Return whether a row names a media file; the first of consecutive ones counts."""
        if not row.cells[0].startswith("#"):
            return False
        line = _MEDIA_LINE.fullmatch(row.cells[0])
        if line and not self._named:
            self._current = file_path(unquote(line[1]), row.file)
            self._named = True
            if line[2] and int(line[2]):
                kind = "ELAN media file with an offset"
                self._report.keep(kind, f"{row.cells[0]!r} {row.where}")
        return True

    def name(self, file: str) -> str:
        """Return the name of a row's video; `file` is empty if the row names none."""
        self._named = False
        return re.split(r"[/\\]", file.removesuffix(".eaf"))[-1] if file else self._current
