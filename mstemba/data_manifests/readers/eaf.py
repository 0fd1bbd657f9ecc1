"""ELAN's own files (`.eaf`), of format 2.7 to 3.0: what `mstemba detect` writes, corrected in ELAN.

The class is the annotation's text, or the tier's name where an annotation is empty, as in ELAN's
text exports (elan.py). A file is one video, named by its first media file, else by itself.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree as ET

from mstemba.data_manifests.manifest import files_below
from mstemba.data_manifests.readers.parsed import ParsedAnnotations, ParsedVideo, RawAction, Report
from mstemba.data_manifests.readers.tables import media_id, media_path, video_id
from mstemba.errors import ManifestError

SUFFIX = ".eaf"
VIDEO_PROPERTY = "mstemba-video"
"""A property by which `detect` says the id, and the file's name, where the name alone misleads."""
_UNIT = "milliseconds"


def eaf_files(folder: Path) -> list[Path]:
    """The files of ELAN below a folder, in order."""
    return files_below(
        folder, lambda file: file.suffix.lower() == SUFFIX and not file.name.startswith(".")
    )


def read_eaf(path: Path, found: ParsedAnnotations, report: Report) -> None:
    """Read a file of ELAN. Raises ManifestError when it is none.

    Annotations of dependent tiers without times of their own, which say more about others, are
    counted and passed over; others without times are left out.
    """
    document = _parse(path)
    found.time_unit = "seconds"
    slots = {
        slot.get("TIME_SLOT_ID"): slot.get("TIME_VALUE", "")
        for slot in document.iterfind("TIME_ORDER/TIME_SLOT")
    }
    entry = _video(path, document, found, report)
    for tier in document.iterfind("TIER"):
        for annotation in tier.iterfind("ANNOTATION/*"):
            where = f"in {path.name}, annotation {annotation.get('ANNOTATION_ID')}"
            label = (annotation.findtext("ANNOTATION_VALUE") or "").strip()
            label = label or tier.get("TIER_ID", "")
            times = [slots.get(annotation.get(f"TIME_SLOT_REF{n}"), "") for n in (1, 2)]
            if label and all(time.isdecimal() for time in times):
                start, end = (int(time) / 1000 for time in times)
                entry.actions.append(RawAction(label, start, end, where, path))
            elif tier.get("PARENT_REF"):
                kind = "ELAN annotation of a dependent tier without times of its own"
                report.count(report.passed_over, kind, f"{label!r} {where}")
            else:
                kind = "ELAN annotation without times of its own"
                report.count(report.left_out, kind, f"{label!r} {where}")


def _parse(path: Path) -> ET.Element:
    try:
        document = ET.parse(path).getroot()
    except FileNotFoundError:
        raise ManifestError(f"{path}: no such file") from None
    except (OSError, ET.ParseError, ValueError, LookupError) as error:
        raise ManifestError(f"{path}: not readable as XML: {error}") from None
    header = document.find("HEADER")
    if document.tag != "ANNOTATION_DOCUMENT" or header is None:
        raise ManifestError(f"{path}: found <{document.tag}>, expected ELAN's ANNOTATION_DOCUMENT")
    if (unit := header.get("TIME_UNITS", _UNIT)) != _UNIT:
        raise ManifestError(f"{path}: time unit {unit!r}, expected {_UNIT}; save it anew in ELAN")
    return document


def file_name(url: str) -> str:
    """The last part of a path or URL of any system."""
    return re.split(r"[/\\]", url)[-1]


def named_video(url: str) -> str:
    """The id of the video that ELAN names so, with percent signs or without."""
    return media_id(unquote(url))


def _video(
    path: Path, document: ET.Element, found: ParsedAnnotations, report: Report
) -> ParsedVideo:
    media = document.find("HEADER/MEDIA_DESCRIPTOR")
    if media is None:
        return found.entry(video_id(path.stem, found.known))
    if media.get("TIME_ORIGIN", "0") != "0":
        example = f"{media.get('TIME_ORIGIN')!r} in {path.name}"
        report.count(report.kept, "ELAN media file with an offset", example)
    url = media.get("RELATIVE_MEDIA_URL") or media.get("MEDIA_URL") or path.stem
    entry = found.entry(_told_id(document, url) or media_id(unquote(url), found.known))
    entry.told_of(media_path(url, path), f"in {path.name}", report)
    return entry


def _told_id(document: ET.Element, url: str) -> str:
    """The id that `detect` wrote; empty where there is none, or the media file is another one."""
    name = f"HEADER/PROPERTY[@NAME='{VIDEO_PROPERTY}']"
    try:
        told = json.loads(document.findtext(name) or "{}")
        same = file_name(url) == told["file"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""
    return str(told["id"]) if same and told.get("id") else ""
