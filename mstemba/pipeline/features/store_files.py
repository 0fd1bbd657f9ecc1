"""The files of a feature store, in a local folder or behind a URL."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mstemba.errors import StoreError
from mstemba.limits import LARGEST_TEXT
from mstemba.pipeline.caching.files import LOCKS, TEMPORARY, reaching, remote, visible
from mstemba.reading.files import read_bytes, reason
from mstemba.reading.typed import parse_json

if TYPE_CHECKING:
    from zarr.storage import StorePath

METADATA = "zarr.json"
"""The file of a store or an entry that says what it is."""


def shard_name(number: int) -> str:
    """Return the relative path of a shard in an entry."""
    return f"c/{number}/0"


def zarr_place(path: Path) -> StorePath:
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


def refuse_links(path: Path) -> None:
    """Raise StoreError if writing to an entry would follow a link out of it."""
    if remote(path):
        return
    for place in (path, path / "c", *(path / "c").glob("*")):
        if place.is_symlink():
            raise StoreError(f"{place}: found a link, expected a folder; remove it")


def remove(path: Path) -> None:
    """Remove an entry."""
    # First the metadata: a kill during the removal must not leave a finished entry.
    (path / METADATA).unlink(missing_ok=True)
    if url := remote(path):
        with contextlib.suppress(FileNotFoundError):
            url.fs.rm(url.path, recursive=True)
    elif path.exists():
        shutil.rmtree(path)


def remove_beyond(path: Path, shards: int) -> None:
    """Remove what a killed run wrote to an entry after these shards."""
    counted = {METADATA, *(shard_name(number) for number in range(shards))}
    for name in _files(path).keys() - counted:
        (path / name).unlink()


def is_free(root: Path) -> bool:
    """Return whether a path is unused; a killed first write leaves only a temporary file."""
    try:
        if url := remote(root):
            with reaching(root, FileNotFoundError):
                return not url.fs.ls(url.path)
        return all(file.name.startswith((TEMPORARY, LOCKS)) for file in root.iterdir())
    except FileNotFoundError:
        return True
    except NotADirectoryError:
        return False


def lacks_metadata(root: Path) -> bool:
    """Return whether a local folder holds entries, and no metadata of their store, or damaged ones.

    Raises:
        StoreError: The metadata cannot be read.
    """
    if remote(root) or not root.is_dir():
        return False
    content = metadata_bytes(root)
    if content is not None:
        with contextlib.suppress(StoreError):
            parse_json(content, dict[str, Any], METADATA, StoreError)
            return False
    entries = [place for place in visible(root, "*") if place.is_dir()]
    return bool(entries) and all(
        (place / METADATA).is_file() or (place / "c").is_dir() for place in entries
    )


def folders(root: Path) -> list[str]:
    """Return the names of the folders in a store."""
    if url := remote(root):
        with reaching(root):
            found = url.fs.ls(url.path, detail=True)
        return sorted(os.path.basename(f["name"]) for f in found if f["type"] == "directory")
    return sorted(place.name for place in root.iterdir() if place.is_dir() and place.name != LOCKS)


def store_attributes(root: Path) -> dict[str, Any] | None:
    """Return the attributes of the store at `root`; None if there is none.

    Raises:
        StoreError: Its metadata is damaged or cannot be read.
    """
    content = metadata_bytes(root)
    if content is None:
        return None
    metadata = parse_json(content, dict[str, Any], str(root / METADATA), StoreError)
    attributes = metadata.get("attributes", {})
    return attributes if isinstance(attributes, dict) else None


def metadata_bytes(path: Path) -> bytes | None:
    """Return the metadata of a store or an entry; None if there is none."""
    for attempt in range(2):
        try:
            return read_file(path / METADATA)
        except FileNotFoundError:
            return None
        except StoreError:
            if not remote(path) and not os.path.lexists(path / METADATA):
                return None
            if remote(path) or attempt:  # the first time it may have been written just now
                raise
    return None


def read_file(file: Path, largest: int = LARGEST_TEXT) -> bytes:
    """Return the content of a file. Raises FileNotFoundError if nothing exists at a URL."""
    if url := remote(file):
        with reaching(file, FileNotFoundError):
            content: bytes = url.fs.cat_file(url.path)
            return content
    return read_bytes(file, StoreError, largest)


def shard_sizes(path: Path, count: int) -> list[int]:
    """Return the bytes of the first shards of an entry; -1 for one that is missing."""
    if remote(path):
        with reaching(path):
            found = _files(path)
        return [found.get(shard_name(number), -1) for number in range(count)]
    sizes = []
    for number in range(count):
        try:
            state = os.stat(f"{path}/{shard_name(number)}")
        except (FileNotFoundError, NotADirectoryError):
            sizes.append(-1)
            continue
        except OSError as problem:
            raise StoreError(f"{path}: cannot be read: {reason(problem)}") from None
        sizes.append(state.st_size if stat.S_ISREG(state.st_mode) else -1)
    return sizes
