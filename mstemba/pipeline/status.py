"""The status of a workspace: the features of every video, the runs, the detections."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from mstemba.data_manifests.manifest import Manifest, Video, load_manifest
from mstemba.errors import MstembaError, UsageError
from mstemba.pipeline.caching.files import describe_error, visible
from mstemba.pipeline.caching.keys import Fingerprints, entry_key
from mstemba.pipeline.checkpoint import DONE
from mstemba.pipeline.extract.jobs import read_failures
from mstemba.pipeline.features.entry import DamagedEntry
from mstemba.pipeline.features.npy_folder import NpyFolder
from mstemba.pipeline.features.store import FeatureStore
from mstemba.pipeline.runs import list_runs
from mstemba.pipeline.workspace import Workspace, get_current
from mstemba.reading.files import real_path
from mstemba.wording import counted

COLUMNS = ("state", "detail", "bytes", "made")


def status(workspace: Workspace, verify: bool = False) -> dict[str, Any]:
    """Return the content of a workspace as plain data, for `mstemba status`.

    Args:
        workspace: The workspace.
        verify: Read all features, weights and saved scores. Damaged features are marked, so that
            they are made again.

    Returns:
        `dataset`, `stores`, `runs`, `detections` and the like. `videos`, for each store the videos
        of the manifest: `state` is done, missing, stale, failed, damaged or no file; `detail` is
        the reason, or what the entry holds; `bytes` is the size on disk; `made` is the date and
        time in UTC, empty if unknown. With `verify` also `verified`: the number of `features`,
        `weights` and `scores` that were read, and in `damaged` what is wrong, a line each.
    """
    manifest = load_manifest(workspace.manifest)
    fingerprints = Fingerprints(workspace.fingerprints)
    current = get_current(workspace.features)
    roots = visible(workspace.features, "*.zarr")
    if current is not None and current not in roots:
        roots.append(current)  # named by `init --features`
    verified = _verify(workspace, roots, manifest) if verify else None
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
        "workspace": str(real_path(workspace.root)),
        "dataset": manifest.dataset,
        "classes": len(manifest.classes),
        "manifest_videos": len(manifest.videos),
        "stores": stores,
        "videos": videos,
        "runs": runs,
        "detections": _detections(workspace.detections),
        **({} if verified is None else {"verified": verified}),
    }


def _features(
    root: Path, manifest: Manifest, fingerprints: Fingerprints
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the facts of a store (none for a folder of .npy files) and its videos."""
    facts: dict[str, Any] = {}
    if _is_store(root):
        store = FeatureStore.open(root)
        facts = store.spec.as_dict()
        state_of = partial(_state, store, fingerprints, read_failures(root))
    else:
        state_of = partial(_npy_state, NpyFolder(root, manifest.videos.values()))
    videos = []
    for video in manifest.videos.values():
        state = dict(zip(COLUMNS, state_of(video), strict=True))
        videos.append({"video": video.id, "subset": video.subset, "store": root.name, **state})
    return facts, videos


def _is_store(root: Path) -> bool:
    return root.suffix == ".zarr" or (root / "zarr.json").exists()


def _state(
    store: FeatureStore, fingerprints: Fingerprints, failures: dict[str, str], video: Video
) -> tuple[str, str, int, str]:
    id, path = video.id, video.path
    try:
        entry = store.entry(id)
    except DamagedEntry as error:
        return "damaged", error.problem, 0, ""
    if entry is not None and entry.is_imported:
        now = entry.key
    else:
        try:
            now = "" if path is None else entry_key(store.spec, fingerprints.of(path))
        except UsageError as error:  # also a playlist without its pieces
            now, problem = "", str(error)
        else:
            problem = ""
        if not now:
            return "no file", problem, entry.bytes if entry else 0, entry.made if entry else ""
    if entry is not None:
        if now != entry.key:
            return "stale", "the video has changed since", entry.bytes, entry.made
        facts = [f"{counted(entry.rows, 'row')}, {entry.decoder}", *entry.warnings]
        return "done", "; ".join(facts), entry.bytes, entry.made
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


def _verify(workspace: Workspace, roots: list[Path], manifest: Manifest) -> dict[str, Any]:
    """Read everything, and return how much it was and what is damaged."""
    from mstemba.model.weights import WEIGHTS_FILE, load_model
    from mstemba.pipeline.detect.scores_file import read_scores

    damaged: list[str] = []

    def attempt(read: Callable[[], object]) -> None:
        try:
            read()
        except MstembaError as error:
            damaged.append(str(error))
        except OSError as error:
            damaged.append(describe_error(error))

    features = 0
    for root in roots:
        try:
            for problem in _verify_features(root, manifest):
                features += 1
                damaged += [problem] * bool(problem)
        except MstembaError as error:
            damaged.append(str(error))
    runs = [f for f in sorted(workspace.runs.glob("*/*/")) if f.name in ("best", "last")]
    runs = [f for f in runs if not f.parent.name.startswith(".")]
    # A finished run has one of them at least; both, if there were validation videos.
    weights = [f for f in runs if (f / WEIGHTS_FILE).exists() or (f.parent / DONE).exists()]
    for folder in weights:
        attempt(partial(load_model, folder))
    folders = (workspace.detections, workspace.zero_shot)
    scores = [file for folder in folders for file in visible(folder, "*.scores.npz")]
    for file in scores:
        attempt(partial(read_scores, file))
    counts = {"features": features, "weights": len(weights), "scores": len(scores)}
    return {**counts, "damaged": damaged}


def _verify_features(root: Path, manifest: Manifest) -> Iterator[str]:
    """Read all features in a store or a folder, and yield the problem of each, which may be empty.

    They may be of videos that the manifest does not have.
    """
    if not _is_store(root):
        source = NpyFolder(root, manifest.videos.values())
        for id in source.ids():
            try:
                source.values(id)
                yield ""
            except MstembaError as error:
                yield str(error)
        return
    for name, problem in FeatureStore.open(root).verify():
        yield f"{root / name}: {problem}" if problem else ""
