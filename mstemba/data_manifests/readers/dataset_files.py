"""Read the annotation files of Charades, TSU and MultiTHUMOS as their authors publish them."""

from __future__ import annotations

import re
from pathlib import Path

from mstemba.data_manifests.datasets import load_dataset
from mstemba.data_manifests.readers.parsed import (
    DAMAGED_FILE,
    ParsedAnnotations,
    RawAction,
    some_names,
)
from mstemba.data_manifests.readers.tables import (
    Row,
    Table,
    add_action,
    find_table,
    malformed,
    parse_duration,
    rows_below_header,
)
from mstemba.data_manifests.readers.text import check_entries, read_text
from mstemba.errors import ManifestError
from mstemba.reading.typed import shown

_CHARADES_FILES = ("Charades_v1_train.csv", "Charades_v1_test.csv")
_CHARADES_CLASSES = "Charades_v1_classes.txt"
_CHARADES_ACTION = re.compile(r"c(\d{3}) (\S+) (\S+)", re.ASCII)
_TSU = ("event", "start_frame", "end_frame")
TSU_COLUMNS = tuple((name,) for name in _TSU)
CHARADES_COLUMNS = (("id",), ("actions",), ("length",))


def charades_files(files: list[Path]) -> list[Path]:
    """Return the annotation files of Charades."""
    return [file for file in files if file.name in _CHARADES_FILES]


def tsu_files(files: list[Path]) -> list[Path]:
    """Return the files with the name of a TSU video: P02/P02T01C06.csv, ..."""
    tsu = load_dataset("tsu")
    return [file for file in files if file.suffix.lower() == ".csv" and tsu.owns(file.stem)]


def multithumos_files(files: list[Path]) -> list[Path]:
    """Return the files with the name of a MultiTHUMOS class: annotations/BaseballPitch.txt, ..."""
    classes = load_dataset("multithumos").classes
    return [file for file in files if file.suffix.lower() == ".txt" and file.stem in classes]


def read_charades(table: Table, parsed: ParsedAnnotations) -> None:
    """Read Charades_v1_train.csv or Charades_v1_test.csv; the name determines the subset.

    A row is a video; `actions` is "c092 11.90 21.20;c147 0.00 12.60", `length` is in seconds.
    Charades_v1_classes.txt in the same folder lists the classes, if it exists.
    """
    parsed.dataset, parsed.time_unit = "charades", "seconds"
    names = table.path.with_name(_CHARADES_CLASSES)
    if names.is_file():
        parsed.classes = _charades_classes(names, parsed)
    parts = re.split(r"[^a-z]+", table.path.stem.lower())
    subset = next((part for part in parts if part in ("train", "test")), None)
    id, actions, length = (table.column(*names) for names in CHARADES_COLUMNS)
    for row in rows_below_header(table, parsed):
        if not row[id]:
            malformed(parsed, row)
            continue
        video = parsed.new_video(row[id], row.where)
        if video is None:
            continue
        video.subset = subset
        video.duration = parse_duration(row[length], row.decimal_comma)
        if video.duration is None:
            parsed.report.skip("malformed duration", f"{shown(row[length])} {row.where}")
        for text in filter(None, row[actions].split(";")):
            found = _CHARADES_ACTION.fullmatch(text.strip())
            try:
                if found is None:
                    raise ValueError
                times = row.time(found[2]), row.time(found[3])
                video.actions.append(RawAction(int(found[1]), *times, row.where))
            except ValueError:
                parsed.report.skip("malformed action", f"{shown(text)} {row.where}")


def _charades_classes(path: Path, parsed: ParsedAnnotations) -> tuple[str, ...]:
    """Parse lines such as `c000 Holding some clothes`, in the order of the ids."""
    lines = [line.strip() for line in read_text(path, parsed.report).splitlines()]
    names: list[str] = []
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        if not line.startswith(f"c{len(names):03d} "):
            raise ManifestError(
                f"{path}, line {number}: found {shown(line)}, expected class c{len(names):03d} "
                f"and its name"
            )
        names.append(line.split(maxsplit=1)[1])
    return tuple(names)


def read_tsu(table: Table, parsed: ParsedAnnotations) -> None:
    """Read `event,start_frame,end_frame` from a file named after its video."""
    parsed.dataset, parsed.time_unit = "tsu", "frames"
    event, start, end = (table.column(*names) for names in TSU_COLUMNS)
    id = table.path.stem
    if parsed.new_video(id, f"in {table.path}"):
        for row in rows_below_header(table, parsed):
            add_action(parsed, id, row, row[event], row[start], row[end])


def read_tsu_files(files: list[Path], parsed: ParsedAnnotations) -> None:
    """Read annotations of TSU, one file per video."""
    for file in files:
        try:
            table = find_table(file, parsed.report)
        except ManifestError as error:
            parsed.report.skip(DAMAGED_FILE, str(error))
            continue
        if table is None:
            parsed.report.skip("empty file", file.name)
        elif all(table.column(*names) is not None for names in TSU_COLUMNS):
            read_tsu(table, parsed)
        else:
            example = f"{shown(','.join(table.header))} in {file.name}, expected {','.join(_TSU)}"
            parsed.report.skip("file with other columns", example)
    if not parsed.videos:
        raise ManifestError(
            f"{some_names(file.name for file in files)}: named like annotations of TSU, but none "
            f"has the columns {', '.join(_TSU)}"
        )


def read_multithumos_files(files: list[Path], parsed: ParsedAnnotations) -> None:
    """Read one file per class, with lines like `video_validation_0000051 67.50 75.90`."""
    parsed.dataset, parsed.time_unit = "multithumos", "seconds"
    for file in files:
        try:
            text = read_text(file, parsed.report)
            check_entries(file, text, text.count("\n"), 3 * text.count("\n"))
        except ManifestError as error:
            parsed.report.skip(DAMAGED_FILE, str(error))
            continue
        for number, line in enumerate(text.splitlines(), 1):
            row = Row(tuple(line.split(maxsplit=3)), f"in {file.name}, line {number}")
            if len(row.cells) == 3:
                add_action(parsed, row[0], row, file.stem, row[1], row[2])
            elif row.cells:
                malformed(parsed, row)
    classes = load_dataset("multithumos").classes
    if missing := set(classes) - {file.stem for file in files}:
        parsed.report.notes.append(
            f"{len(missing)} of the {len(classes)} classes have no file, for example "
            f"{min(missing)}.txt"
        )
