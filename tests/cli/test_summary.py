"""What the commands say while they run, and how they close."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import DETECT, EXTRACT
from tests.command_line import mstemba
from tests.pipeline.test_progress import in_terminal

pytestmark = pytest.mark.slow


def test_the_commands_show_a_bar_and_close_with_a_summary(fresh: Path) -> None:
    (fresh / "videos" / "broken.mp4").write_text("no video")
    said = in_terminal(sys.executable, "-m", "mstemba", *EXTRACT, "videos/v0.mp4", cwd=fresh)
    assert "━" in said
    assert re.search(r"1 extracted, 0 cached, 0 failed, [\d.]+ s, \d+ frames/s", said)
    piped = mstemba(*EXTRACT, "videos", cwd=fresh, expect=1)
    assert "2 extracted, 1 cached, 1 failed" in piped.stdout
    assert re.search(r"^failed: broken: .*not a readable video", piped.stderr, re.MULTILINE)
    assert "\x1b" not in piped.stdout + piped.stderr
    quiet = mstemba(*EXTRACT, "videos", "--quiet", cwd=fresh, expect=1)
    assert quiet.stdout == ""
    assert [line.split(":")[0] for line in quiet.stderr.splitlines()] == ["failed", "mstemba"]


def test_detect_closes_with_how_many_were_done_kept_and_failed(workspace: Path) -> None:
    (workspace / "videos" / "broken.mp4").write_text("no video")
    result = mstemba(*DETECT, "videos", "--format", "csv", cwd=workspace, expect=1)
    summary = r"^detections: 2 detected, 1 from saved scores, 1 failed, [\d.]+ s$"
    assert re.search(summary, result.stdout, re.MULTILINE), result.stdout
    assert re.search(r"^failed: broken: .*not a readable video", result.stderr, re.MULTILINE)
