"""Building the labels of all of Charades, against a Python loop over the rows of every action.

    python -m benchmarks.labels --annotations DIR

DIR holds the field's charades.json. The rows are those of features with one row every 16 frames of
24 a second.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import readable, save, show
from mstemba.data_manifests.annotations import read_annotations
from mstemba.data_manifests.manifest import Video
from mstemba.pipeline.dataset.labels import label_matrix
from mstemba.pipeline.features.row_times import even_rows

FPS, STRIDE, ROUNDS = 24, 16, 9


def loop(videos: list[Video], rows: list[int], classes: int) -> list[np.ndarray]:
    """A (T, C) matrix a video, filled step by step, as the field's loaders do it."""
    made = []
    for video, count in zip(videos, rows, strict=True):
        labels = np.zeros((count, classes), np.float32)
        per_second = count / (video.duration or 1.0)
        for class_id, start, end in video.actions:
            for row in range(count):
                if row / per_second > start and row / per_second < end:
                    labels[row, class_id] = 1
        made.append(labels)
    return made


def main() -> None:
    """Time both, and check that they agree."""
    parser = argparse.ArgumentParser(description="Time the building of labels.")
    parser.add_argument("--annotations", type=Path, required=True)
    args = parser.parse_args()
    manifest, _ = read_annotations(args.annotations / "charades.json")
    classes = len(manifest.classes)
    videos = [v for v in manifest.videos.values() if v.duration]
    rows = [max(1, int((v.duration or 0) * FPS / STRIDE)) for v in videos]
    grids = [even_rows(v.duration or 1.0, n) for v, n in zip(videos, rows, strict=True)]
    actions = [v.actions for v in videos]

    def label_all() -> list[np.ndarray]:
        pairs = zip(actions, grids, strict=True)
        return [label_matrix(found, grid, classes) for found, grid in pairs]

    built = label_all()
    positives = sum(int(labels.sum()) for labels in built)
    different = sum(
        int((ours != theirs).sum())
        for ours, theirs in zip(built, loop(videos, rows, classes), strict=True)
    )
    timed: dict[str, Callable[[], Any]] = {
        "loop": lambda: loop(videos, rows, classes),
        "label_matrix": label_all,
    }
    taken: dict[str, list[float]] = {name: [] for name in timed}
    for _ in range(ROUNDS):  # side by side: what else the machine does hits them alike
        for name, function in timed.items():
            for _ in range(1 if name == "loop" else 5):  # the loop leaves nothing in the caches
                begin = time.perf_counter()
                function()
                taken[name].append(time.perf_counter() - begin)
    seconds = {
        name: {"fastest": min(found), "median": statistics.median(found)}
        for name, found in taken.items()
    }
    ratio = {
        name: {how: seconds["loop"][how] / found[how] for how in found}
        for name, found in seconds.items()
    }
    show(
        f"{len(videos)} videos, {sum(rows):,} rows, {positives:,} positive labels",
        ["", "fastest", "median", "x faster than the loop", "by medians"],
        [
            [
                name,
                *(readable(seconds[name][how]) for how in ("fastest", "median")),
                *(f"{ratio[name][how]:.0f}" for how in ("fastest", "median")),
            ]
            for name in timed
        ],
    )
    content = {"rows": sum(rows), "seconds": seconds, "ratio": ratio, "different": different}
    print(save("labels", torch.device("cpu"), content))


if __name__ == "__main__":
    main()
