"""Decoding: the same frames by either decoder, at their real times, from damaged files too."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mstemba.errors import DecodeError
from mstemba.pipeline.decode import decord, pyav, reader
from mstemba.pipeline.decode.probe import probe
from mstemba.pipeline.decode.reader import decode
from mstemba.pipeline.decode.request import (
    DecodedFrame,
    DecodeReport,
    DecodeRequest,
    Image,
    Opened,
    Restart,
    Resume,
)
from mstemba.pipeline.decode.resize import resized
from mstemba.records import Frames
from tests.videos import encode, encode_at, moving

SIZE = 64
HAS_DECORD = importlib.util.find_spec("decord") is not None
needs_decord = pytest.mark.skipif(not HAS_DECORD, reason="decord is not made for this platform")
DECODERS = ["av", pytest.param("decord", marks=needs_decord)]


@pytest.fixture(autouse=True)
def usual_priority() -> Iterator[None]:
    """Undo what the encoder of AV1 does: it gives a process of root real-time priority.

    Later tests and what they start would take all time from other processes.
    """
    yield
    if hasattr(os, "sched_setscheduler"):
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


@dataclass
class Decoded:
    """One video's events, put together."""

    images: np.ndarray
    times: np.ndarray
    report: DecodeReport
    batches: list[int] = field(default_factory=list)
    restarts: int = 0


def gather(events: Iterator[Any]) -> Decoded:
    batches: list[Frames] = []
    restarts = 0
    report = None
    for event in events:
        if isinstance(event, Frames):
            batches.append(event)
        elif isinstance(event, Restart):
            batches, restarts = [], restarts + 1
        elif isinstance(event, DecodeReport):
            assert report is None, "one report, at the end"
            report = event
        else:
            assert isinstance(event, Opened), event
            assert not batches, "opened before the first frame"
    assert report is not None
    found = Decoded(
        np.concatenate([b.images for b in batches]),
        np.concatenate([b.times for b in batches]),
        report,
        [len(b.images) for b in batches],
        restarts,
    )
    assert found.report.frames == len(found.times)
    assert (np.diff(found.times) > 0).all()
    return found


