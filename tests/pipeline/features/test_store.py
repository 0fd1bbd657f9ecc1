"""The feature store: an entry exists when it is whole, and reads back as it was written."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from mstemba.errors import StoreError
from mstemba.pipeline.features import store as module
from mstemba.pipeline.features.entry_writer import EntryWriter
from mstemba.pipeline.features.store import FeatureStore
from mstemba.records import FeatureSpec

SPEC = FeatureSpec("b", "m", "tag:w", width=4, input_size=32, short_side=32)
VALUES = np.random.default_rng(0).normal(size=(1200, 4)).astype(np.float32)
TIMES = np.arange(1200) * 0.5


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return make_store(tmp_path / "s.zarr")


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHARD_ROWS", 512)


def make_store(root: Path, spec: FeatureSpec = SPEC) -> FeatureStore:
    store = FeatureStore.prepare(root, spec)
    store.make()
    return store


def finish(writer: EntryWriter) -> None:
    writer.finish(0.5, duration=600.0, fps=32.0, decoder="av", warnings=[])


def put(store: FeatureStore, id: str, values: np.ndarray = VALUES, key: str = "k") -> None:
    writer = store.writer(id, key, "av")
    writer.append(values, TIMES[: len(values)])
    finish(writer)


def test_of_two_stores_of_one_name_with_other_options_one_is_refused(tmp_path: Path) -> None:
    """Also if both were free to be made when they were prepared."""
    first = FeatureStore.prepare(tmp_path / "s.zarr", SPEC)
    second = FeatureStore.prepare(tmp_path / "s.zarr", replace(SPEC, width=5))
    put(first, "a")
    with pytest.raises(StoreError, match=r"built with width=4 \(wanted 5\)"):
        second.writer("b", "k", "av")
    assert [file.name for file in tmp_path.glob("s.zarr/*") if file.is_dir()] == ["a"]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_an_entry_reads_back_as_it_was_written(tmp_path: Path, dtype: str) -> None:
    made = make_store(tmp_path / "s.zarr", replace(SPEC, dtype=dtype))
    put(made, "a", VALUES[:7])
    read = FeatureStore.open(made.root).read("a")
    assert read.values.dtype == dtype
    assert np.array_equal(read.values, VALUES[:7].astype(dtype))
    assert np.array_equal(read.grid.starts, TIMES[:7])
    assert (read.grid.step, read.duration, read.fps, read.key) == (0.5, 600.0, 32.0, "k")


@pytest.mark.parametrize("batch", [1, 511, 512, 513, 1200])
@pytest.mark.usefixtures("small_shards")
def test_rows_over_several_shards_are_the_same_however_they_came(
    store: FeatureStore, batch: int
) -> None:
    writer = store.writer("a", "k", "av")
    for begin in range(0, len(VALUES), batch):
        writer.append(VALUES[begin : begin + batch], TIMES[begin : begin + batch])
        writer.append(VALUES[:0], TIMES[:0])
    finish(writer)
    read = store.read("a")
    assert np.array_equal(read.values, VALUES)
    assert np.array_equal(read.grid.starts, TIMES)
    assert len(shards(store, "a")) == 3


def shards(store: FeatureStore, id: str) -> list[Path]:
    return sorted(f for f in (store.root / id / "c").rglob("*") if f.is_file())


@pytest.mark.usefixtures("small_shards")
def test_plain_zarr_reads_the_same_numbers_and_facts(store: FeatureStore) -> None:
    put(store, "a")
    put(store, "b", VALUES[:3])
    group: Any = zarr.open_group(str(store.root), mode="r")
    assert np.array_equal(group["a"][:], VALUES)
    assert np.array_equal(group["a"][600:700], VALUES[600:700])
    assert group["b"].attrs["rows"] == 3
    assert group["b"].attrs["starts"] == [0.0, 0.5, 1.0]
    assert group["b"].attrs["decoder"] == "av"
    assert group.attrs["spec"]["window"] == 16
    assert sorted(group.array_keys()) == ["a", "b"]


def test_an_entry_does_not_exist_before_it_is_finished(store: FeatureStore) -> None:
    writer = store.writer("a", "k", "av")
    assert store.entry("a") is None
    writer.append(VALUES, TIMES)
    assert store.entry("a") is None
    with pytest.raises(StoreError, match="no features of 'a'"):
        store.read("a")
    finish(writer)
    assert store.entry("a") is not None


@pytest.mark.usefixtures("small_shards")
def test_writing_a_finished_entry_again_takes_the_old_one_away_first(store: FeatureStore) -> None:
    put(store, "a")
    writer = store.writer("a", "new", "av")
    assert store.entry("a") is None
    writer.append(VALUES[:600] + 1, TIMES[:600])
    assert store.entry("a") is None
    finish(writer)
    assert store.read("a").key == "new"
    assert np.array_equal(store.read("a").values, VALUES[:600] + 1)


def test_the_marker_goes_before_the_data(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(store, "a")

    def killed(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        store.writer("a", "k", "av")
    assert store.entry("a") is None


@pytest.mark.usefixtures("small_shards")
def test_the_attributes_are_the_last_thing_written(store: FeatureStore) -> None:
    put(store, "a")
    marker = (store.root / "a" / "zarr.json").stat().st_mtime_ns
    assert all(f.stat().st_mtime_ns <= marker for f in shards(store, "a"))


ODD_IDS = [
    "a/b",
    "a\\b",
    "..",
    "../..",
    ".",
    ".x",
    "ü?",
    "%2F",
    "%2E%2E",
    "a%2Fb",
    "c",
    "x.mp4",
    "con:1",
    "*",
    "new\nline",
    "~",
    "zarr.json",
    "failures.json",
    "日本語のとても長い動画の題名です" * 3,
    "日本語のとても長い動画の題名です" * 3 + "2",
    "long" * 100,
    "caf\udce9",
]


def test_every_id_has_a_folder_of_its_own_inside_the_store(store: FeatureStore) -> None:
    for number, id in enumerate(ODD_IDS):
        put(store, id, VALUES[number : number + 1])
    assert {f.name for f in store.root.parent.iterdir()} == {"s.zarr"}
    assert len([f for f in store.root.iterdir() if f.is_dir()]) == len(ODD_IDS)
    for number, id in enumerate(ODD_IDS):
        assert np.array_equal(store.read(id).values, VALUES[number : number + 1]), id
    assert FeatureStore.open(store.root).spec == SPEC


@pytest.mark.parametrize("id", ODD_IDS, ids=range(len(ODD_IDS)))
def test_an_odd_id_is_written_and_read(store: FeatureStore, id: str) -> None:
    assert store.entry(id) is None
    put(store, id, VALUES[:2])
    assert np.array_equal(store.read(id).values, VALUES[:2])
    assert store.finished(id).bytes > VALUES[:2].nbytes
    assert len(list(store.root.glob("*/zarr.json"))) == 1


def test_an_empty_id_can_not_stand_for_the_whole_store(store: FeatureStore) -> None:
    put(store, "a")
    assert store.entry("") is None
    try:
        put(store, "", VALUES[:2])
    except StoreError:
        pass
    else:
        assert np.array_equal(store.read("").values, VALUES[:2])
    assert np.array_equal(FeatureStore.open(store.root).read("a").values, VALUES)


def test_other_options_are_refused_by_name(store: FeatureStore) -> None:
    assert FeatureStore.prepare(store.root, SPEC).spec == SPEC
    with pytest.raises(StoreError) as caught:
        FeatureStore.prepare(store.root, replace(SPEC, window=8))
    assert "window=16 (wanted 8)" in str(caught.value)
    assert str(store.root) in str(caught.value)


def test_a_store_remembers_where_its_weights_were(tmp_path: Path) -> None:
    FeatureStore.prepare(tmp_path / "s", SPEC, "/weights.pt").make()
    assert FeatureStore.open(tmp_path / "s").weights_file == "/weights.pt"


def test_preparing_a_store_writes_nothing(tmp_path: Path) -> None:
    prepared = FeatureStore.prepare(tmp_path / "deep" / "s", SPEC)
    assert prepared.entry("a") is None
    assert list(tmp_path.iterdir()) == []
    put(prepared, "a")
    assert FeatureStore.open(tmp_path / "deep" / "s").entry("a") is not None


def test_what_is_no_store_is_neither_opened_nor_overwritten(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("mine")
    zarr.create_group(str(tmp_path / "other"), zarr_format=3)
    for name in ("file", "full", "other"):
        with pytest.raises(StoreError, match=f"{name}: .*not a feature store"):
            FeatureStore.prepare(tmp_path / name, SPEC)
    for name in ("none", "file", "full", "other"):
        with pytest.raises(StoreError, match="not a feature store"):
            FeatureStore.open(tmp_path / name)
    assert (tmp_path / "full" / "thesis.tex").read_text() == "mine"


def test_a_store_that_another_process_just_made_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    iterdir = Path.iterdir

    def after_another_process(self: Path) -> Iterator[Path]:
        FeatureStore(self, SPEC).make()
        return iterdir(self)

    monkeypatch.setattr(Path, "iterdir", after_another_process)
    assert FeatureStore.prepare(tmp_path / "s", SPEC).spec == SPEC


def edit(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    """Change metadata that has no SHA-256, as that of earlier versions."""

    def apply(root: Path) -> None:
        file = root / "zarr.json"
        data = json.loads(file.read_text())
        attributes = data["attributes"]
        attributes.get("unfinished", attributes).pop("attributes_sha256", None)
        change(data)
        file.write_text(json.dumps(data))

    return apply


def raw(content: bytes) -> Callable[[Path], None]:
    return lambda root: bool((root / "zarr.json").write_bytes(content)) and None


DAMAGED_METADATA = {
    "empty": raw(b""),
    "half": raw(b'{"attributes": {"key"'),
    "no text": raw(b"\xff\xfe"),
    "a list": raw(b"[]"),
    "a number": raw(b"5"),
}


@pytest.mark.parametrize("damage", DAMAGED_METADATA)
def test_a_store_with_damaged_metadata_is_a_store_error(store: FeatureStore, damage: str) -> None:
    DAMAGED_METADATA[damage](store.root)
    with pytest.raises(StoreError, match=r"s\.zarr"):
        FeatureStore.open(store.root)


@pytest.mark.parametrize("gone", ["spec", "version"])
def test_a_store_of_another_version_is_a_store_error(store: FeatureStore, gone: str) -> None:
    edit(lambda data: data["attributes"].pop(gone))(store.root)
    with pytest.raises(StoreError, match=r"s\.zarr"):
        FeatureStore.open(store.root)


def first_shard(change: Callable[[Path], Any]) -> Callable[[Path], None]:
    return lambda entry: change(next(f for f in sorted((entry / "c").rglob("*")) if f.is_file()))


def flip(at: int) -> Callable[[Path], Any]:
    def change(file: Path) -> None:
        content = bytearray(file.read_bytes())
        content[at : at + 16] = bytes(255 - b for b in content[at : at + 16])
        file.write_bytes(bytes(content))

    return change


DAMAGED_ENTRIES = DAMAGED_METADATA | {
    "no starts": edit(lambda data: data["attributes"].pop("starts")),
    "no duration": edit(lambda data: data["attributes"].pop("duration")),
    "step is text": edit(lambda data: data["attributes"].update(step="x")),
    "step is null": edit(lambda data: data["attributes"].update(step=None)),
    "starts are text": edit(lambda data: data["attributes"].update(starts=["a"])),
    "starts are too few": edit(lambda data: data["attributes"]["starts"].pop()),
    "a group": edit(lambda data: data.update(node_type="group")),
    "shape": edit(lambda data: data.update(shape=[7, 4])),
    "shard is gone": first_shard(Path.unlink),
    "shard is empty": first_shard(lambda file: file.write_bytes(b"")),
    "shard is cut": first_shard(lambda file: file.write_bytes(file.read_bytes()[:-100])),
    "shard's first bytes are wrong": first_shard(flip(0)),
    "shard's bytes are wrong": first_shard(flip(1000)),
}


@pytest.mark.parametrize("damage", DAMAGED_ENTRIES)
@pytest.mark.usefixtures("small_shards")
def test_a_damaged_entry_is_a_store_error_and_never_wrong_numbers(
    store: FeatureStore, damage: str
) -> None:
    put(store, "a")
    put(store, "fine")
    DAMAGED_ENTRIES[damage](store.root / "a")
    with pytest.raises(StoreError, match=r"s\.zarr"):
        store.read("a")
    assert np.array_equal(store.read("fine").values, VALUES)


@pytest.mark.parametrize("damage", DAMAGED_ENTRIES)
def test_a_damaged_entry_can_be_written_again(store: FeatureStore, damage: str) -> None:
    put(store, "a")
    DAMAGED_ENTRIES[damage](store.root / "a")
    put(store, "a", VALUES[:9])
    assert np.array_equal(store.read("a").values, VALUES[:9])


def test_rows_of_zeros_are_features_and_no_damage(store: FeatureStore) -> None:
    put(store, "a", np.zeros((300, 4), np.float32))
    assert np.array_equal(store.read("a").values, np.zeros((300, 4)))


def test_what_is_done_is_known_without_zarr(store: FeatureStore) -> None:
    put(store, "a", VALUES[:2])
    program = f"""
