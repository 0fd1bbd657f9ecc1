"""Read predictions from a file: dense scores, or segments, made by any program."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from mstemba.data_manifests.affixes import join_names
from mstemba.data_manifests.manifest import Video, VideoIndex
from mstemba.errors import UsageError
from mstemba.pipeline.caching.files import visible
from mstemba.pipeline.evaluate.pickles import read_pickle
from mstemba.reading.arrays import read_npz
from mstemba.reading.files import file_size, read_bytes
from mstemba.reading.typed import Finite, Name, PathText, Time, convert, parse_untyped
from mstemba.records import Segment
from mstemba.wording import counted

_SATURATED = 16
"""A logit: above it, probabilities in float32 differ too little, or not at all."""
PICKLES = (".pkl", ".pickle", ".p")
FORMS = (
    "a pickle, .npz or JSON of dense scores by video id, or JSON of segments "
    '({"results": {id: [{"label", "segment", "score"}]}}, or what `mstemba detect` writes)'
)


class _Segment(Struct):
    """A segment of ActivityNet's results."""

    label: Name | int
    segment: tuple[Time, Time]
    score: Finite


class _Span(Struct):
    """A segment of `mstemba detect`."""

    label: Name
    start: Time
    end: Time
    score: Finite

    @property
    def segment(self) -> tuple[float, float]:
        return self.start, self.end


class _Results(Struct):
    results: dict[Name, list[_Segment]]


class _Detection(Struct):
    video: PathText
    segments: list[_Span]


@dataclass(frozen=True)
class Predictions:
    """What a file predicts, by video id: scores or segments."""

    path: Path
    scores: dict[str, NDArray[np.float32]] | None = None
    """(T, C) probabilities."""
    segments: dict[str, list[Segment]] | None = None
    """In the time unit of the annotations; in seconds if `mstemba detect` wrote them."""
    in_seconds: bool = False
    """Whether it is known that the segments are in seconds."""
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """How names of videos were read that are not ids, one line for each way."""

    @property
    def ids(self) -> list[str]:
        return [*(self.scores or {}), *(self.segments or {})]


def read_predictions(
    path: Path, classes: Sequence[str], videos: Iterable[Video] = ()
) -> Predictions:
    """Read the predictions in a file, or the segments in the JSON files of a folder.

    Args:
        path: A pickle, .npz or JSON file, or a folder that `mstemba detect` has written.
        classes: The manifest's classes.
        videos: The manifest's videos. A name in the file may be another form of an id, see
            `join_names`; `mstemba detect` names a video by its path.

    Raises:
        UsageError: The file has none of these forms, holds other classes, a shape that does not
            fit, NaN or no predictions, or predicts a video twice.
    """
    videos = list(videos)
    if path.is_dir():
        return _read_folder(path, classes, videos)
    file_size(path)
    with path.open("rb") as file:
        head = file.read(2)
    if head == b"PK":
        return _dense(path, read_npz(path), classes, videos, classes_first=False)
    if head[:1] == b"\x80" or path.suffix.lower() in PICKLES:
        return _dense(path, read_pickle(path), classes, videos, classes_first=True)
    data = _read_json(path)
    if isinstance(data.get("results"), dict):
        results, notes = _by_id(path, convert(data, _Results, str(path)).results, videos)
        return replace(_segments(path, results, classes), notes=notes)
    if isinstance(data.get("segments"), list):
        found = convert(data, _Detection, str(path))
        (id,), notes = _ids_of_detect(path, {path: found}, videos)
        return replace(_segments(path, {id: found.segments}, classes, True), notes=notes)
    scores = convert(data, dict[Name, Any], str(path))
    return _dense(path, scores, classes, videos, classes_first=False)


def _by_id(
    path: Path, found: Mapping[Any, Any], videos: Iterable[Video]
) -> tuple[dict[str, Any], list[str]]:
    """Return what a file has by id, and lines on other names; unknown names stay."""
    named = {_id(name): value for name, value in found.items()}
    joined = join_names(named, {video.id: video.path for video in videos})
    twice = joined.twice or next(((id, name, id) for name, id in joined.second.items()), None)
    if len(named) < len(found) or twice:
        which = f": {twice[0]!r} and {twice[1]!r} are {twice[2]!r}" if twice else ""
        raise UsageError(f"{path}: two entries of one video id{which}")
    by_id = {joined.ids.get(name, name): value for name, value in named.items()}
    return by_id, [f"{path}: {line}" for line in joined.lines("videos")]


