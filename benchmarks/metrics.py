"""The measures of `evaluate` on arrays of the size of TSU's test set, and larger.

    OMP_NUM_THREADS=1 python -m benchmarks.metrics [--rows 300000] [--classes 51] [--videos 185]

Labels are random runs, as many to a row as in TSU's cross-subject test set (0.83), scores noisy
copies of them. Per-frame measures are timed as `evaluate` runs them: the scores are ranked once.
"Per frame, together" is all that needs no segments: AP, Charades' 25 points and the legacy
sampling, the action-conditional measures at three taus, AP by duration and by boundary.
Detection is timed on as many segments as the densest sets have, far more than TSU's 14,334.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.common import readable, save, show, times
from mstemba.data_manifests.manifest import Action
from mstemba.pipeline.dataset.labels import label_matrix
from mstemba.pipeline.evaluate import frame_metrics, segment_metrics
from mstemba.pipeline.evaluate.metric_groups import (
    BOUNDARY_ROWS,
    METRIC_GROUPS,
    DenseRows,
    ScoredVideo,
    measure_dense,
)
from mstemba.pipeline.evaluate.proposals import propose
from mstemba.pipeline.evaluate.segment_metrics import SegmentArray
from mstemba.pipeline.features.row_times import even_rows

CPU = torch.device("cpu")
DENSITY = 0.83
"""Positive classes in a row."""
LIMIT = 3.0
"""Seconds that all per-frame measures together may take."""


def make(rows: int, classes: int, videos: int) -> list[ScoredVideo]:
    """Make videos of one row a second with random actions, and scores for them."""
    rng = np.random.default_rng(0)
    lengths = np.full(videos, rows // videos)
    lengths[: rows % videos] += 1
    made = []
    for number, length in enumerate(lengths):
        durations = rng.exponential(17.0, int(DENSITY * length / 17.0)) + 1
        begins = rng.random(len(durations)) * length
        class_id = (classes * rng.random(len(durations)) ** 2).astype(int)  # some are rare
        actions = [
            Action(int(c), float(b), float(b + d))
            for c, b, d in zip(class_id, begins, durations, strict=True)
        ]
        scores = rng.normal(-3, 1, (length, classes))
        for action in actions:
            scores[int(action.start) + 1 : int(action.end) + 1, action.class_id] += 3
        probabilities = (1 / (1 + np.exp(-scores))).astype(np.float32)
        grid = even_rows(float(length), int(length))
        labels = label_matrix(actions, grid, classes)
        video = ScoredVideo(str(number), actions, float(length), grid, labels, probabilities)
        made.append(video)
    return made


def per_frame(rows: DenseRows) -> dict[str, Callable[[], Any]]:
    """The measures of rows, by name, in the order in which `evaluate` takes them."""
    labels, scores, lengths = rows.labels, rows.scores, rows.lengths
    begins = np.cumsum(lengths) - lengths
    ranks = frame_metrics.rank_scores(scores)
    near = frame_metrics.near_boundary(labels, lengths, BOUNDARY_ROWS)
    bins = [labels & (np.random.default_rng(b).random(labels.shape) < 1 / 3) for b in range(3)]

    def charades() -> None:
        points = [
            frame_metrics.charades_points(video.scores, video.grid, video.actions, video.duration)
            for video in rows.videos
        ]
        frame_metrics.average_precision(*map(np.concatenate, zip(*points, strict=True)))

    def legacy() -> None:
        chosen = [
            begin + frame_metrics.legacy_points(n) for begin, n in zip(begins, lengths, strict=True)
        ]
        points = np.concatenate(chosen)
        frame_metrics.average_precision(ranks[points], labels[points])

    def by_duration() -> None:
        for of_bin in bins:
            frame_metrics.average_precision(ranks, of_bin, of_bin | ~labels)

    def by_boundary() -> None:
        frame_metrics.near_boundary(labels, lengths, BOUNDARY_ROWS)
        frame_metrics.average_precision(ranks, labels, near)
        frame_metrics.average_precision(ranks, labels, ~near)

    return {
        "rank the scores, once": partial(frame_metrics.rank_scores, scores),
        "AP, mAP": partial(frame_metrics.average_precision, ranks, labels),
        "Charades, 25 points a video": charades,
        "legacy sampling": legacy,
        "action-conditional, tau 0, 20, 40": partial(
            frame_metrics.action_conditional, scores, labels, lengths, ranks=ranks
        ),
        f"AP by duration ({', '.join(segment_metrics.BINS)})": by_duration,
        "AP near boundaries and beyond": by_boundary,
    }


def segments(count: int, like: SegmentArray | None, seed: int = 1) -> SegmentArray:
    """Random actions, or detections around such."""
    rng = np.random.default_rng(seed)
    if like is None:
        start, duration = rng.random(count) * 1200, rng.exponential(8, count) + 0.5
        video, class_id = rng.integers(0, 536, count), (51 * rng.random(count) ** 2).astype(int)
    else:
        of = like[rng.integers(0, len(like), count)]
        video, class_id = of.video, of.class_id
        start = of.start + rng.normal(0, 4, count)
        duration = of.duration * np.exp(rng.normal(0, 0.5, count))
    return SegmentArray(video, class_id, start, start + duration, rng.random(count))


def detection(actions: int, detections: int) -> dict[str, Callable[[], Any]]:
    truth = segments(actions, None)
    found = segments(detections, truth)
    limits = segment_metrics.duration_limits(truth.duration)
    matches = segment_metrics.match_detections(truth, found)

    def breakdown() -> None:
        for bin in range(3):
            segment_metrics.detection_average_precision_of_bin(
                bin, limits, truth, found, matches, 51
            )

    return {
        "match at nine tIoU": partial(segment_metrics.match_detections, truth, found),
        "detection AP": partial(
            segment_metrics.detection_average_precision, truth, found, matches, 51
        ),
        "detection AP by duration": breakdown,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--classes", type=int, default=51)
    parser.add_argument("--videos", type=int, default=185)
    parser.add_argument("--actions", type=int, default=40_000)
    parser.add_argument("--detections", type=int, default=400_000)
    options = parser.parse_args()
    videos = make(options.rows, options.classes, options.videos)
    dense = DenseRows(videos)
    groups = {
        "per frame": per_frame(dense),
        "detection": detection(options.actions, options.detections),
        "evaluate": {
            "segments from scores": partial(
                propose, dense.scores, [g.bounds(0.0) for g in dense.grids]
            ),
            "all that `evaluate` reports": lambda: measure_dense(DenseRows(videos), METRIC_GROUPS),
        },
    }
    taken = {
        group: {name: times(function, CPU) for name, function in functions.items()}
        for group, functions in groups.items()
    }
    begin, used = time.perf_counter(), time.process_time()
    for function in groups["per frame"].values():
        function()
    together, used = time.perf_counter() - begin, time.process_time() - used
    rows = [
        [f"{group}: {name}", readable(found["best"]), readable(found["median"])]
        for group, functions in taken.items()
        for name, found in functions.items()
    ]
    limit = f"per frame, together, once (of the processor {readable(used)}; at most {LIMIT:g} s)"
    rows.append([limit, readable(together), ""])
    shape = f"{options.rows:,} x {options.classes}, {options.videos} videos"
    show(
        f"{shape}; {options.actions:,} actions, {options.detections:,} detections",
        ["measure", "fastest", "median"],
        rows,
    )
    content = {
        "options": vars(options),
        "positives_per_row": float(dense.labels.sum() / len(dense.labels)),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "seconds": taken,
        "per_frame_together": together,
        "per_frame_together_processor": used,
        "limit": LIMIT,
    }
    print(save("metrics", CPU, content))


if __name__ == "__main__":
    main()
