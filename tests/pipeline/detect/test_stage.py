"""`detect`: what is cached, what fails, and what stops no others."""

from __future__ import annotations

import errno
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

import mstemba
from mstemba.errors import OutOfMemory, UsageError
from mstemba.pipeline.decode import child
from mstemba.pipeline.detect.detector import Score
from mstemba.pipeline.detect.zero_shot import ZeroShotDetector
from mstemba.pipeline.extract.stage import extract
from mstemba.pipeline.features.store import FeatureStore
from mstemba.pipeline.init import init
from mstemba.pipeline.options import ExportOptions, FeatureOptions, RunOptions, ZeroShotOptions
from mstemba.pipeline.outputs import WRITERS, Detection, Writer, html_page
from mstemba.pipeline.progress import Event, EventHandler
from mstemba.pipeline.workspace import create_workspace
from mstemba.records import Features
from tests.pipeline.detect.colours import WORDS, film, found_in, run

pytestmark = pytest.mark.usefixtures("one_thread")

OPTIONS = FeatureOptions(backbone="colours", window=2, stride=2)
HERE = RunOptions(device="cpu")


def damage(scores_file: Path) -> None:
    """Take the dense scores out of a file that still opens."""
    with np.load(scores_file) as data:
        np.savez(scores_file, **{name: data[name] for name in data if name != "probabilities"})


def test_saved_scores_are_read_one_by_one_and_made_again_if_damaged(
    loaded: list[str], tmp_path: Path
) -> None:
    videos = [film(tmp_path / f"{name}.mp4", [(name, 1)]) for name in WORDS]
    out = tmp_path / "out"
    first = run(videos, out, ["red"])
    assert list(first.detections) == ["blue", "green", "red"]
    loaded.clear()

    def damage_the_next_one(event: Event) -> None:
        if event.video == "blue":
            damage(out / "green.scores.npz")

    again = run(videos, out, ["red"], on_event=damage_the_next_one)
    assert again.cached == ["blue", "red"]
    assert loaded == ["text"]  # the features are still there
    assert again.failed == {}
    assert {id: d.segments for id, d in again.detections.items()} == {
        id: d.segments for id, d in first.detections.items()
    }
    assert run(videos, out, ["red"]).cached == ["blue", "green", "red"]


def test_unreadable_scores_are_made_again(loaded: list[str], tmp_path: Path) -> None:
    video, out = film(tmp_path / "v.mp4", [("red", 1)]), tmp_path / "out"
    first = run(video, out, ["red"])
    (out / "v.scores.npz").write_bytes(b"PK damaged")
    again = run(video, out, ["red"])
    assert (again.cached, again.segments) == ([], first.segments)
    assert run(video, out, ["red"]).cached == ["v"]


