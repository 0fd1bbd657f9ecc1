"""Cache keys: pinned, moved by every option that changes a number and by nothing else."""

from __future__ import annotations

import errno
import json
import os
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from mstemba.errors import MstembaWarning, UsageError
from mstemba.extractors import registry
from mstemba.pipeline.caching import files, keys
from mstemba.pipeline.caching.keys import Fingerprints, cache_key, entry_key, file_sha256, spec_key
from mstemba.pipeline.checkpoint import open_checkpoint
from mstemba.pipeline.dataset import labels
from mstemba.pipeline.detect.detector import TrainedDetector
from mstemba.pipeline.detect.zero_shot import zero_shot_detector
from mstemba.pipeline.features.spec import make_spec, store_name
from mstemba.pipeline.options import (
    ExportOptions,
    FeatureOptions,
    RunOptions,
    TrainOptions,
    TrainRunOptions,
    ZeroShotOptions,
    help_of,
)
from mstemba.pipeline.train.stage import TrainResult
from mstemba.records import FeatureSpec
from tests.training import fit, make_workspace

SPEC = FeatureSpec(
    backbone="clip",
    model="ViT-L-14",
    weights="tag:openai",
    width=768,
    input_size=224,
    short_side=224,
    window=16,
    stride=16,
    frame_step=1,
    precision="float32",
    dtype="float32",
    decoder="auto",
    resize="bicubic-in-decoder",
)
BASE = {"arch": "linear"}
VIDEO = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

# A changed key throws away every user's cache. When that is meant, raise the stage's version in
# `keys.VERSIONS`, or the backbone's in `keys.BACKBONE_VERSIONS`, and pin the new digests here.
PINNED_STORE = "8966c6b95f13ba3603b1a5cf4e4bc19ff087a5a2516ea6f3e4fdfcce81639a24"
PINNED_ENTRY = "58bd61cfbfc4ce629bbefc2daa36e942a42794608b351f347aba2edad9d34e22"
PINNED_OTHER_STORE = "d8b3eff8d23f1c753b087958d003614731a5c3cdd222ac71d4310f8637f8fe5d"
PINNED_DETECT = "b9bff3114e29297ee4de1dffbc7846e2d35afc86b95cf411c3351f78c2992964"
PINNED_TRAIN = "5f5af538bf6edf0cb7d11031e527127325ebc3f5a227f02080cdad55001c188c"


def test_the_key_of_a_store_is_pinned() -> None:
    assert spec_key(SPEC) == PINNED_STORE
    assert store_name(SPEC) == f"clip-w16s16-{PINNED_STORE[:8]}.zarr"
    # A backbone without a version of its own.
    name, weights = "efficientnet-lite0", f"sha256:{64 * '0'}"
    other = replace(SPEC, backbone=name, model=name, weights=weights, width=1280)
    assert spec_key(other) == PINNED_OTHER_STORE


def test_the_key_of_a_videos_features_is_pinned() -> None:
    assert entry_key(SPEC, VIDEO) == PINNED_ENTRY


def test_the_key_of_a_videos_scores_is_pinned() -> None:
    detector = zero_shot_detector(
        ["opening a door", "drinking"], None, None, Path("none"), RunOptions(), Fingerprints()
    )
    features = entry_key(SPEC, VIDEO)
    assert cache_key("detect", **detector.key_parts(), features=features) == PINNED_DETECT


def test_published_features_keep_the_specification_that_checkpoints_on_disk_have() -> None:
    spec = FeatureSpec.unknown(1024)
    assert spec_key(spec) == "2fe0bd235771e6001c28413777fa0f46f31a2c496d880bb6030e1dbb28b19878"
    assert FeatureSpec.from_dict(spec.as_dict()) == spec
    assert not spec.is_known


@pytest.mark.parametrize("name", ["backbone", "model", "weights", "decoder"])
def test_a_backbone_called_published_is_known(name: str) -> None:
    assert replace(SPEC, **{name: "published"}).is_known


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """A finished run with the options of `again`."""
    return fit(make_workspace(tmp_path_factory.mktemp("trained")), **BASE)


