"""Raw video in, dense detections out: features by the detector's own backbone, then segments."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from mstemba.data_manifests.manifest import as_paths, find_videos
from mstemba.errors import MstembaError, StoreError, UsageError
from mstemba.pipeline.caching.files import as_local, ends_the_run, explain
from mstemba.pipeline.caching.keys import Fingerprints, cache_key, entry_key
from mstemba.pipeline.checkpoint import find_checkpoint
from mstemba.pipeline.detect.detector import Detector, Score, TrainedDetector
from mstemba.pipeline.detect.results import (
    ManifestIndex,
    check_folder,
    check_formats,
    make_detection,
    write_files,
)
from mstemba.pipeline.detect.scores_file import (
    SUFFIX,
    SavedScores,
    load_scores,
    save_scores,
    scored_video,
    scores_key,
)
from mstemba.pipeline.devices import pick_device
from mstemba.pipeline.extract.stage import entry_names, extract_into
from mstemba.pipeline.features.spec import store_name
from mstemba.pipeline.features.store import FeatureStore
from mstemba.pipeline.options import ExportOptions, RunOptions, ZeroShotOptions
from mstemba.pipeline.outputs import Detection
from mstemba.pipeline.outputs.html_page import check_embeddable
from mstemba.pipeline.progress import Event, EventHandler, ProgressReporter, counted, ignore_events
from mstemba.pipeline.workspace import Workspace, find_workspace
from mstemba.records import Scores, Segment

# Bytes of a result file's stem: file systems allow 255 for the whole name.
LONGEST_NAME = 200
# Ends of a stem with which one video's `walk.scores.mp4` would write over another's kept scores.
RESERVED = (".scores", ".activitynet")
# Videos that a message names.
MOST_NAMED = 5


@dataclass
class DetectResult:
    """What a detection did. Iterating gives the `Detection` of every video that did not fail.

    It holds the dense scores of all of them: 4 bytes a row and class, 2.4 MB for 40 minutes of 157
    classes in rows of 0.64 s.
    """

    output: Path
    """Folder of the files."""
    files: dict[str, list[Path]] = field(default_factory=dict)
    """Files written, by video id."""
    detections: dict[str, Detection] = field(default_factory=dict)
    """By video id."""
    failed: dict[str, str] = field(default_factory=dict)
    """Reason by video id."""
    cached: list[str] = field(default_factory=list)
    """Videos whose kept scores were used again."""
    seconds: float = 0.0
    """What it took."""

    @property
    def detection(self) -> Detection:
        """That of the only video.

        Raises MstembaError with the reason if it failed, UsageError if there are several.
        """
        ids = [*self.detections, *self.failed]
        if len(ids) != 1:
            named = ", ".join(map(repr, ids[:MOST_NAMED])) or "none"
            more = f" and {len(ids) - MOST_NAMED} more" if len(ids) > MOST_NAMED else ""
            raise UsageError(
                f"the result is of {len(ids)} videos ({named}{more}), not of one: take each from "
                f"`detections`, by its id"
            )
        for id, reason in self.failed.items():
            raise MstembaError(f"{id}: nothing was detected, because it failed: {reason}")
        return next(iter(self))

    @property
    def scores(self) -> Scores:
        """The only video's dense scores. Raises as `detection`."""
        return self.detection.scores

    @property
    def segments(self) -> list[Segment]:
        """The only video's segments, by start. Raises as `detection`."""
        return self.detection.segments

    def __iter__(self) -> Iterator[Detection]:
        return iter(self.detections.values())

    def __repr__(self) -> str:
        return (
            f"DetectResult({str(self.output)!r}, {counted(len(self.detections), 'video')}, "
            f"{len(self.cached)} from kept scores, {len(self.failed)} failed)"
        )

    def _repr_html_(self) -> str:
        from mstemba.pipeline.outputs.notebook import all_as_html

        return all_as_html(self.detections, self.failed)


