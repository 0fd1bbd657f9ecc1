"""Reading annotation files as the field publishes them, and joining them with the videos found.

Three JSON forms are read: {"classes", "time_unit", "videos": {id: {subset, duration, actions}}},
the same entries at the top level (Charades, TSU and MultiTHUMOS as published), and ActivityNet's
{"database": {id: {subset, duration, annotations: [{label, segment}]}}}.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mstemba.data_manifests.manifest import (
    TIME_UNITS,
    Action,
    Manifest,
    Video,
    parse_action,
    read_json_object,
    subset_name,
)
from mstemba.errors import ManifestError


@dataclass
class Report:
    """What was odd, counted by kind, with the first example of each."""

    kept: Counter[str] = field(default_factory=Counter)
    """Odd, and in the manifest as it is."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Not usable, and not in the manifest."""
    examples: dict[str, str] = field(default_factory=dict)

    def count(self, table: Counter[str], kind: str, example: str) -> None:
        table[kind] += 1
        self.examples.setdefault(kind, example)

    def lines(self) -> list[str]:
        tables = ((self.kept, "kept"), (self.left_out, "left out"))
        return [
            f"{kind}: {count} {fate}, for example {self.examples[kind]}"
            for table, fate in tables
            for kind, count in table.items()
        ]


def read_annotations(
    path: Path, classes: tuple[str, ...] | None = None, time_unit: str | None = None
) -> tuple[Manifest, Report]:
    """Read an annotation file into a manifest without video paths.

    `classes` and `time_unit` are used in place of the file's own. Where there are none, classes are
    named `class_0`... up to the highest id, and times are seconds.
    Raises ManifestError when the file as a whole cannot be read; odd entries are reported.
    """
    data = read_json_object(path)
    unit = time_unit or data.get("time_unit", "seconds")
    if unit not in TIME_UNITS:
        raise ManifestError(f"{path}: time unit {unit!r}; expected one of {', '.join(TIME_UNITS)}")
    names: tuple[str, ...] | None
    if isinstance(data.get("database"), dict):
        entries, names = _from_activitynet(path, data["database"], classes)
    else:
        entries = data["videos"] if isinstance(data.get("videos"), dict) else data
        names = classes or (
            tuple(data["classes"]) if isinstance(data.get("classes"), list) else None
        )
    odd = [id for id, entry in entries.items() if not isinstance(entry, dict)]
    if odd or not entries:
        found = f"{odd[0]!r} is not an entry" if odd else "no entries"
        raise ManifestError(
            f"{path}: {found}; expected {{id: {{subset, duration, actions}}}}, "
            f'{{"classes", "videos"}} or {{"database"}}'
        )
    if names is None:
        names = tuple(f"class_{i}" for i in range(_highest_class(entries) + 1))
    report = Report()
    videos = {id: _read_entry(id, entry, len(names), report) for id, entry in entries.items()}
    return Manifest(path.stem, tuple(map(str, names)), unit, videos), report


def _from_activitynet(
    path: Path, database: dict[str, Any], classes: tuple[str, ...] | None
) -> tuple[dict[str, Any], tuple[str, ...]]:
    try:
        labels = sorted(
            {
                label
                for e in database.values()
                for a in _list(e, "annotations")
                if (label := _label(a))
            }
        )
        names = classes or tuple(labels)
        ids = {name: number for number, name in enumerate(names)}
        entries = {
            id: {
                "subset": entry.get("subset"),
                "duration": entry.get("duration"),
                # A label outside the given classes becomes -1, which is reported as unknown.
                "actions": [
                    [ids.get(str(_label(a)), -1), *a["segment"]]
                    if _label(a) and isinstance(a.get("segment"), list)
                    else a
                    for a in _list(entry, "annotations")
                ],
            }
            for id, entry in database.items()
        }
    except (AttributeError, KeyError, TypeError) as error:
        raise ManifestError(f"{path}: not ActivityNet's form: {error!r}") from None
    return entries, names


def _label(annotation: Any) -> str | None:
    label = annotation.get("label") if isinstance(annotation, dict) else None
    return label if isinstance(label, str) else None


def _list(entry: dict[str, Any], name: str) -> list[Any]:
    listed = entry.get(name, [])
    return listed if isinstance(listed, list) else [listed]


def _highest_class(entries: dict[str, Any]) -> int:
    ids = [
        item[0]
        for entry in entries.values()
        for item in _list(entry, "actions")
        if isinstance(item, list) and item
    ]
    return max((id for id in ids if isinstance(id, int)), default=-1)


def _read_entry(id: str, entry: dict[str, Any], classes: int, report: Report) -> Video:
    duration = entry.get("duration")
    if duration is not None and (
        isinstance(duration, bool) or not isinstance(duration, (int, float)) or not duration >= 0
    ):
        report.count(report.left_out, "malformed duration", f"{duration!r} in {id}")
        duration = None
    actions: list[Action] = []
    for item in _list(entry, "actions"):
        example = f"{item!r} in {id}"
        try:
            action = parse_action(item)
        except ValueError:
            report.count(report.left_out, "malformed action", example)
            continue
        if not 0 <= action.class_id < classes:
            report.count(report.left_out, f"class id outside 0 to {classes - 1}", example)
            continue
        actions.append(action)
        if action.end < action.start:
            report.count(report.kept, "action that ends before it starts", example)
        elif action.end == action.start:
            report.count(report.kept, "action without length", example)
        if duration is not None and action.end > duration:
            report.count(report.kept, "action that ends past the video's end", example)
    if not actions:
        report.count(report.kept, "video without actions", id)
    return Video(id, None, subset_name(entry.get("subset")), duration, tuple(actions))


def join(annotations: Manifest, files: dict[str, Path], report: Report) -> Manifest:
    """Give each annotated video its file; videos without annotation join with no subset."""
    videos = {id: replace(video, path=files.get(id)) for id, video in annotations.videos.items()}
    for id, video in videos.items():
        if video.path is None:
            report.count(report.kept, "annotated video without a file", id)
    for id, path in files.items():
        if id not in videos:
            report.count(report.kept, "video file without annotation", str(path))
            videos[id] = Video(id, path, None, None)
    return replace(annotations, videos=videos)
