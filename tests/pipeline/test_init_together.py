"""Several `init` in one workspace at once: no process loses what another one has written."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from mstemba.data_manifests.manifest import load_manifest
from mstemba.errors import UsageError
from mstemba.pipeline.caching.locks import StoreLocks
from mstemba.pipeline.init import init
from tests.command_line import command, environment
from tests.waiting import Watcher

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


@pytest.mark.parametrize("merged", [False, True])
def test_an_init_waits_for_a_merge_that_is_being_written(
    merged: bool, workspace: Path, tmp_path: Path
) -> None:
    manifest = workspace / "manifest.json"
    file = labels(tmp_path, "new")
    waits = threading.Event()
    watcher = Watcher(waits.set)
    options = {"annotations": file, "root": workspace, "merge": merged, "on_event": watcher}
    with StoreLocks(manifest, "writing").lock_store():
        thread = threading.Thread(target=init, kwargs=options)
        thread.start()
        assert waits.wait(60)
        assert thread.is_alive()
        assert set(load_manifest(manifest).videos) == {"first"}
    thread.join()
    assert set(load_manifest(manifest).videos) == {"new"} | ({"first"} if merged else set())
    assert watcher.news == [f"waiting for process {os.getpid()}, which is writing manifest.json"]


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("to", ["w/manifest.json", "nothing.json"])
@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_a_manifest_that_is_a_link_is_refused(
    to: str, known: bool, merged: bool, workspace: Path, tmp_path: Path
) -> None:
    other, target = tmp_path / "other", tmp_path / to
    other.mkdir()
    if known:
        shutil.copy(workspace / "mstemba.toml", other)
    (other / "manifest.json").symlink_to(target)
    before = (workspace / "manifest.json").read_bytes()
    with pytest.raises(UsageError, match=f"manifest.json: a link to {target}, which init does not"):
        init(annotations=labels(tmp_path, "new"), root=other, merge=merged)
    assert (other / "manifest.json").is_symlink()
    assert target.exists() == (to != "nothing.json")
    assert (workspace / "manifest.json").read_bytes() == before


@pytest.mark.slow
def test_the_command_says_for_which_process_it_waits(workspace: Path, tmp_path: Path) -> None:
    args = ("init", "--merge", "--annotations", labels(tmp_path, "new"))
    with StoreLocks(workspace / "manifest.json", "writing").lock_store():
        process = subprocess.Popen(
            command(*args), cwd=workspace, env=environment(), stderr=subprocess.PIPE, text=True
        )
        assert process.stderr is not None
        said = process.stderr.readline()
    assert process.wait(120) == 0
    assert said == f"waiting for process {os.getpid()}, which is writing manifest.json\n"
    assert set(load_manifest(workspace / "manifest.json").videos) == {"first", "new"}
