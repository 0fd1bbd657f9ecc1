"""`report` as a user calls it, in a workspace after the whole path."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.conftest import CLASSES, complaint, current_run, mstemba


def test_report_writes_its_page_into_the_runs_folder(workspace: Path) -> None:
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


def test_a_wrong_output_is_one_line_and_exit_code_2(workspace: Path) -> None:
    result = mstemba("report", "--output", "runs", cwd=workspace, expect=2)
    assert complaint(result).startswith("mstemba: runs: a folder, expected the name of a file")
