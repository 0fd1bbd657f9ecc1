"""The feature store: zarr v3, one store for each feature specification, one array for each video.

    <store>/zarr.json            attributes: format, version, the specification and its key
    <store>/<video id>/c/...     (T, F), in shards
    <store>/<video id>/zarr.json shape; attributes: key, time grid, source, decoder, warnings,
                                 and the sizes of the shards

A write adds a shard, and then replaces `zarr.json`, which counts the shards, in one step: a rename
on a local disk, one PUT behind a URL (s3://...). Before the last shard the only attribute is
`unfinished`, from which a later run resumes the entry. An entry exists if its attributes hold a
key, so a killed extraction leaves nothing that looks finished. It is damaged if its shards are not
there with their sizes, or if a reader found their content damaged: the only attribute is then
`damaged`, the reason.

zarr is imported only to write arrays: looking up finished entries needs JSON alone.
"""

from __future__ import annotations

import contextlib
import operator
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from msgspec import Meta, Struct, structs
from numpy.typing import NDArray

from mstemba.errors import StoreError, UsageError
from mstemba.limits import DENSEST, LARGEST_TEXT, LONGEST_VIDEO, MOST_ROWS, SPARE_MEMORY, WIDEST
from mstemba.pipeline.caching.files import (
    TEMPORARY,
    flush,
    folder_name,
    reaching,
    remote,
    sweep,
    write_json,
)
from mstemba.pipeline.caching.keys import spec_key
from mstemba.pipeline.caching.locks import StoreLocks
from mstemba.pipeline.features.shards import ShardLayout
from mstemba.reading.files import read_bytes, reason
from mstemba.reading.typed import (
    Count,
    Finite,
    Name,
    PathText,
    Positive,
    Seconds,
    convert,
    parse_json,
    shown,
)
from mstemba.records import TIMECODE, Features, FeatureSpec, FloatArray, TimeGrid

if TYPE_CHECKING:
    from zarr.storage import StorePath

FORMAT = "mstemba-features"
VERSION = 1
CHUNK_ROWS = 256
SHARD_ROWS = 1024

IMPORTED = "imported"
"""The decoder of entries whose features were made elsewhere."""
_METADATA = "zarr.json"

_Starts = list[Annotated[float, Meta(ge=-LONGEST_VIDEO, le=LONGEST_VIDEO)]]
_Rows = Annotated[int, Meta(ge=0, le=MOST_ROWS)]
_Pixels = Annotated[int, Meta(ge=0, le=2**16)]


class Entry(Struct, frozen=True, kw_only=True):
    """What a store says about the features of a video."""

    key: Name
    """Cache key."""
    starts: _Starts
    """Seconds at which the rows start, strictly increasing."""
    rows: _Rows
    step: Positive
    """Seconds from one row to the next."""
    duration: Seconds
    """Seconds from the start of the video to the end of its last frame."""
    fps: Finite
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


class _Begun(Struct):
    """What is known of an entry before its last shard."""

    key: Name
    decoder: str
    starts: _Starts
    rows: _Rows
    sizes: list[Count] | None = None


class _Spec(Struct):
    """Types and bounds of a `FeatureSpec`, as it is stored."""

    backbone: Name
    model: Name
    weights: PathText
    width: Annotated[int, Meta(ge=1, le=WIDEST)]
    input_size: _Pixels
    short_side: _Pixels
    window: _Rows
    stride: _Rows
    every: _Rows
    precision: str
    dtype: Literal["float16", "float32"]
    decoder: str
    resize: str
    fps: Positive | None = None


class _Store(Struct):
    """The attributes of a store."""

    format: str = ""
    version: int = 0
    spec: dict[str, Any] = {}
    weights_file: PathText | None = None


class DamagedEntry(StoreError):
    """An entry that exists and cannot be used: `extract` or `import` makes it again."""

    def __init__(self, root: Path, name: str, problem: str) -> None:
        super().__init__(
            f"{root}: the features of {name!r} are damaged: {problem}; run `mstemba extract` "
            f"(or `mstemba import`), which makes them again"
        )
        self.problem = problem


