"""Raw video in, dense detections out: features by the checkpoint's own backbone, then segments."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from mstemba.data_manifests.manifest import Video, as_paths, find_videos, load_manifest
from mstemba.errors import CheckpointError, StoreError, UsageError
from mstemba.extractors import registry
from mstemba.pipeline.checkpoint import Checkpoint, find_checkpoint, score
from mstemba.pipeline.devices import pick_device
from mstemba.pipeline.extract import entry_names, extract_into, make_spec, store_name
from mstemba.pipeline.features import UNKNOWN, in_seconds
from mstemba.pipeline.files import as_local
from mstemba.pipeline.keys import Fingerprints, digest, entry_key
from mstemba.pipeline.options import DetectOptions, ExtractOptions
from mstemba.pipeline.outputs import WRITERS, Detection
from mstemba.pipeline.outputs.scores import load_scores, save_scores, scored_video
from mstemba.pipeline.progress import Listener, silent
from mstemba.pipeline.segments import find_segments
from mstemba.pipeline.store import FeatureStore
from mstemba.pipeline.workspace import Workspace, find_workspace
from mstemba.records import Scores, Segment

# Bytes of a result file's stem: file systems allow 255 for the whole name.
LONGEST_NAME = 200


@dataclass
class DetectResult:
    """What a detection did."""

    output: Path
    files: dict[str, list[Path]] = field(default_factory=dict)
    """Files written, by video id."""
    detections: dict[str, Detection] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    """Reason by video id."""
    cached: list[str] = field(default_factory=list)
    """Videos whose kept scores were used again."""


def detect(
    videos: str | Path | Iterable[str | Path],
    options: DetectOptions | None = None,
    *,
    workspace: Workspace | None = None,
    checkpoint: str | Path | None = None,
    output: str | Path | None = None,
    weights: str | None = None,
    listen: Listener = silent,
) -> DetectResult:
    """Detect actions in videos, given as files or folders.

    Scores are kept beside the results (`<video>.scores.npz`): another threshold or format needs no
    second pass. `weights` names the backbone's weights file if it is not where it was at training.
    Raises UsageError for an unknown format, CheckpointError for a checkpoint that cannot run here.
    """
    options = options or DetectOptions()
    if unknown := [name for name in options.formats if name not in WRITERS]:
        raise UsageError(f"unknown format {unknown[0]!r}; there are {', '.join(WRITERS)}")
    workspace = workspace or find_workspace()
    inputs = find_videos(as_paths(videos))
    if not inputs:
        raise UsageError("name at least one video or folder")
    found = find_checkpoint(as_local(checkpoint), workspace)
    folder = as_local(output) or (workspace.detections if workspace else Path("detections"))
    job = _Detection(found, options, workspace, folder, weights, listen)
    return job.run(inputs)


@dataclass(frozen=True)
class _Job:
    id: str
    path: Path
    fingerprint: str
    name: str
    """Stem of its result files."""
    key: str
    """Of its scores."""


class _Detection:
    """One call of `detect`."""

    def __init__(
        self,
        found: Checkpoint,
        options: DetectOptions,
        workspace: Workspace | None,
        output: Path,
        weights: str | None,
        listen: Listener,
    ) -> None:
        self._found = found
        self._options = options
        self._workspace = workspace
        self._listen = listen
        self._weights = weights
        self._checkpoint = found.key_parts()
        self._fingerprints = Fingerprints(workspace.fingerprints if workspace else None)
        self._result = DetectResult(output)

    def run(self, inputs: Mapping[str, Path]) -> DetectResult:
        jobs = self._jobs(inputs)
        kept = {job.id: load_scores(self._scores_file(job), job.key) for job in jobs}
        self._result.cached = [id for id, scores in kept.items() if scores is not None]
        score_job = self._scorer([job for job in jobs if kept[job.id] is None])
        truth = self._ground_truth()
        for job in jobs:
            if job.id in self._result.failed:
                continue
            try:
                scores = kept[job.id] or score_job(job)
            except StoreError as error:
                self._result.failed[job.id] = str(error)
            else:
                self._write(job, replace(scores, video=str(job.path)), truth)
        self._fingerprints.save()
        return self._result

    def _jobs(self, inputs: Mapping[str, Path]) -> list[_Job]:
        """What there is to do; a video that cannot be read is a failure."""
        jobs: list[_Job] = []
        for id, path in inputs.items():
            try:
                sha = self._fingerprints.of(path)
            except OSError as error:
                self._result.failed[id] = f"{path}: {error.strerror}"
                continue
            name = self._name(id, path, sha, taken={job.name for job in jobs})
            features = entry_key(self._found.spec, sha)
            key = digest("detect", checkpoint=self._checkpoint, features=features)
            jobs.append(_Job(id, path, sha, name, key))
        return jobs

    def _name(self, id: str, path: Path, sha: str, taken: set[str]) -> str:
        """The video's id as a file name, unless another video's results have it."""
        # An id may hold folders (two videos of one name); their results lie side by side.
        name = id.replace("/", "__").replace("\\", "__")
        if len(os.fsencode(name)) > LONGEST_NAME:
            name = f"{os.fsencode(name)[:LONGEST_NAME].decode(errors='ignore')}@{sha[:8]}"
        other = scored_video(self._result.output / f"{name}.scores.npz")
        mine = other is None or other[0] == str(path.resolve()) or other[1] == sha
        return name if mine and name not in taken else f"{name}@{sha[:8]}"

    def _scores_file(self, job: _Job) -> Path:
        return self._result.output / f"{job.name}.scores.npz"

    def _scorer(self, jobs: list[_Job]) -> Callable[[_Job], Scores]:
        """Bring these videos' features up to date; gives what scores one of them and keeps it."""
        if not jobs:
            return _nothing_to_score
        spec, options = self._found.spec, self._options
        # Before the long part: a damaged checkpoint should not cost an extraction.
        model = self._found.load(pick_device(options.device), self._listen)
        backbone = _backbone(self._found, self._weights, self._fingerprints)
        root = self._workspace.features if self._workspace else self._result.output / ".features"
        store = FeatureStore.prepare(root / store_name(spec), spec, backbone.file)
        paths = {job.id: job.path for job in jobs}
        entries = entry_names(store, paths, self._fingerprints, self._workspace)
        made = extract_into(
            store,
            {entries[job.id]: job.path for job in jobs},
            backbone,
            self._fingerprints,
            ExtractOptions(batch_size=options.batch_size, device=options.device),
            self._listen,
        )
        self._result.failed |= {id: made.failed[e] for id, e in entries.items() if e in made.failed}

        def score_job(job: _Job) -> Scores:
            features = store.read(entries[job.id])
            scores = Scores(
                probabilities=score(model, features.values),
                grid=features.grid,
                classes=self._found.classes,
                video=str(job.path),
                duration=features.duration,
                fps=features.fps,
            )
            save_scores(self._scores_file(job), scores, job.key, job.path, job.fingerprint)
            return scores

        return score_job

    def _ground_truth(self) -> dict[Path, tuple[Video, str]]:
        """Annotated videos and their time unit by file, where the workspace's manifest has them."""
        if self._workspace is None or not self._workspace.manifest.is_file():
            return {}
        manifest = load_manifest(self._workspace.manifest)
        if manifest.classes != self._found.classes:
            return {}
        return {
            video.path.resolve(): (video, manifest.time_unit)
            for video in manifest.videos.values()
            if video.path is not None and video.actions
        }

    def _write(self, job: _Job, scores: Scores, truth: Mapping[Path, tuple[Video, str]]) -> None:
        options = self._options
        segments = find_segments(
            scores, options.threshold, options.low_threshold, options.min_length
        )
        known = truth.get(job.path.resolve())
        spec = self._found.spec
        labelled = None if known is None else _labelled(*known, scores, spec.stride * spec.every)
        detection = Detection(scores, segments, labelled, self._provenance())
        files = []
        for form in options.formats:
            file = self._result.output / f"{job.name}.{form}"
            WRITERS[form](detection, file)
            files.append(file)
        self._result.files[job.id] = [*files, self._scores_file(job)]
        self._result.detections[job.id] = detection

    def _provenance(self) -> dict[str, Any]:
        options = self._options
        return {
            "checkpoint": str(self._found.folder),
            "checkpoint_sha256": self._checkpoint["weights"],
            "arch": self._found.model["arch"],
            "features": self._found.spec.as_dict(),
            "threshold": options.threshold,
            "low": options.low_threshold,
            "min_length": options.min_length,
        }


