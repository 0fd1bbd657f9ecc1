"""The catalog: who the videos of a command are, and under which names they are kept."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mstemba.data_manifests.manifest import Manifest, Video, VideoIndex
from mstemba.pipeline.caching.keys import Fingerprints, entry_key, file_sha256
from mstemba.pipeline.catalog import LONGEST_STEM, Catalog, CatalogVideo, file_stem
from mstemba.pipeline.features.store import FeatureStore
from mstemba.records import FeatureSpec

SPEC = FeatureSpec("clip", "model", "tag:x", 4, 8, 8)


def manifest(files: dict[str, Path | None]) -> Manifest:
    videos = {id: Video(id, path, None, None) for id, path in files.items()}
    return Manifest("set", (), "seconds", videos)


def make(folder: Path, *names: str) -> list[Path]:
    files = [folder / name for name in names]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"content of {file.name}")
    return files


def catalog(files: dict[str, Path], listed: dict[str, Path | None] | None = None) -> Catalog:
    return Catalog(files, None if listed is None else manifest(listed), Fingerprints())


def entry_names(found: Catalog, store: FeatureStore) -> list[str]:
    return [found.entry_name(video, store) for video in found.videos]


def save_entry(store: FeatureStore, id: str, fingerprint: str) -> None:
    writer = store.writer(id, entry_key(SPEC, fingerprint), "av")
    writer.append(np.ones((2, 4), np.float32), np.array([0.0, 1.0]))
    facts: dict[str, Any] = {"duration": 2.0, "fps": 1.0, "frames": 2, "warnings": []}
    writer.finish(1.0, source="x.mp4", decoder="av", **facts)


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore.prepare(tmp_path / "s.zarr", SPEC)


# Who a video is


def test_every_video_has_its_path_its_fingerprint_and_its_entry_in_the_manifest(
    tmp_path: Path,
) -> None:
    a, b = make(tmp_path, "a.mp4", "b.mp4")
    found = catalog({"a": a, "b": b}, {"monday/a": a, "c": None})
    assert found.manifest is not None
    assert found.videos == [
        CatalogVideo("a", a, found.manifest.videos["monday/a"], file_sha256(a)),
        CatalogVideo("b", b, None, file_sha256(b)),
    ]
    assert found.without_file == ["c"]
    assert (found.listed_path("monday/a"), found.listed_path("c")) == (a, None)


def test_links_are_followed_on_both_sides(tmp_path: Path) -> None:
    (a,) = make(tmp_path, "a.mp4")
    (tmp_path / "link.mp4").symlink_to(a)
    by_link = catalog({"link": tmp_path / "link.mp4"}, {"monday": a})
    listed_link = catalog({"a": a}, {"monday": tmp_path / "link.mp4"})
    for found in (by_link, listed_link):
        (video,) = found.videos
        assert video.listed is not None
        assert video.listed.id == "monday"


def test_of_two_ids_for_one_file_each_keeps_its_own(tmp_path: Path) -> None:
    (a,) = make(tmp_path, "a.mp4")
    found = catalog({"one": a, "two": a}, {"one": a, "two": a})
    assert [video.listed and video.listed.id for video in found.videos] == ["one", "two"]
    index = VideoIndex(manifest({"one": a, "two": a}).videos.values())
    last = index.with_file(a)
    assert last is not None
    assert last.id == "two"


def test_an_unreadable_video_has_its_problem_and_stops_no_others(
    tmp_path: Path, store: FeatureStore
) -> None:
    gone, (a,) = tmp_path / "gone.mp4", make(tmp_path, "a.mp4")
    found = catalog({"gone": gone, "a": a})
    assert [video.problem for video in found.videos] == [f"{gone}: no such file", ""]
    assert entry_names(found, store) == ["gone", "a"]
    assert entry_names(catalog({"gone": gone}, {"monday": gone}), store) == ["monday"]


# Entries of a feature store


def test_a_video_of_the_manifest_has_its_id_there(tmp_path: Path, store: FeatureStore) -> None:
    a, b = make(tmp_path, "a.mp4", "b.mp4")
    assert entry_names(catalog({"a": a, "b": b}, {"monday/a": a}), store) == ["monday/a", "b"]


def test_another_videos_entry_is_not_taken(tmp_path: Path, store: FeatureStore) -> None:
    (a,) = make(tmp_path, "a.mp4")
    marked = f"a@{file_sha256(a)[:8]}"
    listed: dict[str, Path | None] = {"a": tmp_path / "other" / "a.mp4"}
    assert entry_names(catalog({"a": a}, listed), store) == [marked]
    assert entry_names(catalog({"a": a}, {"a": None}), store) == ["a"]
    save_entry(store, "a", "of another content")
    assert entry_names(catalog({"a": a}), store) == [marked]
    save_entry(store, "a", file_sha256(a))
    assert entry_names(catalog({"a": a}), store) == ["a"]
    (store.root / "a" / "zarr.json").write_text("damaged")
    assert entry_names(catalog({"a": a}), store) == ["a"]  # to be made again


# Stems of result files


def test_a_stem_is_no_path_and_no_longer_than_file_names_may_be() -> None:
    assert file_stem("monday/cam1\\a", "0123456789") == "monday__cam1__a"
    long = file_stem("動" * 100, "0123456789")
    assert long.endswith("@01234567")
    assert LONGEST_STEM - 3 < len(os.fsencode(long)) - len("@01234567") <= LONGEST_STEM


def test_no_two_videos_of_a_command_have_one_stem() -> None:
    found = catalog({})
    stems = [found.stem("a", sha) for sha in ("0123456789", "0123456789", "0123456789", "", "ff")]
    assert stems == ["a", "a@01234567", "a (2)", "a (3)", "a@ff"]


def test_a_stem_whose_files_are_another_videos_is_not_taken() -> None:
    found = catalog({})
    assert found.stem("a", "0123456789", is_taken={"a"}.__contains__) == "a@01234567"
    assert found.stem("b", "0123456789", is_taken={"a"}.__contains__) == "b"