class FeatureStore:
    """Features of many videos, all made by one specification."""

    def __init__(self, root: Path, spec: FeatureSpec, weights_file: str | None = None) -> None:
        self.root = root
        self.spec = spec
        self.weights_file = weights_file
        """Path of the backbone's weights when the store was made, if they were a local file."""

    @classmethod
    def open(cls, root: Path) -> FeatureStore:
        """Open an existing store. Raises StoreError if there is none, or one of another version."""
        attributes = _attributes(root)
        store = None
        if attributes is not None:
            store = convert(attributes, _Store, str(root / _METADATA), StoreError, "$.attributes")
        if store is None or store.format != FORMAT:
            raise StoreError(f"{root}: not a feature store. Create one with `mstemba extract`")
        if store.version != VERSION:
            raise StoreError(f"{root}: store version {store.version}, expected {VERSION}")
        try:
            spec = FeatureSpec.from_dict(store.spec)
            convert(store.spec, _Spec, _METADATA, place="$.attributes.spec")
        except UsageError as error:
            raise StoreError(f"{root}: {error}") from None
        return cls(root, spec, store.weights_file)

    @classmethod
    def prepare(
        cls, root: Path, spec: FeatureSpec, weights_file: str | None = None
    ) -> FeatureStore:
        """Open the store at `root`, or prepare one that its first writer will create.

        Args:
            root: A folder or a URL.
            spec: How the features are made.
            weights_file: Path of the backbone's weights, if they are a local file.

        Raises:
            StoreError: The store was built with other options, which are named, or `root` is
                something else.
        """
        if _attributes(root) is None:
            if _is_free(root):
                return cls(root, spec, weights_file)
            if _attributes(root) is None:  # still none: no other process has just created it
                raise StoreError(f"{root}: exists and is not a feature store; pass another --store")
        store = cls.open(root)
        store._check_spec(spec)
        return store

    def make(self) -> None:
        """Create the store, if it does not exist. Several processes may do it at the same time.

        Raises:
            StoreError: Another process has just created it with other options.
        """
        if _attributes(self.root) is None:
            attributes = {
                "format": FORMAT,
                "version": VERSION,
                "spec": self.spec.as_dict(),
                "key": spec_key(self.spec),
                "weights_file": self.weights_file,
            }
            group = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
            with StoreLocks(self.root).lock_store():
                if _attributes(self.root) is None:
                    write_json(self.root / _METADATA, group)
        self.open(self.root)._check_spec(self.spec)

    def _check_spec(self, wanted: FeatureSpec) -> None:
        if difference := self.spec.differences(wanted):
            raise StoreError(
                f"{self.root}: the store was built with {difference}. "
                f"Pass another --store, or the options it was built with"
            )

    def sweep(self) -> None:
        """Remove the lock files and incomplete files of processes that are gone."""
        if not remote(self.root):
            StoreLocks(self.root).sweep()
            sweep(self.root)

    def entry(self, id: str) -> Entry | None:
        """Return what is known of a finished entry; None if it is missing or unfinished.

        An entry is finished if its shards are there with the sizes that they had when they were
        written. Their content is checked when it is read.

        Raises:
            DamagedEntry: It is damaged.
            StoreError: The URL of the store cannot be reached.
        """
        found = self._entry(folder_name(id))
        return found.entry if found else None

    def find(self, id: str, on_damage: Callable[[str], object]) -> Entry | None:
        """Return a finished entry; None if it is to be made, and report it if it is damaged."""
        try:
            return self.entry(id)
        except DamagedEntry as error:
            on_damage(f"{id}: its features are damaged ({error.problem}); making them again")
            return None

    def unfinished(self, id: str, key: str) -> Unfinished | None:
        """Return what an earlier run left of the entry with this key, if it can be resumed."""
        path, spec = self._path(id), self.spec
        where = str(path / _METADATA)
        try:
            metadata = _metadata(path) or {}
            begun = convert(metadata["attributes"]["unfinished"], _Begun, where, StoreError)
            layout = ShardLayout.of(metadata, spec.width, spec.dtype, where)
            _check_rows(metadata, begun.starts, begun.rows, spec.width)
            whole = layout.shard_rows == SHARD_ROWS and begun.rows % SHARD_ROWS == 0
            if begun.key != key or not whole:
                return None
            sizes = _shard_sizes(path, layout.count(begun.rows))
            _check_sizes(sizes, layout, begun.rows, begun.sizes)
        except (LookupError, TypeError, ValueError, StoreError):
            return None
        return Unfinished(np.asarray(begun.starts, np.float64), begun.decoder, layout, sizes)

    def read(self, id: str) -> Features:
        """Read an entry.

        One whose content is damaged is marked, so that it is made again.

        Raises:
            DamagedEntry: It is damaged.
            StoreError: It is missing or unfinished, or another process has just replaced it.
        """
        found = self._entry(folder_name(id))
        if found is None:
            raise self._no_features(id)
        entry = found.entry
        values = self._read(found)
        return Features(values, entry.grid, entry.duration, entry.fps, entry.key, entry.timecode)

    def verify(self) -> Iterator[tuple[str, str]]:
        """Read every entry, and yield the name of its folder and its problem; empty if it is fine.

        Entries whose content is damaged are marked, so that they are made again.
        """
        for name in _folders(self.root):
            try:
                found = self._entry(name)
                if found is not None:
                    self._read(found)
                    yield name, ""
            except StoreError as error:
                yield name, error.problem if isinstance(error, DamagedEntry) else str(error)

    def finished(self, id: str) -> Entry:
        """Return a finished entry. Raises StoreError as `read` does."""
        entry = self.entry(id)
        if entry is None:
            raise self._no_features(id)
        return entry

    def _no_features(self, id: str) -> StoreError:
        return StoreError(f"{self.root}: no features of {id!r}. Run `mstemba extract`")

    def _entry(self, name: str) -> _Finished | None:
        """Return the finished entry in a folder. Raises as `entry`."""
        path = self.root / name
        try:
            content = _content(path)
        except StoreError as error:
            if remote(path):
                raise
            raise DamagedEntry(self.root, name, str(error)) from None
        try:
            marker = None if content is None else _parse_marker(content, path, self.spec)
        except (ValueError, StoreError) as error:
            raise DamagedEntry(self.root, name, str(error)) from None
        if marker is None or content is None:
            return None
        entry, layout = marker
        sizes = _shard_sizes(path, layout.count(entry.rows))
        try:
            _check_sizes(sizes, layout, entry.rows, entry.sizes)
        except ValueError as error:
            raise DamagedEntry(self.root, name, str(error)) from None
        entry = structs.replace(entry, bytes=sum(sizes) + len(content))
        return _Finished(name, entry, layout, sizes, content)

    def _read(self, found: _Finished) -> FloatArray:
        """Return the features (T, F) of an entry, which is marked if it is damaged."""
        layout, rows = found.layout, found.entry.rows
        values = np.empty((rows, layout.width), layout.dtype)
        for number, size in enumerate(found.sizes):
            begin = number * layout.shard_rows
            end = min(begin + layout.shard_rows, rows)
            content = _read_file(self.root / found.name / _shard(number), size)
            try:
                values[begin:end] = layout.decode(content, end - begin)
            except ValueError as error:
                raise self._withdraw(found, f"shard {number}: {error}") from None
        return values

    def _withdraw(self, found: _Finished, problem: str) -> StoreError:
        """Mark an entry as damaged, and return the error.

        Nothing is marked if another process has replaced the entry since it was opened.
        """
        path, damaged = self.root / found.name, DamagedEntry(self.root, found.name, problem)
        replaced = StoreError(
            f"{self.root}: another process has just replaced the features of {found.name!r}; "
            f"run the same command again"
        )
        try:
            lock = StoreLocks(self.root).acquire_folder(found.name)
            if lock is None:
                return DamagedEntry(
                    self.root, found.name, f"{problem}; another process works on it"
                )
            with lock:
                if _content(path) != found.marker:
                    return replaced
                metadata = {**found.layout.metadata(), "shape": [0, found.layout.width]}
                write_json(path / _METADATA, {**metadata, "attributes": {"damaged": problem}})
        except (OSError, StoreError) as error:
            note = f"; it cannot be marked as damaged: {reason(error)}"
            return DamagedEntry(self.root, found.name, problem + note)
        return damaged

    def writer(
        self,
        id: str,
        key: str,
        decoder: str,
        resume: Unfinished | None = None,
        confirm: Callable[[], object] = lambda: None,
    ) -> EntryWriter:
        """Start an entry, in place of an existing one.

        Args:
            id: The video's id.
            key: The entry's cache key.
            decoder: The decoder of the frames that the rows are made of.
            resume: From `unfinished`: its rows are kept, and `decoder` is that of the first ones.
            confirm: Called before rows are counted. It raises an error if what they were made of
                no longer has the key.
        """
        self.make()
        path = self._path(id)
        with reaching(path):
            _refuse_links(path)
            if resume is None:
                _remove(path)
                layout = ShardLayout(self.spec.width, self.spec.dtype, SHARD_ROWS, CHUNK_ROWS)
                resume = Unfinished(np.empty(0), decoder, layout, [])
            else:
                _remove_beyond(path, resume.rows)
        return EntryWriter(path, key, resume, confirm)

    def _path(self, id: str) -> Path:
        return self.root / folder_name(id)


