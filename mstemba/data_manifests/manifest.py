"""The manifest: one JSON file with all videos, their classes, subsets and actions.

{"format": "mstemba-manifest", "version": 1, "dataset": ..., "classes": [...],
 "time_unit": "seconds" | "frames", "fps": optional,
 "videos": {id: {"path", "subset", "duration", "annotated_until": optional,
                 "actions": [[class, start, end], ...]}}}
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from msgspec import Meta, Struct

from mstemba.errors import ManifestError
from mstemba.limits import LARGEST_TIME, MOST_CLASSES
from mstemba.reading.files import read_bytes, real_path
from mstemba.reading.typed import (
    ClassName,
    FrameRate,
    Name,
    PathText,
    Time,
    convert,
    parse_untyped,
    shown,
)
from mstemba.wording import counted

FORMAT = "mstemba-manifest"
VERSION = 1
TIME_UNITS = ("seconds", "frames")
SUBSETS = ("training", "validation", "testing")
"""The subsets that the stages use."""
_SPELLINGS = {
    "training": ("train", "trn"),
    "validation": ("val", "valid", "validate", "vld", "dev", "devel"),
    "testing": ("test", "tests", "tst"),
}
_SUBSETS = {word: name for name, words in _SPELLINGS.items() for word in words}
_MISSING = {
    "", "na", "n/a", "#n/a", "n.a.", "<na>", "nan", "none", "null", "nil", "undefined",
    "-", "--", "\N{EN DASH}", "\N{EM DASH}", "?", "??",
}  # fmt: skip


class Action(NamedTuple):
    """One labelled action, in the manifest's time unit."""

    class_id: int
    start: Time
    end: Time


@dataclass(frozen=True)
class Video:
    """One entry of a manifest."""

    id: str
    path: Path | None
    """None if no file was found for an annotated video."""
    subset: str | None
    """`training`, `validation`, `testing`, another name, or None."""
    duration: float | None
    actions: tuple[Action, ...] = ()
    annotated_until: float | None = None
    """Time up to which the video is annotated, in the manifest's unit. None: all of it is."""


# A whole number of seconds is written as it was read.
_Time = (
    Annotated[int, Meta(ge=0, le=int(LARGEST_TIME))] | Annotated[float, Meta(ge=0, le=LARGEST_TIME)]
)


class _Entry(Struct, gc=False):
    path: PathText | None = None
    subset: PathText | int | float | None = None
    duration: _Time | None = None
    annotated_until: _Time | None = None
    actions: tuple[Action, ...] = ()


class _Content(Struct):
    classes: Annotated[tuple[ClassName, ...], Meta(max_length=MOST_CLASSES)]
    time_unit: Literal["seconds", "frames"]
    videos: dict[Name, _Entry]
    dataset: PathText | None = None
    fps: FrameRate | None = None


@dataclass(frozen=True)
class Manifest:
    """The videos of a workspace by id, in order."""

    dataset: str
    classes: tuple[str, ...]
    time_unit: str
    videos: dict[str, Video]
    fps: float | None = None
    """Frame rate of the recordings, if it is known and times count frames."""

    def __post_init__(self) -> None:
        refuse_same_names(self.classes)

    def subset(self, name: str) -> list[Video]:
        """Return the videos of a subset, with or without a file."""
        return [v for v in self.videos.values() if v.subset == name]

    def describe_subsets(self, unused: bool = False) -> str:
        """Return the number of videos by subset: `3 training, 1 testing, 2 without a subset`.

        With `unused`, only of the named subsets that no stage uses by default; empty without any.
        """
        counts = Counter(video.subset for video in self.videos.values())
        return ", ".join(
            f"{count} {name or 'without a subset'}"
            for name, count in counts.items()
            if not unused or name not in (None, *SUBSETS)
        )


class VideoIndex:
    """The videos of a manifest, found by id or by file."""

    def __init__(self, videos: Iterable[Video]) -> None:
        self._videos = {video.id: video for video in videos}
        self._files = [(v.path, v) for v in self._videos.values() if v.path is not None]
        self._by_name: dict[str, list[tuple[Path, Video]]] = {}
        for file, video in self._files:
            self._by_name.setdefault(file.name, []).append((file, video))

    def get(self, id: str) -> Video | None:
        """Return the video with this id."""
        return self._videos.get(id)

    def with_file(self, path: Path) -> Video | None:
        """Return the video that has this file, links followed; the last one of several."""
        real = real_path(path)
        # Resolving the paths of ten thousand videos takes a third of a second: namesakes first.
        for file, video in reversed(self._by_name.get(path.name, [])):
            if real_path(file) == real:
                return video
        return self._by_real_path.get(real)

    @cached_property
    def _by_real_path(self) -> dict[Path, Video]:
        return {real_path(file): video for file, video in self._files}


