"""The design's rules, read from the syntax of the code: imports, lengths, docstrings.

`tests/house.py` builds the graph of imports; imports inside functions and for typing count.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import mstemba
from tests.house import Function, circles, functions, import_graph, imports, parse

MODULES = parse(Path(mstemba.__file__).parents[1])
GRAPH = import_graph(MODULES)

# Each part of the package may import itself and the parts named.
LAYERS: dict[str, set[str]] = {
    "errors": set(),
    "limits": set(),
    "wording": set(),
    "text_table": set(),
    # The gate: all that reads files may use it.
    "reading": {"limits", "wording", "errors"},
    "records": {"reading", "limits", "wording", "errors"},
    "data_manifests": {"reading", "limits", "records", "wording", "errors"},
    "tensor_files": {"reading", "limits", "errors"},
    "extractors": {"tensor_files", "reading", "limits", "records", "errors"},
    "model": {"tensor_files", "reading", "limits", "records", "errors"},
    "pipeline": {
        "data_manifests", "extractors", "model", "tensor_files", "reading", "limits", "records",
        "wording", "errors",
    },
    "console": {
        "pipeline", "data_manifests", "extractors", "model", "records", "text_table", "wording",
        "errors",
    },
    "cli_options": {"pipeline", "errors"},
    "cli_views": {"cli_options", "console", "pipeline", "extractors", "errors"},
    "cli": {
        "cli_views", "cli_options", "console", "pipeline", "data_manifests", "extractors", "model",
        "records", "errors", "",
    },
    "guard": {"cli", "pipeline", "errors"},
    "__main__": {"guard"},
}  # fmt: skip

# The folders and modules of pipeline/, in the order of the data. A part may import itself and what
# stands on a line above its own; parts on one line do not import each other.
PIPELINE: list[set[str]] = [
    {"progress", "options", "devices"},
    {"caching"},
    {"workspace", "recipes", "distributed"},
    {"decode", "features", "checkpoint", "outputs"},
    {"catalog"},
    {"extract", "dataset"},
    {"detect"},
    {"evaluate"},
    {"train"},
    {"report"},
    {"init", "runs"},
    {"status"},
    {"demo"},
]
LINE = {part: line for line, parts in enumerate(PIPELINE) for part in parts}

# The writers get records and write files: they know nothing of how a result came about.
OUTPUTS_MAY_IMPORT = {
    "mstemba.limits",
    "mstemba.records",
    "mstemba.reading",
    "mstemba.wording",
    "mstemba.errors",
    "mstemba.data_manifests",
    "mstemba.pipeline.options",
    "mstemba.pipeline.progress",
    "mstemba.pipeline.caching",
    "mstemba.pipeline.outputs",
}

# The packages that one module keeps to itself.
SOLE_IMPORTER = {
    "av": {
        "mstemba.pipeline.decode.probe",
        "mstemba.pipeline.decode.pyav",
        "mstemba.pipeline.decode.resize",
        "mstemba.pipeline.demo",
    },
    "decord": {"mstemba.pipeline.decode.decord"},
    "ray": {"mstemba.pipeline.extract.ray_engine"},
    "zarr": {
        "mstemba.pipeline.features.entry_writer",
        "mstemba.pipeline.features.store_files",
    },
    "typer": {"mstemba.cli", "mstemba.cli_views", "mstemba.cli_options"},
}
MAY_PRINT = {
    "mstemba.__main__",
    "mstemba.cli",
    "mstemba.cli_options",
    "mstemba.cli_views",
    "mstemba.console",
}
LONGEST_FUNCTION = 60


def layer(module: str) -> str:
    """Return the part of the package that a module belongs to; "" for the package itself."""
    return [*module.split("."), ""][1]


def pipeline_part(module: str) -> str | None:
    """Return the folder or module of pipeline/ that a module belongs to."""
    return module.split(".")[2] if module.startswith("mstemba.pipeline.") else None


def lies_in(module: str, packages: set[str]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def importers(package: str) -> set[str]:
    return {
        module
        for module, tree in MODULES.items()
        if any(lies_in(name, {package}) for name in imports(tree))
    }


def test_every_module_has_its_place_in_the_design() -> None:
    assert {layer(module) for module in MODULES} - LAYERS.keys() == {""}, "add it to LAYERS"
    parts = {part for module in MODULES if (part := pipeline_part(module))}
    assert parts == LINE.keys(), "PIPELINE names the parts of pipeline/, and nothing else"


# The package's front (layer "") loads what it is asked for on use: tests/cli/test_help.py.
@pytest.mark.parametrize("module", [module for module in MODULES if layer(module)])
def test_layers_import_one_way(module: str) -> None:
    own = layer(module)
    wrong = {name for name in GRAPH[module] if layer(name) not in LAYERS[own] | {own}}
    allowed = ", ".join(sorted(LAYERS[own])) or "nothing"
    assert wrong == set(), f"{module}: {own} may import {allowed}; move what both need lower"


@pytest.mark.parametrize("module", [module for module in MODULES if pipeline_part(module)])
def test_the_pipeline_imports_one_way(module: str) -> None:
    own = pipeline_part(module)
    assert own
    others = {
        name: part for name in GRAPH[module] if (part := pipeline_part(name)) not in {None, own}
    }
    wrong = {name for name, part in others.items() if LINE[str(part)] >= LINE[own]}
    assert wrong == set(), (
        f"{module}: {own} may import the parts above it in PIPELINE alone; "
        "move what both need to one of those, or pass it in"
    )


@pytest.mark.parametrize("module", [m for m in MODULES if pipeline_part(m) == "outputs"])
def test_the_writers_know_records_only(module: str) -> None:
    wrong = {name for name in GRAPH[module] if not lies_in(name, OUTPUTS_MAY_IMPORT)}
    wrong -= {"mstemba.pipeline"}
    assert wrong == set(), f"{module}: pass the writer what it needs as a record or a plain value"


def test_no_modules_import_each_other() -> None:
    found = [" <-> ".join(circle) for circle in circles(GRAPH)]
    assert found == [], "move what these modules share to a module that they both import"


@pytest.mark.parametrize(("package", "expected"), SOLE_IMPORTER.items())
def test_no_other_module_imports_it(package: str, expected: set[str]) -> None:
    assert importers(package) == expected, f"{package} is imported here alone"


def test_functions_are_of_readable_length() -> None:
    long = [(name, size) for name, size in functions(MODULES) if size > LONGEST_FUNCTION]
    assert long == [], f"split these functions: more than {LONGEST_FUNCTION} lines"


@pytest.mark.parametrize("module", MODULES)
def test_every_module_says_what_it_is(module: str) -> None:
    assert ast.get_docstring(MODULES[module]), f"{module}: start it with a docstring"


def public(tree: ast.Module) -> Iterator[Function | ast.ClassDef]:
    for node in tree.body:
        if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
            yield node


def test_public_functions_and_classes_say_what_they_do() -> None:
    # A method may leave it to its class, and a function of one statement to its name.
    silent = [
        f"{module}.{node.name}"
        for module, tree in MODULES.items()
        for node in public(tree)
        if not ast.get_docstring(node) and (isinstance(node, ast.ClassDef) or len(node.body) > 1)
    ]
    assert silent == [], "give them a docstring"


def test_no_print_outside_the_command_line() -> None:
    printing = {
        module
        for module, tree in MODULES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "print"
    }
    assert printing <= MAY_PRINT, "send an event, and let the command line print it"


# The graph itself, on a small package of its own.
CASES = {
    "two functions that import each other lazily": (
        {"p.a": "def f():\n    from p import b", "p.b": "def f():\n    import p.a"},
        [["p.a", "p.b"]],
    ),
    "for typing only": (
        {
            "p.a": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from p.b import B",
            "p.b": "from p.c import C",
            "p.c": "from p.a import A",
        },
        [["p.a", "p.b", "p.c"]],
    ),
    "a package that collects its modules": (
        {"p.q": "from p.q.a import A", "p.q.a": "from p.q import b", "p.q.b": "", "p.r": ""},
        [],
    ),
    "a module that needs its own package": (
        {"p.q": "from p.q.a import A", "p.q.a": "from p.q import B"},
        [["p.q", "p.q.a"]],
    ),
    "through the package that an import runs": (
        {"p.q": "from p.r import R", "p.q.a": "", "p.r": "from p.q.a import A"},
        [["p.q", "p.r"]],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_circles_are_found(case: str) -> None:
    sources, expected = CASES[case]
    graph = import_graph({"p": ast.parse("")} | {n: ast.parse(s) for n, s in sources.items()})
    assert circles(graph) == expected
