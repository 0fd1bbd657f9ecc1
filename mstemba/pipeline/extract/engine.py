"""The engine protocol: decode videos, and run batches of frames through a backbone."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from concurrent.futures import Future
from typing import Protocol, TypeVar

from mstemba.errors import MstembaError
from mstemba.extractors.windows import FeatureArray
from mstemba.pipeline.decode.reader import DecodeRequest
from mstemba.pipeline.decode.worker import DecodeEvent
from mstemba.pipeline.extract.batches import Batch

K = TypeVar("K")


class FramesLost(MstembaError):
    """Decoded frames, or the features made of them, are gone with the machine they were on."""


EngineEvent = DecodeEvent | FramesLost


class Engine(Protocol):
    """Decodes videos and encodes batches, somewhere."""

    batch_size: int
    """Samples in one forward pass."""
    ahead: int
    """Batches that keep every device busy."""

    def decode(
        self, requests: Iterator[tuple[K, DecodeRequest]], videos: int
    ) -> Generator[tuple[K, EngineEvent]]:
        """Decode at most so many videos as `decode_all` does; one may end with FramesLost, too."""
        ...

    def submit(self, batch: Batch) -> Future[FeatureArray]:
        """Begin the forward pass of a batch; gives (samples, R, F).

        The future may raise FramesLost: the batch's videos are then to be decoded again.
        """
        ...

    def close(self) -> None:
        """Stop, without waiting for what was submitted and has not begun."""
        ...
