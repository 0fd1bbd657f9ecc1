"""A trained model on a labelled subset: per-frame mAP over the whole of every video."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mstemba.data_manifests.manifest import load_manifest
from mstemba.errors import CheckpointError, UsageError
from mstemba.pipeline.checkpoint import Checkpoint, find_checkpoint, score
from mstemba.pipeline.dataset import Clip, load_clips, with_features
from mstemba.pipeline.devices import pick_device
from mstemba.pipeline.extract import store_name
from mstemba.pipeline.files import as_local, as_path
from mstemba.pipeline.keys import Fingerprints
from mstemba.pipeline.metrics import average_precision, mean_average_precision
from mstemba.pipeline.progress import Event, Listener, silent
from mstemba.pipeline.store import FeatureStore
from mstemba.pipeline.workspace import Workspace, find_workspace


@dataclass(frozen=True)
class Evaluation:
    """How well the scores rank the steps of every class."""

    map: float
    """Percent: mean of AP over the classes that occur."""
    per_class: dict[str, float | None]
    """AP in percent by class name; None for a class that does not occur."""
    positives: dict[str, int]
    """Positive rows by class name."""
    subset: str
    videos: int
    rows: int
    checkpoint: str
    missing: tuple[str, ...]
    """Videos of the subset that have no features, and are not in the figures."""

    def as_dict(self) -> dict[str, Any]:
        return {**self.__dict__, "metric": "per-frame mAP, percent", "missing": list(self.missing)}


def evaluate(
    *,
    workspace: Workspace | None = None,
    checkpoint: str | Path | None = None,
    manifest: str | Path | None = None,
    features: str | Path | None = None,
    subset: str = "testing",
    device: str = "auto",
    listen: Listener = silent,
) -> Evaluation:
    """Score every video of the subset, whole, and measure per-frame AP.

    Raises UsageError when the subset is empty or has no features, CheckpointError when the
    checkpoint was made for other classes or other features.
    """
    workspace = workspace or find_workspace()
    found = find_checkpoint(as_local(checkpoint), workspace)
    if manifest is None:
        if workspace is None:
            raise UsageError("no workspace here: give --manifest, or make one with `mstemba init`")
        manifest = workspace.manifest
    labels = load_manifest(Path(manifest))
    if labels.classes != found.classes:
        raise CheckpointError(_class_difference(found, labels.classes))
    store = _matching_store(found, as_path(features), workspace)
    wanted = labels.subset(subset)
    fingerprints = Fingerprints(workspace.fingerprints if workspace else None)
    videos, missing = with_features(store, wanted, fingerprints)
    if not videos:
        reason = "no video with a file" if not wanted else "no video with features"
        raise UsageError(
            f"subset {subset!r} has {reason}: mark videos as {subset} and run `mstemba extract`"
        )
    if missing:
        listen(
            Event(
                "evaluate",
                f"{len(missing)} of {len(wanted)} videos have no features and are "
                f"left out, for example {missing[0]}",
                warning=True,
            )
        )
    clips = load_clips(store, labels, videos)
    model = found.load(pick_device(device), listen)
    scores = []
    for number, clip in enumerate(clips, 1):
        scores.append(score(model, clip.features))
        listen(Event("evaluate", clip.id, number, len(clips)))
    return _measure(clips, np.concatenate(scores), found, subset, missing)


def _measure(
    clips: list[Clip],
    scores: NDArray[np.float32],
    found: Checkpoint,
    subset: str,
    missing: list[str],
) -> Evaluation:
    truth = np.concatenate([clip.labels for clip in clips])
    if not truth.any():
        raise UsageError(f"no row of subset {subset!r} falls into an action: nothing to measure")
    ap = average_precision(scores, truth)
    counts = truth.sum(axis=0)
    return Evaluation(
        map=mean_average_precision(ap, counts),
        per_class={
            name: float(100 * value) if count else None
            for name, value, count in zip(found.classes, ap, counts, strict=True)
        },
        positives=dict(zip(found.classes, counts.tolist(), strict=True)),
        subset=subset,
        videos=len(clips),
        rows=len(truth),
        checkpoint=str(found.folder),
        missing=tuple(missing),
    )


def _matching_store(
    found: Checkpoint, given: Path | None, workspace: Workspace | None
) -> FeatureStore:
    """The store with the features that the checkpoint was trained on."""
    if given is not None:
        store = FeatureStore.open(given)
        if difference := store.spec.differences(found.spec):
            raise CheckpointError(
                f"{found.folder} does not fit the features in {given}: they have {difference}. "
                f"Extract them as the checkpoint needs them, or train on these"
            )
        return store
    if workspace is None:
        raise UsageError("no workspace here: give --features")
    return FeatureStore.open(workspace.features / store_name(found.spec))


def _class_difference(found: Checkpoint, classes: tuple[str, ...]) -> str:
    odd = sorted(set(found.classes) ^ set(classes))
    what = f"for example {odd[0]!r} is in one of them only" if odd else "their order differs"
    return (
        f"{found.folder} was trained for {len(found.classes)} classes, "
        f"the manifest has {len(classes)}: {what}"
    )
