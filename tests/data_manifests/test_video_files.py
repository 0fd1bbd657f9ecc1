"""Finding videos and other files below the folders that a user gives."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mstemba.data_manifests.readers.eaf import SUFFIX
from mstemba.data_manifests.readers.parsed import AnnotationReport
from mstemba.data_manifests.readers.tables import SUFFIXES, files_with
from mstemba.data_manifests.video_files import VIDEO_SUFFIXES, find_videos
from mstemba.errors import ManifestError
from mstemba.pipeline.features.npy_folder import NpyFolder


def touch(folder: Path, *names: str) -> list[Path]:
    files = [folder / name for name in names]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    return files


def test_videos_are_found_in_files_and_below_folders_by_their_stem(tmp_path: Path) -> None:
    a, b, _, single = touch(tmp_path, "f/a.mp4", "f/deep/er/B.MKV", "f/notes.txt", "odd.name")
    assert find_videos([tmp_path / "f", single]) == {"a": a, "B": b, "odd": single}


def test_two_videos_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    a, b, c = touch(tmp_path, "one/x.mp4", "two/x.mp4", "two/y.mp4")
    assert find_videos([tmp_path]) == {"one/x": a, "two/x": b, "y": c}


def test_two_containers_of_one_name_are_told_apart_by_their_suffix(tmp_path: Path) -> None:
    avi, mp4 = touch(tmp_path, "x.avi", "x.mp4")
    assert find_videos([tmp_path]) == {"x.avi": avi, "x.mp4": mp4}


def test_two_files_of_one_name_given_from_two_folders_are_both_found(tmp_path: Path) -> None:
    files = touch(tmp_path, "one/x.mp4", "two/x.mp4")
    assert sorted(find_videos(files).values()) == files


def test_a_video_that_is_named_twice_is_found_once(tmp_path: Path) -> None:
    (file,) = touch(tmp_path, "f/x.mp4")
    assert list(find_videos([file, file]).values()) == [file]
    assert list(find_videos([tmp_path / "f", file]).values()) == [file]


def test_a_missing_path_and_a_folder_without_video_are_named(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"none\.mp4: no such file"):
        find_videos([tmp_path / "none.mp4"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ManifestError, match=r"empty: no video in this folder; expected .*\.mp4"):
        find_videos([tmp_path / "empty"])
    touch(tmp_path, "empty/readme.txt", "empty/a.XYZ", "empty/b.xyz")
    with pytest.raises(ManifestError, match=r"no video in this folder, only 2 \.xyz, 1 \.txt; exp"):
        find_videos([tmp_path / "empty"])


def test_the_endings_of_recorders_and_encoders_are_those_of_videos(tmp_path: Path) -> None:
    names = ["a.MOD", "b.tod", "c.VOB", "d.mxf", "e.dv", "f.h264", "g.m2v", "h.f4v", "i.3g2"]
    names += ["j.rm", "k.divx", "l.insv", "m.mpg2", "n.hevc", "o.265", "p.dvr-ms", "q.MTS", "r.ts"]
    files = touch(tmp_path, *names)
    assert set(find_videos([tmp_path]).values()) == set(files)
    # What often lies next to videos.
    others = {".jpg", ".png", ".wav", ".mp3", ".csv", ".xml", ".srt", ".thm", ".lrv"}
    assert VIDEO_SUFFIXES.isdisjoint(others)


def lines_about(*inputs: Path) -> list[str]:
    lines: list[str] = []
    find_videos(inputs, lines.append)
    return lines


def test_a_folder_says_which_files_were_skipped(tmp_path: Path) -> None:
    touch(tmp_path, *(f"f/{n}.jpg" for n in range(10)), "f/deep/a.CSV", "f/b.csv", "f/c.xyz")
    touch(tmp_path, "f/a.mp4", "f/README", "g/b.mp4", "g/one.wav", "all/c.mp4", "odd.name")
    others = "10 .jpg, 2 .csv, 1 .xyz, 1 without an ending"
    assert lines_about(*(tmp_path / name for name in ("f", "g", "all", "odd.name"))) == [
        f"{tmp_path / 'f'}: skipped 14 files that do not end like a video: {others}",
        f"{tmp_path / 'g'}: skipped 1 file that does not end like a video: 1 .wav",
    ]
    touch(tmp_path, *(f"many/{n}.{n}" for n in range(50)), "many/x.mp4")
    (line,) = lines_about(tmp_path / "many")
    assert line.endswith(": 1 .0, 1 .1, 1 .10, 1 .11, 1 .12, 45 others")


def test_hidden_files_and_what_mstemba_wrote_are_not_counted(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", ".hidden", "._a.mp4", "._a.jpg", ".cache/fingerprints.json")
    touch(tmp_path, "mstemba.toml", "manifest.json", "manifest.json.bak", "features/current")
    touch(tmp_path, "features/clip.zarr/zarr.json", "runs/one/deep/curves.png", "sub/x.zarr/0/c")
    touch(tmp_path, "detections/a.html", "sub/b.scores.npz", "sub/b.csv", "sub/b.activitynet.json")
    assert lines_about(tmp_path) == []
    touch(tmp_path, "sub/c.csv", "sub/features/x.json")  # of the user
    (line,) = lines_about(tmp_path)
    assert line.endswith("skipped 2 files that do not end like a video: 1 .csv, 1 .json")


def test_hidden_folders_have_no_videos(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", ".Trash-1000/files/b.mp4", "deep/.git/annex/c.mp4", "x.zarr/d.mp4")
    assert list(find_videos([tmp_path])) == ["a"]


HLS = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n"


def test_a_playlist_in_a_folder_is_one_video_with_its_pieces(tmp_path: Path) -> None:
    (a, m, x, *_) = touch(tmp_path, "f/a.m3u8", "f/m.m3u8", "f/x.mp4", "f/low/1.ts", "f/x.key")
    a.write_text(HLS + '#EXT-X-KEY:URI="x.key"\nlow/1.ts\nlow/gone.ts\n')
    m.write_text("#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\na.m3u8\n")
    (tmp_path / "link").symlink_to("f")
    for folder in (tmp_path / "f", tmp_path / "link"):
        assert find_videos([folder]) == {"m": folder / "m.m3u8", "x": folder / "x.mp4"}
        assert lines_about(folder) == []
    piece = tmp_path / "f" / "low" / "1.ts"  # named itself, it is taken
    assert find_videos([tmp_path / "f", piece]) == {"m": m, "x": x, "1": piece}


def test_playlists_that_refer_to_each_other_are_one_video(tmp_path: Path) -> None:
    a, b = touch(tmp_path, "a.m3u8", "b.m3u8")
    a.write_text(HLS + "b.m3u8\n")
    b.write_text(HLS + "a.m3u8\n")
    assert find_videos([tmp_path]) == {"a": a}


def test_a_list_of_films_is_skipped_and_the_films_are_not(tmp_path: Path) -> None:
    x, films = touch(tmp_path, "x.mp4", "films.m3u8")
    films.write_text("#EXTM3U\n#EXTINF:1,A film\nx.mp4\n")
    assert find_videos([tmp_path]) == {"x": x}
    assert lines_about(tmp_path)[0].endswith(": 1 .m3u8")


def test_links_to_folders_are_followed_once_and_those_to_nowhere_are_found(tmp_path: Path) -> None:
    a, b, _ = touch(tmp_path, "f/b/a.mp4", "elsewhere/b.mp4", "f/notes.txt")
    (tmp_path / "f" / "a link").symlink_to(tmp_path / "f" / "b")
    (tmp_path / "f" / "linked").symlink_to(b.parent)
    (b.parent / "up").symlink_to(tmp_path / "f")
    gone = tmp_path / "f" / "gone.mp4"
    gone.symlink_to("nowhere.mp4")
    (tmp_path / "f" / "gone.txt").symlink_to("nowhere.txt")
    linked = tmp_path / "f" / "linked" / "b.mp4"
    assert find_videos([tmp_path / "f"]) == {"a": a, "b": linked, "gone": gone}
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "linked").symlink_to(b.parent.parent / "f" / "b")
    assert list(find_videos([tmp_path / "only"])) == ["a"]


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="it is found, and fails when it is read")
def test_a_link_to_itself_is_named(tmp_path: Path) -> None:
    (tmp_path / "loop.mp4").symlink_to("loop.mp4")
    with pytest.raises(ManifestError, match=r"loop\.mp4: a link to itself"):
        find_videos([tmp_path])


def test_a_folder_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "a.mp4", "locked/b.mp4", "lost+found/c.mp4")
    scandir, closed = os.scandir, {"lost+found"}

    def refusing(path: str) -> Any:
        if Path(path).name in closed:
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    assert list(find_videos([tmp_path])) == ["a", "b"]  # of the system: nobody's videos
    closed.add("locked")
    for below in (
        lambda: find_videos([tmp_path]),
        lambda: files_with(tmp_path, SUFFIXES, AnnotationReport()),
    ):
        with pytest.raises(ManifestError, match=r"locked: this folder cannot be read \(Permission"):
            below()


def test_annotations_and_features_are_found_behind_links_to_folders(tmp_path: Path) -> None:
    touch(tmp_path, "elsewhere/a.csv", "elsewhere/a.eaf", "elsewhere/a.npy", "elsewhere/.b.npy")
    (tmp_path / "f").mkdir()
    link = tmp_path / "f" / "link"
    link.symlink_to(tmp_path / "elsewhere")
    assert files_with(tmp_path / "f", SUFFIXES, AnnotationReport()) == [link / "a.csv"]
    assert files_with(tmp_path / "f", (SUFFIX,), AnnotationReport()) == [link / "a.eaf"]
    assert NpyFolder(tmp_path / "f").ids() == ["a"]


stems = st.sampled_from(["x", "y", "x.mp4", "x.avi", ".x", "x y"])
names = st.builds(
    "{}{}{}".format,
    st.sampled_from(["", "one/", "two/", "one/two/"]),
    stems,
    st.sampled_from([".mp4", ".avi", ".MKV"]),
)


@given(names=st.lists(names, min_size=1, max_size=8, unique=True), as_files=st.booleans())
@settings(max_examples=100)
def test_every_file_is_found_under_an_id_of_its_own(
    names: list[str], as_files: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("v")
    files = touch(folder, *names)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        found = find_videos([Path(name) for name in names] if as_files else [folder])
        assert sorted(path.resolve() for path in found.values()) == sorted(files)
