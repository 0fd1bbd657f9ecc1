"""What the pipeline knows of a backbone before anything heavy is imported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["image", "clip", "whole-clip"]


@dataclass(frozen=True)
class BackboneSpec:
    """The input that a backbone takes, and the features that it returns.

    An `image` backbone returns a feature vector per frame, a `clip` backbone one per clip of any
    length, a `whole-clip` backbone rows at its own stride from all frames of a video.
    """

    width: int
    """Length of a feature vector."""
    input_size: int
    """Side of the centre crop that the backbone takes, in pixels."""
    short_side: int
    """To which the decoder resizes a frame's short side before the crop, in pixels."""
    kind: Kind
    cpu_batch: int
    """Images or clips in a batch on a CPU."""
    gpu_batch: int
    """Images or clips in a batch on a GPU."""
    window: int = 16
    """Frames per feature row, by default; for `whole-clip` it is fixed."""
    stride: int = 16
    """Frames from one row to the next, by default; for `whole-clip` it is fixed."""
    context: int = 0
    """`whole-clip` only: frames that a pass needs before and after those of its rows."""
    chunk: int = 0
    """`whole-clip` only: frames for which a pass returns rows."""

    def __post_init__(self) -> None:
        if self.short_side < self.input_size:
            raise ValueError(f"short_side is {self.short_side}, expected {self.input_size} or more")
