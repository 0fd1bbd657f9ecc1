"""Decoding with torchcodec, on a CPU or on an NVIDIA GPU's own video decoder."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from mstemba.errors import DecodeError
from mstemba.pipeline.decode.plan import Block, CannotDecode, Image, Plan, Probe, Shown

# Frames decoded in one call: on a GPU they are there at full size, and as float32 while resized.
BLOCK = 32
BLOCK_ON_GPU = 8


def why_not(found: Probe, device: str) -> str | None:
    """Why torchcodec is not exact on such a file, or None when it is.

    Raises DecodeError when torchcodec is not installed, or does not work here.
    """
    _load()
    if found.times is None:
        return "the file does not say the time of every frame"
    if not found.fresh:
        return "its keyframes do not start afresh, and torchcodec loses frames when it seeks there"
    if found.rotation and device != "cpu":
        return "the file asks for its picture to be turned, which is done on the CPU only"
    return None


def decode(path: Path, found: Probe, plan: Plan) -> Iterator[Shown]:
    """The used frames from `plan.start` on; a block is read when its first picture is asked for.

    Raises CannotDecode, possibly after some frames.
    """
    assert found.times is not None
    reader = _Reader(path, found, plan)
    numbers = range(plan.start * plan.every, len(found.times), plan.every)
    length = BLOCK if plan.device == "cpu" else BLOCK_ON_GPU
    for first in range(0, len(numbers), length):
        block = Block(reader.read, numbers[first : first + length])
        for number in block.numbers:
            time = float(found.times[number])
            yield Shown(number // plan.every, time, partial(block.image, number))
        plan.alive()


class _Reader:
    """A file open in torchcodec."""

    def __init__(self, path: Path, found: Probe, plan: Plan) -> None:
        decoder, resize = _load()
        assert found.times is not None
        self._found = found
        self._shape = (plan.size[1], plan.size[0])
        self._on_cpu = plan.device == "cpu"
        try:
            self._decoder = decoder(
                str(path),
                dimension_order="NHWC",
                num_ffmpeg_threads=plan.threads,
                device=plan.device,
                # torchcodec's own resizing is on the CPU only.
                transforms=[resize(self._shape)] if self._on_cpu else None,
            )
        except (RuntimeError, ValueError) as error:
            raise CannotDecode(_reason(error)) from None
        if len(self._decoder) != len(found.times):
            raise CannotDecode(
                f"it counts {len(self._decoder)} frames, the container {len(found.times)}"
            )

    def read(self, numbers: range) -> Image:
        """These frames as (N, H, W, 3) RGB in host memory, resized."""
        assert self._found.times is not None
        try:
            batch = self._decoder.get_frames_in_range(numbers.start, numbers.stop, numbers.step)
            frames = batch.data if self._on_cpu else self._resized(batch.data)
        except (RuntimeError, ValueError, IndexError) as error:
            raise CannotDecode(_reason(error)) from None
        times = batch.pts_seconds.cpu().numpy() - self._found.offset
        if np.abs(times - self._found.times[numbers]).max() > 1e-6:
            raise CannotDecode("it gives frames at other times than the container")
        images: Image = frames.numpy()
        return images

    def _resized(self, frames: Any) -> Any:
        """(N, H, W, 3) frames of any size, on a GPU, as torchvision resizes with antialiasing."""
        import torch

        planes = frames.permute(0, 3, 1, 2).float()
        small = torch.nn.functional.interpolate(
            planes, self._shape, mode="bilinear", antialias=True
        )
        return small.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu()


@cache
def _load() -> tuple[Any, Any]:
    """torchcodec's VideoDecoder and Resize."""
    from mstemba.extractors import torchvision_ops  # imports torch, which others do not need

    torchvision_ops.ensure()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import torchcodec.decoders
            import torchcodec.transforms
    except ModuleNotFoundError:
        raise DecodeError(
            "--decoder torchcodec needs torchcodec 0.10 or later: pip install torchcodec"
        ) from None
    except (ImportError, OSError, RuntimeError) as error:
        raise DecodeError(
            f"torchcodec cannot be loaded: {_reason(error)}. It needs FFmpeg's shared libraries "
            f"(apt-get install ffmpeg) and a release made for the torch that is installed"
        ) from None
    package: Any = torchcodec
    return package.decoders.VideoDecoder, package.transforms.Resize


def _reason(error: BaseException) -> str:
    """The heart of torchcodec's long messages, in one line."""
    missing = re.findall(r"(lib\S+): cannot open shared object file", f"{error} {error.__cause__}")
    if missing:
        # It tries one FFmpeg after the other: what it misses beside them is what matters.
        others = [name for name in missing if not name.startswith("libav")]
        return f"{(others or missing)[0]} is not there"
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return re.sub(r"^.*\.cpp:\d+, ", "", line)
