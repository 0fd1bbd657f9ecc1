"""The detect stage: raw video in, dense scores, segments and result files out."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from mstemba.data_manifests.video_files import find_videos
from mstemba.errors import MstembaError, OutOfMemory, StoreError, UsageError
from mstemba.extractors import registry
from mstemba.pipeline.caching.files import as_local, as_paths, check_folder
from mstemba.pipeline.caching.keys import Fingerprints, cache_key, entry_key
from mstemba.pipeline.caching.locks import FolderLocks
from mstemba.pipeline.catalog import Catalog, CatalogVideo, file_stem, workspace_manifest
from mstemba.pipeline.checkpoint import find_checkpoint
from mstemba.pipeline.detect.detector import Detector, Score, TrainedDetector
from mstemba.pipeline.detect.ground_truth import GroundTruth
from mstemba.pipeline.detect.results import check_formats, make_detection, recording, write_files
from mstemba.pipeline.detect.scores_file import (
    SUFFIX,
    SavedScores,
    ScoresFile,
    open_scores,
    save_scores,
)
from mstemba.pipeline.devices import pick_device
from mstemba.pipeline.extract.stage import extract_into
from mstemba.pipeline.features.spec import store_name
from mstemba.pipeline.features.store import FeatureStore
from mstemba.pipeline.options import ExportOptions, RunOptions, ZeroShotOptions
from mstemba.pipeline.outputs import Detection
from mstemba.pipeline.outputs.detection import results_as_html
from mstemba.pipeline.outputs.html_page import check_embeddable
from mstemba.pipeline.progress import (
    Event,
    EventHandler,
    ProgressReporter,
    ignore_events,
    report_import,
)
from mstemba.pipeline.workspace import Workspace, find_workspace
from mstemba.records import Scores, Segment
from mstemba.wording import counted

# Videos that a message names.
MOST_NAMED = 5


@dataclass
class DetectResult:
    """The results of `detect`. Iterating gives the `Detection` of every video that did not fail.

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
    """Ids of the videos whose saved scores were used again."""
    seconds: float = 0.0
    """How long it took."""

    @property
    def detection(self) -> Detection:
        """The detection of the only video.

        Raises MstembaError with the reason if it failed, UsageError if there are several.
        """
        ids = [*self.detections, *self.failed]
        if len(ids) != 1:
            named = _named(map(repr, ids)) or "none"
            raise UsageError(
                f"the result has {len(ids)} videos ({named}), not one: take each from "
                f"`detections` by its id"
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
            f"{len(self.cached)} from saved scores, {len(self.failed)} failed)"
        )

    def _repr_html_(self) -> str:
        return results_as_html(self.detections, self.failed)


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
    """Detect actions in videos.

    The network of a checkpoint scores them; or, with `labels`, CLIP does without any training.
    Scores are saved next to the results (`<video>.scores.npz`): another threshold or format needs
    no second pass. Of several processes one scores a video; one that fails stops no others.

    Args:
        videos: Files and folders of videos.
        options: How scores become segments, and segments files.
        run_options: Where and how fast features are extracted.
        workspace: By default the one of the current folder.
        checkpoint: Folder of a checkpoint or run; by default the workspace's last training.
        labels: What to look for: a list, a text separated by commas, or a file with one a line.
        zero_shot: How `labels` are looked for.
        output: Folder of the results; by default detections/ of the workspace, with `labels`
            detections/zero-shot/ there.
        weights: The backbone's weights file if it has moved since training; with `labels`, a
            published tag or a file.
        on_event: Receives progress and messages.

    Raises:
        UsageError: An unknown format, unusable labels, or weights that are missing and cannot be
            downloaded.
        CheckpointError: The checkpoint cannot run here.
    """
    options, run_options = options or ExportOptions(), run_options or RunOptions()
    check_formats(options.formats)
    workspace = find_workspace(workspace)
    files = find_videos(as_paths(videos), lambda line: on_event(Event("detect", line)))
    if not files:
        raise UsageError("no videos: pass at least one video or folder")
    _check_detector(checkpoint, labels, zero_shot, workspace)
    folder = as_local(output) or _default_folder(workspace, zero_shot=labels is not None)
    check_folder(folder, "--output", "the results")
    stores = workspace.features if workspace else folder / ".features"
    fingerprints = Fingerprints(workspace.fingerprints if workspace else None)
    detector: Detector
    if labels is None:
        detector = TrainedDetector(find_checkpoint(as_local(checkpoint), workspace), weights)
    else:
        from mstemba.pipeline.detect.zero_shot import zero_shot_detector

        detector = zero_shot_detector(
            labels, zero_shot, weights, stores, run_options, fingerprints, on_event
        )
    catalog = Catalog(files, workspace_manifest(workspace), fingerprints)
    return _detect(_Scorer(detector, catalog, stores, run_options, on_event), options, folder)


