"""Stores behind URLs: as on the local disk, in memory and over the protocol of S3."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mstemba.errors import StoreError, UsageError
from mstemba.pipeline.caching.files import as_path, read_text, remote, write_json
from mstemba.pipeline.features import store as module
from mstemba.pipeline.features.entry import DamagedEntry
from mstemba.pipeline.features.store import FeatureStore
from tests.pipeline.features.test_store import ODD_IDS, SPEC, TIMES, VALUES, finish, put

upath = pytest.importorskip("upath", reason="needs universal-pathlib, of mstemba[cloud]")
SHARD = 256


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHARD_ROWS", SHARD)


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """Address of a server that speaks S3, with a bucket named "bucket"."""
    pytest.importorskip("s3fs", reason="needs s3fs, of mstemba[cloud]")
    server = pytest.importorskip("moto.server", reason="needs moto[server]").ThreadedMotoServer(
        ip_address="127.0.0.1", port=0, verbose=False
    )
    server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", address)
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        s3 = upath.UPath("s3://bucket", use_listings_cache=False).fs
        s3.mkdir("bucket")
        yield address
        type(s3).clear_instance_cache()
    server.stop()


@pytest.fixture(params=["memory", "s3"])
def root(request: pytest.FixtureRequest) -> Path:
    """The URL of a store that is not there."""
    if request.param == "s3":
        request.getfixturevalue("s3")
    name = f"{abs(hash(request.node.name))}.zarr"
    path = as_path(f"{request.param}://bucket/features/{name}")
    assert path is not None
    return path


def test_a_path_is_local_unless_it_has_a_scheme() -> None:
    for text in ("a/b.zarr", "/a/b", "C://x", "a:b", "://x"):
        assert as_path(text) == Path(text)
    assert as_path(None) is None
    assert as_path("file:///a/b%20c.zarr") == Path("/a/b c.zarr")
    path = as_path("memory://bucket/x.zarr")
    assert path is not None
    assert as_path(path) == path
    given = as_path(upath.UPath("memory://bucket/x.zarr", option=1))
    assert given is not None
    assert remote(given).storage_options["option"] == 1  # type: ignore[union-attr]
    assert remote(path) is path
    assert remote(Path("a")) is None
    assert str(path / "a") == "memory://bucket/x.zarr/a"
    with pytest.raises(UsageError, match=r"nonesuch://x: .*expected a path, or a URL"):
        as_path("nonesuch://x")


def test_the_life_of_an_entry(root: Path) -> None:
    store = FeatureStore.prepare(root, SPEC, "/weights.pt")
    assert not root.exists()
    assert store.entry("a") is None
    assert store.unfinished("a", "k") is None
    writer = store.writer("a", "k", "decord")
    writer.append(VALUES[: SHARD - 1], TIMES[: SHARD - 1])
    assert store.unfinished("a", "k") is None
    writer.append(VALUES[SHARD - 1 : 700], TIMES[SHARD - 1 : 700])  # and no more: abandoned

    store = FeatureStore.prepare(root, SPEC)
    assert store.weights_file == "/weights.pt"
    assert store.entry("a") is None
    assert store.unfinished("a", "other") is None
    with pytest.raises(StoreError, match="no features of 'a'"):
        store.read("a")
    unfinished = store.unfinished("a", "k")
    assert unfinished is not None
    assert (unfinished.rows, unfinished.decoder) == (2 * SHARD, "decord")
    writer = store.writer("a", "k", "decord", unfinished)
    writer.append(VALUES[2 * SHARD :], TIMES[2 * SHARD :])
    finish(writer)

    store = FeatureStore.open(root)
    put(store, "b")
    for id in "ab":
        assert np.array_equal(store.read(id).values, VALUES)
        assert np.array_equal(store.finished(id).grid.starts, TIMES)
    assert store.finished("a").bytes == store.finished("b").bytes > VALUES.nbytes / 2
    entry = store.entry("a")
    assert entry is not None
    assert entry.key == "k"

    writer = store.writer("a", "k", "av")
    assert store.entry("a") is None
    put(store, "a", VALUES[:3])
    assert np.array_equal(store.read("a").values, VALUES[:3])
    assert np.array_equal(store.read("b").values, VALUES)


def test_what_was_written_and_not_counted_in_is_dropped(root: Path) -> None:
    store = FeatureStore.prepare(root, SPEC)
    writer = store.writer("a", "k", "av")
    writer.append(VALUES[:SHARD], TIMES[:SHARD])
    (root / "a" / "c" / "1" / "0").write_bytes(b"not counted in")
    finish(store.writer("a", "k", "av", store.unfinished("a", "k")))
    assert np.array_equal(store.read("a").values, VALUES[:SHARD])
    assert not (root / "a" / "c" / "1").exists()


def test_an_entry_that_was_copied_to_another_name_is_damaged(root: Path) -> None:
    store = FeatureStore.prepare(root, SPEC)
    put(store, "a", VALUES[:3])
    put(store, "b", VALUES[3:6])
    for file in ("zarr.json", "c/0/0"):
        (root / "a" / file).write_bytes((root / "b" / file).read_bytes())
    with pytest.raises(DamagedEntry, match="its folder holds those of 'b'"):
        store.entry("a")
    assert np.array_equal(store.read("b").values, VALUES[3:6])


def test_odd_ids_are_written_and_read(root: Path) -> None:
    store = FeatureStore.prepare(root, SPEC)
    for number, id in enumerate(ODD_IDS):
        put(store, id, VALUES[number : number + 1])
    for number, id in enumerate(ODD_IDS):
        assert np.array_equal(store.read(id).values, VALUES[number : number + 1]), id
    for id in ODD_IDS[::5]:
        store.writer(id, "k", "av")
    assert [store.entry(id) is None for id in ODD_IDS] == [
        number % 5 == 0 for number in range(len(ODD_IDS))
    ]


@pytest.mark.parametrize("file", ["zarr.json", "c/1/0"])
@pytest.mark.parametrize("damage", ["gone", "half", "empty", "other"])
def test_a_damaged_entry_is_a_store_error(root: Path, file: str, damage: str) -> None:
    store = FeatureStore.prepare(root, SPEC)
    put(store, "a")
    victim = root / "a" / file
    whole = victim.read_bytes()
    if damage == "gone":
        victim.unlink()
    else:
        victim.write_bytes({"half": whole[: len(whole) // 2], "empty": b"", "other": b"x"}[damage])
    with pytest.raises(StoreError, match=r"damaged|no features"):
        store.read("a")
    put(store, "a", VALUES[:9])
    assert np.array_equal(store.read("a").values, VALUES[:9])


def test_other_options_and_what_is_no_store_are_refused(root: Path) -> None:
    put(FeatureStore.prepare(root, SPEC), "a", VALUES[:2])
    with pytest.raises(StoreError, match=r"window=16 \(wanted 8\)"):
        FeatureStore.prepare(root, replace(SPEC, window=8))
    (root.parent / "other.zarr" / "thesis.tex").write_text("mine")
    other = root.parent / "other.zarr"
    with pytest.raises(StoreError, match="exists and is not a feature store"):
        FeatureStore.prepare(other, SPEC)
    with pytest.raises(StoreError, match="not a feature store"):
        FeatureStore.open(other)


def test_json_is_written_and_read(root: Path) -> None:
    data = {"a": [1.5, "ü"], "b": None}
    write_json(root / "failures.json", data)
    assert json.loads(read_text(root / "failures.json")) == data
    with pytest.raises(FileNotFoundError):
        read_text(root / "none.json")


def test_plain_zarr_reads_the_same_numbers() -> None:
    import zarr

    root = as_path("memory://bucket/plain.zarr")
    assert root is not None
    put(FeatureStore.prepare(root, SPEC), "a")
    group: Any = zarr.open_group(str(root), mode="r")
    assert np.array_equal(group["a"][:], VALUES)


def test_a_bucket_that_is_not_there_is_a_store_error(s3: str) -> None:
    root = as_path("s3://nonesuch/s.zarr")
    assert root is not None
    store = FeatureStore.prepare(root, SPEC)
    with pytest.raises(StoreError, match=r"s3://nonesuch/.*bucket does not exist.*Check the addr"):
        put(store, "a")
    with pytest.raises(StoreError, match="not a feature store"):
        FeatureStore.open(root)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError("Forbidden"), "Forbidden. Check the address, and the credentials"),
        (ImportError("Install s3fs"), r"Install s3fs. pip install 'mstemba\[cloud\]'"),
        (ValueError("Invalid endpoint: x"), "Invalid endpoint: x. Check"),
        (TimeoutError(), "TimeoutError. Check"),
    ],
)
def test_a_url_that_can_not_be_reached_is_a_store_error(
    monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    root = as_path("memory://bucket/unreachable.zarr")
    assert root is not None
    store = FeatureStore.prepare(root, SPEC)
    writer = store.writer("b", "k", "av")
    put(store, "a", VALUES[:3])
    writer.append(VALUES[:3], TIMES[:3])

    def fail(*_: object, **__: object) -> None:
        raise error

    for name in ("cat_file", "pipe_file", "find", "ls"):
        monkeypatch.setattr(type(remote(root).fs), name, fail)  # type: ignore[union-attr]
    for attempt in (
        lambda: FeatureStore.open(root),
        lambda: FeatureStore.prepare(root, SPEC),
        lambda: store.entry("a"),
        lambda: store.read("a"),
        lambda: store.unfinished("b", "k") or store.finished("b"),
        lambda: store.writer("c", "k", "av"),
        lambda: finish(writer),
        lambda: write_json(root / "failures.json", {}),
    ):
        with pytest.raises(StoreError, match=rf"memory://.*cannot be reached: {message}"):
            attempt()


def test_lost_connections_are_no_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard that could not be fetched must not lead to the advice to delete it."""
    root = as_path("memory://bucket/lost.zarr")
    assert root is not None
    store = FeatureStore.prepare(root, SPEC)
    put(store, "a")
    fetch = type(remote(root).fs).cat_file  # type: ignore[union-attr]

    def lose(self: Any, path: str, *args: Any, **kwargs: Any) -> Any:
        if "/c/" in path:
            raise ConnectionResetError("connection reset")
        return fetch(self, path, *args, **kwargs)

    monkeypatch.setattr(type(remote(root).fs), "cat_file", lose)  # type: ignore[union-attr]
    with pytest.raises(StoreError, match="cannot be reached: connection reset"):
        store.read("a")


def test_fsspec_s_own_configuration_is_used_for_everything(s3: str) -> None:
    """In a process whose only word of the server is in fsspec's variables."""
    program = """
import numpy as np
from mstemba.pipeline.caching.files import as_path
from tests.pipeline.features.test_store import SPEC, VALUES, FeatureStore, put
store = FeatureStore.prepare(as_path("s3://bucket/configured.zarr"), SPEC)
put(store, "a")
assert np.array_equal(FeatureStore.open(store.root).read("a").values, VALUES)
"""
    environment = {name: value for name, value in os.environ.items() if "AWS_" not in name}
    options = {"key": "test", "secret": "test", "endpoint_url": s3}
    child = subprocess.run(
        [sys.executable, "-c", program],
        env=environment | {"FSSPEC_S3": json.dumps(options)},
        capture_output=True,
        text=True,
    )
    assert (child.returncode, child.stderr) == (0, "")
    configured = as_path("s3://bucket/configured.zarr")
    assert configured is not None
    assert np.array_equal(FeatureStore.open(configured).read("a").values, VALUES)