def again(trained: TrainResult, **changes: Any) -> TrainResult:
    """Train once more into the same folder, with other options."""
    return fit(trained.run.parents[1], output=trained.run, **{**BASE, **changes})


def test_the_key_of_a_training_is_pinned(trained: TrainResult) -> None:
    assert trained.run.name == f"linear-{PINNED_TRAIN[:8]}"
    assert json.loads((trained.run / "done.json").read_text())["key"] == PINNED_TRAIN


def test_the_key_of_a_training_changes_with_the_version_of_its_label_rule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {}
    for rule in ("strict", "overlap"):
        before = fit(make_workspace(tmp_path / rule / "before"), **BASE, labels=rule).run.name
        monkeypatch.setitem(labels.VERSIONS, "overlap", labels.VERSIONS["overlap"] + 1)
        after = fit(make_workspace(tmp_path / rule / "after"), **BASE, labels=rule).run.name
        names[rule] = (before, after)
    assert names["strict"][0] == names["strict"][1] == f"linear-{PINNED_TRAIN[:8]}"
    assert names["overlap"][0] != names["overlap"][1]


def test_the_key_of_scores_tells_the_label_rule_of_their_training(trained: TrainResult) -> None:
    checkpoint = open_checkpoint(trained.run)
    assert checkpoint.labels == "strict"
    strict, overlap = (
        TrainedDetector(replace(checkpoint, labels=rule)) for rule in ("strict", "overlap")
    )
    assert (strict.anchor, overlap.anchor) == (0.0, 0.5)
    # The key that scores have had from the beginning, without a word on the rule.
    assert strict.key_parts() == {"checkpoint": checkpoint.key_parts()}
    assert overlap.key_parts() != strict.key_parts()


def test_a_new_version_of_a_stage_is_a_new_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = spec_key(SPEC)
    monkeypatch.setitem(keys.VERSIONS, "features", keys.VERSIONS["features"] + 1)
    assert spec_key(SPEC) != before


def test_a_new_version_of_a_backbone_is_a_new_key_of_its_features_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = replace(SPEC, backbone="efficientnet-lite0")
    before = [key for spec in (SPEC, other) for key in (spec_key(spec), entry_key(spec, VIDEO))]
    monkeypatch.setitem(keys.BACKBONE_VERSIONS, "clip", keys.BACKBONE_VERSIONS["clip"] + 1)
    after = [key for spec in (SPEC, other) for key in (spec_key(spec), entry_key(spec, VIDEO))]
    assert [a == b for a, b in zip(after, before, strict=True)] == [False, False, True, True]


OTHER_SPEC: dict[str, Any] = {
    "backbone": "efficientnet-lite0",
    "model": "ViT-B-32",
    "weights": "tag:laion2b_s32b_b82k",
    "width": 512,
    "input_size": 336,
    "short_side": 256,
    "window": 8,
    "stride": 8,
    "frame_step": 2,
    "precision": "bfloat16",
    "dtype": "float16",
    "decoder": "av",
    "resize": "bilinear-in-decoder",
    "fps": 30.0,
}


def test_the_table_speaks_of_every_field_of_a_specification() -> None:
    assert set(OTHER_SPEC) == {f.name for f in fields(FeatureSpec)}


@pytest.mark.parametrize("name", OTHER_SPEC)
def test_every_field_of_a_specification_changes_the_key(name: str) -> None:
    other = replace(SPEC, **{name: OTHER_SPEC[name]})
    assert spec_key(other) != spec_key(SPEC)
    assert entry_key(other, VIDEO) != entry_key(SPEC, VIDEO)


def test_another_video_is_another_entry() -> None:
    assert entry_key(SPEC, VIDEO) != entry_key(SPEC, VIDEO.replace("e3", "e4"))
    assert entry_key(SPEC, VIDEO) != spec_key(SPEC)


