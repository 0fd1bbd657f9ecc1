"""Files that users have, through the commands: what the store says of them, and what is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from mstemba.pipeline.features.store import FeatureStore
from tests.cli.conftest import EXTRACT
from tests.command_line import Runner
from tests.pipeline.decode.test_times import joined, write


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("real")
    write(folder / "10:15:00.mp4", 40, 10)
    write(folder / "held.mkv", 20, 10, hold=30, options={"bf": "0"})
    piece = write(folder / "one.ts")
    joined(folder / "joined.ts", [piece, piece])
    write(folder / "pi.h264", 90, 30, form="h264")
    write(folder / "tc.mov", metadata={"timecode": "10:00:00:00"})
    return folder


def test_the_store_has_their_true_times(folder: Path, tmp_path: Path, mstemba: Runner) -> None:
    names = ["10:15:00.mp4", "held.mkv", "joined.ts", "pi.h264", "tc.mov"]
    result = mstemba(*EXTRACT, *names, "--store", tmp_path / "s.zarr", cwd=folder)
    assert "5 extracted, 0 cached, 0 failed" in result.stdout
    store = FeatureStore.open(tmp_path / "s.zarr")
    expected = {
        "10:15:00": ("decord", 4.0, 10, ""),
        "held": ("decord", 31.9, 5, ""),
        "joined": ("av", 4.0, 25, ""),
        "pi": ("av", 3.0, 23, ""),
        "tc": ("decord", 2.0, 13, "10:00:00:00"),
    }
    for id, (decoder, duration, rows, timecode) in expected.items():
        entry = store.entry(id)
        assert entry is not None
        assert entry.decoder in (decoder, "av"), id
        assert entry.duration == pytest.approx(duration, abs=1e-3), id
        assert (entry.rows, entry.timecode) == (rows, timecode), id
    told = [line for line in result.stderr.splitlines() if line.startswith("warning: ")]
    assert len(told) == 2, told
    assert "joined: its clock starts again" in result.stderr
    assert "pi: its frames have no times: 30 frames per second are assumed" in result.stderr


def test_fps_is_for_files_without_times_and_part_of_the_key(
    folder: Path, tmp_path: Path, mstemba: Runner
) -> None:
    first = ("--store", tmp_path / "s.zarr")
    result = mstemba(*EXTRACT, "pi.h264", "--fps", "15", *first, cwd=folder)
    assert "warning" not in result.stderr
    entry = FeatureStore.open(tmp_path / "s.zarr").entry("pi")
    assert entry is not None
    assert entry.duration == pytest.approx(6)
    again = mstemba(*EXTRACT, "pi.h264", "--fps", "15", *first, cwd=folder)
    assert "0 extracted, 1 cached" in again.stdout
    other = mstemba(*EXTRACT, "pi.h264", *first, cwd=folder, expect=2)
    assert "fps=15.0 (wanted None)" in other.stderr
    for rate in ("0", "1e-8", "1e9"):
        wrong = mstemba(*EXTRACT, "pi.h264", "--fps", rate, *first, cwd=folder, expect=2)
        assert "expected 1e-05 (a frame a day) to 1000" in wrong.stderr
