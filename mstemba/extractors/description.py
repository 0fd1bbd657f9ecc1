"""What a backbone takes and gives, known before anything heavy is imported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["image", "clip", "whole-clip"]


@dataclass(frozen=True)
class Description:
    """What the pipeline needs to know of a backbone in order to feed it.

    An `image` backbone gives a feature vector per frame, a `clip` backbone one per clip of any
    length, a `whole-clip` backbone rows at its own stride from all frames of a video.
    """

    width: int
    """Length of a feature vector."""
    input_size: int
    """Side of the centre square that it is given, in pixels."""
    short_side: int
    """What the decoder resizes a frame's short side to before the crop, in pixels."""
    kind: Kind
    cpu_batch: int
    """Images or clips in one pass on a CPU."""
    gpu_batch: int
    window: int = 16
    """Frames of a row, where the user does not say; for `whole-clip` it is fixed."""
    stride: int = 16
    """Frames from one row to the next, likewise."""
    context: int = 0
    """`whole-clip` only: frames that a pass must see before and after those it gives rows for."""
    chunk: int = 0
    """`whole-clip` only: frames that a pass gives rows for."""
