"""Join annotations with the video files that they mean."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from mstemba.data_manifests.bounds import skip_unusable_videos
from mstemba.data_manifests.manifest import Manifest, Video
from mstemba.data_manifests.readers.parsed import (
    TWO_MEDIA_FILES,
    AnnotationReport,
    ParsedAnnotations,
    ParsedVideo,
    some_names,
)
from mstemba.data_manifests.video_names import (
    VideoNames,
    default_ids,
    may_be_same,
    without_ending,
)
from mstemba.errors import ManifestError
from mstemba.reading.files import real_path
from mstemba.reading.typed import shown


def name_videos(parsed: ParsedAnnotations, files: Mapping[str, Path | None]) -> None:
    """Replace the names that annotations have for their videos by ids, and report unusual ones.

    Args:
        parsed: Its videos are by name before, and by id afterwards. Several names of one video
            become one entry.
        files: The files of the known videos, by id.
    """
    report = parsed.report
    exact = parsed.ids & files.keys()
    matches = VideoNames(files).match(name for name in parsed.videos if name not in exact)
    ids = {name: name for name in parsed.ids} | matches.ids
    for name, found in matches.ambiguous.items():
        report.keep("video name that fits several files", f"'{name}': {some_names(found)}")
    for name, other in matches.rivals.items():
        kind = "video name that is not joined, because another one fits its file better"
        report.keep(kind, f"'{name}' and '{other}'")
    left = [name for name in parsed.videos if name not in ids]
    ids |= default_ids(left, files)
    for name, id in matches.ids.items():
        file = files[id]
        if name not in (id, file and file.name, file and os.path.abspath(file)):
            report.join("video named otherwise than its file", f"'{name}' is {file or id}")
    names: dict[str, str] = {}
    videos: dict[str, ParsedVideo] = {}
    for name, video in parsed.videos.items():
        id = ids[name]
        if id in videos:
            _add(videos[id], video, id, report)
            if not _may_be_one(names[id], video.media or name):
                report.keep(TWO_MEDIA_FILES, f"{shown(names[id])} and {shown(video.media or name)}")
        else:
            videos[id], names[id] = video, video.media or name
    parsed.videos = videos
    skip_unusable_videos(parsed)


def _may_be_one(one: str, other: str) -> bool:
    """Return whether two names may be those of one file; case and a missing ending do not count."""
    if one == without_ending(one) or other == without_ending(other):
        one, other = without_ending(one), without_ending(other)
    return may_be_same(one.casefold(), other.casefold())


def _add(video: ParsedVideo, other: ParsedVideo, id: str, report: AnnotationReport) -> None:
    """Add another entry of a video to its first one, whose facts count."""
    for name in ("subset", "duration", "annotated_until"):
        first, second = getattr(video, name), getattr(other, name)
        if first is None:
            setattr(video, name, second)
        elif second not in (None, first):
            report.skip(f"second {name} of a video", f"{shown(first)} and {shown(second)} of {id}")
    video.actions += other.actions
    video.lacks_actions = video.lacks_actions and other.lacks_actions


def join(annotations: Manifest, files: Mapping[str, Path], report: AnnotationReport) -> Manifest:
    """Set the files of the annotated videos, and add the other videos without a subset.

    Raises ManifestError if no annotated video has a file.
    """
    videos = {
        id: replace(video, path=files.get(id, video.path))
        for id, video in annotations.videos.items()
    }
    if videos and all(video.path is None for video in videos.values()):
        id, file = next(iter(files.items()))
        raise ManifestError(
            f"no annotated video ({len(videos)}) is among the video files ({len(files)}); found "
            f"annotations of {some_names(map(repr, videos))}, expected for example those of "
            f"{id!r} ({file})"
        )
    for id, video in videos.items():
        former = annotations.videos[id].path
        if video.path and former and real_path(video.path) != real_path(former):
            report.keep("video whose file has changed", str(video.path))
    joined = replace(annotations, videos=videos)
    report_without_file(joined, videos, report)
    for id, path in files.items():
        if id not in videos:
            report.keep("video file without annotation", str(path))
            videos[id] = Video(id, path, None, None)
    return replace(annotations, videos=videos)


def report_without_file(manifest: Manifest, ids: Iterable[str], report: AnnotationReport) -> None:
    """Report those of these videos that have no file."""
    for id in ids:
        if manifest.videos[id].path is None:
            report.keep("annotated video without a file", id)
