"""The command line: parse, call one function of the pipeline, print.

Heavy imports are inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mstemba import __version__
from mstemba.arguments import (
    CheckpointOption,
    FeaturesOption,
    JsonOption,
    ManifestOption,
    QuietOption,
    WorkspaceOption,
    of,
    takes,
)
from mstemba.errors import MstembaError, UsageError
from mstemba.pipeline.options import DetectOptions, ExtractOptions, TrainOptions

if TYPE_CHECKING:
    from mstemba.console import Console

# rich_markup_mode=None: plain help appears in half the time of the framed one.
app = typer.Typer(
    name="mstemba",
    help="Dense temporal action detection in long videos with MS-Temba.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        print(f"mstemba {__version__}")
        raise typer.Exit


@app.command()
def init(
    videos: Annotated[list[Path], typer.Option(help="Video file or folder; may be given again.")],
    annotations: Annotated[
        Path | None, typer.Option(help="Annotation file (JSON) of these videos.")
    ] = None,
    workspace: Annotated[Path, typer.Option(help="Folder to make a workspace.")] = Path(),
    dataset: Annotated[str | None, typer.Option(help="Name of the data set.")] = None,
    classes: Annotated[
        Path | None, typer.Option(help="Text file with one class name a line.")
    ] = None,
    time_unit: Annotated[
        str | None, typer.Option(help="seconds or frames, if the annotations do not say.")
    ] = None,
    quiet: QuietOption = False,
) -> None:
    """Make a workspace from videos and annotations.

    Finds the videos, reads the annotation file, writes mstemba.toml and manifest.json, and reports
    what is odd.

    Example: mstemba init --videos videos --annotations labels.json
    """
    from mstemba.pipeline.init import init

    result = init(
        videos, annotations, root=workspace, dataset=dataset, classes=classes, time_unit=time_unit
    )
    _console(quiet).init(result)


@app.command()
@takes(ExtractOptions)
def extract(
    options: ExtractOptions,
    videos: Annotated[
        list[Path] | None,
        typer.Argument(help="Videos or folders [default: those of the manifest]."),
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(help="Feature store, a path or a URL [default: in the workspace]."),
    ] = None,
    manifest: ManifestOption = None,
    workspace: WorkspaceOption = None,
    quiet: QuietOption = False,
) -> None:
    """Turn videos into features of a backbone.

    Decodes the videos and writes the features into a zarr store. Finished videos are skipped.

    Example: mstemba extract --backbone clip
    """
    from mstemba.pipeline.extract import extract
    from mstemba.pipeline.workspace import find_workspace

    with _console(quiet) as console:
        result = extract(
            videos or [],
            options,
            workspace=find_workspace(workspace),
            manifest=manifest,
            store=store,
            listen=console,
        )
        console.extract(result)


@app.command()
@takes(TrainOptions)
def train(
    options: TrainOptions,
    manifest: ManifestOption = None,
    features: FeaturesOption = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder of the run [default: in the workspace].")
    ] = None,
    workspace: WorkspaceOption = None,
    quiet: QuietOption = False,
) -> None:
    """Train a network on the training videos.

    A finished run is not repeated; an unfinished one goes on where it stopped.

    Example: mstemba train --arch mstemba-v3
    """
    from mstemba.pipeline.train import train
    from mstemba.pipeline.workspace import find_workspace

    with _console(quiet) as console:
        result = train(
            options,
            workspace=find_workspace(workspace),
            manifest=manifest,
            features=features,
            output=output,
            listen=console,
        )
        console.train(result)


@app.command()
def evaluate(
    subset: Annotated[str, typer.Option(help="Subset of the manifest to score.")] = "testing",
    json: JsonOption = None,
    checkpoint: CheckpointOption = None,
    manifest: ManifestOption = None,
    features: Annotated[
        str | None, typer.Option(help="Feature store [default: the one the checkpoint needs].")
    ] = None,
    device: Annotated[str, of(DetectOptions, "device")] = DetectOptions.device,
    workspace: WorkspaceOption = None,
    quiet: QuietOption = False,
) -> None:
    """Measure per-frame mAP on the test videos.

    Example: mstemba evaluate --json result.json
    """
    from mstemba.pipeline.evaluate import evaluate
    from mstemba.pipeline.workspace import find_workspace

    with _console(quiet or _is_stdout(json)) as console:
        result = evaluate(
            workspace=find_workspace(workspace),
            checkpoint=checkpoint,
            manifest=manifest,
            features=features,
            subset=subset,
            device=device,
            listen=console,
        )
        console.evaluate(result)
    _write_json(json, result.as_dict())


@app.command()
def detect(
    videos: Annotated[list[Path], typer.Argument(help="Videos or folders of videos.")],
    threshold: Annotated[float, of(DetectOptions, "threshold")] = DetectOptions.threshold,
    low: Annotated[float | None, of(DetectOptions, "low")] = None,
    min_length: Annotated[float, of(DetectOptions, "min_length")] = DetectOptions.min_length,
    format: Annotated[str, typer.Option(help="Files to write, separated by commas.")] = ",".join(
        DetectOptions.formats
    ),
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the results [default: detections/ of the workspace, or here]."
        ),
    ] = None,
    checkpoint: CheckpointOption = None,
    weights: Annotated[
        str | None,
        typer.Option(help="The backbone's weights file, if it has moved since training."),
    ] = None,
    batch_size: Annotated[int | None, of(DetectOptions, "batch_size")] = None,
    device: Annotated[str, of(DetectOptions, "device")] = DetectOptions.device,
    workspace: WorkspaceOption = None,
    quiet: QuietOption = False,
) -> None:
    """Detect actions in raw videos.

    Writes segments and timelines, and keeps the dense scores: another threshold or format needs
    no second pass.

    Example: mstemba detect video.mp4 --threshold 0.4
    """
    from mstemba.pipeline.detect import detect
    from mstemba.pipeline.workspace import find_workspace

    formats = tuple(name.strip() for name in format.split(",") if name.strip())
    options = DetectOptions(threshold, low, min_length, formats, batch_size, device)
    with _console(quiet) as console:
        result = detect(
            videos,
            options,
            workspace=find_workspace(workspace),
            checkpoint=checkpoint,
            output=output,
            weights=weights,
            listen=console,
        )
        console.detect(result)


@app.command()
def status(json: JsonOption = None, workspace: WorkspaceOption = None) -> None:
    """Show what the workspace holds.

    Lists the features of every video (done, missing, stale, failed), the trained runs and the
    detections.

    Example: mstemba status --json -
    """
    from mstemba.pipeline.status import status
    from mstemba.pipeline.workspace import find_workspace

    found = find_workspace(workspace)
    if found is None:
        raise UsageError(
            "no workspace here or above: make one with `mstemba init`, or name it by --workspace"
        )
    report = status(found)
    _console(quiet=_is_stdout(json)).status(report)
    _write_json(json, report)


@app.command()
def backbones(json: JsonOption = None) -> None:
    """List the backbones.

    Shows width, input size, licence, and whether the weights are on this machine.

    Example: mstemba backbones
    """
    from mstemba.extractors.registry import listing

    rows = listing()
    _console(quiet=_is_stdout(json)).backbones(rows)
    _write_json(json, rows)


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(help="Folder to work in.")] = Path("demo"),
    device: Annotated[str, of(TrainOptions, "device")] = TrainOptions.device,
    quiet: QuietOption = False,
) -> None:
    """Run the whole pipeline on rendered videos.

    Renders a small labelled video set, then runs init, extract, train, evaluate and detect on it.

    Example: mstemba demo
    """
    from mstemba.pipeline.demo import demo

    with _console(quiet) as console:
        console.demo(demo(folder, device=device, listen=console))


def main() -> None:
    """Entry point: a user's mistake or a full disk is one line, never a traceback."""
    try:
        app(prog_name="mstemba")
    except MstembaError as error:
        sys.exit(_fail(str(error), error.exit_code))
    except OSError as error:
        sys.exit(_fail(_explain(error), 1))


def _console(quiet: bool) -> Console:
    from mstemba.console import Console

    return Console(quiet)


def _fail(message: str, code: int) -> int:
    print(f"mstemba: {message}", file=sys.stderr)
    return code


def _explain(error: OSError) -> str:
    from mstemba.pipeline.files import FULL_DISK

    where = f"{error.filename}: " if error.filename else ""
    if error.errno in FULL_DISK:
        return (
            f"{where}the disk is full ({error.strerror}). What was finished is kept: "
            f"free some space and run the same command again"
        )
    return f"{where}{error.strerror or error}"


def _is_stdout(json: Path | None) -> bool:
    return str(json) == "-"


def _write_json(target: Path | None, data: Any) -> None:
    if target is None:
        return
    from mstemba.pipeline.files import to_json, write_text

    if _is_stdout(target):
        print(to_json(data), end="")
    else:
        write_text(target, to_json(data))
