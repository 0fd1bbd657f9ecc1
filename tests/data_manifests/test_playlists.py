"""HLS playlists: which files they refer to, and what is wrong with them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mstemba.data_manifests.playlists import read_playlist
from mstemba.errors import DecodeError
from mstemba.limits import LARGEST_PLAYLIST, MOST_PIECES
from mstemba.pipeline.decode.probe import probe

HEAD = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n"
PIECE, END = "#EXTINF:1,\nx.ts", "#EXT-X-ENDLIST"
MASTER = "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n"


def playlist(path: Path, *lines: str, head: str = HEAD) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((head + "\n".join(lines) + "\n").encode())
    return path


def touch(*files: Path) -> None:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


def test_a_playlist_refers_to_its_pieces_and_to_those_of_its_playlists(tmp_path: Path) -> None:
    master = playlist(
        tmp_path / "x.m3u8",
        '#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID="a",NAME="b",URI="sound/s.m3u8",DEFAULT=YES',
        "#EXT-X-STREAM-INF:BANDWIDTH=1\r",
        "low/x.m3u8\r",
    )
    playlist(
        tmp_path / "low" / "x.m3u8",
        '#EXT-X-KEY:METHOD=AES-128,URI="../x.key"',
        '#EXT-X-KEY:METHOD=AES-128,URI="data:text/plain;base64,AAAA"',
        '#EXT-X-MAP:URI="init.mp4",BYTERANGE="10@0"',
        "# a comment",
        "one.m4s",
        "#EXT-X-BYTERANGE:10@10",
        "one.m4s",
        f"file://{tmp_path / 'two.m4s'}",
    )
    playlist(tmp_path / "sound" / "s.m3u8", "s.aac")
    pieces = ["low/../x.key", "low/init.mp4", "low/one.m4s", "two.m4s", "sound/s.aac"]
    touch(*(tmp_path / name for name in pieces))
    found = read_playlist(master)
    assert found is not None
    assert sorted(found.pieces) == sorted(tmp_path / name for name in pieces)
    nested = [tmp_path / "low" / "x.m3u8", tmp_path / "sound" / "s.m3u8"]
    assert (found.playlists[0], sorted(found.playlists[1:])) == (master, nested)
    assert (found.is_hls, found.problems) == (True, [])


@pytest.mark.parametrize(
    "files",
    [
        {"x.m3u8": MASTER + "x.m3u8"},
        {"x.m3u8": MASTER + "y.m3u8", "y.m3u8": MASTER + "x.m3u8"},
        {"x.m3u8": MASTER + "y.m3u8", "y.m3u8": f"{HEAD}{PIECE}\n{END}\n{MASTER}y.m3u8"},
        {"x.m3u8": f"#EXTM3U\n#EXT-X-MEDIA:TYPE=AUDIO URI=x.m3u8\n{MASTER}y.m3u8", "y.m3u8": HEAD},
    ],
)
def test_playlists_that_refer_to_each_other_are_refused(
    files: dict[str, str], tmp_path: Path
) -> None:
    touch(tmp_path / "x.ts")
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(DecodeError, match=r"names .*\.m3u8, which is also a playlist"):
        probe(tmp_path / "x.m3u8")


@pytest.mark.parametrize("wrong", ["", " #EXT-X-ENDLIST", "#EXT-X-END\0LIST", "# \v#EXT-X-ENDLIST"])
def test_an_unfinished_playlist_is_refused(wrong: str, tmp_path: Path) -> None:
    # FFmpeg would wait for more pieces.
    playlist(tmp_path / "low" / "x.m3u8", PIECE, wrong)
    touch(tmp_path / "low" / "x.ts")
    master = playlist(tmp_path / "x.m3u8", "low/x.m3u8", head=MASTER)
    early = playlist(tmp_path / "low" / "early.m3u8", END, HEAD, PIECE, head="#EXTM3U\n")
    for path in (master, tmp_path / "low" / "x.m3u8", early):
        with pytest.raises(DecodeError, match=r"no #EXT-X-ENDLIST line .* add that line"):
            probe(path)


@pytest.mark.parametrize("end", [END, "\r#EXT-X-ENDLIST", "#\0#EXT-X-ENDLIST:1"])
def test_ends_of_a_playlist_are_seen_as_ffmpeg_sees_them(end: str, tmp_path: Path) -> None:
    touch(tmp_path / "x.ts")
    found = read_playlist(playlist(tmp_path / "x.m3u8", PIECE, end))
    assert found is not None
    assert found.problems == []


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        (["x.ts", "gone.ts"], r"its piece .*gone\.ts: no such file"),
        (["gone.m3u8"], r"its piece .*gone\.m3u8: no such file"),
        (["http://e.org/a.ts"], r"its piece http://e\.org/a\.ts is not on this disk\. Save it: ff"),
        (["x.ts", "https://e.org/a.ts"], r"its piece https://e\.org/a\.ts is not on this disk"),
        ([], "names no file"),
        # A browser finds these, FFmpeg does not.
        (["a%20b.ts"], r"names a%20b\.ts, but the file is .*a b\.ts"),
        (["x.ts?token=1"], r"names x\.ts\?token=1, but the file is .*x\.ts"),
        # FFmpeg keeps the space.
        ([" x.ts"], r"its piece .* x\.ts: no such file"),
        # FFmpeg would read a playlist within such a name.
        (['#EXT-X-MEDIA:URI="data:,x"', "x.ts"], r"its piece .*data:,x: no such file"),
    ],
)
def test_what_cannot_be_decoded_is_a_problem(
    lines: list[str], problem: str, tmp_path: Path
) -> None:
    touch(tmp_path / "x.ts", tmp_path / "a b.ts")
    found = read_playlist(playlist(tmp_path / "x.m3u8", *lines))
    assert found is not None
    with pytest.raises(ValueError, match=problem):
        raise ValueError(*found.problems)


def test_names_are_taken_as_they_are_first(tmp_path: Path) -> None:
    touch(tmp_path / "a b.ts", tmp_path / "a%20b.ts")
    found = read_playlist(playlist(tmp_path / "x.m3u8", "a%20b.ts"))
    assert found is not None
    assert (found.pieces, found.problems) == ([tmp_path / "a%20b.ts"], [])


def test_a_playlist_is_recognised_by_its_content(tmp_path: Path) -> None:
    touch(tmp_path / "x.ts")
    assert read_playlist(playlist(tmp_path / "x.mp4", "x.ts")) is not None
    (tmp_path / "x.m3u8").write_bytes(b"\0\1 no playlist")
    assert read_playlist(tmp_path / "x.m3u8") is None
    marked = read_playlist(playlist(tmp_path / "b.m3u8", "x.ts", head=f"\ufeff{HEAD}"))
    assert marked is not None
    assert marked.pieces == [tmp_path / "x.ts"]
    assert "byte order mark" in marked.problems[0]
    songs = read_playlist(playlist(tmp_path / "s.m3u8", "#EXTINF:1,a", "x.ts", head="#EXTM3U\n"))
    assert songs is not None
    assert not songs.is_hls
    assert "a list of files" in songs.problems[0]


def test_pipes_are_never_opened_as_playlists_or_their_pieces(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.m3u8")
    assert read_playlist(tmp_path / "pipe.m3u8") is None
    found = read_playlist(playlist(tmp_path / "x.m3u8", "pipe.m3u8"))
    assert found is not None
    assert found.problems == [f"its piece {tmp_path / 'pipe.m3u8'}: a named pipe"]
    for file in (tmp_path / "pipe.m3u8", tmp_path / "x.m3u8", Path("/dev/zero")):
        with pytest.raises(DecodeError, match=r"a named pipe|a device"):
            probe(file)


def test_a_list_of_ffmpeg_does_not_open_what_it_names(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile pipe.mp4\n")
    with pytest.raises(DecodeError, match="a list of files, not a video"):
        probe(tmp_path / "list.mp4")


def test_playlists_of_millions_of_pieces_are_refused(tmp_path: Path) -> None:
    many = playlist(tmp_path / "many.m3u8", *map(str, range(MOST_PIECES + 1)))
    with pytest.raises(OSError, match="more than 100,000 pieces"):
        read_playlist(many)
    large = playlist(tmp_path / "large.m3u8", "#" * LARGEST_PLAYLIST)
    with pytest.raises(OSError, match="more than 16 MB"):
        read_playlist(large)
