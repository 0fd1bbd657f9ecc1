"""Kept scores: the dense probabilities of a video with their times, so that another threshold or
format needs no second pass."""

from __future__ import annotations

import json
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mstemba.errors import StoreError
from mstemba.pipeline.files import write_atomically
from mstemba.records import Scores, TimeGrid

SUFFIX = ".scores.npz"
# What numpy raises for one kind of damage or another.
DAMAGED = (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class KeptScores:
    """What a scores file holds."""

    scores: Scores
    """Dense probabilities, with their times."""
    key: str
    """Of what the scores were made from and how."""
    fingerprint: str
    """Of the video's content: with its path it tells another video of the same name apart."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """What scored the video, from which features."""


def save_scores(path: Path, kept: KeptScores) -> None:
    """Write `probabilities` (T, C), `starts` (T,) in seconds, `classes`, and the rest."""
    scores = kept.scores
    write_atomically(
        path,
        lambda temporary: np.savez_compressed(
            temporary,
            probabilities=scores.probabilities,
            starts=scores.grid.starts,
            step=scores.grid.step,
            classes=np.array(scores.classes, dtype=np.str_),
            video=str(Path(scores.video).resolve()),
            fingerprint=kept.fingerprint,
            duration=scores.duration,
            fps=scores.fps,
            key=kept.key,
            provenance=json.dumps(kept.provenance),
        ),
    )


def read_scores(path: str | Path) -> KeptScores:
    """Read scores that `detect` kept. Raises StoreError when there are none, or damaged ones."""
    try:
        with np.load(path, allow_pickle=False) as data:
            scores = Scores(
                probabilities=data["probabilities"],
                grid=TimeGrid(data["starts"], float(data["step"])),
                classes=tuple(data["classes"].tolist()),
                video=str(data["video"]),
                duration=float(data["duration"]),
                fps=float(data["fps"]),
            )
            # Files of version 0.1.0 do not have it.
            provenance = json.loads(str(data["provenance"])) if "provenance" in data else {}
            return KeptScores(scores, str(data["key"]), str(data["fingerprint"]), provenance)
    except FileNotFoundError:
        raise StoreError(f"{path}: no such file") from None
    except DAMAGED as error:
        raise StoreError(
            f"{path}: not readable as kept scores ({error}); `mstemba detect` makes them again"
        ) from None


def load_scores(path: Path, key: str) -> Scores | None:
    """The kept scores if they have this key; None when there are none, others, or damaged ones."""
    try:
        with np.load(path, allow_pickle=False) as data:
            if str(data["key"]) != key:
                return None
        return read_scores(path).scores
    except (StoreError, *DAMAGED):
        return None  # damaged ones are made again


def scored_video(path: Path) -> tuple[str, str] | None:
    """The video a scores file is of, as (path, fingerprint); None when there is no readable one."""
    try:
        with np.load(path, allow_pickle=False) as data:
            return str(data["video"]), str(data["fingerprint"])
    except DAMAGED:
        return None
