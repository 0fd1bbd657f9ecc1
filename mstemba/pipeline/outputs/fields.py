r"""What several formats share: milliseconds, clock times, distinct names, the video's path.

Characters of a name that a format cannot hold are Python escapes: `\n`, `\x07`, `\udce9`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

from mstemba.records import Segment

NAMELESS = "(no name)"


def milliseconds(segment: Segment) -> tuple[int, int]:
    """Return start and end to the nearest millisecond, the end after the start.

    Subtitles and ELAN have no actions of length 0.
    """
    start = max(0, round(1000 * segment.start))
    return start, max(start + 1, round(1000 * segment.end))


def clock(seconds: int) -> str:
    """Return a time as `00:01:02`: hours, minutes, seconds."""
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def distinct(names: Iterable[str]) -> list[str]:
    """Return the names, none blank and no two equal, for formats that know a class by its name.

    A second `walk` becomes `walk (2)`. Names are compared without the space around them, which
    readers drop.
    """
    taken: set[str] = set()
    found = []
    for name in names:
        wanted = chosen = name if name.strip() else NAMELESS
        number = 2
        while chosen.strip() in taken:
            chosen = f"{wanted} ({number})"
            number += 1
        taken.add(chosen.strip())
        found.append(chosen)
    return found


def media_path(video: str, file: Path) -> str:
    """Return the video's path relative to the folder of `file`: `./../videos/a.mp4`.

    It is absolute if there is no such path, as between two drives of Windows.
    """
    # `..` leads from where a folder really is, not from a link to it.
    folder = os.path.realpath(file.parent)
    try:
        return f"./{Path(os.path.relpath(os.path.realpath(video), folder)).as_posix()}"
    except ValueError:
        return Path(video).absolute().as_posix()


def media_url(video: str, file: Path) -> str:
    """Return `media_path` as a URL, percent-encoded."""
    path = media_path(video, file)
    if not path.startswith("./"):
        return Path(path).as_uri()
    return quote(path, errors="surrogateescape")
