"""Decoding: the same frames by either decoder, at their real times, from damaged files too."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mstemba.errors import DecodeError
from mstemba.pipeline.decode import decord_reader, pyav_reader, worker
from mstemba.pipeline.decode.reader import (
    DecodeReport,
    DecodeRequest,
    Opened,
    Restart,
    decode,
    resized,
)
from mstemba.pipeline.decode.worker import decode_all
from mstemba.records import Frames
from tests.videos import encode, encode_at, moving

SIZE = 64
needs_decord = pytest.mark.skipif(
    importlib.util.find_spec("decord") is None, reason="decord is not made for this platform"
)


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
@pytest.mark.parametrize("every", [2, 3, 7, 100])
def test_both_decoders_take_the_same_every_nth_frame(clip: Path, every: int) -> None:
    whole, some = run(clip), same(clip, every=every)
    assert np.array_equal(some.images, whole.images[::every])
    assert np.allclose(some.times, whole.times[::every])
    if every < 40:
        assert some.report.fps == pytest.approx(10)
    assert some.report.duration >= some.times[-1]


@needs_decord
def test_a_video_longer_than_one_block_of_decord_is_the_same(
    clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(clip, "decord")
    monkeypatch.setattr(decord_reader, "BLOCK", 16)
    assert np.array_equal(run(clip, "decord").images, whole.images)
    assert np.array_equal(run(clip, "decord", every=3).images, whole.images[::3])


@needs_decord
@pytest.mark.parametrize(
    ("name", "every"), [("dogwalk.mp4", 1), ("dogwalk.mp4", 5), ("people_enter_139s.mp4", 20)]
)
def test_real_videos_are_the_same_by_both_decoders(shared: Path, name: str, every: int) -> None:
    same(shared / "videos" / name, size=224, every=every)


@needs_decord
def test_a_recording_turned_by_its_metadata_is_upright_by_both_decoders(shared: Path) -> None:
    path = shared / "videos" / "odd" / "decord_video_90.mov"
    found = pyav_reader.probe(path)
    assert (found.width, found.height, found.rotation) == (320, 568, 270)
    one, other = run(path, "decord"), run(path, "av")
    difference = np.abs(one.images.astype(int) - other.images).mean()
    upside_down = np.abs(one.images.astype(int) - other.images[:, ::-1, ::-1]).mean()
    assert difference < 1  # turning before or after resizing differs by rounding
    assert upside_down > 10 * difference


@pytest.mark.parametrize("decoder", ["av", pytest.param("decord", marks=needs_decord)])
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


@pytest.mark.parametrize("batch_size", [1, 7, 39, 40, 41])
def test_the_batch_size_changes_no_frame(clip: Path, batch_size: int) -> None:
    whole, found = run(clip), run(clip, batch_size=batch_size)
    assert np.array_equal(found.images, whole.images)
    assert np.array_equal(found.times, whole.times)
    assert set(found.batches[:-1]) <= {batch_size}
    assert found.batches[-1] <= batch_size


# Times


def test_a_constant_rate_gives_even_times(clip: Path) -> None:
    found = run(clip)
    assert found.times == pytest.approx(np.arange(40) / 10)
    assert found.report.fps == pytest.approx(10)
    assert found.report.duration == pytest.approx(4.0)
    assert found.report.warnings == []


VARIABLE = [0, 0.04, 0.08, 0.5, 0.54, 1.2, 1.24, 2.0, 2.04, 2.5]


@pytest.mark.parametrize("suffix", [".mkv", ".mp4", ".mov"])
@pytest.mark.parametrize("decoder", ["av", pytest.param("decord", marks=needs_decord)])
def test_a_variable_rate_keeps_its_real_times(tmp_path: Path, suffix: str, decoder: str) -> None:
    found = run(encode_at(tmp_path / f"v{suffix}", VARIABLE), decoder)
    assert found.times == pytest.approx(VARIABLE, abs=1e-3)
    assert found.report.fps == pytest.approx(9 / 2.5)
    assert found.report.duration == pytest.approx(2.5 + 2.5 / 9)


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
@pytest.mark.parametrize("decoder", ["av", pytest.param("decord", marks=needs_decord)])
def test_times_count_from_where_the_containers_clock_starts(
    tmp_path: Path, suffix: str, decoder: str
) -> None:
    path = encode_at(tmp_path / f"v{suffix}", [5 + i / 10 for i in range(20)])
    assert pyav_reader.probe(path).offset == pytest.approx(5)
    found = run(path, decoder)
    assert found.times == pytest.approx(np.arange(20) / 10, abs=1e-3)
    assert found.report.duration == pytest.approx(2, abs=1e-2)


def test_frames_before_the_start_of_the_presentation_are_left_out(tmp_path: Path) -> None:
    # MP4 hides frames with negative times by an edit list; decord would show them.
    path = encode_at(tmp_path / "v.mp4", [-0.5 + i / 10 for i in range(20)])
    found = run(path)
    assert found.report.decoder == "av"
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
    found = pyav_reader.probe(clip)
    assert decord_reader.why_not(found) is None
    assert found.times is not None
    for change, says in (
        ({"codec": "av1"}, "AV1"),
        ({"times": None}, "time of every frame"),
        ({"times": found.times - 0.1}, "negative"),
        ({"offset": -0.1}, "negative"),
        ({"container": "mpegts"}, "mpegts"),
    ):
        assert says in str(decord_reader.why_not(replace(found, **change)))


@pytest.mark.parametrize(
    ("name", "decoder", "frames"),
    [
        ("odd/torchcodec_av1_video.mkv", "av", 125),
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
    found = pyav_reader.probe(path)
    assert (found.width, found.height) == (480, 270)
    assert run(path, every=10).report.frames == 39


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


def test_a_file_without_its_index_is_a_decode_error(clip: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(clip.read_bytes()[:2000])
    with pytest.raises(DecodeError, match=r"cut\.mp4"):
        run(cut)


def test_the_corrupt_recording_gives_its_49_frames_and_a_warning(shared: Path) -> None:
    path = shared / "videos" / "odd" / "decord_corrupted.mp4"
    found = run(path)
    assert (found.report.decoder, found.report.frames, found.restarts) == ("av", 49, 1)
    assert any("1 damaged" in w and "49 frames" in w for w in found.report.warnings)


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
    for path in (tmp_path / "none.mp4", tmp_path):
        with pytest.raises(DecodeError, match="no such file"):
            run(path)


def test_a_single_frame_is_a_video(tmp_path: Path) -> None:
    found = run(encode(tmp_path / "v.mp4", 1, 10))
    assert found.report.frames == 1
    assert found.report.duration == pytest.approx(0.1)


# In a process of its own


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """The decoder processes that were started."""
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def recording(*args: Any, **kwargs: Any) -> subprocess.Popen[bytes]:
        started.append(popen(*args, **kwargs))
        return started[-1]

    monkeypatch.setattr(worker.subprocess, "Popen", recording)
    return started


def by_video(events: Iterator[tuple[int, Any]], count: int) -> list[list[Any]]:
    found: list[list[Any]] = [[] for _ in range(count)]
    for index, event in events:
        found[index].append(event)
    return found


def test_many_videos_go_through_one_process_in_order(
    clip: Path, tmp_path: Path, children: list[subprocess.Popen[bytes]]
) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    paths = [clip, tmp_path / "bad.mp4", tmp_path / "none.mp4", clip]
    found = by_video(decode_all([DecodeRequest(p, SIZE) for p in paths]), 4)
    assert len(children) == 1
    here = run(clip)
    for index in (0, 3):
        there = gather(iter(found[index]))
        assert np.array_equal(there.images, here.images)
        assert there.report == here.report
    for index, says in ((1, "not a readable video"), (2, "no such file")):
        error = found[index][-1]
        assert isinstance(error, DecodeError)
        assert says in str(error)


def test_no_request_starts_nothing(children: list[subprocess.Popen[bytes]]) -> None:
    assert list(decode_all([])) == []
    assert children == []


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More frames than fit between the processes, so that the decoder is at work for as long as
    nobody takes them."""
    return encode(tmp_path_factory.mktemp("v") / "long.mp4", 300)


