"""Several processes that import into one store: each video once, and nothing lost."""

from __future__ import annotations

import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mstemba.pipeline.caching.locks import StoreLocks
from mstemba.pipeline.features.import_npy import ImportResult, import_features
from mstemba.pipeline.features.store import FeatureStore
from mstemba.pipeline.options import ImportOptions
from mstemba.pipeline.progress import EventHandler, ignore_events
from tests.training import make_workspace, videos_of
from tests.waiting import Watcher

# Children that have everything imported: their work begins at once.
processes: Any = multiprocessing.get_context("spawn" if sys.platform == "win32" else "forkserver")


def run(
    workspace: Path, on_event: EventHandler = ignore_events, folder: str = "npy"
) -> ImportResult:
    options = ImportOptions(fps=25.0)
    return import_features(workspace / folder, options, workspace=workspace, on_event=on_event)


def work(workspace: Path, start: Any, results: Any) -> None:
    """A child: import everything at the same time as the others."""
    start.wait(120)
    result = run(workspace)
    results.put((result.made, result.cached, result.failed))


def test_four_processes_import_each_video_once(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w")
    start, results = processes.Barrier(4), processes.Manager().Queue()
    children = [processes.Process(target=work, args=(workspace, start, results)) for _ in "abcd"]
    for child in children:
        child.start()
    for child in children:
        child.join()
        assert child.exitcode == 0
    outcomes = [results.get() for _ in children]
    ids = sorted(videos_of(workspace))
    assert [failed for _, _, failed in outcomes] == [{}] * 4
    assert sorted(id for made, _, _ in outcomes for id in made) == ids
    assert all(sorted(made + cached) == ids for made, cached, _ in outcomes)
    store = FeatureStore.open(workspace / "features" / "npy.zarr")
    for id in ids:
        expected = np.load(workspace / "npy" / f"{id}.npy")
        assert np.array_equal(store.read(id).values, expected), id
    assert [f.name for f in store.root.parent.glob(".*")] == []


@pytest.mark.parametrize("linked", [False, True])
def test_an_entry_that_another_process_imports_is_waited_for_and_comes_last(
    linked: bool, tmp_path: Path
) -> None:
    workspace = make_workspace(tmp_path / "w")
    store = workspace / "features" / "npy.zarr"
    if linked:
        (tmp_path / "shared.zarr").mkdir()
        store.parent.mkdir(exist_ok=True)
        store.symlink_to(tmp_path / "shared.zarr")
        store = tmp_path / "shared.zarr"
    lock = StoreLocks(store, "extracting").acquire("v1")
    assert lock is not None
    watcher = Watcher(lock.release)
    result = run(workspace, watcher)
    assert result.made[-1] == "v1"
    assert len(result.made) == len(videos_of(workspace))
    assert f"waiting for process {os.getpid()}, which is extracting v1" in watcher.news


def test_an_entry_that_is_imported_while_it_is_waited_for_is_cached(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w")
    run(workspace)
    store = workspace / "features" / "npy.zarr"
    finished = (store / "v0" / "zarr.json").read_text()
    (store / "v0" / "zarr.json").unlink()
    lock = StoreLocks(store, "importing").acquire("v0")
    assert lock is not None

    def finish() -> None:
        (store / "v0" / "zarr.json").write_text(finished)
        lock.release()

    result = run(workspace, Watcher(finish))
    assert (result.made, result.failed) == ([], {})
    assert "v0" in result.cached
