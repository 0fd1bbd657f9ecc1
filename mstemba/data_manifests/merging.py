"""Merge annotations and videos into an existing manifest."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

from mstemba.data_manifests.class_ids import normalise_name
from mstemba.data_manifests.manifest import Action, Manifest, VideoIndex
from mstemba.data_manifests.readers.parsed import AnnotationReport
from mstemba.errors import ManifestError
from mstemba.wording import counted


def merge(former: Manifest, given: Manifest, report: AnnotationReport) -> Manifest:
    """Return the former manifest with new annotations, which replace the actions of their videos.

    New classes come last, so that the ids of the former ones stay. Raises ManifestError if the time
    units differ, and if annotations were skipped, because they would replace complete ones.
    """
    if report.skipped:
        kind, count = next(iter(report.skipped.items()))
        unusable = counted(report.skipped.total(), "annotation")
        raise ManifestError(
            f"{given.dataset}: nothing is merged, because {unusable} cannot be used: {kind} "
            f"({count}, for example {report.examples[kind]})"
        )
    if given.time_unit != former.time_unit:
        raise ManifestError(
            f"{given.dataset}: times in {given.time_unit}, but the manifest to merge into has "
            f"{former.time_unit}: pass the right --time-unit, or convert them"
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
        f"videos annotated again: {len(again)} (actions: {new_actions} in place of "
        f"{old_actions}), added: {len(given.videos) - len(again)}; "
        f"new classes: {', '.join(map(repr, new)) or 'none'}"
    )
    return replace(former, classes=classes, videos=videos)


def _names(former: tuple[str, ...], given: tuple[str, ...]) -> list[str]:
    """Return the given names in the spelling of the former manifest, without merging any."""
    spellings = {normalise_name(name): name for name in former}
    alike = Counter(map(normalise_name, given))
    return [
        spellings.get(normalise_name(name), name)
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
