"""The SHA-256 that our files of safetensors carry, by which damage is found.

It is in the file itself, among its metadata: a second file could not be replaced in the same step.
It is that of the whole file with zeros in its own place.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

_NAME, _EMPTY = "sha256", "0" * 64
# What safetensors files of others, and ours before they had the digest, have as metadata.
_USUAL = {"format"}


def with_digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """Return the content of a file of safetensors that carries its SHA-256.

    Args:
        tensors: By name.
        metadata: More to be in the file. Equal tensors and metadata give equal content.
    """
    import safetensors.torch

    content = safetensors.torch.save(dict(tensors), {**(metadata or {}), _NAME: _EMPTY})
    begin = content.index(f'"{_NAME}":"{_EMPTY}"'.encode()) + len(_NAME) + 4
    digest = hashlib.sha256(content).hexdigest().encode()
    return b"".join([content[:begin], digest, content[begin + len(digest) :]])


def check_digest(path: Path, known: Collection[str] = ()) -> None:
    """Compare a file of safetensors with the SHA-256 that it carries.

    A file without one is accepted if it has no other metadata than those known: a damaged name of
    the digest must not pass for a file that never had one.

    Args:
        path: A file of safetensors.
        known: Names of more metadata that it may have.

    Raises:
        ValueError: The file is damaged. The message does not name it.
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        begin = file.read(8)
        size = int.from_bytes(begin, "little")
        if size > path.stat().st_size:
            raise ValueError("damaged: it ends inside its header")
        header = file.read(size)
        try:
            metadata = dict(json.loads(header).get("__metadata__") or {})
        except (ValueError, AttributeError, TypeError, RecursionError):
            raise ValueError("damaged: its header is not readable") from None
        stored = metadata.pop(_NAME, None)
        if unknown := metadata.keys() - _USUAL - set(known):
            raise ValueError(f"damaged: unknown metadata {min(unknown)!r}")
        if stored is None:
            return
        digest = hashlib.sha256(begin)
        digest.update(header.replace(str(stored).encode(), _EMPTY.encode(), 1))
        while part := file.read(2**20):
            digest.update(part)
    if digest.hexdigest() != stored:
        raise ValueError(
            f"damaged: its content has the SHA-256 {digest.hexdigest()[:12]}..., expected "
            f"{str(stored)[:12]}..."
        )
