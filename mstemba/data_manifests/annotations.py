"""Reading annotations as users have them on disk, and joining them with the videos found.

Read are the JSON forms (json_forms.py), the files of Charades, TSU and MultiTHUMOS as their authors
hand them out (native.py), tables of users' own data (tables.py), exports of BORIS and ELAN, and
ELAN's own files (eaf.py); a file, or a folder of files. A reader hands over what it found
(reading.py); here class names become ids, subsets are told, and what is odd is counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median

from mstemba.data_manifests.class_ids import ClassIds, describe, label_names
from mstemba.data_manifests.datasets import DATASETS, Dataset, load_dataset, recognise
from mstemba.data_manifests.manifest import TIME_UNITS, Action, Manifest, Video, subset_name
from mstemba.data_manifests.readers import boris, eaf, elan, tables
from mstemba.data_manifests.readers import dataset_files as native
from mstemba.data_manifests.readers.json import read_json
from mstemba.data_manifests.readers.parsed import (
    ParsedAnnotations,
    ParsedVideo,
    RawAction,
    Report,
    example_files,
)
from mstemba.data_manifests.readers.tables import Table, find_table, read_table, tables_below
from mstemba.errors import ManifestError, UsageError

__all__ = ["Report", "check_units", "join", "read_annotations"]

_Reader = Callable[[Table, ParsedAnnotations, Report], None]

# Forms that are told by their header; the plain one last, for its names are the most common.
_FORMS: tuple[tuple[Callable[[tuple[str, ...]], bool], _Reader], ...] = (
    (native.is_charades, native.read_charades),
    (native.is_tsu, native.read_tsu),
    (boris.is_aggregated, boris.read_aggregated),
    (boris.is_tabular, boris.read_tabular),
    (tables.is_plain, tables.read_plain),
)
_EXPECTED = (
    "a table with the columns video,start,end,label (and subset,duration), an export of BORIS "
    "(aggregated or tabular events) or of ELAN (tab-delimited text, or .eaf), or the files of "
    f"{', '.join(DATASETS)}"
)
_ADVICE = {
    ".boris": "in BORIS, export the events as aggregated events (CSV)",
    ".xlsx": "save it as CSV",
    ".xls": "save it as CSV",
    ".ods": "save it as CSV",
}
# Actions that end after so many durations are in another unit. In the published files the median
# video's last action ends with the video, the worst one's after six durations.
_IMPOSSIBLE = 2.0


def read_annotations(
    path: Path,
    dataset: str | None = None,
    classes: tuple[str, ...] | None = None,
    time_unit: str | None = None,
    split: str | None = None,
    files: Mapping[str, Path] | None = None,
    former: Manifest | None = None,
) -> tuple[Manifest, Report]:
    """Read a file or folder of annotations into a manifest without video paths.

    Rows that name one of `files`, the videos that are there by id, are of that video. `former` is
    the manifest that they will be merged into: where the files do not, it says what numbers mean,
    and the videos' subsets and durations.
    `dataset` is any name; those of DATASETS bring class names, time unit and split. `classes` and
    `time_unit` are used in place of the files' own, `split` in place of their subsets. Where
    nothing names the classes, they are the labels in order of the alphabet, or `class_0`... up to
    the highest id; where nothing says the unit, times are seconds.
    Raises ManifestError when the whole cannot be right: no file, another form, another dataset's,
    frames for seconds; UsageError for an unknown split. Odd entries are reported.
    """
    if time_unit not in (None, *TIME_UNITS):
        raise ManifestError(
            f"{path}: time unit {time_unit!r}; expected one of {', '.join(TIME_UNITS)}"
        )
    found, report = ParsedAnnotations(known=_names(files or {})), Report()
    _read(path, found, report)
    known = _known(path, dataset, found, time_unit, report)
    if split and not known:
        raise UsageError(f"split {split!r}: only {', '.join(DATASETS)} have some; name the dataset")
    names = classes or found.classes or (known.classes if known else label_names(found, former))
    ids = ClassIds(path, names, known, found, report)
    before = former.videos if former else {}
    videos = {
        id: _video(id, entry, ids, _subset(id, entry, known, split, report), before.get(id), report)
        for id, entry in found.entries.items()
    }
    unit = time_unit or found.time_unit or (known.time_unit if known else "seconds")
    check_units(path, unit, videos, report)
    name = known.name if known and (dataset or "").casefold() in ("", known.name) else dataset
    fps = known.fps if known and unit == "frames" else None
    manifest = Manifest(name or path.stem, names, unit, videos, fps)
    if known and not former:
        _compare(known, split, manifest, report)
    return manifest, report


def _names(files: Mapping[str, Path]) -> dict[str, str]:
    """Ids by what a row may call a video: its file's name if no other has it, or the id itself."""
    counts = Counter(file.name for file in files.values())
    by_file = {file.name: id for id, file in files.items() if counts[file.name] == 1}
    return {id: id for id in files} | by_file


