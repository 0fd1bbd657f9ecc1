"""Folders of videos as users have them: next to other files, and with playlists in them."""

from __future__ import annotations

from pathlib import Path

from tests.cli.conftest import EXTRACT
from tests.command_line import Runner


def test_each_command_says_which_files_of_a_folder_it_skips(
    workspace: Path, mstemba: Runner
) -> None:
    for name in ("a.jpg", "b.jpg", "notes.csv", ".hidden"):
        (workspace / "videos" / name).touch()
    line = "videos: skipped 3 files that do not end like a video: 2 .jpg, 1 .csv"
    init = ("init", "--videos", "videos", "--annotations", "labels.json")
    assert line in mstemba(*init, cwd=workspace).stdout.splitlines()
    for command in ((*EXTRACT, "videos"), ("detect", "videos")):
        assert line in mstemba(*command, cwd=workspace).stderr.splitlines()
        assert line not in mstemba(*command, "--quiet", cwd=workspace).stderr
    assert "skipped" not in mstemba(*EXTRACT, cwd=workspace).stderr  # the manifest's videos
