"""The page of forty minutes of 157 classes: its size, how long it takes to write, and how quickly
its slider answers in Chromium (skipped where there is none).

    OMP_NUM_THREADS=1 python -m benchmarks.page
"""

from __future__ import annotations

import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import readable, save, show, times
from mstemba.pipeline.detect.segments import find_segments
from mstemba.pipeline.outputs import Detection
from tests.pipeline.outputs.page.conftest import browse, programs
from tests.pipeline.outputs.page.scenes import long_scene, page

CPU = torch.device("cpu")
LARGEST = 3e6
"""Bytes that a page may have."""
SLOWEST = 0.1
"""Seconds that the slider may take."""
THRESHOLDS = [0.05, 0.5, 0.3, 0.7, 0.2, 0.9, 0.4, 0.1, 0.6, 0.8]


def noise(what: Detection) -> Detection:
    """Uniformly random scores, which nothing can pack, and their segments."""
    shape = what.scores.probabilities.shape
    random = np.random.default_rng(0).random(shape).astype(np.float32)
    scores, options = replace(what.scores, probabilities=random), what.options
    found = find_segments(scores, options.threshold, options.low_threshold)
    return replace(what, scores=scores, segments=found)


def measure(what: Detection, folder: Path) -> dict[str, Any]:
    """One page."""
    path = page(what, folder)
    write = times(lambda: page(what, folder), CPU)
    found: dict[str, Any] = {"bytes": path.stat().st_size, "write": write["median"]}
    if programs():
        with browse(folder) as browser:
            browser.open(path)
            found["open"] = browser.get("performance.now()") / 1000
            found["slider"] = browser.slider_seconds(THRESHOLDS)
    return found


def main() -> None:
    rows = []
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for count in (3600, 7200):
            smooth = long_scene(Path(folder, "v.mp4"), count)
            for name, what in (("smooth", smooth), ("random", noise(smooth))):
                found = measure(what, Path(folder))
                found["segments"] = len(what.segments)
                results[f"{name}, {count} rows"] = found
                slider = found.get("slider")
                middle = statistics.median(slider) if slider else None
                rows.append(
                    [
                        f"{name}, {count} rows",
                        f"{found['bytes'] / 1e6:.2f} MB",
                        readable(found["write"]),
                        readable(middle),
                        readable(max(slider) if slider else None),
                    ]
                )
    columns = ["scores", "page", "written in", "slider, median", "slider, slowest"]
    show("the page of 40 minutes x 157 classes", columns, rows)
    limits = {"largest": LARGEST, "slowest": SLOWEST}
    print(save("page", CPU, {"limits": limits, "pages": results}))


if __name__ == "__main__":
    main()
