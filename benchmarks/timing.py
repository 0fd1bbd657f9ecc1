"""Onset and offset errors of segments, by the rule that labels rows and that which places edges.

    python -m benchmarks.timing [--recording VIDEO --labels FILE]

Synthetic: random actions of 0.3 to 60 rows; a row sees how much of its pictures, and of half a row
around them, lies in an action, plus noise. A logistic regression over seven rows is fitted to the
labels of one half of the videos, and the other half is cut into segments.

Recording: the exercise recording with its labels, as tests/test_exercise.py cuts it, in rows of 0.4
s, four times with rows that start a frame later, for more edges; a linear probe by `mstemba train`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.common import save, show
from benchmarks.tables import timing as table
from mstemba.data_manifests.manifest import Action
from mstemba.pipeline.checkpoint import find_checkpoint, score
from mstemba.pipeline.dataset.labels import ANCHORS, label_matrix
from mstemba.pipeline.decode.probe import open_video
from mstemba.pipeline.demo import write_video
from mstemba.pipeline.detect.segments import cut_scores
from mstemba.pipeline.evaluate.metric_groups import MatchedDetections, ScoredVideo
from mstemba.pipeline.evaluate.segment_metrics import SegmentArray, duration_bin
from mstemba.pipeline.evaluate.timing import TimingErrors
from mstemba.pipeline.extract.stage import extract
from mstemba.pipeline.features.sources import find_features
from mstemba.pipeline.init import init
from mstemba.pipeline.options import FeatureOptions, RunOptions, TrainOptions, TrainRunOptions
from mstemba.pipeline.train.stage import train
from mstemba.records import Scores, TimeGrid

THRESHOLD, LOW = 0.5, 0.3
ROWS, VIDEOS, AROUND = 400, 60, 3
LIMITS = (2.0, 8.0)
"""Rows: shorter actions than the first are short, from the second on they are long."""
STRIDE = 4
FloatArray = NDArray[np.float64]


def touched(actions: Sequence[Action], grid: TimeGrid) -> NDArray[np.bool_]:
    """Label every row that an action touches, as `--labels overlap` did before."""
    inside = [(grid.starts < a.end) & (grid.ends > a.start) for a in actions]
    return np.any([np.zeros(grid.count, bool), *inside], axis=0)[:, None]


RULES: dict[str, Callable[[Sequence[Action], TimeGrid], NDArray[np.bool_]]] = {
    "strict": lambda actions, grid: label_matrix(actions, grid, 1, "strict"),
    "touch": touched,
    "overlap": lambda actions, grid: label_matrix(actions, grid, 1, "overlap"),
}


def cut(dense: Scores, edges: str) -> SegmentArray:
    """Cut scores into segments with edges of one kind; "as now" are those of the package."""
    if edges == "as now":
        found = cut_scores(dense, THRESHOLD, LOW)
        zeros = np.zeros(len(found.starts), np.int64)
        return SegmentArray(zeros, found.class_ids, found.starts, found.ends, found.scores)
    rows = []
    for class_id, column in enumerate(dense.probabilities.T.astype(np.float64)):
        changes = np.diff((column >= LOW).astype(int), prepend=0, append=0)
        for first, after in zip(
            np.flatnonzero(changes == 1), np.flatnonzero(changes == -1), strict=True
        ):
            high = first + np.flatnonzero(column[first:after] >= THRESHOLD)
            if not len(high):
                continue
            if edges == "whole rows":
                start, end = dense.grid.starts[first], dense.grid.ends[after - 1]
            else:
                inner = (first, after - 1) if "low" in edges else (high[0], high[-1])
                start = _edge(dense, column, inner[0], -1, edges)
                end = _edge(dense, column, inner[1], 1, edges)
            rows.append((0, class_id, start, min(end, dense.duration), 1.0))
    return SegmentArray.from_rows(rows)


EDGES = ("whole rows", "halfway", "probabilities", "log-odds, at low", "as now")


def _edge(dense: Scores, column: FloatArray, inner: int, step: int, edges: str) -> float:
    outer = inner + step
    if not 0 <= outer < len(column):
        return float(dense.bounds[0 if step < 0 else -1])
    level = np.array(LOW if "low" in edges else THRESHOLD)
    values = np.array([column[outer], level, column[inner]])
    if "log-odds" in edges:
        values = np.clip(values, 1e-7, 1 - 1e-7)
        values = np.log(values / (1 - values))
    share = 0.5 if edges == "halfway" else (values[1] - values[0]) / (values[2] - values[0])
    return float(dense.times[outer] + share * (dense.times[inner] - dense.times[outer]))


def figures(videos: Sequence[ScoredVideo], edges: str) -> dict[str, Any]:
    """Return the errors over all videos, and by duration in rows."""
    names = [str(c) for c in range(videos[0].scores.shape[1])]
    parts = [cut(video.as_scores(names), edges) for video in videos]
    number = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    arrays = zip(*(list(vars(part).values())[1:] for part in parts), strict=True)
    found = SegmentArray(number, *map(np.concatenate, arrays))
    truth = MatchedDetections(videos, found, len(names)).truth
    steps = [video.grid.step for video in videos]
    errors = TimingErrors(truth, found, [video.duration for video in videos], steps)
    bins = duration_bin(truth.duration / np.array(steps)[truth.video], LIMITS)
    return {"all": errors.figures(), **errors.by_bin(bins)}


# Synthetic


def synthesise(rng: np.random.Generator, noise: float) -> tuple[list[Action], FloatArray]:
    """Return random actions, and what (T, 2 x AROUND + 1) the rows and their neighbours see."""
    actions, time = [], rng.uniform(0, 20)
    while (time := time + rng.exponential(12) + 0.3) < ROWS:
        length = np.exp(rng.uniform(np.log(0.3), np.log(60)))
        if time + length < ROWS:
            actions.append(Action(0, time, time + length))
        time += length
    begin, end = np.arange(ROWS) - 0.5, np.arange(ROWS) + 1.5
    seen = noise * rng.normal(size=ROWS)
    for action in actions:
        seen += np.maximum(np.minimum(action.end, end) - np.maximum(action.start, begin), 0) / 2
    padded = np.pad(seen, AROUND, mode="edge")
    return actions, np.lib.stride_tricks.sliding_window_view(padded, 2 * AROUND + 1)


def lift(seen: FloatArray) -> FloatArray:
    """Add fixed random features, so that the regression is not linear in what a row sees."""
    rng = np.random.default_rng(1)
    weights, bias = 2 * rng.normal(size=(seen.shape[1], 40)), rng.normal(size=40)
    return np.column_stack([seen, np.maximum(seen @ weights + bias, 0), np.ones(len(seen))])


def fit(features: FloatArray, labels: NDArray[np.bool_]) -> FloatArray:
    """Return the weights of a logistic regression, by Newton's method."""
    weights = np.zeros(features.shape[1])
    ridge = 0.01 * np.eye(len(weights))
    for _ in range(30):
        found = _sigmoid(features @ weights)
        slope = features.T @ (found - labels) + ridge @ weights
        curvature = (features.T * (found * (1 - found))) @ features + ridge
        weights -= np.linalg.solve(curvature, slope)
    return weights