def test_a_video_that_is_too_large_to_embed_stops_no_others(
    loaded: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, large = film(tmp_path / "a.mp4", [("red", 1)]), film(tmp_path / "b.mp4", [("red", 9)])
    monkeypatch.setattr(html_page, "LARGEST_EMBEDDED", small.stat().st_size)
    options = ExportOptions(formats=("csv", "html"), embed=True)
    result = run([large, small], tmp_path / "out", ["red"], options=options)
    assert list(result.files) == ["a"]
    assert list(result.failed) == ["b"]
    assert "to embed" in result.failed["b"]
    assert not list((tmp_path / "out").glob("b.*"))


def test_a_file_that_cannot_be_written_stops_no_others(loaded: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    videos = [film(tmp_path / f"{name}.mp4", [("red", n)]) for n, name in enumerate("abc", 1)]
    (out / "a.csv").mkdir(parents=True)
    (out / "b.scores.npz").mkdir()
    for cached in ([], ["c"]):
        result = run(videos, out, ["red"], options=ExportOptions(formats=("csv",)))
        assert list(result.files) == list(result.detections) == ["c"]
        assert result.cached == cached
        assert result.failed == {
            "a": f"{out / 'a.csv'}: Is a directory",
            "b": f"{out / 'b.scores.npz'}: Is a directory",
        }


def test_a_full_disk_ends_the_run(
    loaded: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(detection: Detection, path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setitem(WRITERS, "json", Writer("json", full))
    with pytest.raises(OSError, match="No space left"):
        run(film(tmp_path / "a.mp4", [("red", 1)]), tmp_path / "out", ["red"])


def test_a_link_that_leads_nowhere_fails_by_name(loaded: list[str], tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    film(tmp_path / "videos" / "a.mp4", [("red", 1)])
    (tmp_path / "videos" / "gone.mp4").symlink_to("nowhere.mp4")
    result = run(tmp_path / "videos", tmp_path / "out", ["red"])
    assert list(result.files) == ["a"]
    assert list(result.failed) == ["gone"]
    assert "no such file" in result.failed["gone"]


def test_damaged_features_fail_their_video_and_no_other(loaded: list[str], tmp_path: Path) -> None:
    workspace = create_workspace(tmp_path)
    videos = [film(tmp_path / f"{name}.mp4", [(name, 1)]) for name in ("red", "blue")]
    made = extract(videos, OPTIONS, HERE, workspace=workspace)
    store = FeatureStore.open(made.store)
    entry, whole = store.entry("red"), store.read("red")
    assert entry is not None
    writer = store.writer("red", whole.key, entry.decoder)
    values = whole.values.copy()
    values[2] = np.nan
    writer.append(values, whole.grid.starts)
    facts = ("duration", "fps", "source", "warnings", "frames")
    writer.finish(whole.grid.step, decoder=entry.decoder, **{f: getattr(entry, f) for f in facts})
    result = run(videos, tmp_path / "out", ["red"], workspace=workspace)
    assert list(result.detections) == ["blue"]
    assert "features of 'red' are damaged: shard 0: it contains NaN" in result.failed["red"]
    again = run(videos, tmp_path / "out", ["red"], workspace=workspace)
    assert set(again.detections) == {"red", "blue"}
    assert np.array_equal(store.read("red").values, whole.values)


def test_it_must_be_clear_what_detects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "v.mp4").write_bytes(b"never read")
    with pytest.raises(
        UsageError,
        match=r"checkpoint .*run, which has its own classes: pass --labels or --checkpoint",
    ):
        run(tmp_path / "v.mp4", tmp_path, ["sit"], checkpoint=tmp_path / "run")
    with pytest.raises(
        UsageError, match="zero_shot requires labels: pass labels, or omit zero_shot"
    ):
        mstemba.detect(tmp_path / "v.mp4", zero_shot=ZeroShotOptions())
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"pass --checkpoint, .* as in --labels"):
        mstemba.detect("v.mp4")


# Names that a source of features might have


@pytest.mark.parametrize("name", ["imported.mp4", "imported", "published.mp4", "published"])
def test_a_video_with_the_name_of_a_kind_of_features_is_a_video_like_any_other(
    loaded: list[str], tmp_path: Path, name: str
) -> None:
    video, id = tmp_path / name, Path(name).stem

    def show(colour: str) -> None:
        film(tmp_path / "new.mp4", [(colour, 1)]).rename(video)

    show("red")
    workspace = init(video, root=tmp_path / "work").workspace
    assert extract(options=OPTIONS, run_options=HERE, workspace=workspace).made == [id]
    assert extract(options=OPTIONS, run_options=HERE, workspace=workspace).cached == [id]
    assert found_in(run(video, None, ["red"], workspace=workspace)) == [("red", 0.0, 1.0)]
    assert run(video, None, ["red"], workspace=workspace).cached == [id]
    show("blue")
    again = run(video, None, ["red", "blue"], workspace=workspace)
    assert (again.cached, found_in(again)) == ([], [("blue", 0.0, 1.0)])
    show("green")
    changed = extract(options=OPTIONS, run_options=HERE, workspace=workspace)
    assert (changed.made, changed.cached, changed.failed) == ([id], [], {})
    assert found_in(run(video, None, ["green"], workspace=workspace)) == [("green", 0.0, 1.0)]


# Where and how it runs


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGSTOP")
def test_a_decode_timeout_reaches_the_decoder(loaded: list[str], tmp_path: Path) -> None:
    def stop_its_decoders(event: Event) -> None:
        if event.video == "v":
            for process in psutil.Process().children():
                if child.__name__ in " ".join(process.cmdline()):
                    process.suspend()

    result = run(
        film(tmp_path / "v.mp4", [("red", 60)]),
        tmp_path / "out",
        ["red"],
        run_options=RunOptions(device="cpu", decode_timeout=1.0),
        on_event=stop_its_decoders,
    )
    assert list(result.failed) == ["v"]
    assert "the decoder sent nothing for 1 s" in result.failed["v"]


def test_engine_and_address_reach_the_extraction(loaded: list[str], tmp_path: Path) -> None:
    pytest.importorskip("ray")
    video = film(tmp_path / "v.mp4", [("red", 1)])
    options = RunOptions(device="cpu", engine="ray", address="127.0.0.1:1")
    with pytest.raises(UsageError, match=r"127\.0\.0\.1:1"):
        run(video, tmp_path / "out", ["red"], run_options=options)


def test_a_video_for_which_memory_is_too_small_stops_no_others(
    loaded: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = ZeroShotDetector.load

    def load_small(self: ZeroShotDetector, device: str, on_event: EventHandler) -> Score:
        score = load(self, device, on_event)

        def score_short(features: Features) -> NDArray[np.float32]:
            if len(features.values) > 5:
                raise OutOfMemory("cuda does not have enough memory for a video of 10 rows")
            return score(features)

        return score_short

    monkeypatch.setattr(ZeroShotDetector, "load", load_small)
    videos = [film(tmp_path / f"{name}.mp4", [(name, s)]) for name, s in (("red", 1), ("blue", 2))]
    result = run(videos, tmp_path / "out", ["red"])
    assert list(result.detections) == ["red"]
    assert result.failed == {"blue": "cuda does not have enough memory for a video of 10 rows"}


@pytest.mark.gpu
def test_a_gpu_detects_what_the_cpu_does(loaded: list[str], tmp_path: Path) -> None:
    video = film(tmp_path / "v.mp4", [("red", 2), ("blue", 2)])
    found = [
        run(video, tmp_path / device, ["red"], run_options=RunOptions(device=device))
        for device in ("cpu", "cuda")
    ]
    on_cpu, on_gpu = (result.scores.probabilities for result in found)
    np.testing.assert_allclose(on_gpu, on_cpu, rtol=0, atol=0.05)  # bfloat16
    assert found_in(found[0]) == found_in(found[1])
