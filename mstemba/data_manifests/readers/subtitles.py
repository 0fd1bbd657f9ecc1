"""Read subtitles, SubRip (.srt) and WebVTT (.vtt), such as those that `mstemba export` writes.

Each line of a subtitle is the class of an action. An action continues in the next subtitle if that
begins when the first one ends, also has the class, and differs in other classes. The file is named
like the video.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import NamedTuple

from mstemba.data_manifests.readers.parsed import ParsedAnnotations, RawAction
from mstemba.data_manifests.readers.text import check_entries, read_text, split_lines
from mstemba.errors import ManifestError
from mstemba.limits import LONGEST_NAME
from mstemba.reading.typed import shown

VTT_SUFFIX = ".vtt"
SUFFIXES = frozenset({".srt", VTT_SUFFIX})

_TIME = r"(?:(\d{1,6}):)?(\d{1,2}):(\d{1,2})[.,](\d{1,3})"
_TIMES = re.compile(rf"\s*{_TIME}\s*-->\s*{_TIME}(?:\s.*)?", re.ASCII)
_SIGNATURE = "WEBVTT"
_NOT_CUES = re.compile(r"(NOTE|STYLE|REGION|WEBVTT)\b")
_SRT_MARKUP = re.compile(r"</?[A-Za-z][^<>]*>|\{\\[^{}]*\}")
_VTT_MARKUP = re.compile(r"<[^<>]*>")
_LONGEST_LINE = 4 * LONGEST_NAME
"""Characters of a name with its markup."""


class _Cue(NamedTuple):
    """A subtitle."""

    start: float
    end: float
    labels: tuple[str, ...]
    where: str


def read_subtitles(path: Path, parsed: ParsedAnnotations) -> None:
    """Read a file of subtitles. Raises ManifestError if it is not text, or not WebVTT."""
    text = read_text(path, parsed.report)
    if path.suffix.lower() == VTT_SUFFIX and not text.startswith(_SIGNATURE):
        raise ManifestError(f"{path}: expected {_SIGNATURE} at the beginning of WebVTT")
    cues = text.count("-->")
    lines = text.count("\n") + text.count("\r")
    check_entries(path, text, max(cues, lines - 2 * cues))
    parsed.time_unit = "seconds"
    actions = parsed.video(parsed.file_name(path)).actions
    last: _Cue | None = None
    current: dict[str, int] = {}
    for cue in _cues(path, text, parsed):
        following: dict[str, int] = {}
        joins = last and last.end == cue.start and set(last.labels) != set(cue.labels)
        for label in cue.labels:
            if joins and label in current:
                following[label] = current[label]
                actions[current[label]] = actions[current[label]]._replace(end=cue.end)
                kind = "action that lasts for several subtitles, read as one"
                parsed.report.join(kind, f"{shown(label)} {cue.where}")
            else:
                following[label] = len(actions)
                actions.append(RawAction(label, cue.start, cue.end, cue.where, path))
        last, current = cue, following


def _cues(path: Path, text: str, parsed: ParsedAnnotations) -> Iterator[_Cue]:
    """Yield the subtitles; report malformed ones."""
    is_vtt = path.suffix.lower() == VTT_SUFFIX
    for number, lines in _blocks(text):
        where = f"in {path.name}, line {number}"
        # An identifier or a number may stand above the times.
        at = next((n for n, line in enumerate(lines[:2]) if _is_times(line)), None)
        if at is None and is_vtt and _NOT_CUES.match(lines[0]):
            continue
        if any(len(line) > _LONGEST_LINE for line in lines):
            at = None
        times = None if at is None else _TIMES.fullmatch(lines[at])
        labels = [] if at is None else [_plain(line, is_vtt) for line in lines[at + 1 :]]
        labels = list(dict.fromkeys(filter(None, labels)))
        if times is None or not labels:
            parsed.report.skip("malformed subtitle", f"{shown(' '.join(lines))} {where}")
            continue
        groups = times.groups()
        yield _Cue(_seconds(*groups[:4]), _seconds(*groups[4:]), tuple(labels), where)


def _blocks(text: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the number of the first line, and the lines, of every subtitle or other block.

    An empty line ends it, and so do the times of the next one, with the number above them.
    """
    lines: list[str] = []
    number, first = 0, 1
    for number, line in enumerate(split_lines(text), 1):
        if _is_times(line) and (len(lines) > 1 or any(map(_is_times, lines))):
            # If the subtitle above has no number, what ends it is a class, even `2`.
            numbered = not _is_times(lines[0]) and lines[-1].strip().isdigit()
            above = [lines.pop()] if numbered else []
            yield first, lines
            first, lines = number - len(above), above
        if line.strip():
            lines.append(line.rstrip("\r\n"))
        else:
            if lines:
                yield first, lines
            first, lines = number + 1, []
    if lines:
        yield first, lines


def _is_times(line: str) -> bool:
    """Return whether a line has the times of a subtitle, possibly malformed: no label has them."""
    return re.match(r"[\d:.,\s-]*-->", line) is not None


def _plain(line: str, is_vtt: bool) -> str:
    """Return a line without markup."""
    plain = unescape(_VTT_MARKUP.sub("", line)) if is_vtt else _SRT_MARKUP.sub("", line)
    return plain.strip()


def _seconds(hours: str | None, minutes: str, seconds: str, fraction: str) -> float:
    whole = (int(hours or 0) * 60 + int(minutes)) * 60 + int(seconds)
    return (whole * 1000 + int(fraction.ljust(3, "0"))) / 1000
