"""Tables as lines of text: for a terminal of any width, a pipe or a file."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

_GAP = "  "
_ROOM = 24
"""Width from which a column is wrapped rather than shown in blocks."""

Row = Sequence[str]


def format_table(
    heads: Row, rows: Sequence[Row], numeric: Collection[str] = (), width: int | None = None
) -> list[str]:
    """Return the lines of a table.

    If it is too wide, its last column is wrapped. If the others leave no room for that, every row
    becomes a block: its first cell, and below it a line for each cell that is not empty.

    Args:
        heads: Headings of the columns.
        rows: Cells without line breaks.
        numeric: Headings of the columns that are aligned on the right.
        width: Width of the terminal; None if lines may have any length.
    """
    right = [head in numeric for head in heads]
    table = [heads, *rows]
    *widths, last = (max(map(cell_len, column)) for column in zip(*table, strict=True))
    used = sum(widths) + len(_GAP) * len(widths)
    if width is None or used + min(last, _ROOM) <= width:
        return _align(table, right, width)
    lines = []
    for first, *cells in rows:
        pairs = [pair for pair in zip(heads[1:], cells, strict=True) if pair[1]]
        inner = _align(pairs, [False, False], width - len(_GAP)) if pairs else []
        lines += [first, *(_GAP + line for line in inner)]
    return lines


def _align(table: Sequence[Row], right: Sequence[bool], width: int | None) -> list[str]:
    """Return the rows with aligned columns; the last one is wrapped to the width."""
    widths = [max(map(cell_len, column)) for column in zip(*table, strict=True)]
    used = sum(widths[:-1]) + len(_GAP) * (len(widths) - 1)
    lines = []
    for row in table:
        cells = [
            " " * (size - cell_len(cell)) + cell if flush else cell + " " * (size - cell_len(cell))
            for cell, size, flush in zip(row, widths, right, strict=True)
        ]
        parts = _wrap(cells[-1].rstrip(), width and max(1, width - used))
        lines.append(_GAP.join([*cells[:-1], parts[0]]).rstrip())
        lines += [" " * used + part for part in parts[1:]]
    return lines


def _wrap(text: str, width: int | None) -> list[str]:
    """Return the text in lines of at most this width, broken between words where possible."""
    if width is None or cell_len(text) <= width:
        return [text]
    return [line.plain.rstrip() for line in Text(text).wrap(Console(), width)]
