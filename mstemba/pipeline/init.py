"""The command `init`: make a workspace whose manifest joins videos and annotations."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from mstemba.data_manifests.annotations import read_annotations
from mstemba.data_manifests.datasets import DATASETS
from mstemba.data_manifests.joining import join, report_without_file
from mstemba.data_manifests.manifest import (
    Manifest,
    Video,
    load_manifest,
    manifest_json,
)
from mstemba.data_manifests.merging import known_files, later_videos
from mstemba.data_manifests.merging import merge as merge_manifests
from mstemba.data_manifests.overview import (
    ClassCounts,
    count_classes,
    labelled_time,
    report_doubts,
)
from mstemba.data_manifests.readers.parsed import AnnotationReport
from mstemba.data_manifests.readers.text import read_text
from mstemba.data_manifests.splits import NO_SPLIT, for_training, split_by_hash
from mstemba.data_manifests.time_checks import check_units
from mstemba.data_manifests.video_files import WORKSPACE_MARKER, find_videos
from mstemba.errors import DecodeError, ManifestError, UsageError
from mstemba.limits import MOST_CLASSES
from mstemba.pipeline.caching.files import as_local, as_paths, write_atomically, write_text
from mstemba.pipeline.caching.keys import Fingerprints
from mstemba.pipeline.caching.locks import EntryLock, StoreLocks
from mstemba.pipeline.features.entry import DamagedEntry
from mstemba.pipeline.features.npy_folder import NpyFolder
from mstemba.pipeline.features.sources import FeatureSource, open_features
from mstemba.pipeline.progress import Event, EventHandler, ignore_events
from mstemba.pipeline.workspace import Workspace, create_workspace, open_workspace, set_current
from mstemba.reading.files import real_path
from mstemba.reading.typed import Name, convert
from mstemba.wording import counted

# Number of videos that are opened to find durations that nothing else defines.
_PROBED = 3
# Number of videos whose headers are read for their durations, to find what looks like a mistake.
_MEASURED = 200


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

    @property
    def labelled_time(self) -> float:
        """Time in which at least one action happens, over all videos, in the manifest's unit."""
        return sum(map(labelled_time, self.manifest.videos.values()))

    @property
    def classes(self) -> list[ClassCounts]:
        """What there is of every class, in the order of the classes."""
        return count_classes(self.manifest)

    def as_dict(self) -> dict[str, Any]:
        """Return the counts and the whole report, for JSON."""
        return {
            "manifest": str(self.workspace.manifest),
            "backup": None if self.backup is None else str(self.backup),
            "videos": len(self.manifest.videos),
            "videos_without_file": self.without_file,
            "videos_with_features": self.features,
            "videos_by_subset": self.subsets,
            "actions_by_subset": self.actions,
            "time_unit": self.manifest.time_unit,
            "labelled_time": self.labelled_time,
            "classes": [asdict(counts) for counts in self.classes],
            "notes": self.report.notes,
            **self.report.as_dict(),
        }


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
    transposed: bool | None = None,
    merge: bool = False,
    yes: bool = False,
    join_spellings: bool = False,
    strict: bool = False,
    tiers: str | Iterable[str] | None = None,
    on_event: EventHandler = ignore_events,
) -> InitResult:
    """Make `root` a workspace whose manifest joins videos with their annotations.

    Args:
        videos: Files or folders; without them the manifest is for published features.
        annotations: A file or folder in any of the forms that `read_annotations` reads; without it
            the manifest has no actions.
        root: Folder that becomes the workspace.
        dataset, time_unit, join_spellings, tiers: See `read_annotations`.
        split: A split of the dataset. Without one, videos of annotations without subsets are
            divided by `split_by_hash`; `none` leaves them without.
        classes: A text file with one class name per line, for annotations with numbers only.
        features: A folder of `<video id>.npy` files or a store, for `train` and `evaluate`.
        transposed: Whether its arrays are (features, rows). Default: seen from their shapes.
        merge: Add to the existing manifest: new annotations of a video replace its former ones, new
            videos and classes are added, and everything else stays.
        yes, strict: Whether a merge may leave videos fewer actions; whether a warning is an error.
        on_event: Receives a message if another process writes the manifest.

    Returns:
        The workspace, its manifest, and a report of problems in single entries.

    Raises:
        ManifestError: A path does not exist, a folder has no videos, or annotations cannot be used
            as a whole, with `merge` or `strict` in any part, or would leave a video fewer actions.
        UsageError: Options do not fit each other, or the manifest is a link to another file.
    """
    folder, paths = _workspace_folder(root), as_paths(videos)
    convert("-" if dataset is None else dataset, Name, "--dataset", UsageError)
    if annotations is None:
        _check_without_annotations(paths, (classes, time_unit, split, tiers, join_spellings))
    files = find_videos(paths, (skipped := list[str]()).append)
    with _former(folder, dataset, features, on_event) if merge else nullcontext() as former:
        files = known_files(former, files) if former else files
        if (path := as_local(annotations)) is None:
            manifest, report = _without_annotations(former, files, dataset)
        else:
            how = time_unit, split, join_spellings, tiers, skipped.append
            reader = _Reader(dataset, as_local(classes), *how)
            manifest, report = _join(path, reader, files, former, yes)
        report.notes[:0] = skipped
        wait = None if merge else on_event  # a merge has locked the manifest already
        return _write_workspace(folder, manifest, report, features, transposed, strict, wait)


