"""The feature store: zarr v3, one store for each feature specification, one array for each video.

    <store>/zarr.json            attributes: format, version, the specification and its key
    <store>/<video id>/c/...     (T, F), in shards
    <store>/<video id>/zarr.json shape; attributes: key, time grid, source, decoder, warnings

A write adds a shard, and then replaces `zarr.json`, which counts the shards, in one step: a rename
on a local disk, one PUT behind a URL (s3://...). Before the last shard the only attribute is
`unfinished`, from which a later run resumes the entry. An entry exists if its attributes hold a
key, so a killed extraction leaves nothing that looks finished.

zarr is imported only to read or write arrays: looking up finished entries needs JSON alone.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mstemba.errors import StoreError, UsageError
from mstemba.pipeline.caching.files import (
    TEMPORARY,
    flush,
    folder_name,
    reaching,
    read_text,
    remote,
    sweep,
    write_json,
)
from mstemba.pipeline.caching.keys import spec_key
from mstemba.pipeline.caching.locks import StoreLocks
from mstemba.records import Features, FeatureSpec, FloatArray, TimeGrid

if TYPE_CHECKING:
    from zarr.storage import StorePath

FORMAT = "mstemba-features"
VERSION = 1
CHUNK_ROWS = 256
SHARD_ROWS = 1024

IMPORTED = "imported"
"""The decoder of entries whose features were made elsewhere."""
_METADATA = "zarr.json"
# The exceptions that zarr, its codecs and the checks raise for damaged data.
_DAMAGE = (KeyError, TypeError, ValueError, RuntimeError)


def is_imported(entry: dict[str, Any]) -> bool:
    """Return whether an entry's features were imported and not extracted from a video.

    The decoder tells: its names are ours. The source of an extracted entry is the name of a
    video file, which may be anything.
    """
    return bool(entry.get("decoder") == IMPORTED)


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
        if attributes is None or attributes.get("format") != FORMAT:
            raise StoreError(f"{root}: not a feature store. Create one with `mstemba extract`")
        if attributes.get("version") != VERSION:
            raise StoreError(
                f"{root}: store version {attributes.get('version')}, expected {VERSION}"
            )
        try:
            spec = FeatureSpec.from_dict(attributes.get("spec") or {})
        except UsageError as error:
            raise StoreError(f"{root}: {error}") from None
        return cls(root, spec, attributes.get("weights_file"))

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

    def entry(self, id: str) -> dict[str, Any] | None:
        """Return the attributes of a finished entry; None if it is missing or unfinished.

        Raises StoreError if it is damaged.
        """
        attributes = _attributes(self._path(id))
        return attributes if attributes and "key" in attributes else None

    def unfinished(self, id: str, key: str) -> Unfinished | None:
        """Return what an earlier run left of the entry with this key, if it can be resumed."""
        try:
            return Unfinished.of(_metadata(self._path(id)) or {}, key)
        except StoreError:
            return None  # damaged: it cannot be resumed

    def read(self, id: str) -> Features:
        """Read an entry. Raises StoreError if it is missing, unfinished or damaged."""
        import zarr

        grid, entry = self.grid(id), self._known(id)
        try:
            with reaching(self.root, *_DAMAGE):
                array = zarr.open_array(_place(self._path(id)), mode="r", zarr_format=3)
                values: FloatArray = np.asarray(array[:])
            if not np.isfinite(values).all():
                raise ValueError("it contains NaN, as after the loss of a shard")
            timecode = entry.get("timecode", "")
            return Features(values, grid, entry["duration"], entry["fps"], entry["key"], timecode)
        except (*_DAMAGE, OSError) as error:
            raise self._damaged(id, error) from None

    def grid(self, id: str) -> TimeGrid:
        """Return the times of an entry's rows. Raises StoreError as `read` does."""
        entry = self._known(id)
        try:
            return TimeGrid(np.asarray(entry["starts"], np.float64), entry["step"])
        except _DAMAGE as error:
            raise self._damaged(id, error) from None

    def _known(self, id: str) -> dict[str, Any]:
        entry = self.entry(id)
        if entry is None:
            raise StoreError(f"{self.root}: no features of {id!r}. Run `mstemba extract`")
        return entry

    def _damaged(self, id: str, error: Exception) -> StoreError:
        return StoreError(
            f"{self.root}: entry {id!r} is damaged: {error}; "
            f"delete {self._path(id).name} there and extract again"
        )

    def writer(
        self, id: str, key: str, decoder: str, resume: Unfinished | None = None
    ) -> EntryWriter:
        """Start an entry, in place of an existing one.

        Args:
            id: The video's id.
            key: The entry's cache key.
            decoder: The decoder of the frames that the rows are made of.
            resume: From `unfinished`: its rows are kept, and `decoder` is that of the first ones.
        """
        self.make()
        path = self._path(id)
        with reaching(path):
            if resume is None:
                _remove(path)
                resume = Unfinished(np.empty(0), decoder, self._empty_array)
            else:
                _remove_beyond(path, resume.rows)
        return EntryWriter(path, key, resume)

    @cached_property
    def _empty_array(self) -> dict[str, Any]:
        """The metadata of an array without rows, as zarr writes it."""
        import zarr
        from zarr.codecs import ZstdCodec

        width = self.spec.width
        array = zarr.create_array(
            {},
            shape=(0, width),
            chunks=(CHUNK_ROWS, width),
            shards=(SHARD_ROWS, width),
            dtype=self.spec.dtype,
            fill_value=np.nan,  # rows of a lost shard must not read as zeros
            compressors=ZstdCodec(level=0, checksum=True),
            zarr_format=3,
        )
        return dict(array.metadata.to_dict())

    def bytes_of(self, id: str) -> int:
        """Return the size of an entry on disk."""
        path = self._path(id)
        with reaching(path):
            return sum(_files(path).values())

    def _path(self, id: str) -> Path:
        return self.root / folder_name(id)


