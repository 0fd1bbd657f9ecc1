"""Scores of a video to its segments and its files: the end of `detect`, and all of `export`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from mstemba.data_manifests.manifest import Video
from mstemba.errors import MstembaError, UsageError
from mstemba.pipeline.caching.files import describe_error, ends_the_run
from mstemba.pipeline.detect.ground_truth import GroundTruth
from mstemba.pipeline.detect.segments import find_segments
from mstemba.pipeline.options import ExportOptions
from mstemba.pipeline.outputs import WRITERS, Detection
from mstemba.pipeline.outputs.html_page import check_embeddable
from mstemba.pipeline.progress import Event, EventHandler
from mstemba.records import Scores


@contextmanager
def recording(failed: dict[str, str], name: str, *expected: type[MstembaError]) -> Iterator[None]:
    """Record why a video fails, so that it does not stop the others, as a full disk does.

    Args:
        failed: Receives the reason.
        name: The video's in `failed`.
        expected: The errors to record, in addition to an OSError.
    """
    try:
        yield
    except expected as error:
        failed[name] = str(error)
    except OSError as error:
        if ends_the_run(error):
            raise
        failed[name] = describe_error(error)


def check_formats(formats: Sequence[str]) -> None:
    """Raise UsageError for an unknown format, and for none at all."""
    if not formats:
        raise UsageError(f"no format named; there are {', '.join(WRITERS)}")
    if unknown := [name for name in formats if name not in WRITERS]:
        raise UsageError(f"unknown format {unknown[0]!r}; there are {', '.join(WRITERS)}")


def make_detection(
    scores: Scores,
    id: str,
    provenance: dict[str, Any],
    video: Video | None,
    truth: GroundTruth,
    options: ExportOptions,
) -> Detection:
    """Cut a video's scores into segments.

    Args:
        scores: The video's dense scores.
        id: The video's, used if the manifest does not have the video.
        provenance: Where the scores come from.
        video: The manifest's entry of the file, which may have moved.
        truth: The manifest's labels.
        options: How segments are cut.
    """
    spec = provenance.get("features", {})
    stride = spec.get("stride")
    frames_per_row = stride and stride * spec.get("every", 1)
    video = video or truth.find(id)
    id = video.id if video else id
    entry = truth.entry(video, scores, frames_per_row)
    threshold, low, min_length = options.threshold, options.low_threshold, options.min_length
    return Detection(
        scores,
        find_segments(scores, threshold, low, min_length),
        truth.segments(id, entry, scores),
        {**provenance, "threshold": threshold, "low": low, "min_length": min_length},
        id=id,
        subset=video.subset if video else None,
        options=options,
        frames_per_row=frames_per_row if truth.time_unit == "frames" else None,
        listed=entry,
    )


def write_files(
    detection: Detection, folder: Path, stem: str, on_event: EventHandler
) -> list[Path]:
    """Write the formats that the options name, as `<stem>.<suffix>`.

    Raises:
        UsageError: The video cannot be embedded; nothing is written.
    """
    options, video = detection.options, Path(detection.scores.video)
    if options.embed and "html" in options.formats and os.path.exists(video):
        check_embeddable(video)
    files = []
    for form in dict.fromkeys(options.formats):
        writer = WRITERS[form]
        file = folder / f"{stem}.{writer.suffix}"
        if writer.warn and (warning := writer.warn(detection)):
            on_event(Event(form, warning, warning=True, video=detection.id))
        writer.write(detection, file)
        files.append(file)
    return files


def why_nothing(detection: Detection) -> str:
    """Return the highest score for a user who sees no segment; empty where there are segments."""
    scores, options = detection.scores, detection.options
    if detection.segments or not scores.probabilities.size:
        return ""
    row, class_id = np.unravel_index(scores.probabilities.argmax(), scores.probabilities.shape)
    highest = scores.probabilities[row, class_id]
    if highest >= options.threshold:
        return f" (all are shorter than {options.min_length:g} s)"
    # Enough digits to tell it from the threshold: 0.996 is not 1.00.
    digits = next((d for d in range(2, 9) if round(float(highest), d) < options.threshold), 9)
    shortest = f", shortest {options.min_length:g} s" if options.min_length else ""
    return (
        f" (highest probability {highest:.{digits}f}: "
        f"{scores.classes[class_id]} at {scores.times[row]:.1f} s; "
        f"threshold {options.threshold:g}{shortest})"
    )
