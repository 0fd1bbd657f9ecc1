"""What the commands take: options shared by several, and those that an options class stands for."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import fields
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from mstemba.errors import UsageError
from mstemba.pipeline.options import help_of


def option(options: type, name: str, flag: str | None = None) -> Any:
    """A command-line option whose help is the one of the options class."""
    return typer.Option(*filter(None, [flag]), help=help_of(options, name))


def with_options(
    options: type, **others: type
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command every field of options classes as an option of its own.

    The command itself gets one object of the first class, as its parameter `options`, one of each
    other class as the parameter that names it, and, if it has a parameter `given`, the names of
    those options that the command line sets.
    """
    classes = {"options": options, **others}
    flags = {name: _flags(kind) for name, kind in classes.items()}
    every = [flag for some in flags.values() for flag in some]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = dict(signature(command, eval_str=True).parameters)
        for name in classes:
            del own[name]
        wants_given = own.pop("given", None) is not None

        @functools.wraps(command)
        def wrapper(context: typer.Context, **arguments: Any) -> None:
            if wants_given:
                given = [flag.name for flag in every if _is_given(context, flag.name)]
                arguments["given"] = given
            for name, kind in classes.items():
                chosen = {flag.name: arguments.pop(flag.name) for flag in flags[name]}
                chosen |= {listed: names(chosen[listed]) for listed in _names(kind)}
                arguments[name] = kind(**chosen)
            command(**arguments)

        first = Parameter("context", Parameter.KEYWORD_ONLY, annotation=typer.Context)
        mine = [first, *(p.replace(kind=Parameter.KEYWORD_ONLY) for p in own.values())]
        wrapper.__signature__ = Signature([*every, *mine])  # type: ignore[attr-defined]
        wrapper.__annotations__ = {p.name: p.annotation for p in (*every, *mine)}
        return wrapper

    return decorate


def _flags(options: type) -> list[Parameter]:
    """An option for every field; a list is given with commas."""
    types, listed = get_type_hints(options), _lists(options)
    defaults: dict[str, Any] = {f.name: f.default for f in fields(options)}
    return [
        Parameter(
            f.name,
            Parameter.KEYWORD_ONLY,
            default=",".join(defaults[f.name]) if f.name in listed else f.default,
            annotation=Annotated[
                str if f.name in listed else types[f.name],
                option(options, f.name, f.metadata["flag"]),
            ],
        )
        for f in fields(options)
    ]


def _lists(options: type) -> list[str]:
    return [f.name for f in fields(options) if isinstance(f.default, tuple)]


def _names(options: type) -> list[str]:
    """The lists of names. Of text, the stage itself makes a list: it may be a file's name."""
    types = get_type_hints(options)
    return [name for name in _lists(options) if types[name] == tuple[str, ...]]


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name not in ("DEFAULT", "DEFAULT_MAP")


def names(listed: str) -> tuple[str, ...]:
    """What an option names, separated by commas."""
    return tuple(name.strip() for name in listed.split(",") if name.strip())


def _refuse_former(value: str | None) -> None:
    if value is not None:
        raise UsageError(f"--every is now called --frame-step: pass --frame-step {value}")


FormerOption = Annotated[str | None, typer.Option("--every", hidden=True, callback=_refuse_former)]
WorkspaceOption = Annotated[
    Path | None, typer.Option(help="Workspace folder [default: the nearest one upwards].")
]
ManifestOption = Annotated[
    Path | None, typer.Option(help="Manifest file [default: the workspace's].")
]
StoreOption = Annotated[
    str | None, typer.Option(help="Feature store, a path or a URL [default: in the workspace].")
]
FeaturesOption = Annotated[
    str | None,
    typer.Option(help="Features, a store or a folder of .npy [default: the workspace's last]."),
]
CheckpointOption = Annotated[
    Path | None, typer.Option(help="Checkpoint folder [default: the workspace's last training].")
]


def _writable(
    context: typer.Context, option: typer.CallbackParam, target: str | None
) -> str | None:
    """Let an option name a file only where one can be written, and none that another one names."""
    from mstemba.pipeline.caching.files import as_local, check_target

    if target is None or is_stdout(target) or context.resilient_parsing:
        return target
    if file := as_local(target):
        check_target(file, f"--{option.name}", f"result.{option.name}")
    for other in ("json", "csv"):  # of those that are read already
        if other != option.name and (first := context.params.get(other)):
            check_different(first, f"--{other}", target, f"--{option.name}")
    return target


def check_different(one: str | Path, what: str, other: str, option: str) -> None:
    """Raises UsageError where one result would be written over another."""
    if not is_stdout(other) and os.path.realpath(one) == os.path.realpath(other):
        raise UsageError(f"{other}: {what} goes there already; name another file by {option}")


JsonOption = Annotated[
    str | None,
    typer.Option(
        help="Also write the result as JSON to this file; - for standard output.",
        callback=_writable,
    ),
]
CsvOption = Annotated[
    str | None,
    typer.Option(help="Also write every class's figures as CSV to this file.", callback=_writable),
]
MetricsOption = Annotated[
    str,
    typer.Option(help="Families of measures, separated by commas; see docs/metrics.md."),
]
# Places to write to are text: a Path would make a folder `s3:` of a URL, which is to be refused.
RunOption = Annotated[
    str | None, typer.Option(help="Folder of the run [default: in the workspace].")
]
DetectionsOption = Annotated[
    str | None,
    typer.Option(
        help="Folder of the results [default: detections/ of the workspace, or here; in a "
        "workspace with --labels detections/zero-shot/]."
    ),
]
LabelsOption = Annotated[
    str | None,
    typer.Option(
        help="Look for these instead, with no checkpoint: words separated by commas, or a text "
        "file with one label a line; see docs/zero-shot.md."
    ),
]
RecipeOption = Annotated[
    str,
    typer.Option(
        help="Options to begin with: paper, tuned, none, or auto (tuned for charades, tsu and "
        "multithumos, else none). Those that you name win."
    ),
]
MergeOption = Annotated[
    bool,
    typer.Option(
        "--merge",
        help="Put all of it into the manifest there is: what is annotated anew replaces what the "
        "manifest said of that video.",
    ),
]
QuietOption = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print warnings and failures only.")
]


def is_stdout(target: str | None) -> bool:
    """Whether a result goes to standard output, where nothing else may then be."""
    return target == "-"


def write_json(target: str | None, data: Any) -> None:
    """Write a result to where an option says, if it says so."""
    if target is not None:
        from mstemba.pipeline.caching.files import to_json

        write_text(target, to_json(data))


def write_text(target: str | None, text: str) -> None:
    """As `write_json`, of a text. Raises UsageError for a URL."""
    from mstemba.pipeline.caching.files import as_local, write_text

    if is_stdout(target):
        print(text, end="")
    elif file := as_local(target):
        write_text(file, text)
