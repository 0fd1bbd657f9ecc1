"""Saved scores: the dense probabilities of a video with their times, so that another threshold or
format needs no second pass."""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mstemba.data_manifests.video_files import SCORES_SUFFIX
from mstemba.errors import StoreError
from mstemba.pipeline.caching.files import write_atomically
from mstemba.pipeline.features.row_times import pictures_anchor
from mstemba.records import Scores, TimeGrid

SUFFIX = SCORES_SUFFIX
# What numpy raises for one kind of damage or another.
_DAMAGE = (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile, zlib.error)


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
    """Absolute path of the scored video, links followed."""
    fingerprint: str
    """Of the video's content."""
    id: str
    """The video's, from its manifest or from `detect`."""

    def is_of(self, video: Path, fingerprint: str) -> bool:
        """Return whether this is the scored video, by its path or its content."""
        return self.video == str(video.resolve()) or self.fingerprint == fingerprint

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
        with np.load(path, allow_pickle=False) as data:
            return ScoresFile(
                path,
                key=str(data["key"]),
                video=os.path.realpath(str(data["video"])),
                fingerprint=str(data["fingerprint"]),
                id=_id(data, path),
            )
    except _DAMAGE:
        return None


def read_scores(path: str | Path) -> SavedScores:
    """Read scores that `detect` saved. Nothing in the file is executed.

    Raises:
        StoreError: There is no such file, or it is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as data:
            # The first files have no provenance.
            provenance = json.loads(str(data["provenance"])) if "provenance" in data else {}
            scores = Scores(
                probabilities=data["probabilities"],
                grid=TimeGrid(data["starts"], float(data["step"])),
                classes=_class_names(data["classes"]),
                video=str(data["video"]),
                duration=float(data["duration"]),
                fps=float(data["fps"]),
                timecode=str(data["timecode"]) if "timecode" in data else "",
                anchor=float(data["anchor"]) if "anchor" in data else _usual_anchor(provenance),
            )
            key, fingerprint = str(data["key"]), str(data["fingerprint"])
            return SavedScores(scores, key, fingerprint, provenance, _id(data, Path(path)))
    except FileNotFoundError:
        raise StoreError(f"{path}: no such file") from None
    except _DAMAGE as error:
        raise StoreError(
            f"{path}: not readable as saved scores ({error}); `mstemba detect` makes them again"
        ) from None


def _id(data: Any, path: Path) -> str:
    # The first files have no id.
    return str(data["id"]) if "id" in data else name_of(path)


def _usual_anchor(provenance: dict[str, Any]) -> float:
    """Return the anchor of a file that does not have it."""
    if "zero_shot" not in provenance:
        return 0.0
    features = provenance["features"]
    return pictures_anchor(features["window"], features["stride"])


def _class_names(saved: NDArray[np.str_]) -> tuple[str, ...]:
    """Return the names of their JSON, or of the first files' array. Raises ValueError."""
    names = saved.tolist() if saved.ndim else json.loads(str(saved))
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("the classes are not names")
    return tuple(names)


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
            fingerprint=saved.fingerprint,
            duration=scores.duration,
            fps=scores.fps,
            timecode=scores.timecode,
            anchor=scores.anchor,
            key=saved.key,
            provenance=json.dumps(saved.provenance),
        ),
    )
