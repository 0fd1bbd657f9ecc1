"""Merge annotations and videos into an existing manifest."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from mstemba.data_manifests.class_ids import normalise_name
from mstemba.data_manifests.manifest import Action, Manifest, Video, VideoIndex
from mstemba.data_manifests.readers.parsed import AnnotationReport
from mstemba.errors import ManifestError
from mstemba.reading.files import real_path
from mstemba.wording import counted

_MOST_LISTED = 10


def merge(
    former: Manifest, given: Manifest, report: AnnotationReport, yes: bool = False
) -> Manifest:
    """Return the former manifest with new annotations, which replace the actions of their videos.

    New classes come last, so that the ids of the former ones stay. The report says which videos
    lose actions.

    Raises:
        ManifestError: The time units or frame rates differ; annotations were skipped, which would
            replace complete ones; or, without `yes`, a video would have fewer actions than before.
    """
    if report.skipped:
        kind, count = next(iter(report.skipped.items()))
        unusable = counted(report.skipped.total(), "annotation")
        raise ManifestError(
            f"{given.dataset}: nothing is merged, because {unusable} cannot be used: {kind} "
            f"({count}, for example {report.examples[kind]})"
        )
    _check_times(former, given)
    same = known_names(former.classes, given.classes)
    for name, known in zip(given.classes, same, strict=True):
        if name != known:
            report.join("class in another spelling", f"{name!r} as {known!r}")
    new = [name for name in dict.fromkeys(same) if name not in former.classes]
    classes = (*former.classes, *new)
    numbers = [classes.index(name) for name in same]
    videos = dict(former.videos)
    for id, video in given.videos.items():
        actions = tuple(Action(numbers[c], start, end) for c, start, end in video.actions)
        path = former.videos[id].path if id in former.videos else None
        videos[id] = replace(video, path=path, actions=actions)
    merged = replace(former, classes=classes, videos=videos)
    again = [id for id in given.videos if id in former.videos]
    losses = _find_losses(former, merged, again)
    if not yes:
        _refuse_fewer(former, losses, given)
    new_actions, old_actions = (
        sum(len(manifest.videos[id].actions) for id in again) for manifest in (given, former)
    )
    report.notes.append(
        f"videos annotated again: {len(again)} (actions: {new_actions} in place of "
        f"{old_actions}), added: {len(given.videos) - len(again)}; "
        f"new classes: {', '.join(map(repr, new)) or 'none'}"
    )
    report.notes += [
        f"{id}: {counted(loss.after, 'action')} in place of {loss.before}; removed or changed: "
        f"{len(loss.removed)}, for example {_describe(loss.removed[0], former)}"
        for id, loss in islice(losses.items(), _MOST_LISTED)
    ]
    if (more := len(losses) - _MOST_LISTED) > 0:
        report.notes.append(f"videos with removed or changed actions that are not listed: {more}")
    return merged


class _Loss(NamedTuple):
    """What new annotations take from a video."""

    before: int
    """Number of actions in the former manifest."""
    after: int
    removed: list[Action]
    """Actions of the former manifest that are not in the new one."""


def _check_times(former: Manifest, given: Manifest) -> None:
    """Raise ManifestError if the times of two manifests mean different things."""
    if given.time_unit != former.time_unit:
        raise ManifestError(
            f"{given.dataset}: times in {given.time_unit}, but the manifest to merge into has "
            f"{former.time_unit}: convert them, or pass --time-unit {former.time_unit} if they are"
        )
    if former.fps and given.fps and former.fps != given.fps:
        raise ManifestError(
            f"{given.dataset}: {given.fps:g} frames a second, but the manifest to merge into has "
            f"{former.fps:g}: convert them, or make another workspace"
        )


def _find_losses(former: Manifest, merged: Manifest, ids: Iterable[str]) -> dict[str, _Loss]:
    """Return the videos of which actions are removed or changed."""
    losses = {}
    for id in ids:
        old, new = former.videos[id].actions, merged.videos[id].actions
        if removed := list((Counter(old) - Counter(new)).elements()):
            losses[id] = _Loss(len(old), len(new), removed)
    return losses


def _refuse_fewer(former: Manifest, losses: dict[str, _Loss], given: Manifest) -> None:
    """Raise ManifestError if a video would have fewer actions than before."""
    fewer = {id: loss for id, loss in losses.items() if loss.after < loss.before}
    if not fewer:
        return
    before, after = (sum(column) for column in list(zip(*fewer.values(), strict=True))[:2])
    id, loss = next(iter(fewer.items()))
    videos = f"{len(fewer)} of {counted(len(given.videos), 'video')}"
    raise ManifestError(
        f"{given.dataset}: nothing is merged, because {videos} would have fewer actions than in "
        f"the manifest ({after} in place of {before}), for example {id} ({loss.after} in place of "
        f"{loss.before}, without {_describe(loss.removed[0], former)}); pass --yes to replace them"
    )


def _describe(action: Action, manifest: Manifest) -> str:
    name = manifest.classes[action.class_id]
    return f"{name!r} from {action.start:g} to {action.end:g} {manifest.time_unit}"


def known_names(known: tuple[str, ...], given: tuple[str, ...]) -> list[str]:
    """Return the given class names in the spelling of the known ones, without merging any."""
    spellings = {normalise_name(name): name for name in known}
    alike = [Counter(map(normalise_name, names)) for names in (known, given)]

    def spell(name: str) -> str:
        form = normalise_name(name)
        unclear = name in known or any(counts[form] != 1 for counts in alike)
        return name if unclear else spellings[form]

    return [spell(name) for name in given]


def later_videos(videos: Mapping[str, Video], former: Mapping[str, Video]) -> dict[str, Video]:
    """Return the videos with an action that ends later than all of their former actions.

    Where there is none, the time unit needs no check: a manifest accepted such times before.
    """

    def last(video: Video | None) -> float:
        return max((action.end for action in (video.actions if video else ())), default=-math.inf)

    return {id: video for id, video in videos.items() if last(video) > last(former.get(id))}


def known_files(former: Manifest, files: dict[str, Path]) -> dict[str, Path]:
    """The files by the ids that the manifest has them under, whatever folders were named now.

    Raises ManifestError for a file that would take another video's place.
    """
    index = VideoIndex(former.videos.values())
    found = {}
    for given, path in files.items():
        listed = index.with_file(path) or index.get(given)
        id = listed.id if listed else given
        known = listed.path if listed else None
        if known and known.is_file() and real_path(known) != real_path(path):
            raise ManifestError(
                f"{path}: the manifest has another video {id!r}, {known}: give this file another "
                f"name, or name both files' folders"
            )
        found[id] = path
    return found
