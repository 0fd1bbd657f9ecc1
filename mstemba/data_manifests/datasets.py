"""Facts about published datasets: class names and ids, units, splits, form of video ids.

They are in one .toml file per dataset, next to this module.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Literal

from mstemba.errors import UsageError
from mstemba.reading.typed import read_toml

PACKAGE = Path(__file__).parent
"""Folder of the files of datasets and recipes."""
DATASETS = ("charades", "tsu", "multithumos")


@dataclass(frozen=True)
class Split:
    """A rule for the subset of a video by a part of its id, such as the subject or the camera."""

    group: str
    """The part of the id, a named group in `Dataset.video_id`."""
    training: Sequence[str]
    testing: Sequence[str]
    videos: Mapping[str, int]
    """Number of videos by subset."""


@dataclass(frozen=True)
class Dataset:
    """A published dataset."""

    name: str
    title: str
    classes: tuple[str, ...]
    """Names, in the order of the class ids."""
    time_unit: Literal["seconds", "frames"]
    """Unit of the published annotations: `seconds` or `frames`."""
    video_id: str
    """Form of the video ids, a regular expression."""
    videos: Mapping[str, int] = field(default_factory=dict)
    """Number of videos by subset, if there are no splits by rule."""
    fps: float | None = None
    """Frame rate of the recordings, if annotations count frames."""
    first_ids: Sequence[int] = (0,)
    """Numbers of the first class in the files in circulation."""
    splits: Mapping[str, Split] = field(default_factory=dict)
    """Splits by name, the default first."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Other spellings of the `classes` in annotation files."""

    def owns(self, id: str) -> bool:
        """Return whether an id has the form of this dataset's ids."""
        return re.fullmatch(self.video_id, id, re.ASCII) is not None

    def split(self, name: str | None = None) -> Split | None:
        """Return a split, by default the first; None if the files define the subsets.

        Raises UsageError for an unknown name.
        """
        if name is None:
            return next(iter(self.splits.values()), None)
        if name not in self.splits:
            choices = ", ".join(self.splits) or "none, because its files define the subsets"
            raise UsageError(f"{self.title} has no split {name!r}; available: {choices}")
        return self.splits[name]

    def subset(self, id: str, split: Split) -> str | None:
        """Return `training` or `testing`, or None for an id that the split does not cover."""
        found = re.fullmatch(self.video_id, id, re.ASCII)
        part = found and found[split.group]
        if part in split.training:
            return "training"
        return "testing" if part in split.testing else None


@cache
def load_dataset(name: str) -> Dataset:
    """Load a dataset. Raises UsageError for a name that is not one of DATASETS."""
    if name not in DATASETS:
        raise UsageError(f"unknown dataset {name!r}; available: {', '.join(DATASETS)}")
    return read_toml(PACKAGE / f"{name}.toml", Dataset)


def recognise(ids: Iterable[str]) -> Dataset | None:
    """Return the dataset whose form of id at least nine tenths of these ids have."""
    known = list(ids)
    for name in DATASETS:
        dataset = load_dataset(name)
        if known and sum(map(dataset.owns, known)) >= 0.9 * len(known):
            return dataset
    return None
