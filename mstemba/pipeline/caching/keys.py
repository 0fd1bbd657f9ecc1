"""Cache keys: a stage runs only if its key is new.

A key is the SHA-256 of canonical JSON with the stage, its version, the content of its inputs (never
a path) and every option that changes a number. Where and how fast it runs is not part of it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from mstemba.data_manifests.playlists import Playlist, read_playlist
from mstemba.errors import StoreError, UsageError
from mstemba.pipeline.caching.files import check_inside, optional, write_json
from mstemba.reading.files import file_size, reason
from mstemba.reading.typed import Count, read_json
from mstemba.records import FeatureSpec

# Raise a stage's version when its code gives other numbers for the same options.
VERSIONS = {"features": 2, "train": 2, "detect": 1}
# Raise a backbone's version when only its features change.
BACKBONE_VERSIONS = {"clip": 2}

_Known = tuple[Count, int, int, Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]]
"""Size in bytes, times of modification and change in nanoseconds, SHA-256."""


def cache_key(stage: str, **parts: Any) -> str:
    """Return the key of a stage's output for these inputs and options."""
    content = {"stage": stage, "version": VERSIONS[stage], **parts}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def spec_key(spec: FeatureSpec) -> str:
    """Return the key of a whole feature store."""
    return cache_key("features", **_spec_parts(spec))


def entry_key(spec: FeatureSpec, fingerprint: str) -> str:
    """Return the key of one video's features."""
    return cache_key("features", **_spec_parts(spec), video=fingerprint)


def _spec_parts(spec: FeatureSpec) -> dict[str, Any]:
    version = BACKBONE_VERSIONS.get(spec.backbone)
    return {"spec": spec.as_dict()} | ({"backbone_version": version} if version else {})


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a whole file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def unchanged(path: Path, sha256: str | None = None) -> Iterator[str]:
    """Check that a file stays the same in a `with` block, and yield its SHA-256.

    Args:
        path: The file.
        sha256: Its SHA-256, if that is known. Default: the one at the beginning.

    Raises:
        UsageError: The file has another SHA-256 at the end of the block.
    """
    sha256 = sha256 or file_sha256(path)
    yield sha256
    if file_sha256(path) != sha256:
        raise UsageError(f"{path}: replaced while it was being read; run the same command again")


class Fingerprints:
    """SHA-256 of whole files, cached by path, size, and times of modification and change.

    Losing the cache file, or two processes overwriting each other's, only costs time. The change
    time moves also where a file takes the place of another with the same modification time, as
    archives set it, and with a new link or new permissions: the file is then read again. Windows
    has a creation time in its place. There, a file that is rewritten with the same size and
    modification time counts as unchanged.
    """

    def __init__(self, cache: Path | None = None) -> None:
        self._cache = cache
        self._known: dict[str, _Known] = {}
        self._is_saved = True
        if cache is not None and cache.exists():
            # A damaged cache file counts as empty.
            with contextlib.suppress(UsageError):
                self._known = read_json(cache, dict[str, _Known])

    def of(self, path: Path) -> str:
        """Return the SHA-256 of a file; of an HLS playlist, that of its files together.

        Raises:
            UsageError: It cannot be read, is not a file, changes while it is read, or is a playlist
                without all its pieces.
        """
        stamp = _stamp(path)
        real = os.path.realpath(path)
        known = self._known.get(real)
        if known is not None and known[:3] == stamp:
            return known[3]
        try:
            # The path is not resolved: pieces are next to a link, not next to its target. Playlists
            # are never cached, because their pieces may change.
            if playlist := read_playlist(path):
                return self._of_playlist(playlist)
            sha = file_sha256(path)
            before, stamp = stamp, _stamp(path)
            # Only the change time moved: a new link or new permissions, unless the content differs.
            touched = stamp[:2] == before[:2] and stamp != before and file_sha256(path) == sha
        except OSError as error:
            raise UsageError(f"{path}: cannot be read: {reason(error)}") from None
        if stamp != before and not touched:
            raise UsageError(
                f"{path}: changed while it was being read; run the same command again when it is "
                f"complete"
            )
        self._known[real] = (*stamp, sha)
        self._is_saved = False
        return sha

    def _of_playlist(self, playlist: Playlist) -> str:
        path = playlist.playlists[0]
        if playlist.problems:
            raise UsageError(f"{path}: {playlist.problems[0]}")
        shas = [file_sha256(file) for file in playlist.playlists]
        for piece in playlist.pieces:
            try:
                shas.append(self.of(piece))
            except UsageError as error:
                raise UsageError(f"{path}: its piece {error}") from None
        return hashlib.sha256("\n".join(shas).encode()).hexdigest()

    def save(self) -> None:
        """Write the cache file, if there is one and it can be written."""
        if self._cache is not None and not self._is_saved:
            with optional("the fingerprints of new files are computed again next time"):
                check_inside(self._cache.parent, self._cache.parents[1], StoreError)
                write_json(self._cache, self._known)
            self._is_saved = True  # one warning is enough


def _stamp(path: Path) -> tuple[int, int, int]:
    """Return size, times of modification and change. Raises UsageError if it is not a file."""
    size = file_size(path)
    try:
        found = os.stat(path)
        return size, found.st_mtime_ns, found.st_ctime_ns
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {reason(error)}") from None
