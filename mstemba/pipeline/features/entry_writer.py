"""Writes the features of one video into a store, shard by shard."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mstemba.errors import StoreError
from mstemba.pipeline.caching.files import flush, reaching, remote, write_json
from mstemba.pipeline.features.entry import Unfinished, with_digest
from mstemba.pipeline.features.store_files import (
    METADATA,
    shard_name,
    shard_sizes,
    zarr_place,
)
from mstemba.records import FloatArray


class EntryWriter:
    """Writes an entry: whole shards as rows arrive, and at the end what makes the entry exist."""

    def __init__(
        self, path: Path, id: str, key: str, begun: Unfinished, confirm: Callable[[], object]
    ) -> None:
        self._path, self._begun, self._confirm = path, begun, confirm
        self._identity = {"id": id, "key": key}
        self._rows = begun.rows
        self._sizes = list(begun.sizes)
        self._starts = [begun.starts]
        self._waiting: list[FloatArray] = []
        self._rows_waiting = 0

    def append(self, rows: FloatArray, starts: NDArray[np.float64]) -> None:
        """Add (M, F) rows and the times they start at, in seconds."""
        if len(rows) == 0:
            return
        self._waiting.append(rows)
        self._starts.append(starts)
        self._rows_waiting += len(rows)
        shard_rows = self._begun.layout.shard_rows
        while self._rows_waiting >= shard_rows:
            self._write(shard_rows)
            begun = {**self._identity, "decoder": self._begun.decoder, **self._grid()}
            self._replace_metadata({"unfinished": with_digest(begun)})

    def finish(self, step: float, **facts: Any) -> None:
        """Write the remaining rows, then the attributes that make the entry exist.

        Args:
            step: Seconds from one row to the next.
            facts: Stored with it: duration (seconds), fps, frames, source, decoder, timecode,
                warnings.

        Raises:
            StoreError: Something else has changed or deleted the shards.
        """
        if self._rows_waiting:
            self._write(self._rows_waiting)
        if shard_sizes(self._path, len(self._sizes)) != self._sizes:
            raise StoreError(f"{self._path}: changed or deleted while it was written; run again")
        made = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        entry = {**self._identity, **self._grid(), "step": step, "made": made, **facts}
        self._replace_metadata(with_digest(entry))

    def _grid(self) -> dict[str, Any]:
        starts = np.concatenate(self._starts)[: self._rows]
        return {"starts": starts.tolist(), "rows": self._rows, "sizes": self._sizes}

    def _write(self, count: int) -> None:
        """Write the next shard, which nothing counts yet."""
        import zarr

        rows = np.concatenate(self._waiting)
        begin, end = self._rows, self._rows + count
        with reaching(self._path):
            array = zarr.Array.from_dict(zarr_place(self._path), self._array(end))
            array[begin:] = rows[:count]
            shard = self._path / shard_name(len(self._sizes))
            size = shard.stat().st_size
            if missing := self._begun.layout.missing_bytes(size, count):
                shard.write_bytes(self._begun.layout.with_gap(shard.read_bytes(), missing))
            self._sizes.append(size + missing)
        if not remote(shard):
            flush(shard)
        self._rows = end
        self._waiting = [rows[count:]]
        self._rows_waiting = len(rows) - count

    def _replace_metadata(self, attributes: dict[str, Any]) -> None:
        """Count the rows that are written, and replace the attributes, in one step."""
        self._confirm()
        write_json(self._path / METADATA, self._array(self._rows, attributes))

    def _array(self, rows: int, attributes: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the metadata of the array with this number of rows."""
        layout = self._begun.layout
        shape = [rows, layout.width]
        return {**layout.metadata(), "shape": shape, "attributes": attributes or {}}
