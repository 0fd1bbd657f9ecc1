"""Features and annotations to labelled clips, and clips to batches."""

from __future__ import annotations

import json
import zlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mstemba.data_manifests.annotations import read_annotations
from mstemba.data_manifests.manifest import Action, Manifest, Video
from mstemba.errors import StoreError, UsageError
from mstemba.pipeline.caching.keys import Fingerprints, entry_key
from mstemba.pipeline.dataset import clips as dataset
from mstemba.pipeline.dataset.annotated import annotated_part
from mstemba.pipeline.dataset.clips import (
    Clip,
    load_clips,
    split_validation,
    with_features,
)
from mstemba.pipeline.dataset.labels import label_matrix
from mstemba.pipeline.features.row_times import even_rows, in_seconds
from mstemba.pipeline.features.sources import StoreFeatures
from mstemba.pipeline.features.store import FeatureStore
from mstemba.pipeline.train.sampling import make_batch, random_crops
from mstemba.records import FeatureSpec, TimeGrid

SPEC = FeatureSpec("b", "m", "tag:w", width=2, input_size=32, short_side=32)
CLASSES = ("sit", "stand", "run")

# Times on a coarse lattice, so that actions often begin and end exactly where a row starts.
lattice = st.integers(-4, 44).map(lambda i: i / 4)
actions = st.lists(st.builds(Action, st.integers(0, 2), lattice, lattice), max_size=6)


@given(actions=actions, steps=st.lists(st.integers(1, 5), min_size=1, max_size=30))
def test_a_row_is_labelled_where_its_start_lies_strictly_inside_the_action(
    actions: list[Action], steps: list[int]
) -> None:
    grid = TimeGrid(np.cumsum(steps) / 4 - 0.25, 1.0)
    naive = np.zeros((grid.count, 3), bool)
    for row, time in enumerate(grid.starts):
        for action in actions:
            if action.start < time < action.end:
                naive[row, action.class_id] = True
    assert np.array_equal(label_matrix(actions, grid, 3), naive)


def test_labels_by_hand() -> None:
    found = label_matrix(
        [Action(0, 1.0, 3.0), Action(1, 0.5, 9.0), Action(2, 3.0, 1.0), Action(2, 2.0, 2.0)],
        TimeGrid.even(0.0, 1.0, 5),
        3,
    )
    assert found.T.tolist() == [
        [False, False, True, False, False],
        [False, True, True, True, True],
        [False] * 5,
    ]


GOLDEN_FILES = {
    "charades": ("charades", "seconds", 157),
    "tsu": ("smarthome", "frames", 51),
    "multithumos": ("multithumos", "seconds", 65),
}


@pytest.mark.parametrize("name", GOLDEN_FILES)
def test_labels_of_the_published_annotations_are_the_authors_own(shared: Path, name: str) -> None:
    golden = json.loads((shared / "golden" / "labels_golden.json").read_text())[name]
    file, unit, classes = GOLDEN_FILES[name]
    manifest, _ = read_annotations(shared / "annotations" / f"{file}.json", time_unit=unit)
    assert len(golden) >= 20
    for pair, expected in golden.items():
        id, rows = pair.rsplit("@", 1)
        video = manifest.videos[id]
        assert video.duration is not None
        # Everything in the file's own unit: the rule is the same for seconds and frames.
        labels = label_matrix(video.actions, even_rows(video.duration, int(rows)), classes)
        counts = {str(c): int(n) for c, n in enumerate(labels.sum(axis=0)) if n}
        assert counts == expected["per_class"], pair
        assert zlib.crc32(np.packbits(labels.astype(np.uint8)).tobytes()) == expected["crc32"], pair


