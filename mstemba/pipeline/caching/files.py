"""Files, and objects behind URLs, that are written completely or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote

from mstemba.errors import MstembaError, MstembaWarning, StoreError, UsageError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from upath import UPath

TEMPORARY = ".writing-"
"""Prefix of the names of incomplete files."""
LOCKS = ".locks"
"""Name of a folder of lock files in the folder whose files they are for."""
FULL_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_ABANDONED = 24 * 3600.0
"""Seconds without a write after which an incomplete file has no writer, where locks do not tell."""
UNSUPPORTED = {errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS}
"""What file systems answer that cannot lock files, or write them through to the disk."""


def as_path(path: str | Path | None) -> Path | None:
    """Return the path that a text stands for; `~` and `~user` become home folders.

    A URL like "s3://bucket/x.zarr" becomes a `UPath`, which has the methods of a Path and is typed
    as one; `remote` tells them apart.

    Raises:
        UsageError: The URL is of an unknown kind.
    """
    if path is None or isinstance(path, Path):
        return path
    # At least two letters: a single one is a Windows drive.
    if isinstance(path, str) and not re.match(r"[A-Za-z][\w+.-]+://", path):
        return Path(os.path.expanduser(path))
    if isinstance(path, str) and path.lower().startswith("file://"):
        from urllib.request import url2pathname

        return Path(url2pathname(path[len("file://") :]))
    try:
        from upath import UPath

        # No cached listings: files that other processes write must be visible.
        return cast(Path, UPath(path, use_listings_cache=False))
    except ImportError as error:
        raise UsageError(f"{path}: {error}. Try pip install 'mstemba[cloud]'") from None
    except ValueError as error:
        raise UsageError(
            f"{path}: {error}; expected a path, or a URL like s3://bucket/name"
        ) from None


def as_local(path: str | Path | None) -> Path | None:
    """Return the path that a text stands for. Raises UsageError for a URL."""
    found = as_path(path)
    if found is not None and remote(found):
        raise UsageError(f"{path}: expected a local path; only feature stores can be behind a URL")
    return found


def as_paths(given: str | Path | Iterable[str | Path]) -> list[Path]:
    """Return one or several paths as a list. Raises UsageError for a URL."""
    listed = [given] if isinstance(given, (str, Path)) else given
    return [path for item in listed if (path := as_local(item))]


def remote(path: Path) -> UPath | None:
    """Return the path with its real type if it is a URL; None for a local path."""
    return None if isinstance(path, Path) else path


@contextlib.contextmanager
def reaching(path: Path, *passing: type[Exception]) -> Iterator[None]:
    """Turn the errors of a URL's file system and its libraries into a StoreError.

    Errors of the types in `passing` are unchanged, and so are all errors for a local path.
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
    """Return a file name for any text: distinct texts get distinct names, and none is hidden."""
    # Quoting makes every id a single name; a leading dot would hide it or name a parent folder.
    name = quote(id, safe=" ()+,-=@[]_{}", errors="surrogateescape")
    if name.startswith(".") or name.endswith(".json"):
        name = name.replace(".", "%2E")
    if len(name) > 200:
        sha = hashlib.sha256(id.encode(errors="surrogateescape")).hexdigest()
        name = f"{name[:150]}%{sha[:32]}"
    return name or "%"


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file next to `path`, then rename it to `path`.

    The temporary name keeps the suffix, because some writers choose their format by it. An OSError
    names the path itself. The first write into a folder removes what killed processes left there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep_once(os.path.abspath(path.parent))
    try:
        with _locked_temporary(path) as temporary:
            try:
                write(temporary)
                flush(temporary)
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
    except OSError as error:
        file = os.path.basename(str(error.filename or TEMPORARY))
        if error.errno is None or not file.startswith(TEMPORARY):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextlib.contextmanager
def _locked_temporary(path: Path) -> Iterator[Path]:
    """Create a temporary file next to a path, and lock it: others see that it is being written."""
    while True:
        # Short, because the name itself may be as long as the file system allows.
        temporary = path.with_name(f"{TEMPORARY}{secrets.token_hex(6)}{path.suffix}")
        if fcntl is None:
            yield temporary
            return
        descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
        try:
            if try_lock(descriptor) is not False and os.path.lexists(temporary):
                yield temporary
                return
            # A process that sweeps was faster than the lock, and has removed the file or will do it
            # at any time: only another name is safe from it.
        finally:
            os.close(descriptor)


