"""Extraction on a real Ray cluster of two nodes, some of which do not live to its end."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mstemba.errors import UsageError
from mstemba.extractors import registry
from mstemba.pipeline.caching.keys import file_sha256
from mstemba.pipeline.devices import cores
from mstemba.pipeline.extract import crew
from mstemba.pipeline.extract import local_engine as engines
from mstemba.pipeline.extract.crew import Worker
from mstemba.pipeline.extract.jobs import ExtractResult
from mstemba.pipeline.extract.stage import extract
from mstemba.pipeline.features.spec import make_spec
from mstemba.pipeline.options import FeatureOptions, RunOptions
from mstemba.pipeline.progress import Event, EventHandler, ignore_events
from tests.videos import encode

ray = pytest.importorskip("ray")

from ray.cluster_utils import Cluster  # noqa: E402

from mstemba.pipeline.extract.ray_engine import RayEngine, fast_precision  # noqa: E402

pytestmark = pytest.mark.slow

LENGTHS = (36, 150, 40, 150, 44)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two of them last long enough to die in the middle of; one is no video."""
    folder = tmp_path_factory.mktemp("videos")
    paths = [encode(folder / f"v{i}.mp4", count) for i, count in enumerate(LENGTHS)]
    broken = folder / "broken.mp4"
    broken.write_bytes(b"no video")
    return [*paths, broken]


@pytest.fixture(scope="module")
def local(videos: list[Path], tmp_path_factory: pytest.TempPathFactory) -> ExtractResult:
    return run(videos, tmp_path_factory.mktemp("local"), ignore_events)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head, which notices within seconds that a node is gone."""
    head = {
        "num_cpus": 2,
        "include_dashboard": False,
        "_system_config": {"health_check_period_ms": 1000, "health_check_failure_threshold": 4},
    }
    made = Cluster(initialize_head=True, head_node_args=head)
    yield made
    made.shutdown()  # type: ignore[no-untyped-call]


@pytest.fixture
def node(cluster: Cluster) -> Iterator[Any]:
    """A second node."""
    made = cluster.add_node(num_cpus=2)
    cluster.wait_for_nodes()
    yield made
    if made in cluster.worker_nodes:
        cluster.remove_node(made)


def run(videos: list[Path], folder: Path, on_event: EventHandler, **options: Any) -> ExtractResult:
    chosen = FeatureOptions("efficientnet-lite0", precision="float32")
    return extract(
        videos,
        chosen,
        RunOptions(device="cpu", **options),
        store=folder / "s.zarr",
        on_event=on_event,
    )


def contents(store: Path) -> dict[str, bytes]:
    """Every file of a store, without the time at which an entry was made."""
    files = {}
    for file in sorted(store.rglob("*")):
        if file.is_file():
            data = file.read_bytes()
            if file.name == "zarr.json":
                metadata = json.loads(data)
                metadata["attributes"].pop("made", None)
                data = json.dumps(metadata).encode()
            files[str(file.relative_to(store))] = data
    return files


def assert_same(found: ExtractResult, local: ExtractResult) -> None:
    assert sorted(found.made) == sorted(local.made) == [f"v{i}" for i in range(len(LENGTHS))]
    assert found.failed == local.failed
    assert list(found.failed) == ["broken"]
    assert contents(found.store) == contents(local.store)


class Midway:
    """A listener that does something once when features of a long video are there."""

    def __init__(self, action: Callable[[], None]) -> None:
        self._action: Callable[[], None] | None = action
        self.warnings: list[str] = []

    def __call__(self, event: Event) -> None:
        if event.warning:
            self.warnings.append(event.message)
        if event.total is not None and re.match(r"v[13] at", event.message):
            action, self._action = self._action, None
            if action:
                action()


@pytest.fixture
def running(monkeypatch: pytest.MonkeyPatch) -> list[RayEngine]:
    """The engine, once it has started."""
    started: list[RayEngine] = []
    start = engines.start

    def remember(*arguments: Any) -> Any:
        started.append(start(*arguments))  # type: ignore[arg-type]
        return started[-1]

    monkeypatch.setattr(engines, "start", remember)
    return started


def wait_for_workers(engine: RayEngine, count: int) -> list[Worker]:
    for _ in range(1200):  # starting takes a busy machine a minute
        workers = [*engine._forward.up, *engine._decoders.up]
        if len(workers) == count:
            return workers
        time.sleep(0.1)
    raise AssertionError(f"{len(workers)} workers are up, expected {count}")


def test_two_nodes_make_the_same_store(
    videos: list[Path], local: ExtractResult, cluster: Cluster, node: Any, tmp_path: Path
) -> None:
    found = run(videos, tmp_path, ignore_events, engine="ray", address=cluster.address)
    assert_same(found, local)
    assert not ray.is_initialized()
    assert (
        run(videos[:-1], tmp_path, ignore_events, engine="ray", address="x:1").made == []
    )  # all cached


def test_a_node_that_is_killed_midway_changes_nothing(
    videos: list[Path],
    local: ExtractResult,
    cluster: Cluster,
    node: Any,
    running: list[RayEngine],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also when all decoders, or all forward workers, were on that node."""
    monkeypatch.setattr(crew, "GRACE", 1.0)

    def kill() -> None:
        wait_for_workers(running[0], 4)  # of two CPUs, the node now has two
        cluster.remove_node(node, allow_graceful=False)

    midway = Midway(kill)
    found = run(videos, tmp_path, midway, engine="ray", address=cluster.address, workers=2)
    assert_same(found, local)
    assert any("lost the" in warning for warning in midway.warnings)


