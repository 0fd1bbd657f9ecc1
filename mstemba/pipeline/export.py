"""Kept scores to segments and files: another threshold or format without the video.

Nothing heavy is imported: exporting is a matter of a second.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from mstemba.data_manifests.manifest import as_paths
from mstemba.errors import StoreError, UsageError
from mstemba.pipeline.files import as_local
from mstemba.pipeline.options import ExportOptions
from mstemba.pipeline.outputs import Detection
from mstemba.pipeline.outputs.scores import SUFFIX, read_scores
from mstemba.pipeline.results import Known, check_formats, make_detection, write_files
from mstemba.pipeline.workspace import Workspace, find_workspace


@dataclass
class ExportResult:
    """What an export did."""

    files: dict[str, list[Path]] = field(default_factory=dict)
    """Files written, by the scores' name."""
    detections: dict[str, Detection] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    """Reason by the scores' name."""


def export(
    scores: str | Path | Iterable[str | Path] = (),
    options: ExportOptions | None = None,
    *,
    workspace: Workspace | None = None,
    output: str | Path | None = None,
) -> ExportResult:
    """Cut kept scores into segments again and write them in other formats.

    `scores` are files that `detect` kept (`<video>.scores.npz`), or folders of them; by default
    those of the workspace. The files go beside the scores, or into `output`. Raises UsageError for
    an unknown format, and when there are no scores.
    """
    options = options or ExportOptions()
    check_formats(options.formats)
    workspace = workspace or find_workspace()
    known = Known(workspace)
    result = ExportResult()
    for file in _scores_files(as_paths(scores), workspace):
        name = file.name.removesuffix(SUFFIX)
        try:
            kept = read_scores(file)
        except StoreError as error:
            result.failed[name] = str(error)
            continue
        detection = make_detection(kept.scores, name, kept.provenance, known, options)
        result.detections[name] = detection
        result.files[name] = write_files(detection, as_local(output) or file.parent, name)
    return result


def _scores_files(given: list[Path], workspace: Workspace | None) -> list[Path]:
    if not given and workspace is None:
        raise UsageError("no workspace here: name kept scores (VIDEO.scores.npz), or their folder")
    places = given or [workspace.detections]  # type: ignore[union-attr]
    files = [
        file
        for place in places
        for file in (sorted(place.glob(f"*{SUFFIX}")) if place.is_dir() else [place])
    ]
    if not files:
        raise UsageError(
            f"no kept scores (*{SUFFIX}) in {places[0]}: `mstemba detect` makes them from a video"
        )
    return files
