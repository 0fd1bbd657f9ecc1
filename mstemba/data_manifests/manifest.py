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
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from mstemba.errors import ManifestError
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
    start: float
    end: float


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
        if twice := [name for name, count in Counter(self.classes).items() if count > 1]:
            raise ManifestError(f"class name {twice[0]!r} appears twice; names must differ")

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
        real = path.resolve()
        # Resolving the paths of ten thousand videos takes a third of a second: namesakes first.
        for file, video in reversed(self._by_name.get(path.name, [])):
            if file.resolve() == real:
                return video
        return self._by_real_path.get(real)

    @cached_property
    def _by_real_path(self) -> dict[Path, Video]:
        return {file.resolve(): video for file, video in self._files}


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


def load_manifest(path: Path) -> Manifest:
    """Read and check a manifest. Video paths are relative to its folder.

    Raises ManifestError that names the entry in question.
    """
    data = read_json_object(path)
    _refuse_repeated(str(path), data)
    if data.get("format") != FORMAT or data.get("version") != VERSION:
        found = f"format {data.get('format')!r}, version {data.get('version')!r}"
        raise ManifestError(
            f"{path}: {found}; expected {FORMAT!r}, version {VERSION}. `mstemba init` writes one"
        )
    classes = data.get("classes")
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise ManifestError(f"{path}: `classes` must be a list of names")
    if data.get("time_unit") not in TIME_UNITS:
        raise ManifestError(
            f"{path}: `time_unit` is {data.get('time_unit')!r}, expected one of {TIME_UNITS}"
        )
    if not isinstance(data.get("videos"), dict):
        raise ManifestError(f"{path}: `videos` must be an object of entries by video id")
    _refuse_repeated(f"{path}: `videos`", data["videos"])
    fps = data.get("fps")
    if fps is not None and not (is_finite(fps) and fps > 0):
        raise ManifestError(f"{path}: `fps` is {fps!r}, expected frames per second")
    videos = {
        id: _read_video(path, id, entry, len(classes)) for id, entry in data["videos"].items()
    }
    return Manifest(str(data.get("dataset", "")), tuple(classes), data["time_unit"], videos, fps)


def _read_video(manifest: Path, id: str, entry: Any, classes: int) -> Video:
    where = f"{manifest}: video {id!r}"
    if not isinstance(entry, dict):
        raise ManifestError(f"{where}: expected an object, found {type(entry).__name__}")
    _refuse_repeated(where, entry)
    for name in ("duration", "annotated_until"):
        time = entry.get(name)
        if time is not None and not is_duration(time):
            raise ManifestError(
                f"{where}: `{name}` is {time!r}, expected a number that is 0 or more, or null"
            )
    listed = entry.get("actions", [])
    if not isinstance(listed, list):
        raise ManifestError(f"{where}: `actions` is {listed!r}, expected a list")
    actions = []
    for number, item in enumerate(listed):
        try:
            action = parse_action(item)
        except ValueError as error:
            raise ManifestError(f"{where}, action {number}: {error}") from None
        if not 0 <= action.class_id < classes:
            raise ManifestError(
                f"{where}, action {number}: unknown class id {action.class_id}; "
                f"the manifest has {counted(classes, 'class')}, 0 to {classes - 1}"
            )
        actions.append(action)
    file = entry.get("path")
    return Video(
        id=id,
        path=None if file is None else manifest.parent / str(file),
        subset=normalise_subset(entry.get("subset")),
        duration=entry.get("duration"),
        actions=tuple(actions),
        annotated_until=entry.get("annotated_until"),
    )


def is_finite(value: Any) -> TypeGuard[int | float]:
    """Return whether this is a finite number within the range of a float; bool is not."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and abs(value) <= sys.float_info.max


def is_duration(value: Any) -> TypeGuard[int | float]:
    """Return whether this can be the duration of a video, or a time in it."""
    return is_finite(value) and value >= 0


def _refuse_repeated(where: str, data: dict[str, Any]) -> None:
    if names := repeated(data):
        raise ManifestError(f"{where}: {names[0]!r} appears twice; delete one")


def parse_action(item: Any) -> Action:
    """Parse [class, start, end] with an integer class and finite times. Raises ValueError."""
    if not isinstance(item, (list, tuple)) or len(item) != 3:
        raise ValueError(f"expected [class, start, end], found {item!r}")
    class_id, start, end = item
    if isinstance(class_id, bool) or not isinstance(class_id, int):
        raise ValueError(f"class id {class_id!r} is not a whole number")
    for time in (start, end):
        if not is_finite(time):
            raise ValueError(f"{time!r} is not a time")
    return Action(class_id, float(start), float(end))


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
    return str(path.resolve())


def read_json_object(path: Path) -> dict[str, Any]:
    """Read the JSON object in a file. Raises ManifestError if there is none.

    Of several members with the same name the first counts, also in nested objects; `repeated`
    returns these names.
    """
    try:
        data = parse_json(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ManifestError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise ManifestError(f"{path}: not readable as JSON: {error}") from None
    if not isinstance(data, dict):
        raise ManifestError(f"{path}: expected a JSON object, found {type(data).__name__}")
    return data


def parse_json(text: str) -> Any:
    """Parse JSON; of several members with the same name the first counts, see `repeated`."""
    return json.loads(text, object_pairs_hook=_keep_first)


class _Repeating(dict[str, Any]):
    """A JSON object that has several members with the same name."""

    names: list[str]


def _keep_first(members: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(members)
    if len(unique) == len(members):
        return unique
    first = _Repeating(unique | dict(reversed(members)))  # in the order of the file
    counts = Counter(name for name, _ in members)
    first.names = [name for name, count in counts.items() for _ in range(count - 1)]
    return first


def repeated(data: dict[str, Any]) -> list[str]:
    """Return the names of repeated members, once per repetition."""
    return data.names if isinstance(data, _Repeating) else []