def test_frames_become_seconds_by_the_real_times_of_the_rows() -> None:
    video = Video("v", None, None, None, (Action(1, 50, 100),))
    even = TimeGrid.even(0.0, 0.5, 9)  # 10 frames a row, 20 frames a second
    assert in_seconds(video, "frames", even, 10 * np.arange(10)) == [Action(1, 2.5, 5.0)]
    assert in_seconds(video, "seconds", even, 10 * np.arange(10)) == [Action(1, 50, 100)]
    slowing = TimeGrid(np.array([0.0, 1.0, 3.0, 7.0]), 2.0)
    assert in_seconds(video, "frames", slowing, 25 * np.arange(5)) == [Action(1, 3.0, 9.0)]
    beyond = Video("v", None, None, None, (Action(1, 62.5, 150),))
    assert in_seconds(beyond, "frames", slowing, 25 * np.arange(5)) == [Action(1, 5.0, 13.0)]


# Clips from a store


def make_store(root: Path, rows: dict[str, int], fps: float = 4.0) -> StoreFeatures:
    store = FeatureStore.prepare(root, SPEC)
    for number, (id, count) in enumerate(rows.items()):
        writer = store.writer(id, f"key-{id}", "av")
        values = np.stack([np.full(count, number), np.arange(count)], axis=1).astype(np.float32)
        writer.append(values, np.arange(count) * 1.0)
        writer.finish(1.0, duration=float(count), fps=fps, source="v.mp4")
    return StoreFeatures(store)


def video(id: str, subset: str | None = "training", *acts: Action) -> Video:
    return Video(id, Path(f"{id}.mp4"), subset, None, acts)


def manifest_of(videos: list[Video], unit: str = "seconds") -> Manifest:
    return Manifest("d", CLASSES, unit, {v.id: v for v in videos})


@pytest.mark.parametrize(("unit", "scale"), [("seconds", 1), ("frames", SPEC.stride)])
def test_a_clip_has_the_labels_of_its_rows_in_either_unit(
    tmp_path: Path, unit: str, scale: int
) -> None:
    store = make_store(tmp_path / "s", {"a": 6}, fps=4.0)
    videos = [video("a", "training", Action(2, 1.5 * scale, 4.0 * scale))]
    (clip,) = load_clips(store, manifest_of(videos, unit), videos)
    assert np.flatnonzero(clip.labels[:, 2]).tolist() == [2, 3]
    assert clip.labels.shape == (6, 3)
    assert clip.features.dtype == np.float32
    assert clip.features[:, 1].tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(("unit", "scale"), [("seconds", 1), ("frames", SPEC.stride)])
def test_a_clip_ends_with_the_last_row_that_is_annotated_as_a_whole(
    tmp_path: Path, unit: str, scale: int
) -> None:
    store = make_store(tmp_path / "s", {"a": 6, "b": 6})
    acts = [Action(c, start * scale, end * scale) for c, start, end in ((2, 1, 3.5), (1, 4, 9))]
    half = replace(video("a", "training", *acts), annotated_until=3.9 * scale)
    whole = video("b", "training", *acts)
    clip, other = load_clips(store, manifest_of([half, whole], unit), [half, whole])
    assert clip.grid.starts.tolist() == [0, 1, 2]
    assert clip.features[:, 1].tolist() == [0, 1, 2]
    assert clip.labels.astype(int).tolist() == [[0, 0, 0], [0, 0, 0], [0, 0, 1]]
    assert clip.actions == [Action(2, 1.0, 3.0)]
    assert np.array_equal(clip.labels, other.labels[:3])
    assert (len(other.features), clip.missed) == (6, 0)


@given(
    steps=st.lists(st.integers(1, 5), min_size=1, max_size=30),
    actions=actions,
    until=st.integers(0, 60).map(lambda i: i / 4),
)
def test_the_annotated_part_is_what_ends_in_time(
    steps: list[int], actions: list[Action], until: float
) -> None:
    whole = TimeGrid(np.cumsum(steps) / 4 - 0.25, 1.0)
    rows = [row for row, end in enumerate(whole.ends) if end <= until]
    part = annotated_part(actions, whole, until)
    if not rows:
        assert part is None
        return
    assert part is not None
    kept, grid = part
    assert grid.starts.tolist() == whole.starts[rows].tolist()
    # What labels a row is kept.
    for rule in ("strict", "overlap"):
        labels = label_matrix(kept, grid, 3, rule)
        assert np.array_equal(labels, label_matrix(actions, grid, 3, rule))
    assert all(a.start < grid.ends[-1] and a.end <= grid.ends[-1] for a in kept)


