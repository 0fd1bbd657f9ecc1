"""A folder of .npy files: which file belongs to which video, which axis is time, when rows are."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from mstemba.data_manifests.manifest import Action, Manifest, Video, manifest_json
from mstemba.errors import MstembaError, StoreError, UsageError
from mstemba.pipeline.caching.keys import Fingerprints, cache_key, file_sha256
from mstemba.pipeline.dataset.clips import load_clips
from mstemba.pipeline.features.import_npy import import_features
from mstemba.pipeline.features.npy_folder import NpyFolder
from mstemba.pipeline.features.sources import find_features, open_features
from mstemba.pipeline.features.store import FeatureStore
from mstemba.pipeline.init import init
from mstemba.pipeline.options import ImportOptions
from mstemba.pipeline.workspace import create_workspace
from tests.command_line import Runner

WIDTH = 4


def rows(first: float, count: int = 6, width: int = WIDTH) -> NDArray[np.float32]:
    """Features that are different for each video, row and column."""
    return (first * 1000 + np.arange(count * width, dtype=np.float32)).reshape(count, width)


def write(folder: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(folder / f"{name}.npy", rows(number))
    return folder


def videos(*ids: str, duration: float | None = 12.0) -> list[Video]:
    return [Video(id, None, "training", duration, (Action(0, 1.0, 5.0),)) for id in ids]


def opened(folder: Path, *ids: str) -> NpyFolder:
    return NpyFolder(folder, videos(*ids))


def order(source: NpyFolder) -> dict[str, int]:
    """Return by video which of the written files it has."""
    return {id: round(float(source.values(id)[0, 0]) / 1000) for id in source.ids()}


# Names


@pytest.mark.parametrize(
    ("names", "ids"),
    [
        (("Monday", "TUESDAY"), ("monday", "tuesday")),
        (("monday.mp4", "tuesday.MOV"), ("monday", "tuesday")),
        (("cam1/monday", "cam2/monday"), ("cam1/monday", "cam2/monday")),
        (("rgb/monday", "rgb/tuesday"), ("monday", "tuesday")),
        ((unicodedata.normalize("NFD", "Küche"), "Tür"), ("Küche", "Tür")),
        (("Küche", "Tür"), tuple(unicodedata.normalize("NFD", id) for id in ("Küche", "Tür"))),
        (("v_QOlSCBRmfWY", "v_-hGHC_Kz_Z8"), ("QOlSCBRmfWY", "-hGHC_Kz_Z8")),
        (("QOlSCBRmfWY", "_hGHC_Kz_Z8"), ("v_QOlSCBRmfWY", "v__hGHC_Kz_Z8")),
        (("monday_clip", "tuesday_clip"), ("monday", "tuesday")),
        (("S01_a_CLIP-ViT-B_32", "S02_a_CLIP-ViT-B_32"), ("S01_a", "S02_a")),
        (("v_a b_rgb", "v_c d_rgb"), ("a b", "c d")),
        (("features.monday.i3d", "features.tuesday.i3d"), ("monday", "tuesday")),
        (("cam1/x_i3d", "cam2/x_i3d"), ("cam1/x", "cam2/x")),
        (("Monday_clip", "TUESDAY_clip"), ("monday", "tuesday")),
        ((unicodedata.normalize("NFD", "Küche") + "_s3d", "Tür_s3d"), ("Küche", "Tür")),
        (("video0001", "video0002"), ("0001", "0002")),
    ],
)
def test_files_are_found_by_the_usual_names(
    tmp_path: Path, names: tuple[str, ...], ids: tuple[str, ...]
) -> None:
    source = opened(write(tmp_path, *names), *ids)
    assert order(source) == {id: number for number, id in enumerate(ids)}
    assert source.unused == []


def test_the_path_of_the_video_decides_between_folders(tmp_path: Path) -> None:
    write(tmp_path, "day1/cam", "day2/cam")
    video = Video("cam", Path("/films/day2/cam.mp4"), "training", 12.0)
    assert order(NpyFolder(tmp_path, [video])) == {"cam": 1}


@pytest.mark.parametrize(
    ("names", "ids", "note"),
    [
        (("a_clip", "b_clip"), "ab", "files named VIDEO_clip.npy: 2 joined, for example a_clip"),
        (("v_a", "v_b", "v_c"), "abc", "files named v_VIDEO.npy: 3 joined, for example v_a.npy as"),
        (("A", "b"), "ab", "files named by another form of the id: 1 joined, for example A.npy as"),
        (("a", "b"), ("x_a", "x_b"), "files named VIDEO, of ids like x_VIDEO: 2 joined"),
    ],
)
def test_other_names_are_told(tmp_path: Path, names: tuple[str, ...], ids: str, note: str) -> None:
    (line,) = opened(write(tmp_path, *names), *ids).notes
    assert note in line


def test_exact_names_are_not_told(tmp_path: Path) -> None:
    assert opened(write(tmp_path, "a", "below/b", "stranger"), "a", "b").notes == []


def test_an_exact_name_comes_first(tmp_path: Path) -> None:
    source = opened(write(tmp_path, "B", "b", "b_clip"), "b")
    assert order(source) == {"b": 1}
    assert source.unused == ["B", "b_clip"]


def test_an_affix_of_a_few_files_next_to_exact_names_is_not_joined(tmp_path: Path) -> None:
    source = opened(write(tmp_path, "a", "b", "c_old"), "a", "b", "c")
    assert source.ids() == ["a", "b"]
    assert source.unused == ["c_old"]


@pytest.mark.parametrize(
    "names",
    [
        ("a_x", "b_y", "c_z"),
        ("x_a", "y_b", "c"),
        (*(f"stranger {n}" for n in range(8)), "a_old"),
    ],
)
def test_without_one_affix_for_nearly_all_nothing_is_joined(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    write(tmp_path, *names)
    if "c" in names:
        assert opened(tmp_path, "a", "b", "c").ids() == ["c"]
    else:
        with pytest.raises(UsageError, match=rf"none of its files \({len(names)}\) is named after"):
            opened(tmp_path, "a", "b", "c")


def test_nearly_all_files_are_enough(tmp_path: Path) -> None:
    ids = [f"video{n:02}" for n in range(20)]
    write(tmp_path, *(f"{id}_clip" for id in ids[:19]), "readme")
    source = opened(tmp_path, *ids)
    assert source.ids() == ids[:19]
    assert source.unused == ["readme"]


def test_files_of_many_other_videos_do_not_matter(tmp_path: Path) -> None:
    write(tmp_path, *(f"v_{n:03}" for n in range(40)))
    assert order(opened(tmp_path, "007", "031")) == {"007": 7, "031": 31}


@pytest.mark.parametrize(
    "names",
    [
        ("monday_rgb", "monday_flow"),
        ("rgb/monday", "flow/monday"),
        ("rgb_a", "rgb_monday", "flow_a", "flow_monday"),
        ("monday.mp4", "Monday"),
    ],
)
def test_two_files_of_one_video_are_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    with pytest.raises(StoreError, match=r"belong to the same video, '.*'; expected one file"):
        opened(write(tmp_path, *names), "monday", "a")


def test_arrays_that_are_no_features_do_not_count(tmp_path: Path) -> None:
    write(tmp_path, "monday_clip", "tuesday_clip")
    for name in ("monday", "tuesday"):
        np.save(tmp_path / f"{name}_len.npy", np.array(6))
        np.save(tmp_path / f"{name}_labels.npy", np.zeros((6, 2), int))
    assert order(opened(tmp_path, "monday", "tuesday")) == {"monday": 0, "tuesday": 1}


def test_a_name_that_fits_two_videos_is_told(tmp_path: Path) -> None:
    write(tmp_path, "Tea", "other")
    source = opened(tmp_path, "tea", "TEA", "other")
    assert source.ids() == ["other"]
    assert source.unused == ["Tea"]
    assert "fits several videos: 1 not used, for example Tea.npy" in source.notes[0]


@pytest.mark.parametrize(
    ("names", "ids"),
    [
        (("S1", "S2"), ("cam1_S1", "cam2_S1", "cam1_S2", "cam2_S2")),
        (("S1_S2",), ("S1", "S2")),
        (("a",), ("a_rgb", "a_flow")),
    ],
)
def test_an_affix_that_leaves_a_choice_joins_nothing(
    tmp_path: Path, names: tuple[str, ...], ids: tuple[str, ...]
) -> None:
    write(tmp_path, *names)
    with pytest.raises(UsageError, match="is named after a video"):
        opened(tmp_path, *ids)
    np.save(tmp_path / "exact.npy", rows(0))
    source = opened(tmp_path, *ids, "exact")
    assert source.ids() == ["exact"]
    assert source.unused == list(names)


def test_keys_of_exactly_named_files_stay_as_they_were(tmp_path: Path) -> None:
    write(tmp_path, "a")
    expected = cache_key("features", array=file_sha256(tmp_path / "a.npy"))
    assert opened(tmp_path, "a").key(videos("a")[0], Fingerprints()) == expected


# The times of video_features


def stamped(folder: Path, milliseconds: object, name: str = "monday_clip") -> NpyFolder:
    write(folder, name)
    base = name.removesuffix("_clip")
    np.save(folder / f"{base}_timestamps_ms.npy", np.asarray(milliseconds))
    np.save(folder / f"{base}_fps.npy", np.array(25.0))
    return NpyFolder(folder, videos("monday", duration=None))


@pytest.mark.parametrize("name", ["monday_clip", "monday"])
@pytest.mark.parametrize(
    ("milliseconds", "starts"),
    [
        ([0, 640, 1280, 1920, 2560, 3200], [0, 0.64, 1.28, 1.92, 2.56, 3.2]),
        ([0, 40, 80, 200, 240, 280], [0, 0.04, 0.08, 0.2, 0.24, 0.28]),
        # of stacks of frames, at whose end the time was taken; of stacks that overlap
        ([2560, 5120, 7680, 10240, 12800, 15360], [0, 2.56, 5.12, 7.68, 10.24, 12.8]),
        ([2560, 3200, 3840, 4480, 5120, 5760], [0, 0.64, 1.28, 1.92, 2.56, 3.2]),
    ],
)
def test_rows_are_when_their_timestamps_say(
    tmp_path: Path, name: str, milliseconds: list[int], starts: list[float]
) -> None:
    source = stamped(tmp_path, milliseconds, name)
    _, grid = source.timeline(videos("monday", duration=None)[0], "seconds")
    assert grid.starts == pytest.approx(starts)
    assert grid.step == pytest.approx(np.median(np.diff(starts)))
    assert source.unused == []


@pytest.mark.parametrize(
    ("milliseconds", "says"),
    [
        ([0, 640], r"shape \(2,\), expected \(6,\)"),
        ([0, 640, 1280, 1920, 2560, 0], "strictly increasing"),
        ([0, 640, np.nan, 1920, 2560, 3200], "finite"),
        ([0, 2, 4, 6, 8, 10], "expected milliseconds"),
        ([0, 64e4, 128e4, 192e4, 256e4, 32e5], "expected milliseconds"),
    ],
)
def test_timestamps_that_do_not_fit_are_refused(
    tmp_path: Path, milliseconds: list[float], says: str
) -> None:
    source = stamped(tmp_path, milliseconds)
    with pytest.raises(StoreError, match=f"monday_timestamps_ms.npy: .*{says}.*delete it"):
        source.timeline(videos("monday")[0], "seconds")


def test_timestamps_are_in_the_key(tmp_path: Path) -> None:
    video = videos("monday")[0]
    first = stamped(tmp_path, np.arange(6) * 640).key(video, Fingerprints())
    second = stamped(tmp_path, np.arange(6) * 320).key(video, Fingerprints())
    assert len({first, second, None}) == 3


def test_rows_of_a_manifest_in_frames_are_spread_over_its_duration(tmp_path: Path) -> None:
    source = stamped(tmp_path, np.arange(6) * 640)
    _, grid = source.timeline(videos("monday", duration=96)[0], "frames")
    assert grid.starts.tolist() == [0, 16, 32, 48, 64, 80]


def test_an_import_keeps_the_times(tmp_path: Path) -> None:
    stamped(tmp_path / "npy", np.arange(6) * 640)
    manifest = Manifest("d", ("sit",), "seconds", {"monday": videos("monday", duration=None)[0]})
    workspace = create_workspace(tmp_path / "w")
    workspace.manifest.write_text(manifest_json(manifest, workspace.root))
    result = import_features(tmp_path / "npy", workspace=workspace)
    assert (result.made, result.failed, result.unknown) == (["monday"], {}, [])
    features = FeatureStore.open(result.store).read("monday")
    assert features.grid.starts == pytest.approx(np.arange(6) * 0.64)
    assert features.duration == pytest.approx(3.84)
    assert np.array_equal(features.values, rows(0))
    assert import_features(tmp_path / "npy", workspace=workspace).cached == ["monday"]


# Which axis is time


def transposed(folder: Path, *lengths: int, width: int = 2048) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, length in enumerate(lengths):
        np.save(folder / f"v{number}.npy", rows(number, length, width).T)
    return folder


@pytest.mark.parametrize(
    ("lengths", "width"),
    [
        ((120, 150), 2048),
        ((30, 1, 70), 1024),
        ((3000, 2999), 768),
        ((512, 100), 512),
        ((9, 8), 400),
    ],
)
def test_the_length_that_all_files_share_is_the_width(
    tmp_path: Path, lengths: tuple[int, ...], width: int
) -> None:
    folder = transposed(tmp_path, *lengths, width=width)
    source = opened(folder, *(f"v{n}" for n in range(len(lengths))))
    assert source.spec.width == width
    for number, length in enumerate(lengths):
        assert np.array_equal(source.values(f"v{number}"), rows(number, length, width))
        _, grid = source.timeline(videos(f"v{number}")[0], "seconds")
        assert grid.count == length
    assert f"read as (features, rows), because all of them have {width} rows" in source.notes[0]


@pytest.mark.parametrize("shape", [(1, 2048, -1), (2048, -1, 1, 1), (1, 2048, -1, 1, 1)])
def test_other_lengths_of_one_do_not_hide_it(tmp_path: Path, shape: tuple[int, ...]) -> None:
    for number, length in enumerate((20, 30)):
        np.save(tmp_path / f"v{number}.npy", rows(number, length, 2048).T.reshape(shape))
    source = opened(tmp_path, "v0", "v1")
    assert np.array_equal(source.values("v1"), rows(1, 30, 2048))


@pytest.mark.parametrize(
    "shapes",
    [
        [(120, 2048), (150, 2048)],
        [(2048, 768), (2048, 768)],
        [(2048, 768), (1024, 768)],
        [(1, 2048)],
        [(512, 1024)],
        [(64, 4)],
        [(6, 4), (7, 4)],
    ],
)
def test_rows_that_come_first_stay_so(tmp_path: Path, shapes: list[tuple[int, int]]) -> None:
    for number, shape in enumerate(shapes):
        np.save(tmp_path / f"v{number}.npy", rows(number, *shape))
    source = opened(tmp_path, *(f"v{n}" for n in range(len(shapes))))
    assert source.notes == []
    for number, shape in enumerate(shapes):
        assert np.array_equal(source.values(f"v{number}"), rows(number, *shape))


@pytest.mark.parametrize(("lengths", "width"), [((120,), 2048), ((100, 100), 768), ((3,), 1024)])
def test_what_is_not_clear_is_refused(tmp_path: Path, lengths: tuple[int, ...], width: int) -> None:
    folder = transposed(tmp_path, *lengths, width=width)
    source = opened(folder, *(f"v{n}" for n in range(len(lengths))))
    with pytest.raises(
        StoreError, match=rf"shape \({width}, {lengths[0]}\).*--transposed"
    ) as error:
        source.values("v0")
    assert "--no-transposed" in str(error.value)
    assert "\n" not in str(error.value)


def test_the_two_readings_have_two_keys(tmp_path: Path) -> None:
    transposed(tmp_path, 120)
    video = videos("v0")
    keys = [NpyFolder(tmp_path, video, t).key(video[0], Fingerprints()) for t in (False, True)]
    assert keys[0] == cache_key("features", array=file_sha256(tmp_path / "v0.npy"))
    assert keys[1] not in (None, keys[0])


@pytest.mark.parametrize("given", [True, False])
def test_later_commands_read_the_arrays_as_init_was_told(tmp_path: Path, given: bool) -> None:
    folder = transposed(tmp_path / "npy", 120)
    table = tmp_path / "labels.csv"
    table.write_text("video,start,end,label,subset,duration\nv0.mp4,1,4,pour,training,120\n")
    with pytest.raises(StoreError, match="time seems to be last"):
        init(annotations=table, root=tmp_path / "w", features=folder)
    result = init(annotations=table, root=tmp_path / "w", features=folder, transposed=given)
    listed = list(result.manifest.videos.values())
    expected = rows(0, 120, 2048) if given else rows(0, 120, 2048).T
    for named in (None, folder):
        source = find_features(named, result.workspace, videos=listed)
        (clip,) = load_clips(source, result.manifest, listed)
        assert np.array_equal(clip.features, expected)
        assert clip.grid.count == (120 if given else 2048)


def test_an_import_can_be_told(tmp_path: Path, mstemba: Runner) -> None:
    transposed(tmp_path / "npy", 120)
    (tmp_path / "l.csv").write_text("video,start,end,label,duration\nv0.mp4,1,4,pour,120\n")
    mstemba("init", "--annotations", "l.csv", cwd=tmp_path)
    said = mstemba("import", "npy", cwd=tmp_path, expect=2).stderr
    assert "npy/v0.npy: shape (2048, 120), expected (rows, features)" in said
    said = mstemba("import", "npy", "--transposed", cwd=tmp_path).stdout
    assert "1 imported, 0 cached, 0 failed, 120 rows" in said
    values = FeatureStore.open(tmp_path / "features" / "npy.zarr").read("v0").values
    assert np.array_equal(values, rows(0, 120, 2048))


def test_the_axes_of_a_store_are_known(tmp_path: Path) -> None:
    write(tmp_path / "npy", "v0")
    (tmp_path / "l.csv").write_text("video,start,end,label,duration\nv0.mp4,1,4,pour,120\n")
    workspace = init(annotations=tmp_path / "l.csv", root=tmp_path / "w").workspace
    store = import_features(tmp_path / "npy", ImportOptions(), workspace=workspace).store
    with pytest.raises(UsageError, match=r"--transposed is for a folder of \.npy files"):
        open_features(store, transposed=True)
    with pytest.raises(UsageError, match="--transposed requires --features"):
        init(annotations=tmp_path / "l.csv", root=tmp_path / "w", transposed=True)


def test_a_folder_of_strangers_names_both_sides(tmp_path: Path) -> None:
    with pytest.raises(
        MstembaError, match=r"none of its files \(2\) .* found x.npy, .* example a.npy"
    ):
        opened(write(tmp_path, "x", "y"), "a", "b")
