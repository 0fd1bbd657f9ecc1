"""Frames as they are displayed, compared with ffmpeg's own chain of filters."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.filter
import numpy as np
import pytest
from av.bitstream import BitStreamFilterContext
from av.sidedata.sidedata import Type as SideData
from av.video.frame import VideoFrame

from mstemba.pipeline.decode import decord
from mstemba.pipeline.decode.probe import probe
from mstemba.pipeline.decode.resize import resized
from tests.pipeline.decode.test_reader import HAS_DECORD, SIZE, run
from tests.videos import Image, encode, encode_at, moving

TIMES = [i / 10 for i in range(6)]
Matrix = tuple[float, float, float, float]
"""a, b, c, d: (x, y) is displayed at (a x + c y, b x + d y)."""


def pictures(count: int, width: int = 96, height: int = 64, pixel: float = 1) -> Iterator[Image]:
    """A drifting gradient, a red corner at the top left, a disc that is displayed as round.

    `pixel` is the width of a displayed pixel by its height.
    """
    y, x = np.mgrid[:height, :width]
    for i in range(count):
        image = np.stack([(x * 2 + 3 * i) % 200, (y * 3 + i) % 200, (x + y) % 200], -1)
        image[: height // 4, : width // 4] = (255, 0, 0)
        across, down = (x - (width - 1) / 2) * pixel, y - (height - 1) / 2
        image[across**2 + down**2 < (min(width * pixel, height) / 3) ** 2] = 255
        yield image.astype(np.uint8)


def film(
    path: Path, width: int = 96, height: int = 64, sar: Fraction = Fraction(1), **how: Any
) -> Path:
    images = pictures(len(TIMES), width, height, float(sar))
    options = {"bf": "0", "g": "3", **how.pop("options", {})}
    if sar != 1:
        options["aspect"] = str(sar)
    return encode_at(path, TIMES, images=images, options=options, **how)


def turned(path: Path, matrix: Matrix) -> Path:
    """Write this display matrix into an MP4."""
    content = bytearray(path.read_bytes())
    place = content.find(b"tkhd") + (56 if content[content.find(b"tkhd") + 4] else 44)
    a, b, c, d = (round(number * 0x10000) for number in matrix)
    content[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    return path


def rotation(degrees: float) -> Matrix:
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return cos, sin, -sin, cos


# The reference: what ffmpeg does to show a frame, written after its autorotate


def autorotate(frame: VideoFrame) -> list[tuple[str, str]]:
    data: Any = frame.side_data
    if (stored := data.get(SideData.DISPLAYMATRIX)) is None:
        return []
    m = np.frombuffer(stored, "=i4").tolist()
    theta = math.atan2(m[1] / math.hypot(m[1], m[4]), m[0] / math.hypot(m[0], m[3]))
    degrees: float = round(math.degrees(theta))
    degrees -= 360 * math.floor(degrees / 360 + 0.9 / 360)
    if abs(degrees - 90) < 1:
        return [("transpose", "cclock_flip" if m[3] > 0 else "clock")]
    if abs(degrees - 180) < 1:
        return [("hflip", "")] * (m[0] < 0) + [("vflip", "")] * (m[4] < 0)
    if abs(degrees - 270) < 1:
        return [("transpose", "clock_flip" if m[3] < 0 else "cclock")]
    if abs(degrees) > 1:
        return [("rotate", f"{degrees:f}*PI/180")]
    return [("vflip", "")] * (abs(degrees) < 1 and m[4] < 0)


def shown(frame: VideoFrame, turns: list[tuple[str, str]], sar: Fraction) -> Image:
    """Return the centre square of a frame, by a graph of its own."""
    width, height = float(frame.width * sar), float(frame.height)
    sideways = any(name == "transpose" for name, _ in turns)
    size = resized(*((height, width) if sideways else (width, height)), SIZE)
    graph = av.filter.Graph()
    source = graph.add(
        "buffer",
        video_size=f"{frame.width}x{frame.height}",
        pix_fmt=frame.format.name,
        time_base="1/1000",
        colorspace=str(int(frame.colorspace)),
        range=str(int(frame.color_range)),
    )
    chain = [*turns, ("scale", "{}:{}".format(*size)), ("format", "rgb24")]
    filters = [graph.add(name, arguments) for name, arguments in chain]
    graph.link_nodes(source, *filters, graph.add("buffersink")).configure()
    graph.push(frame)
    image = graph.pull()
    assert isinstance(image, VideoFrame)
    left, top = ((side - SIZE) // 2 for side in size)
    return image.to_ndarray()[top : top + SIZE, left : left + SIZE]


def reference(path: Path, sar: Fraction = Fraction(1)) -> Image:
    """Return what ffmpeg shows, (N, 64, 64, 3)."""
    with av.open(f"file:{path}") as container:
        frames = list(container.decode(video=0))
    turns = autorotate(frames[0])  # later frames may lack the matrix
    return np.stack([shown(frame, turns, sar) for frame in frames])


def as_ffmpeg(path: Path, decord_too: bool, sar: Fraction = Fraction(1)) -> Image:
    """Check that all decoders give what ffmpeg shows, and return it."""
    expected = reference(path, sar)
    assert np.array_equal(run(path, "av").images, expected)
    exact = decord.why_inexact(probe(path)) is None
    assert exact == decord_too or not HAS_DECORD
    if exact:
        assert np.array_equal(run(path, "decord").images, expected)
    assert run(path).report.decoder == ("decord" if exact else "av")
    return expected


# The display matrix

QUARTERS: dict[str, Matrix] = {
    "upright": (1, 0, 0, 1),
    "90": (0, 1, -1, 0),
    "180": (-1, 0, 0, -1),
    "270": (0, -1, 1, 0),
    "mirrored": (-1, 0, 0, 1),
    "mirrored 90": (0, 1, 1, 0),
    "mirrored 180": (1, 0, 0, -1),
    "mirrored 270": (0, -1, -1, 0),
}


@pytest.mark.parametrize("name", QUARTERS)
def test_all_eight_orientations(tmp_path: Path, name: str) -> None:
    a, b, c, d = QUARTERS[name]
    found = as_ffmpeg(turned(film(tmp_path / "v.mp4"), (a, b, c, d)), name == "upright")[0]
    # The stored top left corner is at (-1, -1) from the centre.
    right, bottom = -a - c > 0, -b - d > 0
    for x in (False, True):
        for y in (False, True):
            patch = found[-6:] if y else found[:6]
            red, *others = (patch[:, -6:] if x else patch[:, :6]).mean((0, 1))
            is_red = red > 200 and max(others) < 60
            assert is_red == ((x, y) == (right, bottom))


@pytest.mark.parametrize("degrees", [-0.2, 0.2, 89.8, 90.2, 179.8, 180.2, 269.8, 270.2])
def test_a_matrix_a_hair_off_a_quarter_turn(tmp_path: Path, degrees: float) -> None:
    path = turned(film(tmp_path / "v.mp4"), rotation(degrees))
    found = as_ffmpeg(path, decord_too=False)
    exact = turned(path, rotation(round(degrees)))
    assert np.array_equal(found, run(exact, "av").images)


@pytest.mark.parametrize("degrees", [-1, 1, 30, 91, 179, 200, 300])
def test_other_angles(tmp_path: Path, degrees: float) -> None:
    as_ffmpeg(turned(film(tmp_path / "v.mp4"), rotation(degrees)), decord_too=False)


def test_a_matrix_without_a_width_turns_nothing(tmp_path: Path) -> None:
    plain = run(film(tmp_path / "plain.mp4"))
    found = run(turned(film(tmp_path / "v.mp4"), (0, 0, 0, 1)))
    assert found.report.decoder == "av"
    assert np.array_equal(found.images, plain.images)


def test_a_real_recording_that_is_turned(shared: Path) -> None:
    as_ffmpeg(shared / "videos" / "odd" / "decord_video_90.mov", decord_too=False)


# Pixels that are not square


def is_round(image: Image) -> bool:
    """Whether the white disc is as wide as it is high."""
    y, x = np.nonzero(image.min(axis=-1) > 225)
    return len(x) > 500 and bool(0.95 < np.std(x) / np.std(y) < 1.05)


@pytest.mark.parametrize("quarter", ["upright", "90"])
@pytest.mark.parametrize("sar", [Fraction(64, 45), Fraction(8, 9)])
def test_a_disc_is_round(tmp_path: Path, sar: Fraction, quarter: str) -> None:
    path = turned(film(tmp_path / "v.mp4", 72, 64, sar), QUARTERS[quarter])
    assert all(map(is_round, as_ffmpeg(path, quarter == "upright", sar)))
    if quarter == "upright":
        assert all(map(is_round, as_ffmpeg(film(tmp_path / "v.mkv", 72, 64, sar), True, sar)))


# Sizes that change midway


def packets(codec: str, width: int, height: int, first: int) -> list[av.Packet[Any]]:
    """Those of six frames, with the size and format in the first of them."""
    context = av.CodecContext.create(codec, "w")
    context.width, context.height, context.pix_fmt = width, height, "yuv420p"
    context.time_base, context.framerate = Fraction(1, 10), Fraction(10)
    context.options = {"bf": "0"} if codec == "libx264" else {"lag-in-frames": "0"}
    found = []
    for number, image in enumerate(pictures(6, width, height), first):
        frame = VideoFrame.from_ndarray(image, format="rgb24")
        frame.pts, frame.time_base = number, Fraction(1, 10)
        found += context.encode(frame)
    return found + context.encode(None)


@pytest.mark.parametrize(
    ("name", "codec"),
    [*((f"v.{end}", "libx264") for end in ("ts", "mp4", "mkv")),
     ("v.webm", "libvpx"), ("v.webm", "libvpx-vp9")],
)  # fmt: skip
def test_every_frame_has_its_own_proportions(tmp_path: Path, name: str, codec: str) -> None:
    path = tmp_path / name
    with av.open(f"file:{path}", "w") as out:
        stream = out.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 96, 160, "yuv420p"
        for packet in packets(codec, 96, 160, 0) + packets(codec, 160, 96, 6):
            packet.stream = stream
            out.mux(packet)
    found = as_ffmpeg(path, decord_too=False)
    assert len(found) == 12
    assert all(map(is_round, found))


# Pixel formats


@pytest.mark.parametrize(
    ("codec", "pixels", "width", "height"),
    [
        ("libx264", "yuv420p10le", 96, 64), ("libx264", "yuv422p10le", 96, 64),
        ("libx265", "yuv420p10le", 96, 64), ("libx264", "yuv422p", 96, 64),
        ("libx264", "yuv444p", 96, 64), ("libx264", "yuv444p", 97, 63),
        ("libx264", "yuvj420p", 96, 64), ("libvpx-vp9", "yuv444p", 63, 97),
        ("libvpx-vp9", "yuv420p", 97, 63), ("ffv1", "yuv420p", 63, 97), ("ffv1", "bgr0", 97, 63),
    ],
)  # fmt: skip
def test_pixel_formats(tmp_path: Path, codec: str, pixels: str, width: int, height: int) -> None:
    path = film(tmp_path / "v.mkv", width, height, codec=codec, pixels=pixels)
    found = as_ffmpeg(path, decord_too=codec not in {"ffv1", "libx265"}).astype(float)
    for image, source in zip(found, pictures(len(TIMES), width, height), strict=True):
        expected = shown(VideoFrame.from_ndarray(source, format="rgb24"), [], Fraction(1))
        assert np.abs(image - expected).mean() < 4


def test_an_orientation_that_only_the_frames_have_is_applied(tmp_path: Path) -> None:
    plain = encode(tmp_path / "plain.mp4", 12)
    path = tmp_path / "turned.mp4"
    with av.open(f"file:{plain}") as given, av.open(f"file:{path}", "w") as out:
        stream = given.streams.video[0]
        copy = out.add_stream_from_template(stream)
        insert = BitStreamFilterContext(
            "h264_metadata=display_orientation=insert:rotate=90", stream, copy
        )
        for packet in given.demux(stream):
            for filtered in insert.filter(packet if packet.size else None):
                filtered.stream = copy
                out.mux(filtered)
    found, upright = as_ffmpeg(path, decord_too=False), run(plain).images.astype(int)
    apart = [np.abs(found - np.rot90(upright, k, axes=(1, 2))).mean() for k in range(4)]
    assert apart[1] < min(apart[0], apart[2], apart[3]) / 4, apart


def test_pixels_whose_shape_changes_midway_are_shown_in_each_ones_shape(tmp_path: Path) -> None:
    parts = []
    for number, aspect in enumerate([Fraction(1), Fraction(64, 45)]):
        path = tmp_path / f"{number}.ts"
        with av.open(f"file:{path}", "w") as out:
            stream = out.add_stream("mpeg2video", rate=25, options={"g": "12"})
            stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
            stream.codec_context.sample_aspect_ratio = aspect
            for image in moving(25):
                out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            out.mux(stream.encode())
        parts.append(path)
    joined = tmp_path / "joined.ts"
    joined.write_bytes(parts[0].read_bytes() + parts[1].read_bytes())
    found = run(joined)
    for number, part in enumerate(parts):
        own = run(part).images
        assert np.array_equal(found.images[25 * number + 1 : 25 * number + 24], own[1:24])
    assert not np.array_equal(run(parts[0]).images, run(parts[1]).images)


@pytest.mark.parametrize("width", [24, 48, 72])
def test_narrow_frames_have_three_channels(tmp_path: Path, width: int) -> None:
    path = encode(tmp_path / "v.mp4", 3, 10, width, 16)
    assert np.array_equal(run(path, size=16).images, run(path, "av", size=16).images)
