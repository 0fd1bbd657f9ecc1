"""Recipes are data that every option of the command line can overrule."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from mstemba.data_manifests.datasets import DATASETS
from mstemba.errors import UsageError
from mstemba.pipeline import recipes
from mstemba.pipeline.options import TrainOptions, TrainRunOptions
from mstemba.pipeline.train.stage import train
from mstemba.pipeline.workspace import open_workspace
from tests.command_line import Runner
from tests.training import HERE, TINY, make_workspace

pytestmark = pytest.mark.usefixtures("one_thread")

QUIET = TrainRunOptions(**HERE)

ALL = [(dataset, recipe) for dataset in DATASETS for recipe in recipes.RECIPES]
# Clip length (steps), batch, epochs and peak rate as published; MS-Temba and MS-TCT agree on them.
PUBLISHED = {
    "charades": (256, 5, 50, 5e-4),
    "tsu": (2500, 1, 140, 4.5e-4),
    "multithumos": (800, 1, 100, 5e-4),
}


def test_there_is_one_file_a_recipe() -> None:
    folder = resources.files("mstemba.data_manifests") / "recipes"
    assert {f.name for f in folder.iterdir()} == {f"{d}-{r}.toml" for d, r in ALL}


@pytest.mark.parametrize(("dataset", "recipe"), ALL)
def test_a_recipe_sets_options_that_there_are(dataset: str, recipe: str) -> None:
    values = recipes.load(dataset, recipe)
    defaults = asdict(TrainOptions())
    for name, value in values.items():
        assert type(value) is type(defaults[name]), name
    options = recipes.options_for(dataset, recipe)
    assert asdict(options) == {**defaults, **values}
    found = (options.clip_length, options.batch_size, options.epochs, options.lr)
    assert found == PUBLISHED[dataset]
    # Where it runs, and what a user compares, is not a recipe's.
    assert not {"arch", "width", "seed", "labels"} & set(values)
    assert not {f.name for f in fields(TrainRunOptions)} & set(values)


@pytest.mark.parametrize("dataset", DATASETS)
def test_what_the_recipes_are_held_to(dataset: str) -> None:
    paper, tuned = (recipes.options_for(dataset, recipe) for recipe in recipes.RECIPES)
    assert (paper.auxiliary_weight, paper.consistency_weight, paper.ema) == (0.3, 100.0, 0.0)
    assert paper.prior == 0.5
    assert round(paper.warmup * paper.epochs) == 5
    assert (paper.clip_grad, paper.weight_decay, paper.drop_path) == (0.0, 0.01, 0.1)
    assert 10 <= round(tuned.warmup * tuned.epochs) <= 15
    assert 0.05 <= tuned.weight_decay <= 0.08
    assert 0.05 <= tuned.consistency_weight <= 0.1
    assert 0.01 <= tuned.auxiliary_weight <= 0.02
    assert tuned.clip_grad == 1.0
    assert tuned.ema > 0.9


@pytest.mark.parametrize(
    ("dataset", "recipe", "chosen"),
    [
        ("charades", "auto", "tuned"),
        ("Charades", "auto", "tuned"),
        ("smarthome", "auto", "tuned"),
        ("smarthome_CS_51", "auto", "tuned"),
        ("TSU", "paper", "paper"),
        ("multithumos", "none", "none"),
        ("kitchen", "auto", "none"),
        ("", "auto", "none"),
    ],
)
def test_which_recipe_a_dataset_gets(dataset: str, recipe: str, chosen: str) -> None:
    assert recipes.choose(dataset, recipe) == chosen


@pytest.mark.parametrize(
    ("dataset", "recipe", "says"),
    [
        ("charades", "best", "'best', expected one of auto, none, paper, tuned"),
        ("kitchen", "tuned", "'kitchen', only for charades, tsu, multithumos"),
    ],
)
def test_a_recipe_that_there_is_not_is_refused(dataset: str, recipe: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        recipes.choose(dataset, recipe)


def test_what_is_given_wins_also_when_it_is_a_default() -> None:
    default = TrainOptions().clip_length
    options = recipes.options_for("tsu", "paper", clip_length=default, arch="mstemba-v3", lr=1e-4)
    assert (options.clip_length, options.arch, options.lr) == (default, "mstemba-v3", 1e-4)
    assert options.epochs == 140


# On the command line, and in what is kept


def run_train(mstemba: Runner, workspace: Path, *args: str) -> tuple[str, dict[str, Any]]:
    """What `mstemba train` says, and the training options in its checkpoint."""
    quick = {**TINY, **HERE, "min_steps": 2, "batch_size": 2, "features": "npy"}
    flags = [x for k, v in quick.items() for x in (f"--{k.replace('_', '-')}", str(v))]
    said = mstemba("train", *flags, *args, "--output", "run", cwd=workspace).stderr
    config = json.loads((workspace / "run" / "last" / "config.json").read_text())
    return said, config["train"]


def test_the_command_line_wins_over_the_recipe_of_the_dataset(
    tmp_path: Path, mstemba: Runner
) -> None:
    # 512 is the default of --clip-length, and 5e-4 of --lr: named, they count.
    said, kept = run_train(
        mstemba,
        make_workspace(tmp_path / "w", dataset="smarthome"),
        "--clip-length",
        "512",
        "--lr",
        "5e-4",
    )
    (line,) = [line for line in said.splitlines() if line.startswith("recipe ")]
    assert line.startswith("recipe tuned of tsu, except for batch_size, clip_length, ")
    assert "lr" in line
    assert (kept["recipe"], kept["clip_length"], kept["lr"]) == ("tuned", 512, 5e-4)
    values = recipes.load("tsu", "tuned")
    for name in ("warmup", "min_lr", "ema", "weight_decay", "min_crop"):
        assert kept[name] == values[name], name
    assert set(kept) == {"recipe"} | {f.name for f in fields(TrainOptions)}


def test_options_alone_are_taken_as_they_are(tmp_path: Path) -> None:
    folder = make_workspace(tmp_path / "w", dataset="charades")
    workspace, features = open_workspace(folder), folder / "npy"
    options = TrainOptions(**TINY)
    plain = train(options, QUIET, workspace=workspace, features=features)
    config = json.loads((plain.run / "last" / "config.json").read_text())
    assert config["train"]["recipe"] == "none"
    assert config["train"]["ema"] == options.ema
    # The recipe's name is not in the key, its values are.
    news: list[str] = []
    tuned = train(
        options, QUIET, recipe="tuned", given=TINY, workspace=workspace, features=features,
        on_event=lambda event: news.append(event.message),
    )  # fmt: skip
    assert tuned.run != plain.run
    assert news[0].startswith("recipe tuned of charades, except for")
    resolved = recipes.options_for("charades", "tuned", **TINY)
    assert train(resolved, QUIET, workspace=workspace, features=features).cached


def test_options_that_are_not_at_their_defaults_win_over_a_recipe(tmp_path: Path) -> None:
    folder = make_workspace(tmp_path / "w", dataset="charades")
    news: list[str] = []
    result = train(
        TrainOptions(**TINY, lr=1e-2), QUIET, recipe="tuned", workspace=open_workspace(folder),
        features=folder / "npy", on_event=lambda event: news.append(event.message),
    )  # fmt: skip
    kept = json.loads((result.run / "last" / "config.json").read_text())["train"]
    assert (kept["lr"], kept["clip_length"], kept["epochs"]) == (1e-2, 24, 1)
    values = recipes.load("charades", "tuned")
    for name in ("warmup", "ema", "auxiliary_weight"):
        assert kept[name] == values[name], name
    assert values["ema"] != TrainOptions().ema
    assert news[0] == (
        "recipe tuned of charades, except for batch_size, clip_length, drop_path, dropout, epochs, "
        "lr as given"
    )
