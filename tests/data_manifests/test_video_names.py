"""Which video a name means: ids, file names, paths of other machines, URLs, Unicode forms, case."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mstemba.data_manifests.video_names import VideoNames, default_ids
from mstemba.errors import ManifestError
from mstemba.pipeline.init import InitResult, init


def make(tmp_path: Path, *files: str) -> Path:
    for name in files:
        path = tmp_path / "videos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "videos"


def init_with(tmp_path: Path, folder: Path, *names: str) -> InitResult:
    rows = "".join(f"{name},{n},{n + 1},pour,training\n" for n, name in enumerate(names))
    table = tmp_path / "labels.csv"
    table.write_text("video,start,end,label,subset\n" + rows, encoding="utf-8")
    return init([folder], table, root=tmp_path / "w")


def starts(result: InitResult) -> dict[str, list[float]]:
    """Return the starts of the actions by the name of the file."""
    return {
        v.path.name if v.path else f"({v.id})": [a.start for a in v.actions]
        for v in result.manifest.videos.values()
    }


@pytest.mark.parametrize(
    "name",
    [
        "monday",
        "monday.mp4",
        "./monday.mp4",
        "videos/monday.mp4",
        "/home/other/lab videos/monday.mp4",
        r"C:\Users\other\My videos\monday.mp4",
        r"..\videos\monday.mp4",
        "file:///C:/My%20videos/monday.mp4",
        "https://lab.example/share/monday.mp4?download=1",
        "MONDAY.MP4",
        "Videos/Monday",
        "monday.avi",
    ],
)
def test_a_video_is_found_by_every_usual_name(name: str, tmp_path: Path) -> None:
    result = init_with(tmp_path, make(tmp_path, "monday.mp4", "tuesday.mp4"), name)
    assert starts(result) == {"monday.mp4": [0.0], "tuesday.mp4": []}
    said = " ".join(result.report.lines())
    assert ("named otherwise" in said) == (name not in ("monday", "monday.mp4")), said


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_unicode_forms_of_one_name_are_one_name(forms: tuple[str, str], tmp_path: Path) -> None:
    disk, table = (unicodedata.normalize(form, "Küche") for form in forms)
    result = init_with(tmp_path, make(tmp_path, f"{disk}.mp4"), f"{table}.mp4")
    assert starts(result) == {f"{disk}.mp4": [0.0]}


def test_json_keys_and_the_part_of_a_url_that_is_an_id(tmp_path: Path) -> None:
    folder = make(tmp_path, "QOlSCBRmfWY.mp4", "b.mkv")
    labels = tmp_path / "labels.json"
    entry = {"subset": "training", "actions": [[0, 1.0, 2.0]]}
    names = ["https://www.youtube.com/watch?v=QOlSCBRmfWY", "b.mkv"]
    labels.write_text(json.dumps(dict.fromkeys(names, entry)))
    result = init([folder], labels, root=tmp_path / "w")
    assert starts(result) == {"QOlSCBRmfWY.mp4": [1.0], "b.mkv": [1.0]}


def test_folders_decide_between_files_of_one_name(tmp_path: Path) -> None:
    folder = make(tmp_path, "cam1/monday.mp4", "cam2/monday.mp4", "c.mp4")
    names = ("D:/rec/cam1/monday.mp4", "cam2/monday.mp4", "monday.mp4", "c.mp4")
    result = init_with(tmp_path, folder, *names)
    found = {id: [a.start for a in v.actions] for id, v in result.manifest.videos.items()}
    assert found == {"cam1/monday": [0.0], "cam2/monday": [1.0], "monday": [2.0], "c": [3.0]}
    assert result.report.kept["video name that fits several files"] == 1


def test_a_name_is_not_joined_with_the_file_of_another_name(tmp_path: Path) -> None:
    # Of the cameras only cam2's video is here; walk.avi is another recording than walk.mp4.
    folder = make(tmp_path, "cam2/monday.mp4", "walk.mp4")
    names = ("cam1/monday.mp4", "cam2/monday.mp4", "walk.mp4", "walk.avi")
    result = init_with(tmp_path, folder, *names)
    assert starts(result)["monday.mp4"] == [1.0]
    assert starts(result)["walk.mp4"] == [2.0]
    assert result.without_file == 2
    assert "another one fits its file better: 2 kept" in " ".join(result.report.lines())


def test_names_in_other_case_are_one_video_unless_each_has_a_file(tmp_path: Path) -> None:
    names = ("walk.mp4", "Walk.MP4", "WALK", "run.mp4", "Run.mp4")
    result = init_with(tmp_path, make(tmp_path, "walk.mp4", "run.mp4", "Run.mp4"), *names)
    assert starts(result) == {"Run.mp4": [4.0], "run.mp4": [3.0], "walk.mp4": [0.0, 1.0, 2.0]}
    assert result.report.joined == {"video named otherwise than its file": 2}


def test_where_no_video_fits_init_is_refused_with_both_names(tmp_path: Path) -> None:
    folder = make(tmp_path, "monday.mp4")
    says = r"no annotated video \(1\) is.*'lundi'.*'monday'"
    with pytest.raises(ManifestError, match=says) as refused:
        init_with(tmp_path, folder, "lundi.mp4")
    assert refused.value.exit_code == 2
    assert not (tmp_path / "w").exists()


def test_without_files_a_path_becomes_the_stem_where_it_is_unique() -> None:
    names = ["videos/a.mp4", "a.mp4", "x/b.mp4", "y/b.mp4", "P01/1", r"C:\v\c.avi", "d"]
    assert list(default_ids(names, ["d"]).values()) == ["a", "a", "x/b", "y/b", "P01/1", "c", "d"]


def test_without_files_names_that_differ_by_the_ending_are_two_videos() -> None:
    names = ["a.mp4", "a.avi", "b.mp4", "b.MP4"]
    assert list(default_ids(names, []).values()) == ["a.mp4", "a.avi", "b", "b"]


NAMES = st.lists(
    st.text("aAö\u0308/\\\\.:?[%4 ", max_size=12).map(lambda name: name + ".mp4"), max_size=6
)


@given(files=NAMES, names=st.lists(st.text(max_size=20), max_size=4))
def test_any_names_are_joined_with_known_videos_only(files: list[str], names: list[str]) -> None:
    paths = {f"{n}": Path("/data") / file for n, file in enumerate(files)}
    asked = [*names, *files, *(f"http:/{name}" for name in names)]
    found = VideoNames(paths).match(asked)
    assert set(found.ids.values()) <= set(paths)
    assert not found.ids.keys() & found.ambiguous.keys()
    left = [name for name in asked if name not in found.ids]
    assert set(default_ids(left, paths)) == set(left)
    alone = [id for id in paths if sum(p.name == paths[id].name for p in paths.values()) == 1]
    assert all(found.ids[paths[id].name] == id for id in alone if paths[id].name in found.ids)


def test_ten_thousand_names_are_matched_in_time_that_grows_with_their_number() -> None:
    files = {f"v{n}": Path(f"/data/v{n}.mp4") for n in range(10_000)}
    names = [f"C:\\data\\V{n}.MP4" for n in range(10_000)]
    assert VideoNames(files).match(names).ids == dict(zip(names, files, strict=True))


def test_annotated_until_may_be_at_any_name_of_a_video(tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    rows = "monday.mp4,0,1,pour,\nmonday,1,2,pour,8\nvideos/monday.mp4,2,3,pour,9\n"
    table.write_text("video,start,end,label,annotated_until\n" + rows, encoding="utf-8")
    result = init([make(tmp_path, "monday.mp4")], table, root=tmp_path / "w")
    assert result.manifest.videos["monday"].annotated_until == 8
    kind = "second annotated_until of a video"
    assert result.report.examples[kind] == "8.0 and 9.0 of monday"


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (("monday", "monday.mp4"), False),
        (("videos/monday.mp4", "monday"), False),
        (("D:/Rec/MONDAY.MP4", "monday.MP4"), False),
        (("D:/a/monday.mp4", "E:/b/monday.mp4"), True),
    ],
)
def test_two_names_of_one_file_are_not_told_as_two_files(
    names: tuple[str, str], told: bool, tmp_path: Path
) -> None:
    result = init_with(tmp_path, make(tmp_path, "monday.mp4"), *names)
    assert starts(result) == {"monday.mp4": [0.0, 1.0]}
    assert ("two media files taken for one video" in result.report.kept) == told
