"""From a decoded frame to the upright RGB square that a backbone takes."""

from __future__ import annotations

from fractions import Fraction
from typing import cast

import av.filter
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from mstemba.errors import DecodeError
from mstemba.limits import MOST_ASPECT
from mstemba.pipeline.decode.request import DecodeRequest, Image, VideoInfo


def resized(width: float, height: float, short_side: int) -> tuple[int, int]:
    """Return (W, H) with the short side at `short_side`, the other in proportion."""
    if width <= height:
        return short_side, max(short_side, round(height * short_side / width))
    return max(short_side, round(width * short_side / height)), short_side


def displayed_size(
    info: VideoInfo, aspect: Fraction | None, width: int, height: int, request: DecodeRequest
) -> tuple[int, int]:
    """Return (W, H) to which a stored frame is resized, in the proportions of its display.

    Args:
        info: Of the frame's file: how its frames are turned.
        aspect: Width of a displayed pixel by its height; 1 if it is unknown or makes no sense.
        width: Of the stored frame, in pixels.
        height: Of the stored frame, in pixels.
        request: How long the short side becomes.

    Raises:
        DecodeError: The frame is so long and narrow that it would take gigabytes.
    """
    if aspect is None or not Fraction(1, 10) < aspect < 10:
        aspect = Fraction(1)
    shown = (float(width * aspect), float(height))
    if max(shown) > MOST_ASPECT * min(shown):
        raise DecodeError(
            f"{request.path}: pictures of {width} x {height} pixels, expected a long side of at "
            f"most {MOST_ASPECT} times the short one. Cut out a part: ffmpeg -i IN -vf crop=W:H "
            f"OUT.mp4"
        )
    turned = any(name == "transpose" for name, _ in info.upright)
    return resized(*(shown[::-1] if turned else shown), request.short_side or request.size)


def crop(image: Image, size: int) -> Image:
    """Return the square of `size` pixels in the middle of an (H, W, 3) image, not copied."""
    top, left = ((side - size) // 2 for side in image.shape[:2])
    return image[top : top + size, left : left + size]


class FrameResizer:
    """Turns the decoded frames of one file into upright squares.

    It is FFmpeg's own chain: the display matrix's filters, then swscale's bicubic filter, which is
    also in decord, bit for bit.
    """

    def __init__(self, stream: VideoStream, info: VideoInfo, request: DecodeRequest) -> None:
        self._stream, self._info, self._request = stream, info, request
        self._graph: av.filter.Graph | None = None
        self._format: tuple[int, int, str, Fraction | None] | None = None

    def __call__(self, frame: VideoFrame) -> Image:
        """Return the (size, size, 3) square, valid until the next call."""
        aspect = self._info.pixel_aspect or self._stream.codec_context.sample_aspect_ratio
        frame_format = (frame.width, frame.height, frame.format.name, aspect)
        if self._graph is None or frame_format != self._format:  # the size may change midway
            self._graph = self._build(frame, aspect)
            self._format = frame_format
        self._graph.push(frame)
        return crop(cast(Image, self._graph.vpull().to_ndarray()), self._request.size)

    def _build(self, frame: VideoFrame, aspect: Fraction | None) -> av.filter.Graph:
        graph = av.filter.Graph()
        source = graph.add_buffer(self._stream, frame.width, frame.height, frame.format)
        width, height = displayed_size(self._info, aspect, frame.width, frame.height, self._request)
        chain = [*self._info.upright, ("scale", f"{width}:{height}"), ("format", "rgb24")]
        filters = [graph.add(name, arguments) for name, arguments in chain]
        graph.link_nodes(source, *filters, graph.add("buffersink")).configure()
        return graph
