"""torchcodec, where it can be loaded: the same frames at the same times as PyAV."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mstemba.errors import DecodeError
from mstemba.pipeline.decode import pyav_reader, torchcodec_reader
from mstemba.pipeline.decode.reader import DecodeRequest
from mstemba.pipeline.decode.worker import decode_all
from tests.test_decode import SIZE, after, gather, groups, is_the_rest, run
from tests.videos import encode

__all__ = ["groups"]  # a fixture


def why_not() -> str | None:
    """Why torchcodec cannot be tested here."""
    try:
        torchcodec_reader._load()
    except DecodeError as error:
        return str(error)
    return None


REASON = why_not()
needs_torchcodec = pytest.mark.skipif(REASON is not None, reason=str(REASON))

Groups = dict[tuple[str, str], Path]
KINDS = ("closed", "closed mkv", "no B", "hevc", "mpeg4")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 frames at 10 fps, 160x120."""
    return encode(tmp_path_factory.mktemp("v") / "clip.mp4", 40)


@needs_torchcodec
@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize("rate", ["even", "uneven"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_frames_are_those_of_pyav(groups: Groups, kind: str, rate: str, every: int) -> None:
    one = run(groups[kind, rate], "torchcodec", every=every)
    other = run(groups[kind, rate], "av", every=every)
    assert one.report.decoder == "torchcodec"
    assert np.allclose(one.times, other.times, rtol=0, atol=1e-6)
    assert one.report.fps == pytest.approx(other.report.fps)
    # torchcodec makes RGB of a frame and then resizes it, PyAV does both at once.
    difference = np.abs(one.images.astype(int) - other.images)
    assert difference.mean() < 2
    shifted = np.abs(one.images[1:].astype(int) - other.images[:-1]).mean()
    assert shifted > 2 * difference.mean()


@needs_torchcodec
@pytest.mark.parametrize(
    "name",
    [
        "dogwalk.mp4",
        "odd/decord_video_90.mov",
        "odd/torchcodec_av1_video.mkv",
        "odd/torchcodec_h265_10bits.mp4",
        "odd/torchcodec_nasa_13013.mp4",
        "odd/moviepy_1x1_dashname.mp4",
        "odd/moviepy_vp9_no_duration.webm",
    ],
)
def test_real_videos_are_as_pyav_gives_them(shared: Path, name: str) -> None:
    path = shared / "videos" / name
    one = run(path, "torchcodec", size=224, every=2)
    other = run(path, "av", size=224, every=2)
    assert np.allclose(one.times, other.times, rtol=0, atol=1e-6)
    difference = np.abs(one.images.astype(int) - other.images)
    # The mean is 1 for recordings and 2.3 for test patterns, whose sharp edges of colour swscale
    # blurs on its direct way to RGB: single values differ by up to 181.
    assert difference.mean() < 3
    assert np.median(difference) <= 1
    assert one.report.frames == other.report.frames


@needs_torchcodec
@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_going_on_gives_exactly_the_rest(groups: Groups, kind: str, every: int) -> None:
    path = groups[kind, "uneven"]
    whole = run(path, "torchcodec", every=every, batch_size=8)
    count = len(whole.times)
    for k in {1, 2, count // 3, *range(count // 2, count // 2 + 8), count - 1, count}:
        if k <= count:
            events = after(path, "torchcodec", whole, k, every=every, batch_size=8)
            is_the_rest(events, whole, k)


@needs_torchcodec
@pytest.mark.parametrize("kind", ["open", "refresh", "ts", "avi"])
def test_what_it_cannot_seek_in_exactly_is_refused(groups: Groups, kind: str) -> None:
    with pytest.raises(DecodeError, match=r"torchcodec cannot read it: .*Try --decoder auto"):
        run(groups[kind, "even"], "torchcodec")


@needs_torchcodec
def test_a_damaged_file_is_refused(shared: Path) -> None:
    with pytest.raises(DecodeError, match=r"Invalid data found .*Try --decoder auto"):
        run(shared / "videos" / "odd" / "decord_corrupted.mp4", "torchcodec")


@needs_torchcodec
def test_it_works_in_a_process_of_its_own(clip: Path) -> None:
    request = DecodeRequest(clip, SIZE, decoder="torchcodec", threads=1)
    found = gather(event for _, event in decode_all(iter([(0, request)])))
    assert np.array_equal(found.images, run(clip, "torchcodec").images)


@needs_torchcodec
def test_frames_at_other_times_are_not_taken(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = pyav_reader.probe

    def late(*args: Any) -> Any:
        found = real(*args)
        assert found.times is not None
        found.times[30:] += 0.01
        return found

    monkeypatch.setattr(pyav_reader, "probe", late)
    with pytest.raises(DecodeError, match="at other times than the container"):
        run(clip, "torchcodec")


@needs_torchcodec
def test_a_gpu_that_is_not_there_is_an_error(clip: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(DecodeError, match=r"clip\.mp4: torchcodec cannot read it: .*cuda"):
        run(clip, "torchcodec", device="cuda:0")


def test_a_turned_picture_is_not_for_a_gpu(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    monkeypatch.setattr(torchcodec_reader, "_load", lambda: None)
    found = replace(pyav_reader.probe(clip), rotation=90)
    assert "turned" in str(torchcodec_reader.why_not(found, "cuda:0"))
    assert torchcodec_reader.why_not(found, "cpu") is None


@pytest.mark.parametrize("size", [(64, 85), (224, 298)])
def test_resizing_as_on_a_gpu_is_torchvisions_antialiased_one(
    clip: Path, size: tuple[int, int]
) -> None:
    import torch

    from mstemba.extractors import torchvision_ops

    torchvision_ops.ensure()
    from torchvision.transforms.v2 import functional

    frames = torch.randint(0, 256, (3, 120, 160, 3), dtype=torch.uint8)
    reader = object.__new__(torchcodec_reader._Reader)
    reader._shape = size
    expected = functional.resize(frames.permute(0, 3, 1, 2), list(size), antialias=True)
    found = reader._resized(frames)
    assert found.shape == (3, *size, 3)
    assert (found.int() - expected.permute(0, 2, 3, 1).int()).abs().max() <= 1


def test_without_torchcodec_the_error_says_what_to_install(
    clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torchcodec_reader._load.cache_clear()
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    with pytest.raises(DecodeError, match="pip install torchcodec") as caught:
        run(clip, "torchcodec")
    assert "\n" not in str(caught.value)
    torchcodec_reader._load.cache_clear()


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (RuntimeError("Could not load.\nOSError: libavutil.so.60: cannot open shared object file"
                      "\nOSError: libnvrtc.so.13: cannot open shared object file"),
         "libnvrtc.so.13 is not there"),
        (RuntimeError("OSError: libavutil.so.60: cannot open shared object file"),
         "libavutil.so.60 is not there"),
        (RuntimeError("f, /src/_core/SingleStreamDecoder.cpp:1436, Invalid data found\nmore"),
         "Invalid data found"),
        (RuntimeError(), "RuntimeError"),
    ],
)  # fmt: skip
def test_its_long_messages_become_one_line(error: Exception, says: str) -> None:
    assert torchcodec_reader._reason(error) == says
