"""Videos that vanish or change while they are extracted: a failure of theirs, and of no other."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mstemba.data_manifests.manifest import Manifest, Video, manifest_json
from mstemba.pipeline.caching.keys import entry_key, file_sha256
from mstemba.pipeline.extract.stage import extract
from mstemba.pipeline.features.store import FeatureStore
from mstemba.pipeline.options import FeatureOptions
from mstemba.pipeline.progress import Event
from tests.videos import encode

OPTIONS = FeatureOptions(backbone="efficientnet-lite0", window=4, stride=4, frame_step=4)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    for number, name in enumerate("ab"):
        (tmp_path / "videos").mkdir(exist_ok=True)
        encode(tmp_path / "videos" / f"{name}.mp4", 16 + 16 * number)
    return tmp_path / "videos"


def once(act: Callable[[], object], when: str) -> Callable[[Event], None]:
    """Return what acts at the first message that contains a text."""
    left = [act]

    def on_event(event: Event) -> None:
        if when in event.message and left:
            left.pop()()

    return on_event


def replaced_by(make: Callable[[Path], object]) -> Callable[[Path], object]:
    def change(path: Path) -> None:
        path.unlink()
        make(path)

    return change


@pytest.mark.parametrize(
    ("happens", "says"),
    [
        pytest.param(Path.unlink, "no such file", id="vanishes"),
        pytest.param(replaced_by(Path.mkdir), "found a folder", id="folder"),
        pytest.param(replaced_by(os.mkfifo), "found a named pipe", id="pipe"),
        pytest.param(
            replaced_by(lambda path: path.symlink_to(path)), "cannot be read", id="circle"
        ),
    ],
)
def test_a_video_that_vanishes_before_its_turn_fails_alone(
    videos: Path, tmp_path: Path, happens: Callable[[Path], object], says: str
) -> None:
    on_event = once(lambda: happens(videos / "a.mp4"), when="loading")
    result = extract(videos, OPTIONS, store=tmp_path / "s", on_event=on_event)
    assert result.made == ["b"]
    assert list(result.failed) == ["a"]
    assert "a.mp4: " in result.failed["a"]
    assert says in result.failed["a"]


def test_a_pipe_among_the_videos_is_not_waited_for(videos: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.json"
    listed = {id: Video(id, videos / f"{id}.mp4", None, None) for id in ("a", "pipe", "b")}
    manifest.write_text(manifest_json(Manifest("d", (), "seconds", listed), tmp_path))
    os.mkfifo(videos / "pipe.mp4")
    result = extract(options=OPTIONS, manifest=manifest, store=tmp_path / "s")
    assert sorted(result.made) == ["a", "b"]
    assert "found a named pipe, expected a file" in result.failed["pipe"]


@pytest.mark.parametrize("moment", ["loading", "a done"])
def test_a_video_that_is_replaced_while_it_is_extracted_is_not_cached(
    videos: Path, tmp_path: Path, moment: str
) -> None:
    """Neither the new content under the key of the old one, nor the reverse."""
    shutil.copy(videos / "b.mp4", tmp_path / "old.mp4")
    whole = FeatureStore.open(extract(videos, OPTIONS, store=tmp_path / "whole").store)
    new = encode(tmp_path / "new.mp4", 24)
    # Sizes in the order of extraction: "a" is finished while "b" is not.
    on_event = once(lambda: shutil.copy(new, videos / "b.mp4"), when=moment)
    result = extract(videos, OPTIONS, store=tmp_path / "s", on_event=on_event)
    assert result.made == ["a"]
    assert "b.mp4: changed while it was being extracted; run again" in result.failed["b"]
    store = FeatureStore.open(result.store)
    assert store.entry("b") is None

    shutil.copy(tmp_path / "old.mp4", videos / "b.mp4")
    again = extract(videos, OPTIONS, store=tmp_path / "s")
    assert (again.made, again.cached) == (["b"], ["a"])
    assert np.array_equal(store.read("b").values, whole.read("b").values)
    assert store.read("b").key == entry_key(store.spec, file_sha256(tmp_path / "old.mp4"))


def test_a_video_that_is_touched_while_it_is_extracted_is_cached(
    videos: Path, tmp_path: Path
) -> None:
    on_event = once(lambda: os.utime(videos / "b.mp4", (0, 0)), when="loading")
    result = extract(videos, OPTIONS, store=tmp_path / "s", on_event=on_event)
    assert sorted(result.made) == ["a", "b"]


def test_a_lost_shard_is_extracted_again(videos: Path, tmp_path: Path) -> None:
    first = extract(videos, OPTIONS, store=tmp_path / "s")
    store = FeatureStore.open(first.store)
    expected = store.read("a").values
    (store.root / "a" / "c" / "0" / "0").unlink()
    said: list[str] = []
    again = extract(
        videos, OPTIONS, store=tmp_path / "s", on_event=lambda event: said.append(event.message)
    )
    assert (again.made, again.cached) == (["a"], ["b"])
    assert said[0] == "a: its features are damaged (shard 0 is missing); making them again"
    assert np.array_equal(store.read("a").values, expected)
