"""Making a workspace: videos and annotations to a manifest, and what is odd in them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from mstemba.data_manifests.annotations import Report, join, read_annotations
from mstemba.data_manifests.manifest import Manifest, Video, as_paths, find_videos, save_text
from mstemba.errors import UsageError
from mstemba.pipeline.files import write_text
from mstemba.pipeline.workspace import Workspace, create_workspace


@dataclass(frozen=True)
class InitResult:
    """What was found."""

    workspace: Workspace
    manifest: Manifest
    report: Report
    backup: Path | None
    """Where the former manifest was kept, if there was another one."""

    @property
    def subsets(self) -> dict[str, int]:
        """Videos with a file, by subset."""
        found = (v.subset or "not annotated" for v in self.manifest.videos.values() if v.path)
        return dict(Counter(found))


def init(
    videos: str | Path | Iterable[str | Path],
    annotations: str | Path | None = None,
    *,
    root: str | Path = ".",
    dataset: str | None = None,
    classes: str | Path | None = None,
    time_unit: str | None = None,
) -> InitResult:
    """Make `root` a workspace whose manifest joins these videos with their annotations.

    `classes` is a text file with one class name a line, for annotation files that have numbers
    only. Raises ManifestError for a path that is not there, a folder without videos, or an
    annotation file that cannot be read; odd entries are reported.
    """
    files = find_videos(as_paths(videos))
    if not files:
        raise UsageError("name at least one video or folder with --videos")
    if annotations is None:
        manifest = Manifest(
            "videos", (), "seconds", {i: Video(i, p, None, None) for i, p in files.items()}
        )
        report = Report()
    else:
        names = None if classes is None else _class_names(Path(classes))
        read, report = read_annotations(Path(annotations), names, time_unit)
        manifest = join(read, files, report)
    manifest = replace(manifest, dataset=dataset or manifest.dataset)
    workspace = create_workspace(Path(root))
    return InitResult(workspace, manifest, report, _write(workspace, manifest))


def _class_names(path: Path) -> tuple[str, ...]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--classes {path}: cannot be read: {error}") from None
    return tuple(line.strip() for line in lines if line.strip())


def _write(workspace: Workspace, manifest: Manifest) -> Path | None:
    text = save_text(manifest, workspace.manifest.parent)
    backup = None
    if workspace.manifest.is_file():
        former = workspace.manifest.read_text(encoding="utf-8")
        if former == text:
            return None
        # It may have been edited by hand.
        backup = workspace.manifest.with_suffix(".json.bak")
        write_text(backup, former)
    write_text(workspace.manifest, text)
    return backup
