"""The main loop of an extraction, with an engine whose events are written here."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from mstemba.errors import DecodeError, MstembaError
from mstemba.extractors.backbone_spec import BackboneSpec
from mstemba.pipeline.caching.keys import Fingerprints, entry_key, file_sha256
from mstemba.pipeline.caching.locks import StoreLocks
from mstemba.pipeline.decode.request import DecodeReport, Opened, Restart
from mstemba.pipeline.extract.engine import EngineEvent, FeatureRows, VideoLost, VideoRequest
from mstemba.pipeline.extract.jobs import ExtractResult, Job
from mstemba.pipeline.extract.runner import ExtractionRunner
from mstemba.pipeline.features.store import FeatureStore
from mstemba.pipeline.progress import Event, EventHandler, ignore_events
from mstemba.records import FeatureSpec

BACKBONE = BackboneSpec(4, 8, 8, "image", cpu_batch=1, gpu_batch=1)
SPEC = FeatureSpec("b", "m", "tag:w", width=4, input_size=8, short_side=8, window=1, stride=1)
OPENED, REPORT = Opened(2.0, "av"), DecodeReport("av", 2, 1.0, 2.0)


def rows(*values: float, start: float = 0.0) -> FeatureRows:
    """Rows of equal numbers, a second apart."""
    table = np.repeat(np.array(values, np.float32)[:, None], 4, axis=1)
    return FeatureRows(table, start + np.arange(len(values)), len(values), start + len(values) - 1)


class ScriptedEngine:
    """Gives each video the events of its first script, then those of the next, and so on."""

    def __init__(self, room: int = 2, **scripts: Sequence[Sequence[EngineEvent]]) -> None:
        self._capacity = room
        self._scripts = {id: deque(script) for id, script in scripts.items()}
        self._events: dict[str, deque[EngineEvent]] = {}
        self.requests: list[tuple[str, VideoRequest]] = []
        self.cancelled: list[str] = []
        self.most = 0

    @property
    def room(self) -> int:
        return self._capacity - len(self._events)

    def start(self, id: str, request: VideoRequest) -> None:
        self.requests.append((id, request))
        self._events[id] = deque(self._scripts[id].popleft())
        self.most = max(self.most, len(self._events))

    def cancel(self, id: str) -> None:
        self.cancelled.append(id)
        self._events.pop(id, None)

    def next_event(self) -> tuple[str, EngineEvent]:
        id = next(iter(self._events))
        event = self._events[id].popleft()
        if self._events[id]:
            self._events[id] = self._events.pop(id)  # the videos take turns
        else:
            del self._events[id]
        return id, event

    def close(self) -> None:
        raise AssertionError("whoever started the engine closes it")


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore.prepare(tmp_path / "s.zarr", SPEC)


def job(store: FeatureStore, id: str) -> Job:
    path = store.root.parent / f"{id}.mp4"
    path.write_bytes(id.encode())
    sha = file_sha256(path)
    return Job(id, path, sha, entry_key(SPEC, sha))


def run(
    store: FeatureStore,
    engine: ScriptedEngine,
    *ids: str,
    also: EventHandler = ignore_events,
) -> tuple[ExtractResult, list[Event]]:
    events: list[Event] = []

    def on_event(event: Event) -> None:
        events.append(event)
        also(event)

    result = ExtractResult(store.root)
    runner = ExtractionRunner(store, BACKBONE, engine, Fingerprints(), on_event, result)
    runner.run([job(store, id) for id in ids])
    return result, events


def test_no_more_videos_are_claimed_than_the_engine_has_room_for(store: FeatureStore) -> None:
    script = [[OPENED, rows(1.0, 2.0), REPORT]]
    engine = ScriptedEngine(room=2, a=script, b=script, c=script, d=script)
    result, _ = run(store, engine, "a", "b", "c", "d")
    assert sorted(result.made) == ["a", "b", "c", "d"]
    assert engine.most == 2
    assert result.frames == 8
    assert store.read("c").values[:, 0].tolist() == [1.0, 2.0]


def test_a_restart_forgets_the_rows_before_it(store: FeatureStore) -> None:
    events = [OPENED, rows(1.0), Restart("decord"), rows(7.0, 8.0), REPORT]
    result, _ = run(store, ScriptedEngine(a=[events]), "a")
    assert result.made == ["a"]
    assert store.read("a").values[:, 0].tolist() == [7.0, 8.0]


def test_a_lost_video_is_tried_again_and_the_others_go_on(store: FeatureStore) -> None:
    lost = VideoLost("its worker on a node is lost")
    good = [OPENED, rows(1.0, 2.0), REPORT]
    engine = ScriptedEngine(a=[[OPENED, rows(1.0), lost], [lost], good], b=[good])
    result, events = run(store, engine, "a", "b")
    assert sorted(result.made) == ["a", "b"]
    assert store.read("a").values[:, 0].tolist() == [1.0, 2.0]
    said = [event.message for event in events if event.warning]
    assert said == ["a: its worker on a node is lost; trying it again"] * 2


def test_a_video_that_is_lost_again_and_again_fails(store: FeatureStore) -> None:
    lost = VideoLost("its worker is lost")
    result, _ = run(store, ScriptedEngine(a=[[lost]] * 6), "a")
    assert result.failed == {"a": "a: given up after 5 tries: its worker is lost"}


def test_a_video_that_kills_its_workers_takes_no_others_along(store: FeatureStore) -> None:
    class OneWorker(ScriptedEngine):
        """Loses all videos under way when k is lost."""

        def next_event(self) -> tuple[str, EngineEvent]:
            id, event = super().next_event()
            if isinstance(event, VideoLost):
                self._events = {other: deque([event]) for other in self._events}
            return id, event

    lost, good = VideoLost("its worker is lost"), [OPENED, rows(1.0, 2.0), REPORT]
    long = [OPENED, *[rows(1.0, start=float(i)) for i in range(20)], REPORT]
    engine = OneWorker(room=3, k=[[lost]] * 6, a=[long, long, good], b=[long, long, good])
    result, _ = run(store, engine, "k", "a", "b")
    assert sorted(result.made) == ["a", "b"]
    assert list(result.failed) == ["k"]


def test_a_failure_is_one_videos_and_its_events_are_not_waited_for(store: FeatureStore) -> None:
    engine = ScriptedEngine(
        a=[[OPENED, rows(1.0, float("nan")), REPORT]],
        b=[[DecodeError("b.mp4: damaged")]],
        c=[[OPENED, rows(3.0, 4.0), REPORT]],
    )
    result, _ = run(store, engine, "a", "b", "c")
    assert result.made == ["c"]
    assert "NaN or infinity at 1.0 s" in result.failed["a"]
    assert result.failed["b"] == "b.mp4: damaged"
    assert engine.cancelled == ["a"]
    assert store.entry("a") is None


def test_an_error_of_the_engine_itself_ends_the_run_and_releases_the_locks(
    store: FeatureStore, tmp_path: Path
) -> None:
    class Broken(ScriptedEngine):
        def next_event(self) -> tuple[str, EngineEvent]:
            raise MstembaError("no such weights")

    with pytest.raises(MstembaError, match="no such weights"):
        run(store, Broken(a=[[OPENED]], b=[[OPENED]]), "a", "b")
    assert not list(tmp_path.glob(".*"))


def test_a_video_that_is_finished_meanwhile_is_not_started(store: FeatureStore) -> None:
    good = [OPENED, rows(1.0, 2.0), REPORT]
    run(store, ScriptedEngine(a=[good]), "a")
    engine = ScriptedEngine(b=[good])
    result, events = run(store, engine, "a", "b")
    assert (result.cached, result.made) == (["a"], ["b"])
    assert [id for id, _ in engine.requests] == ["b"]
    assert [event.share for event in events if event.total][-1] == 1.0


def test_videos_that_another_process_has_come_last(store: FeatureStore) -> None:
    lock = StoreLocks(store.root, "importing").acquire("a")
    assert lock is not None
    good = [OPENED, rows(1.0, 2.0), REPORT]

    def release(event: Event) -> None:
        """The other process is done once it is waited for."""
        if event.message.startswith("waiting"):
            lock.release()

    result, events = run(store, ScriptedEngine(a=[good], b=[good]), "a", "b", also=release)
    assert result.made == ["b", "a"]
    assert f"waiting for process {os.getpid()}, which is importing a" in [e.message for e in events]
