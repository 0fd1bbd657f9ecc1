"""`report` as a user calls it, in a workspace after the whole path."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from mstemba.model.architectures import build, make_config
from tests.cli.conftest import CLASSES, contents, current_run, edit_json
from tests.command_line import Runner, complaint


def test_report_writes_its_page_into_the_runs_folder(workspace: Path, mstemba: Runner) -> None:
    said = mstemba("report", cwd=workspace)
    page = current_run(workspace) / "report-testing.html"
    first = page.read_bytes()
    line = said.stdout.strip()
    assert line.startswith(f"{page.relative_to(workspace)}: per-frame mAP ")
    assert "on testing (1 video, 8 rows)" in line

    other = workspace / "new folder" / "page.html"
    printed = mstemba("report", "--json", "-", "--output", other, cwd=workspace).stdout
    data = json.loads(printed)
    assert other.read_bytes() == first
    assert list(data["evaluation"]["per_class"]) == CLASSES
    assert data["training"]["loss"]


def test_report_on_predictions_and_on_released_weights(workspace: Path, mstemba: Runner) -> None:
    (workspace / "dense.json").write_text(json.dumps({"v2": [[0.9, 0.2, 0.4], [0.3, 0.8, 0.1]]}))
    said = mstemba("report", "--predictions", "dense.json", "--json", "d.out", cwd=workspace).stdout
    assert said.startswith("report-testing.html: per-frame mAP ")
    assert "(1 video, 2 rows), dense.json" in said
    data = json.loads((workspace / "d.out").read_text())
    assert data["provenance"]["predictions"]["file"] == "dense.json"
    assert data["provenance"]["software"]["device"] is None

    edit_json(workspace / "manifest.json", lambda data: data.update(dataset="charades"))
    config = make_config("mstemba", 1280, len(CLASSES), widths=(8, 8, 8), state=2)
    torch.save(build(config).state_dict(), workspace / "authors.pth")
    (workspace / "report-testing.html").unlink()
    args = ("report", "--checkpoint", "authors.pth", "--released", "--json", "r.out")
    said = mstemba(*args, cwd=workspace).stdout
    assert said.startswith("report-testing.html: per-frame mAP ")
    assert "(1 video, 8 rows), authors.pth" in said
    model = json.loads((workspace / "r.out").read_text())["provenance"]["model"]
    assert (model["padding"], model["split"]) == ("released", "contiguous")

    for args in (("--checkpoint", "authors.pth", "--released"), ("--predictions", "dense.json")):
        taken = (*args, "--json", "report-testing.html")
        result = mstemba("report", *taken, cwd=workspace, expect=2)
        assert "the page and --json point to the same file" in complaint(result)
    one_of = mstemba(
        "report", "--predictions", "dense.json", "--checkpoint", "x", cwd=workspace, expect=2
    )
    assert "cannot be combined with --predictions dense.json: pass one of them" in complaint(one_of)
    assert "--released requires --checkpoint, the file of released weights" in complaint(
        mstemba("report", "--released", cwd=workspace, expect=2)
    )


@pytest.mark.parametrize(
    "args",
    [
        ("report", "--predictions", "dense.json", "--output", "dense.json"),
        ("report", "--predictions", "dense.json", "--json", "./dense.json"),
        ("report", "--output", "manifest.json"),
        ("report", "--json", "manifest.json"),
        ("evaluate", "--predictions", "dense.json", "--json", "dense.json"),
        ("evaluate", "--predictions", "dense.json", "--csv", "dense.json"),
    ],
)
def test_no_result_is_written_over_what_it_is_made_from(
    args: tuple[str, ...], finished: Path, tmp_path: Path, mstemba: Runner
) -> None:
    (tmp_path / "dense.json").write_text('{"v2": [[0.9, 0.2, 0.4]]}')
    for name in ("manifest.json", "mstemba.toml"):
        shutil.copy(finished / name, tmp_path / name)
    shutil.copytree(finished / "runs", tmp_path / "runs")
    before = contents(tmp_path)
    said = complaint(mstemba(*args, cwd=tmp_path, expect=2))
    assert f"{args[-1]} is also an input; choose another file with {args[-2]}" in said
    assert contents(tmp_path) == before


def test_a_wrong_output_is_one_line_and_exit_code_2(workspace: Path, mstemba: Runner) -> None:
    result = mstemba("report", "--output", "runs", cwd=workspace, expect=2)
    assert complaint(result).startswith("mstemba: runs: a folder, expected the name of a file")