def detect(
    videos: str | Path | Iterable[str | Path],
    options: ExportOptions | None = None,
    run_options: RunOptions | None = None,
    *,
    workspace: Workspace | str | Path | None = None,
    checkpoint: str | Path | None = None,
    labels: str | Path | Iterable[str] | None = None,
    zero_shot: ZeroShotOptions | None = None,
    output: str | Path | None = None,
    weights: str | None = None,
    on_event: EventHandler = ignore_events,
) -> DetectResult:
    """Detect actions in videos, given as files or folders.

    A checkpoint's network scores them; or, with `labels` (a list, a text separated by commas, or a
    text file with one a line), CLIP does with no training, in the way that `zero_shot` says.
    Scores are kept beside the results (`<video>.scores.npz`): another threshold or format needs no
    second pass. The files go into `output`; by default into detections/ of the workspace, and with
    `labels` into detections/zero-shot/ there. `weights` names the backbone's weights file if it is
    not where it was at training, and with `labels` a published tag or a file.
    A video that cannot be read, is too large to embed, or has files that cannot be written, stops
    no other one and raises nothing: it is in `failed` of what is returned, with its reason.
    Raises UsageError for an unknown format, for labels that cannot be used, and for weights that
    are not here and cannot be fetched, CheckpointError for a checkpoint that cannot run here.
    """
    options, run_options = options or ExportOptions(), run_options or RunOptions()
    check_formats(options.formats)
    workspace = find_workspace(workspace)
    inputs = find_videos(as_paths(videos))
    if not inputs:
        raise UsageError("name at least one video or folder")
    _check_detector(checkpoint, labels, zero_shot, workspace)
    folder = as_local(output) or _default_folder(workspace, zero_shot=labels is not None)
    check_folder(folder)
    fingerprints = Fingerprints(workspace.fingerprints if workspace else None)
    detector: Detector
    if labels is None:
        detector = TrainedDetector(find_checkpoint(as_local(checkpoint), workspace), weights)
    else:
        from mstemba.pipeline.detect.zero_shot import zero_shot_detector

        stores = _stores(workspace, folder)
        detector = zero_shot_detector(labels, zero_shot, weights, stores, run_options, fingerprints)
    return _Detecting(
        detector, options, run_options, workspace, folder, fingerprints, on_event
    ).run(inputs)


def _check_detector(
    checkpoint: str | Path | None,
    labels: object,
    zero_shot: ZeroShotOptions | None,
    workspace: Workspace | None,
) -> None:
    """Raises UsageError unless it is clear what detects."""
    if labels is not None and checkpoint is not None:
        raise UsageError(
            f"labels and the checkpoint {checkpoint} are given: a checkpoint has its own classes, "
            f"and labels need none; leave --labels or --checkpoint out"
        )
    if labels is None and zero_shot is not None:
        raise UsageError(
            "zero_shot says how labels are looked for, and there are none: name labels, or leave "
            "zero_shot out"
        )
    if labels is None and checkpoint is None and workspace is None:
        raise UsageError(
            "nothing to detect with: name a --checkpoint, run in a workspace with a trained model, "
            "or say what to look for, as in --labels 'opening a door, drinking'"
        )


def _default_folder(workspace: Workspace | None, zero_shot: bool) -> Path:
    """Where results go. Those of labels do not replace the trained network's in a workspace."""
    if workspace is None:
        return Path("detections")
    return workspace.zero_shot if zero_shot else workspace.detections


def _stores(workspace: Workspace | None, output: Path) -> Path:
    """Folder of the feature stores."""
    return workspace.features if workspace else output / ".features"


@dataclass(frozen=True)
class _Job:
    id: str
    path: Path
    fingerprint: str
    name: str
    """Stem of its result files."""
    key: str
    """Of its scores."""


@dataclass(frozen=True)
class _Prepared:
    """A loaded detector, and where it finds the features of videos."""

    classes: tuple[str, ...]
    score: Score
    store: FeatureStore
    entries: Mapping[str, str]
    """Entries of the store by video id."""
    failed: Mapping[str, str]
    """Reasons by entry."""

    def scores(self, job: _Job) -> Scores:
        """Raises StoreError for a video without features, or with ones that cannot be used."""
        entry = self.entries[job.id]
        if entry in self.failed:
            raise StoreError(self.failed[entry])
        features = self.store.read(entry)
        return Scores(
            probabilities=self.score(features),
            grid=features.grid,
            classes=self.classes,
            video=str(job.path),
            duration=features.duration,
            fps=features.fps,
        )


