"""Putting annotations and videos into a manifest that there is."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

from mstemba.data_manifests.class_ids import normalise_name
from mstemba.data_manifests.manifest import Action, Manifest, VideoIndex
from mstemba.data_manifests.readers.parsed import Report
from mstemba.errors import ManifestError


def merged(former: Manifest, given: Manifest, report: Report) -> Manifest:
    """The former manifest with these annotations: of their videos they replace the actions.

    New classes come last, so that the numbers of the former ones stay.
    Raises ManifestError where one of the two is in seconds and the other in frames, and where not
    every annotation could be read: what it would have replaced is not given up for less.
    """
    if report.left_out:
        kind, count = next(iter(report.left_out.items()))
        raise ManifestError(
            f"{given.dataset}: nothing is merged, because {report.left_out.total()} annotations "
            f"cannot be used: {kind} ({count}, for example {report.examples[kind]})"
        )
    if given.time_unit != former.time_unit:
        raise ManifestError(
            f"{given.dataset}: times in {given.time_unit}, and the manifest to merge them into has "
            f"{former.time_unit}: name the right --time-unit, or bring them into one"
        )
    same = _names(former.classes, given.classes)
    new = [name for name in dict.fromkeys(same) if name not in former.classes]
    classes = (*former.classes, *new)
    numbers = [classes.index(name) for name in same]
    videos = dict(former.videos)
    for id, video in given.videos.items():
        actions = tuple(Action(numbers[c], start, end) for c, start, end in video.actions)
        path = former.videos[id].path if id in former.videos else None
        videos[id] = replace(video, path=path, actions=actions)
    again = [id for id in given.videos if id in former.videos]
    new_actions, old_actions = (
        sum(len(manifest.videos[id].actions) for id in again) for manifest in (given, former)
    )
    report.notes.append(
        f"videos annotated anew: {len(again)} (actions: {new_actions} in place of {old_actions}), "
        f"added: {len(given.videos) - len(again)}; "
        f"new classes: {', '.join(map(repr, new)) or 'none'}"
    )
    return replace(former, classes=classes, videos=videos)


def _names(former: tuple[str, ...], given: tuple[str, ...]) -> list[str]:
    """The given names as the former manifest spells them; two that are given stay two."""
    folds = {normalise_name(name): name for name in former}
    alike = Counter(map(normalise_name, given))
    return [
        folds.get(normalise_name(name), name)
        if name not in former and alike[normalise_name(name)] == 1
        else name
        for name in given
    ]


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
        if known and known.is_file() and known.resolve() != path.resolve():
            raise ManifestError(
                f"{path}: the manifest has another video {id!r}, {known}: give this file another "
                f"name, or name both files' folders"
            )
        found[id] = path
    return found
