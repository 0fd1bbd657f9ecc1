"""Damaged entries: found when they are claimed to be done or read, and made again."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numcodecs.zstd import Zstd

from mstemba.errors import StoreError
from mstemba.pipeline.caching.locks import StoreLocks
from mstemba.pipeline.features.entry import DamagedEntry
from mstemba.pipeline.features.store import FeatureStore
from mstemba.records import FeatureSpec
from tests.pipeline.features.test_store import VALUES, edit, finish, make_store, put, shards

INDEX = 4 * 16 + 4  # bytes


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    """A store with the entry "a" of two shards."""
    made = make_store(tmp_path / "s.zarr")
    put(made, "a")
    return made


def replace_by(make: Callable[[Path], object]) -> Callable[[Path], object]:
    def change(shard: Path) -> None:
        shard.unlink()
        make(shard)

    return change


def resize(size: int) -> Callable[[Path], object]:
    return lambda shard: os.truncate(shard, size)


SHARDS_DAMAGED = {
    "missing": Path.unlink,
    "a folder": replace_by(Path.mkdir),
    "a pipe": replace_by(os.mkfifo),
    "a link that leads nowhere": replace_by(lambda shard: shard.symlink_to("nowhere")),
    "empty": resize(0),
    "cut": resize(1000),
    "longer": resize(100_000),
}


@pytest.mark.parametrize("damage", SHARDS_DAMAGED)
@pytest.mark.parametrize("number", [0, 1])
def test_an_entry_without_its_shards_is_not_finished(
    store: FeatureStore, number: int, damage: str
) -> None:
    SHARDS_DAMAGED[damage](shards(store, "a")[number])
    with pytest.raises(DamagedEntry, match=rf"'a' are damaged: shard {number}.*mstemba extract"):
        store.entry("a")
    with pytest.raises(DamagedEntry):
        store.read("a")
    said: list[str] = []
    assert store.find("a", said.append) is None
    (line,) = said
    assert re.match(rf"a: its features are damaged \(shard {number} .*making them again", line)
    put(store, "a", VALUES[:9])
    assert np.array_equal(store.read("a").values, VALUES[:9])


@pytest.mark.parametrize("damage", ["missing", "a folder", "empty"])
def test_entries_of_the_first_versions_are_checked_too(store: FeatureStore, damage: str) -> None:
    edit(lambda data: data["attributes"].pop("sizes"))(store.root / "a")
    assert np.array_equal(store.read("a").values, VALUES)
    SHARDS_DAMAGED[damage](shards(store, "a")[1])
    with pytest.raises(DamagedEntry, match="shard 1"):
        store.entry("a")


def overwrite(offset: int, content: bytes) -> Callable[[Path], None]:
    def change(shard: Path) -> None:
        with shard.open("r+b") as file:
            file.seek(offset, os.SEEK_SET if offset >= 0 else os.SEEK_END)
            file.write(content)

    return change


def with_chunk(frame: bytes) -> Callable[[Path], None]:
    """Replace the first chunk; the size of the shard and its index stay."""

    def change(shard: Path) -> None:
        content = shard.read_bytes()
        length = int.from_bytes(content[-INDEX + 8 : -INDEX + 16], "little")
        assert len(frame) <= length
        shard.write_bytes(frame.ljust(length, b"\0") + content[length:])

    return change


CONTENT_DAMAGED = {
    "a chunk": overwrite(500, b"damage"),
    "the index": overwrite(-INDEX, b"\1"),
    "the checksum of the index": overwrite(-2, b"??"),
    "all missing": overwrite(-INDEX, b"\xff" * (INDEX - 4)),
    "no zstd": with_chunk(b"GIF89a"),
    "a chunk that holds far more": with_chunk(Zstd().encode(bytes(1 << 24))),
    "a chunk that holds less": with_chunk(Zstd().encode(bytes(16))),
    "not a number": with_chunk(Zstd().encode(np.full((256, 4), np.nan, np.float32))),
}


@pytest.mark.parametrize("damage", CONTENT_DAMAGED)
def test_damaged_content_is_found_on_reading_and_made_again(
    store: FeatureStore, damage: str
) -> None:
    put(store, "b")
    CONTENT_DAMAGED[damage](shards(store, "a")[0])
    assert store.entry("a") is not None  # its size is right
    with pytest.raises(DamagedEntry, match="'a' are damaged: shard 0: "):
        store.read("a")
    # Whoever asks now is told without reading it.
    with pytest.raises(DamagedEntry, match="'a' are damaged: shard 0: "):
        FeatureStore.open(store.root).entry("a")
    assert np.array_equal(store.read("b").values, VALUES)
    put(store, "a", VALUES[:9])
    assert np.array_equal(store.read("a").values, VALUES[:9])


def test_verify_reads_every_entry(store: FeatureStore) -> None:
    for id in ("b", "c/d", "e" * 300, "begun"):
        put(store, id, VALUES[:9])
    store.writer("begun", "k", "av").append(VALUES[:9], np.arange(9.0))
    CONTENT_DAMAGED["a chunk"](shards(store, "a")[0])
    shards(store, "b")[0].unlink()
    found = dict(store.verify())
    assert len(found) == 4
    assert {name: bool(problem) for name, problem in found.items() if len(name) < 99} == {
        "a": True,
        "b": True,
        "c%2Fd": False,
    }
    assert found["b"] == "shard 0 is missing"


def test_an_entry_that_is_being_made_again_is_not_marked(store: FeatureStore) -> None:
    marker = (store.root / "a" / "zarr.json").read_bytes()
    CONTENT_DAMAGED["a chunk"](shards(store, "a")[0])
    lock = StoreLocks(store.root).acquire("a")
    assert lock is not None
    with lock, pytest.raises(StoreError, match="another process works on it"):
        store.read("a")
    assert (store.root / "a" / "zarr.json").read_bytes() == marker


def test_an_entry_that_cannot_be_marked_is_an_error_all_the_same(store: FeatureStore) -> None:
    CONTENT_DAMAGED["a chunk"](shards(store, "a")[0])
    (store.root.parent / ".s.zarr.locks").write_text("in place of the folder of locks")
    with pytest.raises(DamagedEntry, match=r"shard 0: .*it cannot be marked as damaged: "):
        store.read("a")


CONTRADICTIONS = {
    "another width": lambda data: data.update(shape=[1200, 5]),
    "more rows": lambda data: data.update(shape=[10**12, 4]),
    "rows beyond all bounds": lambda data: data["attributes"].update(rows=10**30),
    "another type": lambda data: data.update(data_type="float64"),
    "other shards": lambda data: data["chunk_grid"]["configuration"].update(chunk_shape=[7, 4]),
    "endless shards": lambda data: data["chunk_grid"]["configuration"].update(
        chunk_shape=[2**62, 4]
    ),
    "no checksums": lambda data: data["codecs"][0]["configuration"]["codecs"][1].update(
        configuration={"level": 0, "checksum": False}
    ),
    "another codec": lambda data: data.update(codecs=[{"name": "vlen-utf8"}]),
    "starts that do not increase": lambda data: data["attributes"]["starts"].reverse(),
    "starts beyond all bounds": lambda data: data["attributes"]["starts"].__setitem__(-1, 1e300),
    "a key that is a number": lambda data: data["attributes"].update(key=5),
    "warnings that are a text": lambda data: data["attributes"].update(warnings="none"),
    "a negative frame rate": lambda data: data["attributes"].update(fps=-5),
    "a negative duration": lambda data: data["attributes"].update(duration=-1.0),
    "rows without a length": lambda data: data["attributes"].update(step=0),
    "a timecode that is none": lambda data: data["attributes"].update(timecode="noon"),
    "an import without frames": lambda data: data["attributes"].update(decoder="imported"),
    "sizes of other shards": lambda data: data["attributes"]["sizes"].append(5),
    "attributes that are a list": lambda data: data.update(attributes=[1]),
}


@pytest.mark.parametrize("change", CONTRADICTIONS)
def test_metadata_that_contradicts_itself_is_damage(store: FeatureStore, change: str) -> None:
    edit(CONTRADICTIONS[change])(store.root / "a")  # type: ignore[arg-type]
    with pytest.raises(DamagedEntry, match="'a' are damaged: "):
        store.entry("a")
    assert store.find("a", lambda line: None) is None
    put(store, "a", VALUES[:9])
    assert np.array_equal(store.read("a").values, VALUES[:9])


ALTERATIONS: dict[str, Callable[[dict[str, Any]], object]] = {
    "starts": lambda entry: entry.update(starts=[2 * start for start in entry["starts"]]),
    "one start": lambda entry: entry["starts"].__setitem__(7, 3.25),
    "step": lambda entry: entry.update(step=0.25),
    "duration": lambda entry: entry.update(duration=610.0),
    "fps": lambda entry: entry.update(fps=33.0),
    "key": lambda entry: entry.update(key="K"),
    "source": lambda entry: entry.update(source="b.mp4"),
    "a name": lambda entry: entry.update(warninfs=entry.pop("warnings")),
    "the id": lambda entry: entry.update(id="A"),
    "no id": lambda entry: entry.pop("id"),
    "the SHA-256": lambda entry: entry.update(attributes_sha256="0" * 64),
}


def alter(entry: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change attributes of an entry, and nothing else."""
    file = entry / "zarr.json"
    data = json.loads(file.read_text())
    attributes = data["attributes"]
    change(attributes.get("unfinished", attributes))
    file.write_text(json.dumps(data))


