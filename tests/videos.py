"""Small real videos for the tests, encoded on the spot."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from mstemba.pipeline.demo import write_video

Image = NDArray[np.uint8]


def moving(count: int, width: int = 160, height: int = 120) -> list[Image]:
    """Frames of a coloured gradient that drifts under a bright square that runs across."""
    y, x = np.mgrid[:height, :width]
    frames = []
    for i in range(count):
        image = np.stack([(x * 2 + 3 * i) % 256, (y * 3 + i) % 256, (x + y) % 256], axis=-1)
        left = 4 * i % (width - 16)
        image[height // 3 : height // 3 + 16, left : left + 16] = (250, 240, 20)
        frames.append(image.astype(np.uint8))
    return frames


def encode(path: Path, count: int = 40, fps: int = 10, width: int = 160, height: int = 120) -> Path:
    """A constant-rate H.264 file in the container that the name asks for."""
    write_video(path, moving(count, width, height), fps)
    return path


def encode_pieces(path: Path, count: int = 40) -> Path:
    """An HLS playlist (.m3u8) at ten frames per second, with a piece for every second."""
    return encode_at(
        path,
        [number / 10 for number in range(count)],
        options={"g": "10", "bf": "0"},
        container={"hls_time": "1", "hls_list_size": "0"},
    )


def encode_at(
    path: Path,
    times: Sequence[float],
    *,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    options: dict[str, str] | None = None,
    container: dict[str, str] | None = None,
    images: Iterable[Image] | None = None,
) -> Path:
    """A file whose frames are shown at these times, in seconds (kept to the millisecond)."""
    images = list(images or moving(len(times)))
    with av.open(str(path), "w", options=container or {}) as out:
        stream = out.add_stream(codec, rate=10, options=options or {})
        stream.pix_fmt = pixels
        stream.height, stream.width = images[0].shape[:2]
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for image, time in zip(images, times, strict=True):
            frame = VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = round(1000 * time), Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path
