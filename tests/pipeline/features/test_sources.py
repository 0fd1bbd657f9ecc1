"""Published features: a folder of .npy files in place of a store, and its import into one."""

from __future__ import annotations

import json
import os
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mstemba.data_manifests.annotations import read_annotations
from mstemba.data_manifests.manifest import Action, Manifest, Video, manifest_json
from mstemba.errors import StoreError, UsageError
from mstemba.pipeline.caching.keys import Fingerprints, entry_key
from mstemba.pipeline.dataset.clips import load_clips, with_features
from mstemba.pipeline.features.import_npy import ImportResult, import_features
from mstemba.pipeline.features.sources import (
    FeatureSource,
    NpyFolder,
    StoreFeatures,
    find_features,
    open_features,
)
from mstemba.pipeline.features.store import FeatureStore
from mstemba.pipeline.options import ImportOptions
from mstemba.pipeline.workspace import Workspace, create_workspace, set_current
from mstemba.records import FeatureSpec

WIDTH = 4
LITE = ImportOptions(backbone="efficientnet-lite0")
VALUES = np.arange(6 * WIDTH, dtype=np.float32).reshape(6, WIDTH)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "npy").mkdir()
    np.save(tmp_path / "npy" / "a.npy", VALUES)
    return tmp_path / "npy"


def manifest_of(*videos: Video, unit: str = "seconds", fps: float | None = None) -> Manifest:
    return Manifest("d", ("sit", "run"), unit, {v.id: v for v in videos}, fps)


A = Video("a", None, "training", 12.0, (Action(0, 1.0, 5.0), Action(1, 2.5, 3.5)))


# The folder as a source


@pytest.mark.parametrize("shape", [(6, WIDTH), (6, 1, 1, WIDTH), (1, 6, WIDTH), (6, 1, WIDTH)])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_shapes_in_use_are_read(tmp_path: Path, shape: tuple[int, ...], dtype: type) -> None:
    np.save(tmp_path / "a.npy", VALUES.reshape(shape).astype(dtype))
    source = NpyFolder(tmp_path)
    assert source.spec.width == WIDTH
    assert source.values("a").dtype == np.float32
    assert np.array_equal(source.values("a"), VALUES)


