"""Tab-delimited text exports of ELAN (archive.mpi.nl/tla/elan), and its CSV of the same columns.

With a column a tier there is a header: `Begin Time - ss.msec`, `End Time - ss.msec`, ..., then the
tiers' names. Else there is none: tier, participant, the times, the annotation; these are told apart
by their form, hh:mm:ss.ms, which ELAN exports unless told otherwise.

The class is the annotation's text, or the tier's name where an annotation is empty. A file is one
video, named by its media line (`"#file:///videos/a.mp4 -- offset: 0"`) if it has one, else by the
file; an export of several files names them in a column.
"""

from __future__ import annotations

import re
from urllib.parse import unquote

from mstemba.data_manifests.readers.parsed import ParsedAnnotations, Report
from mstemba.data_manifests.readers.tables import (
    Row,
    Table,
    add_action,
    malformed,
    media_id,
    video_id,
)

_CLOCK = re.compile(r"\d+:\d\d:\d\d[.,]\d+", re.ASCII)
_MEDIA_LINE = re.compile(r"#(.*?)(?: -- offset: (-?\d+))?", re.DOTALL)
_FORMATS = (("ss.msec", 1), ("hh:mm:ss.ms", 1), ("msec", 1000))
"""The formats that are read, and how many of their units a second has."""
_FILE = ("file name", "file path", "filename", "file")
_OTHER = ("tier", "tier name", "participant", "annotation", *_FILE)


def read_export(table: Table, found: ParsedAnnotations, report: Report) -> bool:
    """Read an export of ELAN; False where the table is none."""
    first = [row for row in table.rows if not row.cells[0].startswith("#")][:1]
    if whole := table.from_header(_is_header):
        above = table.rows[: len(table.rows) - len(whole.rows)]
        _read_with_header(whole, above, found, report)
    elif first and sum(_CLOCK.fullmatch(cell) is not None for cell in first[0].cells) >= 2:
        _read_without_header(table, found, report)
    else:
        return False
    return True


def _is_header(header: tuple[str, ...]) -> bool:
    return all(any(c.startswith(f"{time} time - ") for c in header) for time in ("begin", "end"))


def _read_with_header(
    table: Table, media: tuple[Row, ...], found: ParsedAnnotations, report: Report
) -> None:
    """Read an export with a column a tier; `media` are the rows above the header."""
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
    video = _Video(table, media, found, report)
    for row in table.rows[1:]:
        if video.is_media(row):
            continue
        entry = found.entry(video.id(row[file]))
        labels = [row[column] for column in tiers if row[column]]
        if annotation is not None:
            labels = [row[annotation] or row[tier]]
        if not labels:
            malformed(report, row)
        for label in labels:
            start, stop = (_seconds(row[column], units) for column in (begin, end))
            add_action(entry, report, row, label, start, stop)


def _read_without_header(table: Table, found: ParsedAnnotations, report: Report) -> None:
    """Read an export of the form tier, participant, begin, end, duration, annotation."""
    video = _Video(table, (), found, report)
    for row in table.rows:
        if video.is_media(row):
            continue
        clocks = [n for n, cell in enumerate(row.cells) if _CLOCK.fullmatch(cell)]
        if len(clocks) < 2:
            malformed(report, row)
            continue
        begin, end = clocks[:2]
        # Each of begin, end and duration is given in the same formats.
        text = end + (end - begin)
        if text in clocks:
            text += end - begin
        file = next((cell for cell in row.cells[text + 1 :] if cell.endswith(".eaf")), "")
        tier = row.cells[0] if begin else ""
        add_action(
            found.entry(video.id(file)), report, row, row[text] or tier, row[begin], row[end]
        )


def _time_column(table: Table, name: str) -> tuple[int | None, int]:
    for form, units in _FORMATS:
        column = table.column(f"{name} time - {form}")
        if column is not None:
            return column, units
    return None, 1  # other formats only: every row is malformed


def _seconds(text: str, units: int) -> str:
    return repr(int(text) / units) if units != 1 and text.isdecimal() else text


class _Video:
    """The video that the rows belong to, as far as they have been read."""

    def __init__(
        self, table: Table, media: tuple[Row, ...], found: ParsedAnnotations, report: Report
    ) -> None:
        self._known, self._report = found.known, report
        self._current = video_id(table.path.stem, found.known)
        self._named = False
        for row in media:
            self.is_media(row)

    def is_media(self, row: Row) -> bool:
        """Take a line that names a media file; the first one before some rows counts."""
        if not row.cells[0].startswith("#"):
            return False
        line = _MEDIA_LINE.fullmatch(row.cells[0])
        if line and not self._named:
            self._current = self._id(unquote(line[1]))
            self._named = True
            if line[2] and int(line[2]):
                kind = "ELAN media file with an offset"
                self._report.count(self._report.kept, kind, f"{row.cells[0]!r} {row.where}")
        return True

    def id(self, file: str) -> str:
        """The video of a row that names this file, which is empty where none is named."""
        self._named = False
        return self._id(file) if file else self._current

    def _id(self, file: str) -> str:
        return media_id(file.removesuffix(".eaf"), self._known)
