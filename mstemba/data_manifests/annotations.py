"""Read annotations as users have them on disk, and join them with the videos found.

Each form has a reader in readers/, which returns what is in the files (readers/parsed.py). Here
class names become ids, subsets are determined, and problems are reported.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

from mstemba.data_manifests.bounds import skip_impossible_times, skip_unusable_entries
from mstemba.data_manifests.class_ids import (
    ClassIds,
    describe,
    label_names,
    unify_spellings,
)
from mstemba.data_manifests.datasets import DATASETS, Dataset, load_dataset, recognise
from mstemba.data_manifests.joining import name_videos
from mstemba.data_manifests.manifest import (
    SUBSETS,
    TIME_UNITS,
    Action,
    Manifest,
    Video,
    normalise_subset,
    refuse_same_names,
)
from mstemba.data_manifests.merging import later_videos
from mstemba.data_manifests.readers import boris, dataset_files, eaf, elan, subtitles, tables
from mstemba.data_manifests.readers.json import read_json
from mstemba.data_manifests.readers.parsed import (
    DAMAGED_FILE,
    AnnotationReport,
    ParsedAnnotations,
    RawAction,
    plain_text,
    some_names,
    tier_names,
)
from mstemba.data_manifests.readers.tables import Table, files_with, find_table, has_columns
from mstemba.data_manifests.tiers import (
    check_tiers,
    ignore_tiers_without_classes,
    warn_of_transcriptions,
)
from mstemba.data_manifests.time_checks import check_units, cut_before_start
from mstemba.errors import ManifestError, UsageError
from mstemba.limits import MOST_CLASSES
from mstemba.reading.typed import shown

_Reader = Callable[[Table, ParsedAnnotations], None]

# Forms with a distinctive header; our own comes last, because its column names are common.
_FORMS: tuple[tuple[tables.Columns, _Reader], ...] = (
    (dataset_files.CHARADES_COLUMNS, dataset_files.read_charades),
    (dataset_files.TSU_COLUMNS, dataset_files.read_tsu),
    (boris.AGGREGATED_COLUMNS, boris.read_events),
    (boris.TABULAR_COLUMNS, boris.read_events),
    (tables.PLAIN_COLUMNS, tables.read_plain),
    (tables.ONE_VIDEO_COLUMNS, tables.read_plain),
)
_EXPECTED = (
    "a table with the columns video,start,end,label (and subset,duration), an export of BORIS "
    "(aggregated or tabular events) or ELAN (tab-delimited text or .eaf), subtitles (.srt, .vtt), "
    f"a label track of Audacity, or the files of {', '.join(DATASETS)}"
)
_AS_CSV = "save it as CSV"
_AS_SRT = "convert it, for example with ffmpeg -i FILE labels.srt"
_ADVICE = {
    ".boris": "in BORIS, export the events as aggregated events (CSV)",
    **dict.fromkeys((".xlsx", ".xls", ".xlsm", ".ods", ".numbers"), _AS_CSV),
    **dict.fromkeys((".docx", ".doc", ".odt", ".pdf"), "copy its table into a CSV file"),
    **dict.fromkeys((".mat", ".rds", ".rdata", ".pkl", ".parquet", ".feather"), _AS_CSV),
    **dict.fromkeys((".sqlite", ".sqlite3", ".db"), "export its table as CSV"),
    **dict.fromkeys((".ass", ".ssa", ".sub", ".sbv", ".ttml"), _AS_SRT),
    ".textgrid": "import it in ELAN and save it as .eaf",
    ".anvil": "import it in ELAN and save it as .eaf",
    ".xml": "of XML only ELAN's files (.eaf) are read; export a table as CSV",
}
# Endings of the files that are read in a folder.
_JSON_SUFFIXES = (".json", ".jsonl")
_FOLDER_SUFFIXES = tables.SUFFIXES | subtitles.SUFFIXES | {eaf.SUFFIX}
# Formats round to milliseconds, and some lengthen an action without length.
_ROUNDING = 0.0015


def read_annotations(
    path: Path,
    dataset: str | None = None,
    classes: tuple[str, ...] | None = None,
    time_unit: str | None = None,
    split: str | None = None,
    files: Mapping[str, Path] | None = None,
    former: Manifest | None = None,
    join_spellings: bool = False,
    tiers: str | Iterable[str] | None = None,
) -> tuple[Manifest, AnnotationReport]:
    """Read a file or folder of annotations into a manifest without video paths.

    Args:
        path: A file or a folder in any of the supported forms.
        dataset: Name of the dataset; those of DATASETS set class names, time unit and split.
        classes: Class names, in place of those in the files. If there are none at all, they are the
            labels in alphabetical order, or `class_0`, ... up to the highest id.
        time_unit: In place of that of the files; `seconds` if there is none at all.
        split: A split of the dataset, in place of the subsets in the files.
        files: The video files by id; annotations may name them in all ways of `VideoNames`.
        former: The manifest to merge into: it defines classes, subsets and durations that the files
            do not.
        join_spellings: Whether labels that differ in case, spaces or underscores are one class. It
            has no effect if something else defines the classes.
        tiers: Names of ELAN's tiers to read, also separated by commas; None for all.

    Returns:
        The manifest, and a report of problems in single entries.

    Raises:
        ManifestError: The annotations are missing, of an unknown form or of another dataset, or
            frames are taken for seconds.
        UsageError: The split or a tier is unknown.
    """
    report = (parsed := ParsedAnnotations(tiers=tier_names(tiers))).report
    _read(path, parsed)
    name_videos(parsed, {**dict.fromkeys(former.videos if former else ()), **(files or {})})
    for video in parsed.videos.values() if os.path.isdir(path) else ():
        video.actions = _without_duplicates(video.actions, report)
    _check_time_units(path, time_unit, parsed)
    known = _known_dataset(path, dataset, parsed, time_unit)
    if split and not known:
        raise UsageError(f"--split {split} requires --dataset, one of {', '.join(DATASETS)}")
    names = classes or parsed.classes or (known.classes if known else ())
    names = _check_labels(path, parsed, names, former, join_spellings)
    refuse_same_names(classes or (), "--classes: ", plain_text)
    ids, before = ClassIds(path, names, known, parsed), former.videos if former else {}
    videos = {
        id: _video(id, parsed, ids, _subset(id, parsed, known, split), before.get(id))
        for id in parsed.videos
    }
    unit = time_unit or parsed.time_unit or (known.time_unit if known else "seconds")
    check_units(path, unit, later_videos(videos, before), report)
    videos = skip_impossible_times(videos, names, report)
    name = known.name if known and (dataset or "").casefold() in ("", known.name) else dataset
    fps = ((known and known.fps) or parsed.fps) if unit == "frames" else None
    manifest = Manifest(name or path.stem, names, unit, videos, fps)
    _compare(None if former else known, split, manifest, report)
    return manifest, report


def _check_labels(
    path: Path,
    parsed: ParsedAnnotations,
    names: tuple[str, ...],
    former: Manifest | None,
    join_spellings: bool,
) -> tuple[str, ...]:
    """Return the class names, by default those of the labels, and report unusual tiers."""
    if names:
        ignore_tiers_without_classes(parsed, names)
    else:
        warn_of_transcriptions(parsed)
        unify_spellings(parsed, join_spellings, former.classes if former else ())
        names = label_names(parsed, former)
    if len(names) > MOST_CLASSES:
        raise ManifestError(
            f"{path}: {len(names):,} classes, expected at most {MOST_CLASSES:,}; if these are "
            f"texts and not classes, use another column, or pass --classes"
        )
    return names


def _check_time_units(path: Path, given: str | None, parsed: ParsedAnnotations) -> None:
    for unit in (given, parsed.time_unit):
        if unit not in (None, *TIME_UNITS):
            expected = ", ".join(TIME_UNITS)
            raise ManifestError(f"{path}: time unit {shown(unit)}; expected one of {expected}")
    if given == "frames" and parsed.seconds_of:
        raise ManifestError(
            f"{path}: the times of {parsed.seconds_of} are seconds; omit --time-unit frames"
        )


def _read(path: Path, parsed: ParsedAnnotations) -> None:
    """Read a file or folder with the reader for its form."""
    suffix = path.suffix.lower()
    if os.path.isdir(path):
        _read_folder(path, parsed)
    elif suffix in _ADVICE:
        raise ManifestError(_advice(path))
    elif suffix not in _FOLDER_SUFFIXES:
        read_json(path, parsed)
    elif not _read_file(path, parsed):
        table = find_table(path, parsed.report)
        found = "the file is empty"
        if table:
            found = f"found the columns {some_names((cell[:80] for cell in table.header), 20)}"
        raise ManifestError(f"{path}: {found}; expected {_EXPECTED}")
    skip_unusable_entries(parsed)
    check_tiers(parsed)
    cut_before_start(parsed)
    if not parsed.videos:
        skipped = parsed.report.lines("skipped") or ["expected at least one annotated video"]
        raise ManifestError(f"{path}: no entries; {skipped[0]}")


def _read_folder(path: Path, parsed: ParsedAnnotations) -> None:
    files = files_with(path, _FOLDER_SUFFIXES, parsed.report)
    if tsu := dataset_files.tsu_files(files):
        dataset_files.read_tsu_files(tsu, parsed)
    elif multithumos := dataset_files.multithumos_files(files):
        dataset_files.read_multithumos_files(multithumos, parsed)
    else:
        files = dataset_files.charades_files(files) or files
        parsed.file_names = _distinct_names(path, files)
        _read_files(path, files, parsed)
        for file in files_with(path, _ADVICE, parsed.report):
            parsed.report.ignore("file that is not supported", _advice(file))
        # A folder may hold JSON of any kind, such as results, next to the annotations.
        for file in files_with(path, _JSON_SUFFIXES, parsed.report):
            parsed.report.ignore("JSON in a folder (pass such a file by its name)", file.name)


def _distinct_names(folder: Path, files: list[Path]) -> dict[Path, str]:
    """Return names with folders for the files that differ from others in their folder alone."""
    names = {file: file.relative_to(folder).with_suffix("").as_posix() for file in files}
    same: dict[str, set[str]] = {}
    for file, name in names.items():
        same.setdefault(file.stem, set()).add(name)
    return {file: name for file, name in names.items() if len(same[file.stem]) > 1}


def _read_files(path: Path, files: list[Path], parsed: ParsedAnnotations) -> None:
    """Read the files of a folder; report those that are damaged or of an unknown form."""
    other, damaged = [], []
    for file in files:
        try:
            if not _read_file(file, parsed):
                other.append(file.name)
        except ManifestError as error:
            damaged.append(error)
            parsed.report.skip(DAMAGED_FILE, str(error))
    if damaged and len(damaged) + len(other) == len(files):
        raise damaged[0]
    if len(other) == len(files):
        found = f"none of {some_names(other)} is one" if files else "no file of annotations"
        if not files and (listed := files_with(path, _JSON_SUFFIXES, AnnotationReport())):
            found = f"only JSON, which is passed by the file's name, as {listed[0].name}"
        raise ManifestError(f"{path}: {found}; expected {_EXPECTED}")
    for name in other:
        parsed.report.skip("file of an unknown form", name)


def _read_file(path: Path, parsed: ParsedAnnotations) -> bool:
    """Read a table, subtitles or a file of ELAN; return False for a table of an unknown form."""
    suffix = path.suffix.lower()
    if suffix in tables.SUFFIXES:
        return _read_table(path, parsed)
    if suffix == eaf.SUFFIX:
        eaf.read_eaf(path, parsed)
    else:
        subtitles.read_subtitles(path, parsed)
    return True


def _advice(path: Path) -> str:
    suffix = path.suffix.lower()
    return f"{path}: {suffix} files are not supported; {_ADVICE[suffix]}"


def _without_duplicates(actions: list[RawAction], report: AnnotationReport) -> list[RawAction]:
    """Return the actions without those that an earlier file has, in another format."""
    # By label and start, so that each is compared with few others.
    groups: dict[tuple[int | str, float], dict[Path | None, list[RawAction]]] = {}
    kept = []
    for action in actions:
        place = action.start // _ROUNDING
        near = (groups.get((action.label, place + step), {}) for step in (-1, 0, 1))
        listed = (some for group in near for file, some in group.items() if file != action.file)
        others = (other for some in listed for other in some)
        if any(_same(action, other) for other in others):
            report.ignore(
                "action that is in another file, too", f"{shown(action.label)} {action.where}"
            )
        else:
            group = groups.setdefault((action.label, place), {})
            group.setdefault(action.file, []).append(action)
            kept.append(action)
    return kept


def _same(one: RawAction, other: RawAction) -> bool:
    spans = ((one.start, other.start), (one.end, other.end))
    return all(abs(a - b) < _ROUNDING for a, b in spans)


def _read_table(path: Path, parsed: ParsedAnnotations) -> bool:
    """Read a table and return True, or return False for an unknown form or an empty file."""
    table = find_table(path, parsed.report)
    if table is None:
        return False
    for columns, read in _FORMS:
        if whole := table.from_header(partial(has_columns, columns)):
            read(whole, parsed)
            return True
    return elan.read_export(table, parsed) or tables.read_track(table, parsed)


def _known_dataset(
    path: Path, dataset: str | None, parsed: ParsedAnnotations, time_unit: str | None
) -> Dataset | None:
    """Return the dataset of these annotations if it is one of DATASETS."""
    named = (dataset or "").casefold()
    looks = load_dataset(parsed.dataset) if parsed.dataset else recognise(parsed.videos)
    if named in DATASETS:
        known = load_dataset(named)
        if looks and looks is not known:
            raise ManifestError(
                f"{path}: these look like the annotations of {looks.title}, for example video "
                f"{next(filter(looks.owns, parsed.videos), '')}, not of {known.title}; "
                f"pass --dataset {looks.name}"
            )
        for id in parsed.videos:
            if not known.owns(id):
                parsed.report.keep(f"video id that {known.title} would not have", id)
        return known
    if parsed.dataset:
        return looks
    by_number = all(isinstance(action.label, int) for action in parsed.actions)
    if looks and by_number and not parsed.classes:
        if looks.time_unit != "seconds" and not (time_unit or parsed.time_unit):
            raise ManifestError(
                f"{path}: these look like the annotations of {looks.title}, whose times are "
                f"{looks.time_unit}: pass --dataset {looks.name} or --time-unit"
            )
        parsed.report.notes.append(
            f"these look like the annotations of {looks.title}: --dataset {looks.name} adds the "
            f"class names"
        )
    return None


def _subset(
    id: str, parsed: ParsedAnnotations, known: Dataset | None, split: str | None
) -> str | None:
    """Return the subset by the given split, from the file, or by the default split.

    The only split of a dataset overrides the file: THUMOS trains on its validation videos.
    """
    own = normalise_subset(parsed.videos[id].subset)
    rule = known.split(split) if known else None
    if known is None or rule is None:
        return own
    ruled = known.subset(id, rule)
    if split or not own:
        return ruled
    if len(known.splits) > 1 or ruled in (None, own):
        return own
    parsed.report.keep(f"subset changed to that of {known.title}", f"{own!r} to {ruled!r} of {id}")
    return ruled


def _video(
    id: str, parsed: ParsedAnnotations, ids: ClassIds, subset: str | None, before: Video | None
) -> Video:
    video, report = parsed.videos[id], parsed.report
    duration, until = video.duration, video.annotated_until
    if before:
        subset, duration = subset or before.subset, before.duration or duration
        if until in (None, before.annotated_until):  # 8 and 8.0 are equal, and not in JSON
            until = before.annotated_until
    if before and video.lacks_actions:  # would delete the former actions
        report.skip("entry without a list of actions", id)
    actions: list[Action] = []
    for raw in video.actions:
        class_id = ids(raw)
        if class_id is None:
            continue
        actions.append(Action(class_id, raw.start, raw.end))
        if raw.end < raw.start:
            report.keep("action that ends before it starts", describe(raw))
        elif raw.end == raw.start:
            report.keep("action without length", describe(raw))
        if duration is not None and raw.end > duration:
            report.keep("action that ends after the video", describe(raw))
        if until is not None and raw.start >= until:
            report.keep("action after annotated_until, which does not count", describe(raw))
    if not actions:
        report.keep("video without actions", id)
    if subset not in (None, *SUBSETS):
        kind = f"unknown subset (not used; expected {', '.join(SUBSETS)})"
        report.keep(kind, f"{subset!r} of {id!r}")
    return Video(id, None, subset, duration, tuple(actions), until)


def _compare(
    known: Dataset | None, split: str | None, read: Manifest, report: AnnotationReport
) -> None:
    """Note differences in classes and number of videos from the published dataset, if it is one."""
    if known is None:
        return
    if read.classes != known.classes:
        report.notes.append(f"the class names differ from those of {known.title}")
    rules = [known.splits[split]] if split else list(known.splits.values())
    expected = [dict(rule.videos) for rule in rules] or [dict(known.videos)]
    counts = dict(Counter(video.subset for video in read.videos.values() if video.subset))
    if counts not in expected:
        report.notes.append(
            f"{known.title} has {_counted(expected[0])} videos, found {_counted(counts)}"
        )


def _counted(counts: dict[str, int]) -> str:
    return " and ".join(f"{counts[name]} {name}" for name in sorted(counts, reverse=True)) or "none"
