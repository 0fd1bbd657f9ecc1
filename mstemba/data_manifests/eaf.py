"""ELAN's own files (`.eaf`), of format 2.7 to 3.0: what `mstemba detect` writes, corrected in ELAN.

The class is the annotation's text, or the tier's name where an annotation is empty, as in ELAN's
text exports (elan.py). A file is one video, named by its first media file, else by itself.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree as ET

from mstemba.data_manifests.reading import Found, Labelled, Report
from mstemba.data_manifests.tables import media_id, video_id
from mstemba.errors import ManifestError

SUFFIX = ".eaf"
_UNIT = "milliseconds"


def eaf_files(folder: Path) -> list[Path]:
    """The files of ELAN below a folder, in order."""
    return sorted(
        file
        for file in folder.rglob("*")
        if file.suffix.lower() == SUFFIX and not file.name.startswith(".") and file.is_file()
    )


def read_eaf(path: Path, found: Found, report: Report) -> None:
    """Read a file of ELAN. Raises ManifestError when it is none.

    Annotations without times of their own, as those of dependent tiers are, are counted and left
    out.
    """
    document = _parse(path)
    found.time_unit = "seconds"
    slots = {
        slot.get("TIME_SLOT_ID"): slot.get("TIME_VALUE", "")
        for slot in document.iterfind("TIME_ORDER/TIME_SLOT")
    }
    entry = found.entry(_video(path, document, report))
    for tier in document.iterfind("TIER"):
        for annotation in tier.iterfind("ANNOTATION/*"):
            where = f"in {path.name}, annotation {annotation.get('ANNOTATION_ID')}"
            label = (annotation.findtext("ANNOTATION_VALUE") or "").strip()
            label = label or tier.get("TIER_ID", "")
            times = [slots.get(annotation.get(f"TIME_SLOT_REF{n}"), "") for n in (1, 2)]
            if label and all(time.isdecimal() for time in times):
                start, end = (int(time) / 1000 for time in times)
                entry.actions.append(Labelled(label, start, end, where))
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


def _video(path: Path, document: ET.Element, report: Report) -> str:
    media = document.find("HEADER/MEDIA_DESCRIPTOR")
    if media is None:
        return video_id(path.stem)
    if media.get("TIME_ORIGIN", "0") != "0":
        example = f"{media.get('TIME_ORIGIN')!r} in {path.name}"
        report.count(report.kept, "ELAN media file with an offset", example)
    return media_id(unquote(media.get("RELATIVE_MEDIA_URL") or media.get("MEDIA_URL") or path.stem))
