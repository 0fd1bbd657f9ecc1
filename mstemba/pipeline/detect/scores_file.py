"""Kept scores: the dense probabilities of a video with their times, so that another threshold or
format needs no second pass."""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mstemba.errors import StoreError
from mstemba.pipeline.caching.files import write_atomically
from mstemba.records import Scores, TimeGrid

SUFFIX = ".scores.npz"
# What numpy raises for one kind of damage or another.
DAMAGED = (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class SavedScores:
    """What a scores file holds."""

    scores: Scores
    """Dense probabilities, with their times."""
    key: str
    """Of what the scores were made from and how."""
    fingerprint: str
    """Of the video's content: with its path it tells another video of the same name apart."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """What scored the video, from which features."""
    id: str = ""
    """The video's, which its manifest or `detect` gave it."""


def save_scores(path: Path, kept: SavedScores) -> None:
    """Write `probabilities` (T, C), `starts` (T,) in seconds, `classes` as JSON, and the rest.

    Without an id the scores have the file's stem.
    """
    scores = kept.scores
    write_atomically(
        path,
        lambda temporary: np.savez_compressed(
            temporary,
            probabilities=scores.probabilities,
            starts=scores.grid.starts,
            step=scores.grid.step,
            # NumPy drops a NUL at the end of a text.
            classes=json.dumps(scores.classes),
            id=kept.id or _stem(path),
            video=os.path.abspath(scores.video),
            fingerprint=kept.fingerprint,
            duration=scores.duration,
            fps=scores.fps,
            key=kept.key,
            provenance=json.dumps(kept.provenance),
        ),
    )


def read_scores(path: str | Path) -> SavedScores:
    """Read scores that `detect` kept. Raises StoreError when there are none, or damaged ones."""
    try:
        with np.load(path, allow_pickle=False) as data:
            scores = Scores(
                probabilities=data["probabilities"],
                grid=TimeGrid(data["starts"], float(data["step"])),
                classes=_class_names(data["classes"]),
                video=str(data["video"]),
                duration=float(data["duration"]),
                fps=float(data["fps"]),
            )
            # The first files do not have these.
            provenance = json.loads(str(data["provenance"])) if "provenance" in data else {}
            id = str(data["id"]) if "id" in data else _stem(Path(path))
            return SavedScores(scores, str(data["key"]), str(data["fingerprint"]), provenance, id)
    except FileNotFoundError:
        raise StoreError(f"{path}: no such file") from None
    except DAMAGED as error:
        raise StoreError(
            f"{path}: not readable as kept scores ({error}); `mstemba detect` makes them again"
        ) from None


def _class_names(kept: NDArray[np.str_]) -> tuple[str, ...]:
    """Names from their JSON, or from the first files' array. Raises ValueError for what is none."""
    names = kept.tolist() if kept.ndim else json.loads(str(kept))
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("the classes are no names")
    return tuple(names)


def _stem(path: Path) -> str:
    return path.name.removesuffix(SUFFIX)


def load_scores(path: Path, key: str) -> Scores | None:
    """The kept scores if they have this key; None when there are none, others, or damaged ones."""
    try:
        with np.load(path, allow_pickle=False) as data:
            if str(data["key"]) != key:
                return None
        return read_scores(path).scores
    except (StoreError, *DAMAGED):
        return None  # damaged ones are made again


def scores_key(path: Path) -> str | None:
    """The key of a scores file; None when there is no readable one. Reads nothing else."""
    try:
        with np.load(path, allow_pickle=False) as data:
            return str(data["key"])
    except DAMAGED:
        return None


class Scored(NamedTuple):
    """The video that a scores file is of."""

    path: str
    """Absolute, links followed."""
    fingerprint: str
    id: str


def scored_video(path: Path) -> Scored | None:
    """The video a scores file is of; None when there is no readable one."""
    try:
        with np.load(path, allow_pickle=False) as data:
            id = str(data["id"]) if "id" in data else _stem(path)
            return Scored(os.path.realpath(str(data["video"])), str(data["fingerprint"]), id)
    except DAMAGED:
        return None
