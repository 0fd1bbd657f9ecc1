"""Event exports of BORIS (boris.unito.it), CSV or TSV.

"Aggregated events" have one row an action: `Behavior`, `Start (s)`, `Stop (s)`. "Tabular events"
have a row for the start and one for the end: `Behavior`, `Time`, and START, STOP or POINT in
`Behavior type` (`Status` before version 8, below some lines about the observation).

The class is the behaviour; subject and modifiers are not part of it. A point event is an action
without length. Times count from the start of the observation.
"""

from __future__ import annotations

import re

from mstemba.data_manifests.readers.parsed import ParsedAnnotations, Report
from mstemba.data_manifests.readers.tables import (
    Row,
    Table,
    add_action,
    malformed,
    media_id,
    media_path,
    parse_duration,
    without_apostrophe,
)

_START = ("start (s)", "start (seconds)")
_STOP = ("stop (s)", "stop (seconds)")
_STATUS = ("status", "behavior type")
_MEDIA = ("media file name", "media file", "media file path")
_DURATION = ("media duration (s)", "total length")
_PLAYER = re.compile(r"player #\d+: ?", re.IGNORECASE)
DETECTIONS = "detections of mstemba"
"""What `detect` writes as the description: its observation is named after the video."""
_NONE = frozenset({"", "na", "not found", "live observation"})


def is_aggregated(header: tuple[str, ...]) -> bool:
    """Whether these are the columns of aggregated events."""
    has = set(header).intersection
    return "behavior" in header and bool(has(_START)) and bool(has(_STOP))


def is_tabular(header: tuple[str, ...]) -> bool:
    """Whether these are the columns of tabular events."""
    return {"behavior", "time"} <= set(header) and bool(set(header).intersection(_STATUS))


def read_aggregated(table: Table, found: ParsedAnnotations, report: Report) -> None:
    """Read aggregated events, of one observation or of several."""
    columns = _Columns(table)
    start, stop = table.column(*_START), table.column(*_STOP)
    for row in table.rows[1:]:
        id = columns.video(row, found, report)
        # A point event has no stop in some versions.
        end = row[start] if row[stop].casefold() in _NONE else row[stop]
        add_action(found.entry(id), report, row, row[columns.behavior], row[start], end)


def read_tabular(table: Table, found: ParsedAnnotations, report: Report) -> None:
    """Read tabular events: a STOP ends the START of its subject, behaviour and modifiers."""
    columns = _Columns(table)
    time, status = table.column("time"), table.column(*_STATUS)
    begun: dict[tuple[str, ...], tuple[Row, str]] = {}
    for row in table.rows[1:]:
        id = columns.video(row, found, report)
        key = (id, *(row[column] for column in columns.same))
        what = row[status].upper()
        if what == "START" and key not in begun:
            begun[key] = row, row[time]
        elif what == "STOP" and key in begun:
            first, start = begun.pop(key)
            add_action(found.entry(id), report, first, columns.label(first), start, row[time])
        elif what == "POINT":
            add_action(found.entry(id), report, row, columns.label(row), row[time], row[time])
        elif what in ("START", "STOP"):
            example = f"{row[columns.behavior]!r} {row.where}"
            report.count(report.left_out, f"BORIS {what} without its partner", example)
        else:
            malformed(report, row)
    for row, _ in begun.values():
        example = f"{row[columns.behavior]!r} {row.where}"
        report.count(report.left_out, "BORIS START without its partner", example)


class _Columns:
    """Where BORIS' columns are, and what video a row belongs to."""

    def __init__(self, table: Table) -> None:
        self.behavior = table.column("behavior")
        modifiers = [c for c in table.header if c.casefold().startswith("modifier")]
        names = ["observation id", "subject", "behavior", *modifiers]
        self.same = [c for name in names if (c := table.column(name)) is not None]
        """What a START and its STOP have in common."""
        self._observation = table.column("observation id")
        self._description = table.column("description")
        self._source = table.column("source")
        self._media = [c for name in _MEDIA if (c := table.column(name)) is not None]
        self._duration = table.column(*_DURATION)
        self._offset = table.column("time offset (s)")
        self._name = table.path.stem
        self._told: set[str] = set()

    def video(self, row: Row, found: ParsedAnnotations, report: Report) -> str:
        """The row's video: its media file, or the observation where that is several files."""
        # The players show the same time from several views; the first one is taken.
        source = _PLAYER.sub("", row[self._source].split("|")[0])
        named = [row[column] for column in self._media if row[column].casefold() not in _NONE]
        if self._is_detection(row):
            id = without_apostrophe(row[self._observation])
        elif ";" in source:
            id = row[self._observation] or self._name
            self._tell(id, "BORIS observation of several media files in a row", row, report)
        elif named or source.casefold() not in _NONE:
            id = media_id((named or [source])[0], found.known)
        else:
            id = row[self._observation] or self._name
        entry = found.entry(id)
        if self._is_detection(row) and named:
            entry.told_of(media_path(named[0], row.file), row.where, report)
        entry.duration = entry.duration or parse_duration(row[self._duration])
        if row[self._offset].strip("0.") not in ("", "NA"):
            self._tell(id, "BORIS observation with a time offset", row, report)
        return id

    def label(self, row: Row) -> str:
        """The row's behaviour."""
        label = row[self.behavior]
        return without_apostrophe(label) if self._is_detection(row) else label

    def _is_detection(self, row: Row) -> bool:
        return row[self._description] == DETECTIONS and bool(row[self._observation])

    def _tell(self, id: str, kind: str, row: Row, report: Report) -> None:
        """Count a video once."""
        if f"{kind} {id}" not in self._told:
            self._told.add(f"{kind} {id}")
            report.count(report.kept, kind, f"{id!r} {row.where}")
