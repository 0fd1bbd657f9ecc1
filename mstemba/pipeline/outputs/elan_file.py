"""EAF: the XML of ELAN (archive.mpi.nl/tla/elan), format 3.0; a tier for each detected class."""

from __future__ import annotations

import json
import mimetypes
import re
from itertools import groupby
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree as ET

from mstemba.data_manifests.readers.eaf import VIDEO_PROPERTY
from mstemba.data_manifests.video_names import without_ending
from mstemba.pipeline.caching.files import write_atomically
from mstemba.pipeline.outputs.detection import Detection
from mstemba.pipeline.outputs.fields import distinct, media_path, milliseconds
from mstemba.records import Segment

_SCHEMA = "http://www.mpi.nl/tools/elan/EAFv3.0.xsd"
_SCHEMA_ATTRIBUTE = "{http://www.w3.org/2001/XMLSchema-instance}noNamespaceSchemaLocation"
_TYPE = "default-lt"
# The schema requires a date; the current one would make files of equal detections differ.
_DATE = "1970-01-01T00:00:00+00:00"
# XML readers turn a carriage return into a line feed.
_NOT_XML = re.compile("[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def write_eaf(detection: Detection, path: Path) -> None:
    """Write a tier for each class, with times in whole milliseconds.

    Two annotations of one tier cannot overlap in ELAN; segments of one class never do.
    """
    ordered = sorted(detection.segments, key=lambda segment: segment.class_id)
    # Two for each segment: ELAN would move segments that share one.
    slots = [time for segment in ordered for time in milliseconds(segment)]
    document = ET.Element(
        "ANNOTATION_DOCUMENT",
        {"AUTHOR": "mstemba", "DATE": _DATE, "FORMAT": "3.0", "VERSION": "3.0"}
        | {_SCHEMA_ATTRIBUTE: _SCHEMA},
    )
    header = ET.SubElement(document, "HEADER", MEDIA_FILE="", TIME_UNITS="milliseconds")
    # ELAN does not percent-encode the paths in its URLs.
    video = Path(detection.scores.video)
    url = xml_text(media_path(detection.scores.video, path))
    ET.SubElement(
        header,
        "MEDIA_DESCRIPTOR",
        MEDIA_URL=xml_text(f"file:///{video.absolute().as_posix().lstrip('/')}"),
        MIME_TYPE=mimetypes.guess_type(video.name)[0] or "unknown",
        RELATIVE_MEDIA_URL=url,
    )
    file, shown = (re.split(r"[/\\]", text)[-1] for text in (url, unquote(url)))
    if (id := detection.id or path.stem) != without_ending(shown):
        # Names the video as long as the media file is not replaced by another one.
        about = json.dumps({"id": id, "file": file})
        ET.SubElement(header, "PROPERTY", NAME=VIDEO_PROPERTY).text = about
    ET.SubElement(header, "PROPERTY", NAME="lastUsedAnnotationId").text = str(len(ordered))
    times = ET.SubElement(document, "TIME_ORDER")
    for time, slot in sorted(zip(slots, range(len(slots)), strict=True)):
        ET.SubElement(times, "TIME_SLOT", TIME_SLOT_ID=f"ts{slot + 1}", TIME_VALUE=str(time))
    _add_tiers(document, ordered, detection.scores.classes)
    ET.SubElement(
        document,
        "LINGUISTIC_TYPE",
        GRAPHIC_REFERENCES="false",
        LINGUISTIC_TYPE_ID=_TYPE,
        TIME_ALIGNABLE="true",
    )
    ET.indent(document)
    content = ET.tostring(document, encoding="UTF-8", xml_declaration=True) + b"\n"
    write_atomically(path, lambda temporary: temporary.write_bytes(content))


def _add_tiers(document: ET.Element, segments: list[Segment], classes: tuple[str, ...]) -> None:
    """Add a tier for each class that has a segment; `segments` are in the order of the classes."""
    # ELAN identifies a tier by its name.
    names = distinct(xml_text(name) for name in classes)
    numbered = enumerate(segments, 1)
    for class_id, of_class in groupby(numbered, key=lambda item: item[1].class_id):
        tier = ET.SubElement(document, "TIER", LINGUISTIC_TYPE_REF=_TYPE, TIER_ID=names[class_id])
        for number, segment in of_class:
            annotation = ET.SubElement(
                ET.SubElement(tier, "ANNOTATION"),
                "ALIGNABLE_ANNOTATION",
                ANNOTATION_ID=f"a{number}",
                TIME_SLOT_REF1=f"ts{2 * number - 1}",
                TIME_SLOT_REF2=f"ts{2 * number}",
            )
            ET.SubElement(annotation, "ANNOTATION_VALUE").text = xml_text(segment.label)


def xml_text(text: str) -> str:
    r"""Return the text with Python escapes for what XML cannot hold: `\x07`, `\udce9`."""
    return _NOT_XML.sub(lambda found: repr(found[0])[1:-1], text)
