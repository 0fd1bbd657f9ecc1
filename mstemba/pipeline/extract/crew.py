"""Workers on the machines of a cluster: how many there are to be, which are up, and how busy."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from mstemba.errors import MstembaError, UsageError
from mstemba.extractors.weights import first_line
from mstemba.pipeline.extract.local_engine import decoders
from mstemba.pipeline.options import RunOptions
from mstemba.pipeline.progress import Event, EventHandler

# Seconds in which the first worker must be up: placed, torch imported, weights loaded.
PATIENCE = 300.0
# Seconds without any worker of one kind after which one of the other kind makes room.
GRACE = 30.0
# Seconds between two looks for workers that have just come up.
_STEP = 0.1


@dataclass(frozen=True)
class Room:
    """How many workers a cluster has room for, and what each of them takes."""

    gpus: int
    """Forward workers with a GPU; 0 when all run on CPUs."""
    forward: int
    decoders: int
    cpus: float
    """Of a worker that runs on a CPU."""

    @classmethod
    def of(cls, resources: Mapping[str, float], options: RunOptions) -> Room:
        """Raises UsageError when there is nothing to compute with, or no device of that name."""
        if options.device not in ("auto", "cpu", "cuda"):
            raise UsageError(
                f"--device {options.device} with --engine ray: expected auto, cpu or cuda"
            )
        cpus, gpus = (int(resources.get(name, 0)) for name in ("CPU", "GPU"))
        if not cpus or (options.device == "cuda" and not gpus):
            raise UsageError(
                f"the Ray cluster has {cpus} CPUs and {gpus} GPUs: decoding takes a CPU, and "
                f"--device cuda a GPU. Add nodes that have them (`ray start --address HOST:PORT`)"
            )
        if options.device == "cpu":
            gpus = 0
        most = cpus if gpus else max(1, cpus - 1)
        count = min(most, options.workers or decoders(cpus, gpus or None))
        # A single CPU is shared by one worker of each kind.
        return cls(gpus, gpus or max(1, cpus - count), count, 1 if gpus else min(1, cpus / 2))

    @property
    def device(self) -> str:
        """Of a forward worker, which sees its own GPU and no other."""
        return "cuda" if self.gpus else "cpu"


@dataclass(eq=False)
class Worker:
    """An actor that is up."""

    actor: Any
    where: str
    load: int = 0


class Crew:
    """The workers of one kind. Lost ones are replaced, where the cluster still has room.

    `hire` makes an actor, and a future of where it is, once it is ready; `fire` ends one. Those
    that wait for room are no trouble: work goes to the ones that are up. `changed` is common to
    all crews of a cluster.
    """

    def __init__(
        self,
        kind: str,
        most: int,
        hire: Callable[[], tuple[Any, Future[str]]],
        fire: Callable[[Any], None],
        on_event: EventHandler,
        changed: threading.Condition,
    ) -> None:
        self._kind, self._most = kind, most
        self._hire, self._fire, self._listen = hire, fire, on_event
        self._changed = changed
        self._starting: list[Any] = []
        # Ray's thread only puts what is ready in here: if it had to wait for the lock, whoever
        # holds that could not call Ray.
        self._ready: queue.SimpleQueue[tuple[Any, Future[str]]] = queue.SimpleQueue()
        self._up: list[Worker] = []
        self._none_since = time.monotonic()
        self._errors: dict[str, BaseException] = {}
        self.rival: Crew | None = None
        """Other workers, which take the same room; some of them leave when there are none here."""

    def grow(self, count: int) -> None:
        """Begin so many workers more."""
        with self._changed:
            for _ in range(count):
                self._begin()

    def shrink(self) -> None:
        """Make room, if this leaves a worker: for one, and do not compete for more."""
        with self._changed:
            if len(self.up) > 1:
                self._fire_all(self._starting)
                worker = min(self._up, key=lambda worker: worker.load)
                self._up.remove(worker)
                self._fire(worker.actor)

    @property
    def up(self) -> list[Worker]:
        """The workers there are now."""
        with self._changed:
            while not self._ready.empty():
                self._welcome(*self._ready.get())
            return list(self._up)

    def free(self) -> Worker | None:
        """The worker with the least to do, to be given back; None when all have enough."""
        with self._changed:
            worker = min(self.up, key=lambda worker: worker.load, default=None)
            if worker is None or worker.load == self._most:
                return None
            worker.load += 1
            return worker

    def take(self) -> Worker:
        """The same, as soon as there is one. Raises MstembaError when there will be none."""
        with self._changed:
            rival = self.rival
            while (worker := self.free()) is None:
                if not self._up and not self._starting:
                    raise self._nobody()
                self._changed.wait(_STEP)
                none_for = 0 if self._up else time.monotonic() - self._none_since
                if none_for > PATIENCE:
                    self._fire_all(self._starting)
                elif none_for > GRACE and rival:
                    rival.shrink()
                    rival = None  # once is enough
            return worker

    def give(self, worker: Worker) -> None:
        """It is done with what it was taken for."""
        with self._changed:
            worker.load -= 1
            self._changed.notify_all()

    def lost(self, worker: Worker, error: BaseException) -> None:
        """Replace a worker that died, and say so."""
        if self.replace(worker):
            self._warn(
                f"lost the {self._kind} on {worker.where} ({type(error).__name__}): going on with "
                f"{len(self.up)}, and with another if the cluster has room"
            )

    def replace(self, worker: Worker) -> bool:
        """End this worker and begin another; False when that was done before."""
        with self._changed:
            if worker not in self._up:
                return False
            self._up.remove(worker)
            self._none_since = time.monotonic()
            self._fire(worker.actor)
            self._begin()
            return True

    def close(self) -> None:
        """End all workers."""
        with self._changed:
            self._fire_all(self._starting)
            self._fire_all([worker.actor for worker in self._up])
            self._up.clear()
            self._changed.notify_all()

    def _begin(self) -> None:
        actor, ready = self._hire()
        self._starting.append(actor)
        ready.add_done_callback(lambda ready: self._ready.put((actor, ready)))

    def _welcome(self, actor: Any, ready: Future[str]) -> None:
        """This actor is up, or has failed."""
        if actor not in self._starting:
            return  # fired
        self._starting.remove(actor)
        error = ready.exception()
        if error is None:
            self._up.append(Worker(actor, ready.result()))
            return
        self._fire(actor)  # it may live on and hold its CPU or GPU
        reason = first_line(own(error))
        if reason not in self._errors:
            self._errors[reason] = own(error)
            self._warn(f"a {self._kind} did not start: {reason}")

    def _fire_all(self, actors: list[Any]) -> None:
        for actor in actors:
            self._fire(actor)
        actors.clear()

    def _nobody(self) -> MstembaError:
        """Why there is no worker at all."""
        for error in self._errors.values():
            if isinstance(error, MstembaError):
                return error
        if self._errors:
            return UsageError(
                f"no {self._kind} could be started on the Ray cluster: {', '.join(self._errors)}. "
                f"Every node needs mstemba[ray], installed as here"
            )
        return no_room(self._kind)

    def _warn(self, message: str) -> None:
        self._listen(Event("extract", message, warning=True))


def no_room(kind: str) -> UsageError:
    """The error for a cluster that is most likely in use by others."""
    return UsageError(
        f"no {kind} of the Ray cluster was ready within {PATIENCE:.0f} s: if `ray status` says "
        f"that all CPUs or GPUs are in use, wait for them or add nodes"
    )


def own(error: BaseException) -> BaseException:
    """What was raised in an actor, if it is an error of mstemba's; else what Ray made of it."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, MstembaError) else error
