"""Options of the command line: those of the options classes, and those that commands share."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import Field, fields, is_dataclass
from inspect import Parameter, Signature, signature
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, get_args, get_type_hints

import typer

from mstemba.errors import UsageError
from mstemba.pipeline.options import help_of

Command = Callable[..., None]


def option(options: type, name: str, *flags: str) -> Any:
    """Return a command-line option with the help of a field of an options class."""
    return typer.Option(*flags, help=help_of(options, name))


def with_options(command: Command) -> Command:
    """Replace each parameter that is an options class by one command-line option per field.

    The command is called with objects of these classes. A parameter `given` receives the names of
    the fields that the command line sets.
    """
    classes: dict[str, Any] = {}
    parameters = [Parameter("context", Parameter.KEYWORD_ONLY, annotation=typer.Context)]
    own = signature(command, eval_str=True).parameters
    for name, parameter in own.items():
        annotation: Any = parameter.annotation
        if is_dataclass(annotation):
            classes[name] = annotation
            parameters += _parameters(annotation)
        elif name != "given":
            parameters.append(parameter)

    @functools.wraps(command)
    def wrapper(context: typer.Context, **arguments: Any) -> None:
        _refuse_empty(context)
        values = {
            name: {field.name: arguments.pop(field.name) for field in fields(kind)}
            for name, kind in classes.items()
        }
        if "given" in own:
            named = (field for some in values.values() for field in some)
            arguments["given"] = [field for field in named if _is_given(context, field)]
        objects = {name: kind(**values[name]) for name, kind in classes.items()}
        command(**arguments, **objects)

    wrapper.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
    return wrapper


def _parameters(options: Any) -> list[Parameter]:
    """Return a parameter with a Typer option for every field."""
    types = get_type_hints(options)
    return [
        Parameter(
            f.name,
            Parameter.KEYWORD_ONLY,
            default=",".join(f.default) if isinstance(f.default, tuple) else f.default,
            annotation=Annotated[_as_text(types[f.name]), option(options, f.name, *_flags(f))],
        )
        for f in fields(options)
    ]


def _as_text(hint: Any) -> Any:
    """Return the type that Typer parses: text for whatever a field takes as text, too."""
    if str not in get_args(hint):
        return hint
    return str | None if NoneType in get_args(hint) else str


def _flags(field: Field[Any]) -> list[str]:
    if field.metadata["flag"]:
        return [field.metadata["flag"]]
    # Unless a switch is named here, Typer adds a second one, `--no-...`.
    return [f"--{field.name.replace('_', '-')}"] if field.default is False else []


def _refuse_empty(context: typer.Context) -> None:
    """Raise UsageError for an empty text, which as a path would mean the current folder."""
    for parameter in context.command.params:
        name = parameter.name or ""
        value = context.params.get(name)
        empty = value == "" or (isinstance(value, list | tuple) and "" in value)
        if empty and _is_given(context, name):
            what = next((flag for flag in parameter.opts if flag[:2] == "--"), name)
            raise UsageError(
                f"{what}: found an empty text, expected a value; is a variable of the shell unset?"
            )


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name not in ("DEFAULT", "DEFAULT_MAP")


def names(listed: str) -> tuple[str, ...]:
    """Return the names in a text that separates them by commas."""
    return tuple(name.strip() for name in listed.split(",") if name.strip())


def _refuse_every(value: str | None) -> None:
    if value is not None:
        raise UsageError(f"--every is now called --frame-step: pass --frame-step {value}")


EveryOption = Annotated[str | None, typer.Option("--every", hidden=True, callback=_refuse_every)]
# Paths are text here, which the stages make paths of: `as_path` knows URLs, and home folders.
PATH = "<path>"
"""What the help shows as the kind of value."""
WorkspaceOption = Annotated[
    str | None,
    typer.Option(
        metavar=PATH, help="Workspace folder [default: the current folder or the nearest above]."
    ),
]
ManifestOption = Annotated[
    str | None, typer.Option(metavar=PATH, help="Manifest file [default: the workspace's].")
]
StoreOption = Annotated[
    str | None,
    typer.Option(metavar=PATH, help="Feature store, a path or a URL [default: in the workspace]."),
]
CheckpointOption = Annotated[
    str | None,
    typer.Option(metavar=PATH, help="Checkpoint folder [default: the workspace's last training]."),
]


def _writable(
    context: typer.Context, option: typer.CallbackParam, target: str | None
) -> str | None:
    """Check that a result can be written to this file, and that no other result goes there."""
    from mstemba.pipeline.caching.files import as_local, check_target

    if target is None or is_stdout(target) or context.resilient_parsing:
        return target
    if file := as_local(target):
        check_target(file, f"--{option.name}", f"result.{option.name}")
    for other in ("json", "csv"):  # Typer has parsed one of them only, so far
        if other != option.name and (first := context.params.get(other)):
            check_different(first, f"--{other}", target, f"--{option.name}")
    return target


def check_different(one: str | Path, what: str, other: str, option: str) -> None:
    """Raise UsageError if two results would be written to the same file."""
    from mstemba.pipeline.caching.files import same_file

    if not is_stdout(other) and same_file(one, other):
        raise UsageError(
            f"{other}: {what} and {option} point to the same file; choose another for {option}"
        )


JsonOption = Annotated[
    str | None,
    typer.Option(
        help="Also write the result as JSON to this file (- for standard output).",
        callback=_writable,
    ),
]
CsvOption = Annotated[
    str | None,
    typer.Option(help="Also write the figures of every class as CSV.", callback=_writable),
]
DetectionsOption = Annotated[
    str | None,
    typer.Option(
        help="Folder of the results [default: detections/ in the workspace or here; with --labels "
        "in a workspace detections/zero-shot/]."
    ),
]
LabelsOption = Annotated[
    str | None,
    typer.Option(
        help="Labels to detect without a trained model: separated by commas, or a text file with "
        "one label per line; see docs/zero-shot.md."
    ),
]
MergeOption = Annotated[
    bool,
    typer.Option(
        "--merge",
        help="Add to the existing manifest: the new annotations of a video replace its former "
        "ones.",
    ),
]
YesOption = Annotated[
    bool,
    typer.Option(
        "--yes", "-y", help="With --merge, also replace the actions of a video by fewer ones."
    ),
]
QuietOption = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print warnings and failures only.")
]


# Endings of files that are given to --annotations, and are never videos.
ANNOTATION_ENDINGS = (".csv", ".tsv", ".txt", ".json", ".jsonl", ".eaf", ".srt", ".vtt")


def is_stdout(target: str | None) -> bool:
    """Return whether a result goes to standard output, which must then contain nothing else."""
    return target in ("-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")


def write_json(target: str | None, data: Any) -> None:
    """Write a result as JSON to a file or to standard output, if there is a target."""
    if target is not None:
        from mstemba.pipeline.caching.files import to_json

        encoding = getattr(sys.stdout, "encoding", None) or ""  # a closed one has none
        ascii = is_stdout(target) and not encoding.lower().startswith("utf")
        write_text(target, to_json(data, ascii))


def write_text(target: str | None, text: str) -> None:
    """Write text to a file or to standard output, if there is a target.

    Raises UsageError for a URL.
    """
    from mstemba.pipeline.caching.files import as_local, write_result

    if is_stdout(target):
        print(text, end="")
    elif file := as_local(target):
        write_result(file, text)
