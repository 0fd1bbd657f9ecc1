"""The commands of the pipeline's stages: each parses, calls one function and prints the result.

Heavy imports are inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Annotated

import typer

from mstemba import __version__, cli_views
from mstemba.cli_options import (
    ANNOTATION_ENDINGS,
    PATH,
    CheckpointOption,
    CsvOption,
    DetectionsOption,
    EveryOption,
    JsonOption,
    LabelsOption,
    ManifestOption,
    MergeOption,
    QuietOption,
    StoreOption,
    WorkspaceOption,
    YesOption,
    is_stdout,
    names,
    option,
    with_options,
    write_json,
    write_text,
)
from mstemba.cli_views import open_console
from mstemba.errors import UsageError
from mstemba.pipeline.options import (
    EvaluateOptions,
    ExportOptions,
    FeatureOptions,
    ImportOptions,
    InitOptions,
    RunOptions,
    TrainOptions,
    TrainRunOptions,
    ZeroShotOptions,
)

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
@with_options
def init(
    *,
    more: Annotated[
        list[str] | None,
        typer.Argument(metavar="VIDEOS", help="More videos and folders, like --videos."),
    ] = None,
    videos: Annotated[
        list[str] | None,
        typer.Option(
            metavar=PATH, help="Video file or folder; may be repeated, or be videos/*.mp4."
        ),
    ] = None,
    annotations: Annotated[
        str | None, typer.Option(metavar=PATH, help="File or folder of annotations.")
    ] = None,
    workspace: Annotated[str, typer.Option(help="Folder that becomes the workspace.")] = ".",
    options: InitOptions,
    features: Annotated[
        str | None,
        typer.Option(
            metavar=PATH, help="Published features: a folder of VIDEO.npy files, or a store."
        ),
    ] = None,
    transposed: Annotated[bool | None, option(ImportOptions, "transposed")] = None,
    merge: MergeOption = False,
    yes: YesOption = False,
    json: JsonOption = None,
    quiet: QuietOption = False,
) -> None:
    """Make a workspace from videos and annotations.

    Finds the videos, reads the annotations (CSV, JSON, BORIS, ELAN, subtitles, the files of
    Charades, TSU and MultiTHUMOS), writes mstemba.toml and manifest.json, and reports problems.

    Example: mstemba init --videos videos --annotations labels.json

    Example: mstemba init --annotations monday.annotations.json --merge
    """
    from mstemba.pipeline.caching.files import check_kept
    from mstemba.pipeline.init import init

    if not is_stdout(json):
        check_kept(json, "--json", annotations, options.classes)
    if wrong := [name for name in more or () if name.lower().endswith(ANNOTATION_ENDINGS)]:
        raise UsageError(
            f"{wrong[0]}: not a video; --annotations takes one file, or the folder of several"
        )
    result = init(
        [*(videos or ()), *(more or ())],
        annotations,
        root=workspace,
        features=features,
        transposed=transposed,
        merge=merge,
        yes=yes,
        on_event=(console := open_console(quiet or is_stdout(json))),
        **asdict(options),
    )
    write_json(json, result.as_dict())
    console.init(result)


@app.command()
@with_options
def extract(
    *,
    videos: Annotated[
        list[str] | None,
        typer.Argument(help="Videos or folders [default: those of the manifest]."),
    ] = None,
    options: FeatureOptions,
    every: EveryOption = None,
    store: StoreOption = None,
    manifest: ManifestOption = None,
    run_options: RunOptions,
    workspace: WorkspaceOption = None,
    quiet: QuietOption = False,
) -> None:
    """Extract the features of videos with a backbone.

    Decodes the videos and writes the features to a zarr store. Finished videos are skipped.

    Example: mstemba extract --backbone clip
    """
    from mstemba.pipeline.extract.stage import extract

    with open_console(quiet) as console:
        result = extract(
            videos or [],
            options,
            run_options,
            workspace=workspace,
            manifest=manifest,
            store=store,
            on_event=console,
        )
        console.extract(result)


@app.command("import")
@with_options
def import_features(
    *,
    folder: Annotated[str, typer.Argument(help="Folder of features, one VIDEO.npy per video.")],
    options: ImportOptions,
    store: StoreOption = None,
    manifest: ManifestOption = None,
    workspace: WorkspaceOption = None,
    quiet: QuietOption = False,
) -> None:
    """Import published features into a store.

    If --backbone names their origin, a network trained on them can detect in raw videos.

    Example: mstemba import clip_features --backbone clip
    """
    from mstemba.pipeline.features.import_npy import import_features

    with open_console(quiet) as console:
        result = import_features(
            folder, options, workspace=workspace, manifest=manifest, store=store, on_event=console
        )
        console.import_features(result)


@app.command()
@with_options
def train(
    *,
    recipe: Annotated[
        str,
        typer.Option(
            help="Set of training options to start from: paper, tuned, none, or auto (tuned for "
            "charades, tsu and multithumos, otherwise none). Options given on the command line win."
        ),
    ] = "auto",
    options: TrainOptions,
    given: list[str],
    run_options: TrainRunOptions,
    manifest: ManifestOption = None,
    features: Annotated[
        str | None,
        typer.Option(help="Feature store or folder of .npy files [default: the workspace's last]."),
    ] = None,
    output: Annotated[
        str | None, typer.Option(help="Folder of the run [default: in the workspace].")
    ] = None,
    workspace: WorkspaceOption = None,
    quiet: QuietOption = False,
) -> None:
    """Train a network on the training videos.

    A finished run is not repeated; an unfinished one resumes where it stopped.

    Example: mstemba train --arch mstemba-v3
    """
    from mstemba.pipeline.train.stage import train

    with open_console(quiet) as console:
        result = train(
            options,
            run_options,
            recipe=recipe,
            given=given,
            workspace=workspace,
            manifest=manifest,
            features=features,
            output=output,
            on_event=console,
        )
        console.train(result)


@app.command()
@with_options
def evaluate(
    *,
    options: EvaluateOptions,
    metrics: Annotated[
        str, typer.Option(help="Groups of metrics, separated by commas; see docs/metrics.md.")
    ] = "frame,charades,conditional,detection,breakdown,timing",
    json: JsonOption = None,
    csv: CsvOption = None,
    workspace: WorkspaceOption = None,
    quiet: QuietOption = False,
) -> None:
    """Measure a checkpoint or predictions on the test videos.

    Example: mstemba evaluate --json result.json
    """
    from mstemba.pipeline.caching.files import check_kept
    from mstemba.pipeline.evaluate.stage import evaluate

    for file, flag in ((json, "--json"), (csv, "--csv")):
        check_kept(file, flag, options.predictions, options.checkpoint, options.manifest)
    with open_console(quiet or is_stdout(json) or is_stdout(csv)) as console:
        result = evaluate(options, workspace=workspace, metrics=names(metrics), on_event=console)
        console.evaluate(result)
    write_json(json, result.as_dict())
    write_text(csv, result.as_csv())


@app.command()
@with_options
def detect(
    *,
    videos: Annotated[list[str], typer.Argument(help="Videos or folders of videos.")],
    checkpoint: CheckpointOption = None,
    labels: LabelsOption = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="Weights of the backbone: its file, if it has moved since training; with --labels "
            "a published tag or a file."
        ),
    ] = None,
    output: DetectionsOption = None,
    options: ExportOptions,
    zero_shot: ZeroShotOptions,
    given: list[str],
    run_options: RunOptions,
    workspace: WorkspaceOption = None,
    quiet: QuietOption = False,
) -> None:
    """Detect actions in raw videos.

    Writes segments and timelines, and saves the dense scores: another threshold or format needs
    no second pass over the video.

    Example: mstemba detect video.mp4 --threshold 0.4

    Example: mstemba detect video.mp4 --labels "opening a door, drinking, sitting down"
    """
    from mstemba.pipeline.detect.stage import detect

    unused = [f"--{f.name}" for f in fields(ZeroShotOptions) if f.name in given]
    if unused and labels is None:
        raise UsageError(
            f"{', '.join(unused)} cannot be used without --labels: add them, for example --labels "
            f"'drinking, sitting down'"
        )
    with open_console(quiet) as console:
        result = detect(
            videos,
            options,
            run_options,
            workspace=workspace,
            checkpoint=checkpoint,
            labels=labels,
            zero_shot=None if labels is None else zero_shot,
            output=output,
            weights=weights,
            on_event=console,
        )
        console.detect(result)


for command in cli_views.COMMANDS:
    app.command()(command)
