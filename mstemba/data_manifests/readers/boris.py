"""Read event exports of BORIS (boris.unito.it), CSV or TSV.

"Aggregated events" have one row per action: `Behavior`, `Start (s)`, `Stop (s)`. "Tabular events"
have one row for the start and one for the end: `Behavior`, `Time`, and START, STOP or POINT in
`Behavior type` (`Status` before version 8, below some lines about the observation).

The class is the behaviour, without subject and modifiers. A point event is an action without
length. BORIS adds the time offset of an observation to the times, which count over all media files
of its first player: both are undone here.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import accumulate
from pathlib import PurePosixPath
from typing import NamedTuple

from mstemba.data_manifests.manifest import is_missing
from mstemba.data_manifests.readers.parsed import AnnotationReport, ParsedAnnotations, RawAction
from mstemba.data_manifests.readers.tables import (
    Row,
    Table,
    file_path,
    malformed,
    parse_duration,
    parse_time,
    rows_below_header,
    unescape_formula,
)
from mstemba.data_manifests.video_names import may_be_same
from mstemba.limits import LONGEST_PATH
from mstemba.reading.typed import shown

_START = ("start (s)", "start (seconds)")
_STOP = ("stop (s)", "stop (seconds)")
_STATUS = ("status", "behavior type")
AGGREGATED_COLUMNS = (("behavior",), _START, _STOP)
TABULAR_COLUMNS = (("behavior",), ("time",), _STATUS)
_MEDIA = ("media file name", "media file", "media file path")
_DURATION = ("media duration (s)", "total length")
_OFFSET = "time offset"
_PLAYER = re.compile(r"player #\d+ ?: ?", re.IGNORECASE)
DETECTIONS = "detections of mstemba"
"""Description in the files that `detect` writes; their observation is the id of the video."""
_NONE = frozenset({"not found", "live observation"})
# Times are rounded, and durations are estimates: as far as this, in seconds, they may differ.
_ROUNDING = 0.002
_TOLERANCE = 1.0


class _Media(NamedTuple):
    """A media file of the first player."""

    name: str
    duration: float | None
    written: str
    """As in the export."""


class _Event(NamedTuple):
    """An action with the times in the file."""

    row: Row
    label: str
    start: float
    end: float


@dataclass
class _Observation:
    """The events of an observation, with what its rows say about it."""

    media: list[_Media]
    offset: str
    row: Row
    """The first row."""
    events: list[_Event] = field(default_factory=list)

    @property
    def duration(self) -> float | None:
        """Total duration of the media files, if all are known."""
        known = [media.duration for media in self.media if media.duration]
        return sum(known) if len(known) == len(self.media) else None


def read_events(table: Table, parsed: ParsedAnnotations) -> None:
    """Read aggregated or tabular events of one or several observations."""
    parsed.seconds_of = "BORIS"
    columns = _Columns(table)
    aggregated = columns.last(*_START), columns.last(*_STOP)
    tabular = columns.last("time"), columns.last(*_STATUS)
    # Users may have variables with the names of the other form's columns, but only before these.
    place = columns.behavior or 0
    if None in tabular or (None not in aggregated and max(filter(None, aggregated)) > place):
        _read_aggregated(table, parsed)
    else:
        _read_tabular(table, parsed)


def _read_aggregated(table: Table, parsed: ParsedAnnotations) -> None:
    export = _Export(table, parsed)
    start, stop = export.columns.last(*_START), export.columns.last(*_STOP)
    for row in rows_below_header(table, parsed):
        # In some versions a point event has no stop.
        end = row[start] if is_missing(row[stop]) else row[stop]
        export.add(row, row, row[start], end)
    export.finish()


def _read_tabular(table: Table, parsed: ParsedAnnotations) -> None:
    """Read events of which a STOP ends the START with the same subject, behaviour and modifiers."""
    export = _Export(table, parsed)
    columns = export.columns
    time, status = columns.last("time"), columns.last(*_STATUS)
    begun: dict[tuple[object, ...], Row] = {}
    for row in rows_below_header(table, parsed):
        key = (id(export.observation(row)), *(row[column] for column in columns.same))
        what = row[status].upper()
        if what == "START" and key not in begun:
            begun[key] = row
        elif what == "STOP" and key in begun:
            first = begun.pop(key)
            export.add(first, row, first[time], row[time])
        elif what == "POINT":
            export.add(row, row, row[time], row[time])
        elif what in ("START", "STOP"):
            example = f"{shown(row[columns.behavior])} {row.where}"
            parsed.report.skip(f"BORIS {what} without its partner", example)
        else:
            malformed(parsed, row)
    for row in begun.values():
        example = f"{shown(row[columns.behavior])} {row.where}"
        parsed.report.skip("BORIS START without its partner", example)
    export.finish()


class _Columns:
    """The columns of an export of BORIS, told from those of the user's variables by their place.

    The variables, which may have any name, are between `FPS` and `Subject`.
    """

    def __init__(self, table: Table) -> None:
        self._header = [cell.casefold() for cell in table.header]
        self.behavior = self._index("behavior", last=True)
        self._subject = self._index("subject", last=True, end=self.behavior)
        fps = self._index("fps", end=self._subject)
        self._head = self._subject if fps is None else fps
        modifiers = [n for n, c in enumerate(self._header) if self._in_tail(n, c, "modifier")]
        self.same = [c for c in (self._subject, self.behavior, *modifiers) if c is not None]
        """Columns that a START and its STOP have in common."""
        self.observation = self.first("observation id")
        self.description = self.first("description")
        self.source = self.first("source")
        self.duration = self.first(*_DURATION)
        self.offset = next(
            (n for n, c in enumerate(self._header[: self._end]) if c.startswith(_OFFSET)), None
        )
        media = (self.last(name) for name in _MEDIA)
        self.media = [column for column in media if column is not None]

    @property
    def _end(self) -> int:
        """Number of columns up to the users' variables."""
        return len(self._header) if self._head is None else self._head + 1

    def _in_tail(self, number: int, cell: str, prefix: str) -> bool:
        return cell.startswith(prefix) and number > (self._subject or 0)

    def _index(self, name: str, last: bool = False, end: int | None = None) -> int | None:
        found = [n for n, cell in enumerate(self._header[:end]) if cell == name]
        return found[-1 if last else 0] if found else None

    def first(self, *names: str) -> int | None:
        """Return a column before the users' variables, or an unmistakable one after them."""
        for name in names:
            column = self._index(name, end=self._end)
            if column is not None:
                return column
        return None

    def last(self, *names: str) -> int | None:
        """Return a column after the users' variables; in old versions it may be before them."""
        begin = self._subject or 0
        for name in names:
            column = self._index(name, last=True)
            if column is not None and column > begin:
                return column
        return self.first(*names)


