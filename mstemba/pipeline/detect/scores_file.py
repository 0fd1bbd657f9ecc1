"""Saved scores: the dense probabilities of a video with their times, so that another threshold or
format needs no second pass."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

from mstemba.data_manifests.video_files import SCORES_SUFFIX
from mstemba.errors import StoreError
from mstemba.limits import LONGEST_NAME, LONGEST_VIDEO
from mstemba.pipeline.caching.files import write_atomically
from mstemba.pipeline.features.row_times import pictures_anchor
from mstemba.reading.arrays import read_npz
from mstemba.reading.files import file_size, real_path
from mstemba.reading.typed import Name, PathText, Seconds, convert, parse_untyped
from mstemba.records import Scores, TimeGrid

SUFFIX = SCORES_SUFFIX


Texts = TypeVar("Texts", bound=Struct)
FrameCount = Annotated[int, Meta(ge=0, le=10**9)]
# Any text: Python programs may save scores of classes that no annotation can have.
_ClassName = Annotated[str, Meta(max_length=LONGEST_NAME)]


class _Features(Struct):
    """What is used of the features' specification."""

    window: FrameCount = 0
    stride: FrameCount | None = None
    every: FrameCount = 1


class _Provenance(Struct):
    """What is used of the provenance."""

    features: _Features = msgspec.field(default_factory=_Features)
    zero_shot: dict[str, Any] | None = None


class _Source(Struct, kw_only=True):
    """The texts of a scores file that tell what it is of. The first files have no id."""

    key: str
    video: PathText
    fingerprint: str
    id: Name | None = None
    place: PathText | None = None
    """Path of the video, from the folder of the scores file."""


class _Content(_Source, kw_only=True):
    """All texts and numbers of a scores file. What the first files do not have has a default."""

    step: Annotated[float, Meta(gt=0, le=LONGEST_VIDEO)]
    duration: Seconds
    fps: Annotated[float, Meta(gt=0, le=1e6)]
    timecode: str = ""
    anchor: float | None = None
    provenance: str = "{}"


@dataclass(frozen=True)
class SavedScores:
    """What a scores file holds."""

    scores: Scores
    """Dense probabilities, with their times."""
    key: str
    """Cache key: what the scores were made from and how."""
    fingerprint: str
    """Of the video's content: with the path it tells another video of the same name apart."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """What scored the video, and the features that it scored."""
    id: str = ""
    """The video's, from its manifest or from `detect`."""


@dataclass(frozen=True)
class ScoresFile:
    """A readable scores file: what it is of, without its dense scores, which `read` gives."""

    path: Path
    key: str
    """Cache key: what the scores were made from and how."""
    video: str
    """Absolute path of the scored video, links followed; the new one if it was moved together with
    the scores."""
    fingerprint: str
    """Of the video's content."""
    id: str
    """The video's, from its manifest or from `detect`."""

    def is_of(self, video: Path, fingerprint: str) -> bool:
        """Return whether this is the scored video, by its path or its content."""
        return self.video == str(real_path(video)) or self.fingerprint == fingerprint

    def read(self) -> SavedScores:
        """Read all of the file.

        Raises:
            StoreError: The file is damaged, or another one since it was opened.
        """
        saved = read_scores(self.path)
        if saved.key != self.key:
            raise StoreError(f"{self.path}: other scores were saved meanwhile; detect again")
        return saved


def open_scores(path: Path) -> ScoresFile | None:
    """Open a scores file; None if there is no readable one."""
    try:
        arrays = read_npz(path, StoreError, _Source.__struct_fields__)
        found = _texts_and_numbers(path, arrays, _Source)
    except (StoreError, ValueError):
        return None
    video = os.path.realpath(_video_now(found, path.parent))
    return ScoresFile(path, found.key, video, found.fingerprint, found.id or name_of(path))


