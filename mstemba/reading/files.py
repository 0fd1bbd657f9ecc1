"""Read a whole file, after a look at what it is: a pipe or a device has no end."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from mstemba.errors import MstembaError, UsageError
from mstemba.limits import LARGEST_TEXT, SPARE_MEMORY

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def file_size(path: Path, error: type[MstembaError] = UsageError) -> int:
    """Return the size of a regular file in bytes, links followed.

    Args:
        path: May contain what no path can, such as a NUL.
        error: What to raise.

    Raises:
        UsageError: Or `error`: it is missing, cannot be read, or is something other than a file.
    """
    try:
        found = os.stat(path)
    except FileNotFoundError:
        raise error(f"{path}: no such file") from None
    except (OSError, ValueError) as problem:
        raise error(f"{path}: cannot be read: {reason(problem)}") from None
    if not stat.S_ISREG(found.st_mode):
        raise error(f"{path}: found {_kind(found)}, expected a file")
    return found.st_size


def special_kind(path: str | Path) -> str | None:
    """Return what a path is that is neither a file nor a folder: a pipe, a device or a socket."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    is_usual = stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)
    return None if is_usual else _kind(found)


def found_instead(path: str | Path) -> str:
    """Describe a path that is not a regular file: `no such file`, or `found a folder`."""
    try:
        return f"found {_kind(os.stat(path))}"
    except (OSError, ValueError):
        return "no such file"


def _kind(found: os.stat_result) -> str:
    return _KINDS.get(stat.S_IFMT(found.st_mode), "a special file")


def read_bytes(
    path: Path, error: type[UsageError] = UsageError, largest: int = LARGEST_TEXT
) -> bytes:
    """Return the content of a regular file.

    Args:
        path: The file.
        error: What to raise.
        largest: Bytes that it may have.

    Raises:
        UsageError: Or `error`: as `file_size`, or the file is larger.
    """
    size = file_size(path, error)
    try:
        with path.open("rb") as file:
            # Some files of the system tell no size, and others grow while they are read.
            content = file.read(min(size, largest) + 1)
            if len(content) > size:
                content += file.read(largest + 1 - len(content))
    except OSError as problem:
        raise error(f"{path}: cannot be read: {reason(problem)}") from None
    if len(content) > largest:
        size = max(size, len(content))
        raise error(
            f"{path}: {size / 2**20:,.0f} MB, expected at most {largest / 2**20:,.0f} MB; "
            f"divide it into several files"
        )
    return content


def check_memory(where: str, size: int, memory: int, error: type[UsageError] = UsageError) -> None:
    """Raise an error if the content of a file would take more memory than the limit.

    Args:
        where: The file, for the message.
        size: Of the file, in bytes.
        memory: What its content takes, in bytes.
        error: What to raise.
    """
    if memory > 4 * size + SPARE_MEMORY:
        raise error(
            f"{where}: {size / 2**20:,.1f} MB that would take {memory / 2**20:,.0f} MB of memory, "
            f"expected at most {(4 * size + SPARE_MEMORY) / 2**20:,.0f} MB; divide it into several "
            f"files"
        )


def real_path(path: Path) -> Path:
    """Return a path with its links followed; one that leads to itself stays as it is.

    `Path.resolve` raises a RuntimeError for it before Python 3.13.
    """
    return Path(os.path.realpath(path))


def reason(problem: BaseException) -> str:
    """Return what an exception of a library says, in one line without the path."""
    text = (problem.strerror if isinstance(problem, OSError) else None) or str(problem)
    return " ".join(text.split()) or type(problem).__name__