def test_features_past_the_memory_limit_are_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store(tmp_path / "s", {"a": 6, "b": 5})
    videos = [video("a"), video("b")]
    kept = load_clips(store, manifest_of(videos), videos)
    monkeypatch.setattr(dataset, "MEMORY", 6 * 2 * 4)
    small = load_clips(store, manifest_of(videos), videos)
    for one, other in zip(kept, small, strict=True):
        assert np.array_equal(one.features, other.features)
        assert one.features is one.features
        assert other.features is not other.features


def test_missing_features_are_named(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", {"a": 6})
    videos = [video("a"), video("b")]
    found = with_features(store, videos, Fingerprints())
    assert (found.videos, found.missing) == (videos[:1], ["b"])
    with pytest.raises(StoreError, match="'b'"):
        load_clips(store, manifest_of(videos), videos)


def test_features_of_another_file_do_not_count(tmp_path: Path) -> None:
    store = FeatureStore.prepare(tmp_path / "s", SPEC)
    file = tmp_path / "a.mp4"
    file.write_bytes(b"what the features were made of")
    writer = store.writer("a", entry_key(SPEC, Fingerprints().of(file)), "av")
    writer.append(np.zeros((2, SPEC.width), np.float32), np.arange(2.0))
    writer.finish(1.0, duration=2.0, fps=1.0, source="a.mp4")
    source = StoreFeatures(store)
    videos = [Video("a", file, "training", None)]
    found = with_features(source, videos, Fingerprints())
    assert (found.videos, found.missing) == (videos, [])
    file.write_bytes(b"something else")
    found = with_features(source, videos, Fingerprints())
    assert (found.videos, found.missing) == ([], ["a"])
    file.unlink()
    found = with_features(source, videos, Fingerprints())
    assert (found.videos, found.missing) == (videos, [])


# The validation split


def split(videos: list[Video], fraction: float) -> tuple[set[str], set[str]]:
    training, validation = split_validation(manifest_of(videos), videos, fraction)
    return {v.id for v in training}, {v.id for v in validation}


MANY = [video(f"v{i}") for i in range(40)]


def test_the_manifests_own_validation_subset_is_taken() -> None:
    own = [*MANY, video("w", "validation")]
    assert split(own, 0.5) == ({v.id for v in MANY}, {"w"})
    assert split(own, 0.0) == ({v.id for v in MANY}, {"w"})


@given(order=st.permutations(MANY))
def test_the_same_videos_are_held_out_whatever_their_order(order: list[Video]) -> None:
    training, held_out = split(order, 0.25)
    assert (training, held_out) == split(MANY, 0.25)
    assert len(held_out) == 10
    assert training | held_out == {v.id for v in MANY}
    assert not training & held_out


def test_the_held_out_videos_are_pinned() -> None:
    # They must be the same on every machine and in every release: scores are compared over them.
    _, held_out = split(MANY, 0.1)
    assert held_out == {"v0", "v16", "v22", "v30"}


def test_the_order_of_the_manifest_is_kept() -> None:
    training, validation = split_validation(manifest_of(MANY), MANY, 0.25)
    ids = [v.id for v in MANY]
    for part in (training, validation):
        assert [v.id for v in part] == [id for id in ids if id in {v.id for v in part}]


def test_the_test_subset_is_never_used() -> None:
    mixed = [replace(v, subset="testing") if i % 2 else v for i, v in enumerate(MANY)]
    training, held_out = split([*mixed, video("n", None)], 0.25)
    assert training | held_out == {v.id for v in mixed if v.subset == "training"}
    assert held_out


@pytest.mark.parametrize(
    ("count", "fraction"),
    [(1, 0.9), (10, 0.1), (40, 0.0), (3, 0.4), (2, 0.9), (3, 0.8), (10, 0.9), (40, 0.99)],
)
def test_fewer_than_two_to_hold_out_or_to_keep_are_not_split(count: int, fraction: float) -> None:
    assert split(MANY[:count], fraction) == ({v.id for v in MANY[:count]}, set())


def test_no_training_video_says_what_to_do() -> None:
    with pytest.raises(UsageError, match=r"`training` .* `mstemba extract`"):
        split([video("t", "testing"), video("w", "validation")], 0.1)


# Batches


@pytest.fixture
def clips(tmp_path: Path) -> list[Clip]:
    store = make_store(tmp_path / "s", {"a": 6, "b": 50, "c": 1, "d": 17, "e": 9})
    videos = [video(id, "training", Action(1, 2.5, 4.5)) for id in "abcde"]
    return load_clips(store, manifest_of(videos), videos)


def batch(
    clips: list[Clip], step: int, size: int = 2, length: int = 8, crop: float = 0.5, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    made = make_batch(random_crops(clips, step, size, length, crop, seed))
    return made.features, made.labels, made.mask


def test_a_batch_follows_from_seed_and_step_alone(clips: list[Clip]) -> None:
    first = [batch(clips, step) for step in range(12)]
    np.random.seed(7)
    again = {step: batch(clips, step) for step in reversed(range(12))}
    for step, one in enumerate(first):
        for a, b in zip(one, again[step], strict=True):
            assert np.array_equal(a, b)
    other = [batch(clips, step, seed=1)[0] for step in range(12)]
    assert any(not np.array_equal(a[0], b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_every_epoch_visits_every_clip_once(clips: list[Clip], size: int) -> None:
    visited: list[int] = []
    for step in range(5 * 4):
        features, _, mask = batch(clips, step, size)
        assert len(features) == size
        assert mask[:, 0].all()
        visited += features[:, 0, 0].astype(int).tolist()
    epochs = [visited[i : i + 5] for i in range(0, len(visited) - 4, 5)]
    assert all(Counter(epoch) == Counter(range(5)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


@pytest.mark.parametrize("crop", [0.0, 0.5, 1.0])
def test_crops_are_consecutive_rows_with_their_labels_and_padding_is_masked(
    clips: list[Clip], crop: float
) -> None:
    lengths = set()
    for step in range(40):
        features, labels, mask = batch(clips, step, size=3, crop=crop)
        assert (features.dtype, labels.dtype, mask.dtype) == (np.float32, np.float32, np.bool_)
        assert features.shape[:2] == labels.shape[:2] == mask.shape
        assert mask.any(axis=0).all()  # no longer than its longest crop
        for values, truth, real in zip(features, labels, mask, strict=True):
            count = int(real.sum())
            assert real[:count].all()
            assert not values[count:].any()
            assert not truth[count:].any()
            clip = clips[int(values[0, 0])]
            begin = int(values[0, 1])
            most = min(8, len(clip.labels))
            assert max(1, round(crop * most)) <= count <= most
            assert np.array_equal(values[:count], clip.features[begin : begin + count])
            assert np.array_equal(truth[:count], clip.labels[begin : begin + count])
            lengths.add(count)
    assert lengths == ({8, 6, 1} if crop == 1.0 else lengths)
    assert len(lengths) >= 3


def test_crops_reach_every_row_of_a_long_clip(clips: list[Clip]) -> None:
    seen: set[int] = set()
    for step in range(300):
        features, _, mask = batch(clips[1:2], step, size=1)
        seen |= set(features[0, mask[0], 1].astype(int).tolist())
    assert seen == set(range(50))
