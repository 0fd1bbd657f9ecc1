"""Read event exports of BORIS (boris.unito.it), CSV or TSV.

"Aggregated events" have one row per action: `Behavior`, `Start (s)`, `Stop (s)`. "Tabular events"
have one row for the start and one for the end: `Behavior`, `Time`, and START, STOP or POINT in
`Behavior type` (`Status` before version 8, below some lines about the observation).

The class is the behaviour, without subject and modifiers. A point event is an action without
length. Times count from the start of the observation.
"""

from __future__ import annotations

import re

from mstemba.data_manifests.readers.parsed import ParsedAnnotations
from mstemba.data_manifests.readers.tables import (
    Row,
    Table,
    add_action,
    file_path,
    malformed,
    parse_duration,
    unescape_formula,
)

_START = ("start (s)", "start (seconds)")
_STOP = ("stop (s)", "stop (seconds)")
_STATUS = ("status", "behavior type")
AGGREGATED_COLUMNS = (("behavior",), _START, _STOP)
TABULAR_COLUMNS = (("behavior",), ("time",), _STATUS)
_MEDIA = ("media file name", "media file", "media file path")
_DURATION = ("media duration (s)", "total length")
_PLAYER = re.compile(r"player #\d+: ?", re.IGNORECASE)
DETECTIONS = "detections of mstemba"
"""Description in the files that `detect` writes; their observation is the id of the video."""
_NONE = frozenset({"", "na", "not found", "live observation"})


def read_aggregated(table: Table, parsed: ParsedAnnotations) -> None:
    """Read aggregated events of one or several observations."""
    columns = _Columns(table)
    start, stop = table.column(*_START), table.column(*_STOP)
    for row in table.rows[1:]:
        name = columns.video_name(row, parsed)
        # In some versions a point event has no stop.
        end = row[start] if row[stop].casefold() in _NONE else row[stop]
        add_action(parsed, name, row, row[columns.behavior], row[start], end)


def read_tabular(table: Table, parsed: ParsedAnnotations) -> None:
    """Read tabular events: a STOP ends the START with the same subject, behaviour and modifiers."""
    columns = _Columns(table)
    time, status = table.column("time"), table.column(*_STATUS)
    begun: dict[tuple[str, ...], tuple[Row, str]] = {}
    for row in table.rows[1:]:
        name = columns.video_name(row, parsed)
        key = (name, *(row[column] for column in columns.same))
        what = row[status].upper()
        if what == "START" and key not in begun:
            begun[key] = row, row[time]
        elif what == "STOP" and key in begun:
            first, start = begun.pop(key)
            add_action(parsed, name, first, columns.label(first), start, row[time])
        elif what == "POINT":
            add_action(parsed, name, row, columns.label(row), row[time], row[time])
        elif what in ("START", "STOP"):
            example = f"{row[columns.behavior]!r} {row.where}"
            parsed.report.skip(f"BORIS {what} without its partner", example)
        else:
            malformed(parsed, row)
    for row, _ in begun.values():
        example = f"{row[columns.behavior]!r} {row.where}"
        parsed.report.skip("BORIS START without its partner", example)


class _Columns:
    """The columns of an export of BORIS."""

    def __init__(self, table: Table) -> None:
        self.behavior = table.column("behavior")
        modifiers = [c for c in table.header if c.casefold().startswith("modifier")]
        names = ["observation id", "subject", "behavior", *modifiers]
        self.same = [c for name in names if (c := table.column(name)) is not None]
        """Columns that a START and its STOP have in common."""
        self._observation = table.column("observation id")
        self._description = table.column("description")
        self._source = table.column("source")
        self._media = [c for name in _MEDIA if (c := table.column(name)) is not None]
        self._duration = table.column(*_DURATION)
        self._offset = table.column("time offset (s)")
        self._name = table.path.stem
        self._reported: set[str] = set()

    def video_name(self, row: Row, parsed: ParsedAnnotations) -> str:
        """Return the name of a row's video: of its media file, or of an observation of several."""
        # Several players show the same time from different views: take the first.
        source = _PLAYER.sub("", row[self._source].split("|")[0])
        named = [row[column] for column in self._media if row[column].casefold() not in _NONE]
        if self._is_detection(row):
            name = unescape_formula(row[self._observation])
            parsed.ids.add(name)
        elif ";" in source:
            name = row[self._observation] or self._name
            self._keep(name, "BORIS observation of several consecutive media files", row, parsed)
        elif named or source.casefold() not in _NONE:
            name = file_path((named or [source])[0], row.file)
        else:
            name = row[self._observation] or self._name
        video = parsed.video(name)
        if self._is_detection(row) and named:
            video.set_media(file_path(named[0], row.file), row.where, parsed.report)
        video.duration = video.duration or parse_duration(row[self._duration])
        if row[self._offset].strip("0.") not in ("", "NA"):
            self._keep(name, "BORIS observation with a time offset", row, parsed)
        return name

    def label(self, row: Row) -> str:
        """Return the behaviour of a row."""
        label = row[self.behavior]
        return unescape_formula(label) if self._is_detection(row) else label

    def _is_detection(self, row: Row) -> bool:
        return row[self._description] == DETECTIONS and bool(row[self._observation])

    def _keep(self, name: str, kind: str, row: Row, parsed: ParsedAnnotations) -> None:
        """Report a problem once per video."""
        if f"{kind} {name}" not in self._reported:
            self._reported.add(f"{kind} {name}")
            parsed.report.keep(kind, f"{name!r} {row.where}")
