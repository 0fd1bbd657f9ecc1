"""Frame features to feature rows: the mean over windows of frames."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Rows = tuple[NDArray[np.float32], NDArray[np.float64]]


class WindowPooler:
    """Streams frame features into rows.

    Row i is the mean over frames [i * stride, i * stride + window) and starts at the time of the
    first of them. Windows at the end keep the frames there are, so N frames give ceil(N / stride)
    rows. Every row is summed over one array in frame order: how the frames were batched changes
    no bit.
    """

    def __init__(self, window: int, stride: int) -> None:
        self.window = window
        self.stride = stride
        self._features: NDArray[np.float32] | None = None
        self._times = np.empty(0, np.float64)
        self._skip = 0  # frames still to pass over, when stride > window

    def add(self, features: NDArray[np.float32], times: NDArray[np.float64]) -> Rows:
        """Take (N, F) features and (N,) times; give the rows that are complete: (M, F), (M,)."""
        if self._features is not None:
            features = np.concatenate([self._features, features])
            times = np.concatenate([self._times, times])
        self._features, self._times = features, times
        return self._take(self.window)

    def finish(self) -> Rows:
        """The last, shorter windows."""
        return self._take(1)

    def _take(self, least: int) -> Rows:
        assert self._features is not None, "no frames were added"
        rows, starts = [], []
        begin = self._skip
        while begin + least <= len(self._features):
            rows.append(self._features[begin : begin + self.window].mean(axis=0))
            starts.append(self._times[begin])
            begin += self.stride
        kept = min(begin, len(self._features))
        self._skip = begin - kept
        width = self._features.shape[1]
        self._features, self._times = self._features[kept:], self._times[kept:]
        return np.array(rows, np.float32).reshape(-1, width), np.array(starts, np.float64)
