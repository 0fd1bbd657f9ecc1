"""How many workers a cluster gets, and what becomes of work when they die; without a cluster."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from mstemba.errors import UsageError
from mstemba.pipeline.extract import crew as crews
from mstemba.pipeline.extract.crew import Crew, Room
from mstemba.pipeline.options import RunOptions
from mstemba.pipeline.progress import Event


class Hiring:
    """Actors that are numbers, each up when the test says so."""

    def __init__(self) -> None:
        self.ready: list[Future[str]] = []
        self.fired: list[int] = []
        self.warnings: list[str] = []
        self.crew = Crew(
            "worker", 2, self.hire, self.fired.append, self.on_event, threading.Condition()
        )

    def hire(self) -> tuple[int, Future[str]]:
        self.ready.append(Future())
        return len(self.ready) - 1, self.ready[-1]

    def on_event(self, event: Event) -> None:
        assert event.warning
        self.warnings.append(event.message)


@pytest.fixture
def hiring() -> Hiring:
    return Hiring()


@pytest.mark.parametrize(
    ("resources", "options", "forward", "decoders", "cpus"),
    [
        ({"CPU": 1.0}, {}, 1, 1, 0.5),
        ({"CPU": 2.0}, {}, 1, 1, 1),
        ({"CPU": 16.0}, {}, 12, 4, 1),
        ({"CPU": 4.0}, {"workers": 99}, 1, 3, 1),
        ({"CPU": 16.0, "GPU": 2.0}, {}, 2, 15, 1),
        ({"CPU": 16.0, "GPU": 2.0}, {"device": "cpu"}, 12, 4, 1),
        ({"CPU": 1.0, "GPU": 8.0}, {}, 8, 1, 1),
    ],
)
def test_a_cluster_gets_no_more_workers_than_it_has_room_for(
    resources: dict[str, float], options: dict[str, Any], forward: int, decoders: int, cpus: float
) -> None:
    room = Room.of(resources, RunOptions(**options))
    assert (room.forward, room.decoders, room.cpus) == (forward, decoders, cpus)
    on_cpus = decoders if room.gpus else forward + decoders
    assert on_cpus * cpus <= resources["CPU"]


@pytest.mark.parametrize(
    ("resources", "device", "reason"),
    [
        ({"GPU": 1.0}, "auto", "has 0 CPUs and 1 GPUs"),
        ({"CPU": 2.0}, "cuda", "has 2 CPUs and 0 GPUs"),
        ({"CPU": 2.0, "GPU": 2.0}, "cuda:1", "--device cuda:1 with --engine ray: expected"),
    ],
)
def test_a_cluster_without_the_device_is_an_error(
    resources: dict[str, float], device: str, reason: str
) -> None:
    with pytest.raises(UsageError, match=reason):
        Room.of(resources, RunOptions(device=device))


def test_work_goes_to_the_worker_with_the_least_to_do(hiring: Hiring) -> None:
    hiring.crew.grow(3)
    hiring.ready[0].set_result("a")
    hiring.ready[1].set_result("b")
    taken = [hiring.crew.take() for _ in range(4)]
    assert sorted(worker.where for worker in taken) == ["a", "a", "b", "b"]
    assert hiring.crew.free() is None
    hiring.ready[2].set_result("late")
    assert hiring.crew.take().where == "late"


def test_a_lost_worker_is_replaced_once(hiring: Hiring) -> None:
    hiring.crew.grow(1)
    hiring.ready[0].set_result("a")
    worker = hiring.crew.take()
    assert hiring.crew.take() is worker
    for _ in range(2):  # both of its batches find it dead
        hiring.crew.lost(worker, RuntimeError())
        hiring.crew.give(worker)
    assert hiring.warnings == [
        "lost the worker on a (RuntimeError): going on with 0, and with another if the cluster has "
        "room"
    ]
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(hiring.crew.take)
        hiring.ready[1].set_result("b")
        assert waiting.result().where == "b"
    hiring.crew.close()
    assert hiring.fired == [0, 1]


def test_when_no_worker_can_start_the_reason_is_given(hiring: Hiring) -> None:
    hiring.crew.grow(2)
    for ready in hiring.ready:
        ready.set_exception(UsageError("no weights here"))
    with pytest.raises(UsageError, match="no weights here"):
        hiring.crew.take()
    assert hiring.warnings == ["a worker did not start: no weights here"]
    assert hiring.fired == [0, 1]


def test_a_full_cluster_is_not_waited_for_for_ever(
    hiring: Hiring, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crews, "PATIENCE", 0.05)
    monkeypatch.setattr(crews, "_STEP", 0.01)
    hiring.crew.grow(2)
    for _ in range(2):
        with pytest.raises(UsageError, match="no worker of the Ray cluster was ready"):
            hiring.crew.take()
    assert hiring.fired == [0, 1]


def test_a_kind_that_is_left_without_workers_gets_the_room_of_one_of_the_others(
    hiring: Hiring, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crews, "GRACE", 0.05)
    monkeypatch.setattr(crews, "_STEP", 0.01)
    rival = Hiring()
    hiring.crew.rival = rival.crew
    hiring.crew.grow(1)
    rival.crew.grow(4)
    for ready in rival.ready[:3]:
        ready.set_result("a")
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(hiring.crew.take)
        while not rival.fired:
            assert not waiting.done()
            time.sleep(0.01)
        hiring.ready[0].set_result("b")
        assert waiting.result().where == "b"
    assert rival.fired == [3, 0]  # the one that waited for room, and one of the three
    for _ in range(4):
        rival.crew.shrink()
    assert len(rival.fired) == 3, "the last one stays"


def test_closing_ends_those_who_wait_and_those_who_come_later(hiring: Hiring) -> None:
    hiring.crew.grow(1)
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(hiring.crew.take)
        hiring.crew.close()
        with pytest.raises(UsageError):
            waiting.result()
    hiring.ready[0].set_result("a")
    assert hiring.crew.free() is None
    assert hiring.fired == [0]