def _read(path: Path, found: ParsedAnnotations, report: Report) -> None:
    """Read what is there, by the reader for it."""
    suffix = path.suffix.lower()
    if path.is_dir():
        _read_folder(path, found, report)
    elif suffix in tables.SUFFIXES:
        if not _read_table(path, found, report):
            header = ", ".join(read_table(path).header)  # which refuses an empty file
            raise ManifestError(f"{path}: found the columns {header}; expected {_EXPECTED}")
    elif suffix == eaf.SUFFIX:
        eaf.read_eaf(path, found, report)
    elif suffix in _ADVICE:
        raise ManifestError(f"{path}: {suffix} files are not read; {_ADVICE[suffix]}")
    else:
        read_json(path, found, report)
    if not found.entries:
        raise ManifestError(f"{path}: no entries; expected at least one annotated video")


def _read_folder(path: Path, found: ParsedAnnotations, report: Report) -> None:
    files = tables_below(path)
    if tsu := native.tsu_files(files):
        native.read_tsu_files(tsu, found, report)
    elif multithumos := native.multithumos_files(files):
        native.read_multithumos_files(multithumos, found, report)
    else:
        files = native.charades_files(files) or files
        of_elan = eaf.eaf_files(path)
        for file in of_elan:
            eaf.read_eaf(file, found, report)
        other = [file for file in files if not _read_table(file, found, report)]
        if len(other) == len(files) and not of_elan:
            said = f"none of {example_files(files)} is one" if files else "no .csv, .tsv or .txt"
            raise ManifestError(f"{path}: {said}; expected {_EXPECTED}")
        for file in other:
            report.count(report.left_out, "file of an unknown form", file.name)
        for entry in found.entries.values():
            entry.actions = _once(entry.actions, report)


def _once(actions: list[RawAction], report: Report) -> list[RawAction]:
    """The actions without those that another file has said, as two formats of one detection do."""
    said: dict[int | str, list[RawAction]] = {}
    kept = []
    for action in actions:
        same = said.setdefault(action.label, [])
        if any(_same(action, other) for other in same if other.file != action.file):
            kind = "action that another file has, too"
            report.count(report.passed_over, kind, f"{action.label!r} {action.where}")
        else:
            same.append(action)
            kept.append(action)
    return kept


def _same(one: RawAction, other: RawAction) -> bool:
    # Formats round to milliseconds, and some know no action without length.
    spans = ((one.start, other.start), (one.end, other.end))
    return all(abs(a - b) < 0.0015 for a, b in spans)


def _read_table(path: Path, found: ParsedAnnotations, report: Report) -> bool:
    """Read a table if its form is known; an empty file has none."""
    table = find_table(path)
    if table is None:
        return False
    for is_form, read in _FORMS:
        if whole := table.from_header(is_form):
            read(whole, found, report)
            return True
    return elan.read_export(table, found, report)


def _known(
    path: Path, dataset: str | None, found: ParsedAnnotations, time_unit: str | None, report: Report
) -> Dataset | None:
    """The dataset that these are the annotations of, if it is one of DATASETS."""
    named = (dataset or "").casefold()
    looks = load_dataset(found.dataset) if found.dataset else recognise(found.entries)
    if named in DATASETS:
        known = load_dataset(named)
        if looks and looks is not known:
            raise ManifestError(
                f"{path}: these look like the annotations of {looks.title}, such as video "
                f"{next(filter(looks.owns, found.entries), '')}, not of {known.title}; "
                f"say --dataset {looks.name}"
            )
        for id in found.entries:
            if not known.owns(id):
                report.count(report.kept, f"video id of another form than {known.title}'s", id)
        return known
    if found.dataset:
        return looks
    by_number = all(isinstance(a.label, int) for e in found.entries.values() for a in e.actions)
    if looks and by_number and not found.classes:
        if looks.time_unit != "seconds" and not (time_unit or found.time_unit):
            raise ManifestError(
                f"{path}: these look like the annotations of {looks.title}, whose times are "
                f"{looks.time_unit}: say --dataset {looks.name}, or name the --time-unit"
            )
        report.notes.append(
            f"these look like the annotations of {looks.title}: --dataset {looks.name} would bring "
            f"the class names"
        )
    return None