# For every option: another value, which must change the key.
FEATURES: dict[str, Any] = {
    "backbone": "efficientnet-lite0",
    "model": "ViT-B-32",
    "weights": "laion400m_e32",
    "window": 8,
    "stride": 8,
    "frame_step": 2,
    "precision": "float16",
    "dtype": "float16",
    "decoder": "av",
    "fps": 30.0,
}
TRAIN: dict[str, Any] = {
    "arch": "mstemba-v3",
    "width": 0.5,
    "labels": "overlap",
    "epochs": 7,
    "min_steps": 7,
    "max_steps": 7,
    "batch_size": 7,
    "clip_length": 7,
    "min_crop": 0.25,
    "lr": 0.1,
    "schedule": "released",
    "warmup": 0.25,
    "warmup_lr": 1e-6,
    "min_lr": 1e-6,
    "weight_decay": 0.25,
    "clip_grad": 0.25,
    "ema": 0.25,
    "drop_path": 0.25,
    "dropout": 0.25,
    "prior": 0.25,
    "auxiliary_weight": 0.25,
    "consistency_weight": 0.25,
    "heatmap_weight": 0.25,
    "val_fraction": 0.25,
    "patience": 7,
    "seed": 7,
    "precision": "bf16",
}
# Where and how a training runs: none of it may change the key.
TRAIN_RUN: dict[str, Any] = {"checkpoint_seconds": 7.0, "trackers": "wandb", "device": "cuda"}
TABLES = {FeatureOptions: FEATURES, TrainOptions: TRAIN, TrainRunOptions: TRAIN_RUN}


@pytest.mark.parametrize("kind", TABLES)
def test_the_tables_name_every_option(kind: type) -> None:
    assert set(TABLES[kind]) == {f.name for f in fields(kind)}
    assert all(help_of(kind, name) for name in TABLES[kind])


@pytest.mark.parametrize("name", FEATURES)
def test_every_option_of_features_changes_the_key(name: str) -> None:
    base = FeatureOptions(precision="float32")
    keys = []
    for o in (base, replace(base, **{name: FEATURES[name]})):
        backbone = registry.resolve(o.backbone, o.model, o.weights, file_sha256)
        keys.append(spec_key(make_spec(backbone, o)))
    assert keys[0] != keys[1]


@pytest.mark.parametrize("name", TRAIN)
def test_every_option_of_a_training_changes_the_key(trained: TrainResult, name: str) -> None:
    with pytest.raises(UsageError, match="holds a run with other options"):
        again(trained, **{name: TRAIN[name]})


@pytest.mark.parametrize("name", TRAIN_RUN)
def test_where_a_training_runs_does_not_change_the_key(trained: TrainResult, name: str) -> None:
    assert again(trained, **{name: TRAIN_RUN[name]}).cached