def _refuse_warnings(report: AnnotationReport) -> None:
    if warnings := report.warnings():
        raise ManifestError(
            f"--strict: nothing is written, because of {counted(len(warnings), 'warning')}: "
            + "; ".join(warnings)
        )


def _join(
    path: Path, reader: _Reader, files: dict[str, Path], former: Manifest | None, yes: bool
) -> tuple[Manifest, AnnotationReport]:
    """Read annotations, merge them into the former manifest, and join them with the files."""
    manifest, report = reader(path, files, former)
    if (
        not former
        and report.skipped
        and not any(video.actions for video in manifest.videos.values())
    ):
        raise ManifestError(f"{path}: no action can be used: {'; '.join(report.lines('skipped'))}")
    before = former.videos if former else {}
    annotated, later = list(manifest.videos), list(later_videos(manifest.videos, before))
    manifest = merge_manifests(former, manifest, report, yes) if former else manifest
    manifest = _with_subsets(manifest, annotated, former, reader.split, report)
    if files:
        manifest = join(manifest, files, report)
    elif any(video.path for video in manifest.videos.values()):
        report_without_file(manifest, annotated, report)
    _check_units_by_probing(path, manifest, later, report)
    _report_doubts(manifest, report)
    return manifest, report


@dataclass(frozen=True)
class _Reader:
    """How annotations are read; see `init`."""

    dataset: str | None
    classes: Path | None
    time_unit: str | None
    split: str | None
    join_spellings: bool
    tiers: str | Iterable[str] | None
    note: Callable[[str], None]

    def __call__(
        self, path: Path, files: dict[str, Path], former: Manifest | None
    ) -> tuple[Manifest, AnnotationReport]:
        known = {v.id: v.path for v in former.videos.values() if v.path} if former else {}
        return read_annotations(
            path,
            self.dataset,
            None if self.classes is None else _class_names(self.classes, self.note),
            self.time_unit,
            None if self.split == NO_SPLIT else self.split,
            known | files,
            former,
            self.join_spellings,
            self.tiers,
        )


def _with_subsets(
    manifest: Manifest,
    annotated: list[str],
    former: Manifest | None,
    split: str | None,
    report: AnnotationReport,
) -> Manifest:
    """Choose subsets for annotated videos that have none, or report them.

    Videos that were annotated before stay without one.
    """
    before = former.videos if former else {}
    new = [id for id in annotated if id not in before or not before[id].actions]
    if new and split != NO_SPLIT:
        manifest = split_by_hash(manifest, new, report)
        manifest = for_training(manifest, new, report) if former else manifest
    for id in annotated:
        if manifest.videos[id].subset is None:
            report.keep("video without a subset (not used by train and evaluate)", id)
    return manifest


def _report_doubts(manifest: Manifest, report: AnnotationReport) -> None:
    """Report what looks like a mistake, except in published datasets."""
    from mstemba.pipeline.decode.probe import promised_duration

    if manifest.dataset in DATASETS:
        return
    unknown = (v for v in manifest.videos.values() if v.path and v.actions and not v.duration)
    durations = {}
    for video in islice(unknown, _MEASURED if manifest.time_unit == "seconds" else 0):
        assert video.path is not None
        if duration := promised_duration(video.path):
            durations[video.id] = duration
    report_doubts(manifest, durations, report)


def _check_without_annotations(videos: list[Path], given: tuple[object, ...]) -> None:
    if not videos:
        raise UsageError(
            "nothing to read: pass videos or folders with --videos, or annotations with "
            "--annotations"
        )
    options = ("classes", "time-unit", "split", "tiers", "join-spellings")
    for option, value in zip(options, given, strict=True):
        if value not in (None, False):
            raise UsageError(f"--{option} requires --annotations")


def _workspace_folder(root: str | Path) -> Path:
    """Return the folder. Raises UsageError if writing its manifest would replace a link."""
    folder = as_local(root) or Path()
    known = (folder / WORKSPACE_MARKER).is_file()
    manifest = open_workspace(folder).manifest if known else folder / "manifest.json"
    if os.path.islink(manifest):
        raise UsageError(
            f"{manifest}: a link to {real_path(manifest)}, which init does not write to; delete "
            f"the link, or run init in the workspace of that file"
        )
    return folder


def _lock(manifest: Path, on_event: EventHandler) -> EntryLock:
    """Wait until no other process writes a manifest, and keep others from it."""
    locks = StoreLocks(manifest, "writing")
    return locks.lock_store(lambda line: on_event(Event("init", line)))


