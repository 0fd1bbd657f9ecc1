"""Read tab-delimited text exports of ELAN (archive.mpi.nl/tla/elan), and CSV of the same columns.

With one column per tier there is a header: `Begin Time - ss.msec`, `End Time - ss.msec`, ..., and
the names of the tiers. Otherwise there is none: tier, participant, times and annotation are told
apart by the form of the times, hh:mm:ss.ms, which is ELAN's default.

The class is the text of an annotation, or the name of the tier if that is empty. A file is one
video, named by its media line (`"#file:///videos/a.mp4 -- offset: 0"`) if there is one, otherwise
by the file; an export of several files names them in a column.

Of several media files the first video counts. ELAN plays a media file from its offset on, so that
a time in the media file is the time of the annotation plus the offset.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import NamedTuple
from urllib.parse import unquote

from mstemba.data_manifests.readers.parsed import (
    AnnotationReport,
    ParsedAnnotations,
    RawAction,
    plain_text,
)
from mstemba.data_manifests.readers.tables import (
    Row,
    Table,
    add_action,
    file_path,
    malformed,
    rows_below_header,
)
from mstemba.data_manifests.video_files import VIDEO_SUFFIXES
from mstemba.reading.typed import shown

_CLOCK = re.compile(r"\d+:\d\d:\d\d[.,]\d+", re.ASCII)
_MEDIA_LINE = re.compile(r"#(.*?)(?: -- offset: (-?\d{1,15}))?", re.DOTALL)
_OFFSET = re.compile(r"[+-]?\d{1,15}", re.ASCII)
_NUMBER = re.compile(r"[+-]?\d+(?:\.\d*)?(?:[eE][+-]?\d+)?", re.ASCII)
_SOUND = frozenset({".wav", ".mp3", ".m4a", ".aif", ".aiff", ".flac", ".ogg", ".opus", ".wma"})
_FORMATS = (("ss.msec", 1), ("hh:mm:ss.ms", 1), ("msec", 1000))
"""Supported time formats, with the number of their units per second."""
_FILE = ("file name", "file path", "filename", "file")
_OTHER = ("tier", "tier name", "participant", "annotation", *_FILE)


class Media(NamedTuple):
    """A media file of annotations."""

    url: str
    offset_text: str
    """Offset as written, in milliseconds."""
    where: str
    is_video: bool

    @property
    def offset(self) -> int:
        """Offset in milliseconds; 0 if it cannot be read."""
        return int(self.offset_text) if _OFFSET.fullmatch(self.offset_text) else 0


def is_video(url: str) -> bool:
    """Return whether a path or URL ends like a video."""
    return PurePosixPath(url).suffix.lower() in VIDEO_SUFFIXES


def choose_media(media: Sequence[Media], report: AnnotationReport) -> Media:
    """Return the first video of several media files, otherwise the first file."""
    videos = [file for file in media if file.is_video]
    chosen = (videos or media)[0]
    for other in videos[1:]:
        report.ignore("ELAN video after the first one", f"{shown(other.url)} {other.where}")
    if not _OFFSET.fullmatch(chosen.offset_text):
        kind = "ELAN offset that cannot be read (taken for 0)"
        report.keep(kind, f"{shown(chosen.offset_text)} {chosen.where}")
    return chosen


def without_sound(file: str, where: str, report: AnnotationReport) -> str:
    """Return the name of the video for which a sound file stands: that without its ending."""
    path = PurePosixPath(re.split(r"[/\\]", file)[-1])
    if path.suffix.lower() not in _SOUND:
        return file
    kind = "ELAN file with sound alone, taken for the video of the same name"
    report.join(kind, f"{shown(path.name)} {where}")
    return path.stem


def move(action: RawAction, offset: int, report: AnnotationReport) -> RawAction:
    """Return an action in the times of a media file with an offset in milliseconds."""
    if not offset:
        return action
    start, end = (round(time + offset / 1000, 6) for time in (action.start, action.end))
    kind = "ELAN action moved by the offset of its media file"
    what = f"{shown(action.label)} from {action.start:g} to {start:g} s, by {offset / 1000:g} s,"
    report.join(kind, f"{what} {action.where}")
    return action._replace(start=start, end=end)


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
    parsed.seconds_of = "ELAN"
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
    wanted = [column for column in tiers if parsed.wants_tier(table.header[column])]
    for row in rows_below_header(table, parsed):
        if video.is_media(row):
            continue
        name = video.name(row[file])
        labels = [(row[column], table.header[column]) for column in wanted if row[column]]
        if annotation is not None:
            named = row[tier]
            labels = [(row[annotation] or named, named)] if parsed.wants_tier(named) else []
        elif not labels and not any(row[column] for column in tiers):
            malformed(parsed, row)
        start, stop = (_seconds(row[column], units) for column in (begin, end))
        for label, of in labels:
            video.add(name, row, label, start, stop, of)


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
        name = video.name(file)
        if not begin or parsed.wants_tier(tier):
            video.add(name, row, row[text] or tier, row[begin], row[end], tier if begin else None)


def _time_column(table: Table, name: str) -> tuple[int | None, int]:
    for form, units in _FORMATS:
        column = table.column(f"{name} time - {form}")
        if column is not None:
            return column, units
    return None, 1  # no supported format: every row is malformed


def _seconds(text: str, units: int) -> str:
    """Return a time in seconds as text, or an empty, malformed cell if it is not a number."""
    if units == 1:
        return text
    return repr(float(text) / units) if _NUMBER.fullmatch(text) else ""


class _Video:
    """The video that the current rows belong to."""

    def __init__(self, table: Table, media: tuple[Row, ...], parsed: ParsedAnnotations) -> None:
        self._parsed = parsed
        self._current = parsed.file_name(table.path)
        self._offset = 0
        self._media: list[tuple[Media, Row]] = []
        for row in media:
            self.is_media(row)

    def is_media(self, row: Row) -> bool:
        """Return whether a row names a media file: consecutive ones are those of the next rows."""
        if not row.cells[0].startswith("#"):
            return False
        if line := _MEDIA_LINE.fullmatch(row.cells[0]):
            url = unquote(line[1])
            self._media.append((Media(url, line[2] or "0", row.where, is_video(url)), row))
        return True

    def name(self, file: str) -> str:
        """Return the name of a row's video; `file` is empty if the row names none."""
        if self._media:
            report = self._parsed.report
            chosen = choose_media([media for media, _ in self._media], report)
            path = file_path(chosen.url, self._media[0][1].file)
            self._current = without_sound(path, chosen.where, report)
            self._offset = chosen.offset
            self._media = []
        name = re.split(r"[/\\]", file.removesuffix(".eaf"))[-1] if file else self._current
        self._parsed.video(name)
        return name

    def add(self, name: str, row: Row, label: str, start: str, end: str, tier: str | None) -> None:
        """Add the action of a row to a video."""
        actions = self._parsed.video(name).actions
        before = len(actions)
        add_action(self._parsed, name, row, label, start, end)
        if len(actions) > before:
            action = actions[-1]._replace(tier=None if tier is None else plain_text(tier))
            actions[-1] = move(action, self._offset, self._parsed.report)