def kill_after_first_frames(
    requests: list[DecodeRequest], children: list[subprocess.Popen[bytes]], kills: int
) -> list[list[Any]]:
    """Decode, killing the first `kills` decoders as soon as they have given a frame of video 0."""
    found: list[list[Any]] = [[] for _ in requests]
    killed: list[int] = []
    for index, event in decode_all(requests):
        found[index].append(event)
        child = children[-1]
        first = index == 0 and isinstance(event, Frames) and child.pid not in killed
        if first and len(killed) < kills:
            assert child.poll() is None
            os.kill(child.pid, signal.SIGKILL)
            killed.append(child.pid)
    assert len(killed) == kills
    return found


def test_a_decoder_that_dies_takes_only_its_own_video(
    long: Path, clip: Path, children: list[subprocess.Popen[bytes]]
) -> None:
    requests = [
        DecodeRequest(long, SIZE, batch_size=1, decoder="av"),
        DecodeRequest(clip, SIZE, decoder="av"),
        DecodeRequest(clip, SIZE),
    ]
    found = kill_after_first_frames(requests, children, kills=1)
    error = found[0][-1]
    assert isinstance(error, DecodeError)
    assert "SIGKILL" in str(error)
    assert str(long) in str(error)
    assert sum(isinstance(e, (DecodeError, DecodeReport)) for e in found[0]) == 1
    for events in found[1:]:
        assert gather(iter(events)).report.frames == 40
    assert len(children) == 2


