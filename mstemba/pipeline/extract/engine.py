"""The engine protocol: turn videos into feature rows, on this machine or on a cluster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mstemba.errors import MstembaError
from mstemba.extractors.windows import FeatureArray
from mstemba.pipeline.decode.request import DecodeReport, DecodeRequest, Opened, Restart


@dataclass(frozen=True)
class VideoRequest:
    """A video to turn into feature rows."""

    decode: DecodeRequest
    """How its frames are decoded; skips those that only earlier rows need."""
    first_row: int = 0
    """The first row to compute: the rows before it exist already."""


@dataclass(frozen=True)
class FeatureRows:
    """The next feature rows of a video, and how far the backbone has come."""

    values: FeatureArray
    """(M, F) float32; M may be 0."""
    starts: NDArray[np.float64]
    """(M,) seconds at which the rows start."""
    frames: int
    """Frames encoded since the last event."""
    time: float
    """Seconds: the time of the last of them."""


class VideoLost(MstembaError):
    """A video's rows are lost with the worker that computed them; the video can be tried again."""


EngineEvent = Opened | FeatureRows | Restart | DecodeReport | MstembaError
"""News of one video. A DecodeReport (after the last rows) or an error is the last of them."""


class Engine(Protocol):
    """Decodes videos and runs their frames through a backbone."""

    @property
    def room(self) -> int:
        """How many more videos can be started without waiting."""
        ...

    def start(self, id: str, request: VideoRequest) -> None:
        """Begin a video; waits for room if there is none and no other video is under way."""
        ...

    def cancel(self, id: str) -> None:
        """Give no more events of a video."""
        ...

    def next_event(self) -> tuple[str, EngineEvent]:
        """Wait for the next event of any video under way.

        Raises MstembaError for what is no single video's fault, as weights that cannot be loaded.
        """
        ...

    def close(self) -> None:
        """Stop at once, without finishing what is under way."""
        ...