def _nothing_to_score(job: _Job) -> Scores:
    raise AssertionError(f"{job.id} has kept scores")


def _labelled(video: Video, time_unit: str, scores: Scores, frames_per_row: int) -> list[Segment]:
    frames = frames_per_row * np.arange(scores.grid.count + 1)
    return [
        Segment(a.start, a.end, a.class_id, scores.classes[a.class_id], 1.0)
        for a in in_seconds(video, time_unit, scores.grid, frames)
    ]


def _backbone(
    found: Checkpoint, weights: str | None, fingerprints: Fingerprints
) -> registry.Resolved:
    """The backbone that the checkpoint's features came from, checked to be the very same."""
    spec = found.spec
    if spec.backbone == UNKNOWN:
        raise CheckpointError(
            f"{found.folder} was trained on published features of which it is not known how they "
            f"were made, so it cannot run on a video; `mstemba import` the features with the "
            f"--backbone they came from, and train on the store that it makes"
        )
    tag = spec.weights.removeprefix("tag:") if spec.weights.startswith("tag:") else None
    backbone = registry.resolve(
        spec.backbone, spec.model, weights or tag or found.weights_file, fingerprints.of
    )
    options = ExtractOptions(
        window=spec.window,
        stride=spec.stride,
        every=spec.every,
        precision=spec.precision,
        dtype=spec.dtype,
        decoder=spec.decoder,
    )
    if difference := spec.differences(make_spec(backbone, options)):
        raise CheckpointError(
            f"{found.folder} was trained on other features than can be made here: {difference}"
        )
    return backbone
