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
_HLS = re.compile(r"#EXT-X-(STREAM-INF|TARGETDURATION|MEDIA-SEQUENCE):")
_URI = re.compile(
    r'#EXT-X-(MAP|KEY|MEDIA|I-FRAME-STREAM-INF):(?:.*[,\s])?URI=(?:"([^"]+)"|([^",\s]+))'
)
_BEGIN = re.compile(r"#EXT-X-(TARGETDURATION|MEDIA-SEQUENCE):")
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
    found = Playlist(any(map(_HLS.match, _lines(text))), [path])
    if not found.is_hls:
        found.problems.append("a list of files, not an HLS playlist; pass the files themselves")
    elif text.startswith("\ufeff"):
        found.problems.append("begins with a byte order mark; save it as UTF-8 without one")
    seen = {os.path.realpath(path)}
    for playlist in found.playlists:  # it grows
        text = _read(playlist, left)
        left -= len(text)
        lines = _lines(text)
        if _is_endless(lines):
            place = "" if playlist is path else f" in its playlist {playlist}"
            found.problems.append(
                f"no #EXT-X-ENDLIST line after #EXT-X-TARGETDURATION{place}, as in a live stream "
                f"or an unfinished recording; if it has ended, add that line at the end"
            )
        names = dict.fromkeys(_names(lines))
        if len(seen) + len(names) > MOST_PIECES:
            raise OSError(errno.EFBIG, f"a playlist of more than {MOST_PIECES:,} pieces")
        for name in names:
            if "://" in name.removeprefix("file://"):
                found.problems.append(f"its piece {name} is not on this disk. Save it: {_JOIN}")
                continue
            file = _find(playlist.parent, name, found.problems)
            real, is_playlist = os.path.realpath(file), os.path.isfile(file) and _is_playlist(file)
            # FFmpeg opens each as often as it is named: in a circle, without end.
            if is_playlist and (playlist is not path or os.path.samefile(file, path)):
                found.problems.append(
                    f"its playlist {playlist} names {file}, which is also a playlist; pass a "
                    f"playlist that lists pieces of video"
                )
            if real not in seen:
                seen.add(real)
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
    return os.fsdecode(content)


def _lines(text: str) -> list[str]:
    """Return the lines that FFmpeg sees, which keeps white space before them."""
    lines = re.split(r"[\r\n\0]", text.removeprefix("\ufeff"))
    return [line.rstrip(" \t\v\f") for line in lines]


def _is_endless(lines: list[str]) -> bool:
    """Return whether FFmpeg waits for more pieces, as of a live stream."""
    begins = (i for i, line in enumerate(lines) if _BEGIN.match(line))
    begin = next(begins, len(lines))
    has_pieces = any(line.startswith("#EXTINF:") for line in lines)
    return has_pieces and not any(line.startswith("#EXT-X-ENDLIST") for line in lines[begin:])


def _names(lines: list[str]) -> list[str]:
    """Return what a playlist refers to, except data within itself."""
    names = [line for line in lines if line and line[0] != "#"]
    for kind, quoted, bare in (tag.groups() for tag in filter(None, map(_URI.match, lines))):
        if kind not in ("MAP", "KEY") or not (quoted or bare).startswith("data:"):
            names.append(quoted or bare)
    return names


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
