"""Divide videos without subsets into training, validation and test videos."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from mstemba.data_manifests.manifest import Manifest
from mstemba.data_manifests.readers.parsed import AnnotationReport
from mstemba.wording import counted

NO_SPLIT = "none"
"""Value of `--split` with which videos without a subset keep none."""
# With fewer videos, one for validation and one for testing would leave too few for training.
_FEWEST = 7
_HELD_OUT = 0.15
_CHOOSE = f"to choose yourself, add a column `subset` to the annotations (--split {NO_SPLIT}: none)"


def id_hash(id: str) -> str:
    """Return the hash of a video's id, which may come from a file name that is not UTF-8."""
    return hashlib.sha256(id.encode(errors="surrogatepass")).hexdigest()


def split_by_hash(manifest: Manifest, ids: Sequence[str], report: AnnotationReport) -> Manifest:
    """Return the manifest with subsets of the annotated videos, if no video has one.

    The hashes of the ids decide, so that every machine makes the same choice: 15 % of the videos
    are for validation, 15 % for testing, the others for training. Fewer than seven videos are all
    for training.

    Args:
        manifest: The manifest.
        ids: Its annotated videos.
        report: Receives a note on what was chosen.
    """
    if any(video.subset for video in manifest.videos.values()):
        return manifest
    by_hash = sorted(ids, key=id_hash)
    count = round(_HELD_OUT * len(by_hash)) if len(by_hash) >= _FEWEST else 0
    subsets = dict.fromkeys(by_hash, "training")
    subsets |= dict.fromkeys(by_hash[:count], "testing")
    subsets |= dict.fromkeys(by_hash[count : 2 * count], "validation")
    training = Counter(subsets.values())["training"]
    if count:
        how = (
            f"by the hash of their ids, {training} videos are for training, {count} for validation "
        )
        how += f"and {count} for testing"
    else:
        how = f"with fewer than {_FEWEST} videos, all are for training, none for testing"
    report.notes.append(f"the annotations have no subsets: {how}; {_CHOOSE}")
    return with_subsets(manifest, subsets)


def for_training(manifest: Manifest, ids: Sequence[str], report: AnnotationReport) -> Manifest:
    """Return the manifest in which those of these videos with actions are in a subset.

    Those that have none are for training.
    """
    videos = (manifest.videos[id] for id in ids)
    chosen = [video.id for video in videos if video.subset is None and video.actions]
    if chosen:
        report.notes.append(
            f"without a subset in the annotations, and used for training: "
            f"{counted(len(chosen), 'video')}, for example {chosen[0]}; {_CHOOSE}"
        )
    return with_subsets(manifest, dict.fromkeys(chosen, "training"))


def with_subsets(manifest: Manifest, subsets: dict[str, str]) -> Manifest:
    """Return the manifest with these subsets, by video id."""
    videos = {
        id: replace(video, subset=subsets.get(id, video.subset))
        for id, video in manifest.videos.items()
    }
    return replace(manifest, videos=videos)
