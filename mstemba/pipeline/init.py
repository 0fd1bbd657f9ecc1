"""The command `init`: make a workspace whose manifest joins videos and annotations."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from mstemba.data_manifests.annotations import check_units, read_annotations
from mstemba.data_manifests.joining import join
from mstemba.data_manifests.manifest import (
    Manifest,
    Video,
    load_manifest,
    manifest_json,
)
from mstemba.data_manifests.merging import known_files
from mstemba.data_manifests.merging import merge as merge_manifests
from mstemba.data_manifests.readers.parsed import AnnotationReport
from mstemba.data_manifests.video_files import find_videos
from mstemba.errors import DecodeError, UsageError
from mstemba.pipeline.caching.files import as_local, as_paths, write_text
from mstemba.pipeline.caching.keys import Fingerprints
from mstemba.pipeline.caching.locks import StoreLocks
from mstemba.pipeline.features.sources import FeatureSource, NpyFolder, open_features
from mstemba.pipeline.workspace import Workspace, create_workspace, open_workspace, set_current

# Number of videos that are opened to find durations that nothing else defines.
_PROBED = 3


@dataclass(frozen=True)
class InitResult:
    """The result of `init`."""

    workspace: Workspace
    manifest: Manifest
    report: AnnotationReport
    backup: Path | None
    """Copy of the previous manifest, if it was different."""
    features: int = 0
    """Number of videos that have published features."""

    @property
    def subsets(self) -> dict[str, int]:
        """Number of videos by subset, with or without a file."""
        return dict(Counter(map(_subset, self.manifest.videos.values())))

    @property
    def actions(self) -> dict[str, int]:
        """Number of actions by subset."""
        counts = dict.fromkeys(self.subsets, 0)
        for video in self.manifest.videos.values():
            counts[_subset(video)] += len(video.actions)
        return counts

    @property
    def without_file(self) -> int:
        """Number of annotated videos without a file."""
        return sum(video.path is None for video in self.manifest.videos.values())


def init(
    videos: str | Path | Iterable[str | Path] = (),
    annotations: str | Path | None = None,
    *,
    root: str | Path = ".",
    dataset: str | None = None,
    classes: str | Path | None = None,
    time_unit: str | None = None,
    split: str | None = None,
    features: str | Path | None = None,
    merge: bool = False,
) -> InitResult:
    """Make `root` a workspace whose manifest joins videos with their annotations.

    Args:
        videos: Files or folders; without them the manifest is for published features.
        annotations: A file or folder in any of the forms that `read_annotations` reads; without it
            the manifest has no actions.
        root: Folder that becomes the workspace.
        dataset, time_unit, split: See `read_annotations`.
        classes: A text file with one class name per line, for annotations with numbers only.
        features: A folder of `<video id>.npy` files or a store, for `train` and `evaluate`.
        merge: Add to the existing manifest: new annotations of a video replace its former ones, new
            videos and classes are added, and everything else stays.

    Returns:
        The workspace, its manifest, and a report of problems in single entries.

    Raises:
        ManifestError: A path does not exist, a folder has no videos, or annotations cannot be used
            as a whole or, with `merge`, in any part.
        UsageError: Options do not fit each other.
    """
    folder = as_local(root) or Path()
    paths = as_paths(videos)
    if annotations is None:
        _check_without_annotations(
            paths, {"classes": classes, "time-unit": time_unit, "split": split}
        )
    skipped: list[str] = []
    path, classes_file = as_local(annotations), as_local(classes)
    files = find_videos(paths, skipped.append)
    with _former(folder, dataset, features) if merge else nullcontext() as former:
        files = known_files(former, files) if former else files
        if path is None:
            manifest, report = _without_annotations(former, files, dataset)
        else:
            names = None if classes_file is None else _class_names(classes_file)
            known = {v.id: v.path for v in former.videos.values() if v.path} if former else {}
            manifest, report = read_annotations(
                path, dataset, names, time_unit, split, known | files, former
            )
            annotated = list(manifest.videos)
            manifest = merge_manifests(former, manifest, report) if former else manifest
            manifest = join(manifest, files, report) if files else manifest
            _check_units_by_probing(path, manifest, annotated, report)
        report.notes[:0] = skipped
        return _write_workspace(folder, manifest, report, features)


def _check_without_annotations(videos: list[Path], options: dict[str, object]) -> None:
    if not videos:
        raise UsageError(
            "nothing to read: pass videos or folders with --videos, or annotations with "
            "--annotations"
        )
    for option, given in options.items():
        if given:
            raise UsageError(f"--{option} requires --annotations")


@contextmanager
def _former(folder: Path, dataset: str | None, features: str | Path | None) -> Iterator[Manifest]:
    """Load the manifest to merge into, and keep other processes from merging meanwhile."""
    workspace = open_workspace(folder)
    with StoreLocks(workspace.manifest).lock_store():
        if not workspace.manifest.is_file():
            raise UsageError(f"{workspace.manifest}: no such file; --merge requires a manifest")
        former = load_manifest(workspace.manifest)
        if features is not None:
            raise UsageError("--features cannot be combined with --merge")
        if dataset is not None and dataset.casefold() != former.dataset.casefold():
            raise UsageError(
                f"--dataset {dataset}: the manifest to merge into has {former.dataset!r}; pass "
                f"that, or omit --dataset"
            )
        yield former


def _write_workspace(
    folder: Path, manifest: Manifest, report: AnnotationReport, features: str | Path | None
) -> InitResult:
    features_path = as_local(features)
    source = None if features_path is None else open_features(features_path)
    # Nothing is written before everything is checked: the workspace may not exist yet.
    fingerprints = Fingerprints(Workspace(folder, folder).fingerprints)
    matched = 0 if source is None else _match_features(source, manifest, fingerprints, report)
    workspace = create_workspace(folder)
    backup = _write(workspace, manifest)
    if source is not None:
        fingerprints.save()
        # Relative to the workspace if they are inside.
        path = source.root.resolve()
        inside = path.is_relative_to(workspace.root.resolve())
        name = os.path.relpath(source.root, workspace.features) if inside else str(path)
        set_current(workspace.features, name)
    return InitResult(workspace, manifest, report, backup, matched)


def _without_annotations(
    former: Manifest | None, files: dict[str, Path], dataset: str | None
) -> tuple[Manifest, AnnotationReport]:
    report = AnnotationReport()
    if former:
        return join(former, files, report), report
    videos = {id: Video(id, path, None, None) for id, path in files.items()}
    return Manifest(dataset or "videos", (), "seconds", videos), report


def _match_features(
    source: FeatureSource, manifest: Manifest, fingerprints: Fingerprints, report: AnnotationReport
) -> int:
    """Report videos without features and the reverse; return the number of videos with them.

    A store may be shared: only the videos of the manifest are looked up in it.
    """
    folder = source if isinstance(source, NpyFolder) else None
    if folder is None:
        videos = manifest.videos.items()
        ids = [id for id, video in videos if source.key(video, fingerprints) is not None]
    else:
        ids = folder.ids()
    found = dict.fromkeys(ids)
    known = [id for id in found if id in manifest.videos]
    if not known:
        expected = next(iter(manifest.videos), "VIDEO")
        if folder is None:
            raise UsageError(
                f"{source.root}: this store has no features of any annotated video; expected "
                f"for example those of {expected}"
            )
        raise UsageError(
            f"{source.root}: none of its {len(found)} files is named after an annotated video; "
            f"found {next(iter(found))}.npy, expected for example {expected}.npy"
        )
    for id, video in manifest.videos.items():
        if id not in found:
            report.keep("annotated video without features", id)
        elif folder and not video.duration:  # a store has the times of its rows
            report.keep("features of a video without a duration", id)
    for id in found:
        if id not in manifest.videos:
            report.keep("features without annotation (not used)", id)
    return len(known)


def _subset(video: Video) -> str:
    return video.subset or "not annotated"


def _check_units_by_probing(
    annotations: Path, manifest: Manifest, ids: list[str], report: AnnotationReport
) -> None:
    """Check the time unit against the durations of a few videos, if nothing else defines them."""
    from mstemba.pipeline.decode.probe import probe

    videos = (manifest.videos[id] for id in ids)
    unknown = (v for v in videos if v.path and v.actions and not v.duration)
    found = {}
    for video in islice(unknown, _PROBED if manifest.time_unit == "seconds" else 0):
        assert video.path is not None
        try:
            found[video.id] = replace(video, duration=probe(video.path).timeline.end)
        except DecodeError:
            continue  # `extract` reports files that are not videos
    check_units(annotations, manifest.time_unit, found, report)


def _class_names(path: Path) -> tuple[str, ...]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--classes {path}: not readable as text: {error}") from None
    return tuple(line.strip() for line in lines if line.strip())


def _write(workspace: Workspace, manifest: Manifest) -> Path | None:
    """Write the manifest; return where the previous one was copied to, if it was different."""
    text = manifest_json(manifest, workspace.manifest.parent)
    backup = None
    if workspace.manifest.is_file():
        previous = workspace.manifest.read_text(encoding="utf-8")
        if previous == text:
            return None
        # The previous one may have been edited by hand.
        backup = workspace.manifest.with_suffix(".json.bak")
        write_text(backup, previous)
    write_text(workspace.manifest, text)
    return backup