def run(path: Path, decoder: str = "auto", size: int = SIZE, **options: Any) -> Decoded:
    return gather(decode(DecodeRequest(path, size, decoder=decoder, **options)))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 frames at 10 fps, 160x120."""
    return encode(tmp_path_factory.mktemp("v") / "clip.mp4", 40)


# The same frames by either decoder


def same(path: Path, **options: Any) -> Decoded:
    one, other = run(path, "decord", **options), run(path, "av", **options)
    assert (one.report.decoder, other.report.decoder) == ("decord", "av")
    assert np.array_equal(one.images, other.images)
    assert np.allclose(one.times, other.times, rtol=0, atol=1e-6)
    assert one.report.fps == pytest.approx(other.report.fps)
    assert one.report.duration == pytest.approx(other.report.duration)
    return one


@needs_decord
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
@pytest.mark.parametrize("shape", [(160, 120), (120, 160), (640, 360)])
def test_both_decoders_give_the_same_bits(
    tmp_path: Path, suffix: str, shape: tuple[int, int]
) -> None:
    path = encode(tmp_path / f"v{suffix}", 12, 25, *shape)
    found = same(path)
    assert found.images.shape == (12, SIZE, SIZE, 3)
    assert same(path, size=224).images.shape == (12, 224, 224, 3)  # enlarged


@needs_decord
@pytest.mark.parametrize("frame_step", [2, 3, 7, 100])
def test_both_decoders_take_the_same_every_nth_frame(clip: Path, frame_step: int) -> None:
    whole, some = run(clip), same(clip, frame_step=frame_step)
    assert np.array_equal(some.images, whole.images[::frame_step])
    assert np.allclose(some.times, whole.times[::frame_step])
    if frame_step < 40:
        assert some.report.fps == pytest.approx(10)
    assert some.report.duration >= some.times[-1]


# Small groups of pictures, by kinds that decoders trip over.
GROUPS: dict[str, tuple[str, str, dict[str, str]]] = {
    "closed": (".mp4", "libx264", {"x264-params": "keyint=12:min-keyint=12:scenecut=0:bframes=3"}),
    "closed mkv": (".mkv", "libx264", {"x264-params": "keyint=9:scenecut=0:bframes=2"}),
    "no B": (".mov", "libx264", {"x264-params": "keyint=12:scenecut=0:bframes=0"}),
    "open": (".mkv", "libx264", {"x264-params": "keyint=12:min-keyint=12:open-gop=1:bframes=3"}),
    "refresh": (".mp4", "libx264", {"x264-params": "keyint=12:intra-refresh=1:bframes=0"}),
    "hevc": (".mp4", "libx265", {"x265-params": "keyint=12:open-gop=1:bframes=3:log-level=0"}),
    "hevc closed": (".mp4", "libx265", {"x265-params": "keyint=12:open-gop=0:log-level=0"}),
    "vp8": (".webm", "libvpx", {"g": "12", "auto-alt-ref": "1", "lag-in-frames": "16"}),
    "vp9": (".mp4", "libvpx-vp9", {"g": "12", "auto-alt-ref": "1", "lag-in-frames": "16"}),
    "av1": (".mkv", "libsvtav1", {"g": "12", "svtav1-params": "irefresh-type=2"}),
    "av1 open": (".mp4", "libsvtav1", {"g": "16", "svtav1-params": "irefresh-type=1"}),
    "mpeg4": (".mp4", "mpeg4", {"g": "12", "bf": "2"}),
    "mpeg4 no B": (".avi", "mpeg4", {"g": "12", "bf": "0"}),
    "ts": (".ts", "libx264", {"x264-params": "keyint=12:scenecut=0"}),
    "avi": (".avi", "libx264", {"x264-params": "keyint=12:scenecut=0:bframes=0"}),
}
FOR_DECORD = GROUPS.keys() - {"ts", "hevc closed"}
# In the others, frames before a keyframe need it, or it does not reset the decoder.
CLOSED = {"closed", "closed mkv", "no B", "vp8", "vp9", "av1", "mpeg4 no B"}
EVEN = [i / 10 for i in range(60)]
# Twice as many frames a second from 2 s on, and a second with nothing in it.
UNEVEN = [t if t < 2 else 2 + (t - 2) / 2 for t in EVEN[:40]] + [t + 1 for t in EVEN[40:]]


@pytest.fixture(scope="module")
def groups(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """60 frames of each kind, at even and uneven times."""
    folder = tmp_path_factory.mktemp("groups")
    return {
        (kind, rate): encode_at(
            folder / f"{kind.replace(' ', '')}-{rate}{suffix}", times, codec=codec, options=options
        )
        for kind, (suffix, codec, options) in GROUPS.items()
        for rate, times in (("even", EVEN), ("uneven", UNEVEN))
    }


@pytest.fixture(params=[False, True], ids=["whole", "pieces"])
def in_pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether decord gets a file as it gets a long one: in as many pieces as possible."""
    if request.param:
        monkeypatch.setattr(decord, "PIECE_FRAMES", 1)
        monkeypatch.setattr(decord, "MOST_BYTES", 1)
    return bool(request.param)


@needs_decord
@pytest.mark.parametrize("rate", ["even", "uneven"])
@pytest.mark.parametrize("kind", GROUPS)
def test_all_kinds_of_groups_of_pictures_are_the_same_by_both_decoders(
    groups: dict[tuple[str, str], Path], kind: str, rate: str, in_pieces: bool
) -> None:
    path = groups[kind, rate]
    if kind in FOR_DECORD:
        assert (len(probe(path).closed_groups) > 3) == (kind in CLOSED)
        same(path)
        same(path, frame_step=3)
        assert run(path).report.decoder == ("av" if in_pieces else "decord")
    else:
        assert run(path).report.decoder == "av"
        with pytest.raises(DecodeError, match="not decoded with decord"):
            run(path, "decord")


