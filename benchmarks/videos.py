"""Longer and shorter videos, made of an existing one; and a video made of nothing.

`python -m benchmarks.videos FILE` writes the latter: 40 seconds of 768x432 at 25 frames a second.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
from av.video.stream import VideoStream
from numpy.typing import NDArray

from mstemba.pipeline.demo import write_video

WIDTH, HEIGHT, FPS, FRAMES = 768, 432, 25, 1000


def synthetic(count: int = FRAMES) -> Iterator[NDArray[np.uint8]]:
    """Yield frames of moving waves under noise, which compresses about as badly as a real scene."""
    noise = np.random.default_rng(0).integers(0, 24, (HEIGHT, 2 * WIDTH, 3), np.uint8)
    x, y = np.arange(WIDTH)[None], np.arange(HEIGHT)[:, None]
    for t in range(count):
        waves = (90 + 60 * np.sin(x / 40 + t / 9) + 40 * np.cos(y / 30 - t / 7) + 40).clip(0, 230)
        shift = 5 * t % WIDTH
        yield waves.astype(np.uint8)[..., None] + noise[:, shift : shift + WIDTH]


def to_jpeg(video: Path, folder: Path, count: int) -> None:
    """Write the first `count` frames of a video as JPEG files."""
    with av.open(f"file:{video}") as container:
        for number, frame in zip(range(count), container.decode(video=0), strict=False):
            frame.to_image().save(folder / f"{number:06d}.jpg", quality=95)


def looped(source: Path, target: Path, seconds: float) -> Path:
    """The video repeated until it lasts so long: its packets again and again, no pixel touched."""
    with av.open(f"file:{target}", "w") as out:
        stream, written = None, 0.0
        while written < seconds:
            with av.open(f"file:{source}") as container:
                video = container.streams.best("video")
                assert isinstance(video, VideoStream)
                stream = stream or out.add_stream_from_template(video)
                base = float(video.time_base or 0)
                shift, last = round(written / base), written
                for packet in container.demux(video):
                    if packet.dts is None or packet.pts is None:
                        continue
                    packet.pts += shift
                    packet.dts += shift
                    end = (packet.pts + (packet.duration or 0)) * base
                    # Cut at a key frame: what comes after it does not need what came before.
                    if packet.is_keyframe and packet.pts * base >= seconds:
                        return target
                    last = max(last, end)
                    packet.stream = stream
                    out.mux(packet)
                written = last
    return target


def cut(source: Path, folder: Path, count: int, seconds: float) -> list[Path]:
    """Clips of the video, each beginning at a key frame, again from the start when it ends."""
    clips: list[Path] = []
    while len(clips) < count:
        clips += _cut_once(source, folder, len(clips), count, seconds)
    return clips


def _cut_once(source: Path, folder: Path, first: int, count: int, seconds: float) -> list[Path]:
    clips: list[Path] = []
    out: av.container.OutputContainer | None = None
    begin = 0.0
    with av.open(f"file:{source}") as container:
        video = container.streams.best("video")
        assert isinstance(video, VideoStream)
        base = float(video.time_base or 0)
        for packet in container.demux(video):
            if packet.dts is None or packet.pts is None:
                continue
            now = packet.pts * base
            if out is None or (packet.is_keyframe and now >= begin + seconds):
                if out is not None:
                    out.close()
                    if first + len(clips) == count:
                        return clips
                begin = now
                clips.append(folder / f"clip{first + len(clips):04d}.mp4")
                out = av.open(f"file:{clips[-1]}", "w")
                stream = out.add_stream_from_template(video)
                shift = packet.dts
            packet.pts -= shift
            packet.dts -= shift
            packet.stream = stream
            out.mux(packet)
    assert out is not None
    out.close()
    return clips


if __name__ == "__main__":
    write_video(Path(sys.argv[1]), synthetic(), FPS)
