"""What scores a video's features, and the features that it needs: a trained network."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mstemba.errors import CheckpointError
from mstemba.extractors import registry
from mstemba.pipeline.caching.keys import Fingerprints
from mstemba.pipeline.checkpoint import Checkpoint, score
from mstemba.pipeline.features.spec import make_spec
from mstemba.pipeline.options import FeatureOptions
from mstemba.pipeline.progress import EventHandler
from mstemba.records import Features, FeatureSpec

Score = Callable[[Features], NDArray[np.float32]]
"""Features of a whole video to (T, C) probabilities."""


class Detector(Protocol):
    """What `detect` runs on the features of videos."""

    @property
    def spec(self) -> FeatureSpec:
        """The features that it needs."""

    @property
    def classes(self) -> tuple[str, ...]: ...

    def key_parts(self) -> dict[str, Any]:
        """What decides the scores, beside the features."""

    def provenance(self) -> dict[str, Any]:
        """What a result file says of where its scores came from; plain data."""

    def backbone(self, fingerprints: Fingerprints) -> registry.ResolvedBackbone:
        """The backbone that makes the features, checked to be the very same."""

    def load(self, device: str, on_event: EventHandler) -> Score:
        """Ready to score on a device (`cpu`, `cuda:0`)."""


@dataclass(frozen=True)
class TrainedDetector:
    """A checkpoint's network. `weights` names the backbone's, if they have moved since training."""

    checkpoint: Checkpoint
    weights: str | None = None

    @property
    def spec(self) -> FeatureSpec:
        return self.checkpoint.spec

    @property
    def classes(self) -> tuple[str, ...]:
        return self.checkpoint.classes

    def key_parts(self) -> dict[str, Any]:
        return {"checkpoint": self.checkpoint.key_parts()}

    def provenance(self) -> dict[str, Any]:
        return {
            "checkpoint": os.path.abspath(self.checkpoint.folder),
            "checkpoint_sha256": self.checkpoint.sha256(),
            "arch": self.checkpoint.model["arch"],
            "features": self.spec.as_dict(),
        }

    def load(self, device: str, on_event: EventHandler) -> Score:
        """Raises CheckpointError when the weights are damaged."""
        model = self.checkpoint.load(device, on_event)
        return lambda features: score(model, features.values)

    def backbone(self, fingerprints: Fingerprints) -> registry.ResolvedBackbone:
        """Raises CheckpointError where the checkpoint's features cannot be made."""
        spec, folder = self.spec, self.checkpoint.folder
        if not spec.is_known:
            raise CheckpointError(
                f"{folder} was trained on published features of which it is not known how they "
                f"were made, so it cannot run on a video; `mstemba import` the features with the "
                f"--backbone they came from, and train on the store that it makes"
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
        )
        if difference := spec.differences(make_spec(backbone, options)):
            raise CheckpointError(
                f"{folder} was trained on other features than can be made here: {difference}"
            )
        return backbone
