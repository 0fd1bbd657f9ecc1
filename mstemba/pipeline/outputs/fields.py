r"""What several formats share: whole milliseconds, names that stay apart, the video's path.

What a format cannot hold in a name is written as Python writes it: `\n`, `\x07`, `\udce9`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

from mstemba.records import Segment

NAMELESS = "(no name)"


def milliseconds(segment: Segment) -> tuple[int, int]:
    """Start and end to the nearest millisecond, the end after the start.

    Subtitles and ELAN know no action without length.
    """
    start = max(0, round(1000 * segment.start))
    return start, max(start + 1, round(1000 * segment.end))


def clock(seconds: int) -> str:
    """Return a time as `00:01:02`: hours, minutes, seconds."""
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def distinct(names: Iterable[str]) -> list[str]:
    """The names, none of them blank and no two alike, for formats that know a class by its name.

    A second `walk` becomes `walk (2)`. Space around a name does not tell it apart: readers drop it.
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
    """The video's path relative to the folder of a file that names it: `./../videos/a.mp4`.

    Absolute where there is no such path, as between two drives of Windows.
    """
    # `..` leads from where a folder really is, not from a link to it.
    folder = os.path.realpath(file.parent)
    try:
        return f"./{Path(os.path.relpath(os.path.realpath(video), folder)).as_posix()}"
    except ValueError:
        return Path(video).absolute().as_posix()


def media_url(video: str, file: Path) -> str:
    """The same as a URL: what is no plain letter is percent-encoded."""
    path = media_path(video, file)
    if not path.startswith("./"):
        return Path(path).as_uri()
    return quote(path, errors="surrogateescape")