class _Detecting:
    """One call of `detect`."""

    def __init__(
        self,
        detector: Detector,
        options: ExportOptions,
        run_options: RunOptions,
        workspace: Workspace | None,
        output: Path,
        fingerprints: Fingerprints,
        on_event: EventHandler,
    ) -> None:
        self._detector = detector
        self._options, self._run_options = options, run_options
        self._workspace = workspace
        self._listen = on_event
        self._key_parts = detector.key_parts()
        self._provenance = detector.provenance()
        self._fingerprints = fingerprints
        self._result = DetectResult(output)
        self._prepared: dict[str, _Prepared] = {}
        """By video id: of those whose scores are not kept."""

    def run(self, inputs: Mapping[str, Path]) -> DetectResult:
        begin = time.perf_counter()
        jobs = self._jobs(inputs)
        keys = {job.id: scores_key(self._scores_file(job)) for job in jobs}
        self._tell_of_replaced([job for job in jobs if keys[job.id] not in (None, job.key)])
        if missing := [job for job in jobs if keys[job.id] != job.key]:
            self._prepare(missing)
        known = ManifestIndex(self._workspace)
        meter = ProgressReporter("detect", len(jobs), "videos", self._listen)
        for number, job in enumerate(jobs):
            meter.update(job.id, number, number, job.id)
            try:
                self._write(job, self._scores(job, known), known)
            except StoreError as error:
                self._result.failed[job.id] = str(error)
            except OSError as error:
                if ends_the_run(error):
                    raise
                self._result.failed[job.id] = explain(error)
        known.warn("detect", self._listen)
        self._result.cached = [id for id in self._result.cached if id not in self._result.failed]
        meter.update(counted(len(jobs), "video"), len(jobs), len(jobs))
        self._fingerprints.save()
        self._result.seconds = time.perf_counter() - begin
        return self._result

    def _jobs(self, inputs: Mapping[str, Path]) -> list[_Job]:
        """What there is to do; a video that cannot be read is a failure."""
        jobs: list[_Job] = []
        for id, path in inputs.items():
            try:
                sha = self._fingerprints.of(path)
                if self._options.embed:
                    check_embeddable(path)  # before it costs anything
            except OSError as error:
                self._result.failed[id] = f"{path}: {error.strerror}"
                continue
            except UsageError as error:
                self._result.failed[id] = str(error)
                continue
            name = self._name(id, path, sha, taken={job.name for job in jobs})
            features = entry_key(self._detector.spec, sha)
            key = cache_key("detect", **self._key_parts, features=features)
            jobs.append(_Job(id, path, sha, name, key))
        return jobs

    def _name(self, id: str, path: Path, sha: str, taken: set[str]) -> str:
        """The video's id as a file name, unless another video's results have it."""
        # An id may hold folders (two videos of one name); their results lie side by side.
        name = id.replace("/", "__").replace("\\", "__")
        if len(os.fsencode(name)) > LONGEST_NAME:
            name = f"{os.fsencode(name)[:LONGEST_NAME].decode(errors='ignore')}@{sha[:8]}"
        if name.lower().endswith(RESERVED):
            name = f"{name}@{sha[:8]}"
        other = scored_video(self._result.output / f"{name}{SUFFIX}")
        mine = other is None or other[0] == str(path.resolve()) or other[1] == sha
        return name if mine and name not in taken else f"{name}@{sha[:8]}"

    def _scores_file(self, job: _Job) -> Path:
        return self._result.output / f"{job.name}{SUFFIX}"

    def _tell_of_replaced(self, jobs: Sequence[_Job]) -> None:
        """Say whose kept scores another checkpoint, or other labels, made."""
        scored = ((job, scored_video(self._scores_file(job))) for job in jobs)
        # A video whose content has changed needs new scores whatever the detector.
        others = [job.id for job, video in scored if video and video.fingerprint == job.fingerprint]
        if others:
            more = f" and {len(others) - MOST_NAMED} more" if len(others) > MOST_NAMED else ""
            self._listen(
                Event(
                    "detect",
                    f"replacing what another checkpoint or other labels found in "
                    f"{', '.join(others[:MOST_NAMED])}{more} ({self._result.output}); another "
                    f"--output keeps both",
                )
            )

    def _prepare(self, jobs: Sequence[_Job]) -> None:
        """Load the detector and bring these videos' features up to date."""
        spec, options = self._detector.spec, self._run_options
        # Before the long part: a damaged checkpoint should not cost an extraction.
        score = self._detector.load(pick_device(options.device), self._listen)
        backbone = self._detector.backbone(self._fingerprints)
        root = _stores(self._workspace, self._result.output)
        store = FeatureStore.prepare(root / store_name(spec), spec, backbone.file)
        paths = {job.id: job.path for job in jobs}
        entries = entry_names(store, paths, self._fingerprints, self._workspace)
        made = extract_into(
            store,
            {entries[job.id]: job.path for job in jobs},
            backbone,
            self._fingerprints,
            options,
            self._listen,
        )
        prepared = _Prepared(self._detector.classes, score, store, entries, made.failed)
        self._prepared |= dict.fromkeys(paths, prepared)

    def _scores(self, job: _Job, known: ManifestIndex) -> Scores:
        """The video's scores, kept or made and kept now. Raises StoreError where that fails."""
        file = self._scores_file(job)
        kept = None if job.id in self._prepared else load_scores(file, job.key)
        if kept is not None:
            self._result.cached.append(job.id)
            return replace(kept, video=str(job.path))
        if job.id not in self._prepared:  # they have the right key, and are damaged
            self._prepare([job])
        scores = self._prepared[job.id].scores(job)
        id = known.id(job.path) or job.id
        save_scores(file, SavedScores(scores, job.key, job.fingerprint, self._provenance, id))
        return scores

    def _write(self, job: _Job, scores: Scores, known: ManifestIndex) -> None:
        detection = make_detection(scores, job.id, self._provenance, known, self._options)
        files = write_files(detection, self._result.output, job.name, self._listen)
        self._result.files[job.id] = [*files, self._scores_file(job)]
        self._result.detections[job.id] = detection
