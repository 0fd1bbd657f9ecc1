"""EDL and OTIO: the segments as markers on the video, for video editing programs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mstemba.pipeline.caching.files import to_json, write_text
from mstemba.pipeline.outputs.detection import Detection
from mstemba.pipeline.outputs.fields import clock, distinct, media_url, milliseconds
from mstemba.pipeline.progress import one_line
from mstemba.records import Scores, Segment

# Colours that both formats have; neighbouring classes differ.
COLOURS = ("BLUE", "YELLOW", "MAGENTA", "GREEN", "RED", "CYAN", "WHITE")
# Frame rates of timecodes by those of videos; NTSC is slower by a factor of 1000/1001.
_RATES = {rate * slower: rate for rate in (24, 25, 30, 48, 50, 60) for slower in (1, 1000 / 1001)}
_OTHER_RATE = 25
_SAME_RATE = 0.01  # frames per second
_SURROGATE = re.compile("[\ud800-\udfff]")


def write_edl(detection: Detection, path: Path) -> None:
    """Write a CMX 3600 list: one event, the whole video, with a `* LOC:` marker for each segment.

    Such a marker has a frame but no length, so its text has start and end in seconds, and the
    score. Timecodes count from the video's own, or from 00:00:00:00.
    """
    scores = detection.scores
    fps, rate = timecode_rate(scores.fps)
    first, drop = start_frame(scores)
    day = frame_number("24:00:00:00", rate, drop)

    def at(frame: int) -> str:
        return timecode((first + frame) % day if scores.timecode else frame, rate, drop)

    whole = f"{at(0)} {at(max(1, round(scores.duration * fps)))}"
    name = one_line(Path(scores.video).name)
    lines = [
        f"TITLE: {name}",
        f"FCM: {'' if drop else 'NON-'}DROP FRAME",
        f"001  AX       V     C        {whole} {whole}",
        f"* FROM CLIP NAME: {name}",
        f"* TIMECODES COUNT {rate} FRAMES A SECOND",
    ]
    names = distinct(one_line(label) for label in scores.classes)
    for segment in detection.segments:
        start, end = (time / 1000 for time in milliseconds(segment))
        text = f"{names[segment.class_id]} [{start:.3f}-{end:.3f} s, {segment.score:.2f}]"
        lines.append(f"* LOC: {at(round(start * fps))} {_colour(segment.class_id):7} {text}")
    write_text(path, "\n".join(lines) + "\n")


def timecode_rate(fps: float) -> tuple[float, int]:
    """Return the frames in a second, and the frames that a timecode counts in a second.

    For a rate that editing programs do not have, both are 25.
    """
    near = min(_RATES, key=lambda known: abs(known - fps))
    return (near, _RATES[near]) if abs(near - fps) < _SAME_RATE else (_OTHER_RATE, _OTHER_RATE)


def start_frame(scores: Scores) -> tuple[int, bool]:
    """Return the first frame's number by the video's timecode, and whether that is drop frame."""
    fps, rate = timecode_rate(scores.fps)
    code = scores.timecode or "00:00:00:00"
    if abs(fps - scores.fps) >= _SAME_RATE:
        code = code[:8] + ":00"  # its frames are not those that are counted
    drop = code[8] in ";." and rate in (30, 60) and fps != rate
    return frame_number(code, rate, drop), drop


def frame_number(code: str, rate: int, drop: bool = False) -> int:
    """Return the number of a frame from its timecode, the inverse of `timecode`."""
    hours, minutes, seconds, frames = map(int, re.split("[:;.]", code))
    minutes += 60 * hours
    left_out = rate // 15 * (minutes - minutes // 10) if drop else 0
    return (60 * minutes + seconds) * rate + frames - left_out


def timecode(frame: int, rate: int, drop: bool = False) -> str:
    """Return the time of a frame as `hours:minutes:seconds:frames`.

    With drop frame, `;` precedes the frames, and each minute but every tenth leaves out its first
    numbers (SMPTE ST 12-1), so that timecodes keep up with the clock.
    """
    if drop:
        left_out = rate // 15
        tens, rest = divmod(frame, 600 * rate - 9 * left_out)
        minutes = max(0, (rest - left_out) // (60 * rate - left_out))
        frame += left_out * (9 * tens + minutes)
    return f"{clock(frame // rate)}{';' if drop else ':'}{frame % rate:02d}"


def write_otio(detection: Detection, path: Path) -> None:
    """Write OpenTimelineIO's JSON: a track with the video as its clip, and markers on the clip.

    Times are milliseconds, from the video's timecode on if it has one; a marker's metadata has
    class number and score.
    """
    scores = detection.scores
    begin = round(1000 * start_frame(scores)[0] / timecode_rate(scores.fps)[0], 6)
    whole = _range(begin, max(1, round(1000 * scores.duration)))
    media = _object(
        "ExternalReference.1", target_url=media_url(scores.video, path), available_range=whole
    )
    clip = _object(
        "Clip.2",
        name=Path(scores.video).name,
        source_range=whole,
        media_references={"DEFAULT_MEDIA": media},
        active_media_reference_key="DEFAULT_MEDIA",
        markers=[_marker(segment, begin) for segment in detection.segments],
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


def _marker(segment: Segment, begin: float) -> dict[str, Any]:
    start, end = milliseconds(segment)
    own = {"class_id": segment.class_id, "score": round(segment.score, 6)}
    return _object(
        "Marker.2",
        name=segment.label.replace("\0", r"\x00"),  # where its reader would stop
        color=_colour(segment.class_id),
        marked_range=_range(begin + start, end - start),
        metadata={"mstemba": own},
    )


def _range(start: float, duration: int) -> dict[str, Any]:
    return _object("TimeRange.1", start_time=_time(start), duration=_time(duration))


def _time(milliseconds: float) -> dict[str, Any]:
    return _object("RationalTime.1", value=float(milliseconds), rate=1000.0)


def _object(schema: str, **fields: Any) -> dict[str, Any]:
    return {"OTIO_SCHEMA": schema, **fields}


def _colour(class_id: int) -> str:
    return COLOURS[class_id % len(COLOURS)]
