"""What a workspace holds: every stage of every video, the runs, the detections."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mstemba.data_manifests.manifest import load_manifest
from mstemba.errors import MstembaError, StoreError
from mstemba.pipeline.checkpoint import CONFIG, DONE
from mstemba.pipeline.extract import read_failures
from mstemba.pipeline.files import read_json
from mstemba.pipeline.keys import Fingerprints, entry_key
from mstemba.pipeline.store import FeatureStore
from mstemba.pipeline.workspace import Workspace, get_current


@dataclass(frozen=True)
class VideoStatus:
    """One video in one feature store."""

    video: str
    subset: str | None
    store: str
    state: str
    """done, missing, stale, failed, or no file."""
    detail: str
    bytes: int
    made: str


def status(workspace: Workspace) -> dict[str, Any]:
    """Everything a workspace holds, as plain data: `videos`, `stores`, `runs`, `detections`."""
    manifest = load_manifest(workspace.manifest)
    fingerprints = Fingerprints(workspace.fingerprints)
    current = get_current(workspace.features)
    stores, videos = [], []
    for root in sorted(workspace.features.glob("*.zarr")):
        try:
            store = FeatureStore.open(root)
        except MstembaError as error:
            stores.append({"name": root.name, "current": root == current, "problem": str(error)})
            continue
        stores.append({"name": root.name, "current": root == current, **store.spec.as_dict()})
        failures = read_failures(root)
        for video in manifest.videos.values():
            state = _state(store, video.id, video.path, fingerprints, failures)
            videos.append(VideoStatus(video.id, video.subset, root.name, *state).__dict__)
    fingerprints.save()
    return {
        "workspace": str(workspace.root.resolve()),
        "dataset": manifest.dataset,
        "classes": len(manifest.classes),
        "manifest_videos": len(manifest.videos),
        "stores": stores,
        "videos": videos,
        "runs": _runs(workspace),
        "detections": _detections(workspace.detections),
    }


def _state(
    store: FeatureStore,
    id: str,
    path: Path | None,
    fingerprints: Fingerprints,
    failures: dict[str, str],
) -> tuple[str, str, int, str]:
    if path is None or not path.is_file():
        return "no file", str(path or ""), 0, ""
    try:
        entry = store.entry(id)
    except StoreError as error:
        return "damaged", str(error), 0, ""
    if entry is not None:
        size, made = store.bytes_of(id), entry["made"]
        if entry["key"] != entry_key(store.spec, fingerprints.of(path)):
            return "stale", "the video changed since", size, made
        return (
            "done",
            "; ".join([f"{entry['rows']} rows, {entry['decoder']}", *entry["warnings"]]),
            size,
            made,
        )
    if id in failures:
        return "failed", failures[id], 0, ""
    return "missing", "", 0, ""


def _runs(workspace: Workspace) -> list[dict[str, Any]]:
    current = get_current(workspace.runs)
    runs = []
    for run in sorted(p for p in workspace.runs.glob("*") if (p / "last" / CONFIG).is_file()):
        try:
            config = read_json(run / "last" / CONFIG)
            arch, backbone = config["model"]["arch"], config["features"]["backbone"]
        except (OSError, ValueError, KeyError, TypeError):
            runs.append({"name": run.name, "current": run == current, "state": "damaged"})
            continue
        done = read_json(run / DONE) if (run / DONE).is_file() else None
        runs.append(
            {
                "name": run.name,
                "current": run == current,
                "state": "done" if done else "unfinished",
                "arch": arch,
                "backbone": backbone,
                "checkpoint": done and done["checkpoint"],
                "score": done and done["score"],
                "steps": done and done["steps"],
                "seconds": done and done["seconds"],
            }
        )
    return runs


def _detections(folder: Path) -> list[dict[str, Any]]:
    return [
        {
            "video": file.name.removesuffix(".scores.npz"),
            "bytes": file.stat().st_size,
            "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(file.stat().st_mtime)),
        }
        for file in sorted(folder.glob("*.scores.npz"))
    ]
