"""Print progress while a stage runs, and its result."""

from __future__ import annotations

import math
import sys
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from mstemba.data_manifests.readers.parsed import some_names
from mstemba.errors import SomeFailed
from mstemba.pipeline.distributed import is_first
from mstemba.pipeline.progress import Event, in_words, one_line
from mstemba.text_table import format_table
from mstemba.wording import counted

if TYPE_CHECKING:
    from mstemba.data_manifests.overview import ClassCounts
    from mstemba.pipeline.demo import DemoResult
    from mstemba.pipeline.detect.export import ExportResult
    from mstemba.pipeline.detect.stage import DetectResult
    from mstemba.pipeline.evaluate.result import Evaluation
    from mstemba.pipeline.extract.jobs import ExtractResult
    from mstemba.pipeline.features.import_npy import ImportResult
    from mstemba.pipeline.init import InitResult
    from mstemba.pipeline.outputs import Detection
    from mstemba.pipeline.report.stage import Report
    from mstemba.pipeline.train.stage import TrainResult

# Seconds between two lines of progress where there is no terminal.
_SECONDS_PER_LINE = 10.0
# Of more classes than this, `init` shows the most and the least frequent ones.
_MOST_CLASSES = 20
_VERIFIED = {
    "features": ("array of features", "arrays of features"),
    "weights": ("file of weights", "files of weights"),
    "scores": ("file of scores", "files of scores"),
}
_NUMBERS = {
    "width", "input", "size", "score", "steps", "seconds", "parameters", "mAP %", "AP %",
    "labelled rows", "actions", "frames", "videos",
}  # fmt: skip


class _RichConsole(RichConsole):
    def on_broken_pipe(self) -> None:
        raise  # the BrokenPipeError, which rich would turn into SystemExit(1)


