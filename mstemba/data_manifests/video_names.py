"""Find the video that a name in an annotation, feature or prediction file means.

Such a name may be the id of the video, its file name with or without the ending, a path on this or
another machine, or a URL. It is joined with a video where exactly one fits.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from mstemba.data_manifests.video_files import VIDEO_SUFFIXES

_URL = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]+):/")
_DRIVE = re.compile(r"[a-zA-Z]:")


@dataclass
class NameMatches:
    """The videos that names mean."""

    ids: dict[str, str] = field(default_factory=dict)
    """Ids by name, where exactly one video fits."""
    ambiguous: dict[str, list[str]] = field(default_factory=dict)
    """Ids of the videos that fit equally well, by name."""
    rivals: dict[str, str] = field(default_factory=dict)
    """By name, the other name that fits the same video better."""


class _Fit(NamedTuple):
    """How well a name fits a video."""

    level: int
    """Index in `_LEVELS`: low is exact."""
    folders: int
    """Number of folders, from the last one on, that the name and the path have in common."""
    id: str


def name_parts(name: str) -> tuple[str, ...]:
    r"""Return the folders and the file name in a path or URL of any system, normalised to NFC.

    `file:///C:/My%20videos/a.mp4`, `C:\My videos\a.mp4` and `./My videos/a.mp4` end in the same two
    parts. Of a URL with `?v=ID`, as YouTube has, the last part is the ID.
    """
    text = name.strip()
    if scheme := _URL.match(text):
        if scheme[1].lower() == "file":
            text = unquote(text[scheme.end() - 1 :])
        else:
            with suppress(ValueError):  # not a valid URL: a name like others
                url = urlsplit(text)
                text = parse_qs(url.query).get("v", [unquote(url.path)])[0]
    parts = PurePosixPath(unicodedata.normalize("NFC", text.replace("\\", "/"))).parts
    return tuple(p for p in parts if p.strip("/") not in ("", "..") and not _DRIVE.fullmatch(p))


def without_ending(name: str) -> str:
    """Return a file name without its ending, if that is one of videos."""
    stem, ending = os.path.splitext(name)
    return stem if ending.lower() in VIDEO_SUFFIXES else name


def _file_name(parts: tuple[str, ...]) -> str:
    return "".join(parts[-1:])


def _stem(parts: tuple[str, ...]) -> str:
    return without_ending(_file_name(parts))


_Form = Callable[[tuple[str, ...]], str]
# What is compared, from exact to loose: a form of the name with one of the id (at first) or of the
# file. From _LOOSE on, two different names may well mean two files.
_LEVELS: tuple[tuple[_Form, _Form], ...] = (
    ("/".join, "/".join),
    (_file_name, _file_name),
    (_file_name, _stem),
    (_stem, _file_name),  # the id of a video without a file has no ending
    (lambda name: _file_name(name).casefold(), lambda file: _file_name(file).casefold()),
    (lambda name: _file_name(name).casefold(), lambda file: _stem(file).casefold()),
    (lambda name: _stem(name).casefold(), lambda file: _stem(file).casefold()),
)
_LOOSE = 6
# So many videos that fit a name equally well are returned, and so many folders are compared.
_MOST_FITS, _MOST_FOLDERS = 4, 20


class VideoNames:
    """Finds videos by the names that files have for them.

    Args:
        files: The videos' paths by id; None for a video without a file.
    """

    def __init__(self, files: Mapping[str, Path | None]) -> None:
        self._files = files
        self._parts = {id: name_parts(str(file or id)) for id, file in files.items()}
        self._levels: list[dict[str, list[str]]] = [{} for _ in _LEVELS]
        self._by_folders: dict[tuple[int, str], dict[tuple[str, ...], list[str]]] = {}
        self._by_file_name: dict[str, list[str]] = {}
        for id, file in files.items():
            if file is not None:
                self._by_file_name.setdefault(file.name, []).append(id)
            for number, (_, form) in enumerate(_LEVELS):
                parts = self._parts[id] if number else name_parts(id)
                self._levels[number].setdefault(form(parts), []).append(id)

    def match(self, names: Iterable[str]) -> NameMatches:
        """Return which videos these names mean.

        A name with another ending is not joined with a video that a name fits exactly; one whose
        folders differ is not joined if another name has more folders in common.
        """
        matches = NameMatches()
        fits: dict[str, _Fit] = {}
        for name in dict.fromkeys(names):
            found = self._fits(name)
            if len(found) == 1:
                fits[name] = found[0]
            elif found:
                matches.ambiguous[name] = [fit.id for fit in found]
        by_id: dict[str, list[str]] = {}
        for name, fit in fits.items():
            by_id.setdefault(fit.id, []).append(name)
        for id, rivals in by_id.items():
            best = min(rivals, key=lambda name: (fits[name].level >= _LOOSE, -fits[name].folders))
            for name in rivals:
                if name == best or self._may_share(name, fits[name], best, fits[best]):
                    matches.ids[name] = id
                else:
                    matches.rivals[name] = best
        return matches

    def _fits(self, name: str) -> list[_Fit]:
        """Return the videos that a name fits best, or the first of them."""
        if len(same := self._by_file_name.get(name, [])) == 1:
            return [_Fit(0, len(self._parts[same[0]]), same[0])]
        if name in self._files:
            return [_Fit(0, len(self._parts[name]), name)]
        parts = name_parts(name)
        for level, (form, _) in enumerate(_LEVELS if parts else ()):
            if (key := form(parts)) in self._levels[level]:
                count, ids = self._nearest(level, key, _folders(parts))
                return [_Fit(level, count, id) for id in ids[:_MOST_FITS]]
        return []

    def _nearest(self, level: int, key: str, folders: tuple[str, ...]) -> tuple[int, list[str]]:
        """Return how many folders the nearest videos of a form share with a name, and their ids."""
        if (level, key) not in self._by_folders:
            groups = self._by_folders[level, key] = {}
            for id in self._levels[level][key]:
                own = _folders(self._parts[id])
                for count in range(len(own) + 1):
                    groups.setdefault(own[:count], []).append(id)
        groups, count = self._by_folders[level, key], 0
        while count < len(folders) and folders[: count + 1] in groups:
            count += 1
        return count, groups[folders[:count]]

    def _may_share(self, name: str, fit: _Fit, best: str, best_fit: _Fit) -> bool:
        """Return whether a name may mean the same video as one that fits at least as well."""
        if fit.level >= _LOOSE > best_fit.level:
            return False
        folders = ["/".join((*name_parts(some)[:-1], "")) for some in (name, best)]
        return fit.folders == best_fit.folders or may_be_same(*folders)


def _folders(parts: tuple[str, ...]) -> tuple[str, ...]:
    """Return the folders of a path from the last one on, in the form for comparison."""
    return tuple(folder.casefold() for folder in parts[-2 : -2 - _MOST_FOLDERS : -1])


def may_be_same(one: str, other: str) -> bool:
    """Return whether two paths may be those of one file, as `walk.mp4` and `videos/walk.mp4`."""
    a, b = name_parts(one), name_parts(other)
    shared = min(len(a), len(b))
    return not shared or a[-shared:] == b[-shared:]


def default_ids(names: Iterable[str], taken: Iterable[str]) -> dict[str, str]:
    """Return ids for names that fit no video: the file name without its ending, where unique.

    Only names that end like a video are taken for paths; others, and those whose file name is not
    unique, keep their folders, and their endings if these alone differ.

    Args:
        names: The names.
        taken: Ids of other videos.
    """
    listed = {name: name_parts(name) for name in names}
    files: dict[str, list[tuple[str, ...]]] = {}
    for parts in listed.values():
        if _stem(parts) != _file_name(parts):
            files.setdefault(_stem(parts), []).append(parts)
    endings: dict[str, set[str]] = {}
    for name in listed:
        if (whole := without_ending(name)) != name:
            endings.setdefault(whole, set()).add(name[len(whole) :].lower())
    same = {short: _are_ends(paths) for short, paths in files.items()}
    used = set(taken)
    ids = {}
    for name, parts in listed.items():
        short, whole = _stem(parts), without_ending(name)
        candidates = (short, whole) if same.get(short) else (whole,)
        ids[name] = next((id for id in candidates if id not in used), whole)
        if ids[name] in used or len(endings.get(ids[name], ())) > 1:
            ids[name] = name
    return ids


def _are_ends(paths: Sequence[tuple[str, ...]]) -> bool:
    """Return whether all of these paths are ends of the longest one."""
    longest = max(paths, key=len)
    return all(longest[-len(path) :] == path for path in paths)
