"""Extraction on a real Ray cluster of two nodes, some of which do not live to its end."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mstemba.errors import UsageError
from mstemba.extractors import registry
from mstemba.pipeline.caching.keys import file_sha256
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
                for varies in ("made", "attributes_sha256"):
                    metadata["attributes"].pop(varies, None)
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


def actors() -> list[int]:
    """The processes of extraction actors on this machine."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (folder / "cmdline").read_bytes().startswith(b"ray::ExtractionActor"):
                found.append(int(folder.name))
    return found


def wait_for_actors(count: int) -> list[int]:
    for _ in range(1200):  # starting takes a busy machine a minute
        if len(found := actors()) == count:
            return found
        time.sleep(0.1)
    raise AssertionError(f"{len(found)} actors are up, expected {count}")


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
    videos: list[Path], local: ExtractResult, cluster: Cluster, node: Any, tmp_path: Path
) -> None:
    def kill() -> None:
        wait_for_actors(2)
        cluster.remove_node(node, allow_graceful=False)

    midway = Midway(kill)
    found = run(videos, tmp_path, midway, engine="ray", address=cluster.address)
    assert_same(found, local)
    assert any("lost the worker" in warning for warning in midway.warnings)


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
        RayEngine(spec, elsewhere, here, ignore_events, videos=1)
    assert not ray.is_initialized()


@pytest.mark.parametrize(
    ("device", "reason"),
    [
        ("cuda", "has 2 CPUs and 0 GPUs"),
        ("cuda:1", "--device cuda:1 with --engine ray: expected"),
    ],
)
def test_a_cluster_without_the_device_is_one_clear_error(
    cluster: Cluster, tmp_path: Path, device: str, reason: str
) -> None:
    video = encode(tmp_path / "v.mp4", 4)
    chosen = FeatureOptions("efficientnet-lite0", precision="float32")
    here = RunOptions(device=device, engine="ray", address=cluster.address)
    with pytest.raises(UsageError, match=reason):
        extract(video, chosen, here, store=tmp_path / "s.zarr")


# The last one: a process that had a Ray of its own cannot start actors on a cluster (Ray 2.60).
def test_a_worker_of_a_ray_of_its_own_is_killed_midway(
    videos: list[Path], local: ExtractResult, tmp_path: Path
) -> None:
    def kill() -> None:
        (process,) = wait_for_actors(1)
        os.kill(process, signal.SIGKILL)

    midway = Midway(kill)
    assert_same(run(videos, tmp_path, midway, engine="ray"), local)
    for what in ("lost the worker", "trying it again"):
        assert any(what in warning for warning in midway.warnings)
    assert not ray.is_initialized()