def _subset(
    id: str, entry: ParsedVideo, known: Dataset | None, split: str | None, report: Report
) -> str | None:
    """The video's subset: by the split that was asked for, the file's own, or the usual split.

    A dataset's only split comes before the file's own: THUMOS' validation videos are for training.
    """
    own = subset_name(entry.subset)
    rule = known.split(split) if known else None
    if known is None or rule is None:
        return own
    ruled = known.subset(id, rule)
    if split or not own:
        return ruled
    if len(known.splits) > 1 or ruled in (None, own):
        return own
    example = f"{own!r} to {ruled!r} of {id}"
    report.count(report.kept, f"subset changed to what {known.title} has it for", example)
    return ruled


def _video(
    id: str,
    entry: ParsedVideo,
    ids: ClassIds,
    subset: str | None,
    before: Video | None,
    report: Report,
) -> Video:
    duration = entry.duration
    if before:
        subset, duration = subset or before.subset, before.duration or duration
    if before and entry.ignore_events:  # what is there would be replaced by nothing
        report.count(report.left_out, "entry that does not say its actions", id)
    actions: list[Action] = []
    for labelled in entry.actions:
        number = ids(labelled)
        if number is None:
            continue
        action = Action(number, labelled.start, labelled.end)
        actions.append(action)
        if action.end < action.start:
            report.count(report.kept, "action that ends before it starts", describe(labelled))
        elif action.end == action.start:
            report.count(report.kept, "action without length", describe(labelled))
        if duration is not None and action.end > duration:
            report.count(report.kept, "action that ends past the video's end", describe(labelled))
    if not actions:
        report.count(report.kept, "video without actions", id)
    if subset is None:
        report.count(report.kept, "video without a subset", id)
    return Video(id, None, subset, duration, tuple(actions))


def check_units(path: Path, unit: str, videos: dict[str, Video], report: Report) -> None:
    """Raise ManifestError for seconds that end far beyond the durations: they are frames."""
    ends = {
        id: max(action.end for action in video.actions) / video.duration
        for id, video in videos.items()
        if video.duration and video.actions
    }
    if not ends or median(ends.values()) <= _IMPOSSIBLE:
        return
    if unit == "frames":
        report.notes.append("the durations look like seconds; they should count frames, too")
        return
    beyond = [id for id, end in ends.items() if end > _IMPOSSIBLE]
    video = videos[beyond[0]]
    raise ManifestError(
        f"{path}: in {len(beyond)} of {len(ends)} videos actions end far beyond the duration, "
        f"for example at {max(a.end for a in video.actions):g} in {video.id} of "
        f"{video.duration:g} s; these look like frames: say --time-unit frames"
    )


def _compare(known: Dataset, split: str | None, read: Manifest, report: Report) -> None:
    """Note where there are other classes, or more or fewer videos, than the dataset has."""
    if read.classes != known.classes:
        report.notes.append(f"the class names are not those that are known of {known.title}")
    rules = [known.splits[split]] if split else list(known.splits.values())
    expected = [dict(rule.videos) for rule in rules] or [dict(known.videos)]
    counts = dict(Counter(video.subset for video in read.videos.values() if video.subset))
    if counts not in expected:
        report.notes.append(
            f"{known.title} has {_counted(expected[0])} videos, here are {_counted(counts)}"
        )


def _counted(counts: dict[str, int]) -> str:
    return " and ".join(f"{counts[name]} {name}" for name in sorted(counts, reverse=True)) or "none"


def join(annotations: Manifest, files: dict[str, Path], report: Report) -> Manifest:
    """Give each annotated video its file; videos without annotation join with no subset."""
    videos = {
        id: replace(video, path=files.get(id, video.path))
        for id, video in annotations.videos.items()
    }
    for id, video in videos.items():
        former = annotations.videos[id].path
        if video.path and former and video.path.resolve() != former.resolve():
            report.count(report.kept, "video whose file is another one now", str(video.path))
        if video.path is None:
            report.count(report.kept, "annotated video without a file", id)
    for id, path in files.items():
        if id not in videos:
            report.count(report.kept, "video file without annotation", str(path))
            videos[id] = Video(id, path, None, None)
    return replace(annotations, videos=videos)