REAL = [
    "asl_eat_intel.mkv",
    "dogwalk.mp4",
    "exercise_routine.avi",
    "pancake.mkv",
    "people_enter_139s.mp4",
    "weightlifting_19.62fps.mp4",
    "odd/moviepy_1x1_dashname.mp4",
    "odd/torchcodec_av1_video.mkv",
    "odd/torchcodec_h265_10bits.mp4",
    "odd/torchcodec_nasa_13013.mp4",  # two video streams
]


@needs_decord
@pytest.mark.parametrize("name", REAL)
def test_real_videos_are_the_same_by_both_decoders(
    shared: Path, name: str, in_pieces: bool
) -> None:
    path = shared / "videos" / name
    same(path, size=224)
    assert run(path).report.decoder == ("av" if in_pieces else "decord")


@pytest.mark.parametrize("decoder", DECODERS)
def test_colours_and_places_are_those_of_the_source(clip: Path, decoder: str) -> None:
    # The source's centre square, resized by plain area means.
    source = np.stack(moving(40))[:, :, 20:140].astype(float)
    found = run(clip, decoder, size=60).images.astype(float)
    expected = source.reshape(40, 60, 2, 60, 2, 3).mean(axis=(2, 4))
    assert np.abs(found - expected).mean() < 6
    mirrored = np.abs(found - expected[:, :, ::-1]).mean()
    swapped = np.abs(found - expected[..., ::-1]).mean()
    assert min(mirrored, swapped) > 20


@pytest.mark.parametrize(
    ("width", "height", "size", "expected"),
    [
        (640, 480, 224, (299, 224)),
        (480, 640, 224, (224, 299)),
        (224, 224, 224, (224, 224)),
        (1, 1, 224, (224, 224)),
        (100, 101, 32, (32, 32)),
        (2000, 1, 8, (16000, 8)),
    ],
)
def test_the_short_side_is_resized_and_the_proportions_kept(
    width: int, height: int, size: int, expected: tuple[int, int]
) -> None:
    assert resized(width, height, size) == expected


@pytest.mark.parametrize("decoder", [*DECODERS, "auto"])
@pytest.mark.parametrize(("width", "height"), [(2000, 16), (18, 2000)])
def test_pictures_that_are_far_longer_than_wide_are_refused(
    tmp_path: Path, width: int, height: int, decoder: str
) -> None:
    path = encode(tmp_path / "a.mp4", 3, width=width, height=height)
    with pytest.raises(DecodeError, match=f"of {width} x {height} pixels, expected a long side of"):
        run(path, decoder)


def test_the_square_may_be_cut_out_of_larger_frames(clip: Path) -> None:
    whole = run(clip, size=90)
    assert np.array_equal(run(clip, size=60, short_side=90).images, whole.images[:, 15:75, 15:75])


@pytest.mark.parametrize("batch_size", [1, 7, 39, 40, 41])
def test_the_batch_size_changes_no_frame(clip: Path, batch_size: int) -> None:
    whole, found = run(clip), run(clip, batch_size=batch_size)
    assert np.array_equal(found.images, whole.images)
    assert np.array_equal(found.times, whole.times)
    assert set(found.batches[:-1]) <= {batch_size}
    assert found.batches[-1] <= batch_size


def test_frames_that_only_the_first_one_explains_stay_with_it(tmp_path: Path) -> None:
    """FFmpeg decodes old x264's frames in its own way, by the text in the first packet."""
    options = {"x264-params": "keyint=12:scenecut=0:bframes=0"}
    path = encode_at(tmp_path / "v.mp4", EVEN, pixels="yuv444p", options=options)
    assert probe(path).closed_groups == 5 * [12]
    new = path.read_bytes()
    old = re.sub(rb"x264 - core \d\d\d", b"x264 - core 150", new)
    assert old != new
    path.write_bytes(old)
    assert probe(path).closed_groups == [60]