def _read_folder(folder: Path, classes: Sequence[str], videos: Sequence[Video]) -> Predictions:
    found: dict[Path, _Detection] = {}
    others = []
    for file in visible(folder, "*.json"):
        data = _read_json(file)
        if not isinstance(data.get("segments"), list):
            others.append(file)
        else:
            found[file] = convert(data, _Detection, str(file))
    if not found:
        raise UsageError(f"{folder}: no JSON of `mstemba detect` in it; expected one, or {FORMS}")
    listed: dict[str, list[_Span]] = {}
    files: dict[str, Path] = {}
    ids, notes = _ids_of_detect(folder, found, videos)
    for id, (file, detection) in zip(ids, found.items(), strict=True):
        if id in files:
            raise UsageError(
                f"{files[id]} and {file} are both of the video {id!r}: keep one of them, or pass "
                f"the manifest in which they are two videos"
            )
        files[id], listed[id] = file, detection.segments
    predictions = _segments(folder, listed, classes, of_detect=True)
    if others:
        predictions.warnings.append(
            f"{folder}: {len(others)} JSON files are not of `mstemba detect` and are ignored, "
            f"for example {others[0].name}"
        )
    return replace(predictions, notes=notes)


def _ids_of_detect(
    path: Path, found: Mapping[Path, _Detection], videos: Sequence[Video]
) -> tuple[list[str], list[str]]:
    """Return the ids of the videos in files of `mstemba detect`, and lines on their names."""
    index = VideoIndex(videos)
    ids = [_video_id(file, data, index) for file, data in found.items()]
    open_ = {
        data.video: id
        for id, data in zip(ids, found.values(), strict=True)
        if index.get(id) is None
    }
    joined = join_names(open_, {video.id: video.path for video in videos})
    known = {open_[name]: id for name, id in (joined.ids | joined.second).items()}
    return [known.get(id, id) for id in ids], [f"{path}: {x}" for x in joined.lines("videos")]


def _video_id(file: Path, data: _Detection, index: VideoIndex) -> str:
    """Return the manifest's id of the video that `mstemba detect` names by its path.

    It is that of the video with this file; otherwise the longest end of its path that is an id
    (`monday/cam1` of `films/monday/cam1.mp4`), as videos may have moved; otherwise its stem.
    """
    path = Path(data.video)
    if not path.name:
        raise UsageError(f"{file}: found {data.video!r} at $.video, expected the path of a video")
    if video := index.with_file(path):
        return video.id
    for begin in range(len(path.parts)):
        end = Path(*path.parts[begin:])
        for id in (end.as_posix(), end.with_suffix("").as_posix()):
            if index.get(id):
                return id
    return path.stem


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = parse_untyped(read_bytes(path), str(path), unique=True)
    except UsageError as error:
        raise UsageError(f"{error}. Expected {FORMS}") from None
    if not isinstance(data, dict):
        raise UsageError(f"{path}: found a JSON {type(data).__name__}, expected {FORMS}")
    return data


def _dense(
    path: Path, raw: Any, classes: Sequence[str], videos: Iterable[Video], classes_first: bool
) -> Predictions:
    """Return (T, C) probabilities; `classes_first` decides which axis is which where T = C."""
    if not isinstance(raw, dict) or not raw:
        raise UsageError(f"{path}: found {_kind(raw)}, expected scores by video id")
    by_id, notes = _by_id(path, raw, videos)
    tables = {id: _table(path, id, value) for id, value in by_id.items()}
    axis = _class_axis(path, tables, len(classes), classes_first)
    if axis == 0:
        tables = {id: table.T for id, table in tables.items()}
    if odd := [id for id, table in tables.items() if not np.isfinite(table).all()]:
        raise UsageError(
            f"{path}: NaN or infinity in the scores of {len(odd)} of "
            f"{counted(len(tables), 'video')}, "
            f"for example {odd[0]!r}"
        )
    warnings = []
    if any(table.min() < 0 or table.max() > 1 for table in tables.values()):
        warnings = [
            f"{path}: scores outside 0 to 1 are treated as logits, and a sigmoid is applied"
        ]
        if any(table.max() > _SATURATED for table in tables.values()):
            warnings.append(
                f"{path}: logits above {_SATURATED} become the same probability, which makes ties: "
                f"scale scores that are not logits, such as percent, to 0 to 1"
            )
        tables = {id: _sigmoid(table.astype(np.float64)) for id, table in tables.items()}
    scores = {id: table.astype(np.float32) for id, table in tables.items()}
    return Predictions(path, scores=scores, warnings=warnings, notes=notes)


