"""Kept scores: the dense probabilities of a video with their times, so that another threshold or
format needs no second pass."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

from mstemba.pipeline.files import write_atomically
from mstemba.records import Scores, TimeGrid

# What numpy raises for one kind of damage or another.
DAMAGED = (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile, zlib.error)


def save_scores(path: Path, scores: Scores, key: str, video: Path, fingerprint: str) -> None:
    """Write `probabilities` (T, C), `starts` (T,) in seconds, `classes`, and the rest of Scores.

    `video` and its content's `fingerprint` tell another video's scores of the same name apart.
    """
    write_atomically(
        path,
        lambda temporary: np.savez_compressed(
            temporary,
            probabilities=scores.probabilities,
            starts=scores.grid.starts,
            step=scores.grid.step,
            classes=np.array(scores.classes, dtype=np.str_),
            video=str(video.resolve()),
            fingerprint=fingerprint,
            duration=scores.duration,
            fps=scores.fps,
            key=key,
        ),
    )


def load_scores(path: Path, key: str) -> Scores | None:
    """The kept scores if they have this key; None when there are none, others, or damaged ones."""
    try:
        with np.load(path, allow_pickle=False) as data:
            if str(data["key"]) != key:
                return None
            return Scores(
                probabilities=data["probabilities"],
                grid=TimeGrid(data["starts"], float(data["step"])),
                classes=tuple(data["classes"].tolist()),
                video=str(data["video"]),
                duration=float(data["duration"]),
                fps=float(data["fps"]),
            )
    except FileNotFoundError:
        return None
    except DAMAGED:
        return None  # damaged: made again


def scored_video(path: Path) -> tuple[str, str] | None:
    """The video a scores file is of, as (path, fingerprint); None when there is no readable one."""
    try:
        with np.load(path, allow_pickle=False) as data:
            return str(data["video"]), str(data["fingerprint"])
    except DAMAGED:
        return None
