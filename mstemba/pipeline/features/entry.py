"""What a feature store says about one entry, in its zarr.json, and whether that can be true."""

from __future__ import annotations

import hashlib
import json
import operator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

from mstemba.errors import StoreError
from mstemba.limits import DENSEST, LONGEST_VIDEO, MOST_ROWS, SPARE_MEMORY
from mstemba.pipeline.caching.files import folder_name
from mstemba.pipeline.features.shards import ShardLayout
from mstemba.pipeline.features.store_files import METADATA
from mstemba.reading.typed import Count, Finite, Name, Positive, Seconds, convert, parse_json, shown
from mstemba.records import TIMECODE, FeatureSpec, TimeGrid

IMPORTED = "imported"
"""The decoder of entries whose features were made elsewhere."""
_DIGEST = "attributes_sha256"
_Starts = list[Annotated[float, Meta(ge=-LONGEST_VIDEO, le=LONGEST_VIDEO)]]
_Rows = Annotated[int, Meta(ge=0, le=MOST_ROWS)]


class Entry(Struct, frozen=True, kw_only=True):
    """What a store says about the features of a video."""

    id: str | None = None
    """The video's id; None for entries of earlier versions."""
    key: Name
    """Cache key."""
    starts: _Starts
    """Seconds at which the rows start, strictly increasing."""
    rows: _Rows
    step: Positive
    """Seconds from one row to the next."""
    duration: Seconds
    """Seconds from the start of the video to the end of its last frame."""
    fps: Positive
    """Frames per second, pauses not counted."""
    made: str = ""
    """Date and time in UTC; empty if unknown."""
    frames: Finite = 0.0
    """Number of frames of the video."""
    fingerprint: str = ""
    """Of the video's content."""
    source: str = ""
    """Name of the video's file."""
    decoder: str = ""
    timecode: Annotated[str, Meta(pattern=rf"^({TIMECODE.pattern})?\Z")] = ""
    """Of the video's first frame, as 10:00:00:00; empty if it has none."""
    warnings: list[str] = []
    sizes: list[Count] | None = None
    """Bytes of each shard; None for entries of the first versions."""
    bytes: Count = 0
    """Size on disk, which is not stored."""

    @property
    def is_imported(self) -> bool:
        """Whether the features were imported and not extracted from a video.

        The decoder tells: its names are ours. The source of an extracted entry is the name of a
        video file, which may be anything.
        """
        return self.decoder == IMPORTED

    @property
    def grid(self) -> TimeGrid:
        """The times of the rows."""
        return TimeGrid(np.asarray(self.starts, np.float64), self.step)


class Begun(Struct):
    """What is known of an entry before its last shard."""

    key: Name
    decoder: str
    starts: _Starts
    rows: _Rows
    sizes: list[Count] | None = None


class DamagedEntry(StoreError):
    """An entry that exists and cannot be used: `extract` or `import` makes it again."""

    def __init__(self, root: Path, name: str, problem: str) -> None:
        super().__init__(
            f"{root}: the features of {name!r} are damaged: {problem}; run `mstemba extract` "
            f"(or `mstemba import`), which makes them again"
        )
        self.problem = problem


@dataclass(frozen=True, eq=False)
class Finished:
    """A finished entry, as it is found."""

    name: str
    """Of its folder."""
    entry: Entry
    layout: ShardLayout
    sizes: list[int]
    """Bytes of its shards."""
    marker: bytes
    """Content of its zarr.json."""


@dataclass(frozen=True, eq=False)
class Unfinished:
    """The rows of an entry that a run wrote, in whole shards, before it was interrupted."""

    starts: NDArray[np.float64]
    """(rows,) seconds."""
    decoder: str
    """The decoder of the frames that the rows were made of."""
    layout: ShardLayout
    """The array's, which the remaining rows keep."""
    sizes: list[int]
    """Bytes of its shards."""

    @property
    def rows(self) -> int:
        """The number of rows."""
        return len(self.starts)


