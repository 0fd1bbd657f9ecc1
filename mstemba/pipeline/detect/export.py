"""Saved scores to segments and files: another threshold or format without the video.

No heavy import here: an export takes a second.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from mstemba.errors import StoreError, UsageError
from mstemba.pipeline.caching.files import as_local, as_paths, check_folder, visible
from mstemba.pipeline.caching.keys import Fingerprints
from mstemba.pipeline.caching.locks import FolderLocks
from mstemba.pipeline.catalog import Catalog, file_stem, workspace_manifest
from mstemba.pipeline.detect.ground_truth import GroundTruth
from mstemba.pipeline.detect.results import check_formats, make_detection, recording, write_files
from mstemba.pipeline.detect.scores_file import (
    SUFFIX,
    ScoresFile,
    name_of,
    open_scores,
    read_scores,
)
from mstemba.pipeline.options import ExportOptions
from mstemba.pipeline.outputs import Detection
from mstemba.pipeline.progress import Event, EventHandler, ProgressReporter, ignore_events
from mstemba.pipeline.workspace import Workspace, find_workspace
from mstemba.reading.files import real_path
from mstemba.wording import counted


@dataclass
class ExportResult:
    """The results of `export`. Iterating gives the `Detection` of every video that did not fail.

    It holds the scores of all of them: export thousands of long videos in several calls.
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
    """Cut saved scores into segments again and write them in other formats.

    Damaged scores, and files that cannot be written, do not stop the others: the result has the
    reason in `failed`.

    Args:
        scores: Files that `detect` saved (`<video>.scores.npz`), folders of them, or the videos'
            own paths or ids; by default all of the workspace.
        options: How scores become segments, and segments files.
        workspace: By default the one of the current folder.
        output: Folder of the files; by default that of the scores.
        on_event: Receives progress and messages.

    Raises:
        UsageError: An unknown format, an `output` that cannot be written to, or no scores.
    """
    options = options or ExportOptions()
    check_formats(options.formats)
    folder = as_local(output)
    if folder is not None:
        check_folder(folder, "--output", "the results")
    workspace = find_workspace(workspace)
    catalog = Catalog({}, workspace_manifest(workspace), Fingerprints())
    truth = GroundTruth(catalog.manifest)
    result = ExportResult()
    files = _scores_files(as_paths(scores), workspace, catalog)
    progress = ProgressReporter("export", len(files), "videos", on_event)
    targets: dict[Path, dict[str, _Job]] = {}
    for file in files:
        own, opened = name_of(file), open_scores(file)
        # Scores of one name from several folders must not overwrite each other.
        name = catalog.stem(own, opened.fingerprint if opened else "")
        jobs = targets.setdefault(folder or file.parent, {})
        jobs[name if folder else own] = _Job(file, name)
    exporter = _Exporter(catalog, truth, options, on_event, progress, result)
    for target, jobs in targets.items():
        exporter.run(target, jobs)
    names = [job.name for jobs in targets.values() for job in jobs.values()]
    result.files = {name: result.files[name] for name in names if name in result.files}
    result.detections = {name: result.detections[name] for name in result.files}
    truth.warn("export", on_event)
    progress.update(counted(len(files), "video"), len(files), len(files))
    return result


@dataclass(frozen=True)
class _Job:
    """A scores file to export."""

    scores: Path
    name: str
    """In the result."""


