"""The files below the folders that a user gives, and which of them are videos."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from mstemba.data_manifests.playlists import PLAYLIST_SUFFIX, read_playlist
from mstemba.errors import ManifestError
from mstemba.limits import LONGEST_NAME
from mstemba.reading.files import file_size, reason, special_kind
from mstemba.wording import counted

# Formats that FFmpeg reads, by endings that little else has. Proxies of cameras (.lrv, .lrf) are
# not among them: they lie next to the recording itself.
_VIDEO_FORMATS = """
    3g2 3gp asf avi divx f4v flv gif m4v mkv mov mp4 mp4v ogm ogv qt rm rmvb webm wmv xvid
    m2p m2t m2ts mod mpe mpeg mpg mpg2 mts tod tp trp ts vob
    dav dv dvr-ms insv mxf wtv
    264 265 av1 h264 h265 hevc ivf m1v m2v mjpeg mjpg mpv nut obu y4m
    m3u8
"""
VIDEO_SUFFIXES = frozenset(f".{name}" for name in _VIDEO_FORMATS.split())
# Of the skipped files of a folder, this many endings are named.
_NAMED = 5
# At the root of a disk, and often not readable by users.
_SYSTEM = {"lost+found", "System Volume Information", "$RECYCLE.BIN"}
# What mstemba itself writes: a workspace, and the results of a video next to its saved scores.
WORKSPACE_MARKER = "mstemba.toml"
_WORKSPACE_FILES = {WORKSPACE_MARKER, "manifest.json", "manifest.json.bak"}
_WORKSPACE_FOLDERS = {"features", "runs", "detections"}
SCORES_SUFFIX = ".scores.npz"


def files_below(
    folder: Path,
    wanted: Callable[[Path], bool],
    on_special: Callable[[Path, str], None] = lambda file, kind: None,
) -> list[Path]:
    """Return the wanted files below a folder, in order; links are followed, to each folder once.

    Hidden folders and feature stores are skipped. Broken links are included, so that reading one
    fails with its name. Raises ManifestError for a folder that cannot be listed.

    Args:
        folder: Where to look.
        wanted: Whether a file is wanted.
        on_special: Receives what would be wanted, but is a pipe, a device or a socket, and which.
    """
    files = sorted(place / name for place, names in _walk(folder) for name in names)
    return _without_special(filter(wanted, files), on_special)


def _walk(top: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield the folders from a folder down, each once, with the names of their files."""
    seen: set[str] = set()
    waiting = [top]
    for start in waiting:  # links come last, so that the own path of a folder is preferred
        for place, folders, names in os.walk(start, onerror=_refuse_unreadable):
            if (real := os.path.realpath(place)) in seen:
                folders.clear()
                continue
            seen.add(real)
            folders[:] = filter(_may_hold_files, folders)
            below = Path(place)
            waiting += [below / name for name in sorted(folders) if (below / name).is_symlink()]
            yield below, names


def _may_hold_files(folder: str) -> bool:
    return not folder.startswith(".") and not folder.endswith(".zarr") and folder not in _SYSTEM


def _without_special(files: Iterable[Path], on_special: Callable[[Path, str], None]) -> list[Path]:
    kept = []
    for file in files:
        if kind := special_kind(file):
            on_special(file, kind)
        elif not os.path.isdir(file):  # a link to one that has been listed
            kept.append(file)
    return kept


def _refuse_unreadable(error: OSError) -> None:
    if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
        raise ManifestError(
            f"{error.filename}: this folder cannot be read ({error.strerror}), and its files would "
            f"be missing; make it readable, or pass the other files and folders"
        )


def _videos_below(
    folder: Path, on_special: Callable[[Path, str], None]
) -> tuple[list[Path], Counter[str]]:
    """Return the videos below a folder, and the number of its other files by ending.

    Hidden files and what mstemba wrote are not counted.
    """
    videos: list[Path] = []
    skipped: Counter[str] = Counter()
    written: set[Path] = set()
    walked = list(_walk(folder))
    parts, lists = _playlists(walked)
    for place, names in walked:
        others = []
        for name in names:
            if parts and _key(place / name) in parts:
                continue
            if os.path.splitext(name)[1].lower() not in VIDEO_SUFFIXES or place / name in lists:
                others.append(name)
            elif not name.startswith("._"):  # macOS leaves `._name.mp4` files that are not videos
                videos.append(place / name)
        if WORKSPACE_MARKER in names:
            written.update(place / name for name in _WORKSPACE_FOLDERS)
        if place.parent in written:
            written.add(place)
        if place not in written:
            skipped.update(_endings_of_others(others))
    return _without_special(sorted(videos), on_special), skipped