def _detect(scorer: _Scorer, options: ExportOptions, folder: Path) -> DetectResult:
    begin = time.perf_counter()
    result = DetectResult(folder)
    provenance = scorer.detector.provenance()  # of the checkpoint as it is now
    jobs = _make_jobs(scorer, options, result)
    _report_replaced(jobs, folder, scorer.on_event)
    scorer.prepare([job.video for job in jobs if not job.is_scored])
    _Writer(scorer, provenance, options, result).run(jobs)
    scorer.catalog.fingerprints.save()
    result.seconds = time.perf_counter() - begin
    return result


def _check_detector(
    checkpoint: str | Path | None,
    labels: object,
    zero_shot: ZeroShotOptions | None,
    workspace: Workspace | None,
) -> None:
    """Raise UsageError unless it is clear what detects."""
    if labels is not None and checkpoint is not None:
        raise UsageError(
            f"labels cannot be combined with the checkpoint {checkpoint}, which has its own "
            f"classes: pass --labels or --checkpoint"
        )
    if labels is None and zero_shot is not None:
        raise UsageError("zero_shot requires labels: pass labels, or omit zero_shot")
    if labels is None and checkpoint is None and workspace is None:
        raise UsageError(
            "nothing to detect with: pass --checkpoint, run in a workspace with a trained model, "
            "or say what to look for, as in --labels 'opening a door, drinking'"
        )


def _default_folder(workspace: Workspace | None, zero_shot: bool) -> Path:
    """Return where results go; those of labels do not replace the trained network's."""
    if workspace is None:
        return Path("detections")
    return workspace.zero_shot if zero_shot else workspace.detections


@dataclass(frozen=True)
class _Job:
    """A video to detect in."""

    video: CatalogVideo
    features: str
    """Cache key of the features that are scored."""
    key: str
    """Cache key of its scores."""
    stem: str
    """Of its result files."""
    saved: ScoresFile | None
    """The scores file under its stem."""

    @property
    def is_scored(self) -> bool:
        """Whether the saved scores are current."""
        return self.saved is not None and self.saved.key == self.key

    def read_scores(self) -> Scores | None:
        """Read the saved scores; None if they are not current, or damaged."""
        if self.saved is not None and self.is_scored:
            with contextlib.suppress(StoreError):
                return replace(self.saved.read().scores, video=str(self.video.path))
        return None


def _make_jobs(scorer: _Scorer, options: ExportOptions, result: DetectResult) -> list[_Job]:
    """Find the saved scores of every video; one that cannot be read is a failure."""
    jobs = []
    key_parts, catalog = scorer.detector.key_parts(), scorer.catalog
    for video in catalog.videos:
        with recording(result.failed, video.id, UsageError):
            if video.problem:
                raise UsageError(video.problem)
            if options.embed:
                check_embeddable(video.path)  # before it costs anything
            features = scorer.features_key(video)
            key = cache_key("detect", **key_parts, features=features)
            stem, saved = _find_stem(video, catalog, result.output)
            jobs.append(_Job(video, features, key, stem, saved))
    return jobs


def _find_stem(
    video: CatalogVideo, catalog: Catalog, folder: Path
) -> tuple[str, ScoresFile | None]:
    """Return the stem of a video's result files, and the scores file under it."""
    opened: dict[str, ScoresFile | None] = {}

    def is_taken(stem: str) -> bool:
        saved = opened[stem] = open_scores(folder / f"{stem}{SUFFIX}")
        return saved is not None and not saved.is_of(video.path, video.fingerprint)

    name = file_stem(video.id, video.fingerprint)
    stem = catalog.stem(name, video.fingerprint, is_taken)
    return stem, opened[stem]


def _look_again(job: _Job, catalog: Catalog, folder: Path) -> _Job:
    """Return a job with the scores that are saved now; under another stem if this one is taken."""
    saved = open_scores(folder / f"{job.stem}{SUFFIX}")
    if saved is None or saved.is_of(job.video.path, job.video.fingerprint):
        return replace(job, saved=saved)
    stem, saved = _find_stem(job.video, catalog, folder)
    return replace(job, stem=stem, saved=saved)


def _report_replaced(jobs: Sequence[_Job], folder: Path, on_event: EventHandler) -> None:
    """Report saved scores of another checkpoint, labels or features that will be replaced."""
    replaced = [
        job.video.id
        for job in jobs
        if job.saved is not None
        and not job.is_scored
        # A video whose content has changed needs new scores with any detector.
        and job.saved.fingerprint == job.video.fingerprint
    ]
    if replaced:
        message = (
            f"replacing what another checkpoint, other labels, other features or an earlier "
            f"version found in {_named(replaced)} ({folder}); another --output keeps both"
        )
        on_event(Event("detect", message))


def _named(videos: Iterable[str]) -> str:
    """Return the first names, and how many more there are."""
    names = list(videos)
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more


