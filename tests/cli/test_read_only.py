"""A workspace that cannot be written: what needs no writing works, the rest is one clear line."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import EXTRACT, TRAIN, contents, film
from tests.command_line import complaint, mstemba

pytestmark = pytest.mark.slow


@pytest.fixture
def read_only(workspace: Path) -> Iterator[Path]:
    """A finished workspace on a file system that is mounted read-only."""
    if sys.platform != "linux" or shutil.which("mount") is None:
        pytest.skip("needs Linux and its `mount` command")
    film(workspace / "videos" / "new.mp4", 2, 31)
    bind = ["mount", "--bind", str(workspace), str(workspace)]
    if subprocess.run(bind, capture_output=True).returncode:
        pytest.skip("no permission to mount a file system")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(workspace)], check=True)
        yield workspace
    finally:
        subprocess.run(["umount", str(workspace)], check=True)


def test_what_needs_no_writing_works(read_only: Path, tmp_path: Path) -> None:
    before = contents(read_only)
    out = str(tmp_path / "out")
    for args in (
        ("status",),
        ("status", "--verify"),
        ("runs",),
        EXTRACT,
        TRAIN,
        ("evaluate", "--json", str(tmp_path / "result.json")),
        ("report", "--output", str(tmp_path / "report.html")),
        ("detect", "videos/v2.mp4", "--output", out),
        ("export", "detections/v2.scores.npz", "--output", out, "--format", "json"),
        ("export", "--output", str(tmp_path / "all"), "--format", "json"),
    ):
        said = mstemba(*args, cwd=read_only)
        warned = [line for line in said.stderr.splitlines() if "Read-only" in line]
        assert len(warned) <= 1, said.stderr
        assert all(line.startswith("warning: ") for line in warned)
    assert (tmp_path / "out" / "v2.json").is_file()
    assert contents(read_only) == before


def test_what_needs_writing_says_what_cannot_be_written(read_only: Path, tmp_path: Path) -> None:
    for args, place in (
        (("extract", "videos/new.mp4", *EXTRACT[1:]), "features"),
        ((*TRAIN, "--seed", "7"), "runs"),
        (("report",), "runs"),
        (("export", "--threshold", "0.4"), "detections"),
        (("init", "--merge", "--annotations", "labels.json", "--videos", "videos"), "manifest"),
    ):
        said = mstemba(*args, cwd=read_only, expect=None)
        assert said.returncode in (1, 2), said
        complaint(said)
        told = [line for line in said.stderr.splitlines() if not line.startswith("warning: ")]
        why = ("Read-only file system", "may not be written to")
        assert any(place in line and any(w in line for w in why) for line in told), said.stderr
