"""Read text files in the encodings that programs and spreadsheets write."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from mstemba.data_manifests.readers.parsed import AnnotationReport
from mstemba.errors import ManifestError
from mstemba.reading.files import check_memory, read_bytes

_BYTE_ORDER_MARKS = (
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
# Control characters that no text has; some programs end a file with \x1a.
_BINARY = re.compile(rb"[\x00-\x08\x0e-\x19\x1c-\x1f\x7f]")
_SAMPLE = 4096
_LINE = re.compile(r"[^\r\n]*(?:\r\n?|\n)|[^\r\n]+")
_NOT_ASCII, _AROUND = re.compile(r"[^\x00-\x7f]"), re.compile(r".{0,30}[^\x00-\x7f].{0,30}")
# Bytes that Python takes for an action with its place in a file, from reading it to writing the
# manifest, and for a cell of a table.
_OF_AN_ENTRY, _OF_A_VALUE = 500, 60
FALLBACK = "cp1252"
"""Encoding of text that is not Unicode, as spreadsheets write it in western languages."""


def decode_text(raw: bytes) -> tuple[str, str]:
    """Decode UTF-8, UTF-16 with or without a byte order mark, or Windows-1252.

    Returns:
        The text without a byte order mark, and the encoding as Python calls it.

    Raises:
        ValueError: The bytes are not text, or the file ends in the middle of a character.
    """
    for mark, encoding in _BYTE_ORDER_MARKS:
        if raw.startswith(mark):
            return raw.decode(encoding), encoding
    if utf_16 := _utf_16_without_mark(raw):
        return raw.decode(utf_16), utf_16
    try:
        return raw.decode("utf-8-sig"), "utf-8"
    except UnicodeDecodeError as error:
        if _BINARY.search(raw):
            raise ValueError("it has bytes that no text has") from None
        if error.end >= len(raw) and error.reason == "unexpected end of data" and error.start > 0:
            last = raw[: error.start]
            if not last.isascii():
                raise ValueError("it ends in the middle of a character: it was cut off") from None
    return raw.decode(FALLBACK), FALLBACK


def _utf_16_without_mark(raw: bytes) -> str | None:
    """Return the byte order of UTF-16 without a mark: every second byte of most letters is 0."""
    sample = raw[:_SAMPLE]
    if len(sample) < 4:
        return None
    for encoding, high, low in (("utf-16-le", 1, 0), ("utf-16-be", 0, 1)):
        zeros, letters = sample[high::2].count(0), sample[low::2]
        if 2 * zeros > len(letters) and 0 not in letters:
            return encoding
    return None


def read_text(path: Path, report: AnnotationReport) -> str:
    """Read a text file, and report an encoding that is a guess.

    Raises ManifestError if the file is missing, cannot be opened, is too large or is not text.
    """
    try:
        text, encoding = decode_text(read_bytes(path, ManifestError))
    except ValueError as error:
        raise ManifestError(f"{path}: not readable as text: {error}") from None
    if encoding == FALLBACK:
        report_fallback(path, text, report)
    return text


def split_lines(text: str) -> Iterator[str]:
    """Yield the lines of a text with their ends, which are those of files alone."""
    return (found[0] for found in _LINE.finditer(text))


def check_entries(path: Path, text: str, entries: int, values: int = 0) -> None:
    """Raise ManifestError if the entries of a text would take too much memory.

    Args:
        path: The file, for the message.
        text: Its content.
        entries: How many actions it may have.
        values: How many other texts and numbers.
    """
    memory = len(text) + sys.getsizeof(text) + _OF_AN_ENTRY * entries + _OF_A_VALUE * values
    check_memory(str(path), len(text), memory, ManifestError)


def report_fallback(path: Path, text: str, report: AnnotationReport) -> None:
    """Report a text that was read as Windows-1252, which does not say so itself."""
    first = next(_NOT_ASCII.finditer(text)).start()
    around = next(_AROUND.finditer(text, max(0, first - 30)))[0].strip()
    kind = "file that is not UTF-8, read as Windows-1252 (if it looks wrong, save it as UTF-8)"
    report.join(kind, f"{around!r} in {path.name}")
