"""Writing files, and objects behind URLs, so that a reader never sees half of one."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote

from mstemba.errors import MstembaError, StoreError, UsageError

if TYPE_CHECKING:
    from upath import UPath

TEMPORARY = ".writing-"
"""How the names of files begin that are not whole yet."""
FULL_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def as_path(path: str | Path | None) -> Path | None:
    """A path that a caller may have given as text.

    Text like "s3://bucket/x.zarr" gives a `UPath`, which has a Path's methods and passes for one;
    `remote` tells them apart. Raises UsageError for a URL of an unknown kind.
    """
    if path is None or isinstance(path, Path):
        return path
    # Two letters at least: one is a drive of Windows.
    if isinstance(path, str) and not re.match(r"[A-Za-z][\w+.-]+://", path):
        return Path(path)
    if isinstance(path, str) and path.lower().startswith("file://"):
        from urllib.request import url2pathname

        return Path(url2pathname(path[len("file://") :]))
    try:
        from upath import UPath

        # No cached listings: what other processes write is to be seen.
        return cast(Path, UPath(path, use_listings_cache=False))
    except ImportError as error:
        raise UsageError(f"{path}: {error}. Try pip install 'mstemba[cloud]'") from None
    except ValueError as error:
        raise UsageError(
            f"{path}: {error}; expected a path, or a URL like s3://bucket/name"
        ) from None


def as_local(path: str | Path | None) -> Path | None:
    """The same for what must be on a disk. Raises UsageError for a URL."""
    found = as_path(path)
    if found is not None and remote(found):
        raise UsageError(f"{path}: expected a local path; only feature stores may be behind a URL")
    return found


def remote(path: Path) -> UPath | None:
    """The path as what it is when it is a URL; None for one of the local disk."""
    return None if isinstance(path, Path) else path


@contextlib.contextmanager
def reaching(path: Path, *passing: type[Exception]) -> Iterator[None]:
    """What a URL's file system and its libraries raise becomes one StoreError.

    Errors of the kinds in `passing` stay what they are, and so does everything on a local disk.
    """
    try:
        yield
    except Exception as error:
        if not remote(path) or isinstance(error, (MstembaError, *passing)):
            raise
        advice = (
            "pip install 'mstemba[cloud]'"
            if isinstance(error, ImportError)
            else "Check the address, and the credentials that fsspec finds (AWS_*, FSSPEC_*)"
        )
        raise StoreError(
            f"{path}: cannot be reached: {str(error) or type(error).__name__}. {advice}"
        ) from error


def folder_name(id: str) -> str:
    """One name of a file or folder for any text: another one for other text, and never hidden."""
    # Quoting keeps every id one name; a leading dot would hide or climb.
    name = quote(id, safe=" ()+,-=@[]_{}", errors="surrogateescape")
    if name.startswith(".") or name.endswith(".json"):
        name = name.replace(".", "%2E")
    if len(name) > 200:
        sha = hashlib.sha256(id.encode(errors="surrogateescape")).hexdigest()
        name = f"{name[:150]}%{sha[:32]}"
    return name or "%"


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it: all appears, or nothing.

    The temporary name keeps the suffix, because some writers choose their format by it; an OSError
    names the path itself.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Short, because the name itself may be as long as the file system allows.
    name = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:8]
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{name}{path.suffix}")
    try:
        try:
            write(temporary)
            flush(temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        of_another = error.filename is not None and str(error.filename) != str(temporary)
        if error.errno is None or of_another:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def check_target(file: Path, option: str, example: str) -> None:
    """Raise UsageError where no file can be written, before the work begins."""
    if os.path.isdir(file):  # which says no where a Path raises PermissionError
        raise UsageError(
            f"{file}: a folder, expected the name of a file, for example {file / example}"
        )
    check_folder(file.parent, option, file.name)


def check_folder(folder: Path, option: str, what: str) -> None:
    """Raise UsageError where `what` cannot be written into a folder, before the work begins."""
    # A link that leads nowhere exists, too: no folder can be made in its place.
    places = (place for place in (folder, *folder.parents) if os.path.lexists(place))
    first = next(places, folder)
    named = "this" if first == folder else str(first)
    if not os.path.isdir(first):
        raise UsageError(
            f"{folder}: {named} is a file, expected a folder for {what}; name another one with "
            f"{option}"
        )
    named = "this folder" if first == folder else str(first)
    if not os.access(first, os.W_OK | os.X_OK):
        raise UsageError(
            f"{folder}: {named} may not be written to, expected a folder for {what}; name another "
            f"one with {option}"
        )


def check_kept(file: str | Path | None, option: str, *read: str | Path | None) -> None:
    """Raises UsageError where a result would be written over a file that it is made from."""
    for source in read:
        if source is not None and file is not None and _same(file, source):
            raise UsageError(f"{file}: this file is read; name another one by {option}")


def _same(one: str | Path, other: str | Path) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


def ends_the_run(error: OSError) -> bool:
    """Whether a file that could not be written means that no other can: the disk is full."""
    return error.errno in FULL_DISK


def explain(error: OSError) -> str:
    """What could not be done with which file."""
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}"


def flush(path: Path) -> None:
    """Let a file of the local disk survive the loss of power."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def write_text(path: Path, text: str) -> None:
    """Write a whole text, or nothing. Raises StoreError when a URL cannot be written."""
    content = text.encode(errors="backslashreplace")
    if url := remote(path):
        with reaching(path):
            url.fs.pipe_file(url.path, content)  # appears whole: one request
    else:
        write_atomically(path, lambda temporary: temporary.write_bytes(content))


def read_text(path: Path) -> str:
    """Raises OSError; StoreError for a URL that cannot be read, unless nothing is there."""
    if url := remote(path):
        with reaching(path, FileNotFoundError):
            content: bytes = url.fs.cat_file(url.path)
            return content.decode()
    return path.read_text(encoding="utf-8")


def to_json(data: Any) -> str:
    return json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def write_json(path: Path, data: Any) -> None:
    write_text(path, to_json(data))


def read_json(path: Path) -> Any:
    return json.loads(read_text(path))
