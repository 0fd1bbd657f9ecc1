"""Kept scores cut by another threshold, to each format: `mstemba export`, its start included.

    python -m benchmarks.export

The scores are of a video of 40 minutes at 24 frames a second with 157 classes (Charades' number),
a row every 16 or 8 frames: smooth, mostly near zero, with a few thousand segments, as a trained
network's are.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import readable, save, show
from mstemba.pipeline.detect.scores_file import SavedScores, save_scores
from mstemba.pipeline.detect.segments import find_segments
from mstemba.pipeline.options import ExportOptions
from mstemba.pipeline.outputs import WRITERS
from mstemba.records import Scores, TimeGrid

MINUTES, FPS, CLASSES = 40, 24, 157
STRIDES = (16, 8)
DEFAULT = ",".join(ExportOptions().formats)


def synthetic(stride: int) -> Scores:
    """Noise, smoothed over about ten seconds, pushed down so that a row has few active classes."""
    rows = MINUTES * 60 * FPS // stride
    noise = np.random.default_rng(0).standard_normal((rows, CLASSES))
    kernel = np.hanning(2 * (5 * FPS // stride) + 1)
    kernel /= np.sqrt((kernel**2).sum())
    logits = np.stack([np.convolve(column, kernel, "same") for column in noise.T], axis=1)
    values = (1 / (1 + np.exp(5 - 2.5 * logits))).astype(np.float32)
    grid = TimeGrid.even(0.0, stride / FPS, rows)
    names = tuple(f"someone does thing number {i}" for i in range(CLASSES))
    return Scores(values, grid, names, "video.mp4", 60.0 * MINUTES, float(FPS))


def measure(scores: Path, form: str, output: Path, runs: int) -> dict[str, Any]:
    """Seconds of the command, and of them those on a processor; medians of all runs."""
    command = [sys.executable, "-m", "mstemba", "export", str(scores), "--format", form]
    command += ["--threshold", "0.4", "--output", str(output), "--quiet"]
    wall, processor = [], []
    for _ in range(runs):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        begin = time.perf_counter()
        subprocess.run(command, check=True)
        wall.append(time.perf_counter() - begin)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent = (after.ru_utime - before.ru_utime) + (after.ru_stime - before.ru_stime)
        processor.append(spent)
    return {
        "median": statistics.median(wall),
        "worst": max(wall),
        "processor": statistics.median(processor),
        "runs": runs,
        "bytes": sum(file.stat().st_size for file in output.iterdir()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    # One thread: the machine may have other work, and nothing here gains from more.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    content: dict[str, Any] = {"minutes": MINUTES, "classes": CLASSES}
    for stride in STRIDES:
        dense = synthetic(stride)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            kept, video = folder / "video.scores.npz", folder / "video.mp4"
            video.touch()  # the page names it and does not read it
            save_scores(kept, SavedScores(replace(dense, video=str(video)), "key", "print"))
            measured = {
                form: measure(kept, form, folder / form, runs)
                for form in (*WRITERS, DEFAULT, ",".join(WRITERS))
            }
        segments = len(find_segments(dense, 0.4, 0.24))
        content[f"stride {stride}"] = {
            "rows": dense.grid.count,
            "segments": segments,
            "formats": measured,
        }
        show(
            f"{dense.grid.count} rows, {segments} segments",
            ["format", "median", "worst", "processor", "KiB"],
            [
                ["all of them" if form == ",".join(WRITERS) else form, *map(readable, (m["median"],
                 m["worst"], m["processor"])), f"{m['bytes'] / 1024:.0f}"]
                for form, m in measured.items()
            ],
        )  # fmt: skip
    print(save("export", torch.device("cpu"), content))


if __name__ == "__main__":
    main()
