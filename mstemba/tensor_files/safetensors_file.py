"""Headers of safetensors files, and the SHA-256 in those of ours. Imports no torch.

A file of ours has the SHA-256 of its content in its metadata. It is that of the file with 64 zeros
in its place, so that a change of any bit is seen.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from msgspec import Struct

from mstemba.errors import UsageError
from mstemba.limits import LARGEST_HEADER
from mstemba.reading.typed import Count, convert, parse_untyped

DIGEST = "sha256"
"""The name of the SHA-256 in the metadata."""
NO_DIGEST = "0" * 64


class TensorEntry(Struct, forbid_unknown_fields=True):
    """A tensor in a header."""

    dtype: str
    shape: list[Count]
    data_offsets: tuple[Count, Count]


@dataclass(frozen=True)
class Header:
    """What is in a file: tensors by name, and texts."""

    tensors: dict[str, TensorEntry]
    metadata: dict[str, str]


def read_header(path: Path) -> Header:
    """Read a header, and compare what it promises with the size of the file.

    Raises:
        ValueError: The file is damaged or incomplete. The message does not name it.
        OSError: It cannot be read.
    """
    size = path.stat().st_size
    content = _header_bytes(path)
    try:
        data = parse_untyped(content, "header")
        found = convert(data, dict[str, object], "header")
        metadata = convert(found.pop("__metadata__", {}), dict[str, str], "header")
        tensors = convert(found, dict[str, TensorEntry], "header")
    except UsageError:
        raise ValueError("a damaged safetensors file, whose header is not readable") from None
    for name, entry in tensors.items():
        begin, end = entry.data_offsets
        bits = re.match(r"[A-Z]+(\d{1,3})", entry.dtype.replace("BOOL", "BOOL8"))
        width = int(bits[1]) if bits else 0
        if 8 * (end - begin) != width * math.prod(entry.shape):
            raise ValueError(
                f"a damaged safetensors file, whose tensor {name[:80]!r} has {end - begin:,} "
                f"bytes, but another shape"
            )
    end = 8 + len(content) + max((e.data_offsets[1] for e in tensors.values()), default=0)
    if size < end:
        raise ValueError(f"an incomplete safetensors file ({size:,} of {end:,} bytes)")
    return Header(tensors, metadata)


def _header_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > LARGEST_HEADER:
            raise ValueError("a damaged safetensors file, whose header is not readable")
        content = file.read(length)
    if len(content) < length:
        raise ValueError("an incomplete safetensors file, which ends inside its header")
    return content


def with_digest(content: bytes) -> bytes:
    """Return the content of a file whose metadata have `NO_DIGEST` with its SHA-256 there."""
    digest = hashlib.sha256(content).hexdigest()
    return content.replace(_entry(NO_DIGEST), _entry(digest), 1)


def stored_digest(path: Path) -> str | None:
    """Return the SHA-256 that a file carries; None if it has none.

    Raises:
        ValueError: The header is damaged. The message does not name the file.
        OSError: It cannot be read.
    """
    return read_header(path).metadata.get(DIGEST)


def check_digest(path: Path, names: Collection[str] = ()) -> None:
    """Check a file's content against the SHA-256 in it, if it has one.

    Args:
        path: A file with a readable header.
        names: Those in the metadata of files of ours. Others are refused: one may be the changed
            name of the SHA-256.

    Raises:
        ValueError: The file is damaged. The message does not name it.
        OSError: It cannot be read.
    """
    metadata = read_header(path).metadata
    if odd := metadata.keys() - {*names, DIGEST, "format"}:
        raise ValueError(f"damaged: found metadata {min(odd)[:80]!r}, expected {DIGEST!r}")
    if (digest := metadata.get(DIGEST)) is None:
        return
    header = _header_bytes(path)
    empty = header.replace(_entry(digest), _entry(NO_DIGEST))
    with path.open("rb") as file:
        found = hashlib.sha256(file.read(8) + empty)
        file.seek(len(header), 1)
        while piece := file.read(2**20):
            found.update(piece)
    if header.count(_entry(digest)) != 1 or found.hexdigest() != digest:
        raise ValueError("damaged: its SHA-256 is not the one that was saved with it")


def _entry(digest: str) -> bytes:
    return f'"{DIGEST}":"{digest}"'.encode(errors="replace")