@pytest.mark.parametrize("name", ALTERATIONS)
def test_attributes_that_were_changed_are_damage(store: FeatureStore, name: str) -> None:
    alter(store.root / "a", ALTERATIONS[name])
    with pytest.raises(DamagedEntry, match="attributes have changed since they were written"):
        store.entry("a")
    assert [bool(problem) for _, problem in store.verify()] == [True]
    put(store, "a", VALUES[:9])
    assert np.array_equal(store.read("a").values, VALUES[:9])


@pytest.mark.parametrize("of", ["b", "c/d", "caf\udce9", "long" * 100])
def test_the_features_of_another_video_are_damage(store: FeatureStore, of: str) -> None:
    put(store, of)
    (folder,) = (place for place in store.root.iterdir() if place.is_dir() and place.name != "a")
    shutil.rmtree(store.root / "a")
    shutil.copytree(folder, store.root / "a")
    with pytest.raises(DamagedEntry, match="its folder holds those of "):
        store.read("a")
    assert np.array_equal(store.read(of).values, VALUES)
    put(store, "a", VALUES[:9])
    assert np.array_equal(store.read("a").values, VALUES[:9])


def test_entries_of_earlier_versions_have_no_id_and_no_sha256(store: FeatureStore) -> None:
    edit(lambda data: data["attributes"].pop("id"))(store.root / "a")
    assert np.array_equal(store.read("a").values, VALUES)