class _Export:
    """Collects events by observation, because only all of them tell what their times mean."""

    def __init__(self, table: Table, parsed: ParsedAnnotations) -> None:
        self.columns = _Columns(table)
        self._table = table
        self._parsed = parsed
        self._observations: dict[tuple[str, ...], _Observation] = {}
        # Version 7 and before say it above the table.
        above = (row.cells for row in table.above if len(row.cells) > 1)
        self._above = [cells for cells in above if len(cells[1]) <= LONGEST_PATH]

    def observation(self, row: Row) -> _Observation:
        """Return the observation of a row."""
        columns = self.columns
        source = row[columns.source]
        key: tuple[str, ...] = (
            row[columns.observation],
            row[columns.offset],
            row[columns.duration],
            source,
        )
        if columns.observation is None or _is_none(source):
            key = (*key, self._named(row))
        if key not in self._observations:
            self._observations[key] = self._new(row, source)
        return self._observations[key]

    def _named(self, row: Row) -> str:
        """Return the media file that a row itself names."""
        for column in self.columns.media:
            if not _is_none(row[column]):
                return row[column]
        return ""

    def _new(self, row: Row, source: str) -> _Observation:
        columns, named = self.columns, self._named(row)
        offset = row[columns.offset] or self._said(_OFFSET)
        durations = _first(row[columns.duration].split("|")).split(";")
        known = [parse_duration(text) for text in durations]
        if self._is_detection(row):
            name = unescape_formula(row[columns.observation])
            self._parsed.ids.add(name)
            if named:
                video = self._parsed.video(name)
                video.set_media(file_path(named, row.file), row.where, self._parsed.report)
            return _Observation([_Media(name, known[0], named)], offset, row)
        files = _files(source, len(known)) or _files(named, len(known))
        above = [cells[1] for cells in self._above if _PLAYER.match(f"{cells[0]}:")]
        if len(set(above)) > 1 and columns.source is None:
            files = above
        elif not files:
            files = [row[columns.observation] or self._table.path.stem]
        elif len(files) == 1 and named and ";" not in named:
            files = [named]
        if len(known) != len(files):
            known = [None] * len(files)
        media = [
            _Media(file_path(file, row.file), duration, file)
            for file, duration in zip(files, known, strict=True)
        ]
        return _Observation(media, offset, row)

    def _said(self, name: str) -> str:
        return next((c[1] for c in self._above if c[0].casefold().startswith(name)), "")

    def add(self, first: Row, last: Row, start: str, end: str) -> None:
        """Add the action from one row to another, or report the first as malformed."""
        observation = self.observation(first)
        label = first[self.columns.behavior]
        label = unescape_formula(label) if self._is_detection(first) else label
        try:
            if not label:
                raise ValueError
            times = _time(start, first), _time(end, last)
        except ValueError:
            malformed(self._parsed, first)
        else:
            observation.events.append(_Event(first, label, *times))

    def _is_detection(self, row: Row) -> bool:
        columns = self.columns
        return row[columns.description] == DETECTIONS and bool(row[columns.observation])

    def finish(self) -> None:
        """Add the actions of all observations to their videos."""
        for observation in self._observations.values():
            media = observation.media
            if len(media) > 1 and observation.duration is None:
                self._refuse(observation)
                continue
            for file in media:
                video = self._parsed.video(file.name)
                video.duration = video.duration or file.duration
            offset = _included_offset(observation, self._parsed.report)
            for event in observation.events:
                self._add(observation, event, offset)

    def _refuse(self, observation: _Observation) -> None:
        kind = (
            "BORIS action in one of several media files whose durations the export does not have "
            "(export again with version 8 or later, or one observation per file)"
        )
        for event in observation.events:
            self._parsed.report.skip(kind, f"{shown(event.label)} {event.row.where}")

    def _add(self, observation: _Observation, event: _Event, offset: float) -> None:
        start, end = event.start, event.end
        if offset:
            start, end = round(start - offset, 6), round(end - offset, 6)
            kind = "BORIS action moved by the time offset of its observation"
            self._join(kind, event, f"from {event.start:.10g} to {start:g} s, by {offset:.10g} s,")
        pieces = [(observation.media[0], start, end)]
        if len(observation.media) > 1:
            pieces = _pieces(observation.media, start, end)
        if len(pieces) > 1:
            kind = "BORIS action cut at the border of two media files"
            self._join(kind, event, f"at {start:g} to {end:g} s")
        for media, begin, stop in pieces:
            if media is not observation.media[0]:
                kind = "BORIS action in a later media file, in the times of that file"
                self._join(kind, event, f"begins at {begin:g} s of {shown(media.written)}")
            action = RawAction(event.label, begin, stop, event.row.where, event.row.file)
            self._parsed.video(media.name).actions.append(action)
        media, begin, _ = pieces[0]
        named = self._named(event.row)
        if named not in ("", media.written) and not may_be_same(named, media.written):
            # At the borders BORIS itself names one or the other.
            near = min(abs(begin), abs((media.duration or math.inf) - begin)) < _TOLERANCE
            if not near or len(observation.media) == 1:
                kind = "BORIS event whose media file is not the one at its time"
                example = f"{shown(named)}, not {shown(media.written)} {event.row.where}"
                self._parsed.report.keep(kind, example)

    def _join(self, kind: str, event: _Event, what: str) -> None:
        self._parsed.report.join(kind, f"{shown(event.label)} {what} {event.row.where}")