@dataclass
class _Exporter:
    """Writes the files of one command, those of each video under their lock."""

    catalog: Catalog
    truth: GroundTruth
    options: ExportOptions
    on_event: EventHandler
    progress: ProgressReporter
    result: ExportResult
    _done: int = 0

    def run(self, folder: Path, jobs: dict[str, _Job]) -> None:
        """Export into one folder, by stem; what other processes work on comes last."""
        locks = FolderLocks(folder, "exporting")
        locks.sweep()
        todo = dict(jobs)
        try:
            for lock in locks.each(jobs, lambda line: self.on_event(Event("export", line))):
                with lock:
                    self._export(folder, lock.id, todo.pop(lock.id))
        except StoreError as error:  # nothing can be written there
            self.result.failed |= {job.name: str(error) for job in todo.values()}

    def _export(self, folder: Path, stem: str, job: _Job) -> None:
        self.progress.update(name_of(job.scores), self._done, self._done)
        self._done += 1
        # A video that is too large to embed fails with a UsageError.
        with recording(self.result.failed, job.name, UsageError):
            saved = read_scores(job.scores)
            dense, listed = saved.scores, self.catalog.listed_path(saved.id)
            if listed is not None and listed.is_file() and not Path(dense.video).is_file():
                dense = replace(dense, video=str(listed))  # the video has moved
            video = self.catalog.listed(Path(dense.video))
            detection = make_detection(
                dense, saved.id, saved.provenance, video, self.truth, self.options
            )
            self.result.files[job.name] = write_files(detection, folder, stem, self.on_event)
            self.result.detections[job.name] = detection


def _scores_files(given: list[Path], workspace: Workspace | None, catalog: Catalog) -> list[Path]:
    """Return the scores files, each once. Raises UsageError for an input that leads to none."""
    if not given:
        if workspace is None:
            raise UsageError(
                f"no workspace here: pass saved scores (VIDEO{SUFFIX}) or their folder"
            )
        given = [workspace.detections]
    files: dict[Path, Path] = {}
    for place in given:
        found = _in_folder(place) if place.is_dir() else [_find_scores(place, workspace, catalog)]
        if not found:
            raise UsageError(
                f"no saved scores (*{SUFFIX}) in {place}: `mstemba detect` makes them from a video"
            )
        for file in found:
            files.setdefault(real_path(file), file)
    return list(files.values())


def _in_folder(folder: Path) -> list[Path]:
    return visible(folder, f"*{SUFFIX}")


def _find_scores(given: Path, workspace: Workspace | None, catalog: Catalog) -> Path:
    """Return the scores file that is named, itself or by its video's path or id."""
    if given.name.endswith(SUFFIX) and given.is_file():
        return given
    usual = [workspace.detections, workspace.zero_shot] if workspace else [Path("detections")]
    folders = list(dict.fromkeys([*usual, given.parent, given.parent / "detections"]))
    files = [file for folder in folders for file in _in_folder(folder)]
    video = given if given.is_file() else catalog.listed_path(str(given))
    path = str(real_path(video)) if video else ""
    listed = catalog.listed(video) if video else None
    ids = {str(given), listed.id if listed else str(given)}
    # Opening thousands takes seconds: those first whose names begin like the video's.
    names = (*(file_stem(id, "") for id in ids), given.name, given.stem)
    files.sort(key=lambda file: not file.name.startswith(names))
    opened = cache(open_scores)

    def video_of(file: Path) -> str:
        scores = opened(file)
        return scores.video if scores else ""

    found = (file for file in files if path and video_of(file) == path)
    # By id or name where the path says nothing: the video has moved, or is not in the manifest.
    gone = (file for file in files if not (path and Path(video_of(file)).is_file()))
    alike = (file for file in gone if _is_named(file, opened(file), given, ids))
    for file in itertools.chain(found, alike):
        return file
    raise UsageError(
        f"{given}: no saved scores of it in {', '.join(map(str, folders))}; pass a video, an id, "
        f"a file *{SUFFIX} or a folder of them. `mstemba detect` makes them from a video"
    )


def _is_named(file: Path, scores: ScoresFile | None, given: Path, ids: set[str]) -> bool:
    """Return whether the scores are of a video that has one of these ids or the given name."""
    own = name_of(file)
    if (scores and scores.id in ids) or own in {file_stem(id, "") for id in ids}:
        return True
    # A bare name names no folder; one with a folder must not find its namesake in another.
    video = scores.video if scores else ""
    ends = given.parts == Path(video).parts[-len(given.parts) :]
    return own in (given.name, given.stem) and (len(given.parts) == 1 or ends)