def _sigmoid(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return probabilities; those of large negative logits keep their order."""
    return np.exp(-np.logaddexp(0, -logits))


def _id(key: Any) -> str:
    return key.decode(errors="surrogateescape") if isinstance(key, bytes) else str(key)


def _kind(value: Any) -> str:
    kind = type(value).__name__
    return f"an empty {kind}" if isinstance(value, dict) and not value else f"a {kind}"


def _table(path: Path, id: str, value: Any) -> NDArray[np.floating]:
    """Return the matrix of one video, with its classes on either axis."""
    if isinstance(value, tuple) and value:
        value = value[0]  # (scores, frames per second), as in older releases of the field
    try:
        array = np.asarray(value)
    except ValueError:  # lists of different lengths
        array = np.array(None)
    shape = list(array.shape)
    while len(shape) > 2 and 1 in shape:
        shape.remove(1)
    if len(shape) == 1:
        shape.insert(0, 1)  # one step, its axis squeezed away
    if array.dtype.kind not in "fiub" or len(shape) != 2 or not array.size:
        raise UsageError(
            f"{path}: {id!r} is {array.dtype} of shape {array.shape}, "
            f"expected numbers of shape (T, C) or (C, T)"
        )
    return array.reshape(shape).astype(np.float64 if array.dtype.kind in "iub" else array.dtype)


def _class_axis(
    path: Path, tables: Mapping[str, NDArray[Any]], classes: int, classes_first: bool
) -> int:
    """Return the axis of the classes, which is the same in all tables."""
    preferred = (0, 1) if classes_first else (1, 0)
    for axis in preferred:
        if all(table.shape[axis] == classes for table in tables.values()):
            return axis
    for axis in preferred:
        sizes = {table.shape[axis] for table in tables.values()}
        if len(tables) > 1 and len(sizes) == 1:
            raise UsageError(
                f"{path}: scores of {counted(sizes.pop(), 'class')}, the manifest has {classes}: "
                f"the predictions are of another data set"
            )
    odd = next(id for id, table in tables.items() if classes not in table.shape[-1:])
    raise UsageError(
        f"{path}: the scores of {odd!r} have shape {tables[odd].shape}, expected (T, {classes}) "
        f"for the manifest's {counted(classes, 'class')}, or ({classes}, T) in all videos"
    )


def _segments(
    path: Path,
    results: Mapping[str, list[_Span] | list[_Segment]],
    classes: Sequence[str],
    of_detect: bool = False,
) -> Predictions:
    """Read lists of segments by video id; `of_detect` tells how and in what unit they are."""
    numbers = {_composed(name): number for number, name in enumerate(classes)}
    unknown: Counter[str] = Counter()
    without_length = 0
    segments: dict[str, list[Segment]] = {}
    for id, listed in results.items():
        kept = segments.setdefault(id, [])
        for item in listed:
            label, (start, end) = str(item.label), item.segment
            class_id = numbers.get(_composed(label))
            if class_id is None:
                unknown[label] += 1
            elif end <= start:
                without_length += 1
            else:
                kept.append(Segment(start, end, class_id, classes[class_id], item.score))
    if unknown and not any(segments.values()):
        raise UsageError(
            f"{path}: none of its labels ({len(unknown)}), for example {min(unknown)!r}, is a "
            f"class of the manifest, for example {classes[0]!r}"
        )
    warnings = []
    if unknown:
        warnings.append(
            f"{path}: ignored {counted(unknown.total(), 'segment')} of "
            f"{counted(len(unknown), 'class')} that the manifest does not have, "
            f"for example {min(unknown)!r}"
        )
    if without_length:
        warnings.append(f"{path}: ignored {counted(without_length, 'segment')} without length")
    return Predictions(path, segments=segments, in_seconds=of_detect, warnings=warnings)


def _composed(label: str) -> str:
    """Return a label in the form in which labels are compared."""
    return unicodedata.normalize("NFC", label)