@dataclass
class _Scorer:
    """A detector, and the features that it scores."""

    detector: Detector
    catalog: Catalog
    stores: Path
    run_options: RunOptions
    on_event: EventHandler
    _entries: dict[str, str] = field(default_factory=dict)
    """Names of entries in the store, by video id."""
    _failed: dict[str, str] = field(default_factory=dict)
    """Reasons by entry."""

    def features_key(self, video: CatalogVideo) -> str:
        """Return the key of a video's features: of the imported ones, if it has any."""
        key = entry_key(self.detector.spec, video.fingerprint)
        if video.listed is not None and self._present_store is not None:
            with contextlib.suppress(StoreError):  # damaged: they are extracted
                entry = self._present_store.entry(video.listed.id)
                return entry.key if entry is not None and entry.is_imported else key
        return key

    def prepare(self, videos: Sequence[CatalogVideo]) -> None:
        """Load the detector and extract the features that these videos lack."""
        if not videos:
            return
        # Before the long part: a damaged checkpoint should not cost an extraction.
        _, backbone, store = self._loaded
        self._entries |= {video.id: self.catalog.entry_name(video, store) for video in videos}
        self.catalog.fingerprints.save()
        missing = {self._entries[video.id]: video for video in videos}
        fingerprints = self.catalog.fingerprints
        extraction = extract_into(
            store, missing, backbone, self.run_options, fingerprints, self.on_event
        )
        self._failed |= extraction.failed

    def score(self, video: CatalogVideo, key: str) -> Scores:
        """Score a video.

        Args:
            video: The video.
            key: Cache key that its features must have.

        Raises:
            StoreError: Its features could not be extracted, are damaged, or have another key.
        """
        if video.id not in self._entries:
            self.prepare([video])
        entry = self._entries[video.id]
        if entry in self._failed:
            raise StoreError(self._failed[entry])
        score, _, store = self._loaded
        features = store.read(entry)
        if features.key != key:
            raise StoreError(f"{video.path}: its features have just been replaced; run again")
        return Scores(
            probabilities=score(features),
            grid=features.grid,
            classes=self.detector.classes,
            video=str(video.path),
            duration=features.duration,
            fps=features.fps,
            timecode=features.timecode,
            anchor=self.detector.anchor,
        )

    @cached_property
    def _present_store(self) -> FeatureStore | None:
        """The store of the features, if it exists."""
        spec = self.detector.spec
        with contextlib.suppress(StoreError):
            store = FeatureStore.open(self.stores / store_name(spec))
            return store if store.spec == spec else None
        return None

    @cached_property
    def _loaded(self) -> tuple[Score, registry.ResolvedBackbone, FeatureStore]:
        spec = self.detector.spec
        report_import("detect", self.on_event)
        score = self.detector.load(pick_device(self.run_options.device), self.on_event)
        backbone = self.detector.backbone(self.catalog.fingerprints)
        store = FeatureStore.prepare(self.stores / store_name(spec), spec, backbone.file)
        return score, backbone, store


@dataclass
class _Writer:
    """Scores, cuts and writes one video after the other, each under a lock of its files."""

    scorer: _Scorer
    provenance: dict[str, Any]
    options: ExportOptions
    result: DetectResult

    def run(self, jobs: Sequence[_Job]) -> None:
        """Write the results of these videos; those that other processes work on come last."""
        on_event, folder = self.scorer.on_event, self.result.output
        self._truth = GroundTruth(self.scorer.catalog.manifest)
        progress = ProgressReporter("detect", len(jobs), "videos", on_event)
        locks = FolderLocks(folder, "detecting in")
        locks.sweep()
        todo = {job.stem: job for job in jobs}
        while todo:
            for lock in locks.each(list(todo), lambda line: on_event(Event("detect", line))):
                with lock:
                    job = todo.pop(lock.id)
                    now = _look_again(job, self.scorer.catalog, folder)
                    if now.saved != job.saved:  # another process has saved them meanwhile
                        _report_replaced([now], folder, on_event)
                    if now.stem != job.stem:
                        todo[now.stem] = now  # another process has given the stem to another video
                        continue
                    done = len(jobs) - len(todo) - 1
                    progress.update(job.video.id, done, done, job.video.id)
                    with recording(self.result.failed, job.video.id, StoreError, OutOfMemory):
                        self._write(now)
        self._restore_order(jobs)
        self._truth.warn("detect", on_event)
        progress.update(counted(len(jobs), "video"), len(jobs), len(jobs))

    def _restore_order(self, jobs: Sequence[_Job]) -> None:
        result = self.result
        ids = [job.video.id for job in jobs if job.video.id in result.files]
        result.files = {id: result.files[id] for id in ids}
        result.detections = {id: result.detections[id] for id in ids}
        result.cached.sort(key=ids.index)

    def _write(self, job: _Job) -> None:
        video, result = job.video, self.result
        scores_file = result.output / f"{job.stem}{SUFFIX}"
        scores = job.read_scores()
        is_cached = scores is not None
        if scores is None:
            scores = self.scorer.score(video, job.features)
            id = video.listed.id if video.listed else video.id
            saved = SavedScores(scores, job.key, video.fingerprint, self.provenance, id)
            save_scores(scores_file, saved)
        listed, truth = video.listed, self._truth
        detection = make_detection(scores, video.id, self.provenance, listed, truth, self.options)
        try:
            files = write_files(detection, result.output, job.stem, self.scorer.on_event)
        except UsageError as error:  # the video can no longer be embedded
            raise StoreError(str(error)) from None
        result.files[video.id] = [*files, scores_file]
        result.detections[video.id] = detection
        result.cached += [video.id] * is_cached