def try_lock(descriptor: int) -> bool | None:
    """Lock an open file; False if another process has locked it, None where that cannot be done."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def sweep(folder: Path) -> None:
    """Remove incomplete files in a local folder whose writers are gone, where that is allowed.

    Where files cannot be locked, these are the files that nobody has written for a day.
    """
    try:
        names = [name for name in os.listdir(folder) if name.startswith(TEMPORARY)]
    except OSError:
        return
    for name in names:
        with contextlib.suppress(OSError):
            _remove_abandoned(folder / name)


@cache
def _sweep_once(folder: str) -> None:
    sweep(Path(folder))


def _remove_abandoned(file: Path) -> None:
    # Neither a link is followed nor a pipe waited for.
    flags = (os.O_NOFOLLOW | os.O_NONBLOCK) if fcntl else 0
    descriptor = os.open(file, os.O_RDWR | flags)
    try:
        locked = try_lock(descriptor)
        old = time.time() - os.fstat(descriptor).st_mtime > _ABANDONED
        if locked:
            file.unlink()  # while it is locked
    finally:
        os.close(descriptor)
    if locked is None and old:
        file.unlink()  # on Windows only after it is closed


def visible(folder: Path, pattern: str) -> list[Path]:
    """Return what matches a pattern in a folder, sorted and without hidden files."""
    return sorted(path for path in folder.glob(pattern) if not path.name.startswith("."))


def check_target(file: Path, option: str, example: str) -> None:
    """Raise UsageError if a file cannot be written, before any work is done.

    Args:
        file: The file to write.
        option: The command-line option that names it.
        example: The name of a file in the folder, if `file` is a folder.
    """
    if _is_special(file) and os.access(file, os.W_OK) and not file.is_block_device():
        return
    if os.path.isdir(file):  # returns False where a Path raises PermissionError
        raise UsageError(
            f"{file}: a folder, expected the name of a file, for example {file / example}"
        )
    if os.path.exists(file) and not os.path.isfile(file):
        raise UsageError(f"{file}: a device, expected a file; choose another one with {option}")
    check_folder(file.parent, option, file.name)


def _is_special(path: Path) -> bool:
    """Return whether a path stands for a pipe, a device or an open file, to be left in its place.

    A rename would replace /dev/null by a file.
    """
    if not os.path.exists(path) or os.path.isdir(path):
        return False
    streams = ("/dev/fd/", "/dev/stdout", "/dev/stderr", "/proc/")
    return not os.path.isfile(path) or os.path.abspath(path).startswith(streams)


def check_folder(folder: Path, option: str, what: str) -> None:
    """Raise UsageError if `what` cannot be written into a folder, before any work is done."""
    # A dangling link counts as existing: no folder can be created in its place.
    places = (place for place in (folder, *folder.parents) if os.path.lexists(place))
    first = next(places, folder)
    if os.path.isdir(first) and os.access(first, os.W_OK | os.X_OK):
        return
    named = "this" if first == folder else str(first)
    problem = "may not be written to" if os.path.isdir(first) else "is a file"
    raise UsageError(
        f"{folder}: {named} {problem}, expected a folder for {what}; name another one with {option}"
    )


def check_inside(path: Path, folder: Path, error: type[UsageError] = UsageError) -> None:
    """Raise an error if links lead from a folder to a place outside, before anything is written.

    The folder itself may be a link, such as to another disk.

    Args:
        path: A file or folder below the folder, which need not exist.
        folder: The folder of a store, a run or results.
        error: What to raise.
    """
    real, root = os.path.realpath(path), os.path.realpath(folder)
    if real != root and not real.startswith(os.path.join(root, "")):
        raise error(
            f"{path}: a link leads to {real}, outside of {folder}, where nothing is written or "
            f"deleted; remove the link"
        )


def same_file(one: str | Path, other: str | Path) -> bool:
    """Return whether two paths lead to the same place, where nothing has to exist."""
    first, second = (os.path.realpath(str(as_path(path))) for path in (one, other))
    return first == second


def check_kept(file: str | Path | None, option: str, *read: str | Path | None) -> None:
    """Raise UsageError if a result would overwrite one of the files that it is made from."""
    for source in read:
        if source is not None and file is not None and same_file(file, source):
            raise UsageError(f"{file} is also an input; choose another file with {option}")


@contextlib.contextmanager
def optional(consequence: str) -> Iterator[None]:
    """Turn the failure to write a file that only saves time into a MstembaWarning.

    Args:
        consequence: What the user should know then, as the end of the message.
    """
    try:
        yield
    except (OSError, StoreError) as error:
        problem = describe_error(error) if isinstance(error, OSError) else str(error)
        warnings.warn(f"{problem}: {consequence}", MstembaWarning, stacklevel=3)


def ends_the_run(error: OSError) -> bool:
    """Return whether an error means that no other file can be written: the disk is full."""
    return error.errno in FULL_DISK


def describe_error(error: OSError) -> str:
    """Return the file of an error, and what happened to it."""
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}"


def flush(path: Path) -> None:
    """Write a local file through to the disk, so that it survives a power failure.

    A file system that does not support this is not an error.
    """
    with path.open("rb+") as file:
        try:
            os.fsync(file.fileno())
        except OSError as error:
            if error.errno not in {*UNSUPPORTED, errno.EINVAL}:
                raise


def write_text(path: Path, text: str) -> None:
    """Write a text completely or not at all. Raises StoreError if a URL cannot be written."""
    content = text.encode(errors="backslashreplace")
    if url := remote(path):
        with reaching(path):
            url.fs.pipe_file(url.path, content)  # atomic: one request
    else:
        write_atomically(path, lambda temporary: temporary.write_bytes(content))


def write_result(path: Path, text: str) -> None:
    """Write a text to a local file that a user named; a pipe or a device stays what it is."""
    if _is_special(path):
        with path.open("ab") as file:
            file.write(text.encode(errors="backslashreplace"))
    else:
        write_text(path, text)


def read_text(path: Path) -> str:
    """Return the text of a file.

    Raises:
        OSError: A local file cannot be read, or nothing exists at a URL.
        StoreError: A URL cannot be read.
    """
    if url := remote(path):
        with reaching(path, FileNotFoundError):
            content: bytes = url.fs.cat_file(url.path)
            return content.decode()
    return path.read_text(encoding="utf-8")


def to_json(data: Any, ascii: bool = False) -> str:
    """Return the JSON text as it is written to files; with `ascii`, other letters are escaped."""
    return json.dumps(data, indent=1, ensure_ascii=ascii, allow_nan=False) + "\n"


def write_json(path: Path, data: Any) -> None:
    """Write JSON as `write_text` does."""
    write_text(path, to_json(data))
