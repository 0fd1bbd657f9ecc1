"""The annotated part of a video: what lies beyond `annotated_until` is not used.

It consists of the rows that end at or before that time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mstemba.data_manifests.manifest import Action, Video
from mstemba.pipeline.features.sources import FeatureSource
from mstemba.records import TimeGrid
from mstemba.wording import counted


def is_annotated_in_part(video: Video) -> bool:
    """Return whether the annotation ends before the video does."""
    until = video.annotated_until
    return until is not None and not (video.duration and until >= video.duration)


def annotated_until(video: Video, time_unit: str, source: FeatureSource | None) -> float | None:
    """Return the time up to which a video is annotated; None if all of it is.

    Args:
        video: Its times are in `time_unit`.
        time_unit: `seconds` or `frames`.
        source: The video's features, in whose unit the time is returned. Without features it is
            returned in `time_unit`.
    """
    until = video.annotated_until if is_annotated_in_part(video) else None
    if until is None or source is None:
        return until
    moment = Action(0, until, until)  # becomes seconds in the same way as actions do
    (moment,), _ = source.timeline(replace(video, actions=(moment,)), time_unit)
    return moment.start


def annotated_part(
    actions: Sequence[Action], grid: TimeGrid, until: float | None
) -> tuple[list[Action], TimeGrid] | None:
    """Return the actions and rows of a video up to a time.

    Args:
        actions: In the time unit of the grid.
        grid: When the rows are.
        until: In the same unit; None for the whole video.

    Returns:
        The actions, cut at the end of the last row, and the rows that end at or before `until`.
        None if no row does.
    """
    if until is None:
        return list(actions), grid
    rows = int(np.sum(grid.ends <= until + 1e-6 * grid.step))  # ends are rounded
    if rows == 0:
        return None
    part = TimeGrid(grid.starts[:rows], grid.step)
    return cut_actions(actions, float(part.ends[-1])), part


def cut_actions(actions: Sequence[Action], end: float) -> list[Action]:
    """Return the actions that begin before a time, cut at that time."""
    return [a._replace(end=min(a.end, end)) for a in actions if a.start < end]


def not_annotated(ids: Sequence[str]) -> str:
    """Return the message about videos without an annotated row, which are not used."""
    return (
        f"{counted(len(ids), 'video')} skipped, for example {ids[0]}: annotated_until in the "
        f"manifest is before the end of the first feature row"
    )
