"""The batches of a training: random temporal crops of the clips.

Everything is drawn from (seed, step) alone: a resumed run draws what the killed one would have
drawn, and every process of a distributed run knows the whole batch without communication.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from mstemba.pipeline.dataset.clips import Clip

T = TypeVar("T")


@dataclass(frozen=True)
class Batch:
    """The part of a step's batch that one process computes; crops are padded at the end."""

    features: NDArray[np.float32]
    """(B, L, F), zeros in padded rows."""
    labels: NDArray[np.float32]
    """(B, L, C), 0 or 1; zeros in padded rows."""
    mask: NDArray[np.bool_]
    """(B, L), True at real rows."""
    clips: int
    """Crops in the whole batch."""
    rows: int
    """Real rows in the whole batch."""
    actions: int
    """Maximal stretches of consecutive positive rows of a class, in the whole batch."""


def random_crops(
    clips: Sequence[Clip], step: int, batch_size: int, length: int, min_crop: float, seed: int
) -> list[tuple[Clip, slice]]:
    """Draw the crops of one step's batch. Clips come in a new random order every epoch.

    Args:
        clips: The training clips.
        step: From 0.
        batch_size: Clips in a batch.
        length: Most rows of a crop.
        min_crop: Least fraction of min(length, rows of the clip) that a crop has.
        seed: Of the run.

    Returns:
        Clips, each with the rows of its crop.
    """
    epoch, slot = divmod(step * batch_size, len(clips))
    order = np.concatenate(
        [np.random.default_rng([seed, 0, e]).permutation(len(clips)) for e in (epoch, epoch + 1)]
    )
    rng = np.random.default_rng([seed, 1, step])
    crops = []
    for clip in (clips[i] for i in order[slot : slot + batch_size]):
        rows = clip.grid.count
        most = min(rows, length)
        count = int(rng.integers(max(1, round(min_crop * most)), most + 1))
        begin = int(rng.integers(0, rows - count + 1))
        crops.append((clip, slice(begin, begin + count)))
    return crops


def make_batch(crops: Sequence[tuple[Clip, slice]], part: int = 0, parts: int = 1) -> Batch:
    """Return part number `part` (from 0) of `parts` of a batch. Only its features are read."""
    own = slice(part * len(crops) // parts, (part + 1) * len(crops) // parts)
    truths = [clip.labels[window] for clip, window in crops]
    values = [clip.features[window] for clip, window in crops[own]]
    count, longest = len(values), max(map(len, values))
    features = np.zeros((count, longest, values[0].shape[1]), np.float32)
    labels = np.zeros((count, longest, truths[0].shape[1]), np.float32)
    mask = np.zeros((count, longest), bool)
    for row, (value, truth) in enumerate(zip(values, truths[own], strict=True)):
        features[row, : len(value)] = value
        labels[row, : len(truth)] = truth
        mask[row, : len(value)] = True
    return Batch(
        features,
        labels,
        mask,
        clips=len(crops),
        rows=sum(map(len, truths)),
        actions=sum(map(_count_stretches, truths)),
    )


def prefetch(make: Callable[[int], T], steps: range) -> Generator[T]:
    """Yield `make(step)` for every step; the next one is made in a thread meanwhile.

    An error of `make` is raised at its own step. Closing the generator ends the thread.
    """
    with ThreadPoolExecutor(1, "batches") as pool:
        ahead = None
        for step in steps:
            made = (ahead or pool.submit(make, step)).result()
            ahead = pool.submit(make, step + 1) if step + 1 in steps else None
            yield made


def _count_stretches(labels: NDArray[np.bool_]) -> int:
    """Count the stretches of positives in the columns of (T, C) labels, by their first rows."""
    return int(np.count_nonzero(labels[0]) + np.count_nonzero(labels[1:] > labels[:-1]))
