"""Extraction as a whole: a video's trouble stays its own, and no name takes another's place."""

from __future__ import annotations

import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import mstemba
from mstemba.errors import UsageError
from mstemba.extractors.feature_extractor import FeatureExtractor
from mstemba.pipeline.devices import fast_precision
from mstemba.pipeline.extract.jobs import FAILURES, ExtractResult
from mstemba.pipeline.extract.stage import extract
from mstemba.pipeline.features import store
from mstemba.pipeline.features.store import FeatureStore
from mstemba.pipeline.init import init
from mstemba.pipeline.options import PRECISIONS, FeatureOptions, RunOptions
from mstemba.pipeline.workspace import Workspace
from tests.videos import encode

OPTIONS = FeatureOptions(backbone="efficientnet-lite0", window=4, stride=4)
# Some CPUs take half a second for a picture in bfloat16.
FEW_FRAMES = replace(OPTIONS, frame_step=4)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """Two videos of one name in two folders, in the manifest as `m1/cam` and `m2/cam`."""
    for number, folder in enumerate(("m1", "m2")):
        path = tmp_path / "videos" / folder / "cam.mp4"
        path.parent.mkdir(parents=True)
        encode(path, 8 + 4 * number)
    return init([tmp_path / "videos"], root=tmp_path).workspace


def rows(result: ExtractResult) -> dict[str, int]:
    store = FeatureStore.open(result.store)
    return {id: store.read(id).grid.count for id in result.made}


def test_a_video_given_by_hand_never_takes_the_place_of_another(
    workspace: Workspace, tmp_path: Path
) -> None:
    assert rows(extract(options=OPTIONS, workspace=workspace)) == {"m1/cam": 2, "m2/cam": 3}
    for folder, count in (("x", 16), ("y", 20)):
        (tmp_path / folder).mkdir()
        encode(tmp_path / folder / "cam.mp4", count)
    first = extract(tmp_path / "x" / "cam.mp4", OPTIONS, workspace=workspace)
    second = extract(tmp_path / "y" / "cam.mp4", OPTIONS, workspace=workspace)
    assert first.made == ["cam"]
    assert [id.split("@")[0] for id in second.made] == ["cam"]
    assert second.made != first.made
    again = extract(options=OPTIONS, workspace=workspace)
    assert again.cached == ["m1/cam", "m2/cam"]


def test_a_video_of_the_manifest_has_its_id_also_when_it_is_given_by_hand(
    workspace: Workspace, tmp_path: Path
) -> None:
    extract(options=OPTIONS, workspace=workspace)
    by_hand = extract(tmp_path / "videos" / "m2" / "cam.mp4", OPTIONS, workspace=workspace)
    assert by_hand.cached == ["m2/cam"]