def read_scores(path: str | Path) -> SavedScores:
    """Read scores that `detect` saved. Nothing in the file is executed.

    Raises:
        StoreError: There is no such file, or it is damaged.
    """
    path = Path(path)
    file_size(path, StoreError)
    try:
        return _read(path)
    except (StoreError, ValueError, KeyError) as error:
        told = str(error).removeprefix(f"{path}: ")
        raise StoreError(
            f"{path}: not readable as saved scores ({told}); `mstemba detect` makes them again"
        ) from None


def _read(path: Path) -> SavedScores:
    """Read a scores file. Raises StoreError, ValueError or KeyError if it is damaged."""
    arrays = read_npz(path, StoreError)
    found = _texts_and_numbers(path, arrays, _Content)
    provenance = parse_untyped(found.provenance.encode(), f"{path}: provenance", StoreError)
    typed = convert(provenance, _Provenance, f"{path}: provenance", StoreError)
    starts = arrays["starts"]
    if starts.dtype.kind not in "fiu" or not (np.abs(starts) <= LONGEST_VIDEO).all():
        raise ValueError(f"expected starts of at most {LONGEST_VIDEO:.0f} seconds")
    scores = Scores(
        probabilities=arrays["probabilities"],
        grid=TimeGrid(starts, found.step),
        classes=_class_names(path, arrays["classes"]),
        video=_video_now(found, path.parent),
        duration=found.duration,
        fps=found.fps,
        timecode=found.timecode,
        anchor=_usual_anchor(typed) if found.anchor is None else found.anchor,
    )
    return SavedScores(scores, found.key, found.fingerprint, provenance, found.id or name_of(path))


def _video_now(found: _Source, folder: Path) -> str:
    """Return the path of the scored video, or where it is if it was moved with its scores."""
    moved = os.path.normpath(os.path.join(os.path.realpath(folder), found.place or ""))
    gone = not os.path.lexists(found.video)
    return moved if found.place and gone and os.path.exists(moved) else found.video


def _texts_and_numbers(path: Path, arrays: dict[str, NDArray[Any]], type: type[Texts]) -> Texts:
    names = [name for name in type.__struct_fields__ if name in arrays]
    return convert({name: arrays[name].tolist() for name in names}, type, str(path), StoreError)


def _usual_anchor(provenance: _Provenance) -> float:
    """Return the anchor of a file that does not have it."""
    features = provenance.features
    if provenance.zero_shot is None or not features.stride:
        return 0.0
    return pictures_anchor(features.window, features.stride)


def _class_names(path: Path, saved: NDArray[Any]) -> tuple[str, ...]:
    """Return the names of their JSON, or of the first files' array."""
    names = saved.tolist()
    if saved.ndim == 0:
        names = parse_untyped(str(names).encode(), f"{path}: classes", StoreError)
    return convert(names, tuple[_ClassName, ...], str(path), StoreError, "$.classes")


def name_of(path: Path) -> str:
    """Return the name of a scores file without its suffix."""
    return path.name.removesuffix(SUFFIX)


def save_scores(path: Path, saved: SavedScores) -> None:
    """Write `probabilities` (T, C), `starts` (T,) in seconds, `classes` as JSON, and the rest.

    `anchor` says where in its row a probability holds, see `Scores.anchor`.

    Scores without an id get the file's name.
    """
    scores = saved.scores
    write_atomically(
        path,
        lambda temporary: np.savez_compressed(
            temporary,
            probabilities=scores.probabilities,
            starts=scores.grid.starts,
            step=scores.grid.step,
            # NumPy drops a NUL at the end of a text.
            classes=json.dumps(scores.classes),
            id=saved.id or name_of(path),
            video=os.path.abspath(scores.video),
            place=_place(scores.video, path.parent),
            fingerprint=saved.fingerprint,
            duration=scores.duration,
            fps=scores.fps,
            timecode=scores.timecode,
            anchor=scores.anchor,
            key=saved.key,
            provenance=json.dumps(saved.provenance),
        ),
    )


def _place(video: str, folder: Path) -> str:
    """Return the relative path of a video, which stays the same if all is moved together."""
    try:
        return os.path.relpath(os.path.realpath(video), os.path.realpath(folder))
    except ValueError:  # on another drive of Windows
        return os.path.abspath(video)
