"""Training options for known datasets, stored as data in data_manifests/recipes/."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import fields, replace
from functools import cache
from typing import Any

from mstemba.data_manifests.datasets import DATASETS, PACKAGE
from mstemba.errors import UsageError
from mstemba.pipeline.options import TrainOptions
from mstemba.reading.typed import Name, read_toml

RECIPES = ("paper", "tuned")
_ALIASES = {"smarthome": "tsu", "smarthome_cs": "tsu", "smarthome_cs_51": "tsu"}
"""Names of common annotation files, which manifests may have as their dataset."""


def options_for(dataset: str, recipe: str = "auto", **given: Any) -> TrainOptions:
    """Return the options of a recipe.

    Args:
        dataset: As a manifest calls it.
        recipe: As for `choose`.
        given: Options that take precedence over the recipe.

    Raises:
        UsageError: As `choose`, or an option has an invalid value.
    """
    return apply(TrainOptions(**given), dataset, choose(dataset, recipe), given)[0]


def choose(dataset: str, recipe: str) -> str:
    """Return `paper`, `tuned` or `none`: the given recipe, or what `auto` means for a dataset.

    Raises:
        UsageError: The recipe is unknown, or the dataset has none.
    """
    known = _known(dataset) is not None
    if recipe == "auto":
        return "tuned" if known else "none"
    if recipe not in (*RECIPES, "none"):
        raise UsageError(f"recipe is {recipe!r}, expected one of auto, none, {', '.join(RECIPES)}")
    if recipe != "none" and not known:
        raise UsageError(
            f"no recipe {recipe!r} for the dataset {dataset!r}, only for "
            f"{', '.join(DATASETS)}; use --recipe none, or correct `dataset` in the manifest"
        )
    return recipe


def apply(
    options: TrainOptions, dataset: str, recipe: str, given: Collection[str] = ()
) -> tuple[TrainOptions, str]:
    """Return the options with the values of a recipe, and a line that says which options those are.

    Args:
        options: The options that are given, the others at their defaults.
        dataset: As a manifest calls it.
        recipe: From `choose`.
        given: Names of the options that take precedence over the recipe. Default: those that
            differ from their defaults.
    """
    name = _known(dataset)
    if recipe == "none" or name is None:
        return options, "recipe none: the given options and the defaults"
    given = given or [f.name for f in fields(options) if getattr(options, f.name) != f.default]
    values = load(name, recipe)
    description = f"recipe {recipe} of {name}"
    if overridden := sorted(set(given) & set(values)):
        description += f", except for {', '.join(overridden)} as given"
    return replace(options, **{k: v for k, v in values.items() if k not in given}), description


@cache
def load(dataset: str, recipe: str) -> dict[str, Any]:
    """Return the options that a recipe sets, by name, for one of DATASETS and of RECIPES."""
    file = PACKAGE / "recipes" / f"{dataset}-{recipe}.toml"
    return read_toml(file, dict[Name, str | int | float | bool])


def clip_length(dataset: str) -> int:
    """Return the rows of a clip in the paper's recipe, to which the released code pads and cuts.

    Args:
        dataset: As a manifest calls it.

    Raises:
        UsageError: The dataset has no recipes.
    """
    choose(dataset, "paper")
    return int(load(str(_known(dataset)), "paper")["clip_length"])


def _known(dataset: str) -> str | None:
    """Return which of DATASETS a manifest's name for its dataset means."""
    name = dataset.strip().lower().replace(" ", "_").replace("-", "_")
    name = _ALIASES.get(name, name)
    return name if name in DATASETS else None
