"""Sets of training options for the field's datasets, kept as data in data_manifests/recipes/."""

from __future__ import annotations

import tomllib
from collections.abc import Collection
from dataclasses import fields, replace
from functools import cache
from importlib import resources
from typing import Any

from mstemba.data_manifests.datasets import DATASETS
from mstemba.errors import UsageError
from mstemba.pipeline.options import TrainOptions

RECIPES = ("paper", "tuned")
_ALIASES = {"smarthome": "tsu", "smarthome_cs": "tsu", "smarthome_cs_51": "tsu"}
"""Names of annotation files that are about, by which manifests may be called."""


def options_for(dataset: str, recipe: str = "auto", **given: Any) -> TrainOptions:
    """The options of a recipe, with those given in place of its own.

    dataset: a manifest's name for it. Raises UsageError as `choose` does, or for an odd value.
    """
    return apply(TrainOptions(**given), dataset, choose(dataset, recipe), given)


def choose(dataset: str, recipe: str) -> str:
    """`paper`, `tuned` or `none`: what is asked for, or what `auto` means for this dataset.

    Raises UsageError for an unknown recipe, or one of a dataset that has none.
    """
    known = _known(dataset) is not None
    if recipe == "auto":
        return "tuned" if known else "none"
    if recipe not in (*RECIPES, "none"):
        raise UsageError(f"recipe is {recipe!r}, expected one of auto, none, {', '.join(RECIPES)}")
    if recipe != "none" and not known:
        raise UsageError(
            f"there is no recipe {recipe!r} for the dataset {dataset!r}, only for "
            f"{', '.join(DATASETS)}; use --recipe none, or correct `dataset` in the manifest"
        )
    return recipe


def apply(
    options: TrainOptions, dataset: str, recipe: str, given: Collection[str] = ()
) -> TrainOptions:
    """The options with the recipe's values, but for those that `given` names."""
    name = _known(dataset)
    if recipe == "none" or name is None:
        return options
    values = load(name, recipe)
    return replace(options, **{k: v for k, v in values.items() if k not in given})


def changed(options: TrainOptions) -> list[str]:
    """The names of the options that are not at their defaults."""
    return [f.name for f in fields(options) if getattr(options, f.name) != f.default]


def explain(dataset: str, recipe: str, given: Collection[str] = ()) -> str:
    """One line that says which options a run uses."""
    name = _known(dataset)
    if recipe == "none" or name is None:
        return "recipe none: the options as given, and the defaults"
    if overruled := sorted(set(given) & set(load(name, recipe))):
        return f"recipe {recipe} of {name}, but for {', '.join(overruled)} as given"
    return f"recipe {recipe} of {name}"


@cache
def load(dataset: str, recipe: str) -> dict[str, Any]:
    """The options that a recipe sets, by name; one of DATASETS and of RECIPES."""
    folder = resources.files("mstemba.data_manifests").joinpath("recipes")
    text = folder.joinpath(f"{dataset}-{recipe}.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def clip_length(dataset: str) -> int:
    """Rows of a clip in the paper's recipe, which the released code pads and cuts videos to.

    dataset: a manifest's name for it. Raises UsageError for a dataset without recipes.
    """
    choose(dataset, "paper")
    return int(load(str(_known(dataset)), "paper")["clip_length"])


def _known(dataset: str) -> str | None:
    """Which of DATASETS a manifest's name for its dataset means."""
    name = dataset.strip().lower().replace(" ", "_").replace("-", "_")
    name = _ALIASES.get(name, name)
    return name if name in DATASETS else None