@contextmanager
def _former(
    folder: Path, dataset: str | None, features: str | Path | None, on_event: EventHandler
) -> Iterator[Manifest]:
    """Load the manifest to merge into, and keep other processes from merging meanwhile."""
    workspace = open_workspace(folder)
    with _lock(workspace.manifest, on_event):
        if not os.path.lexists(workspace.manifest):
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
    folder: Path,
    manifest: Manifest,
    report: AnnotationReport,
    features: str | Path | None,
    transposed: bool | None,
    strict: bool,
    wait: EventHandler | None,
) -> InitResult:
    path, source = as_local(features), None
    if path is None and transposed is not None:
        raise UsageError("--transposed requires --features")
    if path is not None:
        source = open_features(path, manifest.videos.values(), transposed=transposed)
    # Nothing is written before everything is checked: the workspace may not exist yet.
    fingerprints = Fingerprints(Workspace(folder, folder).fingerprints)
    matched = 0 if source is None else _match_features(source, manifest, fingerprints, report)
    if strict:
        _refuse_warnings(report)
    workspace = create_workspace(folder)
    with _lock(workspace.manifest, wait) if wait else nullcontext():
        backup = _write(workspace, manifest)
    if source is not None:
        fingerprints.save()
        # Relative to the workspace if they are inside.
        path = real_path(source.root)
        inside = path.is_relative_to(real_path(workspace.root))
        name = os.path.relpath(source.root, workspace.features) if inside else str(path)
        set_current(workspace.features, name, transposed)
    return InitResult(workspace, manifest, report, backup, matched)


def _without_annotations(
    former: Manifest | None, files: dict[str, Path], dataset: str | None
) -> tuple[Manifest, AnnotationReport]:
    report = AnnotationReport()
    if former:
        return join(former, files, report), report
    videos = {id: Video(id, path, None, None) for id, path in files.items()}
    return Manifest(dataset or "videos", (), "seconds", videos), report


def _has_features(source: FeatureSource, video: Video, fingerprints: Fingerprints) -> bool:
    try:
        return source.key(video, fingerprints) is not None
    except DamagedEntry:
        return False


def _match_features(
    source: FeatureSource, manifest: Manifest, fingerprints: Fingerprints, report: AnnotationReport
) -> int:
    """Report videos without features and the reverse; return the number of videos with them.

    A store may be shared: only the videos of the manifest are looked up in it.
    """
    folder = source if isinstance(source, NpyFolder) else None
    if folder is None:
        videos = manifest.videos.values()
        ids = [video.id for video in videos if _has_features(source, video, fingerprints)]
    else:
        ids = folder.ids()
    if not ids:
        raise UsageError(
            f"{source.root}: this store has no features of any annotated video; expected "
            f"for example those of {next(iter(manifest.videos), 'VIDEO')}"
        )
    report.notes += source.notes
    found, in_seconds = set(ids), manifest.time_unit == "seconds"
    for id, video in manifest.videos.items():
        if id not in found:
            report.keep("annotated video without features", id)
        elif folder and not (video.duration or (in_seconds and folder.has_times(id))):
            report.keep("features of a video without a duration", id)
    for name in folder.unused if folder else ():
        report.keep("features without annotation (not used)", name)
    return len(ids)


def _subset(video: Video) -> str:
    return video.subset or ("without a subset" if video.actions else "not annotated")


def _check_units_by_probing(
    annotations: Path, manifest: Manifest, ids: list[str], report: AnnotationReport
) -> None:
    """Check the time unit against the durations of a few videos, if nothing else defines them."""
    from mstemba.pipeline.decode.probe import probe

    videos = (manifest.videos[id] for id in ids)
    unknown = (v for v in videos if v.path and v.actions and not v.duration)
    found = {}
    for video in islice(unknown, _PROBED):
        assert video.path is not None
        try:
            timeline = probe(video.path).timeline
        except DecodeError:
            continue  # `extract` reports files that are not videos
        is_seconds = manifest.time_unit == "seconds"
        duration = timeline.end if is_seconds else float(len(timeline.times))
        found[video.id] = replace(video, duration=duration)
    check_units(annotations, manifest.time_unit, found, report, measured=True)


def _class_names(path: Path, note: Callable[[str], None]) -> tuple[str, ...]:
    report = AnnotationReport()
    try:
        lines = read_text(path, report).splitlines()
    except ManifestError as error:
        raise UsageError(f"--classes {error}") from None
    for line in report.lines():
        note(line)
    names = [line.strip() for line in lines if line.strip()]
    if not names or len(names) > MOST_CLASSES:
        found = f"{len(names):,} lines" if names else "the file is empty"
        raise UsageError(
            f"--classes {path}: {found}; expected one class name per line, at most {MOST_CLASSES:,}"
        )
    return tuple(convert(names, list[Name], f"--classes {path}", UsageError))


def _write(workspace: Workspace, manifest: Manifest) -> Path | None:
    """Write the manifest; return where the previous one was copied to, if it was different."""
    text = manifest_json(manifest, workspace.manifest.parent)
    backup = None
    if workspace.manifest.is_file():
        previous = workspace.manifest.read_bytes()
        if previous == text.encode():
            return None
        # The previous one may have been edited by hand, or be damaged.
        backup = workspace.manifest.with_suffix(".json.bak")
        write_atomically(backup, lambda temporary: temporary.write_bytes(previous))
    write_text(workspace.manifest, text)
    return backup
