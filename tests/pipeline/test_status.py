"""The workspace, and what `status` says of it."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mstemba.data_manifests.manifest import Manifest, Video, manifest_json
from mstemba.errors import ManifestError, UsageError
from mstemba.model.architectures import make_config
from mstemba.pipeline.caching.keys import entry_key, file_sha256
from mstemba.pipeline.checkpoint import checkpoint_config, find_checkpoint
from mstemba.pipeline.features.store import FeatureStore
from mstemba.pipeline.status import status
from mstemba.pipeline.workspace import (
    Workspace,
    create_workspace,
    find_workspace,
    get_current,
    open_workspace,
    set_current,
)
from mstemba.records import FeatureSpec
from tests.command_line import Runner

SPEC = FeatureSpec("b", "m", "tag:w", width=2, input_size=32, short_side=32)
VIDEOS = ("done", "missing", "stale", "failed", "nofile", "gone")


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """Six videos in six states, in one store."""
    made = create_workspace(tmp_path / "w")
    entries = {}
    for id in VIDEOS:
        path = made.root / f"{id}.mp4"
        path.write_bytes(id.encode())
        entries[id] = Video(id, None if id == "nofile" else path, "training", None)
    (made.root / "gone.mp4").unlink()
    write_manifest(made, entries)
    store = make_store(made)
    put(store, "done", file_sha256(made.root / "done.mp4"))
    put(store, "stale", "0" * 64)
    (store.root / "failures.json").write_text('{"failed": "failed.mp4: not a readable video"}')
    return made


def write_manifest(workspace: Workspace, videos: dict[str, Video]) -> None:
    text = manifest_json(Manifest("d", ("sit",), "seconds", videos), workspace.root)
    workspace.manifest.write_text(text, encoding="utf-8")


def make_store(workspace: Workspace, name: str = "b-w16s16-abc.zarr") -> FeatureStore:
    store = FeatureStore.prepare(workspace.features / name, SPEC)
    store.make()
    set_current(workspace.features, name)
    return store


def put(store: FeatureStore, id: str, fingerprint: str, warnings: tuple[str, ...] = ()) -> None:
    writer = store.writer(id, entry_key(SPEC, fingerprint), "av")
    writer.append(np.zeros((5, 2), np.float32), np.arange(5.0))
    writer.finish(1.0, duration=5.0, fps=1.0, decoder="av", warnings=list(warnings))


def states(found: dict[str, Any]) -> dict[str, str]:
    return {row["video"]: row["state"] for row in found["videos"]}


def test_every_video_has_its_state_and_the_reason(workspace: Workspace) -> None:
    found = status(workspace)
    assert states(found) == {
        "done": "done",
        "missing": "missing",
        "stale": "stale",
        "failed": "failed",
        "nofile": "no file",
        "gone": "no file",
    }
    rows = {row["video"]: row for row in found["videos"]}
    assert rows["done"]["detail"] == "5 rows, av"
    assert rows["done"]["bytes"] > 0
    assert rows["done"]["made"].endswith("Z")
    assert rows["failed"]["detail"] == "failed.mp4: not a readable video"
    assert "gone.mp4" in rows["gone"]["detail"]
    assert {row["subset"] for row in found["videos"]} == {"training"}
    assert (found["dataset"], found["classes"], found["manifest_videos"]) == ("d", 1, 6)
    assert json.loads(json.dumps(found)) == found


def test_the_command_prints_a_table_for_each_store(workspace: Workspace, mstemba: Runner) -> None:
    path = f"{'very ' * 40}long"
    store = make_store(workspace, "c-w8s8-def.zarr")
    (store.root / "failures.json").write_text(json.dumps({"failed": path}))
    lines = mstemba("status", cwd=workspace.root).stdout.splitlines()
    heads = [line for line in lines if line.startswith("features in ")]
    assert heads == [
        "features in b-w16s16-abc.zarr: 1 done, 1 missing, 1 stale, 1 failed, 2 no file",
        "features in c-w8s8-def.zarr (current): 3 missing, 1 failed, 2 no file",
    ]
    (row,) = [line for line in lines if path in line]  # whole, on the line of its video
    assert row.split()[:3] == ["failed", "training", "failed"]
    assert "runs: none yet" in lines


def test_warnings_of_the_decoder_are_shown(workspace: Workspace) -> None:
    store = FeatureStore.open(next(workspace.features.glob("*.zarr")))
    sha = file_sha256(workspace.root / "done.mp4")
    put(store, "done", sha, ("3 damaged packets skipped",))
    (row,) = [row for row in status(workspace)["videos"] if row["video"] == "done"]
    assert row["detail"] == "5 rows, av; 3 damaged packets skipped"


def test_a_video_that_changes_is_stale_and_one_that_moves_is_not(workspace: Workspace) -> None:
    assert states(status(workspace))["done"] == "done"
    video = workspace.root / "done.mp4"
    (workspace.root / "moved").mkdir()
    moved = video.rename(workspace.root / "moved" / "other name.mp4")
    write_manifest(workspace, {"done": Video("done", moved, None, None)})
    assert states(status(workspace)) == {"done": "done"}
    moved.write_bytes(b"another cut of it")
    assert states(status(workspace)) == {"done": "stale"}


def test_every_store_is_listed_with_what_it_was_made_by(workspace: Workspace) -> None:
    make_store(workspace, "b-w16s16-def.zarr")
    stores = {row["name"]: row for row in status(workspace)["stores"]}
    assert {name: row["current"] for name, row in stores.items()} == {
        "b-w16s16-abc.zarr": False,
        "b-w16s16-def.zarr": True,
    }
    assert stores["b-w16s16-abc.zarr"]["window"] == 16
    assert len(status(workspace)["videos"]) == 2 * len(VIDEOS)


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_a_damaged_store_is_a_problem_of_its_own(workspace: Workspace, content: str) -> None:
    bad = workspace.features / "bad.zarr"
    bad.mkdir()
    (bad / "zarr.json").write_text(content)
    found = status(workspace)
    (problem,) = [row for row in found["stores"] if row["name"] == "bad.zarr"]
    assert "bad.zarr" in problem["problem"]
    assert states(found)["done"] == "done"


def publish(workspace: Workspace, folder: Path, *files: str) -> None:
    folder.mkdir()
    for file in files:
        (folder / file).parent.mkdir(exist_ok=True)
        np.save(folder / file, np.zeros((3, 2), np.float32))
    set_current(workspace.features, str(folder))


def test_a_folder_of_published_features_is_listed(workspace: Workspace, tmp_path: Path) -> None:
    folder = tmp_path / "published"
    publish(workspace, folder, "done.npy", "nofile.npy")
    found = status(workspace)
    assert [(row["name"], row["current"]) for row in found["stores"]] == [
        ("b-w16s16-abc.zarr", False),
        (str(folder), True),
    ]
    rows = {row["video"]: row for row in found["videos"] if row["store"] == "published"}
    assert {id: row["state"] for id, row in rows.items()} == {
        **dict.fromkeys(VIDEOS, "missing"),
        "done": "done",
        "nofile": "done",
    }
    assert rows["done"]["bytes"] == (folder / "done.npy").stat().st_size


@pytest.mark.parametrize(
    ("files", "says"),
    [((), "neither a feature store"), (("done.npy", "b/done.npy"), "belong to the same video")],
)
def test_a_folder_that_is_no_features_is_a_problem_of_its_own(
    workspace: Workspace, tmp_path: Path, files: tuple[str, ...], says: str
) -> None:
    publish(workspace, tmp_path / "published", *files)
    found = status(workspace)
    _, row = found["stores"]
    assert (row["name"], row["current"]) == (str(tmp_path / "published"), True)
    assert says in row["problem"]
    assert states(found)["done"] == "done"


def test_a_current_store_elsewhere_is_listed(workspace: Workspace, tmp_path: Path) -> None:
    for name in ("x.zarr", "plain"):
        store = FeatureStore.prepare(tmp_path / name, SPEC)
        store.make()
        put(store, "nofile", "0" * 64)
        set_current(workspace.features, f"../../{name}")
        found = status(workspace)
        (row,) = [row for row in found["stores"] if row["current"]]
        assert Path(row["name"]).resolve() == store.root
        assert row["window"] == 16
        assert len([row for row in found["videos"] if row["store"] == name]) == len(VIDEOS)


def test_a_damaged_entry_is_shown_and_hides_no_other(workspace: Workspace) -> None:
    (store,) = workspace.features.glob("*.zarr")
    (store / "stale" / "zarr.json").write_text("{")
    found = states(status(workspace))
    assert found.pop("stale") not in ("done", "stale")
    assert found["done"] == "done"
    assert found["failed"] == "failed"


def test_a_damaged_list_of_failures_hides_no_video(workspace: Workspace) -> None:
    (store,) = workspace.features.glob("*.zarr")
    (store / "failures.json").write_text("{")
    assert states(status(workspace))["done"] == "done"


def test_an_empty_workspace_has_a_status(tmp_path: Path) -> None:
    made = create_workspace(tmp_path / "w")
    with pytest.raises(ManifestError, match=r"manifest\.json: no such file"):
        status(made)
    write_manifest(made, {})
    found = status(made)
    assert [found[k] for k in ("stores", "videos", "runs", "detections")] == [[], [], [], []]


def make_run(workspace: Workspace, name: str, done: bool) -> None:
    last = workspace.runs / name / "last"
    last.mkdir(parents=True)
    spec = replace(FeatureSpec.unknown(6), backbone="clip")
    network = make_config("mstemba", 6, 2).to_dict()
    config = checkpoint_config(network, ("walk", "sit"), spec, None, {}, "a" * 64)
    (last / "config.json").write_text(json.dumps(config))
    if done:
        result = {"checkpoint": "best", "score": 12.5, "steps": 300, "seconds": 4.0}
        (workspace.runs / name / "done.json").write_text(json.dumps(result))


def test_runs_are_listed_finished_or_not(workspace: Workspace) -> None:
    make_run(workspace, "a", done=True)
    make_run(workspace, "b", done=False)
    set_current(workspace.runs, "a")
    one, other = status(workspace)["runs"]
    assert (one["name"], one["state"], one["current"], one["score"]) == ("a", "done", True, 12.5)
    assert (other["name"], other["state"], other["current"]) == ("b", "unfinished", False)
    assert (one["arch"], one["backbone"]) == ("mstemba", "clip")


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_a_damaged_run_hides_no_other(workspace: Workspace, content: str) -> None:
    make_run(workspace, "a", done=True)
    make_run(workspace, "b", done=True)
    (workspace.runs / "a" / "last" / "config.json").write_text(content)
    found = {run["name"]: run["state"] for run in status(workspace)["runs"]}
    assert found["b"] == "done"
    assert found.get("a") != "done"


def test_detections_are_listed(workspace: Workspace) -> None:
    workspace.detections.mkdir()
    (workspace.detections / "walk.scores.npz").write_bytes(b"12345")
    (workspace.detections / "walk.json").write_text("{}")
    (row,) = status(workspace)["detections"]
    assert (row["video"], row["bytes"]) == ("walk", 5)
    assert row["made"].endswith("Z")


# The workspace itself


def test_a_workspace_is_found_from_below_by_option_and_by_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MSTEMBA_WORKSPACE", raising=False)
    outer, inner = create_workspace(tmp_path / "o"), create_workspace(tmp_path / "o" / "a" / "i")
    (inner.root / "deep" / "er").mkdir(parents=True)

    def found() -> Path | None:
        workspace = find_workspace()
        return workspace and workspace.root.resolve()

    monkeypatch.chdir(inner.root / "deep" / "er")
    assert found() == inner.root.resolve()
    monkeypatch.chdir(tmp_path / "o" / "a")
    assert found() == outer.root.resolve()
    monkeypatch.setenv("MSTEMBA_WORKSPACE", str(inner.root))
    assert found() == inner.root.resolve()
    assert find_workspace(outer.root) == open_workspace(outer.root)
    monkeypatch.delenv("MSTEMBA_WORKSPACE")
    monkeypatch.chdir(tmp_path)
    assert found() is None


def test_a_named_folder_that_is_no_workspace_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match=r"not a workspace, it has no mstemba\.toml"):
        find_workspace(tmp_path)
    monkeypatch.setenv("MSTEMBA_WORKSPACE", str(tmp_path / "none"))
    with pytest.raises(UsageError, match="none: not a workspace"):
        find_workspace()


def test_a_workspace_is_left_as_it_is_when_it_is_made_again(tmp_path: Path) -> None:
    made = create_workspace(tmp_path)
    marker = tmp_path / "mstemba.toml"
    marker.write_text('version = 1\nmanifest = "labels/mine.json"\n', encoding="utf-8")
    again = create_workspace(tmp_path)
    assert again.manifest == tmp_path / "labels" / "mine.json"
    assert made.manifest == tmp_path / "manifest.json"


@pytest.mark.parametrize("content", [b"manifest = ", b"\xff\xfe", b"= 1"])
def test_a_damaged_marker_is_a_usage_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "mstemba.toml").write_bytes(content)
    with pytest.raises(UsageError, match=r"mstemba\.toml: not readable as TOML"):
        open_workspace(tmp_path)


@pytest.mark.parametrize(
    "name", ["../m.json", "/etc/m.json", "a/../../m.json", "linked/m.json", "", ".", ".."]
)
def test_a_manifest_outside_the_workspace_is_refused(tmp_path: Path, name: str) -> None:
    root = tmp_path / "w"
    root.mkdir()
    (root / "linked").symlink_to(tmp_path)
    (root / "mstemba.toml").write_text(f'manifest = "{name}"\n')
    with pytest.raises(UsageError, match=r"mstemba\.toml: .* a file in the workspace"):
        create_workspace(root)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("manifest = 3", r"expected str, found int at \$\.manifest"),
        ('manifest = "a\\u0000b"', r"found 'a\\x00b' at \$\.manifest"),
        ("version = 2", r"expected 1, found 2 at \$\.version"),
        ("a = " + "[" * 100_000, "not readable as TOML"),
        ("a = " + "9" * 5000, "not readable as TOML"),
    ],
)
def test_a_marker_with_other_content_is_a_usage_error(
    tmp_path: Path, content: str, says: str
) -> None:
    (tmp_path / "mstemba.toml").write_text(content)
    with pytest.raises(UsageError, match=says):
        open_workspace(tmp_path)


@pytest.mark.parametrize("name", ["..", ".", "../features", "a/last", "{outside}"])
def test_a_current_run_outside_the_runs_is_refused(workspace: Workspace, name: str) -> None:
    make_run(workspace, "a", done=True)
    outside = workspace.root / "outside"
    outside.mkdir()
    (workspace.runs / "current").write_text(name.format(outside=outside))
    with pytest.raises(UsageError, match=r"current: found .*, expected the name of a run"):
        find_checkpoint(None, workspace)
    assert [run["current"] for run in status(workspace)["runs"]] == [False]


@pytest.mark.parametrize("content", [b"a\0b", b"a\xff", b"x" * 10**6, b"\n", b"a" * 300])
def test_a_damaged_name_of_the_current_run_is_that_of_none(
    workspace: Workspace, content: bytes
) -> None:
    make_run(workspace, "a", done=True)
    (workspace.runs / "current").write_bytes(content)
    with pytest.raises(UsageError, match="no training has finished"):
        find_checkpoint(None, workspace)


@pytest.mark.parametrize(
    "content",
    ["", "3", "[]", '{"failed": 3}', "[" * 10**5, "9" * 5000],
)
def test_a_damaged_list_of_failures_counts_as_empty(workspace: Workspace, content: str) -> None:
    (store,) = workspace.features.glob("*.zarr")
    failed = [row for row in status(workspace)["videos"] if row["state"] == "failed"]
    assert len(failed) == 1
    (store / "failures.json").write_text(content)
    assert [row for row in status(workspace)["videos"] if row["state"] == "failed"] == []
    os.remove(store / "failures.json")
    os.mkfifo(store / "failures.json")
    assert [row for row in status(workspace)["videos"] if row["state"] == "failed"] == []


def test_the_current_entry_is_remembered_while_it_is_there(tmp_path: Path) -> None:
    assert get_current(tmp_path) is None
    (tmp_path / "one").mkdir()
    set_current(tmp_path, "one")
    assert get_current(tmp_path) == tmp_path / "one"
    os.rmdir(tmp_path / "one")
    assert get_current(tmp_path) is None


@pytest.mark.parametrize("content", [b"", b"\n", b"\xff"])
def test_a_damaged_pointer_points_nowhere(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "current").write_bytes(content)
    assert get_current(tmp_path) is None
