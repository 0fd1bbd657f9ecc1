"""Detectors: what scores the features of a video, and which features it needs."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mstemba.errors import CheckpointError
from mstemba.extractors import registry
from mstemba.model.architectures import ARCHITECTURES
from mstemba.pipeline.caching.keys import Fingerprints
from mstemba.pipeline.checkpoint import Checkpoint, score
from mstemba.pipeline.dataset.labels import ANCHORS
from mstemba.pipeline.features.spec import make_spec
from mstemba.pipeline.options import FeatureOptions
from mstemba.pipeline.progress import EventHandler
from mstemba.records import Features, FeatureSpec

Score = Callable[[Features], NDArray[np.float32]]
"""From the features of a whole video to (T, C) probabilities."""


class Detector(Protocol):
    """Scores the features of videos."""

    @property
    def spec(self) -> FeatureSpec:
        """The features that it needs."""

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def anchor(self) -> float:
        """Where in its row a score holds: 0 for the row's start, 0.5 for its centre."""

    def key_parts(self) -> dict[str, Any]:
        """Return what decides the scores, in addition to the features, for the cache key."""

    def provenance(self) -> dict[str, Any]:
        """Return where the scores come from, as plain data for the result files."""

    def backbone(self, fingerprints: Fingerprints) -> registry.ResolvedBackbone:
        """Return the backbone that makes these very features."""

    def load(self, device: str, on_event: EventHandler) -> Score:
        """Load what scores, onto a device (`cpu`, `cuda:0`)."""


@dataclass(frozen=True)
class TrainedDetector:
    """The network of a checkpoint."""

    checkpoint: Checkpoint
    weights: str | None = None
    """The backbone's weights file, if it has moved since training."""

    @property
    def spec(self) -> FeatureSpec:
        return self.checkpoint.spec

    @property
    def classes(self) -> tuple[str, ...]:
        return self.checkpoint.classes

    @property
    def anchor(self) -> float:
        return ANCHORS[self.checkpoint.labels]

    def key_parts(self) -> dict[str, Any]:
        parts: dict[str, Any] = {"checkpoint": self.checkpoint.key_parts()}
        # Scores that were saved before files had an anchor are of row starts.
        return {**parts, "anchor": self.anchor} if self.anchor else parts

    def provenance(self) -> dict[str, Any]:
        return {
            "checkpoint": os.path.abspath(self.checkpoint.folder),
            "checkpoint_sha256": self.checkpoint.sha256,
            "arch": self.checkpoint.model.get("arch", ARCHITECTURES[0]),
            "features": self.spec.as_dict(),
        }

    def load(self, device: str, on_event: EventHandler) -> Score:
        """Load the network. Raises CheckpointError for damaged weights."""
        model = self.checkpoint.load(device, on_event)
        return lambda features: score(model, features.values)

    def backbone(self, fingerprints: Fingerprints) -> registry.ResolvedBackbone:
        """Resolve the backbone. Raises CheckpointError if it would make other features."""
        spec, folder = self.spec, self.checkpoint.folder
        if not spec.is_known:
            raise CheckpointError(
                f"{folder} was trained on published features without a known backbone, so it "
                f"cannot run on a video. Run `mstemba import` on the features with the --backbone "
                f"they came from, and train on the new store"
            )
        tag = spec.weights.removeprefix("tag:") if spec.weights.startswith("tag:") else None
        backbone = registry.resolve(
            spec.backbone,
            spec.model,
            self.weights or tag or self.checkpoint.weights_file,
            fingerprints.of,
        )
        options = FeatureOptions(
            window=spec.window,
            stride=spec.stride,
            frame_step=spec.frame_step,
            precision=spec.precision,
            dtype=spec.dtype,
            decoder=spec.decoder,
            fps=spec.fps,
        )
        if difference := spec.differences(make_spec(backbone, options)):
            raise CheckpointError(
                f"{folder} was trained on other features than can be made here: {difference}"
            )
        return backbone