def _first(texts: Iterable[str]) -> str:
    """Return the first text that is not missing."""
    return next((text.strip() for text in texts if not _is_none(text.strip())), "")


def _is_none(cell: str) -> bool:
    return is_missing(cell) or cell.casefold() in _NONE


def _files(source: str, count: int) -> list[str]:
    """Return the media files of the first player that has any.

    Args:
        source: As in `player #1:a.mp4;b.mp4|player #2:c.mp4`; in old versions without players.
        count: The number of durations, which tells a list from a name with a semicolon.
    """
    first = _first(text.strip(" |;") for text in _PLAYER.sub("|", source).split("|"))
    files = first.split(";")
    if len(files) != count:
        joined: list[list[str]] = []
        for file in files:
            if joined and not PurePosixPath(joined[-1][-1]).suffix:
                joined[-1].append(file)
            else:
                joined.append([file])
        files = [";".join(parts) for parts in joined]
    return [file.strip() for file in files if file.strip()]


def _time(text: str, row: Row) -> float:
    """Parse a time or offset: seconds, a clock time, or a date as seconds since 1970 (UTC)."""
    try:
        return parse_time(text, row.decimal_comma)
    except ValueError:
        date = datetime.fromisoformat(text)
        return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()


def _included_offset(observation: _Observation, report: AnnotationReport) -> float:
    """Return the time offset if the times include it, otherwise 0; report what is doubtful.

    BORIS adds it when an event is coded. If it is changed afterwards, the events keep their times.
    """
    example = f"{shown(observation.offset)} {observation.row.where}"
    if is_missing(observation.offset) or not observation.events:
        return 0.0
    try:
        offset = _time(observation.offset, observation.row)
    except ValueError:
        report.keep("BORIS time offset that cannot be read (not subtracted)", example)
        return 0.0
    starts = [event.start for event in observation.events]
    ends = [event.end for event in observation.events]
    included = _fits(starts, ends, offset, observation.duration)
    excluded = _fits(starts, ends, 0.0, observation.duration)
    if not offset or (excluded and not included):
        if offset:
            report.join("BORIS time offset that the times do not include (not subtracted)", example)
        return 0.0
    if not included:
        report.keep("BORIS time offset that does not fit the times (not subtracted)", example)
        return 0.0
    # Without durations, times that begin soon after the offset are clear enough.
    if excluded and (observation.duration or min(starts) > 2 * offset):
        kind = "BORIS time offset that the times may not include (subtracted, as BORIS adds it)"
        report.keep(kind, example)
    return offset


def _fits(
    starts: Sequence[float], ends: Sequence[float], offset: float, duration: float | None
) -> bool:
    """Return whether all times minus an offset are in media of this duration."""
    last = max(ends) - offset
    return min(starts) - offset >= -_ROUNDING and (
        duration is None or last <= duration + _TOLERANCE
    )


def _pieces(media: list[_Media], start: float, end: float) -> list[tuple[_Media, float, float]]:
    """Return the parts of an action in consecutive media files, in the times of each.

    A point event at a border is in the later file; what lies beyond the last file stays in it.
    """
    begins = [0.0, *accumulate(file.duration or 0.0 for file in media[:-1])]
    number = max(0, bisect_right(begins, start) - 1)
    pieces = []
    while number + 1 < len(media) and end > begins[number + 1]:
        pieces.append((number, start, begins[number + 1]))
        number += 1
        start = begins[number]
    pieces.append((number, start, end))
    if len(pieces) > 1:  # borders are rounded
        pieces = [piece for piece in pieces if piece[2] - piece[1] > _ROUNDING] or pieces[:1]
    return [
        (media[number], round(first - begins[number], 6), round(last - begins[number], 6))
        for number, first, last in pieces
    ]
