"""A disk that fills up: one clear line, and the same command goes on when there is room again."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import EXTRACT, TRAIN, contents, current_run, current_store, entries
from tests.command_line import complaint, mstemba

pytestmark = pytest.mark.slow
resource = pytest.importorskip("resource", reason="limits on file sizes are of POSIX")


def bound(size: int) -> Callable[[], None]:
    """Let no file grow beyond `size` bytes: writing fails as on a full disk."""
    # Python ignores SIGXFSZ, so that write() gives EFBIG.
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def same_model(workspace: Path, finished: Path) -> None:
    for name in ("last/model.safetensors", "last/config.json", "metrics.jsonl"):
        assert (current_run(workspace) / name).read_bytes() == (
            current_run(finished) / name
        ).read_bytes(), name


# Bytes at which another file is the first that does not fit.
@pytest.mark.parametrize(
    "size",
    [
        pytest.param(800, id="store"),
        pytest.param(6000, id="shard"),
    ],
)
def test_extract_on_a_full_disk(size: int, fresh: Path, finished: Path) -> None:
    line = complaint(mstemba(*EXTRACT, cwd=fresh, expect=1, before=bound(size)))
    assert "disk is full" in line
    if (fresh / "features" / "current").exists():
        assert entries(current_store(fresh)) == {}
    mstemba(*EXTRACT, cwd=fresh)
    assert entries(current_store(fresh)) == entries(current_store(finished))


@pytest.mark.parametrize(
    ("size", "seconds"),
    [
        pytest.param(200, "20", id="config"),
        pytest.param(1400, "20", id="log"),
        pytest.param(1 << 20, "20", id="weights"),
        pytest.param(40 << 20, "0", id="state"),
    ],
)
def test_train_on_a_full_disk(size: int, seconds: str, untrained: Path, finished: Path) -> None:
    args = (*TRAIN, "--checkpoint-seconds", seconds)
    features = contents(untrained / "features")
    line = complaint(mstemba(*args, cwd=untrained, expect=1, before=bound(size)))
    assert "disk is full" in line
    complaint(mstemba("evaluate", cwd=untrained, expect=2))  # nothing half-done is taken
    mstemba(*args, cwd=untrained)
    for name in ("last/model.safetensors", "metrics.jsonl"):
        mine, theirs = current_run(untrained) / name, current_run(finished) / name
        assert mine.read_bytes() == theirs.read_bytes(), name
    assert contents(untrained / "features") == features


def test_detect_on_a_full_disk(workspace: Path) -> None:
    shutil.rmtree(workspace / "detections")
    args = ("detect", "videos/v2.mp4", "--format", "json")
    line = complaint(mstemba(*args, cwd=workspace, expect=1, before=bound(900)))
    assert "disk is full" in line
    mstemba(*args, cwd=workspace)
    assert {f.name for f in (workspace / "detections").iterdir()} == {"v2.json", "v2.scores.npz"}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 160 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", str(disk)]
    if sys.platform != "linux" or shutil.which("mount") is None:
        pytest.skip("needs Linux and its `mount` command")
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no permission to mount a file system")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_really_full_disk(small_disk: Path, finished: Path) -> None:
    for name in ("videos", "manifest.json", "mstemba.toml"):
        copy = shutil.copytree if (finished / name).is_dir() else shutil.copyfile
        copy(finished / name, small_disk / name)
    (small_disk / "ballast").write_bytes(bytes(80_000))

    assert "disk is full" in complaint(mstemba(*EXTRACT, cwd=small_disk, expect=1))
    (store,) = (small_disk / "features").glob("*.zarr")
    done = entries(store)
    everything = entries(current_store(finished))
    assert done
    assert done.items() < everything.items()  # what was finished is kept

    (small_disk / "ballast").unlink()
    assert f"{len(done)} cached" in mstemba(*EXTRACT, cwd=small_disk).stdout
    assert entries(current_store(small_disk)) == everything

    assert "disk is full" in complaint(mstemba(*TRAIN, cwd=small_disk, expect=1))
    remount = ["mount", "-o", "remount,size=200m", str(small_disk)]
    subprocess.run(remount, check=True)
    mstemba(*TRAIN, cwd=small_disk)
    same_model(small_disk, finished)