@pytest.mark.parametrize("name", ["starts", "one start", "the id"])
def test_an_unfinished_entry_with_changed_attributes_is_not_resumed(
    store: FeatureStore, name: str
) -> None:
    store.writer("b", "k", "av").append(VALUES, np.arange(1200.0))
    assert store.unfinished("b", "k") is not None
    alter(store.root / "b", ALTERATIONS[name])
    assert store.unfinished("b", "k") is None


@pytest.mark.parametrize("width", [-1, 0, "wide", 2**70, None])
def test_a_store_whose_width_is_no_width_is_a_store_error(
    store: FeatureStore, width: object
) -> None:
    edit(lambda data: data["attributes"]["spec"].update(width=width))(store.root)
    with pytest.raises(StoreError, match=r"s\.zarr"):
        FeatureStore.open(store.root)


def test_no_memory_is_taken_for_rows_that_the_shards_cannot_hold(tmp_path: Path) -> None:
    wide = 2**20
    spec = FeatureSpec("b", "m", "tag:w", width=wide, input_size=32, short_side=32)
    store = make_store(tmp_path / "s.zarr", spec)
    writer = store.writer("a", "k", "av")
    writer.append(np.zeros((1, wide), np.float32), np.zeros(1))
    finish(writer)

    def promise(data: dict[str, dict[str, object]]) -> None:
        data["attributes"] |= {"rows": 1024, "starts": list(range(1024))}
        data["shape"] = [1024, wide]  # type: ignore[assignment]

    edit(promise)(store.root / "a")
    with pytest.raises(DamagedEntry, match="too few for 1024 rows of 1048576 features"):
        store.read("a")


@pytest.mark.parametrize("place", ["a", "a/c", "a/c/0"])
def test_a_link_in_an_entry_is_not_followed(store: FeatureStore, place: str) -> None:
    outside = store.root.parent / "outside"
    (store.root / place).rename(outside)
    (store.root / place).symlink_to(outside)
    before = {file: file.read_bytes() for file in outside.rglob("*") if file.is_file()}
    with pytest.raises(StoreError, match="found a link, expected a folder"):
        put(store, "a", VALUES[:9])
    assert {file: file.read_bytes() for file in outside.rglob("*") if file.is_file()} == before


def test_rows_are_counted_only_if_their_video_is_still_the_same(store: FeatureStore) -> None:
    confirmed = []

    def confirm() -> None:
        confirmed.append((store.root / "b").exists())
        if len(confirmed) > 1:
            raise StoreError("changed")

    writer = store.writer("b", "k", "av", confirm=confirm)
    writer.append(VALUES, np.arange(1200.0))
    assert confirmed == [True]  # after the rows were written
    with pytest.raises(StoreError, match="changed"):
        finish(writer)
    assert store.entry("b") is None
    unfinished = store.unfinished("b", "k")
    assert unfinished is not None
    assert unfinished.rows == 1024
    assert json.loads((store.root / "b" / "zarr.json").read_text())["shape"] == [1024, 4]


def test_an_entry_whose_first_shard_was_deleted_meanwhile_is_not_finished(
    store: FeatureStore,
) -> None:
    writer = store.writer("b", "k", "av")
    writer.append(VALUES, np.arange(len(VALUES)) * 0.5)
    shards(store, "b")[0].unlink()
    with pytest.raises(StoreError, match="changed or deleted while it was written"):
        finish(writer)
    assert store.entry("b") is None
