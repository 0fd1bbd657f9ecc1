"""Open arrays, after what a file promises was compared with what it holds.

A header of a few bytes can promise any shape, and a zip archive any size. Each is checked before
memory is taken, and what the libraries raise becomes an error of ours. `pickles` does the same for
pickles, and `mstemba.tensor_files` for tensors.
"""

from __future__ import annotations

import io
import math
import struct
import sys
import zipfile
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mstemba.errors import UsageError, library_warnings_ignored
from mstemba.limits import LARGEST_INDEX, MOST_AXES, MOST_ROWS
from mstemba.reading.files import check_memory, file_size, reason
from mstemba.reading.typed import shown

_AGAIN = "make or copy it again"
_HEADER = 16_384
"""Bytes at the beginning of an array in which its header ends; numpy reads 10,000 at most."""
_ZIP_ERRORS = (
    OSError, EOFError, ValueError, KeyError, NotImplementedError, RuntimeError, OverflowError,
    MemoryError, struct.error, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def read_npy(path: Path, error: type[UsageError] = UsageError) -> NDArray[Any]:
    """Open an .npy file of numbers, which are read when they are used.

    Args:
        path: The file.
        error: What to raise.

    Raises:
        UsageError: Or `error`: it is not such a file, its shape and its size differ, or it holds
            something other than real numbers.
    """
    size = file_size(path, error)
    try:
        with path.open("rb") as file:
            head = file.read(_HEADER)
        shape, fortran, dtype, begin = _array_header(head, size)
        if 0 in shape:
            return np.empty(shape, dtype)
        return np.memmap(path, dtype, "r", begin, shape, "F" if fortran else "C")
    except (OSError, ValueError, OverflowError, MemoryError) as problem:
        raise error(f"{path}: not readable as an array: {reason(problem)}") from None


def read_npz(
    path: Path, error: type[UsageError] = UsageError, names: Collection[str] | None = None
) -> dict[str, NDArray[Any]]:
    """Read the arrays of an .npz file: numbers and texts.

    Args:
        path: The file.
        error: What to raise.
        names: Of the arrays to read, if the file has them. Default: all.

    Raises:
        UsageError: Or `error`: it is not such a file, is damaged, or would take too much memory.
    """
    arrays: dict[str, NDArray[Any]] = {}
    needed = 0
    with open_zip(path, error) as archive:
        size = file_size(path, error)
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            if names is not None and name not in names:
                continue
            with archive.open(member) as file, library_warnings_ignored():
                try:
                    head = file.read(_HEADER)
                    shape, _, dtype, _ = _array_header(head, member.file_size, texts=True)
                except ValueError as problem:
                    raise error(f"{path}: not readable as an array: {name}: {problem}") from None
                # Readers have a second copy, in float32.
                needed += member.file_size + 4 * math.prod(shape) * (dtype.kind != "U")
                check_memory(str(path), size, needed, error)
                file.seek(0)
                arrays[name] = np.lib.format.read_array(file, allow_pickle=False)
    return arrays


def _array_header(
    head: bytes, size: int, texts: bool = False
) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Return shape, order, type and begin of an array.

    Args:
        head: The beginning of the file.
        size: Of the file.
        texts: Whether texts are allowed.

    Raises:
        ValueError: It is not the header of an array with this size.
    """
    if not head.startswith(b"\x93NUMPY"):
        raise ValueError(f"it begins with {head[:6]!r}, expected b'\\x93NUMPY'")
    file = io.BytesIO(head)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    try:
        with library_warnings_ignored():  # of Python 2, and of odd texts
            shape, fortran, dtype = readers[np.lib.format.read_magic(file)](file)
    except Exception as problem:  # numpy evaluates the header as Python: that can raise anything
        raise ValueError(f"damaged header ({type(problem).__name__}); {_AGAIN}") from None
    kinds = "numbers or texts" if texts else "real numbers"
    if dtype.kind not in "fiub" + "U" * texts or dtype.itemsize == 0:
        raise ValueError(f"found an array of {dtype}, expected {kinds}")
    if len(shape) > MOST_AXES or not all(0 <= length <= MOST_ROWS for length in shape):
        raise ValueError(
            f"found the shape {shown(list(shape))}, expected at most {MOST_AXES} axes with at "
            f"most {MOST_ROWS:,} numbers along each"
        )
    begin, promised = file.tell(), math.prod(shape) * dtype.itemsize
    if begin + promised != size:
        raise ValueError(
            f"found {size - begin:,} bytes of data, expected {promised:,} for {dtype} of shape "
            f"{tuple(shape)}; {_AGAIN}"
        )
    return tuple(shape), fortran, dtype, begin


class _ArchiveFile(io.BufferedReader):
    """The file of a zip archive, whose list of members `zipfile` reads at once."""

    largest = LARGEST_INDEX

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > self.largest:
            raise ValueError(
                f"its list of members has {size / 2**20:,.0f} MB, "
                f"expected at most {LARGEST_INDEX / 2**20:,.0f} MB"
            )
        return super().read(size)


@contextmanager
def open_zip(path: Path, error: type[UsageError] = UsageError) -> Iterator[zipfile.ZipFile]:
    """Open a zip archive whose members, all together, fit into memory.

    What reading the members raises becomes an error, too.

    Args:
        path: The file.
        error: What to raise.

    Raises:
        UsageError: Or `error`: it is damaged, encrypted, or its members would take too much memory.
    """
    size = file_size(path, error)
    try:
        with _ArchiveFile(io.FileIO(path)) as file, zipfile.ZipFile(file) as archive:
            file.largest = sys.maxsize
            members = archive.infolist()
            if len({member.filename.removesuffix(".npy") for member in members}) < len(members):
                raise ValueError("two of its files have the same name")
            if any(member.flag_bits & 1 for member in members):
                raise ValueError("it is encrypted")
            # Others can take any amount of memory, and no program writes arrays with them.
            known = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
            if any(member.compress_type not in known for member in members):
                raise ValueError("found an unknown compression, expected none or deflate")
            check_memory(str(path), size, sum(member.file_size for member in members), error)
            yield archive
    except _ZIP_ERRORS as problem:
        raise error(f"{path}: not readable as a zip archive: {reason(problem)}") from None