@dataclass(frozen=True, eq=False)
class _Finished:
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
        return len(self.starts)


class EntryWriter:
    """Writes an entry: whole shards as rows arrive, and at the end what makes the entry exist."""

    def __init__(
        self, path: Path, key: str, begun: Unfinished, confirm: Callable[[], object]
    ) -> None:
        self._path, self._key, self._begun, self._confirm = path, key, begun, confirm
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
        while self._rows_waiting >= SHARD_ROWS:
            self._write(SHARD_ROWS)
            begun = {"key": self._key, "decoder": self._begun.decoder, **self._grid()}
            self._replace_metadata({"unfinished": begun})

    def finish(self, step: float, **facts: Any) -> None:
        """Write the remaining rows, then the attributes that make the entry exist.

        Args:
            step: Seconds from one row to the next.
            facts: Stored with it: duration (seconds), fps, frames, source, decoder, timecode,
                warnings.
        """
        if self._rows_waiting:
            self._write(self._rows_waiting)
        made = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self._replace_metadata(
            {"key": self._key, **self._grid(), "step": step, "made": made, **facts}
        )

    def _grid(self) -> dict[str, Any]:
        starts = np.concatenate(self._starts)[: self._rows]
        return {"starts": starts.tolist(), "rows": self._rows, "sizes": self._sizes}

    def _write(self, count: int) -> None:
        """Write the next shard, which nothing counts yet."""
        import zarr

        rows = np.concatenate(self._waiting)
        begin, end = self._rows, self._rows + count
        with reaching(self._path):
            array = zarr.Array.from_dict(_place(self._path), self._array(end))
            array[begin:] = rows[:count]
            shard = self._path / _shard(len(self._sizes))
            if url := remote(shard):
                self._sizes.append(url.fs.size(url.path))
        if not remote(shard):
            flush(shard)
            self._sizes.append(shard.stat().st_size)
        self._rows = end
        self._waiting = [rows[count:]]
        self._rows_waiting = len(rows) - count

    def _replace_metadata(self, attributes: dict[str, Any]) -> None:
        """Count the rows that are written, and replace the attributes, in one step."""
        self._confirm()
        write_json(self._path / _METADATA, self._array(self._rows, attributes))

    def _array(self, rows: int, attributes: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the metadata of the array with this number of rows."""
        layout = self._begun.layout
        shape = [rows, layout.width]
        return {**layout.metadata(), "shape": shape, "attributes": attributes or {}}


def _shard(number: int) -> str:
    return f"c/{number}/0"


def _place(path: Path) -> StorePath:
    """Return where zarr finds an array: in a folder, or on the URL's file system."""
    from zarr.storage import FsspecStore, LocalStore, StorePath

    url = remote(path)
    if url is None:
        return StorePath(LocalStore(path))
    from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper

    return StorePath(FsspecStore(AsyncFileSystemWrapper(url.fs, asynchronous=True), path=url.path))


def _files(path: Path) -> dict[str, int]:
    """Return the size of every file under a path, by its relative name."""
    if url := remote(path):
        found = url.fs.find(url.path, detail=True)
        return {name[len(url.path) + 1 :]: file["size"] for name, file in found.items()}
    files = (file for file in path.rglob("*") if file.is_file())
    return {file.relative_to(path).as_posix(): file.stat().st_size for file in files}


def _refuse_links(path: Path) -> None:
    """Raise StoreError if writing to an entry would follow a link out of it."""
    if remote(path):
        return
    for place in (path, path / "c", *(path / "c").glob("*")):
        if place.is_symlink():
            raise StoreError(f"{place}: found a link, expected a folder; remove it")


def _remove(path: Path) -> None:
    # First the metadata: a kill during the removal must not leave a finished entry.
    (path / _METADATA).unlink(missing_ok=True)
    if url := remote(path):
        with contextlib.suppress(FileNotFoundError):
            url.fs.rm(url.path, recursive=True)
    elif path.exists():
        shutil.rmtree(path)


def _remove_beyond(path: Path, rows: int) -> None:
    """Remove what a killed run wrote after the last shard that is counted."""
    counted = {_METADATA, *(_shard(number) for number in range(rows // SHARD_ROWS))}
    for name in _files(path).keys() - counted:
        (path / name).unlink()


def _is_free(root: Path) -> bool:
    """Return whether a path is unused; a killed first write leaves only a temporary file."""
    try:
        if url := remote(root):
            with reaching(root, FileNotFoundError):
                return not url.fs.ls(url.path)
        return all(file.name.startswith(TEMPORARY) for file in root.iterdir())
    except FileNotFoundError:
        return True
    except NotADirectoryError:
        return False


def _folders(root: Path) -> list[str]:
    """Return the names of the folders in a store."""
    if url := remote(root):
        with reaching(root):
            found = url.fs.ls(url.path, detail=True)
        return sorted(os.path.basename(f["name"]) for f in found if f["type"] == "directory")
    return sorted(place.name for place in root.iterdir() if place.is_dir())


def _attributes(path: Path) -> dict[str, Any] | None:
    metadata = _metadata(path)
    attributes = metadata.get("attributes", {}) if metadata is not None else None
    return attributes if isinstance(attributes, dict) else None


def _metadata(path: Path) -> dict[str, Any] | None:
    content = _content(path)
    where = str(path / _METADATA)
    return None if content is None else parse_json(content, dict[str, Any], where, StoreError)


def _content(path: Path) -> bytes | None:
    """Return the metadata of a store or an entry; None if there is none."""
    for attempt in range(2):
        try:
            return _read_file(path / _METADATA)
        except FileNotFoundError:
            return None
        except StoreError:
            if not remote(path) and not os.path.lexists(path / _METADATA):
                return None
            if remote(path) or attempt:  # the first time it may have been written just now
                raise
    return None


def _read_file(file: Path, largest: int = LARGEST_TEXT) -> bytes:
    """Return the content of a file. Raises FileNotFoundError if nothing exists at a URL."""
    if url := remote(file):
        with reaching(file, FileNotFoundError):
            content: bytes = url.fs.cat_file(url.path)
            return content
    return read_bytes(file, StoreError, largest)


def _parse_marker(
    content: bytes, path: Path, spec: FeatureSpec
) -> tuple[Entry, ShardLayout] | None:
    """Return what the metadata of a finished entry says; None if it is not finished.

    Raises ValueError or StoreError if it is damaged.
    """
    where = str(path / _METADATA)
    metadata = parse_json(content, dict[str, Any], where, StoreError)
    attributes = convert(metadata.get("attributes", {}), dict[str, Any], where, StoreError)
    if "damaged" in attributes:
        raise ValueError(str(attributes["damaged"]))
    if "key" not in attributes:
        return None
    layout = ShardLayout.of(metadata, spec.width, spec.dtype, where)
    entry = convert(attributes, Entry, where, StoreError, "$.attributes")
    _check_rows(metadata, entry.starts, entry.rows, spec.width)
    if entry.is_imported and entry.frames <= 0:
        raise ValueError(f"{where}: {entry.frames} frames, expected more than 0")
    return entry, layout


def _check_rows(metadata: dict[str, Any], starts: list[float], rows: int, width: int) -> None:
    """Raise ValueError if an entry contradicts itself."""
    if metadata.get("shape") != [rows, width] or len(starts) != rows or rows == 0:
        raise ValueError(
            f"shape {shown(metadata.get('shape'))}, {rows} rows and {len(starts)} starts, expected "
            f"one start for each row of {width} features"
        )
    if not all(map(operator.lt, starts, starts[1:])):
        raise ValueError("the starts of its rows do not increase")


def _shard_sizes(path: Path, count: int) -> list[int]:
    """Return the bytes of the first shards of an entry; -1 for one that is missing."""
    if remote(path):
        with reaching(path):
            found = _files(path)
        return [found.get(_shard(number), -1) for number in range(count)]
    sizes = []
    for number in range(count):
        try:
            state = os.stat(f"{path}/{_shard(number)}")
        except (FileNotFoundError, NotADirectoryError):
            sizes.append(-1)
            continue
        except OSError as problem:
            raise StoreError(f"{path}: cannot be read: {reason(problem)}") from None
        sizes.append(state.st_size if stat.S_ISREG(state.st_mode) else -1)
    return sizes


def _check_sizes(
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
