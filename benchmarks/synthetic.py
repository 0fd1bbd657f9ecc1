"""Features synthesised from real label tracks, for benchmarks of learning where no videos are.

Row t of video v, with the classes' prototypes p_c of length 1 and its labels y:

    x_vt = sum_c s_vc w_vct p_c + n_v + g_v + noise,    w = y smeared in time

An action's evidence s varies from video to video and its beginning and end are blurred by the
smear; n is a nuisance of the whole video (place, camera, person) in the space of the prototypes, so
that it looks like evidence; g is one of no class; the noise is new in every row. Nothing in it was
chosen by which network wins: how loud the noise is follows from the linear probe alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mstemba.data_manifests.manifest import Manifest, Video
from mstemba.pipeline.dataset.labels import label_matrix
from mstemba.pipeline.features.row_times import even_rows

FloatMatrix = NDArray[np.float32]


@dataclass(frozen=True)
class Synthesis:
    """How the features of one dataset are made."""

    rate: float
    """Rows in one unit of the dataset's time (a second, or a frame)."""
    noise: float
    """Standard deviation of every feature's noise, set so that a linear probe has 25 mAP."""
    width: int = 128
    smear: float = 2.0
    """Rows: standard deviation of the blur of an action's evidence."""
    nuisance: float = 0.7
    """Length of a video's nuisance; an action's evidence is 1 on average."""


def make_features(
    manifest: Manifest, synthesis: Synthesis, folder: Path, videos: Sequence[Video], seed: int = 0
) -> int:
    """Write one .npy (T, width) a video, as features are published; returns the rows in all."""
    folder.mkdir(parents=True, exist_ok=True)
    classes = len(manifest.classes)
    prototypes = _unit(np.random.default_rng([seed, 1]).normal(size=(classes, synthesis.width)))
    grids = [even_rows(v.duration or 1.0, rows_of(v, synthesis)) for v in videos]
    for number, (video, grid) in enumerate(zip(videos, grids, strict=True)):
        rng = np.random.default_rng([seed, 2, number])
        active = label_matrix(video.actions, grid, classes).astype(np.float32)
        np.save(folder / f"{video.id}.npy", _features(active, prototypes, synthesis, rng))
    return sum(grid.count for grid in grids)


def rows_of(video: Video, synthesis: Synthesis) -> int:
    """How many rows a video has."""
    return max(1, int((video.duration or 1.0) * synthesis.rate))


def _features(
    active: FloatMatrix, prototypes: FloatMatrix, synthesis: Synthesis, rng: np.random.Generator
) -> FloatMatrix:
    rows, classes = active.shape
    strength = rng.lognormal(-0.125, 0.5, classes).astype(np.float32)  # mean 1
    evidence = _smeared(active, synthesis.smear) * strength
    alike = _unit(rng.exponential(size=(1, classes))) @ prototypes
    other = _unit(rng.normal(size=(1, synthesis.width)))
    noise = rng.normal(scale=synthesis.noise, size=(rows, synthesis.width))
    made = evidence @ prototypes + synthesis.nuisance * (_unit(alike) + other) + noise
    return made.astype(np.float32)


def _smeared(active: FloatMatrix, rows: float) -> FloatMatrix:
    """Blurred in time by a Gaussian with this standard deviation, cut off at three of them."""
    reach = int(3 * rows)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / rows) ** 2)
    padded = np.pad(active, ((reach, reach), (0, 0)), mode="edge")
    shifted = (padded[i : i + len(active)] * k for i, k in enumerate(kernel / kernel.sum()))
    return np.sum(np.stack(list(shifted)), axis=0).astype(np.float32)


def _unit(x: NDArray[np.floating]) -> FloatMatrix:
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
