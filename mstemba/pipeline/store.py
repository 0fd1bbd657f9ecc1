"""The feature store: zarr v3, one store a feature specification, one array a video.

    <store>/zarr.json            attributes: format, version, the specification and its key
    <store>/<video id>/zarr.json attributes, written last: key, time grid, source, decoder, warnings
    <store>/<video id>/c/...     (T, F), one shard a write

An entry exists when its attributes do. They are written in one atomic rename after the last shard,
so a killed extraction leaves nothing that reads as done.

zarr is imported where arrays are read or written: looking up what is done needs only JSON, and no
time.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from mstemba.errors import StoreError, UsageError
from mstemba.pipeline.keys import spec_key
from mstemba.records import Features, FeatureSpec, FloatArray, TimeGrid

if TYPE_CHECKING:
    import zarr

FORMAT = "mstemba-features"
VERSION = 1
CHUNK_ROWS = 256
SHARD_ROWS = 4096

# What zarr, its codecs and the checks raise for one kind of damage or another.
_DAMAGE = (KeyError, TypeError, ValueError, OSError, RuntimeError)


class FeatureStore:
    """Features of many videos, all made by one specification."""

    def __init__(self, root: Path, spec: FeatureSpec, weights_file: str | None = None) -> None:
        self.root = root
        self.spec = spec
        self.weights_file = weights_file
        """Where the backbone's weights were when the store was made, if they were a local file."""

    @classmethod
    def open(cls, root: Path) -> FeatureStore:
        """Open an existing store. Raises StoreError if there is none, or of another version."""
        attributes = _attributes(root)
        if attributes is None or attributes.get("format") != FORMAT:
            raise StoreError(f"{root}: no feature store. Make one with `mstemba extract`")
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
        """Open the store at `root`, or one that will be made there by its first writer.

        Raises StoreError naming the options that differ when it was built with others.
        """
        if _attributes(root) is not None:
            store = cls.open(root)
            if difference := store.spec.differences(spec):
                raise StoreError(
                    f"{root}: the store was built with {difference}. "
                    f"Give another --store, or the options it was built with"
                )
            return store
        if root.exists() and not _is_empty(root):
            raise StoreError(f"{root}: exists and is no feature store; give another --store")
        return cls(root, spec, weights_file)

    def make(self) -> None:
        """Write the store's own attributes, if it is not there yet."""
        if _attributes(self.root) is None:
            attributes = {
                "format": FORMAT,
                "version": VERSION,
                "spec": self.spec.as_dict(),
                "key": spec_key(self.spec),
                "weights_file": self.weights_file,
            }
            import zarr

            zarr.create_group(str(self.root), attributes=attributes, zarr_format=3)

    def entry(self, id: str) -> dict[str, Any] | None:
        """What is known of a finished entry; None when there is none or it was not finished."""
        attributes = _attributes(self._path(id))
        return attributes if attributes and "key" in attributes else None

    def read(self, id: str) -> Features:
        """Load one entry. Raises StoreError when it is missing, unfinished or damaged."""
        import zarr

        grid, entry = self.grid(id), self._known(id)
        try:
            values: FloatArray = np.asarray(zarr.open_array(str(self._path(id)), mode="r")[:])
            if not np.isfinite(values).all():
                raise ValueError("NaN in it, as from a lost shard")
            return Features(values, grid, entry["duration"], entry["fps"], entry["key"])
        except _DAMAGE as error:
            raise self._damaged(id, error) from None

    def grid(self, id: str) -> TimeGrid:
        """When the rows of an entry are; raises StoreError as `read` does."""
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

    def writer(self, id: str) -> EntryWriter:
        """Begin an entry, in place of whatever stands under its name."""
        self.make()
        return EntryWriter(self._path(id), self.spec)

    def bytes_of(self, id: str) -> int:
        return sum(f.stat().st_size for f in self._path(id).rglob("*") if f.is_file())

    def _path(self, id: str) -> Path:
        # Quoting keeps every id one folder name; a leading dot would hide or climb.
        name = quote(id, safe=" ()+,-=@[]_{}", errors="surrogateescape")
        if name.startswith(".") or name.endswith(".json"):
            name = name.replace(".", "%2E")
        if len(name) > 200:
            sha = hashlib.sha256(id.encode(errors="surrogateescape")).hexdigest()
            name = f"{name[:150]}%{sha[:32]}"
        return self.root / (name or "%")


class EntryWriter:
    """Takes rows as they come, writes whole shards, and makes the entry exist at the end."""

    def __init__(self, path: Path, spec: FeatureSpec) -> None:
        import zarr
        from zarr.codecs import ZstdCodec

        if path.exists():
            # The marker goes first: a kill during the removal must not leave a done entry.
            (path / "zarr.json").unlink(missing_ok=True)
            shutil.rmtree(path)
        self._array: zarr.Array[Any] = zarr.create_array(
            str(path),
            shape=(0, spec.width),
            chunks=(CHUNK_ROWS, spec.width),
            shards=(SHARD_ROWS, spec.width),
            dtype=spec.dtype,
            fill_value=np.nan,  # rows whose shard is lost do not read as zeros
            compressors=ZstdCodec(level=0, checksum=True),
            zarr_format=3,
        )
        self._waiting: list[FloatArray] = []
        self._rows_waiting = 0
        self._starts: list[NDArray[np.float64]] = []

    def append(self, rows: FloatArray, starts: NDArray[np.float64]) -> None:
        """Add (M, F) rows and the times they start at, in seconds."""
        if len(rows) == 0:
            return
        self._waiting.append(rows)
        self._starts.append(starts)
        self._rows_waiting += len(rows)
        while self._rows_waiting >= SHARD_ROWS:
            self._write(SHARD_ROWS)

    def finish(self, key: str, step: float, **facts: Any) -> None:
        """Write what waits, then the attributes that make the entry exist.

        `facts` are stored with it: duration and fps in seconds, the source, the decoder, warnings.
        """
        if self._rows_waiting:
            self._write(self._rows_waiting)
        starts = np.concatenate(self._starts)
        self._array.update_attributes(
            {
                "key": key,
                "starts": starts.tolist(),
                "step": step,
                "rows": len(starts),
                "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                **facts,
            }
        )

    def _write(self, count: int) -> None:
        rows = np.concatenate(self._waiting)
        begin = self._array.shape[0]
        self._array.resize((begin + count, rows.shape[1]))
        self._array[begin:] = rows[:count]
        self._waiting = [rows[count:]]
        self._rows_waiting = len(rows) - count


def _is_empty(folder: Path) -> bool:
    # A killed first write leaves nothing but zarr's temporary file.
    return folder.is_dir() and all(file.suffix == ".partial" for file in folder.iterdir())


def _attributes(path: Path) -> dict[str, Any] | None:
    try:
        metadata = json.loads((path / "zarr.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise StoreError(f"{path}: damaged: {error}") from None
    if not isinstance(metadata, dict):
        raise StoreError(f"{path}: damaged: its metadata is no object")
    attributes = metadata.get("attributes", {})
    return attributes if isinstance(attributes, dict) else None
