"""HTML: one page with the video, its timeline and the means to correct it; no server, no network.

The page's scripts and styles are in `page/`. What it does is described in docs/page.md.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
import shlex
import zlib
from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from mstemba.errors import UsageError
from mstemba.limits import LARGEST_EMBEDDED
from mstemba.pipeline.caching.files import write_atomically
from mstemba.pipeline.outputs.detection import Detection
from mstemba.pipeline.outputs.fields import media_url
from mstemba.pipeline.outputs.video_signature import is_video
from mstemba.reading.files import file_size
from mstemba.records import Scores, Segment, to_levels

PAGE = Path(__file__).with_name("page")
# In the order in which they depend on each other.
SCRIPTS = (
    "data.js",
    "segments.js",
    "view.js",
    "player.js",
    "corrections.js",
    "rows.js",
    "timeline.js",
    "pointer.js",
    "list.js",
    "bar.js",
    "app.js",
    "main.js",
)
FLOOR = 0.01
"""The lowest threshold that the page offers: scores of classes that stay below are left out."""
_PART = 3 * 2**20  # bytes of the video in one element; a multiple of 3 needs no base64 padding
_PLAYABLE = "-c:v libx264 -pix_fmt yuv420p -c:a aac"  # for ffmpeg: what every browser plays
_VIDEO_HERE = "<!-- the embedded video -->"


def write_html(detection: Detection, path: Path) -> None:
    """Write the page, with the relative path of the video, or with `embed` the video itself.

    Raises:
        UsageError: The video is too large to embed, or is not a video.
    """
    video = Path(detection.scores.video)
    embedded = detection.options.embed and os.path.exists(video)
    if embedded:
        check_embeddable(video)
    head, tail = _page(detection, path).split(_VIDEO_HERE)

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            file.write(head.encode())
            if embedded:
                _embed(video, file)
            file.write(tail.encode())

    write_atomically(path, write)


def check_embeddable(video: Path) -> None:
    """Raise UsageError for a file that is not a video, and for a video that is too large to embed.

    Scores that somebody else made may name any file of this machine, and pages are passed on.
    """
    size = file_size(video)
    if not is_video(video):
        raise UsageError(
            f"{video}: not a video; only videos can be embedded: omit --embed, or check where "
            f"the scores come from"
        )
    if size > LARGEST_EMBEDDED:
        # Without `file:`, ffmpeg would read the part of a name before a colon as a protocol.
        name = shlex.quote(f"file:{video.name}")
        copy = shlex.quote(f"file:{video.stem}.playable.mp4")
        raise UsageError(
            f"{video}: {size / 1e9:.1f} GB, expected at most {LARGEST_EMBEDDED / 1e9:g} GB to "
            f"embed; omit --embed and keep the video next to the page, or embed a smaller copy: "
            f"ffmpeg -i {name} -vf scale=-2:480 {_PLAYABLE} {copy}"
        )


def missing_video(detection: Detection) -> str:
    """Return a warning if the page cannot find the video; otherwise an empty string."""
    video = Path(detection.scores.video)
    if video.is_file():
        return ""
    return (
        f"{video}: no such file; the page shows the timeline without the video, which can be "
        f"opened there with a button"
    )


def _page(detection: Detection, path: Path) -> str:
    """Return the text of the page, with a mark where an embedded video goes."""
    style = (PAGE / "page.css").read_text(encoding="utf-8")
    script = "\n".join((PAGE / name).read_text(encoding="utf-8") for name in SCRIPTS)
    facts, packed = _facts(detection, path)
    name = Path(detection.scores.video).name.encode(errors="replace").decode()
    return Template((PAGE / "page.html").read_text(encoding="utf-8")).substitute(
        policy=_policy(style, script),
        title=html.escape(name),
        style=style,
        script=script,
        facts=_as_script(facts),
        packed=base64.b64encode(packed).decode(),
        video=_VIDEO_HERE,
    )


def _policy(style: str, script: str) -> str:
    """Return a content security policy for this script, this style and local videos only."""

    def sha(text: str) -> str:
        digest = hashlib.sha256(text.encode()).digest()
        return f"'sha256-{base64.b64encode(digest).decode()}'"

    return (
        f"default-src 'none'; script-src {sha(script)}; style-src {sha(style)}; "
        f"media-src 'self' file: blob: data:; img-src data:; base-uri 'none'; form-action 'none'"
    )


def _facts(detection: Detection, path: Path) -> tuple[dict[str, Any], bytes]:
    """Return the page's data: facts as plain data, and the packed scores and segments."""
    scores, options = detection.scores, detection.options
    video = Path(scores.video)
    floor = min(FLOOR, options.threshold)
    scored = np.flatnonzero(scores.probabilities.max(axis=0) >= np.float32(floor))
    names, listed = _manifest_facts(detection)
    facts = {
        "id": detection.id or video.stem,
        "subset": detection.subset,
        "video": {
            "name": video.name,
            "path": str(video),
            "source": media_url(scores.video, path),
            "found": video.is_file(),
            "playable": _PLAYABLE,
        },
        "duration": scores.duration,
        "frames_per_row": detection.frames_per_row,
        "classes": names,
        "rows": scores.grid.count,
        "step": scores.grid.step,
        "anchor": scores.anchor,
        "scored": scored.tolist(),
        "floor": floor,
        "threshold": options.threshold,
        "low": options.low_threshold,
        "min_length": options.min_length,
        "found": len(detection.segments),
        "listed": listed,
        "provenance": detection.provenance,
    }
    return facts, pack(scores, scored, detection.segments)