def test_the_cluster_says_which_precision_is_fast(cluster: Cluster) -> None:
    joined = RunOptions(engine="ray", address=cluster.address, device="cpu")
    alone = RunOptions(engine="ray", device="cpu")
    assert fast_precision(joined) == fast_precision(alone)
    assert not ray.is_initialized()


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere", "ray://127.0.0.1:1"])
def test_an_address_without_a_cluster_is_one_clear_error(address: str, tmp_path: Path) -> None:
    video = encode(tmp_path / "v.mp4", 4)
    with pytest.raises(UsageError, match=rf"--address {address}: .*Expected a Ray cluster"):
        run([video], tmp_path, ignore_events, engine="ray", address=address)


def test_weights_that_a_node_does_not_have_are_one_clear_error(cluster: Cluster) -> None:
    options = FeatureOptions("efficientnet-lite0", precision="float32")
    here = RunOptions(device="cpu", engine="ray", address=cluster.address)
    backbone = registry.resolve(options.backbone, None, None, file_sha256)
    spec = make_spec(backbone, options)
    elsewhere = replace(backbone, weights="/nowhere/w.pth")
    with pytest.raises(UsageError, match=r"^/nowhere/w.pth on .*no such file, expected"):
        RayEngine(spec, elsewhere, here, ignore_events)
    assert not ray.is_initialized()


# The last one: a process that had a Ray of its own cannot start actors on a cluster (Ray 2.60).
def test_all_workers_of_a_ray_of_its_own_are_killed_midway(
    videos: list[Path], local: ExtractResult, running: list[RayEngine], tmp_path: Path
) -> None:
    def kill() -> None:
        for worker in wait_for_workers(running[0], room):
            found = re.search(r"process (\d+)", worker.where)
            assert found
            os.kill(int(found[1]), signal.SIGKILL)

    room = max(2, cores())
    midway = Midway(kill)
    assert_same(run(videos, tmp_path, midway, engine="ray"), local)
    for what in ("lost the forward worker", "lost the decoder", "doing it again"):
        assert any(what in warning for warning in midway.warnings)
    assert not ray.is_initialized()
    assert not [t for t in threading.enumerate() if t.name.startswith("batch")]