# Times


def test_a_constant_rate_gives_even_times(clip: Path) -> None:
    found = run(clip)
    assert found.times == pytest.approx(np.arange(40) / 10)
    assert found.report.fps == pytest.approx(10)
    assert found.report.duration == pytest.approx(4.0)
    assert found.report.warnings == []


VARIABLE = [0, 0.04, 0.08, 0.5, 0.54, 1.2, 1.24, 2.0, 2.04, 2.5]


@pytest.mark.parametrize("suffix", [".mkv", ".mp4", ".mov"])
@pytest.mark.parametrize("decoder", DECODERS)
def test_a_variable_rate_keeps_its_real_times(tmp_path: Path, suffix: str, decoder: str) -> None:
    found = run(encode_at(tmp_path / f"v{suffix}", VARIABLE), decoder)
    assert found.times == pytest.approx(VARIABLE, abs=1e-3)
    assert found.report.fps == pytest.approx(25, rel=0.03)  # of the median step, not the mean
    assert 2.5 < found.report.duration <= 2.6


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
@pytest.mark.parametrize("decoder", DECODERS)
def test_times_count_from_where_the_containers_clock_starts(
    tmp_path: Path, suffix: str, decoder: str
) -> None:
    path = encode_at(tmp_path / f"v{suffix}", [5 + i / 10 for i in range(20)])
    found = run(path, decoder)
    assert found.times == pytest.approx(np.arange(20) / 10, abs=1e-3)
    assert found.report.duration == pytest.approx(2, abs=1e-2)


def test_frames_before_the_start_of_the_presentation_are_left_out(tmp_path: Path) -> None:
    # MP4 hides frames with negative times by an edit list: packets that only PyAV leaves out.
    path = encode_at(tmp_path / "v.mp4", [-0.5 + i / 10 for i in range(20)])
    found = run(path)
    assert (found.report.decoder, found.restarts) == ("av", 0)
    assert found.times == pytest.approx(np.arange(15) / 10, abs=1e-3)


@pytest.mark.parametrize("decoder", ["auto", "av"])
@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_avi_has_no_presentation_times_and_loses_no_frame(
    tmp_path: Path, decoder: str, codec: str
) -> None:
    path = tmp_path / "v.avi"
    if codec == "libx264":
        encode(path, 40)  # with B-frames
    else:
        encode_at(path, [i / 10 for i in range(40)], codec=codec)
    found = run(path, decoder)
    assert found.report.frames == 40
    assert found.report.fps == pytest.approx(10, rel=1e-3)
    assert found.times - found.times[0] == pytest.approx(np.arange(40) / 10, abs=1e-3)


# The choice of the decoder


def test_transport_streams_and_gifs_go_to_pyav(tmp_path: Path) -> None:
    gif = encode_at(tmp_path / "v.gif", [i / 10 for i in range(20)], codec="gif", pixels="rgb8")
    for path, frames in ((encode(tmp_path / "v.ts"), 40), (gif, 20)):
        found = run(path)
        assert (found.report.decoder, found.report.frames, found.restarts) == ("av", frames, 0)
        assert found.times == pytest.approx(np.arange(frames) / 10, abs=1e-3)
        with pytest.raises(DecodeError, match="Try --decoder auto"):
            run(path, "decord")


@needs_decord
def test_decord_is_refused_where_it_is_not_exact(clip: Path) -> None:
    found = probe(clip)
    assert decord.why_inexact(found) is None
    for change, says in (
        ({"containers": {"mpegts"}}, "mpegts"),
        ({"containers": {"gif"}}, "gif"),
        ({"closed_groups": [30, 11]}, "not shown"),
        ({"closed_groups": [30, 10], "codec": "hevc"}, "several frames"),
        ({"timeline": replace(found.timeline, clocks=2)}, "clock starts again"),
        ({"keeps_parameters": False, "codec": "vp9"}, "size of vp9 frames"),
        ({"upright": (("transpose", "1"),)}, "turn or mirror"),
        ({"is_cut": True}, "cut off"),
    ):
        assert says in str(decord.why_inexact(replace(found, **change)))