@pytest.mark.parametrize(
    ("kind", "change", "says"),
    [
        (FeatureOptions, {"window": 0}, "window is 0"),
        (FeatureOptions, {"stride": -1}, "stride is -1"),
        (FeatureOptions, {"frame_step": 0}, "frame_step is 0"),
        (RunOptions, {"batch_size": 0}, "batch_size is 0"),
        (FeatureOptions, {"precision": "int8"}, "bfloat16"),
        (FeatureOptions, {"dtype": "float64"}, "float16"),
        (FeatureOptions, {"decoder": "opencv"}, "decord"),
        (TrainOptions, {"epochs": 0}, "epochs is 0"),
        (TrainOptions, {"lr": 0.0}, "lr is 0.0"),
        (TrainOptions, {"lr": float("nan")}, "lr is nan"),
        (TrainOptions, {"dropout": 1.0}, "0 <= dropout < 1"),
        (TrainOptions, {"val_fraction": -0.1}, "val_fraction is -0.1"),
        (TrainOptions, {"arch": "lstm"}, "mstemba-v3"),
        (TrainOptions, {"precision": "fp8"}, "bf16"),
        (TrainOptions, {"schedule": "step"}, "cosine, released"),
        (TrainOptions, {"min_lr": 1e-3}, "min_lr is 0.001, expected 0 to lr"),
        (TrainOptions, {"clip_grad": -1.0}, "clip_grad is -1.0"),
        (TrainOptions, {"patience": -1}, "patience is -1"),
        (TrainRunOptions, {"trackers": "tensorboard,mlflow"}, "'mlflow', expected one of"),
        (ExportOptions, {"threshold": 0.0}, "threshold is 0.0"),
        (ExportOptions, {"threshold": 1.5}, "threshold is 1.5"),
        (ExportOptions, {"threshold": 0.5, "low": 0.6}, "low is 0.6"),
        (ExportOptions, {"min_length": -1.0}, "min_length is -1.0"),
        (ZeroShotOptions, {"stride": 0}, "stride is 0"),
        (ZeroShotOptions, {"smoothing": -1.0}, "smoothing is -1.0"),
        (ZeroShotOptions, {"smoothing": float("inf")}, "smoothing is inf"),
        (ZeroShotOptions, {"contrast": 1.5}, "0 <= contrast <= 1"),
    ],
)
def test_an_option_out_of_range_is_refused_by_name(
    kind: type, change: dict[str, Any], says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        kind(**change)


def test_the_lower_threshold_follows_the_upper_one() -> None:
    assert ExportOptions(threshold=0.5).low_threshold == pytest.approx(0.3)
    assert ExportOptions(threshold=0.5, low=0.0).low_threshold == 0.0


# Fingerprints


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were read to be fingerprinted."""
    seen: list[Path] = []

    def counting(path: Path) -> str:
        seen.append(path)
        return file_sha256(path)

    monkeypatch.setattr(keys, "file_sha256", counting)
    return seen


def test_a_fingerprint_is_of_the_content_and_not_of_the_path(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mkv", "other/a.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"content")
    prints = Fingerprints()
    found = {prints.of(path) for path in tmp_path.rglob("*.m*")}
    assert found == {"ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73"}


def test_a_remembered_file_is_not_read_again(tmp_path: Path, reads: list[Path]) -> None:
    video, cache = tmp_path / "v.mp4", tmp_path / "cache" / "prints.json"
    video.write_bytes(b"content")
    prints = Fingerprints(cache)
    first = prints.of(video)
    assert prints.of(video) == first
    prints.save()
    assert Fingerprints(cache).of(video) == first
    assert len(reads) == 1


def test_changed_content_is_noticed(tmp_path: Path, reads: list[Path]) -> None:
    video, cache = tmp_path / "v.mp4", tmp_path / "prints.json"
    video.write_bytes(b"content")
    prints = Fingerprints(cache)
    first = prints.of(video)
    prints.save()
    video.write_bytes(b"CONTENT")  # the same size
    os.utime(video, ns=(0, video.stat().st_mtime_ns + 1))
    assert Fingerprints(cache).of(video) == file_sha256(video) != first
    video.write_bytes(b"longer content")
    assert Fingerprints(cache).of(video) == file_sha256(video)
    assert len(reads) == 3


def put_in_place(path: Path, content: bytes) -> None:
    """Replace a file by another one with the times of an archive without times."""
    time.sleep(0.05)  # file systems count the change time in steps
    new = path.with_name("new")
    new.write_bytes(content)
    os.utime(new, (0, 0))
    os.replace(new, path)


POSIX = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no change time")


@POSIX
def test_another_file_of_the_same_size_and_modification_time_is_noticed(tmp_path: Path) -> None:
    video, cache = tmp_path / "v.mp4", tmp_path / "prints.json"
    put_in_place(video, b"content")
    prints = Fingerprints(cache)
    first = prints.of(video)
    prints.save()
    put_in_place(video, b"CONTENT")
    assert prints.of(video) == Fingerprints(cache).of(video) == file_sha256(video) != first


TOUCHES: dict[str, Callable[[Path], object]] = {
    "permissions": lambda path: path.chmod(0o600),
    "a link": lambda path: path.with_name("linked").hardlink_to(path),
    "another file of equal content": lambda path: put_in_place(path, b"content"),
}


@POSIX
@pytest.mark.parametrize("touch", TOUCHES)
def test_a_file_whose_content_stays_keeps_its_fingerprint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, touch: str
) -> None:
    """Also if it is touched while it is being read."""
    video = tmp_path / "v.mp4"
    put_in_place(video, b"content")
    prints, sha = Fingerprints(), file_sha256(video)
    assert prints.of(video) == sha
    reads = []

    def touching(path: Path) -> str:
        found = file_sha256(path)
        if not reads:
            time.sleep(0.05)
            TOUCHES[touch](path)
        reads.append(path)
        return found

    monkeypatch.setattr(keys, "file_sha256", touching)
    assert Fingerprints().of(video) == sha
    assert len(reads) == 2
    assert prints.of(video) == prints.of(video) == sha
    assert len(reads) == 3


@POSIX
def test_a_file_that_is_replaced_while_it_is_read_has_no_fingerprint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by one of the same size and modification time."""
    video = tmp_path / "v.mp4"
    put_in_place(video, b"content")

    def replacing(path: Path) -> str:
        sha = file_sha256(path)
        put_in_place(path, b"CONTENT")
        return sha

    monkeypatch.setattr(keys, "file_sha256", replacing)
    with pytest.raises(UsageError, match=r"v\.mp4: changed while it was being read"):
        Fingerprints().of(video)


def test_a_memory_of_earlier_versions_has_no_change_times(
    tmp_path: Path, reads: list[Path]
) -> None:
    video, cache = tmp_path / "v.mp4", tmp_path / "prints.json"
    video.write_bytes(b"content")
    known = (7, video.stat().st_mtime_ns, "0" * 64)
    cache.write_text(json.dumps({str(video.resolve()): known}))
    prints = Fingerprints(cache)
    assert prints.of(video) == file_sha256(video)
    prints.save()
    Fingerprints(cache).of(video)
    assert len(reads) == 1


@pytest.mark.parametrize(
    "damage", ["", "{", "[]", "5", "null", '{"PATH": 5}', '{"PATH": null}', '{"PATH": [1]}', "\xff"]
)
def test_a_damaged_memory_costs_time_and_nothing_else(tmp_path: Path, damage: str) -> None:
    video, cache = tmp_path / "v.mp4", tmp_path / "prints.json"
    video.write_bytes(b"content")
    path = json.dumps(str(video.resolve()))[1:-1]
    cache.write_bytes(damage.replace("PATH", path).encode("latin-1"))
    prints = Fingerprints(cache)
    assert prints.of(video) == file_sha256(video)
    prints.save()
    assert Fingerprints(cache).of(video) == file_sha256(video)


@pytest.mark.parametrize("kind", ["no such file", "a folder", "a named pipe"])
def test_what_is_not_a_file_has_no_fingerprint(tmp_path: Path, kind: str) -> None:
    video = tmp_path / "v.mp4"
    if kind == "a folder":
        video.mkdir()
    elif kind == "a named pipe":
        os.mkfifo(video)
    with pytest.raises(UsageError, match=rf"v\.mp4: .*{kind}"):
        Fingerprints().of(video)


def test_a_file_that_changes_while_it_is_read_has_no_fingerprint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    video = tmp_path / "v.mp4"
    video.write_bytes(b"half")

    def growing(path: Path) -> str:
        sha = file_sha256(path)
        path.write_bytes(b"the whole")
        return sha

    with monkeypatch.context() as patch:
        patch.setattr(keys, "file_sha256", growing)
        prints = Fingerprints()
        with pytest.raises(UsageError, match=r"v\.mp4: changed while it was being read"):
            prints.of(video)
    assert prints.of(video) == file_sha256(video)


def test_a_cache_that_cannot_be_written_is_one_warning(tmp_path: Path) -> None:
    video, cache = tmp_path / "v.mp4", tmp_path / ".cache" / "prints.json"
    video.write_bytes(b"content")
    cache.parent.write_bytes(b"a file in place of the folder")
    prints = Fingerprints(cache)
    assert prints.of(video) == file_sha256(video)
    with pytest.warns(MstembaWarning, match="computed again next time"):
        prints.save()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prints.save()


def test_a_file_whose_name_is_no_text_is_remembered_too(tmp_path: Path, reads: list[Path]) -> None:
    video, cache = tmp_path / os.fsdecode(b"caf\xe9.mp4"), tmp_path / "prints.json"
    try:
        video.write_bytes(b"content")
    except OSError:
        pytest.skip("this file system accepts only UTF-8 names")
    prints = Fingerprints(cache)
    first = prints.of(video)
    prints.save()
    assert Fingerprints(cache).of(video) == first
    assert len(reads) == 1


@pytest.fixture
def playlist(tmp_path: Path) -> Path:
    """A playlist of two pieces, and one that refers to it."""
    for name in ("0.ts", "1.ts"):
        (tmp_path / name).write_bytes(name.encode())
    head = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n"
    (tmp_path / "low.m3u8").write_text(f"{head}0.ts\n1.ts\n")
    (tmp_path / "x.m3u8").write_text("#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\nlow.m3u8\n")
    return tmp_path / "x.m3u8"


def test_the_fingerprint_of_a_playlist_is_that_of_its_pieces(
    playlist: Path, reads: list[Path]
) -> None:
    cache = playlist.parent / "prints.json"
    prints = Fingerprints(cache)
    found = {prints.of(playlist)}
    prints.save()
    again = Fingerprints(cache)
    reads.clear()
    assert {again.of(playlist)} == found
    assert [file.suffix for file in reads] == [".m3u8"] * 2  # no piece is read again
    for name in ("1.ts", "low.m3u8", "x.m3u8"):
        with (playlist.parent / name).open("ab") as file:
            file.write(b"\n")
        found.add(Fingerprints(cache).of(playlist))
    assert len(found) == 4


def test_the_pieces_of_a_linked_playlist_lie_next_to_the_link(
    playlist: Path, tmp_path: Path
) -> None:
    low = tmp_path / "elsewhere" / "low.m3u8"
    low.parent.mkdir()
    low.symlink_to(tmp_path / "low.m3u8")
    with pytest.raises(UsageError, match=r"its piece .*elsewhere/0\.ts: no such file"):
        Fingerprints().of(low)
    for name in ("0.ts", "1.ts"):
        (low.parent / name).write_bytes(name.encode())
    assert Fingerprints().of(low) == Fingerprints().of(tmp_path / "low.m3u8")


def test_a_playlist_without_all_its_pieces_has_no_fingerprint(playlist: Path) -> None:
    prints = Fingerprints()
    prints.of(playlist)
    (playlist.parent / "1.ts").unlink()
    with pytest.raises(UsageError, match=r"its piece .*1\.ts: no such file"):
        prints.of(playlist)


# Writing files


def test_a_write_that_fails_leaves_the_former_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "f.json"
    files.write_json(path, {"a": 1})

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise RuntimeError("disk")

    with pytest.raises(RuntimeError, match="disk"):
        files.write_atomically(path, fail)
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_names_the_file_that_was_wanted(tmp_path: Path) -> None:
    path = tmp_path / "f.json"
    path.mkdir()
    with pytest.raises(IsADirectoryError) as failed:
        files.write_text(path, "text")
    assert (failed.value.filename, failed.value.errno) == (str(path), errno.EISDIR)
    assert list(tmp_path.iterdir()) == [path]

    def full(temporary: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match=r"No space left on device: '.*g\.json'"):
        files.write_atomically(tmp_path / "g.json", full)


def test_a_write_that_fails_for_another_file_names_that_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"video\.mp4"):
        files.write_atomically(tmp_path / "f.html", lambda _: (tmp_path / "video.mp4").read_bytes())


def test_a_write_shows_the_new_content_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "f.npz"
    suffixes = []

    def write(temporary: Path) -> None:
        temporary.write_text("new")
        suffixes.append(temporary.suffix)
        assert not path.exists()

    files.write_atomically(path, write)
    assert path.read_text() == "new"
    assert suffixes == [".npz"]  # some writers choose their format by it
