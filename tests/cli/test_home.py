"""`~` in the paths of options and arguments, which no shell replaces in `--store=~/x`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mstemba.extractors import registry
from mstemba.pipeline.caching.files import as_path, as_paths
from mstemba.pipeline.caching.keys import file_sha256
from mstemba.pipeline.detect.zero_shot import read_phrases
from mstemba.pipeline.workspace import find_workspace
from tests.cli.conftest import EXTRACT, current_run
from tests.command_line import Runner


@pytest.fixture
def home(workspace: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The home folder; the workspace is in it, and another folder is the current one."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path


def test_paths_of_every_command_may_be_in_the_home_folder(home: Path, mstemba: Runner) -> None:
    here = home / "elsewhere"
    place = "~/workspace"
    mstemba(
        "init", f"--videos={place}/videos", f"--annotations={place}/labels.json",
        "--workspace=~/new", cwd=here,
    )  # fmt: skip
    mstemba(*EXTRACT, f"{place}/videos/v0.mp4", "--store=~/x.zarr", cwd=here)
    run = f"{place}/{current_run(home / 'workspace').relative_to(home / 'workspace')}"
    store = f"{place}/features/{(home / 'workspace/features/current').read_text().strip()}"
    mstemba(
        "evaluate", f"--manifest={place}/manifest.json", f"--features={store}",
        f"--checkpoint={run}/last", "--json=~/e.json", "--csv=~/e.csv", cwd=here,
    )  # fmt: skip
    mstemba("report", f"--workspace={place}", "--output=~/r.html", "--json=~/r.json", cwd=here)
    mstemba("export", f"{place}/detections", "--format=vtt", "--output=~/out", cwd=here)
    mstemba("status", f"--workspace={place}", "--json=~/s.json", cwd=here)
    made = {"new", "x.zarr", "e.json", "e.csv", "r.html", "r.json", "out", "s.json"}
    assert made <= {file.name for file in home.iterdir()}
    assert list(here.iterdir()) == []


def test_two_results_in_one_file_are_noticed(home: Path, mstemba: Runner) -> None:
    words = ("evaluate", "--workspace=~/workspace", "--json=~/e", f"--csv={home / 'e'}")
    assert "same file" in mstemba(*words, cwd=home, expect=2).stderr


def test_a_file_that_is_called_like_home_can_be_named(home: Path, mstemba: Runner) -> None:
    here = home / "elsewhere"
    mstemba("status", "--workspace=~/workspace", "--json=./~", cwd=here)
    assert [file.name for file in here.iterdir()] == ["~"]
    (here / "~").unlink()
    (home / "workspace").rename(here / "~")
    mstemba("status", "--workspace=./~", cwd=here)


def test_python_takes_texts_with_a_home_folder(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert as_path("~/x") == home / "x"
    assert as_path("./~") == Path("~")
    assert as_path("x~") == Path("x~")
    assert as_path("~nobody-of-this-name/x") == Path("~nobody-of-this-name/x")
    assert as_paths(["~/x", "y"]) == [home / "x", Path("y")]
    assert as_path("~root/x") == Path(os.path.expanduser("~root/x"))
    (home / "labels.txt").write_text("sit, down\nstand")
    assert read_phrases("~/labels.txt") == ("sit, down", "stand")
    assert read_phrases("~, sit") == ("~", "sit")
    (home / "w.pt").write_bytes(b"weights")
    resolved = registry.resolve("clip", None, "~/w.pt", file_sha256)
    assert resolved.weights == str(home / "w.pt")
    monkeypatch.setenv("MSTEMBA_WORKSPACE", "~/workspace")
    found = find_workspace()
    assert found is not None
    assert found.root == home / "workspace"
