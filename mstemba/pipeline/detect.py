"""Raw video in, dense detections out: features by the checkpoint's own backbone, then segments."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from mstemba.data_manifests.manifest import Video, find_videos, load_manifest
from mstemba.errors import CheckpointError, UsageError
from mstemba.extractors import registry
from mstemba.pipeline.checkpoint import Checkpoint, find_checkpoint, score
from mstemba.pipeline.dataset import in_seconds
from mstemba.pipeline.devices import pick_device
from mstemba.pipeline.extract import extract_into, make_spec, store_name
from mstemba.pipeline.keys import Fingerprints, digest, entry_key
from mstemba.pipeline.options import DetectOptions, ExtractOptions
from mstemba.pipeline.outputs import WRITERS, Detection
from mstemba.pipeline.outputs.scores import load_scores, save_scores, scored_video
from mstemba.pipeline.progress import Event, Listener, silent
from mstemba.pipeline.segments import find_segments
from mstemba.pipeline.store import FeatureStore
from mstemba.pipeline.workspace import Workspace, find_workspace
from mstemba.records import Scores, Segment


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
    videos: Iterable[str | Path],
    options: DetectOptions | None = None,
    *,
    workspace: Workspace | None = None,
    checkpoint: Path | None = None,
    output: Path | None = None,
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
    inputs = find_videos(Path(v) for v in videos)
    if not inputs:
        raise UsageError("name at least one video or folder")
    found = find_checkpoint(checkpoint, workspace)
    output = output or (workspace.detections if workspace else None)
    if output is None:
        raise UsageError("no workspace here: say with --output where the detections go")
    job = _Detection(found, options, workspace, output, weights, listen)
    return job.run(inputs)


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
        self._weights_sha = found.sha256()
        self._fingerprints = Fingerprints(workspace.fingerprints if workspace else None)
        self._result = DetectResult(output)

    def run(self, inputs: Mapping[str, Path]) -> DetectResult:
        result = self._result
        for id, path in list(inputs.items()):
            try:
                self._fingerprints.of(path)
            except OSError as error:
                result.failed[id] = f"{path}: {error.strerror}"
        readable = {id: path for id, path in inputs.items() if id not in result.failed}
        names = {id: self._name(id, path) for id, path in readable.items()}
        kept = {
            id: load_scores(self._scores_file(names[id]), self._key(p))
            for id, p in readable.items()
        }
        result.cached = [id for id, scores in kept.items() if scores is not None]
        made = self._score({id: path for id, path in readable.items() if kept[id] is None})
        truth = self._ground_truth()
        for id, path in readable.items():
            scores = kept[id]
            if scores is None and id in made:
                scores = made[id]()
                save_scores(
                    self._scores_file(names[id]), scores, self._key(path), path, self._sha(path)
                )
            if scores is not None:
                self._write(
                    id, names[id], replace(scores, video=str(path)), truth.get(path.resolve())
                )
        self._fingerprints.save()
        return result

    def _score(self, inputs: Mapping[str, Path]) -> dict[str, Callable[[], Scores]]:
        """What gives the scores of each video, one at a time, once its features are there."""
        if not inputs:
            return {}
        store, entries = self._extract(inputs)
        model = self._found.load(pick_device(self._options.device)) if entries else None

        def run(entry: str) -> Scores:
            assert model is not None
            features = store.read(entry)
            probabilities = score(model, features.values)
            return Scores(
                probabilities,
                features.grid,
                self._found.classes,
                entry,
                features.duration,
                features.fps,
            )

        return {id: partial(run, entry) for id, entry in entries.items()}

    def _key(self, path: Path) -> str:
        """The key of a video's scores."""
        return digest("detect", checkpoint=self._weights_sha, features=self._entry_key(path))

    def _entry_key(self, path: Path) -> str:
        return entry_key(self._found.spec, self._sha(path))

    def _sha(self, path: Path) -> str:
        return self._fingerprints.of(path)

    def _name(self, id: str, path: Path) -> str:
        """Stem of the video's result files: its id, unless another video's results have it."""
        # An id may hold folders (two videos of one name); their results lie side by side.
        name = id.replace("/", "__").replace("\\", "__")
        other = scored_video(self._scores_file(name))
        if other is None or other[0] == str(path.resolve()) or other[1] == self._sha(path):
            return name
        return f"{name}@{self._sha(path)[:8]}"

    def _scores_file(self, name: str) -> Path:
        return self._result.output / f"{name}.scores.npz"

    def _extract(self, inputs: Mapping[str, Path]) -> tuple[FeatureStore, dict[str, str]]:
        """Features of these videos: from the workspace's store if it has them, else made now.

        Returns the store and the name of each video's entry; videos that failed have none.
        """
        spec = self._found.spec
        backbone = _backbone(self._found, self._weights, self._fingerprints)
        root = self._workspace.features if self._workspace else self._result.output / ".features"
        store = FeatureStore.prepare(root / store_name(spec), spec, backbone.file)
        entries = {id: self._entry(store, id, path) for id, path in inputs.items()}
        options = ExtractOptions(
            precision=spec.precision,
            batch_size=self._options.batch_size,
            device=self._options.device,
        )
        made = extract_into(
            store,
            {entries[id]: path for id, path in inputs.items()},
            backbone,
            self._fingerprints,
            options,
            self._listen,
        )
        self._result.failed |= {id: made.failed[e] for id, e in entries.items() if e in made.failed}
        return store, {id: e for id, e in entries.items() if e not in made.failed}

    def _entry(self, store: FeatureStore, id: str, path: Path) -> str:
        """The video's name in the store: its id if that entry is of this video, else a new one."""
        known = store.entry(id)
        if known is not None and known["key"] == self._entry_key(path):
            return id
        return f"{id}@{self._sha(path)[:8]}"

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

    def _write(self, id: str, name: str, scores: Scores, truth: tuple[Video, str] | None) -> None:
        options = self._options
        segments = find_segments(
            scores, options.threshold, options.low_threshold, options.min_length
        )
        labelled = None if truth is None else _labelled(*truth, scores)
        detection = Detection(scores, segments, labelled, self._provenance())
        files = []
        for form in options.formats:
            file = self._result.output / f"{name}.{form}"
            WRITERS[form](detection, file)
            files.append(file)
        self._result.files[id] = [*files, self._scores_file(name)]
        self._result.detections[id] = detection
        self._listen(Event("detect", f"{id}: {len(segments)} segments"))

    def _provenance(self) -> dict[str, Any]:
        options = self._options
        return {
            "checkpoint": str(self._found.folder),
            "checkpoint_sha256": self._weights_sha,
            "arch": self._found.arch,
            "features": self._found.spec.as_dict(),
            "threshold": options.threshold,
            "low": options.low_threshold,
            "min_length": options.min_length,
        }


def _labelled(video: Video, time_unit: str, scores: Scores) -> list[Segment]:
    return [
        Segment(a.start, a.end, a.class_id, scores.classes[a.class_id], 1.0)
        for a in in_seconds(video, time_unit, scores.fps)
    ]


def _backbone(
    found: Checkpoint, weights: str | None, fingerprints: Fingerprints
) -> registry.Resolved:
    """The backbone that the checkpoint's features came from, checked to be the very same."""
    spec = found.spec
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
