"""Frames of many videos in full batches: nothing is lost, doubled or out of order."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mstemba.extractors.windows import Clips, Images, Sampling
from mstemba.pipeline.extract.batches import Batcher, FrameBatch, FrameBuffer, assemble


def content(batch: FrameBatch) -> np.ndarray:
    """What goes through the backbone: (capacity, length) frame numbers."""
    out = np.full((batch.capacity * batch.length, 2, 2, 3), 255, np.uint8)
    assemble(batch.pieces, out)
    assert (out == out[:, :1, :1, :1]).all()
    return out[:, 0, 0, 0].reshape(batch.capacity, batch.length)


def block(numbers: range) -> np.ndarray:
    return np.array([np.full((2, 2, 3), n, np.uint8) for n in numbers])


@given(
    videos=st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=6), min_size=1, max_size=5),
    capacity=st.integers(1, 7),
    window=st.integers(1, 6),
    stride=st.integers(1, 6),
    clips=st.booleans(),
)
def test_every_sample_comes_once_in_order_and_batches_are_full(
    videos: list[list[int]], capacity: int, window: int, stride: int, clips: bool
) -> None:
    batcher = Batcher(capacity, window if clips else 1)
    batches: list[FrameBatch] = []
    expected: dict[int, list[list[int]]] = {}
    for video, blocks in enumerate(videos):
        sampling: Sampling = (Clips if clips else Images)(window, stride)
        buffer, first = FrameBuffer(0), 1 + 50 * video
        expected[video] = []
        for i, count in enumerate(blocks):
            buffer.add(block(range(first + buffer.end, first + buffer.end + count)), count)
            for run in sampling.runs(buffer.end, ended=i == len(blocks) - 1):
                frames = [*range(run.first, run.last), *[run.last - 1] * run.repeat]
                step = window if clips else 1
                samples = [frames[j : j + step] for j in range(0, len(frames), step)]
                assert len(samples) == batcher.samples(run)
                expected[video] += [[first + n for n in s] for s in samples]
                batches += batcher.add(video, buffer, run)
            buffer.forget(sampling.needed())
    assert all(batch.samples == capacity for batch in batches)
    batches += batcher.flush()
    got: dict[int, list[list[int]]] = {video: [] for video in expected}
    for batch in batches:
        rows, position = content(batch).tolist(), 0
        for video, samples, reached in batch.owners:
            assert samples.start == position
            mine = rows[samples]
            got[video] += mine
            assert mine[-1][-1] == video * 50 + reached  # frames count from 1 in the pictures
            position = samples.stop
        assert position == batch.samples
        assert not np.any(rows[position:])  # the rest is zeros
    assert got == expected


def test_the_buffer_forgets_what_no_run_needs() -> None:
    buffer = FrameBuffer(10)
    for first in range(10, 100, 10):
        buffer.add(block(range(first, first + 10)), 10)
        buffer.forget(first)
    assert list(buffer.pieces(0, 80)) == []
    assert [(p.start, p.stop) for p in buffer.pieces(92, 97)] == [(2, 7)]
