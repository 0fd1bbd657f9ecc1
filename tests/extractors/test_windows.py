"""Frames through a sampling give the rows that the plain loop gives, however they come in."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from mstemba.extractors.windows import Clips, FrameRange, Images, Sampling, WholeClip

Array = NDArray[np.float32]


def image_features(frames: Array, run: FrameRange) -> Array:
    """An image backbone that gives every frame as it is: (N, 1, F)."""
    return frames[run.first : run.last, None]


def clip_features(frames: Array, run: FrameRange) -> Array:
    """A clip backbone that weighs frames by their place: one (1, 1, F) a run."""
    seen = np.concatenate(
        [frames[run.first : run.last], *[frames[run.last - 1 :][:1]] * run.repeat]
    )
    weights = np.arange(1, len(seen) + 1, dtype=np.float32)[:, None]
    return (seen * weights).sum(0)[None, None]


def whole_features(frames: Array, run: FrameRange, reach: int = 8) -> Array:
    """A "convolution" over a whole clip: steps of 8 frames that see `reach` frames on both sides.

    As in I3D, a row is the mean over two steps, and beyond the ends of the clip it sees zeros.
    """
    clip = np.concatenate(
        [frames[run.first : run.last], *[frames[run.last - 1 :][:1]] * run.repeat]
    )
    steps = math.ceil(len(clip) / 8)
    padded = np.pad(clip, ((reach, 8 * steps - len(clip) + reach), (0, 0)))
    maps = np.stack([padded[8 * i : 8 * i + 8 + 2 * reach].sum(0) for i in range(steps)])
    rows = (maps[:-1] + maps[1:]) / 2 if steps > 1 else maps
    return rows[None]


def stream(sampling: Sampling, frames: Array, cuts: list[int], encode) -> Array:  # type: ignore[no-untyped-def]
    """Hand over the frames in parts that end at `cuts`, and nothing before what is needed."""
    ends = sorted({min(max(c, sampling.first + 1), len(frames)) for c in cuts} | {len(frames)})
    rows = []
    for end in ends:
        for run in sampling.runs(end, ended=end == len(frames)):
            assert sampling.first <= run.first < run.last <= end
            rows.append(sampling.rows(encode(frames, run)))
        assert sampling.needed() >= sampling.first
    rows.append(sampling.finish())
    return np.concatenate([r for r in rows if len(r)])


ARGUMENTS = {
    "count": st.integers(1, 90),
    "window": st.integers(1, 40),
    "stride": st.integers(1, 40),
    "cuts": st.lists(st.integers(1, 90), max_size=8),
    "begin": st.integers(0, 5),
    "seed": st.integers(0, 99),
}


@given(**ARGUMENTS)
@example(count=1, window=40, stride=1, cuts=[], begin=0, seed=0)
@example(count=90, window=1, stride=40, cuts=[1, 2, 39, 40, 41], begin=1, seed=0)
def test_image_rows_equal_the_plain_loop(
    count: int, window: int, stride: int, cuts: list[int], begin: int, seed: int
) -> None:
    frames = np.random.default_rng(seed).normal(size=(count, 3)).astype(np.float32)
    begins = range(0, count, stride)
    begin = min(begin, len(begins) - 1)
    rows = stream(Images(window, stride, begin), frames, cuts, image_features)
    expected = np.stack([frames[b : b + window].mean(axis=0) for b in begins])
    assert len(expected) == math.ceil(count / stride)
    assert np.array_equal(rows, expected[begin:])


@given(**ARGUMENTS)
@example(count=1, window=40, stride=1, cuts=[], begin=0, seed=0)
def test_clip_rows_equal_the_plain_loop(
    count: int, window: int, stride: int, cuts: list[int], begin: int, seed: int
) -> None:
    frames = np.random.default_rng(seed).normal(size=(count, 2)).astype(np.float32)
    begins = range(0, count, stride)
    begin = min(begin, len(begins) - 1)
    rows = stream(Clips(window, stride, begin), frames, cuts, clip_features)
    ends = [min(b + window, count) for b in begins]
    expected = [
        clip_features(frames, FrameRange(b, e, window - e + b))[0]
        for b, e in zip(begins, ends, strict=True)
    ]
    assert np.array_equal(rows, np.concatenate(expected)[begin:])


@given(
    count=st.integers(1, 300),
    chunk=st.sampled_from([8, 16, 64]),
    cuts=st.lists(st.integers(1, 300), max_size=8),
    begin=st.integers(0, 3),
    seed=st.integers(0, 99),
)
@example(count=8, chunk=8, cuts=[], begin=0, seed=0)
@example(count=9, chunk=8, cuts=[], begin=0, seed=0)
def test_whole_clip_rows_equal_those_of_the_clip_at_once(
    count: int, chunk: int, cuts: list[int], begin: int, seed: int
) -> None:
    frames = np.random.default_rng(seed).integers(0, 9, size=(count, 2)).astype(np.float32)
    expected = whole_features(frames, FrameRange(0, count, -count % 4))[0]
    begin = begin * chunk // 8
    if begin >= len(expected):
        begin = 0
    rows = stream(WholeClip(chunk, 16, 8, begin), frames, cuts, whole_features)
    assert len(expected) == max(1, math.ceil(count / 8) - 1)
    assert np.array_equal(rows, expected[begin:])


def test_frames_between_windows_are_not_encoded() -> None:
    assert list(Images(2, 5).runs(12, ended=True)) == [
        FrameRange(0, 2),
        FrameRange(5, 7),
        FrameRange(10, 12),
    ]


@pytest.mark.parametrize("make", [lambda: Images(4, 2), lambda: Clips(4, 2)])
def test_a_row_is_given_as_soon_as_its_window_is_full(make) -> None:  # type: ignore[no-untyped-def]
    sampling, frames = make(), np.ones((10, 1), np.float32)
    encode = image_features if isinstance(sampling, Images) else clip_features
    given = []
    for end in range(1, 11):
        runs = list(sampling.runs(end, ended=False))
        given.append(sum(len(sampling.rows(encode(frames, run))) for run in runs))
    assert given == [0, 0, 0, 1, 0, 1, 0, 1, 0, 1]


def test_memory_holds_no_more_than_the_open_windows() -> None:
    images = Images(window=4, stride=2)
    for _ in range(1000):
        images.rows(np.zeros((1, 1, 1), np.float32))
        assert images._pending is not None
        assert len(images._pending) < 4
