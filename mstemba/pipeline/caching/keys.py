"""Cache keys: a stage runs only if its key is new.

A key is the SHA-256 of canonical JSON with the stage, its version, the content of its inputs (never
a path) and every option that changes a number. Where and how fast it runs is not part of it.
"""

from __future__ import annotations

import errno
import hashlib
import json
from pathlib import Path
from typing import Any

from mstemba.data_manifests.playlists import Playlist, read_playlist
from mstemba.pipeline.caching.files import read_json, write_json
from mstemba.records import FeatureSpec

# Raise a stage's version when its code gives other numbers for the same options.
VERSIONS = {"features": 2, "train": 2, "detect": 1}
# Raise a backbone's version when only its features change.
BACKBONE_VERSIONS = {"clip": 2}


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


class Fingerprints:
    """SHA-256 of whole files, cached by path, size and modification time.

    Losing the cache file, or two processes overwriting each other's, only costs time. A file that
    is rewritten with the same size and time counts as unchanged.
    """

    def __init__(self, cache: Path | None = None) -> None:
        self._cache = cache
        self._known: dict[str, list[Any]] = {}
        if cache is not None and cache.is_file():
            try:
                known = read_json(cache)
            except ValueError:
                known = None  # a damaged cache file counts as empty
            if isinstance(known, dict):
                self._known = {
                    k: v for k, v in known.items() if isinstance(v, list) and len(v) == 3
                }

    def of(self, path: Path) -> str:
        """Return the SHA-256 of a file; of an HLS playlist, that of its files together.

        Raises OSError if it cannot be read, and for a playlist without all its pieces.
        """
        given, path = path, path.resolve()
        stat = path.stat()
        stamp = [stat.st_size, stat.st_mtime_ns]
        known = self._known.get(str(path))
        if known is not None and known[:2] == stamp:
            return str(known[2])
        # The path is not resolved: pieces are next to a link, not next to its target. Playlists are
        # never cached, because their pieces may change.
        if playlist := read_playlist(given):
            return self._of_playlist(playlist)
        sha = file_sha256(path)
        self._known[str(path)] = [*stamp, sha]
        return sha

    def _of_playlist(self, playlist: Playlist) -> str:
        path = playlist.playlists[0]
        if playlist.problems:
            raise FileNotFoundError(errno.ENOENT, playlist.problems[0], str(path))
        shas = [file_sha256(file) for file in playlist.playlists]
        for piece in playlist.pieces:
            try:
                shas.append(self.of(piece))
            except OSError as error:
                reason = f"its piece {piece}: {error.strerror}"
                raise OSError(error.errno, reason, str(path)) from None
        return hashlib.sha256("\n".join(shas).encode()).hexdigest()

    def save(self) -> None:
        """Write the cache file, if there is one."""
        if self._cache is not None:
            write_json(self._cache, self._known)
