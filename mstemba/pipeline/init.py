"""Making a workspace: videos and annotations to a manifest, and what is odd in them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

from mstemba.data_manifests.annotations import check_units, join, read_annotations
from mstemba.data_manifests.manifest import (
    Manifest,
    Video,
    as_paths,
    find_videos,
    load_manifest,
    save_text,
)
from mstemba.data_manifests.merging import known_files, merged
from mstemba.data_manifests.readers.parsed import Report
from mstemba.errors import DecodeError, UsageError
from mstemba.pipeline.caching.files import as_local, write_text
from mstemba.pipeline.caching.keys import Fingerprints
from mstemba.pipeline.caching.locks import StoreLocks
from mstemba.pipeline.features.sources import FeatureSource, NpyFolder, open_features
from mstemba.pipeline.workspace import Workspace, create_workspace, open_workspace, set_current

# Videos that are looked into when nothing else tells how long they are.
_PROBED = 3


@dataclass(frozen=True)
class InitResult:
    """What was found."""

    workspace: Workspace
    manifest: Manifest
    report: Report
    backup: Path | None
    """Where the former manifest was kept, if there was another one."""
    features: int = 0
    """Videos of the manifest that have published features."""

    @property
    def subsets(self) -> dict[str, int]:
        """Videos by subset, whether they have a file or not."""
        return dict(Counter(map(_subset, self.manifest.videos.values())))

    @property
    def actions(self) -> dict[str, int]:
        """Actions by subset."""
        counts = dict.fromkeys(self.subsets, 0)
        for video in self.manifest.videos.values():
            counts[_subset(video)] += len(video.actions)
        return counts

    @property
    def without_file(self) -> int:
        """Annotated videos for which no file was found."""
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
    """Make `root` a workspace whose manifest joins these videos with their annotations.

    Either may be left out: there is a manifest without actions, or one without files for published
    features. `features` is a folder of `<video id>.npy`, or a store, which `train` and `evaluate`
    take then.
    `annotations` is a file or a folder in any of the forms that `read_annotations` reads;
    `dataset`, `time_unit` and `split` are as there. `classes` is a text file with one class name a
    line, for annotation files that have numbers only. With `merge` all of it is put into the
    manifest there is: of a video that is annotated anew the actions are replaced, further videos
    and classes are added, all else stays.
    Raises ManifestError for a path that is not there, a folder without videos, or annotations that
    cannot be right as a whole, or, to be merged, in any part; UsageError for options that do not
    fit. Odd entries are reported.
    """
    folder = as_local(root) or Path()
    paths = as_paths(videos)
    if not paths and annotations is None:
        raise UsageError(
            "name at least one video or folder with --videos, or annotations with --annotations"
        )
    for option, given in (("classes", classes), ("time-unit", time_unit), ("split", split)):
        if given and annotations is None:
            raise UsageError(f"--{option} {given} is of annotations: name them by --annotations")
    files = find_videos(paths)
    with _former(folder, dataset, features) if merge else nullcontext() as former:
        if annotations is None:
            manifest, report = _without_annotations(former, files, dataset)
        else:
            names = None if classes is None else _class_names(Path(classes))
            read = partial(read_annotations, Path(annotations), dataset, names, time_unit, split)
            manifest, report = _annotated(Path(annotations), read, former, files)
        return _make(folder, manifest, report, features)


@contextmanager
def _former(folder: Path, dataset: str | None, features: str | Path | None) -> Iterator[Manifest]:
    """The manifest to merge into; while it is held, no other process merges."""
    workspace = open_workspace(folder)
    with StoreLocks(workspace.manifest).lock_store():
        if not workspace.manifest.is_file():
            raise UsageError(f"{workspace.manifest}: no manifest to merge into: leave --merge out")
        former = load_manifest(workspace.manifest)
        if features is not None:
            raise UsageError("--features are of a new manifest: leave them, or --merge, out")
        if dataset is not None and dataset.casefold() != former.dataset.casefold():
            raise UsageError(
                f"--dataset {dataset}: the manifest to merge into is of {former.dataset!r}; name "
                f"that, or leave --dataset out"
            )
        yield former


def _annotated(
    path: Path,
    read: Callable[[dict[str, Path], Manifest | None], tuple[Manifest, Report]],
    former: Manifest | None,
    files: dict[str, Path],
) -> tuple[Manifest, Report]:
    known = {}
    if former:
        files = known_files(former, files)
        known = {v.id: v.path for v in former.videos.values() if v.path}
    manifest, report = read(known | files, former)
    annotated = list(manifest.videos)
    manifest = merged(former, manifest, report) if former else manifest
    manifest = join(manifest, files, report) if files else manifest
    probed = {id: manifest.videos[id] for id in annotated}
    _check_units_by_probing(path, replace(manifest, videos=probed), report)
    return manifest, report


def _make(
    folder: Path, manifest: Manifest, report: Report, features: str | Path | None
) -> InitResult:
    source = None if features is None else open_features(Path(features))
    # Nothing is made before all is checked, so the workspace may be none yet.
    fingerprints = Fingerprints(Workspace(folder, folder).fingerprints)
    matched = 0 if source is None else _match_features(source, manifest, fingerprints, report)
    workspace = create_workspace(folder)
    backup = _write(workspace, manifest)
    if source is not None:
        fingerprints.save()
        set_current(workspace.features, _name(source.root, workspace))
    return InitResult(workspace, manifest, report, backup, matched)


def _without_annotations(
    former: Manifest | None, files: dict[str, Path], dataset: str | None
) -> tuple[Manifest, Report]:
    report = Report()
    if former:
        return join(former, known_files(former, files), report), report
    videos = {id: Video(id, path, None, None) for id, path in files.items()}
    return Manifest(dataset or "videos", (), "seconds", videos), report


def _match_features(
    source: FeatureSource, manifest: Manifest, fingerprints: Fingerprints, report: Report
) -> int:
    """Report which videos have no features and the reverse; how many have them.

    Of a store, which may be shared, only the videos of the manifest are looked up.
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
                f"{source.root}: no features of any video of the annotations in this store; "
                f"expected for example those of {expected}"
            )
        raise UsageError(
            f"{source.root}: not one of its {len(found)} files is named after a video of the "
            f"annotations; found {next(iter(found))}.npy, expected for example {expected}.npy"
        )
    for id, video in manifest.videos.items():
        if id not in found:
            report.count(report.kept, "annotated video without features", id)
        elif folder and not video.duration:  # a store knows when its rows are
            report.count(report.kept, "features of a video without a duration", id)
    for id in found:
        if id not in manifest.videos:
            report.count(report.kept, "features without annotation (not used)", id)
    return len(known)


def _name(features: Path, workspace: Workspace) -> str:
    """How the workspace names features: from its own folder, so that it can be moved with them."""
    inside = features.resolve().is_relative_to(workspace.root.resolve())
    return os.path.relpath(features, workspace.features) if inside else str(features.resolve())


def _subset(video: Video) -> str:
    return video.subset or "not annotated"


def _check_units_by_probing(annotations: Path, manifest: Manifest, report: Report) -> None:
    """Look into a few videos of unknown duration: their actions must not end far beyond them."""
    from mstemba.pipeline.decode.pyav import probe

    unknown = (v for v in manifest.videos.values() if v.path and v.actions and not v.duration)
    found = {}
    for video in islice(unknown, _PROBED if manifest.time_unit == "seconds" else 0):
        assert video.path is not None
        try:
            found[video.id] = replace(video, duration=probe(video.path).duration)
        except DecodeError:
            continue  # `extract` tells of files that are no video
    check_units(annotations, manifest.time_unit, found, report)


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