def _playlists(walked: list[tuple[Path, list[str]]]) -> tuple[set[str], set[Path]]:
    """Return what the HLS playlists refer to, and the playlists that are only lists of songs."""
    parts: set[str] = set()
    lists: set[Path] = set()
    files = [p / n for p, names in walked for n in names if n.lower().endswith(PLAYLIST_SUFFIX)]
    for file in sorted(files):
        if _key(file) in parts or special_kind(file):
            continue
        try:
            playlist = read_playlist(file)
        except OSError:
            continue  # a video, which fails when it is read
        if playlist is None or not playlist.is_hls:
            lists.add(file)
        else:
            parts.update(map(_key, [*playlist.playlists[1:], *playlist.pieces]))
    return parts, lists


def _key(file: Path) -> str:
    """Return the path of a file with the links to its folder followed."""
    return os.path.join(os.path.realpath(file.parent), file.name)


def _endings_of_others(names: list[str]) -> Iterator[str]:
    ours = set(_WORKSPACE_FILES if WORKSPACE_MARKER in names else ())
    scored = {name.removesuffix(SCORES_SUFFIX) for name in names if name.endswith(SCORES_SUFFIX)}
    for name in names:
        stem, ending = os.path.splitext(name)
        # Results are called VIDEO.csv, and one of them VIDEO.activitynet.json.
        if not (name.startswith(".") or name in ours or {stem, os.path.splitext(stem)[0]} & scored):
            yield ending.lower()


def _listed(skipped: Counter[str]) -> str:
    """Return the most frequent endings with their counts, for a message."""
    ranked = sorted(skipped.items(), key=lambda item: (-item[1], item[0] or "~"))
    named = [f"{count} {ending or 'without an ending'}" for ending, count in ranked[:_NAMED]]
    if more := sum(count for _, count in ranked[_NAMED:]):
        named.append(f"{more} other{'s' * (more > 1)}")
    return ", ".join(named)


_SPELLINGS: tuple[Callable[[Path, Path], str], ...] = (
    lambda file, below: below.stem,
    lambda file, below: below.with_suffix("").as_posix(),
    lambda file, below: below.as_posix(),
    lambda file, below: str(file),
)


def _real(file: Path) -> Path:
    try:
        return file.resolve()
    except RuntimeError:  # from Python 3.13 on, opening it raises OSError
        raise ManifestError(f"{file}: a link to itself; delete it") from None
    except OSError as error:
        raise ManifestError(f"{file}: cannot be read: {reason(error)}") from None


def find_videos(
    inputs: Iterable[Path], on_skipped: Callable[[str], None] = lambda line: None
) -> dict[str, Path]:
    """Return the given video files, and those below the given folders, by id.

    The id is the stem of the file, or the path below the folder if two files have the same stem. An
    HLS playlist in a folder counts as one video, and the files it refers to are skipped.

    Args:
        inputs: Files with any ending, and folders.
        on_skipped: Receives a line for each folder that has other files, by their endings.

    Raises:
        ManifestError: A path does not exist or is neither a file nor a folder, a folder cannot be
            read or has no video, or a path is too long to be an id.
    """
    found: list[tuple[Path, Path]] = []
    for given in inputs:
        if os.path.isdir(given):
            files, skipped = _videos_below(
                given, lambda file, kind: on_skipped(f"{file}: skipped {kind}; expected a file")
            )
            if not files:
                only = f", only {_listed(skipped)}" if skipped else ""
                raise ManifestError(
                    f"{given}: no video in this folder{only}; expected files that end in .mp4, "
                    f".mov, .mkv or another ending of videos. A video with an unusual ending can "
                    f"be passed by its name"
                )
            if skipped:
                count = skipped.total()
                what = counted(count, "file that does", "files that do")
                on_skipped(f"{given}: skipped {what} not end like a video: {_listed(skipped)}")
            found += [(file, file.relative_to(given)) for file in files]
        elif os.path.exists(given):
            file_size(given, ManifestError)
            found.append((given, Path(given.name)))
        else:
            raise ManifestError(f"{given}: no such file or folder")
    found = list({_real(file): (file, below) for file, below in reversed(found)}.values())[::-1]
    ids: dict[str, Path] = {}
    for spelling in _SPELLINGS:
        names = [spelling(file, below) for file, below in found]
        counts = Counter(names)
        clashing = []
        for pair, name in zip(found, names, strict=True):
            if counts[name] == 1 and name not in ids:
                ids[name] = pair[0]
            else:
                clashing.append(pair)
        found = clashing
    for file, _ in found:  # another video has its path as id
        number = next(n for n in itertools.count(2) if f"{file} ({n})" not in ids)
        ids[f"{file} ({number})"] = file
    if long := next((id for id in ids if len(id) > LONGEST_NAME), None):
        raise ManifestError(
            f"{ids[long]}: as an id this path has {len(long):,} characters, expected at most "
            f"{LONGEST_NAME:,}; give the file a unique name, or move it"
        )
    return dict(sorted(ids.items(), key=lambda item: str(item[1])))
