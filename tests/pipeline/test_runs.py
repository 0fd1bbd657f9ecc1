"""The leaderboard of a workspace's runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mstemba.pipeline.checkpoint import open_checkpoint
from mstemba.pipeline.runs import leaderboard
from mstemba.pipeline.status import status
from mstemba.pipeline.train.stage import TrainResult
from mstemba.pipeline.workspace import Workspace, open_workspace
from tests.command_line import Runner
from tests.training import fit, make_workspace

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return open_workspace(make_workspace(tmp_path / "w"))


def train_three(workspace: Workspace) -> list[TrainResult]:
    options: list[dict[str, Any]] = [{"lr": 1e-12}, {"lr": 3e-3, "min_steps": 30}, {"arch": "pdan"}]
    return [fit(workspace.root, **chosen) for chosen in options]


def test_runs_are_ranked_and_only_differences_are_shown(workspace: Workspace) -> None:
    trained = sorted(train_three(workspace), key=lambda result: -(result.score or 0))
    report = leaderboard(workspace)
    assert [run["name"] for run in report["runs"]] == [result.run.name for result in trained]
    assert report["differing"] == ["arch", "lr", "min_steps"]
    for run, result in zip(report["runs"], trained, strict=True):
        assert (run["score"], run["steps"]) == (result.score, result.steps)
        assert (run["state"], run["recipe"], run["checkpoint"]) == ("done", "none", "best")
        assert run["seconds"] > 0
        model = open_checkpoint(result.run).load("cpu")
        assert run["parameters"] == sum(p.numel() for p in model.parameters())
    best = report["runs"][0]["differs"]
    kept = json.loads((trained[0].run / "last" / "config.json").read_text())["train"]
    assert best == {name: kept[name] for name in report["differing"]}


def test_unfinished_and_damaged_runs_are_listed_last(workspace: Workspace) -> None:
    done, unfinished, damaged = (result.run for result in train_three(workspace))
    (unfinished / "done.json").unlink()
    (damaged / "last" / "config.json").write_text("{")
    report = leaderboard(workspace)
    assert [(run["name"], run["state"]) for run in report["runs"]] == [
        (done.name, "done"),
        (unfinished.name, "unfinished"),
        (damaged.name, "damaged"),
    ]
    assert "config.json: not readable as JSON" in report["runs"][2]["problem"]
    assert report["runs"][1]["score"] is None
    assert report["differing"] == ["lr", "min_steps"]
    assert report["runs"][2]["differs"] == {}
    assert [run["state"] for run in status(workspace)["runs"]].count("damaged") == 1


@pytest.mark.parametrize("file", ["done.json", "best/model.safetensors"])
def test_a_finished_run_with_a_damaged_file_is_damaged(workspace: Workspace, file: str) -> None:
    run = fit(workspace.root).run
    (run / file).write_bytes(b"{")
    (found,) = leaderboard(workspace)["runs"]
    assert found["state"] == "damaged"
    assert Path(file).name in found["problem"]


def test_a_run_from_before_an_option_had_its_default(workspace: Workspace) -> None:
    old, new = (fit(workspace.root, seed=seed).run for seed in (0, 1))
    config = json.loads((old / "last" / "config.json").read_text())
    for name in ("min_lr", "patience", "recipe"):
        del config["train"][name]
    del config["sha256"]
    (old / "last" / "config.json").write_text(json.dumps(config))
    report = leaderboard(workspace)
    assert report["differing"] == ["seed"]
    assert {run["name"]: run["recipe"] for run in report["runs"]} == dict.fromkeys(
        (old.name, new.name), "none"
    )


def test_no_run_yet(workspace: Workspace) -> None:
    assert leaderboard(workspace) == {"runs": [], "differing": []}


def test_the_command_prints_a_table_or_json(workspace: Workspace, mstemba: Runner) -> None:
    train_three(workspace)
    table = mstemba("runs", cwd=workspace.root).stdout.splitlines()
    assert table[0] == "runs"
    assert table[1].split() == [
        "name", "current", "state", "score", "checkpoint", "steps", "seconds", "parameters",
        "recipe", "arch", "lr", "min_steps",
    ]  # fmt: skip
    assert len(table) == 2 + 3
    found = mstemba("runs", "--json", "-", cwd=workspace.root).stdout
    assert json.loads(found) == leaderboard(workspace)