def parse_finished(
    content: bytes, path: Path, spec: FeatureSpec
) -> tuple[Entry, ShardLayout] | None:
    """Return what the metadata of a finished entry says; None if it is not finished.

    Raises ValueError or StoreError if it is damaged.
    """
    where = str(path / METADATA)
    metadata, attributes = _parse(content, where)
    if "damaged" in attributes:
        raise ValueError(str(attributes["damaged"]))
    if "key" not in attributes:
        return None
    layout = ShardLayout.of(metadata, spec.width, spec.dtype, where)
    entry = convert(attributes, Entry, where, StoreError, "$.attributes")
    _check_rows(metadata, entry.starts, entry.rows, spec.width)
    if entry.is_imported and entry.frames <= 0:
        raise ValueError(f"{where}: {entry.frames} frames, expected more than 0")
    _check_digest(attributes)
    if entry.id is not None and folder_name(entry.id) != path.name:
        raise ValueError(f"its folder holds those of {shown(entry.id)}")
    return entry, layout


def parse_unfinished(
    content: bytes, path: Path, spec: FeatureSpec
) -> tuple[Begun, ShardLayout] | None:
    """Return what the metadata of an entry says that can be resumed; None if it cannot be.

    Raises ValueError or StoreError if it is damaged.
    """
    where = str(path / METADATA)
    metadata, attributes = _parse(content, where)
    if "unfinished" not in attributes:
        return None
    begun = convert(attributes["unfinished"], Begun, where, StoreError, "$.attributes.unfinished")
    layout = ShardLayout.of(metadata, spec.width, spec.dtype, where)
    _check_rows(metadata, begun.starts, begun.rows, spec.width)
    _check_digest(attributes["unfinished"])
    return (begun, layout) if begun.rows % layout.shard_rows == 0 else None


def _parse(content: bytes, where: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the metadata of an array, and its attributes."""
    metadata = parse_json(content, dict[str, Any], where, StoreError)
    return metadata, convert(metadata.get("attributes", {}), dict[str, Any], where, StoreError)


def with_digest(attributes: dict[str, Any]) -> dict[str, Any]:
    """Return the attributes of an entry together with their SHA-256.

    Shards have checksums of their own; without this one, changed times would go unnoticed.
    """
    return {**attributes, _DIGEST: _digest(attributes)}


def _digest(attributes: dict[str, Any]) -> str:
    others = {n: value for n, value in attributes.items() if n not in (_DIGEST, "starts")}
    sha = hashlib.sha256(json.dumps(others, sort_keys=True).encode())
    # As bytes: there may be many, which take longer to write as text.
    sha.update(np.asarray(attributes["starts"], "<f8").tobytes())
    return sha.hexdigest()


def _check_digest(attributes: dict[str, Any]) -> None:
    """Raise ValueError if attributes have changed; those of earlier versions have no SHA-256."""
    if _DIGEST in attributes and attributes[_DIGEST] != _digest(attributes):
        raise ValueError("its attributes have changed since they were written")


def _check_rows(metadata: dict[str, Any], starts: list[float], rows: int, width: int) -> None:
    """Raise ValueError if an entry contradicts itself."""
    if metadata.get("shape") != [rows, width] or len(starts) != rows or rows == 0:
        raise ValueError(
            f"shape {shown(metadata.get('shape'))}, {rows} rows and {len(starts)} starts, expected "
            f"one start for each row of {width} features"
        )
    if not all(map(operator.lt, starts, starts[1:])):
        raise ValueError("the starts of its rows do not increase")


def check_sizes(
    found: list[int], layout: ShardLayout, rows: int, expected: list[int] | None
) -> None:
    """Raise ValueError if shards are missing or have the wrong size, or hold too little."""
    if expected is not None and len(expected) != len(found):
        raise ValueError(f"the sizes of {len(expected)} shards, expected {len(found)}")
    for number, size in enumerate(found):
        if size < 0:
            raise ValueError(f"shard {number} is missing")
        if expected is not None and size != expected[number]:
            raise ValueError(f"shard {number} has {size} bytes, expected {expected[number]}")
        if size < layout.bytes_of_index:
            raise ValueError(f"shard {number} is cut off after {size} bytes")
    promised = rows * layout.bytes_of_row
    if promised > SPARE_MEMORY + DENSEST * sum(found):
        raise ValueError(
            f"{sum(found)} bytes in its shards, too few for {rows} rows of {layout.width} features"
        )