def test_one_row_keeps_its_shape(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", VALUES[:1].reshape(1, 1, 1, WIDTH))
    assert NpyFolder(tmp_path).values("a").shape == (1, WIDTH)


def test_files_in_folders_below_are_found(tmp_path: Path) -> None:
    (tmp_path / "rgb").mkdir()
    np.save(tmp_path / "rgb" / "a.npy", VALUES)
    np.save(tmp_path / "rgb" / "._a.npy", VALUES)
    assert NpyFolder(tmp_path).ids() == ["a"]


def test_a_clip_of_a_folder_has_its_rows_spread_over_the_duration(folder: Path) -> None:
    (clip,) = load_clips(open_features(folder), manifest_of(A), [A])
    assert clip.grid.starts.tolist() == [0, 2, 4, 6, 8, 10]
    assert np.flatnonzero(clip.labels[:, 0]).tolist() == [1, 2]
    assert clip.missed == 1
    assert np.array_equal(clip.features, VALUES)


def test_a_folder_has_features_of_the_videos_that_it_names(folder: Path) -> None:
    other = Video("b", None, "training", 1.0)
    found = with_features(open_features(folder), [A, other], Fingerprints())
    assert (found.videos, found.missing) == ([A], ["b"])


def test_the_key_follows_the_content_of_the_file(folder: Path) -> None:
    before = NpyFolder(folder).key(A, Fingerprints())
    assert before == NpyFolder(folder).key(A, Fingerprints())
    np.save(folder / "a.npy", VALUES + 1)
    assert NpyFolder(folder).key(A, Fingerprints()) not in (None, before)


BAD: dict[str, tuple[NDArray[np.generic], str]] = {
    "one dimension": (VALUES[0], r"shape \(4,\), expected"),
    "two lengths": (np.zeros((6, 2, 1, 4), np.float32), r"shape \(6, 2, 1, 4\), expected"),
    "no rows": (np.zeros((0, 4), np.float32), r"shape \(0, 4\), expected"),
    "whole numbers": (np.zeros((6, 4), np.int64), "found int64"),
    "objects": (np.array([{"a": 1}], dtype=object), "not readable as an array"),
    "not a number": (np.full((6, 4), np.nan, np.float32), "NaN or infinity"),
}


@pytest.mark.parametrize("name", BAD)
def test_an_array_that_cannot_be_features_is_refused(tmp_path: Path, name: str) -> None:
    array, message = BAD[name]
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    source = NpyFolder(tmp_path)
    with pytest.raises(StoreError, match=message) as error:
        source.values("a")
    assert "a.npy" in str(error.value)


def test_a_cut_file_is_refused(folder: Path) -> None:
    content = (folder / "a.npy").read_bytes()
    (folder / "a.npy").write_bytes(content[:-8])
    with pytest.raises(StoreError, match=r"a\.npy: not readable"):
        NpyFolder(folder).values("a")


def test_files_of_another_width_are_refused(folder: Path) -> None:
    np.save(folder / "b.npy", VALUES[:, :3])
    with pytest.raises(StoreError, match=r"b.npy: 3 features a row, but the other files have 4"):
        NpyFolder(folder).values("b")


def test_two_files_of_one_video_are_refused(folder: Path) -> None:
    (folder / "flow").mkdir()
    np.save(folder / "flow" / "a.npy", VALUES)
    with pytest.raises(StoreError, match="belong to the same video"):
        NpyFolder(folder)


def test_a_folder_without_features_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"neither a feature store nor a folder of \.npy"):
        open_features(tmp_path)


def test_a_video_without_duration_says_what_to_do(folder: Path) -> None:
    video = Video("a", None, "training", None)
    with pytest.raises(StoreError, match=r"gives .a. no duration.*mstemba import --fps"):
        load_clips(open_features(folder), manifest_of(video), [video])


# The field's labels, to the bit, on published features and on imported ones

GOLDEN = {
    "charades": ("charades", "seconds"),
    "tsu": ("smarthome", "frames"),
    "multithumos": ("multithumos", "seconds"),
}


@pytest.mark.parametrize("imported", [False, True])
@pytest.mark.parametrize("name", GOLDEN)
def test_published_features_have_the_authors_labels(
    shared: Path, tmp_path: Path, name: str, imported: bool
) -> None:
    expected = json.loads((shared / "golden" / "labels_golden.json").read_text())[name]
    file, unit = GOLDEN[name]
    manifest, _ = read_annotations(shared / "annotations" / f"{file}.json", time_unit=unit)
    lengths: dict[str, list[int]] = {}
    for pair in expected:
        id, rows = pair.rsplit("@", 1)
        lengths.setdefault(id, []).append(int(rows))
    for turn in range(max(map(len, lengths.values()))):
        chosen = {id: rows[turn] for id, rows in lengths.items() if turn < len(rows)}
        folder = tmp_path / f"{turn}"
        folder.mkdir()
        for id, rows in chosen.items():
            np.save(folder / f"{id}.npy", np.zeros((rows, 1, 1, 2), np.float32))
        source: FeatureSource = open_features(folder)
        if imported:
            (tmp_path / "m.json").write_text(manifest_json(manifest, tmp_path))
            store = tmp_path / f"{turn}.zarr"
            import_features(
                folder, ImportOptions(fps=25.0), manifest=tmp_path / "m.json", store=store
            )
            source = open_features(store)
            assert isinstance(source, StoreFeatures)
        for clip in load_clips(source, manifest, [manifest.videos[id] for id in chosen]):
            packed = np.packbits(clip.labels.astype(np.uint8)).tobytes()
            pair = f"{clip.id}@{chosen[clip.id]}"
            assert zlib.crc32(packed) == expected[pair]["crc32"], pair


