"""Extractions by real processes that are killed and share one store: nothing is lost or doubled."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import mstemba
from mstemba.pipeline.features.store import FeatureStore
from tests.videos import encode, encode_at, moving

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="kills process groups by signals"),
]

# Shards of 16 rows, so that a short video has several. Prints what it did, at the end.
CHILD = """
import sys
from mstemba.pipeline.features import store
store.SHARD_ROWS = store.CHUNK_ROWS = 16
from mstemba.pipeline.extract.stage import extract
from mstemba.pipeline.options import FeatureOptions
options = FeatureOptions("efficientnet-lite0", window=2, stride=2, precision="float32")
result = extract(sys.argv[1], options, store=sys.argv[2])
print(len(result.made), len(result.cached), len(result.failed), result.frames, sep=",")
"""
VIDEOS = 6
FRAMES = 150


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six videos of different length and content; one changes its rate."""
    folder = tmp_path_factory.mktemp("videos")
    for number in range(VIDEOS - 1):
        encode(folder / f"v{number}.mp4", FRAMES + 7 * number, width=96 + 16 * number, height=96)
    times = [i / 10 + (i > 50) * i / 30 for i in range(FRAMES)]
    encode_at(folder / "v5.mp4", times, images=moving(FRAMES, 96, 128))
    return folder


def start(videos: Path, store: Path) -> subprocess.Popen[str]:
    root = str(Path(mstemba.__file__).parents[1])
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(videos), str(store)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, ...]:
    """(made, cached, failed, frames) as the process told."""
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    return tuple(int(part) for part in said.strip().split(","))


def kill(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):  # it was done, and has been waited for
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def content(store: Path) -> dict[str, bytes]:
    """Every byte of a store, but for when its entries were made."""
    found = {}
    for file in sorted(store.rglob("*")):
        if file.is_file():
            name = file.relative_to(store).as_posix()
            found[name] = file.read_bytes()
            if file.name == "zarr.json":
                metadata = json.loads(found[name])
                for varies in ("made", "attributes_sha256"):
                    metadata["attributes"].pop(varies, None)
                found[name] = json.dumps(metadata).encode()
    return found


def finished(store: Path) -> dict[str, int]:
    """When the marker of every finished entry was written: again means done twice."""
    if not (store / "zarr.json").is_file():
        return {}
    names = [f"v{number}" for number in range(VIDEOS)]
    opened = FeatureStore.open(store)
    return {n: (store / n / "zarr.json").stat().st_mtime_ns for n in names if opened.entry(n)}


@pytest.fixture(scope="module")
def undisturbed(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    store = tmp_path_factory.mktemp("undisturbed") / "s.zarr"
    made, *_, frames = finish(start(videos, store))
    assert made == VIDEOS
    assert frames == sum(FeatureStore.open(store).entry(f"v{i}").frames for i in range(VIDEOS))
    return content(store)


def test_two_processes_share_the_work(
    videos: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    store = tmp_path / "s.zarr"
    processes = [start(videos, store) for _ in range(2)]
    results = [finish(process) for process in processes]
    assert sum(made for made, *_ in results) == VIDEOS
    assert all(made + cached == VIDEOS for made, cached, *_ in results)
    assert min(made for made, *_ in results) > 0
    assert content(store) == undisturbed


def test_twenty_kills_of_two_processes(
    videos: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    store = tmp_path / "s.zarr"
    draw = random.Random(0)
    processes = [start(videos, store) for _ in range(2)]
    seen: dict[str, int] = {}
    kills_at_work = 0
    for _ in range(20):
        time.sleep(draw.uniform(0.3, 3.0))
        victim = draw.randrange(2)
        kills_at_work += processes[victim].poll() is None and len(seen) < VIDEOS
        kill(processes[victim])
        now = finished(store)
        assert seen.items() <= now.items(), "a finished entry is neither lost nor done again"
        seen = now
        processes[victim] = start(videos, store)
    for process in processes:
        _, _, failed, _ = finish(process)
        assert failed == 0
    assert seen.items() <= finished(store).items()
    assert content(store) == undisturbed
    assert kills_at_work >= 5, "the kills came too late to matter"
    assert not list(tmp_path.glob(".*")), "no lock is left behind"


def test_a_long_video_goes_on_after_its_last_whole_shard(
    videos: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    """What a rerun decodes and encodes again is less than one shard."""
    store = tmp_path / "s.zarr"
    one = videos / "v4.mp4"
    process = start(one, store)
    marker = store / "v4" / "zarr.json"
    while not marker.is_file() or json.loads(marker.read_text())["shape"][0] < 32:
        assert process.poll() is None, "it was done before it could be killed"
        time.sleep(0.005)
    kill(process)
    rows = json.loads(marker.read_text())["shape"][0]
    assert "key" not in json.loads(marker.read_text())["attributes"]
    made, _, _, frames = finish(start(one, store))
    assert made == 1
    assert frames == FRAMES + 7 * 4 - 2 * rows
    mine = {name: data for name, data in undisturbed.items() if name.startswith("v4/")}
    assert {n: d for n, d in content(store).items() if n.startswith("v4/")} == mine