import sys
from pathlib import Path
from mstemba.pipeline.features.store import FeatureStore
store = FeatureStore.open(Path({str(store.root)!r}))
store.make()
assert store.entry("a")
assert store.unfinished("a", "k") is None
heavy = {{"zarr", "fsspec", "upath", "torch"}} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.skipif(sys.platform == "win32", reason="limits on file sizes are of POSIX")
@pytest.mark.parametrize("size", [100, 1500, 60_000], ids=["store", "shard", "marker"])
def test_a_full_disk_is_an_os_error_and_no_entry(tmp_path: Path, size: int) -> None:
    """One file after the other is the first not to fit."""
    program = f"""
import resource
from pathlib import Path
import numpy as np
from mstemba.pipeline.caching.files import FULL_DISK
from tests.pipeline.features.test_store import SPEC, FeatureStore, finish
store = FeatureStore.prepare(Path({str(tmp_path / "s.zarr")!r}), SPEC)
resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))
try:
    writer = store.writer("a", "k", "av")
    writer.append(np.random.default_rng(0).normal(size=(9000, 4)), np.arange(9000.0))
    finish(writer)
except OSError as error:
    assert error.errno in FULL_DISK, error
    assert store.entry("a") is None
else:
    raise SystemExit("nothing was raised")
"""
    subprocess.run([sys.executable, "-c", program], check=True)
    assert not [f for f in tmp_path.rglob("*") if f.name.startswith(".writing-")]
    put(FeatureStore.prepare(tmp_path / "s.zarr", SPEC), "a", VALUES[:9])


@pytest.mark.parametrize("row", ["zeros", "noise"])
def test_rows_of_a_picture_that_does_not_change_are_read_however_many(
    store: FeatureStore, row: str
) -> None:
    """Their shards are never so small that they look like a file made to take all memory."""
    values = np.tile(VALUES[:1] if row == "noise" else np.zeros((1, 4), np.float32), (1200, 1))
    put(store, "a", values)
    assert shards(store, "a")[0].stat().st_size == 1024 * 16 // 32
    assert np.array_equal(store.read("a").values, values)
    assert np.array_equal(zarr.open_group(store.root, mode="r")["a"][:], values)  # type: ignore[index]


@pytest.mark.slow
def test_five_hundred_megabytes_of_the_same_row(tmp_path: Path) -> None:
    spec = replace(SPEC, width=120_000)
    store = make_store(tmp_path / "s.zarr", spec)
    values = np.broadcast_to(np.arange(120_000, dtype=np.float32), (1200, 120_000))
    put(store, "a", values)
    assert store.entry("a") is not None
    assert np.array_equal(store.read("a").values, values)
