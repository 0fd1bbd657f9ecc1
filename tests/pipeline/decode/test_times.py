"""What real files have: clocks that start again, held pictures, sound that is longer, no times."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.audio.frame import AudioFrame
from av.video.frame import VideoFrame
from hypothesis import given, settings
from hypothesis import strategies as st

from mstemba.errors import DecodeError
from mstemba.pipeline.decode.probe import probe
from mstemba.pipeline.decode.timeline import NO_TIME, PACKET, FrameClock, Timeline
from tests.pipeline.decode.test_reader import DECODERS, run
from tests.videos import encode_at, moving

GROUPS = {
    "libx264": {"bf": "2", "g": "12"},
    "libx265": {"x265-params": "keyint=12:log-level=0"},
    "mpeg2video": {"bf": "2", "g": "12"},
}


def write(
    path: Path,
    count: int = 50,
    fps: int = 25,
    codec: str = "libx264",
    *,
    first: int = 0,
    hold: float = 0.0,
    sound: float = 0.0,
    form: str | None = None,
    pixels: str = "yuv420p",
    options: dict[str, str] | None = None,
    metadata: dict[str, str] | None = None,
    size: tuple[int, int] = (96, 64),
) -> Path:
    """A constant-rate file; `hold` is how long its last packet says that it lasts, in seconds."""
    with av.open(f"file:{path}", "w", format=form) as out:
        out.metadata.update(metadata or {})
        stream = out.add_stream(codec, rate=fps, options=options or GROUPS.get(codec, {}))
        stream.width, stream.height = size
        stream.pix_fmt = pixels
        audio = out.add_stream("aac", rate=16000) if sound else None
        packets = []
        for number, image in enumerate(moving(count, *size)):
            frame = VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = first + number, Fraction(1, fps)
            packets += stream.encode(frame)
        packets += stream.encode()
        if hold:
            packets[-1].duration = round(hold / float(packets[-1].time_base))
        for packet in packets:
            out.mux(packet)
        for number in range(int(sound * 16000 / 1024)) if audio else ():
            silence = AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            silence.rate, silence.pts = 16000, 1024 * number
            out.mux(audio.encode(silence))
    return path


def joined(path: Path, pieces: Sequence[Path]) -> Path:
    path.write_bytes(b"".join(piece.read_bytes() for piece in pieces))
    return path


# Clocks that start again


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [(".ts", "libx264"), (".ts", "libx265"), (".mpg", "mpeg2video"), (".vob", "mpeg2video"),
     (".avi", "mpeg4")],
)  # fmt: skip
@pytest.mark.parametrize("counts", [(50, 50), (50, 10, 30), (8, 60)])
def test_joined_recordings_follow_each_other(
    tmp_path: Path, suffix: str, codec: str, counts: tuple[int, ...]
) -> None:
    pieces = [
        write(tmp_path / f"{number}{suffix}", count, codec=codec)
        for number, count in enumerate(counts)
    ]
    found = run(joined(tmp_path / f"joined{suffix}", pieces))
    total = sum(counts)
    assert found.report.frames == total
    assert found.times == pytest.approx(np.arange(total) / 25, abs=1e-3)
    assert found.report.duration == pytest.approx(total / 25, abs=1e-3)
    assert found.report.fps == pytest.approx(25)
    own = np.concatenate([run(piece).images for piece in pieces])
    assert np.abs(found.images.astype(int) - own).mean() < 1
    said = [w for w in found.report.warnings if f"{len(counts)} recordings" in w]
    assert len(said) == (suffix != ".avi"), "AVI only numbers its frames"


@pytest.mark.parametrize("counts", [(50, 50), (8, 60)])
def test_two_joined_matroska_recordings_follow_each_other(
    tmp_path: Path, counts: tuple[int, int]
) -> None:
    pieces = [write(tmp_path / f"{n}.mkv", count) for n, count in enumerate(counts)]
    found = run(joined(tmp_path / "joined.mkv", pieces))
    assert found.times == pytest.approx(np.arange(sum(counts)) / 25, abs=1e-3)


@pytest.mark.parametrize("suffix", [".flv", ".mp4", ".mkv"])
def test_a_recording_that_no_player_shows_is_an_error(tmp_path: Path, suffix: str) -> None:
    # FFmpeg reads two Matroska files, and no third one.
    count = 3 if suffix == ".mkv" else 2
    pieces = [write(tmp_path / f"{n}{suffix}", sound=3.0) for n in range(count)]
    with pytest.raises(DecodeError, match=r"joined.* another recording begins at byte \d+.*ffmpeg"):
        run(joined(tmp_path / f"joined{suffix}", pieces))
    assert run(pieces[0]).report.frames == 50


def test_a_damaged_clock_is_told(tmp_path: Path) -> None:
    content = bytearray(write(tmp_path / "v.mp4").read_bytes())
    place = content.index(b"mdhd") + 16  # ticks of the clock in a second
    content[place : place + 4] = (1).to_bytes(4, "big")
    (tmp_path / "v.mp4").write_bytes(content)
    (warning,) = probe(tmp_path / "v.mp4", None, lambda: None).warnings
    assert "its header says 2.0 s" in warning


def test_a_broadcast_clock_that_jumps_continues_and_is_told(tmp_path: Path) -> None:
    pieces = [write(tmp_path / "0.ts"), write(tmp_path / "1.ts", first=25 * 3600)]
    found = run(joined(tmp_path / "joined.ts", pieces))
    assert found.times == pytest.approx(np.arange(100) / 25, abs=1e-3)
    assert any("2 recordings" in warning for warning in found.report.warnings)


def test_a_recorder_whose_clock_jumps_keeps_its_times_and_is_told(tmp_path: Path) -> None:
    times = [i / 10 for i in range(20)] + [3602 + i / 10 for i in range(20)]
    for suffix in (".mp4", ".mkv"):
        found = run(encode_at(tmp_path / f"v{suffix}", times))
        assert found.times == pytest.approx(times, abs=1e-3)
        assert found.report.duration == pytest.approx(3604, abs=1e-2)
        assert found.report.fps == pytest.approx(10, rel=0.01)
        assert found.report.warnings == ["no frame for 3600 s after 1.9 s"]


# Ends


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_the_last_frame_lasts_as_its_packet_says(tmp_path: Path, suffix: str, decoder: str) -> None:
    path = write(tmp_path / f"v{suffix}", 20, 10, hold=30, options={"bf": "0"})
    found = run(path, decoder)
    assert found.report.duration == pytest.approx(31.9, abs=1e-3)
    assert found.report.fps == pytest.approx(10)
    assert found.report.warnings == []


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov", ".ts", ".flv"])
def test_sound_that_is_longer_than_the_pictures_changes_nothing(
    tmp_path: Path, suffix: str, decoder: str
) -> None:
    path = write(tmp_path / f"v{suffix}", 40, 10, sound=12)
    if decoder == "decord" and suffix in (".ts", ".flv"):
        decoder = "auto"
    found = run(path, decoder)
    assert found.report.duration == pytest.approx(4, abs=0.11)
    assert found.report.warnings == []
    assert not probe(path).is_cut


def test_pictures_minutes_apart_and_a_long_pause(tmp_path: Path) -> None:
    slides = run(encode_at(tmp_path / "slides.mkv", [0.0, 120.0, 300.0, 420.0, 540.0]))
    assert slides.report.fps == pytest.approx(1 / 120, rel=1e-3)
    assert slides.report.duration < 540 + 121
    assert slides.report.warnings == []
    times = [i / 30 for i in range(60)] + [92 + i / 30 for i in range(60)]
    paused = run(encode_at(tmp_path / "paused.mp4", times))
    assert paused.report.fps == pytest.approx(30, rel=0.02)  # not the mean of 1.3
    assert paused.report.duration == pytest.approx(94, abs=0.05)


@pytest.mark.parametrize("per_second", [2**31 - 1, 2**28])
def test_a_clock_that_is_far_too_fast_is_refused(tmp_path: Path, per_second: int) -> None:
    path = write(tmp_path / "a.mp4")
    content = bytearray(path.read_bytes())
    place = content.index(b"mdhd") + 16  # ticks per second of the track
    content[place : place + 4] = per_second.to_bytes(4, "big")
    path.write_bytes(content)
    with pytest.raises(DecodeError, match=r"frames per second, expected at most 100,000; its"):
        probe(path)


def test_rates_and_lengths_of_a_bare_stream_are_bounded(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h264", form="h264")
    assert probe(path, fps=1000.0).timeline.fps == 1000
    for fps, found in ((1e6, "1,000,000 frames per second"), (1e-6, "50,000,000 s long")):
        with pytest.raises(DecodeError, match=f"{found}, expected at most"):
            probe(path, fps=fps)


def test_a_single_frame_without_a_duration_is_a_video(tmp_path: Path) -> None:
    assert probe(write(tmp_path / "a.ts", 1)).timeline.fps <= 100_000


# Times that a file does not have

RAW = {"h264": "libx264", "hevc": "libx265", "mpeg2video": "mpeg2video"}


@pytest.mark.parametrize("form", RAW)
def test_a_bare_stream_says_which_rate_is_assumed(tmp_path: Path, form: str) -> None:
    path = write(tmp_path / "pi.h264", 90, 30, RAW[form], form=form)
    found = run(path)
    assert found.times == pytest.approx(np.arange(90) / 30)
    assert found.report.duration == pytest.approx(3)
    (warning,) = found.report.warnings
    assert "30 frames per second are assumed" in warning
    assert "--fps" in warning
    given_rate = run(path, fps=15.0)
    assert given_rate.times == pytest.approx(np.arange(90) / 15)
    assert given_rate.report.warnings == []
    assert np.array_equal(given_rate.images, found.images)


def test_a_rate_that_the_stream_does_not_have_either_is_25(tmp_path: Path) -> None:
    path = write(tmp_path / "v.mjpeg", 30, 30, "mjpeg", form="mjpeg", pixels="yuvj420p")
    found = run(path)
    assert found.report.duration == pytest.approx(30 / 25)
    assert "25 frames per second are assumed" in found.report.warnings[0]


def test_the_option_changes_nothing_for_files_with_times(tmp_path: Path) -> None:
    path = write(tmp_path / "v.mp4")
    assert np.array_equal(run(path, fps=7.0).times, run(path).times)


# Files that are no video, and names


def with_cover(path: Path) -> Path:
    """A sound file with a picture of its album."""
    with av.open(str(path), "w", format="mp4") as out:
        audio = out.add_stream("aac", rate=16000)
        cover = out.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 96, 64, "yuvj420p"
        cover.disposition = 0x400
        picture = VideoFrame.from_ndarray(moving(1, 96, 64)[0], format="rgb24")
        out.mux(cover.encode(picture.reformat(format="yuvj420p")))
        for number in range(30):
            silence = AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            silence.rate, silence.pts = 16000, 1024 * number
            out.mux(audio.encode(silence))
    return path


@pytest.mark.parametrize("suffix", [".m4a", ".mp4"])
def test_a_cover_picture_is_no_video(tmp_path: Path, suffix: str) -> None:
    path = with_cover(tmp_path / f"song{suffix}")
    with pytest.raises(DecodeError, match="no video stream in it, only audio and a cover picture"):
        run(path)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_picture_is_no_video(tmp_path: Path, suffix: str) -> None:
    from PIL import Image

    Image.fromarray(moving(1)[0]).save(tmp_path / f"a{suffix}")
    with pytest.raises(DecodeError, match="a picture, not a video"):
        run(tmp_path / f"a{suffix}")


NAMES = ["10:15:00.mp4", "concat:other.mp4", "pipe:0.mp4", "http:x.mp4", "file:v.mp4", "-i.mp4",
         "a%20b?c#d.mp4", "%03d.mp4", "subfile,,start,0,,:a.mp4"]  # fmt: skip


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("name", NAMES)
def test_any_name_is_the_file_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, decoder: str
) -> None:
    write(tmp_path / "other.mp4", 10)
    write(tmp_path / name, 40)
    monkeypatch.chdir(tmp_path)
    for path in (Path(name), Path("./" + name), tmp_path / name):
        assert run(path, decoder).report.frames == 40


# What is told


def test_interlaced_and_hdr_videos_are_told(tmp_path: Path) -> None:
    interlaced = write(tmp_path / "i.mp4", options={"x264-params": "tff=1"})
    assert [w.split(":")[0] for w in run(interlaced).report.warnings] == ["interlaced"]
    for transfer, name in (("smpte2084", "PQ"), ("arib-std-b67", "HLG")):
        colours = f"colorprim=bt2020:transfer={transfer}:colormatrix=bt2020nc:log-level=0"
        hdr = write(
            tmp_path / f"{name}.mp4", 10, 25, "libx265", pixels="yuv420p10le",
            options={"x265-params": colours},
        )  # fmt: skip
        (warning,) = run(hdr).report.warnings
        assert warning.startswith(f"HDR ({name})")


def test_the_start_timecode_is_found(tmp_path: Path) -> None:
    path = write(tmp_path / "tc.mov", metadata={"timecode": "10:00:00:00"})
    assert run(path).report.timecode == "10:00:00:00"
    assert run(write(tmp_path / "v.mov")).report.timecode == ""


# The table of times


def timeline(presented: list[int | None], decoded: list[int | None], **options: Any) -> Timeline:
    count = len(presented)
    packets = np.zeros(count, PACKET)
    for name, times in (("presented", presented), ("decoded", decoded)):
        packets[name] = [NO_TIME if time is None else time for time in times]
    packets["duration"] = 40
    packets["keyframe"] = np.arange(count) % 5 == 0
    found = Timeline.of_packets(packets, 1e-3, None, **options)
    assert found is not None
    return found


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.integers(2, 6), min_size=1, max_size=4).map(lambda c: [5 * n for n in c]),
    st.integers(0, 3),
    st.integers(0, 10**9),
)
def test_every_frame_of_every_piece_gets_its_own_time(
    counts: list[int], delay: int, start: int
) -> None:
    """Pieces with B-frames, whose decoding times run ahead of the display."""
    presented: list[int] = []
    decoded: list[int | None] = []
    for count in counts:
        order = list(range(count))
        for i in range(1, count - 1, 3):
            order[i], order[i + 1] = order[i + 1], order[i]
        presented += [start + 40 * number for number in order]
        decoded += [start + 40 * (i - delay) for i in range(count)]
    found = timeline([*presented], decoded)
    assert found.times == pytest.approx(np.arange(sum(counts)) * 0.04, abs=1e-6)
    assert found.end == pytest.approx(sum(counts) * 0.04, abs=1e-6)
    clock = FrameClock(found)
    given_times = [clock.time(int(stamp)) for stamp in found.stamps]
    assert given_times == found.times.tolist()


def test_frames_that_are_lost_leave_the_times_of_the_others() -> None:
    stamps: list[int | None] = [0, 40, 80, 120, 160, 0, 40, 80]
    found = timeline(stamps, stamps)
    assert found.clocks == 2
    clock = FrameClock(found)
    assert [clock.time(stamp) for stamp in (0, 160, 40, 80)] == pytest.approx(
        [0.0, 0.16, 0.24, 0.28]
    )


def test_a_stamp_that_no_packet_has_is_read_by_the_clock() -> None:
    clock = FrameClock(timeline([0, 40, 80], [0, 40, 80]))
    assert [clock.time(stamp) for stamp in (0, 41, 80, None, None)] == pytest.approx(
        [0.0, 0.041, 0.08, 0.12, 0.16]
    )


def test_packets_without_a_time_do_not_cost_the_others_theirs() -> None:
    """A Matroska file cut at an open group of pictures: its leading frames are never shown."""
    found = timeline([0, None, None, 240, 360], [None, None, None, 0, 240])
    assert not found.by_number
    assert found.times == pytest.approx([0, 0.24, 0.36])


def test_a_damaged_avi_shifts_no_frame_behind_the_damage(tmp_path: Path) -> None:
    path = write(tmp_path / "v.avi", 60, 25, "mpeg4", options={"g": "12", "bf": "0"})
    whole = run(path)
    with av.open(str(path)) as container:
        packets = [p for p in container.demux(video=0) if p.size]
        spans = [(p.pos, p.size) for p in packets[25:28] if p.pos is not None]
    content = bytearray(path.read_bytes())
    for begin, size in spans:
        content[begin + 4 : begin + size] = bytes(size - 4)
    path.write_bytes(content)
    found = run(path)
    assert found.report.frames < 60
    assert found.report.warnings == ["57 of 60 frames could be decoded"]
    # The frames of the groups after the damage are as before, at their own times.
    late = whole.times >= 40 / 25
    own = np.isin(found.times, whole.times[late])
    assert np.array_equal(found.times[own], whole.times[late])
    assert np.abs(found.images[own][-10:].astype(int) - whole.images[-10:]).mean() < 2


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_sound_that_starts_long_before_the_pictures(tmp_path: Path, suffix: str) -> None:
    found = run(write(tmp_path / f"v{suffix}", 40, 10, first=50, sound=9))
    assert found.times == pytest.approx(5 + np.arange(40) / 10, abs=0.1)
    assert found.report.warnings == []
