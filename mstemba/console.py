"""What a person sees: progress while a stage runs, and what came of it."""

from __future__ import annotations

import math
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from mstemba.errors import SomeFailed
from mstemba.pipeline.processes import is_first
from mstemba.pipeline.progress import Event

if TYPE_CHECKING:
    from mstemba.pipeline.demo import DemoResult
    from mstemba.pipeline.detect import DetectResult
    from mstemba.pipeline.evaluate import Evaluation
    from mstemba.pipeline.export import ExportResult
    from mstemba.pipeline.extract import ExtractResult
    from mstemba.pipeline.import_features import ImportResult
    from mstemba.pipeline.init import InitResult
    from mstemba.pipeline.train import TrainResult

# Seconds between two lines of progress where there is no terminal to redraw.
_LINE_EVERY = 10.0
_PIPE_WIDTH = 200
_NUMBERS = {"bytes", "width", "input", "score", "steps", "seconds", "parameters"}


class Console:
    """Renders events and results: a bar on a terminal, plain lines elsewhere.

    Progress and warnings go to standard error, results to standard output.

    Text from files and names is printed literally, never as markup.
    """

    def __init__(self, quiet: bool = False) -> None:
        self._mute = not is_first()  # one voice for all processes
        quiet = quiet or self._mute
        self._quiet = quiet
        self._out = RichConsole(
            # Tables are not folded for a pipe or a file, which has no width.
            width=None if sys.stdout.isatty() else _PIPE_WIDTH,
            quiet=quiet,
            highlight=False,
            markup=False,
            emoji=False,
            soft_wrap=True,
        )
        self._err = RichConsole(
            stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True
        )
        self._bar: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._told = 0.0

    def __enter__(self) -> Console:
        if not self._quiet and sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("{task.fields[stage]}"),
                BarColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.description}", markup=False),
                console=self._err,
                transient=True,
            )
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop_bar()

    def _stop_bar(self) -> None:
        if self._bar:
            self._bar.stop()
            self._bar = None

    def __call__(self, event: Event) -> None:
        """Listen to a stage."""
        if self._mute:
            return
        if event.total is not None:
            self._progress(event)
        elif event.warning:
            self._err.print(f"warning: {event.message}")
        elif not self._quiet:
            self._err.print(event.message)

    def _progress(self, event: Event) -> None:
        if self._bar:
            if event.stage not in self._tasks:
                self._tasks[event.stage] = self._bar.add_task(
                    "", stage=event.stage, total=event.total
                )
            self._bar.update(
                self._tasks[event.stage],
                completed=event.done,
                total=event.total,
                description=event.message,
            )
        elif not self._quiet and time.monotonic() - self._told > _LINE_EVERY:
            self._told = time.monotonic()
            share = 100 * event.done / event.total if event.total else 100.0
            self._err.print(f"{event.stage} {share:.0f} %: {event.message}")

    def _line(self, text: str) -> None:
        self._stop_bar()
        self._out.print(text)

    def _failures(self, failed: dict[str, str]) -> None:
        """List what failed; the exit code is 1 then."""
        if failed:
            self._stop_bar()
            for id, reason in failed.items():
                self._err.print(f"failed: {id}: {reason}")
            raise SomeFailed(f"{len(failed)} of the videos failed, the rest are done")

    def init(self, result: InitResult) -> None:
        manifest = result.manifest
        videos, actions = (
            ", ".join(f"{count} {name}" for name, count in counts.items())
            for counts in (result.subsets, result.actions)
        )
        self._line(
            f"{result.workspace.manifest}: {len(manifest.classes)} classes; videos: {videos}; "
            f"actions: {actions}; "
            + (
                f"{result.features} videos with features"
                if result.features
                else f"{result.without_file} videos without a file"
            )
        )
        for note in result.report.notes:
            self._line(note)
        for line in result.report.lines():
            self._err.print(f"warning: {line}")
        if result.backup:
            self._line(f"the former manifest was different and is kept as {result.backup}")
        if count := result.report.left_out.total():
            raise SomeFailed(f"{count} annotations cannot be used and are not in the manifest")

    def extract(self, result: ExtractResult) -> None:
        rate = f", {result.frames / result.seconds:.0f} frames/s" if result.frames else ""
        self._line(
            f"{result.store}: {len(result.made)} extracted, {len(result.cached)} cached, "
            f"{len(result.failed)} failed, {result.seconds:.1f} s{rate}"
        )
        if result.without_file:
            self._err.print(
                f"warning: {len(result.without_file)} videos of the manifest have no file, "
                f"for example {result.without_file[0]}"
            )
        self._failures(result.failed)

    def import_features(self, result: ImportResult) -> None:
        self._line(
            f"{result.store}: {len(result.made)} imported, {len(result.cached)} cached, "
            f"{len(result.failed)} failed, {result.rows} rows, {result.seconds:.1f} s"
        )
        for ids, what in (
            (result.missing, "videos of the manifest have no features there"),
            (result.unknown, "files are of videos that the manifest does not name; left out"),
        ):
            if ids:
                self._err.print(f"warning: {len(ids)} {what}, for example {ids[0]}")
        self._failures(result.failed)

    def train(self, result: TrainResult) -> None:
        how = "cached" if result.cached else f"trained in {result.seconds:.0f} s"
        score = "" if result.score is None else f", validation mAP {result.score:.2f}"
        self._line(f"{result.run / result.checkpoint}: {how}, {result.steps} steps{score}")

    def evaluate(self, result: Evaluation) -> None:
        self._stop_bar()
        dense = not math.isnan(result.map)
        measures = Table(box=None, pad_edge=False)
        measures.add_column("measure")
        measures.add_column("mAP %", justify="right")
        measures.add_column("")
        for measure, value, also in result.summary():
            measures.add_row(measure, value, also)
        self._out.print(measures)
        self._out.print()
        table = Table(box=None, pad_edge=False)
        table.add_column("class")
        table.add_column("AP %", justify="right")
        table.add_column("positive rows" if dense else "actions", justify="right")
        table.add_column("")
        for name, columns in result.classes.items():
            ap = columns["ap" if dense else "detection_ap"]
            shown = "-" if ap is None else f"{ap:.2f}"
            bar = "" if ap is None else "█" * round(ap / 5)
            table.add_row(Text(name), shown, str(result.positives[name]), bar)
        self._out.print(table)
        final = result.map if dense else result.metrics["detection"]["average_map"]
        self._line(
            f"{'per-frame' if dense else 'detection'} mAP {final:.2f} % on {result.subset} "
            f"({result.videos} videos, {result.rows} rows), {result.checkpoint}"
        )

    def detect(self, result: DetectResult) -> None:
        for id, files in result.files.items():
            segments = len(result.detections[id].segments)
            kept = " (from kept scores)" if id in result.cached else ""
            self._line(f"{id}: {segments} segments{kept}: {', '.join(map(str, files))}")
        self._failures(result.failed)

    def export(self, result: ExportResult) -> None:
        for name, files in result.files.items():
            segments = len(result.detections[name].segments)
            self._line(f"{name}: {segments} segments: {', '.join(map(str, files))}")
        self._failures(result.failed)

    def status(self, report: dict[str, Any]) -> None:
        self._line(
            f"{report['workspace']}: {report['manifest_videos']} videos, "
            f"{report['classes']} classes"
        )
        self._table(
            "features",
            report["videos"],
            ("store", "video", "subset", "state", "bytes", "made", "detail"),
        )
        self._table(
            "runs",
            report["runs"],
            ("name", "current", "state", "arch", "backbone", "checkpoint", "score", "steps"),
        )
        self._table("detections", report["detections"], ("video", "bytes", "made"))
        for store in report["stores"]:
            if "problem" in store:
                self._err.print(f"warning: {store['problem']}")

    def runs(self, report: dict[str, Any]) -> None:
        rows = [{**run, **run["differs"]} for run in report["runs"]]
        columns = ("name", "current", "state", "score", "checkpoint", "steps", "seconds")
        self._table("runs", rows, (*columns, "parameters", "recipe", *report["differing"]))
        for run in report["runs"]:
            if run["problem"]:
                self._err.print(f"warning: {run['name']}: {run['problem']}")

    def backbones(self, rows: list[dict[str, object]]) -> None:
        shown = [{**row, "here": "yes" if row["here"] else "no"} for row in rows]
        self._table(
            "backbones",
            shown,
            ("name", "model", "kind", "width", "input", "here", "licence", "weights"),
        )

    def demo(self, result: DemoResult) -> None:
        self._line(f"held-out mAP {result.evaluation.map:.1f} %, {result.seconds:.0f} s in all")
        self._line(f"checkpoint  {result.training.run / result.training.checkpoint}")
        self._line(f"curves      {result.training.run / 'curves.png'}")
        for files in result.detection.files.values():
            for file in files:
                self._line(f"detections  {file}")

    def _table(self, title: str, rows: list[dict[str, Any]], columns: tuple[str, ...]) -> None:
        if not rows:
            self._line(f"{title}: none yet")
            return
        table = Table(title=title, title_justify="left", box=None, pad_edge=False)
        for column in columns:
            numeric = column in _NUMBERS
            table.add_column(column, justify="right" if numeric else "left", overflow="fold")
        for row in rows:
            table.add_row(*(Text(_cell(row.get(column))) for column in columns))
        self._out.print(table)


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "*" if value else ""
    if isinstance(value, float):
        return f"{value:.2f}" if abs(value) >= 1 or value == 0 else f"{value:.2g}"
    return "" if value is None else str(value)