class Console:
    """Prints events and results: a bar on a terminal, plain lines elsewhere.

    Progress and warnings go to standard error, results to standard output. Names are printed
    literally, never as markup.
    """

    def __init__(self, quiet: bool = False) -> None:
        self._mute = not is_first()  # of several processes, one prints
        quiet = quiet or self._mute
        self._quiet = quiet
        console = partial(_RichConsole, highlight=False, markup=False, emoji=False, soft_wrap=True)
        self._out = console(quiet=quiet)
        # A pipe or a file has no width: tables are not folded for it.
        self._width = self._out.width if _is_terminal(sys.stdout) else None
        self._err = console(stderr=True)
        self._bar: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._printed: dict[str, float] = {}
        """Time of the last line of progress by stage."""
        self._told: set[tuple[str | None, str]] = set()
        """Failures that are printed: video and reason."""

    def __enter__(self) -> Console:
        if not self._quiet and _is_terminal(sys.stderr):
            self._bar = Progress(
                TextColumn("{task.fields[stage]}"),
                BarColumn(bar_width=24),
                TextColumn("{task.percentage:>3.0f} %"),
                # A name may look like markup.
                TextColumn("{task.description}", markup=False),
                console=self._err,
                transient=True,
            )
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop_bar()

    def _stop_bar(self) -> None:
        if self._bar:
            self._bar.stop()
            self._bar = None

    def __call__(self, event: Event) -> None:
        """Print an event of a stage."""
        if self._mute:
            return
        if event.total is not None:
            self._progress(event)
        elif event.failed:
            self._say(f"failed: {event.video}: {event.message}")
            self._told.add((event.video, event.message))
        elif event.warning:
            self._say(f"warning: {event.message}")
        elif not self._quiet:
            self._say(event.message)

    def _progress(self, event: Event) -> None:
        left = "" if event.eta is None else f", {in_words(event.eta)} left"
        if self._bar:
            if event.stage not in self._tasks:
                self._tasks[event.stage] = self._bar.add_task("", stage=event.stage)
            self._bar.update(
                self._tasks[event.stage],
                # The total of the stage may be zero.
                completed=100 * (event.share or 0.0),
                total=100,
                description=one_line(event.message + left),
            )
        # At 0 % nothing is known yet, and after 100 % comes the result.
        elif not self._quiet and 0 < (event.share or 0.0) < 1 and self._is_due(event.stage):
            self._say(f"{event.stage} {100 * (event.share or 0.0):.0f} %: {event.message}{left}")

    def _is_due(self, stage: str) -> bool:
        """Return whether the next line of progress of a stage may be printed."""
        now = time.monotonic()
        if now - self._printed.get(stage, -math.inf) <= _SECONDS_PER_LINE:
            return False
        self._printed[stage] = now
        return True

    def _line(self, text: str) -> None:
        self._stop_bar()
        self._out.print(one_line(text))

    def _say(self, text: str) -> None:
        """Print a line on standard error, above the bar if there is one."""
        self._err.print(one_line(text))

    def _warn_of(self, ids: list[str], one: str, what: str) -> None:
        if ids:
            self._say(f"warning: {counted(len(ids), one)} {what}, for example {ids[0]}")

    def _failures(self, failed: dict[str, str], done: int) -> None:
        """Raise SomeFailed for failed videos, which sets the exit code to 1.

        Lists those that were not listed when they failed.
        """
        if failed:
            self._stop_bar()
            for id, reason in failed.items():
                if (id, reason) not in self._told:
                    self._say(f"failed: {id}: {reason}")
            if done:
                count = f"{len(failed)} of {len(failed) + done} videos failed"
                raise SomeFailed(f"{count} ({some_names(failed)}), the rest is done")
            every_one = f"all {len(failed)} videos" if len(failed) > 1 else "the only video"
            raise SomeFailed(f"{every_one} failed")

    def init(self, result: InitResult) -> None:
        manifest = result.manifest
        subsets, actions = result.subsets, result.actions
        total = sum(actions.values())
        time = f"{result.labelled_time:.0f} frames"
        if manifest.time_unit == "seconds":
            time = in_words(result.labelled_time)
        have = f"{len(manifest.videos) - result.without_file} with a file"
        if result.features:
            have = f"{result.features} with features"
        videos = counted(len(manifest.videos), "video")
        self._line(
            f"{result.workspace.manifest}: {videos} ({have}), "
            f"{counted(len(manifest.classes), 'class')}, {counted(total, 'action')}, "
            f"{time} labelled"
        )
        by_subset = (
            f"{name} {counted(count, 'video')}, {counted(actions[name], 'action')}"
            for name, count in subsets.items()
        )
        self._line("; ".join(by_subset))
        self._class_counts(result.classes, manifest.time_unit)
        for line in (*result.report.notes, *result.report.lines("joined")):
            self._line(line)
        for line in result.report.warnings():
            self._say(f"warning: {line}")
        if result.backup:
            self._line(f"the previous manifest was different and is kept as {result.backup}")
        if count := result.report.skipped.total():
            raise SomeFailed(f"{counted(count, 'annotation')} skipped; see the warnings")

    def _class_counts(self, classes: list[ClassCounts], unit: str) -> None:
        """Print what there is of every class, or of the most and the least frequent ones."""
        ranked = sorted(classes, key=lambda counts: -counts.actions)
        hidden = len(ranked) - _MOST_CLASSES if len(ranked) > _MOST_CLASSES + 1 else 0
        rows = [_class_row(counts) for counts in ranked]
        if hidden:
            half = _MOST_CLASSES // 2
            rows[half:-half] = [(f"({hidden} more; --json lists all)", "", "", "")]
        if rows:
            self._table("", ("class", "actions", unit, "videos"), rows)

    def extract(self, result: ExtractResult) -> None:
        rate = f", {result.frames / result.seconds:.0f} frames/s" if result.frames else ""
        self._line(
            f"{result.store}: {len(result.made)} extracted, {len(result.cached)} cached, "
            f"{len(result.failed)} failed, {result.seconds:.1f} s{rate}"
        )
        self._warn_of(result.without_file, "video", "of the manifest without a file")
        self._failures(result.failed, len(result.made) + len(result.cached))

    def import_features(self, result: ImportResult) -> None:
        self._line(
            f"{result.store}: {len(result.made)} imported, {len(result.cached)} cached, "
            f"{len(result.failed)} failed, {counted(result.rows, 'row')}, {result.seconds:.1f} s"
        )
        self._warn_of(result.missing, "video", "of the manifest without features in the folder")
        self._warn_of(result.unknown, "file", "of unknown videos skipped")
        self._failures(result.failed, len(result.made) + len(result.cached))

    def train(self, result: TrainResult) -> None:
        how = "cached" if result.cached else f"trained in {result.seconds:.0f} s"
        score = "" if result.score is None else f", validation mAP {result.score:.2f}"
        self._line(
            f"{result.run / result.checkpoint}: {how}, {counted(result.steps, 'step')}{score}"
        )

    def evaluate(self, result: Evaluation) -> None:
        from mstemba.pipeline.evaluate.summary import summary_rows

        self._stop_bar()
        dense = not math.isnan(result.map)
        self._table("", ("measure", "mAP %", ""), summary_rows(result))
        self._out.print()
        heads = ("class", "AP %", "labelled rows" if dense else "actions", "")
        block = "#" if self._out.options.ascii_only else "█"
        rows = []
        for name, columns in result.classes.items():
            ap = columns["ap" if dense else "detection_ap"]
            bar = "" if ap is None else block * round(ap / 5)
            if name in result.untrained:
                bar = f"{bar} not in training".strip()
            shown = "-" if ap is None else f"{ap:.2f}"
            rows.append((name, shown, str(result.positives[name]), bar))
        self._table("", heads, rows)
        self._out.print()
        final = result.map if dense else result.metrics["detection"]["average_map"]
        measured = f", {counted(result.rows, 'row')}" if dense else ""
        self._line(
            f"{'per-frame' if dense else 'detection'} mAP {final:.2f} % on {result.subset} "
            f"({counted(result.videos, 'video')}{measured}), {result.checkpoint}"
        )
        self._line(
            "(a row is one feature vector; - means that nothing of the kind is labelled; for all "
            "measures see docs/metrics.md)"
        )

    def detect(self, result: DetectResult) -> None:
        for id, files in result.files.items():
            kept = " (from saved scores)" if id in result.cached else ""
            self._detection(id, result.detections[id], kept, files)
        scored = len(result.files) - len(result.cached)
        self._line(
            f"{result.output}: {scored} detected, {len(result.cached)} from saved scores, "
            f"{len(result.failed)} failed, {result.seconds:.1f} s"
        )
        self._failures(result.failed, len(result.files))

    def export(self, result: ExportResult) -> None:
        for name, files in result.files.items():
            self._detection(name, result.detections[name], "", files)
        self._line(f"{len(result.files)} exported, {len(result.failed)} failed")
        self._failures(result.failed, len(result.files))

    def _detection(self, video: str, detection: Detection, kept: str, files: list[Path]) -> None:
        from mstemba.pipeline.detect.results import why_nothing

        segments = counted(len(detection.segments), "segment")
        found = f"{segments}{kept}{why_nothing(detection)}"
        self._line(f"{video}: {found}: {', '.join(map(str, files))}")

    def report(self, result: Report) -> None:
        found = result.evaluation
        self._line(
            f"{result.page}: per-frame mAP {found.map:.2f} % on {found.subset} "
            f"({counted(found.videos, 'video')}, {counted(found.rows, 'row')}), {found.checkpoint}"
        )

    def status(self, report: dict[str, Any]) -> None:
        self._line(
            f"{report['workspace']}: {counted(report['manifest_videos'], 'video')}, "
            f"{counted(report['classes'], 'class')}"
        )
        stores: dict[str, list[dict[str, Any]]] = {}
        for video in report["videos"]:
            size = _size(video["bytes"]) if video["bytes"] else ""
            stores.setdefault(video["store"], []).append({**video, "size": size})
        if not stores:
            self._line("features: none yet")
        current = {Path(store["name"]).name for store in report["stores"] if store["current"]}
        for store, videos in stores.items():
            self._out.print()
            states = Counter(video["state"] for video in videos)
            found = ", ".join(f"{count} {state}" for state, count in states.items())
            title = f"features in {store}{' (current)' if store in current else ''}: {found}"
            facts = ("subset", "state", "size", "made", "detail")
            self._records(title, videos, ("video", *facts))
        columns = ("name", "current", "state", "arch", "backbone", "checkpoint", "score", "steps")
        self._out.print()
        self._records("runs", report["runs"], columns)
        self._out.print()
        detections = [{**row, "size": _size(row["bytes"])} for row in report["detections"]]
        self._records("detections", detections, ("video", "size", "made"))
        for store in report["stores"]:
            if "problem" in store:
                self._say(f"warning: {store['problem']}")
        if verified := report.get("verified"):
            read = (counted(verified[name], *of) for name, of in _VERIFIED.items())
            self._line(f"read completely: {', '.join(read)}; {len(verified['damaged'])} damaged")
            for problem in verified["damaged"]:
                self._say(f"warning: {problem}")

    def runs(self, report: dict[str, Any]) -> None:
        rows = [{**run, **run["differs"]} for run in report["runs"]]
        columns = ("name", "current", "state", "score", "checkpoint", "steps", "seconds")
        self._records("runs", rows, (*columns, "parameters", "recipe", *report["differing"]))
        for run in report["runs"]:
            if run["problem"]:
                self._say(f"warning: {run['name']}: {run['problem']}")

    def backbones(self, rows: list[dict[str, object]]) -> None:
        heads = {"text": "text tower", "here": "weights here"}
        shown = [
            {**row, **{head: "yes" if row[flag] else "no" for flag, head in heads.items()}}
            for row in rows
        ]
        facts = ("kind", "width", "input", *heads.values(), "model")
        self._records("backbones", shown, ("name", *facts, "licence", "weights"))

    def demo(self, result: DemoResult) -> None:
        self._line(f"held-out mAP {result.evaluation.map:.1f} %, {result.seconds:.0f} s in total")
        self._line(f"checkpoint  {result.training.run / result.training.checkpoint}")
        self._line(f"curves      {result.training.run / 'curves.png'}")
        for files in result.detection.files.values():
            for file in files:
                self._line(f"detections  {file}")

    def _records(self, title: str, rows: list[dict[str, Any]], columns: tuple[str, ...]) -> None:
        """Print these columns of records as a table."""
        if rows:
            cells = [[_cell(row.get(column)) for column in columns] for row in rows]
            self._table(title, columns, cells)
        else:
            self._line(f"{title}: none yet")

    def _table(self, title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        cells = [[one_line(cell) for cell in row] for row in rows]
        lines = [one_line(title)] if title else []
        lines += format_table(heads, cells, _NUMBERS, self._width)
        self._out.print("\n".join(lines))


def _is_terminal(stream: TextIO | None) -> bool:
    """Return whether a stream is a terminal; None is one that `>&-` has closed."""
    return stream is not None and stream.isatty()


def _class_row(counts: ClassCounts) -> tuple[str, str, str, str]:
    return counts.name, str(counts.actions), f"{counts.time:.0f}", str(counts.videos)


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "*" if value else ""
    if isinstance(value, float):
        return f"{value:.2f}" if abs(value) >= 1 or value == 0 else f"{value:.2g}"
    return "" if value is None else str(value)


def _size(count: int) -> str:
    """Return a number of bytes for people: `950 B`, `95 kB`, `1.2 MB`."""
    size, units = float(count), ["B", "kB", "MB", "GB"]
    while size >= 999.5 and len(units) > 1:
        size /= 1000
        units.pop(0)
    return f"{size:.{1 if size < 9.95 and units[0] != 'B' else 0}f} {units[0]}"