def test_a_video_whose_decoder_died_is_tried_once_more_with_pyav_alone(
    long: Path, clip: Path, children: list[subprocess.Popen[bytes]]
) -> None:
    requests = [DecodeRequest(long, SIZE, batch_size=1), DecodeRequest(clip, SIZE)]
    found = kill_after_first_frames(requests, children, kills=1)
    again = gather(iter(found[0]))
    assert (again.report.decoder, again.report.frames, again.restarts) == ("av", 300, 1)
    assert np.array_equal(again.images, run(long).images)
    assert gather(iter(found[1])).report.frames == 40


def test_a_video_whose_decoder_dies_twice_is_given_up(
    long: Path, clip: Path, children: list[subprocess.Popen[bytes]]
) -> None:
    requests = [DecodeRequest(long, SIZE, batch_size=1), DecodeRequest(clip, SIZE)]
    found = kill_after_first_frames(requests, children, kills=2)
    assert isinstance(found[0][-1], DecodeError)
    assert gather(iter(found[1])).report.frames == 40
    assert len(children) == 3


@pytest.mark.parametrize("batch_size", [1, 300])
def test_a_consumer_that_stops_early_leaves_no_process_and_no_thread(
    long: Path, children: list[subprocess.Popen[bytes]], batch_size: int
) -> None:
    threads = threading.active_count()
    events = decode_all([DecodeRequest(long, SIZE, batch_size=batch_size)] * 2)
    next(events)
    events.close()  # type: ignore[attr-defined]
    assert [child.returncode is not None for child in children] == [True]
    assert threading.active_count() == threads


def test_a_consumer_that_fails_leaves_no_process(
    long: Path, children: list[subprocess.Popen[bytes]]
) -> None:
    def consume() -> None:
        for _ in decode_all([DecodeRequest(long, SIZE, batch_size=1)]):
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        consume()
    assert [child.poll() is not None for child in children] == [True]


def test_files_in_the_current_folder_do_not_get_into_the_decoder(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # `python -m` puts the current folder first: a user's av.py there would be imported.
    root = str(Path(worker.__file__).parents[3])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]))
    for name in ("av", "numpy", "queue", "signal"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a file of the user')\n")
    monkeypatch.chdir(tmp_path)
    events = [event for _, event in decode_all([DecodeRequest(clip, SIZE)])]
    assert isinstance(events[-1], DecodeReport), events[-1]
