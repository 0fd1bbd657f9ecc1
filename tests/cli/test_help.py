"""Help, the light start, and machine-readable output."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from mstemba.pipeline.options import RunOptions
from tests.cli.conftest import DETECT, EXTRACT, TRAIN
from tests.command_line import complaint, environment, mstemba

COMMANDS = (
    "init", "extract", "import", "train", "evaluate", "detect", "export", "report", "status",
    "runs", "backbones", "demo",
)  # fmt: skip
HEAVY = {"torch", "numpy", "zarr", "av", "decord", "rich", "matplotlib", "open_clip", "numba"}


def imported(*args: str) -> set[str]:
    """The top-level packages that `python ARGS` imports."""
    result = subprocess.run(
        [sys.executable, "-X", "importtime", *args],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    lines = [line for line in result.stderr.splitlines() if line.startswith("import time:")]
    return {line.rsplit("|", 1)[1].strip().split(".")[0] for line in lines}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_says_what_it_does_and_gives_an_example(name: str, tmp_path: Path) -> None:
    for option in ("--help", "-h"):
        said = mstemba(name, option, cwd=tmp_path).stdout
        assert f"Usage: mstemba {name}" in said
        assert f"Example: mstemba {name}" in said


def test_the_root_lists_all_commands_and_no_other(tmp_path: Path) -> None:
    said = mstemba("--help", cwd=tmp_path).stdout
    listed = said.split("Commands:")[1].strip().splitlines()
    assert tuple(line.split()[0] for line in listed) == COMMANDS


def test_every_option_of_every_command_says_what_it_means(tmp_path: Path) -> None:
    for name in COMMANDS:
        said = mstemba(name, "--help", cwd=tmp_path).stdout
        # "  --name <type>  meaning", the meaning possibly beginning on the next line.
        options = re.findall(r"^  (-\S.*?)(?:\s\s+|$)(\S*)", said, re.MULTILINE)
        assert options
        assert [option for option, meaning in options if not meaning] == []


def test_no_help_continues_another_one(tmp_path: Path) -> None:
    for name in COMMANDS:
        said = mstemba(name, "--help", cwd=tmp_path).stdout
        meanings = re.findall(r"^  \S.*?\s\s+(\S.*)$", said.split("Options:")[1], re.MULTILINE)
        assert meanings
        assert [text for text in meanings if text.startswith("...") or "likewise" in text] == []


def test_the_former_name_of_an_option_is_refused_with_its_new_name(tmp_path: Path) -> None:
    refused = mstemba("extract", "--every", "2", cwd=tmp_path, expect=2)
    assert complaint(refused) == (
        "mstemba: --every is now called --frame-step: pass --frame-step 2"
    )
    assert "--every" not in mstemba("extract", "--help", cwd=tmp_path).stdout


def test_detect_runs_where_and_how_extract_does(tmp_path: Path) -> None:
    extract, detect = (mstemba(c, "--help", cwd=tmp_path).stdout for c in ("extract", "detect"))
    for field in fields(RunOptions):
        flag = f"--{field.name.replace('_', '-')} "
        assert flag in extract
        assert flag in detect


def test_version(tmp_path: Path) -> None:
    assert mstemba("--version", cwd=tmp_path).stdout == "mstemba 0.1.0\n"


def test_help_imports_nothing_heavy() -> None:
    names = imported("-m", "mstemba", "--help")
    assert "typer" in names  # the listing works
    assert names & HEAVY == set()


def test_importing_the_package_imports_nothing_heavy() -> None:
    names = imported("-c", "import mstemba")
    assert "mstemba" in names
    assert names & (HEAVY | {"typer"}) == set()


WIDTHS = {
    "clip": 768,
    "efficientnet-lite0": 1280,
    "i3d": 1024,
    "i3d-whole-clip": 1024,
    "i3d_r50": 2048,
    "slow_r50": 2048,
    "slowfast_r50": 2304,
    "x3d_m": 2048,
}


def test_backbones_are_listed_with_what_a_user_chooses_by(tmp_path: Path) -> None:
    lines = mstemba("backbones", cwd=tmp_path).stdout.splitlines()
    rows = json.loads(mstemba("backbones", "--json", "-", cwd=tmp_path).stdout)
    assert {row["name"]: row["width"] for row in rows} == WIDTHS
    for row in rows:
        assert row["weights"]
        assert row["licence"]
        assert row["input"] == 224
        # In a pipe nothing is folded.
        assert any(line.startswith(row["name"]) and row["weights"] in line for line in lines)
    here = {row["name"] for row in rows if row["here"]}
    assert "efficientnet-lite0" in here


@pytest.mark.parametrize("name", ["status", "backbones", "evaluate"])
def test_json_on_standard_output_stands_alone(name: str, finished: Path) -> None:
    assert json.loads(mstemba(name, "--json", "-", cwd=finished).stdout)


def test_quiet_prints_nothing_when_all_is_well(workspace: Path) -> None:
    for args in (EXTRACT, TRAIN, DETECT):
        result = mstemba(*args, "--quiet", cwd=workspace)
        assert result.stdout + result.stderr == ""


@pytest.mark.parametrize("args", [["extract", "--nonsense"], ["nonsense"], ["detect"], []])
def test_a_slip_at_the_command_line_is_a_usage_error(args: list[str], tmp_path: Path) -> None:
    result = mstemba(*args, cwd=tmp_path, expect=2)
    assert "Usage: mstemba" in result.stdout + result.stderr
