"""`mstemba status` of many videos, and `mstemba extract` of the same, all cached.

    python -m benchmarks.status
    python -m benchmarks.status --checkouts . ANOTHER    # also with the code of another checkout

Both are timed as commands, their start included, in turn, so that other work on the machine takes
from both. Their ratio is what `status` costs beyond looking everything up once.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import readable, show
from mstemba.data_manifests.manifest import Manifest, Video, manifest_json
from mstemba.extractors import registry
from mstemba.pipeline.caching.keys import Fingerprints, entry_key, file_sha256
from mstemba.pipeline.features.entry import with_digest
from mstemba.pipeline.features.spec import make_spec, store_name
from mstemba.pipeline.features.store import FeatureStore
from mstemba.pipeline.options import FeatureOptions
from mstemba.pipeline.workspace import create_workspace, set_current

BACKBONE = "efficientnet-lite0"
ROWS = 20


def make_workspace(root: Path, videos: int) -> None:
    """Make a workspace with files in place of videos, and a finished entry for each of them."""
    workspace = create_workspace(root)
    options = FeatureOptions(backbone=BACKBONE, precision="float32")
    spec = make_spec(registry.resolve(BACKBONE, None, None, file_sha256), options)
    store = FeatureStore.prepare(workspace.features / store_name(spec), spec)
    store.make()
    prints, listed = Fingerprints(workspace.fingerprints), {}
    rows = np.random.default_rng(0).normal(size=(ROWS, spec.width)).astype(spec.dtype)
    starts = np.arange(ROWS) * 0.64
    writer = store.writer("template", "key", "av")
    writer.append(rows, starts)
    writer.finish(0.64, duration=13.0, fps=25.0, frames=ROWS * 16, decoder="av", warnings=[])
    template = store.root / "template"
    marker, shard = json.loads((template / "zarr.json").read_text()), template / "c" / "0" / "0"
    for number in range(videos):
        path = root / f"{number}.mp4"
        path.write_bytes(str(number).encode())
        id = f"v{number:05d}"
        listed[id] = Video(id, path, "training", None)
        sha = prints.of(path)
        own = {"id": id, "key": entry_key(spec, sha), "fingerprint": sha}
        marker["attributes"] = with_digest(marker["attributes"] | own)
        (store.root / id / "c" / "0").mkdir(parents=True)
        (store.root / id / "zarr.json").write_text(json.dumps(marker, indent=1))
        os.link(shard, store.root / id / "c" / "0" / "0")
    prints.save()
    manifest = Manifest("status", ("sit",), "seconds", listed)
    workspace.manifest.write_text(manifest_json(manifest, root), encoding="utf-8")
    set_current(workspace.features, store.root.name)


def measure(root: Path, checkout: Path, runs: int) -> dict[str, Any]:
    """Seconds of both commands: the fastest of some runs, which take turns."""
    extract = ("extract", "--backbone", BACKBONE, "--precision", "float32")
    taken: dict[str, list[float]] = {"extract": [], "status": []}
    for _ in range(runs):
        for command in (extract, ("status",)):
            begin = time.perf_counter()
            done = subprocess.run(
                [sys.executable, "-m", "mstemba", *command],
                cwd=root,
                env={**os.environ, "PYTHONPATH": str(checkout)},
                check=True,
                capture_output=True,
                text=True,
            )
            taken[command[0]].append(time.perf_counter() - begin)
            assert " 0 failed" in done.stdout or " done" in done.stdout, done.stdout
    return {name: min(seconds) for name, seconds in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=int, nargs="+", default=[2500, 5000, 10000])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--checkouts", type=Path, nargs="+", default=[Path.cwd()])
    args = parser.parse_args()
    rows = []
    for videos in args.videos:
        with tempfile.TemporaryDirectory() as folder:
            make_workspace(Path(folder), videos)
            for checkout in args.checkouts:
                seconds = measure(Path(folder), checkout.resolve(), args.runs)
                ratio = seconds["status"] / seconds["extract"]
                row = {"checkout": checkout.name or "this", "videos": videos, "ratio": ratio}
                rows.append({**row, **seconds})
                print(json.dumps(rows[-1]))
    cells = [
        [
            r["checkout"],
            f"{r['videos']:,}",
            readable(r["extract"]),
            readable(r["status"]),
            f"{r['ratio']:.2f}",
        ]
        for r in rows
    ]
    show("status", ["code", "videos", "extract, all cached", "status", "status / extract"], cells)


if __name__ == "__main__":
    main()