def test_features_that_are_not_finite_fail_their_video_alone(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = FeatureExtractor.__call__
    batches = iter([np.float32(np.inf)])  # the first batch holds frames of the first video only

    def overflowing(self: FeatureExtractor, frames: torch.Tensor) -> NDArray[np.float32]:
        return encode(self, frames) + next(batches, np.float32(0))

    monkeypatch.setattr(FeatureExtractor, "__call__", overflowing)
    result = extract(options=OPTIONS, workspace=workspace)
    assert result.made == ["m2/cam"]
    assert "NaN or infinity at 0.0 s" in result.failed["m1/cam"]
    monkeypatch.undo()
    assert extract(options=OPTIONS, workspace=workspace).made == ["m1/cam"]


def test_a_damaged_list_of_failures_is_none(workspace: Workspace) -> None:
    root = extract(options=OPTIONS, workspace=workspace).store
    (root / FAILURES).write_text("{half")
    assert extract(options=OPTIONS, workspace=workspace).cached == ["m1/cam", "m2/cam"]


def test_the_library_takes_paths_as_text(tmp_path: Path) -> None:
    """The README's way: one video, a run of two steps on it, detections."""
    video = str(encode(tmp_path / "v.mp4", 12))
    labels = {"v": {"subset": "training", "duration": 1.2, "actions": [[0, 0.3, 0.9]]}}
    (tmp_path / "labels.json").write_text(json.dumps(labels))
    made = mstemba.init(video, str(tmp_path / "labels.json"), root=str(tmp_path))
    manifest, store = str(made.workspace.manifest), str(tmp_path / "s.zarr")
    mstemba.extract(video, OPTIONS, store=store)
    run = str(tmp_path / "run")
    options = mstemba.TrainOptions(min_steps=2, epochs=1)
    mstemba.train(options, manifest=manifest, features=store, output=run)
    chosen = mstemba.EvaluateOptions(
        checkpoint=run, manifest=manifest, features=store, subset="training"
    )
    measured = mstemba.evaluate(chosen)
    assert 0 < measured.map <= 100
    found = mstemba.detect(video, checkpoint=run, output=str(tmp_path / "out"))
    assert found.detections["v"].scores.probabilities.shape == (3, 1)
    assert (tmp_path / "out" / "v.json").is_file()
    assert mstemba.load_model(str(tmp_path / "run" / "last")).config.classes == 1


def test_precision_auto_keeps_what_is_there(workspace: Workspace, tmp_path: Path) -> None:
    """Also on a machine that computes another precision fast."""
    for precision in PRECISIONS:
        definite = replace(FEW_FRAMES, precision=precision)
        store = extract(options=definite, workspace=workspace).store
        again = extract(options=FEW_FRAMES, workspace=workspace)
        assert (again.made, again.cached, again.store) == ([], ["m1/cam", "m2/cam"], store)
        shutil.rmtree(store)
        named = tmp_path / f"{precision}.zarr"
        extract(tmp_path / "videos", definite, store=named)
        assert extract(tmp_path / "videos", FEW_FRAMES, store=named).made == []


def test_precision_auto_is_what_the_device_computes_fast(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    for has_bfloat16, precision in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda has=has_bfloat16: has)
        assert fast_precision("cpu") == precision
    store = extract(options=OPTIONS, workspace=workspace).store
    assert FeatureStore.open(store).spec.precision == "float32"


def test_bfloat16_features_are_near_those_in_float32(workspace: Workspace) -> None:
    rows = {}
    for precision in ("float32", "bfloat16"):
        options = replace(FEW_FRAMES, precision=precision)
        store = FeatureStore.open(extract(options=options, workspace=workspace).store)
        rows[precision] = store.read("m1/cam").values
    exact, fast = rows["float32"], rows["bfloat16"]
    assert 0 < np.abs(exact - fast).max() < 0.05 * np.abs(exact).max()


def test_workers_and_batches_change_no_feature_beyond_the_tolerance(
    workspace: Workspace, tmp_path: Path
) -> None:
    options = replace(OPTIONS, precision="float32")
    videos = tmp_path / "videos"
    stores = {
        name: extract(videos, options, run_options, store=tmp_path / name).store
        for name, run_options in {
            "one": RunOptions(workers=1),
            "three": RunOptions(workers=3),
            "large": RunOptions(batch_size=9),
        }.items()
    }
    for id in ("m1/cam", "m2/cam"):
        values = {n: FeatureStore.open(s).read(id).values for n, s in stores.items()}
        assert np.array_equal(values["one"], values["three"])
        scale = np.abs(values["one"]).max()
        assert np.abs(values["one"] - values["large"]).max() <= 1e-5 * scale


def test_a_video_that_ends_with_a_whole_shard_can_be_finished_by_a_rerun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after the last shard and before the marker: there is nothing left to encode."""
    video = encode(tmp_path / "v.mp4", 32)
    monkeypatch.setattr(store, "SHARD_ROWS", 4)
    monkeypatch.setattr(store, "CHUNK_ROWS", 4)
    whole = FeatureStore.open(extract(video, OPTIONS, store=tmp_path / "whole").store).read("v")

    class Killed(BaseException):
        pass

    def die(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(store.EntryWriter, "finish", die)
        with pytest.raises(Killed):
            extract(video, OPTIONS, store=tmp_path / "s")
    again = extract(video, OPTIONS, store=tmp_path / "s")
    assert (again.made, again.frames) == (["v"], 0)
    got = FeatureStore.open(again.store).read("v")
    assert np.array_equal(got.values, whole.values)
    assert np.array_equal(got.grid.starts, whole.grid.starts)


def test_a_program_keeps_its_threads(tmp_path: Path) -> None:
    """Also those that are new: torch remembers the last number set for them."""
    video = encode(tmp_path / "v.mp4", 8)
    torch.set_num_threads(2)
    extract(video, OPTIONS, store=tmp_path / "s")
    seen: list[int] = []
    thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert seen == [2]


def test_videos_and_a_manifest_are_one_too_many(workspace: Workspace, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"videos cannot be combined with --manifest other\.json"):
        extract(tmp_path / "videos", OPTIONS, workspace=workspace, manifest="other.json")
