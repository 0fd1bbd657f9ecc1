"""What the writer of the page puts into the file; the browser's part is in test_page.py."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import sys
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mstemba.errors import UsageError
from mstemba.pipeline.detect.export import export
from mstemba.pipeline.detect.scores_file import SavedScores, save_scores
from mstemba.pipeline.detect.segments import find_segments
from mstemba.pipeline.detect.stage import detect
from mstemba.pipeline.options import ExportOptions
from mstemba.pipeline.outputs import WRITERS, html_page
from mstemba.pipeline.outputs.html_page import missing_video, pack
from mstemba.pipeline.progress import Event
from mstemba.records import LEVELS, Scores, TimeGrid
from tests.pipeline.outputs.page.scenes import ODD_CLASSES, long_scene, page, scene, smooth, uneven

EMBED = ExportOptions(embed=True)
HEAD = b"\0\0\0\x10ftypisom\0\0\0\0"  # of an MP4 file


def part(text: str, id: str) -> str:
    """The text of one script element."""
    found = re.search(rf'<script [^>]*id="{id}">(.*?)</script>', text, re.DOTALL)
    assert found
    return found[1]


def facts_of(path: Path) -> dict[str, Any]:
    return dict(json.loads(part(path.read_text(), "facts")))


def unpack(packed: bytes, rows: int, found: int, classes: int) -> tuple[Any, list[Any], Any]:
    """Starts of rows, the columns of the segments, levels (classes, rows)."""
    content = zlib.decompress(packed)
    columns = []
    for kind, count in (
        ("<f8", rows),
        ("<f8", found),
        ("<f8", found),
        ("<u4", found),
        ("<u2", found),
    ):
        columns.append(np.frombuffer(content, kind, count))
        content = content[columns[-1].nbytes :]
    low, high = np.frombuffer(content, np.uint8).reshape(2, classes, rows)
    return columns[0], columns[1:], low + 256 * high.astype(np.uint16)


UNIT = st.floats(0, 1, width=32)


@given(arrays(np.float32, (7, 3), elements=UNIT), st.integers(0, LEVELS))
def test_a_level_reaches_what_the_probability_reaches(values: Any, k: int) -> None:
    grid = uneven(7)
    scores = Scores(values, grid, ("a", "b", "c"), "v.mp4", 4.0, 25.0)
    segments = find_segments(scores, 0.5, 0.3)
    packed = pack(scores, np.array([0, 2]), segments)
    starts, (begins, ends, ids, means), levels = unpack(packed, 7, len(segments), 2)
    assert np.array_equal(starts, grid.starts)
    assert np.array_equal(k <= levels.T, values[:, [0, 2]] >= np.float32(k / LEVELS))
    found = [(s.start, s.end, s.class_id) for s in segments]
    assert list(zip(begins, ends, ids, strict=True)) == found
    assert np.allclose(means / 10_000, [s.score for s in segments], atol=0.5001e-4)


def test_the_page_names_nothing_outside(tmp_path: Path) -> None:
    video = tmp_path / "videos" / "a b#?%é.mp4"
    video.parent.mkdir()
    video.touch()
    text = page(scene(video), tmp_path / "out").read_text()
    assert facts_of(tmp_path / "out" / "page.html")["video"]["source"].endswith(
        "../videos/a%20b%23%3F%25%C3%A9.mp4"
    )
    assert not re.findall(r"https?://|//[a-z]+\.[a-z]", text)
    assert not re.search(r"<(link|img|script)[^>]+(src|href)=\"(?!data:)", text)


def test_the_policy_allows_this_script_and_this_style_only(tmp_path: Path) -> None:
    text = page(scene(tmp_path / "v.mp4"), tmp_path).read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy
    assert policy[1].startswith("default-src 'none'; ")
    assert "unsafe" not in policy[1]
    for tag in ("style", 'script type="module"'):
        inside = re.search(rf"<{tag}>(.*?)</{tag.split()[0]}>", text, re.DOTALL)
        assert inside
        digest = base64.b64encode(hashlib.sha256(inside[1].encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy[1]


def test_names_stay_data(tmp_path: Path) -> None:
    video = tmp_path / "</title><script>x</script>.mp4".replace("/", "\u2215")
    path = page(scene(video, ODD_CLASSES, id="</script>", subset="<!--"), tmp_path)
    text = path.read_text()
    assert facts_of(path)["classes"] == list(ODD_CLASSES)
    assert facts_of(path)["id"] == "</script>"
    # The elements are those of the template, whatever the names hold.
    plain = page(scene(tmp_path / "v.mp4"), tmp_path, "plain.html").read_text()
    for mark in ("<script", "</script", "<!--", "<img", "</title"):
        assert text.count(mark) == plain.count(mark)


def test_classes_that_no_threshold_of_the_page_reaches_have_no_scores(tmp_path: Path) -> None:
    values = smooth(50, 4)
    values[:, 1] = 0.009
    values[:, 3] = 0.01
    path = page(scene(tmp_path / "v.mp4", "abcd", probabilities=values), tmp_path)
    assert facts_of(path)["scored"] == [0, 2, 3]
    assert facts_of(path)["classes"] == list("abcd")
    low = ExportOptions(threshold=0.005)
    path = page(scene(tmp_path / "v.mp4", "abcd", probabilities=values, options=low), tmp_path)
    assert facts_of(path)["scored"] == [0, 1, 2, 3]
    assert facts_of(path)["floor"] == 0.005


def test_the_video_is_embedded_whole(tmp_path: Path) -> None:
    video = tmp_path / "v.mp4"
    video.write_bytes(HEAD + bytes(range(256)) * 40_000)
    text = page(scene(video, options=EMBED), tmp_path).read_text()
    parts = re.findall(r'<script type="text/plain" class="video-part">(.*?)</script>', text)
    assert len(parts) == 4
    assert b"".join(map(base64.b64decode, parts)) == video.read_bytes()
    assert "video-part" not in re.sub(
        r"<script type=.module.*",
        "",
        (page(scene(video), tmp_path, "path.html").read_text()),
        flags=re.DOTALL,
    )


def test_a_video_that_is_too_large_to_embed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    video = tmp_path / "10:15 one.mp4"
    video.write_bytes(HEAD + b"x" * 1984)
    monkeypatch.setattr(html_page, "LARGEST_EMBEDDED", 1999)
    with pytest.raises(UsageError, match="omit --embed") as raised:
        page(scene(video, options=EMBED), tmp_path)
    assert "ffmpeg -i 'file:10:15 one.mp4' -vf" in str(raised.value)
    assert [file.name for file in tmp_path.iterdir()] == ["10:15 one.mp4"]
    # Before anything is computed.
    detected = detect(video, ExportOptions(embed=True), labels=["walking"], output=tmp_path / "out")
    assert "to embed" in detected.failed["10:15 one"]
    kept = SavedScores(replace(scene(video).scores), "key", "print")
    save_scores(tmp_path / "kept" / "v.scores.npz", kept)
    result = export(tmp_path / "kept", replace(EMBED, formats=("html",)))
    assert "to embed" in result.failed["v"]


def private(path: Path) -> None:
    path.write_text("root:x:0:0:root:/root:/bin/bash\n" * 40)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (private, "not a video"),
        (lambda path: path.write_text("-----BEGIN OPENSSH PRIVATE KEY-----\n"), "not a video"),
        (lambda path: path.write_bytes(b""), "not a video"),
        (lambda path: path.write_bytes(b"\xff\xd8\xff\xe0 a photo"), "not a video"),
        (lambda path: path.write_bytes(b"\0\0\0\x10ftypheic\0\0\0\0"), "not a video"),
        (lambda path: path.write_bytes(b"PK\x03\x04"), "not a video"),
        (lambda path: path.symlink_to("/etc/passwd"), "not a video"),
        (lambda path: path.symlink_to("/proc/self/environ"), "not a video"),
        (Path.mkdir, "found a folder"),
        (os.mkfifo, "found a named pipe"),
        (lambda path: path.symlink_to("/dev/zero"), "found a device"),
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="special files of Linux")
def test_only_videos_are_embedded(
    make: Callable[[Path], object], says: str, tmp_path: Path
) -> None:
    video = tmp_path / "elsewhere.mp4"
    make(video)
    kept = SavedScores(replace(scene(video).scores), "key", "print")
    save_scores(tmp_path / "foreign" / "v.scores.npz", kept)
    save_scores(
        tmp_path / "foreign" / "w.scores.npz",
        replace(kept, scores=replace(kept.scores, video=str(tmp_path / "missing.mp4"))),
    )
    result = export(tmp_path / "foreign", replace(EMBED, formats=("html", "csv")))
    assert list(result.failed) == ["v"]
    assert result.failed["v"].startswith(f"{video}: {says}")
    names = {file.name for file in (tmp_path / "foreign").iterdir()}
    assert names == {"v.scores.npz", "w.scores.npz", "w.csv", "w.html"}
    # The page itself refuses as well.
    with pytest.raises(UsageError, match=says):
        page(scene(video, options=EMBED), tmp_path)


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [
        ("mp4", "mpeg4"), ("mov", "mpeg4"), ("mkv", "mpeg4"), ("webm", "vp8"), ("avi", "mpeg4"),
        ("mpg", "mpeg2video"), ("ts", "mpeg2video"), ("m2ts", "mpeg2video"), ("flv", "flv"),
        ("wmv", "wmv2"), ("wtv", "mpeg2video"), ("rm", "rv10"), ("mxf", "mpeg2video"),
        ("nut", "mpeg4"), ("ivf", "vp8"), ("3gp", "mpeg4"), ("vob", "mpeg2video"), ("gif", "gif"),
        ("m4v", "mpeg4"), ("m1v", "mpeg1video"), ("m2v", "mpeg2video"), ("mjpeg", "mjpeg"),
    ],
)  # fmt: skip
def test_videos_of_many_formats_are_embedded(suffix: str, codec: str, tmp_path: Path) -> None:
    import av

    video = tmp_path / f"v.{suffix}"
    with av.open(str(video), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height = 64, 48
        stream.pix_fmt = {"mjpeg": "yuvj420p", "gif": "rgb8"}.get(codec, "yuv420p")
        for number in range(5):
            image = np.full((48, 64, 3), 40 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image).reformat(
                format=stream.pix_fmt)))  # fmt: skip
        container.mux(stream.encode())
    assert 'class="video-part"' in page(scene(video, options=EMBED), tmp_path).read_text()


def test_embedding_is_of_the_page() -> None:
    with pytest.raises(UsageError, match="--embed requires html in --format"):
        ExportOptions(formats=("json",), embed=True)


@pytest.mark.parametrize("options", [ExportOptions(), EMBED], ids=["path", "embed"])
def test_a_video_that_is_not_there_is_a_warning_and_the_page_is_written(
    tmp_path: Path, options: ExportOptions
) -> None:
    what = scene(tmp_path / "gone.mp4", options=options)
    assert facts_of(page(what, tmp_path))["video"]["found"] is False
    assert "gone.mp4: no such file" in missing_video(what)
    save_scores(tmp_path / "gone.scores.npz", SavedScores(what.scores, "key", "print"))
    news: list[Event] = []
    result = export(tmp_path, replace(options, formats=("csv", "html")), on_event=news.append)
    assert [file.name for file in result.files["gone"]] == ["gone.csv", "gone.html"]
    [warning] = [event for event in news if event.warning]
    assert warning.stage == "html"
    assert "gone.mp4: no such file" in warning.message
    (tmp_path / "gone.mp4").touch()
    assert missing_video(what) == ""


@pytest.mark.slow
@pytest.mark.parametrize("rows", [3600, 7200])
def test_forty_minutes_of_very_many_classes_are_small(tmp_path: Path, rows: int) -> None:
    what = long_scene(tmp_path / "v.mp4", rows)
    assert len(what.segments) > 3000
    assert page(what, tmp_path).stat().st_size < 3_000_000


@pytest.mark.slow
def test_forty_minutes_of_noise_are_small(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).random((3600, 157)).astype(np.float32)
    names, grid = [f"class {i}" for i in range(157)], uneven(3600, 2400 / 3600)
    what = scene(tmp_path / "v.mp4", names, probabilities=noise, grid=grid, truth=False)
    assert len(what.segments) > 100_000
    # Every edge lies at a time of its own, between rows: 16 bytes a segment that do not deflate.
    assert page(what, tmp_path).stat().st_size < 3_500_000


def test_the_scripts_are_all_taken_and_readable() -> None:
    files = {file.name for file in html_page.PAGE.iterdir()}
    assert files == {*html_page.SCRIPTS, "page.css", "page.html"}
    for file in html_page.PAGE.iterdir():
        assert len(file.read_text(encoding="utf-8").splitlines()) < 400


def test_one_row_and_no_class_are_written(tmp_path: Path) -> None:
    short = scene(tmp_path / "v.mp4", "a", probabilities=np.ones((1, 1), np.float32))
    assert facts_of(page(short, tmp_path))["rows"] == 1
    empty = Scores(np.zeros((3, 0), np.float32), TimeGrid.even(0, 1, 3), (), "v.mp4", 3.0, 25.0)
    what = replace(short, scores=empty, segments=[], listed=None)
    assert facts_of(page(what, tmp_path))["scored"] == []
    assert WRITERS["html"].write is html_page.write_html