def test_features_of_a_playlist_outlive_its_pieces(tmp_path: Path) -> None:
    file, piece = tmp_path / "x.m3u8", tmp_path / "x.ts"
    piece.write_bytes(b"first")
    file.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\nx.ts\n")
    store = FeatureStore.prepare(
        tmp_path / "s.zarr", FeatureSpec("clip", "m", "tag:x", WIDTH, 224, 224)
    )
    key = entry_key(store.spec, Fingerprints().of(file))
    writer = store.writer("v", key, "pyav")
    writer.append(VALUES, np.arange(6.0))
    writer.finish(
        step=1.0, duration=6.0, fps=16.0, frames=96, source="x", decoder="pyav", warnings=[]
    )
    source, video = StoreFeatures(store), Video("v", file, "training", 12.0)
    assert source.key(video, Fingerprints()) == key
    piece.write_bytes(b"second")
    assert source.key(video, Fingerprints()) is None
    piece.unlink()
    assert source.key(video, Fingerprints()) == key


# Names that mean something elsewhere


@pytest.mark.parametrize("name", ["imported", "imported.mp4", "published", "published.mp4"])
def test_a_video_file_may_have_any_name(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_bytes(b"first")
    video, fingerprints = Video("v", file, "training", 12.0), Fingerprints()
    spec = FeatureSpec("clip", "m", "tag:x", WIDTH, 224, 224)
    store = FeatureStore.prepare(tmp_path / "s.zarr", spec)
    key = entry_key(spec, fingerprints.of(file))
    writer = store.writer("v", key, "pyav")
    writer.append(VALUES, np.arange(6.0))
    writer.finish(
        step=1.0, duration=6.0, fps=16.0, frames=96, source=name, decoder="pyav", warnings=[]
    )
    source = StoreFeatures(store)
    assert source.key(video, fingerprints) == key
    assert find_features(store.root, None).spec.is_known
    file.write_bytes(b"something else")
    assert source.key(video, fingerprints) is None


# Import


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    workspace = create_workspace(tmp_path / "w")
    workspace.manifest.write_text(manifest_json(manifest_of(A), workspace.root))
    return workspace


def test_an_import_has_everything_that_an_extraction_has(
    folder: Path, workspace: Workspace
) -> None:
    result = import_features(folder, workspace=workspace)
    assert (result.made, result.cached, result.failed) == (["a"], [], {})
    source = find_features(None, workspace)
    assert source.root == result.store
    assert np.array_equal(source.values("a"), VALUES)
    assert not source.spec.is_known
    actions, grid = source.timeline(A, "seconds")
    assert grid.starts.tolist() == [0, 2, 4, 6, 8, 10]
    assert actions == list(A.actions)


def test_an_imported_entry_keeps_the_attributes_that_stores_on_disk_have(
    folder: Path, workspace: Workspace
) -> None:
    store = FeatureStore.open(import_features(folder, workspace=workspace).store)
    entry = store.entry("a")
    assert entry is not None
    assert (entry.source, entry.decoder) == ("imported", "imported")
    assert entry.is_imported


def test_imported_features_are_current_whatever_the_video_is(
    folder: Path, workspace: Workspace, tmp_path: Path
) -> None:
    (tmp_path / "a.mp4").write_bytes(b"a video")
    source = open_features(import_features(folder, workspace=workspace).store)
    video = Video("a", tmp_path / "a.mp4", "training", 12.0)
    assert source.key(video, Fingerprints()) is not None


def test_a_second_import_does_nothing(folder: Path, workspace: Workspace) -> None:
    import_features(folder, workspace=workspace)
    assert import_features(folder, workspace=workspace).cached == ["a"]
    np.save(folder / "a.npy", VALUES + 1)
    assert import_features(folder, workspace=workspace).made == ["a"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no change time")
def test_an_array_that_replaces_one_of_the_same_size_and_time_is_imported(
    folder: Path, workspace: Workspace
) -> None:
    file = folder / "a.npy"
    os.utime(file, (0, 0))
    import_features(folder, workspace=workspace)
    np.save(folder / "new.npy", VALUES + 1)
    os.utime(folder / "new.npy", (0, 0))
    os.replace(folder / "new.npy", file)
    result = import_features(folder, workspace=workspace)
    assert result.made == ["a"]
    assert np.array_equal(find_features(None, workspace).values("a"), VALUES + 1)


def test_a_named_backbone_goes_into_the_specification(folder: Path, workspace: Workspace) -> None:
    np.save(folder / "a.npy", np.zeros((6, 1280), np.float32))
    result = import_features(folder, LITE, workspace=workspace)
    spec = open_features(result.store).spec
    assert (spec.backbone, spec.width, spec.window) == ("efficientnet-lite0", 1280, 16)


def test_features_of_another_width_than_the_backbones_are_refused(
    folder: Path, workspace: Workspace
) -> None:
    with pytest.raises(UsageError, match=r"4 features a row, but efficientnet-lite0 .* gives 1280"):
        import_features(folder, LITE, workspace=workspace)


def test_what_does_not_match_is_counted(folder: Path, workspace: Workspace) -> None:
    np.save(folder / "extra.npy", VALUES)
    videos = manifest_of(A, Video("absent", None, "testing", 3.0))
    workspace.manifest.write_text(manifest_json(videos, workspace.root))
    result = import_features(folder, workspace=workspace)
    assert (result.made, result.unknown, result.missing) == (["a"], ["extra"], ["absent"])


def test_features_of_none_of_the_videos_are_refused(folder: Path, workspace: Workspace) -> None:
    other = manifest_of(Video("b", None, "training", 3.0))
    workspace.manifest.write_text(manifest_json(other, workspace.root))
    with pytest.raises(UsageError, match=r"found a.npy, expected for example b.npy"):
        import_features(folder, workspace=workspace)


def test_a_damaged_file_does_not_stop_the_rest(folder: Path, workspace: Workspace) -> None:
    (folder / "b.npy").write_bytes(b"nothing")
    both = manifest_of(A, Video("b", None, "training", 3.0))
    workspace.manifest.write_text(manifest_json(both, workspace.root))
    result = import_features(folder, workspace=workspace)
    assert result.made == ["a"]
    assert "b.npy: not readable" in result.failed["b"]


@pytest.mark.parametrize(
    ("duration", "unit", "given", "step", "missing"),
    [
        (None, "seconds", {}, None, "--stride and --fps"),
        (None, "seconds", {"fps": 8.0}, None, "pass --stride"),
        (None, "seconds", {"fps": 8.0, "stride": 16}, 2.0, None),
        (96, "frames", {}, None, "pass --fps"),
        (96, "frames", {"fps": 8.0}, 2.0, None),
        (12.0, "seconds", {"fps": 8.0, "stride": 64}, 2.0, None),
    ],
)
def test_the_times_of_the_rows_come_from_the_duration_or_the_stride(
    folder: Path,
    workspace: Workspace,
    duration: float | None,
    unit: str,
    given: dict[str, Any],
    step: float | None,
    missing: str | None,
) -> None:
    videos = manifest_of(Video("a", None, "training", duration), unit=unit)
    workspace.manifest.write_text(manifest_json(videos, workspace.root))
    options = ImportOptions(**given)
    result: ImportResult = import_features(folder, options, workspace=workspace)
    if missing:
        assert missing in result.failed["a"]
    else:
        _, grid = open_features(result.store).timeline(videos.videos["a"], unit)
        assert grid.step == step


def test_a_workspace_can_point_at_a_folder(folder: Path, workspace: Workspace) -> None:
    set_current(workspace.features, str(folder))
    assert isinstance(find_features(None, workspace), NpyFolder)


def test_options_of_a_backbone_need_one() -> None:
    with pytest.raises(UsageError, match="--window requires --backbone"):
        ImportOptions(window=8)
