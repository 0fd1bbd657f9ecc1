"""Read files of ELAN (`.eaf`, format 2.7 to 3.0), such as corrected detections of `detect`.

The class is the text of an annotation, or the name of the tier if that is empty, as in ELAN's text
exports (elan.py). A file is one video, named by the first video among its media files, otherwise
by itself.
"""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree as ET

from msgspec import Struct

from mstemba.data_manifests.readers import elan
from mstemba.data_manifests.readers.parsed import (
    AnnotationReport,
    ParsedAnnotations,
    RawAction,
    plain_text,
)
from mstemba.data_manifests.readers.tables import file_path
from mstemba.data_manifests.readers.text import FALLBACK, decode_text, report_fallback
from mstemba.errors import ManifestError
from mstemba.reading.files import check_memory, read_bytes
from mstemba.reading.typed import Name, parse_json, shown

SUFFIX = ".eaf"
VIDEO_PROPERTY = "mstemba-video"
"""Property with the id and file name of the video, where the name alone is ambiguous."""
_UNIT = "milliseconds"
_DECLARATION = re.compile(r"\A\s*<\?xml.*?\?>", re.DOTALL)
_OF_A_TAG, _OF_AN_ATTRIBUTE = 150, 350
"""Bytes that Python takes for a tag and for its first attribute."""


class _WrittenVideo(Struct):
    """The value of VIDEO_PROPERTY."""

    id: Name
    file: str


def read_eaf(path: Path, parsed: ParsedAnnotations) -> None:
    """Read a file of ELAN. Raises ManifestError for other files.

    Annotations of dependent tiers without times of their own only describe other annotations: they
    are ignored. Other annotations without times are skipped.
    """
    document = _parse(path, parsed.report)
    parsed.time_unit, parsed.seconds_of = "seconds", "ELAN"
    slots = _times(path, document)
    name, offset = _video(path, document, parsed)
    video = parsed.video(name)
    for tier in document.iterfind("TIER"):
        tier_id = plain_text(tier.get("TIER_ID", ""))
        if not parsed.wants_tier(tier_id):
            continue
        for annotation in tier.iterfind("ANNOTATION/*"):
            where = f"in {path.name}, annotation {annotation.get('ANNOTATION_ID')}"
            value = annotation.find("ANNOTATION_VALUE")
            label = "" if value is None else "".join(value.itertext()).strip()
            label = label or tier_id
            start, end = (slots.get(annotation.get(f"TIME_SLOT_REF{n}")) for n in (1, 2))
            if label and start is not None and end is not None:
                action = RawAction(label, start, end, where, path, tier_id)
                video.actions.append(elan.move(action, offset, parsed.report))
            elif tier.get("PARENT_REF"):
                kind = "ELAN annotation of a dependent tier without times of its own"
                parsed.report.ignore(kind, f"{shown(label)} {where}")
            else:
                kind = "ELAN annotation without times of its own"
                parsed.report.skip(kind, f"{shown(label)} {where}")


def _times(path: Path, document: ET.Element) -> dict[str | None, float | None]:
    """Return the times in seconds by the names of their slots; None for a slot without a time."""
    times: dict[str | None, float | None] = {}
    for slot in document.iterfind("TIME_ORDER/TIME_SLOT"):
        name, time = slot.get("TIME_SLOT_ID"), slot.get("TIME_VALUE", "")
        if name in times:
            raise ManifestError(f"{path}: two time slots {shown(name)}; save it again in ELAN")
        times[name] = float(time) / 1000 if time.isdecimal() else None
    return times


def _parse(path: Path, report: AnnotationReport) -> ET.Element:
    raw = read_bytes(path, ManifestError)
    memory = _OF_A_TAG * raw.count(b"<") + _OF_AN_ATTRIBUTE * raw.count(b"=")
    check_memory(str(path), len(raw), memory, ManifestError)
    try:
        document = _from_bytes(path, raw, report)
    except (ET.ParseError, ValueError, LookupError) as error:
        raise ManifestError(f"{path}: not readable as XML: {error}") from None
    header = document.find("HEADER")
    if document.tag != "ANNOTATION_DOCUMENT" or header is None:
        raise ManifestError(
            f"{path}: found <{document.tag[:80]}>, expected ELAN's ANNOTATION_DOCUMENT"
        )
    if (unit := header.get("TIME_UNITS", _UNIT)) != _UNIT:
        raise ManifestError(
            f"{path}: time unit {shown(unit)}, expected {_UNIT}; save it again in ELAN"
        )
    return document


def _from_bytes(path: Path, raw: bytes, report: AnnotationReport) -> ET.Element:
    try:
        return _from_xml(raw)
    except ET.ParseError:
        text, encoding = decode_text(raw)
        if encoding == "utf-8":
            raise
        # Some programs declare an encoding, or none, and write another.
        document = _from_xml(_DECLARATION.sub("", text, count=1))
        if encoding == FALLBACK:
            report_fallback(path, text, report)
        return document


def _from_xml(text: str | bytes) -> ET.Element:
    parser = ET.XMLParser(target=_WithoutEntities())
    parser.feed(text)
    document: ET.Element = parser.close()
    return document


class _WithoutEntities(ET.TreeBuilder):
    """Refuses a document type: ELAN writes none, and its entities may expand without end."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ValueError(f"it declares a document type {shown(name)}; expected none")


def _video(path: Path, document: ET.Element, parsed: ParsedAnnotations) -> tuple[str, int]:
    """Return the name of the video, and its offset in milliseconds."""
    descriptors = document.findall("HEADER/MEDIA_DESCRIPTOR")
    media = [
        _media(descriptor, url, f"in {path.name}")
        for descriptor in descriptors
        if (url := descriptor.get("RELATIVE_MEDIA_URL") or descriptor.get("MEDIA_URL"))
    ]
    if not any(file.is_video for file in media):
        # Sound may have been extracted from a video that is not linked itself.
        media += [
            _media(descriptor, url, f"in {path.name}")
            for descriptor in descriptors
            if (url := descriptor.get("EXTRACTED_FROM"))
        ]
    if not media:
        return parsed.file_name(path), 0
    chosen = elan.choose_media(media, parsed.report)
    file, written = file_path(unquote(chosen.url), path), _written_id(document, chosen.url)
    if written:
        parsed.ids.add(written)
        parsed.video(written).set_media(file, f"in {path.name}", parsed.report)
    return written or elan.without_sound(file, chosen.where, parsed.report), chosen.offset


def _media(descriptor: ET.Element, url: str, where: str) -> elan.Media:
    is_video = descriptor.get("MIME_TYPE", "").startswith("video/") or elan.is_video(url)
    return elan.Media(url, descriptor.get("TIME_ORIGIN", "0"), where, is_video)


def _written_id(document: ET.Element, url: str) -> str:
    """Return the id that `detect` wrote; empty if there is none or the media file has changed."""
    name = f"HEADER/PROPERTY[@NAME='{VIDEO_PROPERTY}']"
    content = (document.findtext(name) or "").encode(errors="replace")
    try:
        written = parse_json(content, _WrittenVideo, name, ManifestError)
    except ManifestError:
        return ""
    return written.id if written.file == re.split(r"[/\\]", url)[-1] else ""
