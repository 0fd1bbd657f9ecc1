"""Several `init` in one workspace at once: no process loses what another one has written."""

from __future__ import annotations

import json
import multiprocessing
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from mstemba.data_manifests.manifest import load_manifest
from mstemba.pipeline.caching.locks import StoreLocks
from mstemba.pipeline.init import init

processes: Any = multiprocessing.get_context("spawn" if sys.platform == "win32" else "forkserver")


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A workspace of one video without a file."""
    init(annotations=labels(tmp_path, "first"), root=tmp_path / "w")
    return tmp_path / "w"


def labels(folder: Path, name: str) -> Path:
    """Annotations of one video."""
    video = {"subset": "training", "duration": 3.0, "actions": [[0, 0.5, 1.5]]}
    file = folder / f"{name}.json"
    content = {"classes": ["sit"], "time_unit": "seconds", "videos": {name: video}}
    file.write_text(json.dumps(content))
    return file


def merge(workspace: Path, file: Path, start: Any) -> None:
    """A child: merge at the same time as the others."""
    start.wait(120)
    init(annotations=file, root=workspace, merge=True)


def test_merges_of_several_processes_are_all_kept(workspace: Path, tmp_path: Path) -> None:
    start = processes.Barrier(4)
    children = [
        processes.Process(target=merge, args=(workspace, labels(tmp_path, name), start))
        for name in ("a", "b", "c", "d")
    ]
    for child in children:
        child.start()
    for child in children:
        child.join()
        assert child.exitcode == 0
    assert set(load_manifest(workspace / "manifest.json").videos) == {"first", "a", "b", "c", "d"}
    assert not list(workspace.glob(".manifest*"))


def test_an_init_waits_for_a_merge_that_is_being_written(workspace: Path, tmp_path: Path) -> None:
    manifest = workspace / "manifest.json"
    file = labels(tmp_path, "new")
    with StoreLocks(manifest).lock_store():
        thread = threading.Thread(target=init, kwargs={"annotations": file, "root": workspace})
        thread.start()
        thread.join(1.0)
        assert thread.is_alive()
        assert set(load_manifest(manifest).videos) == {"first"}
    thread.join()
    assert set(load_manifest(manifest).videos) == {"new"}
