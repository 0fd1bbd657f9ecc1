"""What is known of the published datasets: class names and ids, units, splits, form of video ids.

The facts are data: one .toml file a dataset, beside this module.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

from mstemba.errors import UsageError

DATASETS = ("charades", "tsu", "multithumos")


@dataclass(frozen=True)
class Split:
    """A rule that tells a video's subset by a part of its id, such as the subject or the camera."""

    name: str
    group: str
    """The part of the id, a named group of the dataset's `video_id`."""
    training: frozenset[str]
    testing: frozenset[str]
    videos: Mapping[str, int]
    """How many videos of each subset there are in all."""


@dataclass(frozen=True)
class Dataset:
    """A published dataset."""

    name: str
    title: str
    classes: tuple[str, ...]
    """The position is the class id."""
    time_unit: str
    """Of the published annotations: `seconds` or `frames`."""
    video_id: re.Pattern[str]
    """The form of its video ids."""
    videos: Mapping[str, int]
    """How many videos of each subset there are, where no split is a rule."""
    fps: float | None = None
    """Frames a second of the recordings, where annotations count frames."""
    first_ids: tuple[int, ...] = (0,)
    """The numbers from which class ids count in the files that are about."""
    splits: Mapping[str, Split] = field(default_factory=dict)
    """By name, the usual one first."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Class names in its annotation files that stand for one of `classes`."""

    def owns(self, id: str) -> bool:
        """Whether the id has the form of this dataset's ids."""
        return self.video_id.fullmatch(id) is not None

    def split(self, name: str | None = None) -> Split | None:
        """The split of this name, or the usual one; None where the files say the subsets.

        Raises UsageError, with the choices, for a name that is none of its splits.
        """
        if name is None:
            return next(iter(self.splits.values()), None)
        if name not in self.splits:
            choices = ", ".join(self.splits) or "none: its files say the subsets"
            raise UsageError(f"{self.title} has no split {name!r}; there is {choices}")
        return self.splits[name]

    def subset(self, id: str, split: Split) -> str | None:
        """`training` or `testing`; None for an id that the split does not name."""
        found = self.video_id.fullmatch(id)
        part = found and found[split.group]
        if part in split.training:
            return "training"
        return "testing" if part in split.testing else None


@cache
def load_dataset(name: str) -> Dataset:
    """The dataset of this name. Raises UsageError for a name that is not one of DATASETS."""
    if name not in DATASETS:
        raise UsageError(f"unknown dataset {name!r}; known are {', '.join(DATASETS)}")
    text = (
        resources.files("mstemba.data_manifests")
        .joinpath(f"{name}.toml")
        .read_text(encoding="utf-8")
    )
    data: dict[str, Any] = tomllib.loads(text)
    splits = {
        key: Split(
            key,
            rule["group"],
            frozenset(rule["training"]),
            frozenset(rule["testing"]),
            rule["videos"],
        )
        for key, rule in data.get("splits", {}).items()
    }
    return Dataset(
        name=data["name"],
        title=data["title"],
        classes=tuple(data["classes"]),
        time_unit=data["time_unit"],
        video_id=re.compile(data["video_id"], re.ASCII),
        videos=data.get("videos", {}),
        fps=data.get("fps"),
        first_ids=tuple(data.get("first_ids", (0,))),
        splits=splits,
        aliases=data.get("aliases", {}),
    )


def recognise(ids: Iterable[str]) -> Dataset | None:
    """The dataset whose form of id nearly all of these have, if there is one."""
    known = list(ids)
    for name in DATASETS:
        dataset = load_dataset(name)
        if known and sum(map(dataset.owns, known)) >= 0.9 * len(known):
            return dataset
    return None
