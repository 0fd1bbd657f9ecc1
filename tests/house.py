"""Measure how the package is built from the syntax of its own code.

`python -m tests.house` measures this checkout, `python -m tests.house OTHER` another one, so that a
before and an after come from the same script. `tests/test_architecture.py` uses the import graph.
"""

from __future__ import annotations

import ast
import statistics
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Set
from pathlib import Path

PACKAGE = "mstemba"
Function = ast.FunctionDef | ast.AsyncFunctionDef
Graph = Mapping[str, Set[str]]


def source_files(root: Path) -> dict[str, Path]:
    """Return the file of every module of the package in the checkout `root`, by dotted name."""
    return {
        ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): file
        for file in sorted((root / PACKAGE).rglob("*.py"))
    }


def parse(root: Path) -> dict[str, ast.Module]:
    """Return the syntax tree of every module of the package in the checkout `root`."""
    return {n: ast.parse(f.read_text(encoding="utf-8")) for n, f in source_files(root).items()}


def imports(tree: ast.Module, known: Set[str] = frozenset()) -> Iterator[str]:
    """Yield what is imported anywhere in a module, inside functions and for typing too.

    `from a import b` is an import of `a.b` where `known` has such a module, and otherwise of `a`.
    Names made at run time (`importlib.import_module`) are not seen.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.module is None or node.level:
                raise ValueError(f"line {node.lineno}: use an absolute import")
            names = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from (name if name in known else node.module for name in names)


def ancestors(module: str) -> Iterator[str]:
    """Yield the packages around a module, the innermost first."""
    while module := module.rpartition(".")[0]:
        yield module


def import_graph(modules: Mapping[str, ast.Module]) -> dict[str, set[str]]:
    """Return the modules of the package that each module imports.

    Importing `a.b.c` runs the `__init__` of `a` and of `a.b`, so they are imported as well, except
    those around the importer, which have begun before it.
    """
    graph = {}
    for module, tree in modules.items():
        named = {name for name in imports(tree, modules.keys()) if name in modules}
        packages = {package for name in named for package in ancestors(name)}
        graph[module] = (named | (packages - set(ancestors(module)))) - {module}
    return graph


def circles(graph: Graph) -> list[list[str]]:
    """Return the groups of nodes that all reach each other (Tarjan's algorithm)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in sorted(graph[node]):
            if target not in index:
                visit(target)
            if target in stack:
                low[node] = min(low[node], low[target])
        if low[node] == index[node]:
            group = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(group) > 1:
                found.append(sorted(group))

    for node in graph:
        if node not in index:
            visit(node)
    return found


def levels(graph: Graph) -> int:
    """Return the length of the longest chain of imports; a circle counts as one module."""
    group = {name: "+".join(names) for names in circles(graph) for name in names}
    between: dict[str, set[str]] = {}
    for name, targets in graph.items():
        own = group.get(name, name)
        between.setdefault(own, set()).update({group.get(t, t) for t in targets} - {own})
    depth: dict[str, int] = {}

    def visit(name: str) -> int:
        if name not in depth:
            depth[name] = 1 + max(map(visit, between[name]), default=0)
        return depth[name]

    return max(map(visit, between))


def functions(modules: Mapping[str, ast.Module]) -> Iterator[tuple[str, int]]:
    """Yield the functions and methods of all modules, and their length in lines."""
    for module, tree in modules.items():
        for node in ast.walk(tree):
            if isinstance(node, Function):
                yield f"{module}.{node.name}", (node.end_lineno or 0) - node.lineno + 1


def main() -> None:
    root = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[1]).resolve()
    modules = parse(root)
    files = source_files(root)
    lines = {n: len(f.read_text(encoding="utf-8").splitlines()) for n, f in files.items()}
    graph = import_graph(modules)
    largest = max(lines, key=lambda name: lines[name])
    code = sum(isinstance(n, ast.stmt) for tree in modules.values() for n in ast.walk(tree))
    print(f"Python lines: {sum(lines.values())}, statements: {code}, files: {len(files)}")
    print(f"median file: {statistics.median(lines.values()):.0f} lines, largest: ", end="")
    print(f"{lines[largest]} ({largest})")
    place = {n: ".".join(f.parent.relative_to(root).parts) for n, f in files.items()}
    edges = {(place[a], place[b]) for a, targets in graph.items() for b in targets}
    edges = {(a, b) for a, b in edges if a != b}
    for where, count in sorted(Counter(place.values()).items()):
        size = sum(lines[name] for name in modules if place[name] == where)
        below = [b.removeprefix(f"{PACKAGE}.") for a, b in sorted(edges) if a == where]
        print(f"  {where}: {count} files, {size} lines; imports {', '.join(below) or 'nothing'}")
    long = sorted((size, name) for name, size in functions(modules) if size > 50)
    print(f"functions over 50 lines: {len(long)}")
    print("".join(f"  {name}: {size}\n" for size, name in reversed(long)), end="")
    print(f"imports between modules: {sum(map(len, graph.values()))}, levels: {levels(graph)}")
    print(f"imports between folders: {len(edges)}")
    print(f"circles: {len(circles(graph))}")
    print("".join(f"  {' <-> '.join(circle)}\n" for circle in circles(graph)), end="")


if __name__ == "__main__":
    main()
