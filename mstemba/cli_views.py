"""The commands that show or convert results, and the demo."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mstemba.cli_options import (
    JsonOption,
    QuietOption,
    WorkspaceOption,
    check_different,
    is_stdout,
    option,
    with_options,
    write_json,
)
from mstemba.errors import UsageError
from mstemba.pipeline.options import EvaluateOptions, ExportOptions, TrainRunOptions

if TYPE_CHECKING:
    from mstemba.console import Console
    from mstemba.pipeline.workspace import Workspace


@with_options
def export(
    *,
    scores: Annotated[
        list[str] | None,
        typer.Argument(
            help="Saved scores (VIDEO.scores.npz), folders of them, or the videos by path or id "
            "[default: all in detections/ of the workspace]."
        ),
    ] = None,
    options: ExportOptions,
    output: Annotated[
        str | None, typer.Option(help="Folder of the files [default: next to the scores].")
    ] = None,
    workspace: WorkspaceOption = None,
    quiet: QuietOption = False,
) -> None:
    """Write saved scores in other formats or with another threshold.

    Needs neither the videos nor the checkpoint: `detect` has saved the dense scores.

    Example: mstemba export --format eaf,vtt --threshold 0.4
    """
    from mstemba.pipeline.detect.export import export

    with open_console(quiet) as console:
        result = export(scores or [], options, workspace=workspace, output=output, on_event=console)
        console.export(result)


@with_options
def report(
    *,
    options: EvaluateOptions,
    threshold: Annotated[float, option(ExportOptions, "threshold")] = ExportOptions.threshold,
    output: Annotated[
        str | None,
        typer.Option(help="HTML file [default: report-SUBSET.html in the run's folder or here]."),
    ] = None,
    json: JsonOption = None,
    workspace: WorkspaceOption = None,
    quiet: QuietOption = False,
) -> None:
    """Write an HTML report about a model or its predictions.

    Measures like `evaluate`; the page shows the classes, precision and recall, the training, and
    the best and the worst videos. It is one file that needs no network.

    Example: mstemba report
    """
    from mstemba.pipeline.caching.files import check_kept
    from mstemba.pipeline.report.stage import page_of, report
    from mstemba.pipeline.workspace import find_workspace

    found = find_workspace(workspace)
    if json is not None:
        page = page_of(options, workspace=found, output=output)
        check_different(page, "the page", json, "--json")
        listed = found.manifest if found else None
        check_kept(
            json, "--json", options.predictions, options.checkpoint, options.manifest or listed
        )
    with open_console(quiet or is_stdout(json)) as console:
        result = report(
            options, workspace=found, output=output, threshold=threshold, on_event=console
        )
        console.report(result)
    write_json(json, result.data)


@with_options
def status(
    *,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Read all features, weights and saved scores."),
    ] = False,
    json: JsonOption = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Show what the workspace contains.

    Lists the features of every video (done, missing, stale, failed, damaged), the trained runs and
    the detections.

    Example: mstemba status --verify
    """
    from mstemba.errors import SomeFailed
    from mstemba.pipeline.status import status

    report = status(need_workspace(workspace), verify)
    open_console(quiet=is_stdout(json)).status(report)
    write_json(json, report)
    if damaged := report.get("verified", {}).get("damaged"):
        raise SomeFailed(f"{len(damaged)} damaged; extract, import, train or detect again")


def runs(json: JsonOption = None, workspace: WorkspaceOption = None) -> None:
    """Rank the trained runs of the workspace.

    Shows score, cost and recipe of every run, and the options in which the runs differ.

    Example: mstemba runs
    """
    from mstemba.pipeline.runs import leaderboard

    report = leaderboard(need_workspace(workspace))
    open_console(quiet=is_stdout(json)).runs(report)
    write_json(json, report)


def backbones(json: JsonOption = None) -> None:
    """List the backbones.

    Shows width, input size, licence, whether the weights are on this machine, and whether the
    backbone has a text tower for `detect --labels`.

    Example: mstemba backbones
    """
    from mstemba.extractors.registry import listing

    rows = listing()
    open_console(quiet=is_stdout(json)).backbones(rows)
    write_json(json, rows)


def demo(
    folder: Annotated[str, typer.Argument(help="Folder to work in.")] = "demo",
    device: Annotated[str, option(TrainRunOptions, "device")] = TrainRunOptions.device,
    quiet: QuietOption = False,
) -> None:
    """Run the whole pipeline on rendered videos.

    Renders a small labelled video set, then runs init, extract, train, evaluate and detect on it.

    Example: mstemba demo
    """
    from mstemba.pipeline.caching.files import as_local
    from mstemba.pipeline.demo import demo

    with open_console(quiet) as console:
        console.demo(demo(as_local(folder) or Path(), device=device, on_event=console))


COMMANDS = (export, report, status, runs, backbones, demo)


def open_console(quiet: bool) -> Console:
    """Return what a command prints to; rich is imported here to keep `--help` fast."""
    from mstemba.console import Console

    return Console(quiet)


def need_workspace(given: str | None) -> Workspace:
    """Return the given or the surrounding workspace. Raises UsageError if there is none."""
    from mstemba.pipeline.workspace import find_workspace

    found = find_workspace(given)
    if found is None:
        raise UsageError(
            "no workspace in this folder or above: create one with `mstemba init`, or pass "
            "--workspace"
        )
    return found
