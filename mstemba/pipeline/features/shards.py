"""The arrays of a feature store: their zarr metadata, and the content of their shards.

A shard holds chunks of rows, each compressed with a checksum by zstd, and after them an index with
the place and length of each chunk, and the CRC-32C of that. Shards are decoded here and not by
zarr, so that damage cannot be confused with a failing disk or network, and no more memory is taken
than the rows need, however much a chunk says that it holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any

import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

from mstemba.errors import StoreError
from mstemba.limits import DENSEST, MOST_CHUNKS, MOST_ROWS, WIDEST
from mstemba.reading.typed import convert, shown
from mstemba.records import FloatArray

SHARD_ROWS = 1024
"""Rows of a shard that we write."""
CHUNK_ROWS = 256
"""Rows of a chunk that we write."""
_ZSTD = b"\x28\xb5\x2f\xfd"
_TELLS_SIZE = 0xE0
"""The bits of a zstd frame's descriptor of which at least one is set if it tells its size."""
_Rows = Annotated[int, Meta(ge=1, le=MOST_ROWS)]
_Width = Annotated[int, Meta(ge=1, le=WIDEST)]


class _Shape(Struct):
    chunk_shape: tuple[_Rows, _Width]


class _Grid(Struct):
    configuration: _Shape


class _Array(Struct):
    chunk_grid: _Grid
    codecs: Annotated[list[_Grid], Meta(min_length=1, max_length=1)]


@dataclass(frozen=True)
class ShardLayout:
    """How the rows of an array are divided into shards and chunks."""

    width: int
    """Features of a row."""
    dtype: str
    """`float32` or `float16`."""
    shard_rows: int
    chunk_rows: int
    """A divisor of `shard_rows`."""

    @classmethod
    def of(cls, metadata: dict[str, Any], width: int, dtype: str, where: str) -> ShardLayout:
        """Return the layout of an array from its metadata.

        Args:
            metadata: The content of its zarr.json.
            width: Features of a row that it must have.
            dtype: Type that it must have.
            where: The file, for messages.

        Raises:
            StoreError: It is not an array that `ShardLayout.metadata` describes.
        """
        array = convert(metadata, _Array, where, StoreError)
        shard_rows, _ = array.chunk_grid.configuration.chunk_shape
        chunk_rows, _ = array.codecs[0].configuration.chunk_shape
        layout = cls(width, dtype, shard_rows, chunk_rows)
        for name, expected in layout.metadata().items():
            if (found := metadata.get(name)) != expected:
                raise StoreError(
                    f"{where}: found {shown(found)}, expected {shown(expected)} at $.{name}"
                )
        if shard_rows % chunk_rows or shard_rows // chunk_rows > MOST_CHUNKS:
            raise StoreError(f"{where}: shards of {shard_rows} rows in chunks of {chunk_rows}")
        return layout

    @cache  # noqa: B019, a store has one layout
    def metadata(self) -> dict[str, Any]:
        """Return the metadata that zarr needs, except for the shape and the attributes."""
        end = {"name": "bytes", "configuration": {"endian": "little"}}
        zstd = {"name": "zstd", "configuration": {"level": 0, "checksum": True}}
        shards = {
            "chunk_shape": [self.chunk_rows, self.width],
            "codecs": [end, zstd],
            "index_codecs": [end, {"name": "crc32c"}],
            "index_location": "end",
        }
        grid = {"chunk_shape": [self.shard_rows, self.width]}
        return {
            "zarr_format": 3,
            "node_type": "array",
            "data_type": self.dtype,
            "chunk_grid": {"name": "regular", "configuration": grid},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": "NaN",  # rows of a lost shard must not read as zeros
            "codecs": [{"name": "sharding_indexed", "configuration": shards}],
        }

    def count(self, rows: int) -> int:
        """Return the number of shards for these rows."""
        return -(-rows // self.shard_rows)

    @property
    def bytes_of_row(self) -> int:
        return self.width * np.dtype(self.dtype).itemsize

    @property
    def bytes_of_index(self) -> int:
        return 16 * (self.shard_rows // self.chunk_rows) + 4

    def missing_bytes(self, size: int, rows: int) -> int:
        """Return how many bytes a shard is smaller than `DENSEST` allows for its rows."""
        return max(0, -(-rows * self.bytes_of_row // DENSEST) - size)

    def with_gap(self, content: bytes, length: int) -> bytes:
        """Return a shard with a gap before its index, which zarr allows.

        Rows of a picture that does not change are hundreds of times smaller when compressed. A
        reader could not tell them from a file made to take all memory.
        """
        place = len(content) - self.bytes_of_index
        return content[:place] + bytes(length) + content[place:]

    def decode(self, content: bytes, rows: int) -> FloatArray:
        """Return the first rows (rows, width) of a shard.

        Raises:
            ValueError: The content is damaged.
        """
        from numcodecs.zstd import Zstd

        values = np.full((rows, self.width), np.nan, self.dtype)
        rest = np.empty((self.chunk_rows, self.width), self.dtype)
        for number, (offset, length) in enumerate(self._index(content)):
            begin = number * self.chunk_rows
            if begin >= rows:
                break
            frame = content[offset : offset + length]
            if len(frame) < 5 or frame[:4] != _ZSTD or not frame[4] & _TELLS_SIZE:
                raise ValueError(f"chunk {number} is missing")
            rest.fill(np.nan)
            try:
                Zstd().decode(frame, rest)
            except (RuntimeError, ValueError) as error:
                raise ValueError(f"chunk {number}: {error}") from None
            values[begin : begin + self.chunk_rows] = rest[: rows - begin]
        if not np.isfinite(values).all():
            raise ValueError("it contains NaN, as after the loss of a part")
        return values

    def _index(self, content: bytes) -> list[tuple[int, int]]:
        """Return the place and the length of every chunk."""
        import google_crc32c

        index = content[-self.bytes_of_index :]
        crc = google_crc32c.value(index[:-4]).to_bytes(4, "little")
        if len(index) < self.bytes_of_index or crc != index[-4:]:
            raise ValueError("the checksum of its index is wrong")
        table: NDArray[np.uint64] = np.frombuffer(index[:-4], "<u8").reshape(-1, 2)
        return [(int(place), int(length)) for place, length in table]
