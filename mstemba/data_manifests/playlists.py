"""HLS playlists: text files that name the pieces of one video."""

from __future__ import annotations

import errno
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

from mstemba.limits import LARGEST_PLAYLIST, MOST_PIECES
from mstemba.reading.files import special_kind

PLAYLIST_SUFFIX = ".m3u8"
_HEAD, _BOM = b"#EXTM3U", b"\xef\xbb\xbf"
# FFmpeg looks for these; without them it is a list of songs or films.
_HLS = re.compile(r"^#EXT-X-(STREAM-INF|TARGETDURATION|MEDIA-SEQUENCE):", re.MULTILINE)
_URI = re.compile(r'#EXT-X-(?:MAP|KEY|MEDIA|I-FRAME-STREAM-INF):(?:.*,)?\s*URI="([^"]+)"')
_JOIN = "ffmpeg -protocol_whitelist file,crypto,data,http,https,tcp,tls -i IN -c copy OUT.mp4"


@dataclass
class Playlist:
    """A playlist and what it refers to, itself or through other playlists."""

    is_hls: bool
    """Whether it lists the pieces of one video, rather than songs or films."""
    playlists: list[Path]
    """The playlist and those that it refers to."""
    pieces: list[Path] = field(default_factory=list)
    """The other local files."""
    problems: list[str] = field(default_factory=list)
    """Why it cannot be decoded."""


def read_playlist(path: Path) -> Playlist | None:
    """Return a playlist with the files it refers to; None for a file that is not a playlist.

    Playlists are recognised by their content, not their ending. Raises OSError for an unreadable
    file, and for playlists that are too large.
    """
    if special_kind(path) or not _is_playlist(path):
        return None
    text = _read(path, LARGEST_PLAYLIST)
    left = LARGEST_PLAYLIST
    found = Playlist(bool(_HLS.search(text)), [path])
    if not found.is_hls:
        found.problems.append("a list of files, not an HLS playlist; pass the files themselves")
    elif text.startswith("\ufeff"):
        found.problems.append("begins with a byte order mark; save it as UTF-8 without one")
    seen = {os.path.realpath(path)}
    for playlist in found.playlists:  # it grows
        text = _read(playlist, left)
        left -= len(text)
        names = dict.fromkeys(_names(text))
        if len(seen) + len(names) > MOST_PIECES:
            raise OSError(errno.EFBIG, f"a playlist of more than {MOST_PIECES:,} pieces")
        for name in names:
            if "://" in name.removeprefix("file://"):
                found.problems.append(f"its piece {name} is not on this disk. Save it: {_JOIN}")
                continue
            file = _find(playlist.parent, name, found.problems)
            if (real := os.path.realpath(file)) not in seen:
                seen.add(real)
                is_playlist = os.path.isfile(file) and _is_playlist(file)
                (found.playlists if is_playlist else found.pieces).append(file)
    if not found.pieces:
        found.problems.append("this playlist names no file")
    return found


def _is_playlist(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_BOM + _HEAD)).removeprefix(_BOM).startswith(_HEAD)


def _read(path: Path, most: int) -> str:
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"playlists of more than {LARGEST_PLAYLIST / 2**20:.0f} MB")
    return os.fsdecode(content.replace(b"\0", b""))


def _names(text: str) -> list[str]:
    """Return what a playlist refers to, except data within itself."""
    lines = [line.strip() for line in text.removeprefix("\ufeff").splitlines()]
    tags = filter(None, map(_URI.match, lines))
    names = [line for line in lines if line and line[0] != "#"] + [tag[1] for tag in tags]
    return [name for name in names if not name.startswith("data:")]


def _find(folder: Path, name: str, problems: list[str]) -> Path:
    """Return the file that a name stands for; note why FFmpeg would not find it."""
    name = name.removeprefix("file://")
    file = folder / name
    if os.path.isfile(file):
        return file
    # FFmpeg takes names as they are, while browsers decode them and drop the query.
    meant = folder / unquote(name.partition("?")[0]).replace("\0", "")
    if os.path.isfile(meant):
        problems.append(f"names {name}, but the file is {meant}; write its real name")
    else:
        problems.append(f"its piece {meant}: {special_kind(meant) or 'no such file'}")
    return meant
