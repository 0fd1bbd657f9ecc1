"""Kept scores to segments and files: another threshold or format without the video.

Nothing heavy is imported: exporting is a matter of a second.
"""

from __future__ import annotations

import itertools
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from mstemba.data_manifests.manifest import as_paths
from mstemba.errors import StoreError, UsageError
from mstemba.pipeline.caching.files import as_local, ends_the_run, explain
from mstemba.pipeline.detect.results import (
    ManifestIndex,
    check_folder,
    check_formats,
    make_detection,
    write_files,
)
from mstemba.pipeline.detect.scores_file import SUFFIX, Scored, read_scores, scored_video
from mstemba.pipeline.options import ExportOptions
from mstemba.pipeline.outputs import Detection
from mstemba.pipeline.progress import EventHandler, ProgressReporter, counted, ignore_events
from mstemba.pipeline.workspace import Workspace, find_workspace


@dataclass
class ExportResult:
    """What an export did. Iterating gives the `Detection` of every video that did not fail.

    All their scores are held: export thousands of long videos in several calls.
    """

    files: dict[str, list[Path]] = field(default_factory=dict)
    """Files written, by the scores' name."""
    detections: dict[str, Detection] = field(default_factory=dict)
    """By the scores' name."""
    failed: dict[str, str] = field(default_factory=dict)
    """Reason by the scores' name."""

    def __iter__(self) -> Iterator[Detection]:
        return iter(self.detections.values())


def export(
    scores: str | Path | Iterable[str | Path] = (),
    options: ExportOptions | None = None,
    *,
    workspace: Workspace | str | Path | None = None,
    output: str | Path | None = None,
    on_event: EventHandler = ignore_events,
) -> ExportResult:
    """Cut kept scores into segments again and write them in other formats.

    `scores` are files that `detect` kept (`<video>.scores.npz`), folders of them, or the videos'
    own paths or ids; by default all of the workspace. The files go beside the scores, or into
    `output`. Damaged scores, and files that cannot be written, stop no others: they are in `failed`
    of what is returned. Raises UsageError for an unknown format, for an `output` that is a file or
    may not be written to, and when there are no scores.
    """
    options = options or ExportOptions()
    check_formats(options.formats)
    folder = as_local(output)
    check_folder(folder)
    workspace = find_workspace(workspace)
    known = ManifestIndex(workspace)
    result = ExportResult()
    files = _scores_files(as_paths(scores), workspace, known)
    meter = ProgressReporter("export", len(files), "videos", on_event)
    for number, file in enumerate(files):
        own = file.name.removesuffix(SUFFIX)
        meter.update(own, number, number)
        try:
            kept = read_scores(file)
        except StoreError as error:
            result.failed[_unused(own, "", result.files, result.failed)] = str(error)
            continue
        # Scores of one name from several folders must not overwrite each other.
        name = _unused(own, kept.fingerprint, result.files, result.failed)
        dense = replace(kept.scores, video=_where(kept.scores.video, kept.id, known))
        detection = make_detection(dense, kept.id, kept.provenance, known, options)
        where = (file.parent, own) if folder is None else (folder, name)
        try:
            result.files[name] = write_files(detection, *where, on_event)
        except UsageError as error:  # a video that is too large to embed
            result.failed[name] = str(error)
        except OSError as error:
            if ends_the_run(error):
                raise
            result.failed[name] = explain(error)
        else:
            result.detections[name] = detection
    known.warn("export", on_event)
    meter.update(counted(len(files), "video"), len(files), len(files))
    return result


def _where(video: str, id: str, known: ManifestIndex) -> str:
    """Where the video is; by the manifest if it is not where it was when it was scored."""
    listed = known.path(id)
    moved = listed is not None and listed.is_file() and not Path(video).is_file()
    return str(listed) if moved else video


def _unused(name: str, fingerprint: str, *used: Container[str]) -> str:
    """The name, or with something of the fingerprint, or a number, added to it."""
    numbered = (f"{name} ({number})" for number in itertools.count(2))
    marked = [f"{name}@{fingerprint[:8]}"] if fingerprint else []
    names = itertools.chain([name], marked, numbered)  # without end
    return next(free for free in names if not any(free in taken for taken in used))


def _scores_files(
    given: list[Path], workspace: Workspace | None, known: ManifestIndex
) -> list[Path]:
    """The scores' files, each once. Raises UsageError for what leads to none."""
    if not given and workspace is None:
        raise UsageError("no workspace here: name kept scores (VIDEO.scores.npz), or their folder")
    if not given and workspace is not None:
        given = [workspace.detections]
    files: dict[Path, Path] = {}
    for place in given:
        found = _in_folder(place) if place.is_dir() else [_of_one(place, workspace, known)]
        if not found:
            raise UsageError(
                f"no kept scores (*{SUFFIX}) in {place}: `mstemba detect` makes them from a video"
            )
        files |= {file.resolve(): file for file in found if file.resolve() not in files}
    return list(files.values())


def _in_folder(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*{SUFFIX}"))


def _of_one(given: Path, workspace: Workspace | None, known: ManifestIndex) -> Path:
    """The scores' file that is named, itself or by its video's path or id."""
    if given.name.endswith(SUFFIX) and given.is_file():
        return given
    folders = [workspace.detections, workspace.zero_shot] if workspace else [Path("detections")]
    folders += [given.parent, given.parent / "detections"]
    files = [file for folder in dict.fromkeys(folders) for file in _in_folder(folder)]
    video = given if given.is_file() else known.path(str(given))
    path = str(video.resolve()) if video else None
    ids = {str(given), (known.id(video) if video else None) or str(given)}
    names = (*(id.replace("/", "__") for id in ids), given.name, given.stem)
    # To open thousands takes seconds: those first whose names begin like the video's.
    files.sort(key=lambda file: not file.name.startswith(names))
    of = cache(scored_video)
    found = (file for file in files if path and _path(of(file)) == path)
    # By id or name where the path says nothing: the video has moved, or is not in the manifest.
    gone = (file for file in files if not (path and Path(_path(of(file))).is_file()))
    alike = (file for file in gone if _is_of(file, of(file), given, ids))
    for file in itertools.chain(found, alike):
        return file
    places = ", ".join(str(folder) for folder in dict.fromkeys(folders))
    raise UsageError(
        f"{given}: no kept scores of it in {places}; name a video, its id, a file *{SUFFIX} or a "
        f"folder of them. `mstemba detect` makes them from a video"
    )


def _path(scored: Scored | None) -> str:
    """The path of the video that was scored; empty for damaged scores."""
    return scored.path if scored else ""


def _is_of(file: Path, scored: Scored | None, given: Path, ids: set[str]) -> bool:
    """Whether the scores are of a video that is named by one of these ids, or so."""
    own = file.name.removesuffix(SUFFIX)
    if (scored and scored.id in ids) or own in {id.replace("/", "__") for id in ids}:
        return True
    # A bare name says no folder; one with a folder must not find its namesake in another.
    ends = given.parts == Path(_path(scored)).parts[-len(given.parts) :]
    return own in (given.name, given.stem) and (len(given.parts) == 1 or ends)