def is_missing(value: Any) -> bool:
    """Return whether a value is None or a word for a missing one: empty, `NA`, `null`, `-`, ..."""
    return value is None or str(value).strip().lower() in _MISSING


def normalise_subset(name: Any) -> str | None:
    """Return `training`, `validation` or `testing` for the usual spellings; keep other names.

    Words for a missing value give None.
    """
    if is_missing(name):
        return None
    subset = str(name).strip().lower()
    spelling = re.sub(r"[ _-]?(set|split|subset)$", "", subset)
    return _SUBSETS.get(spelling, spelling if spelling in SUBSETS else subset)


def refuse_same_names(
    names: Sequence[str], where: str = "", form: Callable[[str], str] = str
) -> None:
    """Raise ManifestError if two class names are the same, or have the same form.

    Args:
        names: The names.
        where: The file and the place in it, for the message.
        form: Returns the form of a name in which names must differ.
    """
    known: dict[str, str] = {}
    for name in names:
        if (other := known.setdefault(form(name), name)) != name:
            raise ManifestError(
                f"{where}class names {other!a} and {name!a} look the same; names must differ"
            )
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ManifestError(f"{where}class name {twice[0]!r} appears twice; names must differ")


def check_version(data: dict[str, Any], path: Path) -> None:
    """Raise ManifestError for another format or version than that of `manifest_json`."""
    if (data.get("format"), data.get("version")) != (FORMAT, VERSION):
        found = f"format {shown(data.get('format'))}, version {shown(data.get('version'))}"
        raise ManifestError(
            f"{path}: {found}; expected {FORMAT!r}, version {VERSION}. `mstemba init` writes one"
        )


def load_manifest(path: Path) -> Manifest:
    """Read and check a manifest. Video paths are relative to its folder.

    Raises ManifestError that names the entry in question.
    """
    data = parse_untyped(read_bytes(path, ManifestError), str(path), ManifestError, unique=True)
    if isinstance(data, dict):
        check_version(data, path)
    content = convert(data, _Content, str(path), ManifestError)
    refuse_same_names(content.classes, f"{path}: $.classes: ")
    classes = len(content.classes)
    for id, entry in content.videos.items():
        for number, action in enumerate(entry.actions):
            if not 0 <= action.class_id < classes:
                raise ManifestError(
                    f"{path}: video {id!r}, action {number}: unknown class id "
                    f"{shown(action.class_id)}; the manifest has {counted(classes, 'class')}, "
                    f"0 to {classes - 1}"
                )
    videos = {
        id: Video(
            id=id,
            path=None if entry.path is None else path.parent / entry.path,
            subset=normalise_subset(entry.subset),
            duration=entry.duration,
            actions=entry.actions,
            annotated_until=entry.annotated_until,
        )
        for id, entry in content.videos.items()
    }
    return Manifest(content.dataset or "", content.classes, content.time_unit, videos, content.fps)


def manifest_json(manifest: Manifest, folder: Path) -> str:
    """Return the manifest as JSON, one video per line; paths below `folder` are relative to it."""
    lines = []
    for video in manifest.videos.values():
        until = video.annotated_until
        entry = {
            "path": None if video.path is None else _relative(video.path, folder),
            "subset": video.subset,
            "duration": video.duration,
            **({} if until is None else {"annotated_until": until}),
            "actions": [list(action) for action in video.actions],
        }
        lines.append(f"  {json.dumps(video.id)}: {json.dumps(entry)}")
    head = {
        "format": FORMAT,
        "version": VERSION,
        "dataset": manifest.dataset,
        "classes": list(manifest.classes),
        "time_unit": manifest.time_unit,
        **({} if manifest.fps is None else {"fps": manifest.fps}),
    }
    fields = [f" {json.dumps(name)}: {json.dumps(value)}" for name, value in head.items()]
    body = ' "videos": {\n' + ",\n".join(lines) + "\n }"
    return "{\n" + ",\n".join([*fields, body]) + "\n}\n"


def _relative(path: Path, folder: Path) -> str:
    """Return the path relative to a folder above it, as written or with links followed."""
    for form in (os.path.abspath, os.path.realpath):
        whole, above = Path(form(path)), Path(form(folder))
        if whole.is_relative_to(above):
            return whole.relative_to(above).as_posix()
    return str(real_path(path))
