"""Folders of videos as users have them: next to other files, and with playlists in them."""

from __future__ import annotations

import json
from pathlib import Path

from mstemba.pipeline.features.store import FeatureStore
from tests.cli.conftest import EXTRACT, current_store
from tests.command_line import Runner
from tests.videos import encode, encode_pieces


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


def states(folder: Path, mstemba: Runner) -> list[list[str]]:
    """State and detail of each video."""
    report = json.loads(mstemba("status", "--json", "-", cwd=folder).stdout)
    return [[video["video"], video["state"], video["detail"]] for video in report["videos"]]


def test_a_playlist_is_one_video_that_is_extracted_again_when_a_piece_changes(
    tmp_path: Path, mstemba: Runner
) -> None:
    (tmp_path / "videos").mkdir()
    encode_pieces(tmp_path / "videos" / "x.m3u8")
    assert len(list((tmp_path / "videos").glob("*.ts"))) == 4
    mstemba("init", "--videos", "videos", cwd=tmp_path)
    assert "1 extracted" in mstemba(*EXTRACT, cwd=tmp_path).stdout
    assert FeatureStore.open(current_store(tmp_path)).read("x").values.shape == (10, 1280)
    assert "1 cached" in mstemba(*EXTRACT, cwd=tmp_path).stdout

    piece = tmp_path / "videos" / "x2.ts"
    piece.write_bytes((tmp_path / "videos" / "x1.ts").read_bytes())
    ((_, state, detail),) = states(tmp_path, mstemba)
    assert (state, detail) == ("stale", "the video has changed since")
    result = mstemba(*EXTRACT, cwd=tmp_path)
    assert "1 extracted" in result.stdout
    assert "the video changed since its features were made" in result.stderr

    piece.unlink()
    ((_, state, detail),) = states(tmp_path, mstemba)
    assert (state, detail) == ("no file", "videos/x.m3u8: its piece videos/x2.ts: no such file")
    failed = mstemba(*EXTRACT, cwd=tmp_path, expect=1).stderr
    assert "failed: x: videos/x.m3u8: its piece videos/x2.ts: no such file" in failed


def test_a_list_of_files_that_is_no_playlist_fails_with_a_line(
    tmp_path: Path, mstemba: Runner
) -> None:
    encode(tmp_path / "a.mp4", 8)
    (tmp_path / "both.ffconcat").write_text("ffconcat version 1.0\nfile a.mp4\nfile a.mp4\n")
    (tmp_path / "both.m3u8").write_text("#EXTM3U\n#EXTINF:1,a\na.mp4\n")
    command = (*EXTRACT, "--store", "s.zarr", "both.ffconcat", "both.m3u8", "a.mp4")
    failed = mstemba(*command, cwd=tmp_path, expect=1).stderr.splitlines()
    assert "failed: both.ffconcat: both.ffconcat: a list of files, not a video" in failed
    reason = "a list of files, not an HLS playlist; pass the files themselves"
    assert f"failed: both.m3u8: both.m3u8: {reason}" in failed
