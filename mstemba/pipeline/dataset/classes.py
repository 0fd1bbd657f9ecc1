"""Which classes the actions of videos show."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from mstemba.data_manifests.manifest import Action, Video


def annotated_actions(videos: Iterable[Video]) -> list[Action]:
    """Return the actions of videos that begin in the annotated part."""
    return [
        action
        for video in videos
        for action in video.actions
        if video.annotated_until is None or action.start < video.annotated_until
    ]


def shown_classes(actions: Iterable[Action]) -> set[int]:
    """Return the classes that actions have."""
    return {action.class_id for action in actions}


def point_classes(actions: Iterable[Action]) -> set[int]:
    """Return the classes whose actions are all points in time, as the point events of BORIS are.

    The rule `strict` gives no row to an action without length, and `overlap` the one it lies in.
    """
    points, spans = set(), set()
    for action in actions:
        if action.end == action.start:
            points.add(action.class_id)
        elif action.end > action.start:
            spans.add(action.class_id)
    return points - spans


def class_names(ids: Collection[int], classes: Sequence[str], most: int = 10) -> str:
    """Return the names of classes for a message: `'sit', 'walk' and 3 more`."""
    names = [repr(classes[id]) for id in sorted(ids)]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