def test_pyav_alone_does_not_ask_decord(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What is broken in decord must not get into the second try, or into --decoder av.
    monkeypatch.delattr(decord, "why_inexact")
    assert run(clip, "av").report.frames == 40
    with pytest.raises(AttributeError):
        run(clip)


@pytest.mark.parametrize(
    ("name", "decoder", "frames"),
    [
        ("odd/torchcodec_av1_video.mkv", None, 125),
        ("odd/torchcodec_h265_10bits.mp4", None, 30),
        ("odd/moviepy_1x1_dashname.mp4", None, 5),
        ("odd/moviepy_vp9_no_duration.webm", "av", 74),
        ("exercise_routine.avi", None, 393),
        ("weightlifting_19.62fps.mp4", None, 355),
    ],
)
def test_odd_real_files_give_all_their_frames(
    shared: Path, name: str, decoder: str | None, frames: int
) -> None:
    found = run(shared / "videos" / name)
    assert found.report.frames == frames
    assert decoder in (None, found.report.decoder)
    assert found.report.warnings == []


def test_the_best_of_two_video_streams_is_taken(shared: Path) -> None:
    path = shared / "videos" / "odd" / "torchcodec_nasa_13013.mp4"
    found = probe(path)
    assert (found.width, found.height) == (480, 270)
    assert run(path, frame_step=10).report.frames == 39


# Continuing in the middle of a video


def after(path: Path, decoder: str, whole: Decoded, k: int, **options: Any) -> list[Any]:
    """The events of a decode that continues after k used frames of `whole`."""
    anchor = (max(0, k - 3), float(whole.times[max(0, k - 3)]))
    resume = Resume(k, whole.report.decoder, anchor)
    return list(decode(DecodeRequest(path, SIZE, decoder=decoder, resume=resume, **options)))


def is_the_rest(events: list[Any], whole: Decoded, k: int) -> None:
    """Exactly the frames from k on, and the report of the whole."""
    opened, *batches, report = events
    assert isinstance(opened, Opened)
    assert all(isinstance(batch, Frames) for batch in batches), batches
    assert report == whole.report
    rest = [b.images for b in batches] or [whole.images[:0]]
    assert np.array_equal(np.concatenate(rest), whole.images[k:])
    assert np.concatenate([[], *(b.times for b in batches)]).tolist() == whole.times[k:].tolist()


@pytest.mark.parametrize("frame_step", [1, 4])
@pytest.mark.parametrize("rate", ["even", "uneven"])
@pytest.mark.parametrize("kind", GROUPS)
def test_continuing_gives_exactly_the_rest(
    groups: dict[tuple[str, str], Path], kind: str, rate: str, frame_step: int
) -> None:
    path = groups[kind, rate]
    decoders = ["av"]
    if decord.why_inexact(probe(path)) is None:
        decoders.append("decord")
    assert ("decord" in decoders) == (kind in FOR_DECORD) or not HAS_DECORD
    for decoder in decoders:
        whole = run(path, decoder, frame_step=frame_step, batch_size=8)
        count = len(whole.times)
        for k in {1, 2, 3, count // 3, *range(count // 2, count // 2 + 8), count - 1, count}:
            if 0 < k <= count:
                is_the_rest(
                    after(path, decoder, whole, k, frame_step=frame_step, batch_size=8), whole, k
                )


@pytest.mark.parametrize("kind", GROUPS)
def test_frames_that_are_done_are_decoded_but_not_resized(
    groups: dict[tuple[str, str], Path], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    path = groups[kind, "even"]
    whole = run(path, "av", frame_step=2)
    decoded: list[float] = []
    resized: list[float] = []

    def counting(*arguments: Any) -> Iterator[DecodedFrame]:
        for time, make in pyav.decode(*arguments):
            decoded.append(time)
            yield time, partial(image, time, make)

    def image(time: float, make: Callable[[], Image]) -> Image:
        resized.append(time)
        return make()

    monkeypatch.setitem(reader.DECODERS, "av", counting)
    is_the_rest(after(path, "av", whole, 20, frame_step=2), whole, 20)
    assert decoded == whole.times.tolist()
    assert resized == whole.times[20:].tolist()


def test_auto_continues_with_the_decoder_that_began(groups: dict[tuple[str, str], Path]) -> None:
    path = groups["closed", "even"]
    for decoder in ("av", *(["decord"] if HAS_DECORD else [])):
        whole = run(path, decoder)
        is_the_rest(after(path, "auto", whole, 30), whole, 30)


@pytest.mark.parametrize("decoder", ["auto", "av"])
def test_a_damaged_file_is_decoded_again_by_one_thread(
    shared: Path, monkeypatch: pytest.MonkeyPatch, decoder: str
) -> None:
    path = shared / "videos" / "odd" / "decord_corrupted.mp4"
    tries: list[bool] = []

    def recording(request: DecodeRequest, *others: Any) -> Iterator[DecodedFrame]:
        tries.append(request.single_threaded)
        return pyav.decode(request, *others)

    monkeypatch.setitem(reader.DECODERS, "av", recording)
    whole = run(path, decoder)
    by_decord = decoder == "auto" and HAS_DECORD
    assert (whole.report.frames, whole.restarts) == (49, 1 + by_decord)
    resume = Resume(35, "av", (30, float(probe(path).timeline.times[30])))
    again = gather(decode(DecodeRequest(path, SIZE, decoder=decoder, resume=resume)))
    assert np.array_equal(again.images, whole.images)
    assert tries == [False, True, False, True]


@needs_decord
def test_decord_that_fails_in_the_middle_gives_way_to_pyav(shared: Path) -> None:
    path = shared / "videos" / "odd" / "decord_corrupted.mp4"
    resume = Resume(20, "decord", (19, float(probe(path).timeline.times[19])))
    found = gather(decode(DecodeRequest(path, SIZE, resume=resume)))
    assert (found.report.decoder, found.report.frames) == ("av", 49)
    assert np.array_equal(found.images, run(path).images)


@pytest.mark.parametrize(
    "resume",
    [
        Resume(30, "av", (20, 2.05)),  # no frame has that time
        Resume(30, "av", (20, 2.1)),  # another frame has it
        Resume(61, "av", (20, 2.0)),  # there are 60
        Resume(30, "decord", (20, 2.0)),  # never a mix
    ],
)
def test_what_cannot_be_continued_starts_again(
    groups: dict[tuple[str, str], Path], resume: Resume
) -> None:
    path = groups["closed", "even"]
    request = DecodeRequest(path, SIZE, decoder="av", resume=resume)
    events = list(decode(request))
    assert Restart("av") in events
    whole = gather(iter(events))
    assert np.array_equal(whole.images, run(path, "av").images)
    assert whole.report == run(path, "av").report


def test_a_turned_video_that_decord_began_starts_again(shared: Path) -> None:
    path = shared / "videos" / "odd" / "decord_video_90.mov"
    whole = run(path)
    resume = Resume(2, "decord", (1, float(whole.times[1])))
    events = list(decode(DecodeRequest(path, SIZE, resume=resume)))
    assert Restart("av") in events
    assert np.array_equal(gather(iter(events)).images, whole.images)


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_real_video_continues(shared: Path, decoder: str) -> None:
    path = shared / "videos" / "people_enter_139s.mp4"
    whole = run(path, decoder, frame_step=3)
    for k in (1, 200, 463):
        is_the_rest(after(path, decoder, whole, k, frame_step=3), whole, k)


# Damage


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("decoder", ["auto", "av"])
def test_a_truncated_file_gives_the_frames_there_are_and_a_warning(
    tmp_path: Path, suffix: str, decoder: str
) -> None:
    options = {"movflags": "faststart"} if suffix == ".mp4" else {}
    whole = encode_at(tmp_path / f"v{suffix}", [i / 10 for i in range(100)], container=options)
    content = whole.read_bytes()
    cut = tmp_path / f"cut{suffix}"
    cut.write_bytes(content[: len(content) * 6 // 10])
    found, complete = run(cut, decoder), run(whole, decoder)
    assert 40 <= found.report.frames < 70
    assert np.allclose(found.times[:40], complete.times[:40])
    assert np.array_equal(found.images[:40], complete.images[:40])
    assert complete.report.warnings == []
    assert found.report.warnings != []


def test_an_avi_that_is_cut_off_causes_a_warning(tmp_path: Path) -> None:
    whole = encode(tmp_path / "v.avi", 100)
    cut = tmp_path / "cut.avi"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 6 // 10])
    assert probe(whole).warnings == []
    (warning,) = probe(cut).warnings
    assert "its header says 10.0 s" in warning


def test_a_file_without_its_index_is_a_decode_error(clip: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(clip.read_bytes()[:2000])
    with pytest.raises(DecodeError, match=r"cut\.mp4"):
        run(cut)


def test_the_corrupt_recording_gives_its_49_frames_and_a_warning(shared: Path) -> None:
    path = shared / "videos" / "odd" / "decord_corrupted.mp4"
    found = run(path)
    assert (found.report.decoder, found.report.frames) == ("av", 49)
    assert "1 damaged packet skipped, 49 frames decoded" in found.report.warnings


def test_a_file_without_video_says_what_is_in_it(tmp_path: Path, shared: Path) -> None:
    with pytest.raises(DecodeError, match="no video stream in it, only audio"):
        run(shared / "videos" / "odd" / "torchcodec_audio_only.mp3")


def test_sound_alone_is_a_decode_error(tmp_path: Path) -> None:
    import wave

    with wave.open(str(tmp_path / "v.wav"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(8000))
    with pytest.raises(DecodeError, match=r"v\.wav: no video stream in it, only audio"):
        run(tmp_path / "v.wav")


@pytest.mark.parametrize("content", [b"", b"not a video" * 100, bytes(5000)])
def test_what_is_no_video_is_a_decode_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "v.mp4").write_bytes(content)
    with pytest.raises(DecodeError, match=r"v\.mp4"):
        run(tmp_path / "v.mp4")


def test_a_missing_file_and_a_folder_are_decode_errors(tmp_path: Path) -> None:
    with pytest.raises(DecodeError, match="no such file"):
        run(tmp_path / "none.mp4")
    with pytest.raises(DecodeError, match="found a folder, expected a file"):
        run(tmp_path)


def test_a_single_frame_is_a_video(tmp_path: Path) -> None:
    found = run(encode(tmp_path / "v.mp4", 1, 10))
    assert found.report.frames == 1
    assert found.report.duration == pytest.approx(0.1)


@needs_decord
def test_a_video_whose_pieces_decord_could_not_hold_goes_to_pyav(
    clip: Path, groups: dict[tuple[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = 85 * SIZE * 3  # of 160x120, the short side at SIZE
    many = groups["closed", "even"]
    monkeypatch.setattr(decord, "PIECE_FRAMES", 4)
    for path, most in ((clip, 40), (many, 12)):  # one group; groups of twelve
        monkeypatch.setattr(decord, "MOST_BYTES", most * frame)
        assert run(path).report.decoder == "decord"
        monkeypatch.setattr(decord, "MOST_BYTES", most * frame - 1)
        assert run(path).report.decoder == "av"
        assert run(path, "decord").report.decoder == "decord"
