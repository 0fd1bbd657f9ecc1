"""When rows are, and when actions are, where one of them is not told in seconds."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mstemba.data_manifests.manifest import Action, Video
from mstemba.records import TimeGrid


def even_rows(duration: float, rows: int) -> TimeGrid:
    """So many rows spread evenly over a duration: the field's grid, to its last bit."""
    return TimeGrid(np.arange(rows) / (rows / duration), duration / rows)


def in_seconds(
    video: Video, time_unit: str, grid: TimeGrid, frames: NDArray[np.floating | np.integer]
) -> list[Action]:
    """The video's actions with times in seconds; frame numbers by the real times of the rows.

    frames: (T + 1,) the number of each row's first frame, and the one after the last row's last.
    """
    if time_unit == "seconds":
        return list(video.actions)
    seconds = np.append(grid.starts, grid.ends[-1])
    per_frame = grid.step / (frames[1] - frames[0])

    def time(frame: float) -> float:
        beyond = max(0.0, frame - frames[-1])
        return float(np.interp(frame, frames, seconds) + beyond * per_frame)

    return [Action(a.class_id, time(a.start), time(a.end)) for a in video.actions]
