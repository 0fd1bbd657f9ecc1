"""What the commands take: options shared by several, and those that an options class stands for."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import fields
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from mstemba.pipeline.options import help_of


def of(options: type, name: str) -> Any:
    """A command-line option whose help is the one of the options class."""
    return typer.Option(help=help_of(options, name))


def takes(options: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command every field of an options class as an option of its own.

    The command itself gets one object of that class, as its parameter `options`.
    """
    types = get_type_hints(options)
    flags = [
        Parameter(
            f.name,
            Parameter.KEYWORD_ONLY,
            default=f.default,
            annotation=Annotated[types[f.name], of(options, f.name)],
        )
        for f in fields(options)
    ]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = dict(signature(command, eval_str=True).parameters)
        del own["options"]

        @functools.wraps(command)
        def wrapper(**arguments: Any) -> None:
            chosen = {flag.name: arguments.pop(flag.name) for flag in flags}
            command(options=options(**chosen), **arguments)

        mine = [p.replace(kind=Parameter.KEYWORD_ONLY) for p in own.values()]
        wrapper.__signature__ = Signature([*flags, *mine])  # type: ignore[attr-defined]
        wrapper.__annotations__ = {p.name: p.annotation for p in (*flags, *mine)}
        return wrapper

    return decorate


WorkspaceOption = Annotated[
    Path | None, typer.Option(help="Workspace folder [default: the nearest one upwards].")
]
ManifestOption = Annotated[
    Path | None, typer.Option(help="Manifest file [default: the workspace's].")
]
FeaturesOption = Annotated[
    str | None, typer.Option(help="Feature store [default: the workspace's last extraction].")
]
CheckpointOption = Annotated[
    Path | None, typer.Option(help="Checkpoint folder [default: the workspace's last training].")
]
JsonOption = Annotated[
    Path | None,
    typer.Option(help="Also write the result as JSON to this file; - for standard output."),
]
QuietOption = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print warnings and failures only.")
]
