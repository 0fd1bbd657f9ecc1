"""EDL and OTIO: the segments as markers on the video, for video editing programs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mstemba.pipeline.caching.files import to_json, write_text
from mstemba.pipeline.outputs.detection import Detection
from mstemba.pipeline.outputs.fields import clock, distinct, media_url, milliseconds
from mstemba.pipeline.progress import one_line
from mstemba.records import Segment

# Colours that both formats have; neighbouring classes differ.
COLOURS = ("BLUE", "YELLOW", "MAGENTA", "GREEN", "RED", "CYAN", "WHITE")
# Frame rates of timecodes by those of videos; NTSC is slower by a factor of 1000/1001.
_RATES = {rate * slower: rate for rate in (24, 25, 30, 48, 50, 60) for slower in (1, 1000 / 1001)}
_OTHER_RATE = 25
_SURROGATE = re.compile("[\ud800-\udfff]")


def write_edl(detection: Detection, path: Path) -> None:
    """Write a CMX 3600 list: one event, the whole video, with a `* LOC:` marker for each segment.

    Such a marker has a frame but no length, so its text has start and end in seconds, and the
    score. Timecodes count from 00:00:00:00, the video's start, without drop frames.
    """
    scores = detection.scores
    fps, rate = timecode_rate(scores.fps)
    whole = f"{timecode(0, rate)} {timecode(max(1, round(scores.duration * fps)), rate)}"
    name = one_line(Path(scores.video).name)
    lines = [
        f"TITLE: {name}",
        "FCM: NON-DROP FRAME",
        f"001  AX       V     C        {whole} {whole}",
        f"* FROM CLIP NAME: {name}",
        f"* TIMECODES COUNT {rate} FRAMES A SECOND",
    ]
    names = distinct(one_line(label) for label in scores.classes)
    for segment in detection.segments:
        start, end = (time / 1000 for time in milliseconds(segment))
        text = f"{names[segment.class_id]} [{start:.3f}-{end:.3f} s, {segment.score:.2f}]"
        at = timecode(round(start * fps), rate)
        lines.append(f"* LOC: {at} {_colour(segment.class_id):7} {text}")
    write_text(path, "\n".join(lines) + "\n")


def timecode_rate(fps: float) -> tuple[float, int]:
    """Return the frames in a second, and the frames that a timecode counts in a second.

    For a rate that editing programs do not have, both are 25.
    """
    near = min(_RATES, key=lambda known: abs(known - fps))
    return (near, _RATES[near]) if abs(near - fps) < 0.01 else (_OTHER_RATE, _OTHER_RATE)


def timecode(frame: int, rate: int) -> str:
    """Return the time of a frame as `hours:minutes:seconds:frames`."""
    return f"{clock(frame // rate)}:{frame % rate:02d}"


def write_otio(detection: Detection, path: Path) -> None:
    """Write OpenTimelineIO's JSON: a track with the video as its clip, and markers on the clip.

    Times are whole milliseconds; a marker's metadata has class number and score.
    """
    scores = detection.scores
    whole = _range(0, max(1, round(1000 * scores.duration)))
    media = _object(
        "ExternalReference.1", target_url=media_url(scores.video, path), available_range=whole
    )
    clip = _object(
        "Clip.2",
        name=Path(scores.video).name,
        source_range=whole,
        media_references={"DEFAULT_MEDIA": media},
        active_media_reference_key="DEFAULT_MEDIA",
        markers=[_marker(segment) for segment in detection.segments],
    )
    track = _object("Track.1", name="video", kind="Video", children=[clip])
    timeline = _object(
        "Timeline.1",
        name=detection.id or Path(scores.video).stem,
        tracks=_object("Stack.1", name="tracks", children=[track]),
        metadata={"mstemba": detection.provenance},
    )
    # OpenTimelineIO refuses lone surrogates, which stand for bytes that are not text.
    text = _SURROGATE.sub(lambda found: "\\" + repr(found[0])[1:-1], to_json(timeline))
    write_text(path, text)


def _marker(segment: Segment) -> dict[str, Any]:
    start, end = milliseconds(segment)
    own = {"class_id": segment.class_id, "score": round(segment.score, 6)}
    return _object(
        "Marker.2",
        name=segment.label.replace("\0", r"\x00"),  # where its reader would stop
        color=_colour(segment.class_id),
        marked_range=_range(start, end - start),
        metadata={"mstemba": own},
    )


def _range(start: int, duration: int) -> dict[str, Any]:
    return _object("TimeRange.1", start_time=_time(start), duration=_time(duration))


def _time(milliseconds: int) -> dict[str, Any]:
    return _object("RationalTime.1", value=float(milliseconds), rate=1000.0)


def _object(schema: str, **fields: Any) -> dict[str, Any]:
    return {"OTIO_SCHEMA": schema, **fields}


def _colour(class_id: int) -> str:
    return COLOURS[class_id % len(COLOURS)]
