"""Resizing decoded frames: the size they get, and the filter that makes it."""

from __future__ import annotations

import av.filter
import numpy as np
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from mstemba.pipeline.decode.settings import Image

# Of swscale, as decord uses it. Another filter gives other features: `FeatureSpec.resize` names it.
FILTER = "bilinear"


def resized(width: int, height: int, short_side: int) -> tuple[int, int]:
    """Return (W, H) with the short side at `short_side`, the other in proportion."""
    if width <= height:
        return short_side, max(short_side, round(height * short_side / width))
    return max(short_side, round(width * short_side / height)), short_side


class FrameResizer:
    """Turns decoded frames into upright, resized RGB pixels.

    It is swscale in a filter graph: the conversion of decord, bit for bit on 8-bit H.264.
    """

    def __init__(self, stream: VideoStream, rotation: int, size: tuple[int, int]) -> None:
        self._stream = stream
        self._turns = rotation // 90
        self._size = size[::-1] if self._turns % 2 else size
        self._graph: av.filter.Graph | None = None
        self._format: tuple[int, int, str] | None = None

    def __call__(self, frame: VideoFrame) -> Image:
        frame_format = (frame.width, frame.height, frame.format.name)
        if self._graph is None or frame_format != self._format:  # the size may change midway
            self._graph = self._build(frame)
            self._format = frame_format
        self._graph.push(frame)
        scaled = self._graph.pull()
        assert isinstance(scaled, VideoFrame)
        plane = scaled.planes[0]
        lines = np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, plane.line_size)
        image: Image = lines[:, : 3 * plane.width].reshape(plane.height, plane.width, 3)
        return np.rot90(image, self._turns)

    def _build(self, frame: VideoFrame) -> av.filter.Graph:
        graph = av.filter.Graph()
        source = graph.add_buffer(
            width=frame.width,
            height=frame.height,
            format=frame.format,
            time_base=self._stream.time_base,
        )
        width, height = self._size
        scale = graph.add("scale", f"{width}:{height}:flags={FILTER}")
        rgb = graph.add("format", "rgb24")
        graph.link_nodes(source, scale, rgb, graph.add("buffersink")).configure()
        return graph
