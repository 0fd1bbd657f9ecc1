"""The videos of one command: who each of them is, and under which names it is kept."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mstemba.data_manifests.manifest import Manifest, Video, VideoIndex, load_manifest
from mstemba.errors import StoreError, UsageError
from mstemba.pipeline.caching.keys import Fingerprints, entry_key
from mstemba.pipeline.features.store import FeatureStore
from mstemba.pipeline.workspace import Workspace

# Bytes of a result file's stem: file systems allow 255 for the whole name.
LONGEST_STEM = 200
# Ends of stems that would make `walk.scores.mp4` overwrite the saved scores of `walk.mp4`.
RESERVED_ENDS = (".scores", ".activitynet")


@dataclass(frozen=True)
class CatalogVideo:
    """One video of a command."""

    id: str
    """From its file name, or the manifest's where the command reads one."""
    path: Path
    listed: Video | None
    """Its entry in the manifest."""
    fingerprint: str
    """Of its content; empty if it cannot be read."""
    problem: str = ""
    """Why it cannot be read."""


class Catalog:
    """The videos of one command, and what the manifest says of them.

    Args:
        files: Paths by id, from `find_videos` or from the manifest.
        manifest: The workspace's, or the one that the command reads; None if there is none.
        fingerprints: Where the content's fingerprints come from.
    """

    def __init__(
        self, files: Mapping[str, Path], manifest: Manifest | None, fingerprints: Fingerprints
    ) -> None:
        self.manifest = manifest
        self._files = files
        self._index = VideoIndex(manifest.videos.values() if manifest else ())
        self.fingerprints = fingerprints
        self._stems: set[str] = set()

    @cached_property
    def videos(self) -> list[CatalogVideo]:
        """The videos in the order of `files`. The first access reads every new file."""
        videos = []
        for id, path in self._files.items():
            named = self._index.get(id)
            listed = named if named and named.path == path else self.listed(path)
            fingerprint = problem = ""
            try:
                fingerprint = self.fingerprints.of(path)
            except UsageError as error:
                problem = str(error)
            videos.append(CatalogVideo(id, path, listed, fingerprint, problem))
        return videos

    @property
    def without_file(self) -> list[str]:
        """Ids of the manifest's videos that name no file."""
        videos = self.manifest.videos.values() if self.manifest else ()
        return [video.id for video in videos if video.path is None]

    def listed(self, path: Path) -> Video | None:
        """Return the manifest's entry of a file."""
        return self._index.with_file(path)

    def listed_path(self, id: str) -> Path | None:
        """Return the file that the manifest names for an id."""
        video = self._index.get(id)
        return video.path if video else None

    def entry_name(self, video: CatalogVideo, store: FeatureStore) -> str:
        """Return the name of a video's entry in a feature store.

        It is the manifest's id of the video. One that the manifest does not have keeps its own id,
        with some of its fingerprint added where another video has that name.
        """
        if video.listed is not None:
            return video.listed.id
        if video.problem:
            return video.id
        marked = _marked(video.id, video.fingerprint)
        if self.listed_path(video.id) is not None:
            return marked
        try:
            entry = store.entry(video.id)
        except StoreError:
            return video.id  # damaged: to be made again
        current = entry is None or entry.key == entry_key(store.spec, video.fingerprint)
        return video.id if current else marked

    def stem(
        self, name: str, fingerprint: str, is_taken: Callable[[str], bool] = lambda stem: False
    ) -> str:
        """Return the stem of a video's result files, one that no other video of the command has.

        Some of the fingerprint or a number is added where another video has the name.

        Args:
            name: Stem that is wanted.
            fingerprint: The video's; may be empty.
            is_taken: Whether the files of a stem are those of another video.
        """
        marked = [_marked(name, fingerprint)] if fingerprint else []
        numbered = (f"{name} ({number})" for number in itertools.count(2))
        stems = itertools.chain([name], marked, numbered)
        stem = next(s for s in stems if s not in self._stems and not is_taken(s))
        self._stems.add(stem)
        return stem


def workspace_manifest(workspace: Workspace | None) -> Manifest | None:
    """Return the manifest of a workspace; None if there is none."""
    if workspace is None or not workspace.manifest.is_file():
        return None
    return load_manifest(workspace.manifest)


def file_stem(id: str, fingerprint: str) -> str:
    """Return a video's id as the stem of its result files, in which no id may be a path."""
    # An id may hold folders (two videos of one name); their results lie side by side.
    stem = id.replace("/", "__").replace("\\", "__")
    if len(os.fsencode(stem)) > LONGEST_STEM:
        stem = _marked(os.fsencode(stem)[:LONGEST_STEM].decode(errors="ignore"), fingerprint)
    if stem.lower().endswith(RESERVED_ENDS):
        stem = _marked(stem, fingerprint)
    return stem


def _marked(name: str, fingerprint: str) -> str:
    return f"{name}@{fingerprint[:8]}"