@dataclass(frozen=True, eq=False)
class Unfinished:
    """The rows of an entry that a run wrote, in whole shards, before it was interrupted."""

    starts: NDArray[np.float64]
    """(rows,) seconds."""
    decoder: str
    """The decoder of the frames that the rows were made of."""
    metadata: dict[str, Any]
    """The array's, which the remaining rows keep."""

    @property
    def rows(self) -> int:
        return len(self.starts)

    @classmethod
    def of(cls, metadata: dict[str, Any], key: str) -> Unfinished | None:
        """Read it from an array's metadata; None if the key differs or it cannot be resumed."""
        try:
            found = metadata["attributes"]["unfinished"]
            starts = np.asarray(found["starts"], np.float64)
            shape = metadata["chunk_grid"]["configuration"]["chunk_shape"]
            whole = len(starts) == found["rows"] == metadata["shape"][0]
            fits = found["key"] == key and shape[0] == SHARD_ROWS and len(starts) % SHARD_ROWS == 0
            return cls(starts, str(found["decoder"]), metadata) if whole and fits else None
        except (LookupError, TypeError, ValueError):
            return None


class EntryWriter:
    """Writes an entry: whole shards as rows arrive, and at the end what makes the entry exist."""

    def __init__(self, path: Path, key: str, begun: Unfinished) -> None:
        self._path, self._key, self._begun = path, key, begun
        self._rows = begun.rows
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
        return {"starts": np.concatenate(self._starts)[: self._rows].tolist(), "rows": self._rows}

    def _write(self, count: int) -> None:
        """Write the next shard, which nothing counts yet."""
        import zarr

        rows = np.concatenate(self._waiting)
        begin, end = self._rows, self._rows + count
        with reaching(self._path):
            array = zarr.Array.from_dict(_place(self._path), self._array(end))
            array[begin:] = rows[:count]
        if not remote(self._path):
            flush(self._path / _shard(begin // SHARD_ROWS))
        self._rows = end
        self._waiting = [rows[count:]]
        self._rows_waiting = len(rows) - count

    def _replace_metadata(self, attributes: dict[str, Any]) -> None:
        """Count the rows that are written, and replace the attributes, in one step."""
        write_json(self._path / _METADATA, self._array(self._rows, attributes))

    def _array(self, rows: int, attributes: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the metadata of the array with this number of rows."""
        width = self._begun.metadata["shape"][1]
        return {**self._begun.metadata, "shape": [rows, width], "attributes": attributes or {}}


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


def _attributes(path: Path) -> dict[str, Any] | None:
    metadata = _metadata(path)
    attributes = metadata.get("attributes", {}) if metadata is not None else None
    return attributes if isinstance(attributes, dict) else None


def _metadata(path: Path) -> dict[str, Any] | None:
    try:
        metadata = json.loads(read_text(path / _METADATA))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise StoreError(f"{path}: damaged: {error}") from None
    if not isinstance(metadata, dict):
        raise StoreError(f"{path}: damaged: its metadata is not an object")
    return metadata
