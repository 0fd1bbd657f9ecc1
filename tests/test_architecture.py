"""The design's rules, read from the syntax of the code: imports, lengths, docstrings."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import mstemba

ROOT = Path(mstemba.__file__).parent
MODULES = {
    ".".join(("mstemba", *file.relative_to(ROOT).with_suffix("").parts)).removesuffix(
        ".__init__"
    ): ast.parse(file.read_text(encoding="utf-8"))
    for file in sorted(ROOT.rglob("*.py"))
}

# Each layer may import itself and the layers named.
LAYERS: dict[str, set[str]] = {
    "errors": set(),
    "records": {"errors"},
    "data_manifests": {"records", "errors"},
    "extractors": {"records", "errors"},
    "model": {"records", "errors"},
    "pipeline": {"data_manifests", "extractors", "model", "records", "errors"},
    "console": {"pipeline", "data_manifests", "extractors", "model", "records", "errors"},
    "arguments": {"pipeline", "errors"},
    "cli_views": {"arguments", "console", "pipeline", "extractors", "errors"},
    "cli": {
        "cli_views", "arguments", "console", "pipeline", "data_manifests", "extractors", "model",
        "records", "errors", "",
    },
    "__main__": {"cli", "pipeline", "errors"},
}  # fmt: skip

# The packages that one module keeps to itself.
SOLE_IMPORTER = {
    "av": "mstemba.pipeline.decode.pyav",
    "decord": "mstemba.pipeline.decode.decord",
    "torchcodec": "mstemba.pipeline.decode.torchcodec_reader",
    "ray": "mstemba.pipeline.extract.ray_engine",
    "zarr": "mstemba.pipeline.features.store",
}
# typer is the command line's own.
TYPER = {"mstemba.cli", "mstemba.cli_views", "mstemba.cli_options"}

LONGEST_MODULE = 400
LONGEST_FUNCTION = 60


def layer(module: str) -> str:
    """The part of the design that a module belongs to; the package itself is the empty name."""
    return [*module.split("."), ""][1]


def imports(tree: ast.Module) -> Iterator[str]:
    """Every module imported anywhere in the file, also inside functions and for typing only."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module
            yield node.module
            # `from mstemba.pipeline import plots` imports a module as well.
            names = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from (name for name in names if name in MODULES)


def definitions(
    tree: ast.Module, module: str
) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]]:
    """Functions, classes and methods, by dotted name; not those inside functions."""
    waiting: list[tuple[str, ast.AST]] = [(module, tree)]
    while waiting:
        prefix, node = waiting.pop()
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                yield f"{prefix}.{child.name}", child
                if isinstance(child, ast.ClassDef):
                    waiting.append((f"{prefix}.{child.name}", child))


def test_every_module_has_its_place_in_the_design() -> None:
    assert {layer(module) for module in MODULES} - set(LAYERS) == {""}


# The package's front (layer "") loads whatever it is asked for, lazily: tests/cli/test_help.py.
@pytest.mark.parametrize("module", [module for module in MODULES if layer(module)])
def test_imports_run_one_way(module: str) -> None:
    own = layer(module)
    found = {name for name in imports(MODULES[module]) if name.split(".")[0] == "mstemba"}
    wrong = {name for name in found if layer(name) not in LAYERS[own] | {own}}
    assert wrong == set(), f"{own} may import {LAYERS[own]}"


@pytest.mark.parametrize(("package", "importer"), SOLE_IMPORTER.items())
def test_one_module_alone_imports_it(package: str, importer: str) -> None:
    found = {
        module
        for module, tree in MODULES.items()
        if any(name.split(".")[0] == package for name in imports(tree))
    }
    assert found == {importer}


def test_the_command_line_alone_imports_typer() -> None:
    found = {module for module, tree in MODULES.items() if "typer" in set(imports(tree))}
    assert found == TYPER


@pytest.mark.parametrize("module", MODULES)
def test_modules_are_of_readable_length(module: str) -> None:
    last = MODULES[module].body[-1].end_lineno if MODULES[module].body else 0
    assert (last or 0) <= LONGEST_MODULE


def test_functions_are_of_readable_length() -> None:
    long = {
        name
        for module, tree in MODULES.items()
        for name, node in definitions(tree, module)
        if not isinstance(node, ast.ClassDef)
        and (node.end_lineno or 0) - node.lineno + 1 > LONGEST_FUNCTION
    }
    assert long == set()


@pytest.mark.parametrize("module", MODULES)
def test_every_module_says_what_it_is(module: str) -> None:
    if module != "mstemba.__main__":
        assert ast.get_docstring(MODULES[module])


def test_public_functions_and_classes_say_what_they_do() -> None:
    # A method may leave it to its class.
    ignore_events = [
        f"{module}.{node.name}"
        for module, tree in MODULES.items()
        for node in tree.body
        if isinstance(node, (ast.FunctionDef, ast.ClassDef))
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
        and not (isinstance(node, ast.FunctionDef) and len(node.body) == 1)
    ]
    assert ignore_events == []


def test_no_print_outside_the_command_line() -> None:
    printing = {
        module
        for module, tree in MODULES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "print"
    }
    speaking = {
        "mstemba.__main__",
        "mstemba.cli_options",
        "mstemba.cli",
        "mstemba.cli_views",
        "mstemba.console",
    }
    assert printing <= speaking
