"""Entries that a run leaves unfinished: the next one goes on there, however the first one ended."""

from __future__ import annotations

import multiprocessing
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mstemba.errors import StoreError
from mstemba.pipeline.features import entry_writer
from mstemba.pipeline.features import store as module
from mstemba.pipeline.features.entry_writer import EntryWriter
from mstemba.pipeline.features.store import FeatureStore
from tests.pipeline.features.test_store import (
    DAMAGED_METADATA,
    SPEC,
    TIMES,
    VALUES,
    edit,
    finish,
    make_store,
    put,
    shards,
)

SHARD = 64
LONG = np.random.default_rng(1).normal(size=(12 * SHARD + 5, 4)).astype(np.float32)
LONG_TIMES = np.arange(len(LONG)) / 3


@pytest.fixture
def tiny_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHARD_ROWS", SHARD)
    monkeypatch.setattr(module, "CHUNK_ROWS", SHARD // 2)


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return make_store(tmp_path / "s.zarr")


def append_missing(
    store: FeatureStore, id: str, upto: int = len(LONG), key: str = "k"
) -> EntryWriter:
    """Append the rows of `LONG` that the entry does not have yet, up to row `upto`."""
    unfinished = store.unfinished(id, key)
    writer = store.writer(id, key, "av", unfinished)
    for begin in range(unfinished.rows if unfinished else 0, upto, 7):
        end = min(begin + 7, upto)
        writer.append(LONG[begin:end], LONG_TIMES[begin:end])
    return writer


def content(store: FeatureStore, id: str) -> dict[str, bytes]:
    """All bytes of an entry, but its id and when it was made."""
    entry = store.root / id
    files = {str(f.relative_to(entry)): f.read_bytes() for f in entry.rglob("*") if f.is_file()}
    own = rb'"(id|made|attributes_sha256)": "[^"]*"'
    files["zarr.json"] = re.sub(own, b"", files["zarr.json"])
    return files


@pytest.mark.usefixtures("tiny_shards")
def test_an_abandoned_entry_is_resumed(store: FeatureStore) -> None:
    finish(append_missing(store, "whole"))
    for upto, reached in [(5 * SHARD + 9, 5), (6 * SHARD - 1, 5), (6 * SHARD, 6), (len(LONG), 12)]:
        before = {f: f.stat().st_ino for f in shards(store, "a")}
        append_missing(store, "a", upto)
        assert store.entry("a") is None
        with pytest.raises(StoreError, match="no features of 'a'"):
            store.read("a")
        unfinished = store.unfinished("a", "k")
        assert unfinished is not None
        assert (unfinished.rows, unfinished.decoder) == (reached * SHARD, "av")
        assert np.array_equal(unfinished.starts, LONG_TIMES[: reached * SHARD])
        assert before.items() <= {f: f.stat().st_ino for f in shards(store, "a")}.items()
    finish(append_missing(store, "a"))
    assert content(store, "a") == content(store, "whole")
    assert store.unfinished("a", "k") is None
    assert np.array_equal(store.read("a").values, LONG)
    assert np.array_equal(store.read("a").grid.starts, LONG_TIMES)


@pytest.mark.parametrize("rows", [3 * SHARD, 3 * SHARD + 4])
@pytest.mark.usefixtures("tiny_shards")
def test_what_was_written_and_not_counted_is_dropped(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    finish(append_missing(store, "whole", rows))
    append_missing(store, "a", 3 * SHARD)
    with monkeypatch.context() as patch:
        patch.setattr(entry_writer, "write_json", interrupted)
        with pytest.raises(KeyboardInterrupt):
            append_missing(store, "a", 4 * SHARD)
    assert len(shards(store, "a")) == 4
    for leftover in ("c/4/0.1234.partial", "c/0/0.1234.partial", ".writing-77-abcd.json"):
        (store.root / "a" / leftover).parent.mkdir(exist_ok=True)
        (store.root / "a" / leftover).write_text("half")
    finish(append_missing(store, "a", rows))
    assert content(store, "a") == content(store, "whole")


def interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def edit_unfinished(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    return edit(lambda data: change(data["attributes"]["unfinished"]))


UNUSABLE = DAMAGED_METADATA | {
    "another key": edit_unfinished(lambda data: data.update(key="other")),
    "no starts": edit_unfinished(lambda data: data.pop("starts")),
    "starts are text": edit_unfinished(lambda data: data.update(starts=["a"])),
    "fewer starts": edit_unfinished(lambda data: data["starts"].pop()),
    "fewer rows": edit_unfinished(lambda data: data.update(rows=SHARD)),
    "no decoder": edit_unfinished(lambda data: data.pop("decoder")),
    "another shape": edit(lambda data: data.update(shape=[SHARD, 4])),
    "no object": edit(lambda data: data["attributes"].update(unfinished=[1])),
    "other shards": edit(
        lambda data: data["chunk_grid"]["configuration"].update(chunk_shape=[SHARD // 2, 4])
    ),
}


@pytest.mark.parametrize("damage", UNUSABLE)
@pytest.mark.usefixtures("tiny_shards")
def test_what_can_not_be_gone_on_with_is_begun_anew(store: FeatureStore, damage: str) -> None:
    finish(append_missing(store, "whole"))
    append_missing(store, "a", 3 * SHARD)
    UNUSABLE[damage](store.root / "a")
    assert store.unfinished("a", "k") is None
    finish(append_missing(store, "a"))
    assert content(store, "a") == content(store, "whole")


@pytest.mark.usefixtures("tiny_shards")
def test_an_unfinished_entry_is_begun_anew_when_that_is_wanted(store: FeatureStore) -> None:
    append_missing(store, "a", 3 * SHARD)
    writer = store.writer("a", "k", "decord")
    assert store.unfinished("a", "k") is None
    writer.append(LONG[: SHARD + 1], LONG_TIMES[: SHARD + 1])
    unfinished = store.unfinished("a", "k")
    assert unfinished is not None
    assert (unfinished.rows, unfinished.decoder) == (SHARD, "decord")
    finish(writer)
    assert np.array_equal(store.read("a").values, LONG[: SHARD + 1])


def test_a_short_entry_is_a_shard_and_then_its_marker(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = store.writer("a", "k", "av")
    writer.append(VALUES[:6], TIMES[:6])
    assert not (store.root / "a").exists()
    with monkeypatch.context() as patch:
        patch.setattr(entry_writer, "write_json", interrupted)
        with pytest.raises(KeyboardInterrupt):
            finish(writer)
    assert [f.name for f in (store.root / "a").iterdir()] == ["c"]
    put(store, "a", VALUES[:6])
    assert np.array_equal(store.read("a").values, VALUES[:6])


# Children that have everything imported: their work begins at once.
processes: Any = multiprocessing.get_context("spawn" if sys.platform == "win32" else "forkserver")
if sys.platform != "win32":
    processes.set_forkserver_preload([__name__])


def write_long(root: Path, log: Path) -> None:
    """A child: resume an entry, noting how many rows were appended."""
    module.SHARD_ROWS, module.CHUNK_ROWS = SHARD, SHARD // 2
    append = EntryWriter.append
    with log.open("a", buffering=1) as notes:

        def noted(self: EntryWriter, rows: Any, starts: Any) -> None:
            append(self, rows, starts)
            notes.write(f"{np.searchsorted(LONG_TIMES, starts[-1]) + 1}\n")

        EntryWriter.append = noted  # type: ignore[method-assign]
        finish(append_missing(FeatureStore.prepare(root, SPEC), "a"))


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_shards")
def test_killed_writers_leave_nothing_but_whole_shards(tmp_path: Path) -> None:
    undisturbed = make_store(tmp_path / "undisturbed")
    finish(append_missing(undisturbed, "a"))
    expected = content(undisturbed, "a")
    random = np.random.default_rng(0)
    kills = resumed = number = 0
    latest = 0.06  # seconds until a kill: more on a machine so busy that no writer gets to the end
    while kills < 60 or (number == 0 and kills < 600):
        latest *= 2 if kills % 60 == 59 and number == 0 else 1
        store = FeatureStore.prepare(tmp_path / str(number), SPEC)
        log = tmp_path / f"{number}.log"
        child = processes.Process(target=write_long, args=(store.root, log))
        child.start()
        while not log.exists():
            time.sleep(0.001)
        end = time.perf_counter() + random.uniform(0, latest)
        while time.perf_counter() < end:
            assert store.entry("a") is None or content(store, "a") == expected
        child.kill()
        child.join()
        kills += child.exitcode != 0
        if store.entry("a") is not None:
            assert content(store, "a") == expected
            number += 1
            continue
        unfinished = store.unfinished("a", "k")
        whole = unfinished.rows if unfinished else 0
        appended = int((log.read_text().split() or ["0"])[-1])
        assert whole % SHARD == 0
        assert appended < whole + SHARD
        resumed += whole > 0
    assert number
    assert resumed


def put_some(root: Path, id: str, start: Any) -> None:
    """A child: put entries into stores that others make at the same time."""
    for number in range(20):
        start.wait(60)
        store = FeatureStore.prepare(root / str(number), SPEC)
        put(store, id, VALUES[:3])
        put(store, id * 2, VALUES[3:5])


def test_processes_may_make_the_same_store_at_once(tmp_path: Path) -> None:
    start = processes.Barrier(2)
    children = [processes.Process(target=put_some, args=(tmp_path, id, start)) for id in "ab"]
    for child in children:
        child.start()
    for child in children:
        child.join()
        assert child.exitcode == 0
    for number in range(20):
        store = FeatureStore.prepare(tmp_path / str(number), SPEC)
        assert {f.name for f in store.root.iterdir()} == {"zarr.json", "a", "aa", "b", "bb"}
        for id in "ab":
            assert np.array_equal(store.read(id).values, VALUES[:3])
            assert np.array_equal(store.read(id * 2).values, VALUES[3:5])