def _manifest_facts(detection: Detection) -> tuple[Sequence[str], dict[str, Any] | None]:
    """Return the page's class names, the scores' first, and what the manifest says of the video.

    An action has its class, its start and end in seconds, and both as in the manifest.
    """
    entry = detection.listed
    if entry is None:
        return detection.scores.classes, None
    names = list(dict.fromkeys([*entry.scored, *entry.classes]))
    ids = {name: number for number, name in enumerate(names)}
    pairs = zip(entry.seconds, entry.actions, strict=True)
    numbers = [ids[name] for name in entry.classes]
    actions = [[numbers[s.class_id], s.start, s.end, a.start, a.end] for s, a in pairs]
    until = entry.annotated_until
    return names, {
        "classes": numbers,
        # As an entry of the manifest has them, which is written again.
        "times": {
            "duration": entry.duration,
            **({} if until is None else {"annotated_until": until}),
        },
        "actions": actions,
    }


def pack(scores: Scores, class_ids: NDArray[np.intp], segments: Sequence[Segment]) -> bytes:
    """Pack rows, segments and the levels of these classes, column after column, deflated.

    T starts of rows (float64, seconds); N starts and N ends of segments (the same), their class ids
    (uint32), their scores in ten-thousandths (uint16); levels (uint16), class by class.
    Probabilities are levels as `to_levels` makes them, so that the page cuts as `find_segments`
    does. All low bytes come before all high bytes, which deflates to four fifths of the size.
    """
    levels = to_levels(np.ascontiguousarray(scores.probabilities[:, class_ids].T))
    low, high = (levels & 0xFF).astype(np.uint8), (levels >> 8).astype(np.uint8)
    table = [(s.start, s.end, s.class_id, round(10_000 * s.score)) for s in segments]
    found = np.array(table, dtype=np.float64).reshape(-1, 4).T
    parts = [scores.grid.starts.astype("<f8")]
    kinds = ("<f8", "<f8", "<u4", "<u2")
    parts += [column.astype(kind) for column, kind in zip(found, kinds, strict=True)]
    return zlib.compress(b"".join(part.tobytes() for part in (*parts, low, high)))


def _as_script(data: Any) -> str:
    """Return JSON that cannot close the element around it."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))  # ASCII only
    return text.translate({ord(character): f"\\u{ord(character):04x}" for character in "<>&"})


def _embed(video: Path, file: BinaryIO) -> None:
    """Write the video as base64 in parts, because browsers limit the length of a text."""
    with video.open("rb") as source:
        while part := source.read(_PART):
            file.write(b'<script type="text/plain" class="video-part">')
            file.write(base64.b64encode(part))
            file.write(b"</script>\n")