def _sigmoid(x: FloatArray) -> FloatArray:
    return np.asarray(1 / (1 + np.exp(-np.clip(x, -30, 30))))


def synthetic(noise: float) -> dict[str, Any]:
    """Return the errors by rule of labels and of edges."""
    grid, results = TimeGrid.even(0.0, 1.0, ROWS), {}
    for rule, label in RULES.items():
        rng = np.random.default_rng(0)
        made = [synthesise(rng, noise) for _ in range(2 * VIDEOS)]
        known, unknown = made[:VIDEOS], made[VIDEOS:]
        labels = np.concatenate([label(actions, grid)[:, 0] for actions, _ in known])
        weights = fit(lift(np.concatenate([seen for _, seen in known])), labels)
        videos = [
            ScoredVideo(
                str(number), actions, float(ROWS), grid, label(actions, grid),
                _sigmoid(lift(seen) @ weights)[:, None].astype(np.float32),
                ANCHORS.get(rule, 0.5),
            )
            for number, (actions, seen) in enumerate(unknown)
        ]  # fmt: skip
        results[rule] = {edges: figures(videos, edges) for edges in EDGES}
    return results


# The recording


def cut_clips(recording: Path, labels: Path, folder: Path) -> None:
    """Write the training and the test clip, each once from every frame of a row, and labels."""
    content = json.loads(labels.read_text())
    with open_video(recording) as (container, stream):
        images = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    (folder / "videos").mkdir()
    videos = {}
    for name, begin, end in (("exercise_train", 0, 285), ("exercise_test", 285, 366)):
        known = content["videos"][name]
        for late in range(STRIDE):
            id, seconds = f"{name}_{late}", late / 10
            write_video(folder / "videos" / f"{id}.mp4", images[begin + late : end], fps=10)
            actions = [[c, s - seconds, e - seconds] for c, s, e in known["actions"] if e > seconds]
            duration = known["duration"] - seconds
            videos[id] = {"subset": known["subset"], "duration": duration, "actions": actions}
    (folder / "labels.json").write_text(json.dumps({**content, "videos": videos}))


def recorded(recording: Path, labels: Path) -> dict[str, Any]:
    """Return the errors on the recording by rule of labels and of edges."""
    results = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cut_clips(recording, labels, folder)
        made = init(folder / "videos", folder / "labels.json", root=folder)
        space, manifest = made.workspace, made.manifest
        options = FeatureOptions("efficientnet-lite0", window=STRIDE, stride=STRIDE)
        extract(options=options, run_options=RunOptions(device="cpu"), workspace=space)
        for rule in ANCHORS:
            how = TrainOptions(arch="linear", lr=0.01, labels=rule)
            here = TrainRunOptions(device="cpu", trackers="none")
            checkpoint = find_checkpoint(train(how, here, workspace=space).run, None)
            network, source = checkpoint.load("cpu"), find_features(None, space)
            videos = []
            for video in manifest.subset("testing"):
                actions, grid = source.timeline(video, "seconds")
                scores = score(network, source.values(video.id))
                rows = label_matrix(actions, grid, scores.shape[1])
                duration, anchor = video.duration or 0.0, ANCHORS[rule]
                videos.append(ScoredVideo(video.id, actions, duration, grid, rows, scores, anchor))
            results[rule] = {edges: figures(videos, edges) for edges in EDGES}
    return results


def main() -> None:
    """Measure, and save the results."""
    parser = argparse.ArgumentParser(description="Measure onset and offset errors.")
    parser.add_argument("--recording", type=Path)
    parser.add_argument("--labels", type=Path)
    args = parser.parse_args()
    content: dict[str, Any] = {f"synthetic, noise {n}": synthetic(n) for n in (0.1, 0.2)}
    if args.recording:
        content["recording"] = recorded(args.recording, args.labels)
    columns, *rows = table({"timing": {"results": content}})
    show("median onset / offset errors in rows", columns, rows)
    print(save("timing", torch.device("cpu"), {"results": content}))


if __name__ == "__main__":
    main()
