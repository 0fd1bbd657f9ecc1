"""The command line: parse, call one function of the pipeline, print. Here are the stages.

Heavy imports are inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Annotated

import typer

from mstemba import __version__, cli_views
from mstemba.arguments import (
    CheckpointOption,
    CsvOption,
    DetectionsOption,
    FeaturesOption,
    JsonOption,
    LabelsOption,
    ManifestOption,
    MatchingFeaturesOption,
    MergeOption,
    MetricsOption,
    PredictionsOption,
    QuietOption,
    RecipeOption,
    ReleasedOption,
    RunOption,
    StoreOption,
    WorkspaceOption,
    is_stdout,
    names,
    of,
    takes,
    write_json,
    write_text,
)
from mstemba.cli_views import open_console
from mstemba.errors import UsageError
from mstemba.pipeline.options import (
    DetectOptions,
    ExtractOptions,
    ImportOptions,
    TrainOptions,
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
def init(
    videos: Annotated[
        list[Path] | None, typer.Option(help="Video file or folder; may be given again.")
    ] = None,
    annotations: Annotated[
        Path | None, typer.Option(help="Annotations of the videos, a file or a folder.")
    ] = None,
    workspace: Annotated[str, typer.Option(help="Folder to make a workspace.")] = ".",
    dataset: Annotated[
        str | None,
        typer.Option(
            help="Name of the data set; charades, tsu, multithumos bring classes, unit and split."
        ),
    ] = None,
    classes: Annotated[
        Path | None, typer.Option(help="Text file with one class name a line.")
    ] = None,
    time_unit: Annotated[
        str | None, typer.Option(help="seconds or frames, if the annotations do not say.")
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="Rule for the subsets; tsu has cross-subject (the usual) and cross-view."
        ),
    ] = None,
    features: Annotated[
        Path | None,
        typer.Option(help="Published features: a folder with VIDEO.npy each, or a store."),
    ] = None,
    merge: MergeOption = False,
    quiet: QuietOption = False,
) -> None:
    """Make a workspace from videos and annotations.

    Finds the videos, reads the annotations (JSON, CSV, exports of BORIS and ELAN, the files of
    Charades, TSU and MultiTHUMOS), writes mstemba.toml and manifest.json, and reports what is odd.

    Example: mstemba init --videos videos --annotations labels.json

    Example: mstemba init --annotations monday.annotations.json --merge
    """
    from mstemba.pipeline.init import init

    result = init(
        videos or [],
        annotations,
        root=workspace,
        dataset=dataset,
        classes=classes,
        time_unit=time_unit,
        split=split,
        features=features,
        merge=merge,
    )
    open_console(quiet).init(result)


@app.command()
@takes(ExtractOptions)
def extract(
    options: ExtractOptions,
    videos: Annotated[
        list[Path] | None,
        typer.Argument(help="Videos or folders [default: those of the manifest]."),
    ] = None,
    store: StoreOption = None,
    manifest: ManifestOption = None,
    workspace: WorkspaceOption = None,
    quiet: QuietOption = False,
) -> None:
    """Turn videos into features of a backbone.

    Decodes the videos and writes the features into a zarr store. Finished videos are skipped.

    Example: mstemba extract --backbone clip
    """
    from mstemba.pipeline.extract import extract

    with open_console(quiet) as console:
        result = extract(
            videos or [],
            options,
            workspace=workspace,
            manifest=manifest,
            store=store,
            listen=console,
        )
        console.extract(result)


@app.command("import")
@takes(ImportOptions)
def import_features(
    options: ImportOptions,
    folder: Annotated[Path, typer.Argument(help="Folder of features, VIDEO.npy each.")],
    store: StoreOption = None,
    manifest: ManifestOption = None,
    workspace: WorkspaceOption = None,
    quiet: QuietOption = False,
) -> None:
    """Bring published features into a store.

    With the backbone they came from, a network trained on them can detect in raw videos.

    Example: mstemba import clip_features --backbone clip
    """
    from mstemba.pipeline.import_features import import_features

    with open_console(quiet) as console:
        result = import_features(
            folder,
            options,
            workspace=workspace,
            manifest=manifest,
            store=store,
            listen=console,
        )
        console.import_features(result)


@app.command()
@takes(TrainOptions)
def train(
    options: TrainOptions,
    given: list[str],
    recipe: RecipeOption = "auto",
    manifest: ManifestOption = None,
    features: FeaturesOption = None,
    output: RunOption = None,
    workspace: WorkspaceOption = None,
    quiet: QuietOption = False,
) -> None:
    """Train a network on the training videos.

    A finished run is not repeated; an unfinished one goes on where it stopped.

    Example: mstemba train --arch mstemba-v3
    """
    from mstemba.pipeline.train import train

    with open_console(quiet) as console:
        result = train(
            options,
            recipe=recipe,
            given=given,
            workspace=workspace,
            manifest=manifest,
            features=features,
            output=output,
            listen=console,
        )
        console.train(result)


@app.command()
def evaluate(
    subset: Annotated[str, typer.Option(help="Subset of the manifest to score.")] = "testing",
    metrics: MetricsOption = "frame,charades,conditional,detection,breakdown",
    json: JsonOption = None,
    csv: CsvOption = None,
    checkpoint: CheckpointOption = None,
    released: ReleasedOption = False,
    predictions: PredictionsOption = None,
    manifest: ManifestOption = None,
    features: MatchingFeaturesOption = None,
    device: Annotated[str, of(DetectOptions, "device")] = DetectOptions.device,
    workspace: WorkspaceOption = None,
    quiet: QuietOption = False,
) -> None:
    """Measure a checkpoint, or predictions, on the test videos.

    Example: mstemba evaluate --json result.json
    """
    from mstemba.pipeline.evaluate import evaluate
    from mstemba.pipeline.files import check_kept

    for file, option in ((json, "--json"), (csv, "--csv")):
        check_kept(file, option, predictions, checkpoint, manifest)
    with open_console(quiet or is_stdout(json) or is_stdout(csv)) as console:
        result = evaluate(
            workspace=workspace,
            checkpoint=checkpoint,
            released=released,
            predictions=predictions,
            manifest=manifest,
            features=features,
            subset=subset,
            metrics=names(metrics),
            device=device,
            listen=console,
        )
        console.evaluate(result)
    write_json(json, result.as_dict())
    write_text(csv, result.as_csv())


@app.command()
@takes(DetectOptions, zero_shot=ZeroShotOptions)
def detect(
    options: DetectOptions,
    zero_shot: ZeroShotOptions,
    given: list[str],
    videos: Annotated[list[Path], typer.Argument(help="Videos or folders of videos.")],
    output: DetectionsOption = None,
    checkpoint: CheckpointOption = None,
    labels: LabelsOption = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="The backbone's weights: its file, if it has moved since training; with --labels "
            "a published tag or a file."
        ),
    ] = None,
    workspace: WorkspaceOption = None,
    quiet: QuietOption = False,
) -> None:
    """Detect actions in raw videos.

    Writes segments and timelines, and keeps the dense scores: another threshold or format needs
    no second pass.

    Example: mstemba detect video.mp4 --threshold 0.4

    Example: mstemba detect video.mp4 --labels "opening a door, drinking, sitting down"
    """
    from mstemba.pipeline.detect import detect

    of_labels = [f"--{f.name}" for f in fields(ZeroShotOptions) if f.name in given]
    if of_labels and labels is None:
        raise UsageError(
            f"without --labels there is no use for {', '.join(of_labels)}: add --labels, as in "
            f"--labels 'drinking, sitting down', or leave {', '.join(of_labels)} out"
        )
    with open_console(quiet) as console:
        result = detect(
            videos,
            options,
            workspace=workspace,
            checkpoint=checkpoint,
            labels=labels,
            zero_shot=None if labels is None else zero_shot,
            output=output,
            weights=weights,
            listen=console,
        )
        console.detect(result)


for command in (
    cli_views.export,
    cli_views.report,
    cli_views.status,
    cli_views.runs,
    cli_views.backbones,
    cli_views.demo,
):
    app.command()(command)
