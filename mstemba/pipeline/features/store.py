"""The feature store: zarr v3, one store for each feature specification, one array for each video.

    <store>/zarr.json            attributes: format, version, the specification and its key
    <store>/<video id>/c/...     (T, F), in shards
    <store>/<video id>/zarr.json shape; attributes: id, key, time grid, source, decoder, warnings,
                                 the sizes of the shards, and the SHA-256 of these attributes

A write adds a shard, and then replaces `zarr.json`, which counts the shards, in one step: a rename
on a local disk, one PUT behind a URL (s3://...). Before the last shard the only attribute is
`unfinished`, from which a later run resumes the entry. An entry exists if its attributes hold a
key, so a killed extraction leaves nothing that looks finished. It is damaged if its shards are not
there with their sizes, if its attributes have changed or are those of another video, or if a reader
found the content of its shards damaged: the only attribute is then `damaged`, the reason.

zarr is imported only to write arrays: looking up finished entries needs JSON alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from msgspec import Meta, Struct, structs

from mstemba.errors import StoreError, UsageError
from mstemba.limits import MOST_ROWS, WIDEST
from mstemba.pipeline.caching.files import folder_name, reaching, remote, sweep, write_json
from mstemba.pipeline.caching.keys import entry_key, spec_key
from mstemba.pipeline.caching.locks import StoreLocks
from mstemba.pipeline.features.entry import (
    DamagedEntry,
    Entry,
    Finished,
    Unfinished,
    check_sizes,
    parse_finished,
    parse_unfinished,
)
from mstemba.pipeline.features.entry_writer import EntryWriter
from mstemba.pipeline.features.shards import CHUNK_ROWS, SHARD_ROWS, ShardLayout
from mstemba.pipeline.features.store_files import (
    METADATA,
    folders,
    is_free,
    lacks_metadata,
    metadata_bytes,
    read_file,
    refuse_links,
    remove,
    remove_beyond,
    shard_name,
    shard_sizes,
    store_attributes,
)
from mstemba.reading.files import reason
from mstemba.reading.typed import Name, PathText, Positive, convert
from mstemba.records import Features, FeatureSpec, FloatArray

FORMAT = "mstemba-features"
VERSION = 1

_Rows = Annotated[int, Meta(ge=0, le=MOST_ROWS)]
_Pixels = Annotated[int, Meta(ge=0, le=2**16)]


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
        attributes = store_attributes(root)
        store = None
        if attributes is not None:
            store = convert(attributes, _Store, str(root / METADATA), StoreError, "$.attributes")
        if store is None or store.format != FORMAT:
            raise StoreError(f"{root}: not a feature store. Create one with `mstemba extract`")
        if store.version != VERSION:
            raise StoreError(f"{root}: store version {store.version}, expected {VERSION}")
        try:
            spec = FeatureSpec.from_dict(store.spec)
            convert(store.spec, _Spec, METADATA, place="$.attributes.spec")
        except UsageError as error:
            raise StoreError(f"{root}: {error}") from None
        return cls(root, spec, store.weights_file)

    @classmethod
    def prepare(
        cls, root: Path, spec: FeatureSpec, weights_file: str | None = None
    ) -> FeatureStore:
        """Open the store at `root`, or prepare one that its first writer will create.

        A store that has lost its own metadata is created again; its entries have keys of their own.

        Args:
            root: A folder or a URL.
            spec: How the features are made.
            weights_file: Path of the backbone's weights, if they are a local file.

        Raises:
            StoreError: The store was built with other options, which are named, or `root` is
                something else.
        """
        if lacks_metadata(root):
            store = cls(root, spec, weights_file)
            store._check_entries()
            store.make()
        if store_attributes(root) is None:
            if is_free(root):
                return cls(root, spec, weights_file)
            if store_attributes(root) is None:  # still none: no other process has just created it
                raise StoreError(f"{root}: exists and is not a feature store; pass another --store")
        store = cls.open(root)
        store._check_spec(spec)
        return store

    def make(self) -> None:
        """Create the store, if it does not exist. Several processes may do it at the same time.

        Raises:
            StoreError: Another process has just created it with other options.
        """
        if lacks_metadata(self.root) or store_attributes(self.root) is None:
            attributes = {
                "format": FORMAT,
                "version": VERSION,
                "spec": self.spec.as_dict(),
                "key": spec_key(self.spec),
                "weights_file": self.weights_file,
            }
            group = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
            with StoreLocks(self.root).lock_store():
                if lacks_metadata(self.root) or store_attributes(self.root) is None:
                    write_json(self.root / METADATA, group)
        self.open(self.root)._check_spec(self.spec)

    def _check_spec(self, wanted: FeatureSpec) -> None:
        if difference := self.spec.differences(wanted):
            raise StoreError(
                f"{self.root}: the store was built with {difference}. "
                f"Pass another --store, or the options it was built with"
            )

    def _check_entries(self) -> None:
        """Raise StoreError if a store without metadata has entries that are not of this one."""
        fitting, others = 0, 0
        for name in folders(self.root):
            try:
                found = self._entry(name)
            except DamagedEntry:
                others += 1
                continue
            if found is not None:
                entry = found.entry
                fits = entry.is_imported or entry.key == entry_key(self.spec, entry.fingerprint)
                fitting, others = fitting + fits, others + (not fits)
        if others and not fitting:
            raise StoreError(
                f"{self.root}: its {METADATA} is lost or damaged, and its entries were made with "
                f"other options; pass another --store, or those options"
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
        path = self._path(id)
        try:
            content = metadata_bytes(path)
            begun = content and parse_unfinished(content, path, self.spec)
            if not begun or begun[0].key != key:
                return None
            entry, layout = begun
            sizes = shard_sizes(path, layout.count(entry.rows))
            check_sizes(sizes, layout, entry.rows, entry.sizes)
        except (ValueError, StoreError):
            return None
        return Unfinished(np.asarray(entry.starts, np.float64), entry.decoder, layout, sizes)

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
        for name in folders(self.root):
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

    def _entry(self, name: str) -> Finished | None:
        """Return the finished entry in a folder. Raises as `entry`."""
        path = self.root / name
        try:
            content = metadata_bytes(path)
        except StoreError as error:
            if remote(path):
                raise
            raise DamagedEntry(self.root, name, str(error)) from None
        try:
            marker = None if content is None else parse_finished(content, path, self.spec)
        except (ValueError, StoreError) as error:
            raise DamagedEntry(self.root, name, str(error)) from None
        if marker is None or content is None:
            return None
        entry, layout = marker
        sizes = shard_sizes(path, layout.count(entry.rows))
        try:
            check_sizes(sizes, layout, entry.rows, entry.sizes)
        except ValueError as error:
            raise DamagedEntry(self.root, name, str(error)) from None
        entry = structs.replace(entry, bytes=sum(sizes) + len(content))
        return Finished(name, entry, layout, sizes, content)

    def _read(self, found: Finished) -> FloatArray:
        """Return the features (T, F) of an entry, which is marked if it is damaged."""
        layout, rows = found.layout, found.entry.rows
        values = np.empty((rows, layout.width), layout.dtype)
        for number, size in enumerate(found.sizes):
            begin = number * layout.shard_rows
            end = min(begin + layout.shard_rows, rows)
            content = read_file(self.root / found.name / shard_name(number), size)
            try:
                values[begin:end] = layout.decode(content, end - begin)
            except ValueError as error:
                raise self._withdraw(found, f"shard {number}: {error}") from None
        return values

    def _withdraw(self, found: Finished, problem: str) -> StoreError:
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
                if metadata_bytes(path) != found.marker:
                    return replaced
                metadata = {**found.layout.metadata(), "shape": [0, found.layout.width]}
                write_json(path / METADATA, {**metadata, "attributes": {"damaged": problem}})
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
            refuse_links(path)
            if resume is None:
                remove(path)
                layout = ShardLayout(self.spec.width, self.spec.dtype, SHARD_ROWS, CHUNK_ROWS)
                resume = Unfinished(np.empty(0), decoder, layout, [])
            else:
                remove_beyond(path, len(resume.sizes))
        return EntryWriter(path, id, key, resume, confirm)

    def _path(self, id: str) -> Path:
        return self.root / folder_name(id)
