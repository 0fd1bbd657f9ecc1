"""The status of a workspace: the features of every video, the runs, the detections."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

from mstemba.data_manifests.manifest import Manifest, Video, load_manifest
from mstemba.errors import MstembaError, StoreError
from mstemba.pipeline.caching.files import visible
from mstemba.pipeline.caching.keys import Fingerprints, entry_key
from mstemba.pipeline.extract.jobs import read_failures
from mstemba.pipeline.features.npy_folder import NpyFolder
from mstemba.pipeline.features.store import FeatureStore, is_imported
from mstemba.pipeline.runs import list_runs
from mstemba.pipeline.workspace import Workspace, get_current
from mstemba.wording import counted

COLUMNS = ("state", "detail", "bytes", "made")


def status(workspace: Workspace) -> dict[str, Any]:
    """Return the content of a workspace as plain data, for `mstemba status`.

    Returns:
        `dataset`, `stores`, `runs`, `detections` and the like. `videos`, for each store the videos
        of the manifest: `state` is done, missing, stale, failed, damaged or no file; `detail` is
        the reason, or what the entry holds; `bytes` is the size on disk; `made` is the date and
        time in UTC, empty if unknown.
    """
    manifest = load_manifest(workspace.manifest)
    fingerprints = Fingerprints(workspace.fingerprints)
    current = get_current(workspace.features)
    roots = visible(workspace.features, "*.zarr")
    if current is not None and current not in roots:
        roots.append(current)  # named by `init --features`
    stores: list[dict[str, Any]] = []
    videos: list[dict[str, Any]] = []
    for root in roots:
        name = root.name if root.parent == workspace.features else str(root)
        row = {"name": name, "current": root == current}
        try:
            facts, found = _features(root, manifest, fingerprints)
        except MstembaError as error:
            stores.append({**row, "problem": str(error)})
            continue
        stores.append({**row, **facts})
        videos += found
    fingerprints.save()
    runs = list_runs(workspace)
    for run in runs:
        del run["config"]  # `mstemba runs` shows what matters of it
    return {
        "workspace": str(workspace.root.resolve()),
        "dataset": manifest.dataset,
        "classes": len(manifest.classes),
        "manifest_videos": len(manifest.videos),
        "stores": stores,
        "videos": videos,
        "runs": runs,
        "detections": _detections(workspace.detections),
    }


def _features(
    root: Path, manifest: Manifest, fingerprints: Fingerprints
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the facts of a store (none for a folder of .npy files) and its videos."""
    facts: dict[str, Any] = {}
    if root.suffix != ".zarr" and not (root / "zarr.json").exists():
        state_of = partial(_npy_state, NpyFolder(root, manifest.videos.values()))
    else:
        store = FeatureStore.open(root)
        facts = store.spec.as_dict()
        state_of = partial(_state, store, fingerprints, read_failures(root))
    videos = []
    for video in manifest.videos.values():
        state = dict(zip(COLUMNS, state_of(video), strict=True))
        videos.append({"video": video.id, "subset": video.subset, "store": root.name, **state})
    return facts, videos


def _state(
    store: FeatureStore, fingerprints: Fingerprints, failures: dict[str, str], video: Video
) -> tuple[str, str, int, str]:
    id, path = video.id, video.path
    try:
        entry = store.entry(id)
    except StoreError as error:
        return "damaged", str(error), 0, ""
    imported = entry is not None and is_imported(entry)
    if not imported and (path is None or not path.is_file()):
        return "no file", str(path or ""), 0, ""
    if entry is not None:
        size, made, key = store.bytes_of(id), entry["made"], entry["key"]
        try:
            now = key if imported or not path else entry_key(store.spec, fingerprints.of(path))
        except OSError as error:  # such as a playlist without its pieces
            return "no file", f"{path}: {error.strerror}", size, made
        if now != key:
            return "stale", "the video has changed since", size, made
        facts = [f"{counted(entry['rows'], 'row')}, {entry['decoder']}", *entry["warnings"]]
        return "done", "; ".join(facts), size, made
    if id in failures:
        return "failed", failures[id], 0, ""
    return "missing", "", 0, ""


def _npy_state(source: NpyFolder, video: Video) -> tuple[str, str, int, str]:
    """Return the state of a video in a folder of published features, without reading its file."""
    size = source.bytes_of(video.id)
    return ("missing", "", 0, "") if size is None else ("done", "published", size, "")


def _detections(folder: Path) -> list[dict[str, Any]]:
    return [
        {
            "video": file.name.removesuffix(".scores.npz"),
            "bytes": file.stat().st_size,
            "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(file.stat().st_mtime)),
        }
        for file in visible(folder, "*.scores.npz")
    ]
