"""The times of rows and actions, if they are not given in seconds."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mstemba.data_manifests.manifest import Action, Video
from mstemba.records import TimeGrid


def even_rows(duration: float, rows: int) -> TimeGrid:
    """Spread rows evenly over a duration in seconds, bit for bit as the field's code does."""
    return TimeGrid(np.arange(rows) / (rows / duration), duration / rows)


def pictures_anchor(window: int, stride: int) -> float:
    """Return where in a row the middle of its pictures is: 0.5 for its centre, at most 1.

    Args:
        window: Frames of a row.
        stride: Frames from one row to the next.
    """
    return min(1.0, window / (2 * stride))


def in_seconds(
    video: Video, time_unit: str, grid: TimeGrid, frames: NDArray[np.floating | np.integer]
) -> list[Action]:
    """Return a video's actions with times in seconds.

    Args:
        video: Its actions are in `time_unit`.
        time_unit: `seconds` or `frames`.
        grid: When the video's T rows are.
        frames: (T + 1,) the number of each row's first frame, and of the first one after the last
            row. Frame numbers between them are interpolated.
    """
    if time_unit == "seconds":
        return list(video.actions)
    seconds = np.append(grid.starts, grid.ends[-1])
    per_frame = grid.step / (frames[1] - frames[0])

    def time(frame: float) -> float:
        beyond = max(0.0, frame - frames[-1])
        return float(np.interp(frame, frames, seconds) + beyond * per_frame)

    return [Action(a.class_id, time(a.start), time(a.end)) for a in video.actions]
