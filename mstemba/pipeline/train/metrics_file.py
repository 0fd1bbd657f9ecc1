"""Read metrics.jsonl, one JSON object of numbers a line, which a kill may have cut in two."""

from __future__ import annotations

import io
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

from mstemba.errors import UsageError
from mstemba.reading.files import read_bytes
from mstemba.reading.typed import Name, convert, parse_json

METRICS = "metrics.jsonl"


class _Row(Struct):
    step: Annotated[float, Meta(ge=0, le=2**62)]


def read_rows(path: Path) -> Iterator[tuple[bytes, dict[str, float] | None]]:
    """Yield each line with its numbers by name, `step` among them; None for a damaged line.

    Raises:
        UsageError: It is not a file, or is too large.
    """
    for line in filter(bytes.strip, io.BytesIO(read_bytes(path))):
        try:
            row = parse_json(line, dict[Name, float], str(path))
            convert(row, _Row, str(path))
            yield line, row
        except UsageError:
            yield line, None


def read_curves(path: Path, names: Sequence[str]) -> tuple[dict[str, NDArray[np.float64]], int]:
    """Return (N, 2) finite steps and values by name, and the number of damaged lines.

    Raises:
        UsageError: As `read_rows`.
    """
    points = {name: array("d") for name in names}
    damaged = 0
    for _, row in read_rows(path):
        damaged += row is None
        for name in names:
            if row and name in row:
                points[name].extend((row["step"], row[name]))
    curves = {name: np.array(values).reshape(-1, 2) for name, values in points.items()}
    return {n: curve[_can_be_drawn(curve).all(axis=1)] for n, curve in curves.items()}, damaged


def _can_be_drawn(curve: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which numbers are finite, and so far from the limits that axes have room for them."""
    size = np.abs(curve)
    drawn: NDArray[np.bool_] = (size <= 1e30) & ((size >= 1e-30) | (size == 0))
    return drawn
