"""Streaming frame features into rows gives what the plain loop gives, to the bit."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from mstemba.extractors.windows import Rows, WindowPooler


def stream(
    features: np.ndarray, times: np.ndarray, window: int, stride: int, cuts: list[int]
) -> Rows:
    """Pool with the frames handed over in batches that end at `cuts`."""
    pooler = WindowPooler(window, stride)
    ends = sorted({min(c, len(times)) for c in cuts} - {0} | {len(times)})
    parts = [pooler.add(features[a:b], times[a:b]) for a, b in zip([0, *ends], ends, strict=False)]
    parts.append(pooler.finish())
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])


@given(
    count=st.integers(1, 90),
    width=st.integers(1, 5),
    window=st.integers(1, 40),
    stride=st.integers(1, 40),
    cuts=st.lists(st.integers(0, 90), max_size=8),
    seed=st.integers(0, 99),
)
@example(count=1, width=1, window=40, stride=1, cuts=[], seed=0)
@example(count=90, width=3, window=1, stride=40, cuts=[1, 2, 39, 40, 41], seed=0)
def test_rows_equal_the_plain_loop_whatever_the_batches(
    count: int, width: int, window: int, stride: int, cuts: list[int], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(count, width)).astype(np.float32)
    times = np.cumsum(rng.uniform(0.01, 1, count))
    begins = range(0, count, stride)
    rows, starts = stream(features, times, window, stride, cuts)
    assert rows.dtype == np.float32
    assert starts.dtype == np.float64
    assert len(rows) == len(starts) == math.ceil(count / stride)
    assert np.array_equal(rows, np.stack([features[b : b + window].mean(axis=0) for b in begins]))
    assert np.array_equal(starts, times[list(begins)])


def test_a_row_is_given_as_soon_as_its_window_is_full() -> None:
    pooler = WindowPooler(window=2, stride=2)
    features = np.array([[1.0], [3.0], [10.0]], np.float32)
    rows, starts = pooler.add(features, np.array([0.0, 0.1, 0.2]))
    assert (rows.tolist(), starts.tolist()) == ([[2.0]], [0.0])
    rows, starts = pooler.finish()
    assert (rows.tolist(), starts.tolist()) == ([[10.0]], [0.2])


def test_memory_holds_no_more_than_the_open_windows() -> None:
    pooler = WindowPooler(window=4, stride=2)
    for i in range(1000):
        pooler.add(np.zeros((1, 1), np.float32), np.array([float(i)]))
        assert pooler._features is not None
        assert len(pooler._features) < 4
