"""Extraction on a Ray cluster: one actor a GPU, or one for a few CPUs, each with a local engine.

An actor decodes and encodes whole videos; only their feature rows travel to this process, which
alone writes the store. Batches have the sizes that they have on one machine, so that the features
are the same. Ray places the actors and restarts those that die; the videos of a lost actor are
tried again.

Every node needs mstemba, the videos and a `--weights` file under the same paths as here. Published
weights are fetched by each node.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import socket
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from mstemba.errors import MstembaError, UsageError, first_line
from mstemba.extractors.registry import ResolvedBackbone
from mstemba.pipeline import devices
from mstemba.pipeline.caching.keys import file_sha256
from mstemba.pipeline.decode.request import DecodeReport
from mstemba.pipeline.extract.engine import EngineEvent, VideoLost, VideoRequest
from mstemba.pipeline.extract.local_engine import LocalEngine
from mstemba.pipeline.options import RunOptions
from mstemba.pipeline.progress import Event, EventHandler, ignore_events
from mstemba.records import FeatureSpec
from mstemba.wording import counted

try:
    import ray
    from ray.exceptions import RayError, RayTaskError
except ImportError:
    raise UsageError("--engine ray: Ray is not installed: pip install 'mstemba[ray]'") from None

# CPU cores of an actor that runs on CPUs: small enough to fit into what others leave of a node.
_CORES = 4
# Seconds in which the first actor must be ready: placed, torch imported, weights loaded.
_PATIENCE = 300.0
# Seconds that the head of a cluster may take to answer; Ray itself would try for ten minutes.
_CONNECT = 5.0
# Events of one actor that wait for this process.
_EVENTS_AHEAD = 64

_remote: Any = ray.remote  # its types do not know all of its options


class RayEngine:
    """Extraction actors on the nodes of a cluster."""

    def __init__(
        self,
        spec: FeatureSpec,
        backbone: ResolvedBackbone,
        options: RunOptions,
        on_event: EventHandler,
        *,
        videos: int,
    ) -> None:
        """Start the actors, and wait until one of them is ready.

        Raises:
            UsageError: no cluster, no room in it, or weights that a node does not have.
        """
        self._on_event = on_event
        self._events: deque[tuple[str, EngineEvent]] = deque()
        self._actors: list[_Actor] = []
        if backbone.file:
            backbone = replace(backbone, weights=backbone.file)  # nodes have other folders
        with contextlib.ExitStack() as stack:
            stack.enter_context(_connected(options.address))
            stack.callback(self._kill_all)
            for resources in _actor_resources(options)[:videos]:
                chosen = replace(options, device=_device(resources))
                handle = (
                    _remote(ExtractionActor)
                    .options(max_restarts=-1, max_concurrency=2, **resources)
                    .remote(spec, backbone, chosen, resources["num_cpus"])
                )
                self._actors.append(_Actor(handle))
            self._wait_for_room()
            self._stack = stack.pop_all()

    @property
    def room(self) -> int:
        """How many more videos can be started without waiting."""
        return sum(actor.room for actor in self._actors)

    def start(self, id: str, request: VideoRequest) -> None:
        """Begin a video on the actor that has the most room."""
        self._wait_for_room()
        actor = max(self._actors, key=lambda actor: actor.room)
        decode = request.decode
        # Of a node's cores an actor's decoder has one; nodes have other current folders.
        decode = replace(decode, path=decode.path.absolute(), threads=decode.threads or 1)
        actor.videos.add(id)
        actor.handle.start.remote(id, replace(request, decode=decode))

    def cancel(self, id: str) -> None:
        """Give no more events of a video."""
        for actor in self._actors:
            if id in actor.videos:
                actor.videos.discard(id)
                actor.handle.cancel.remote(id)

    def next_event(self) -> tuple[str, EngineEvent]:
        """Wait for the next event of any video under way."""
        while not self._events:
            self._wait(None)
        return self._events.popleft()

    def close(self) -> None:
        """Stop at once, without finishing what is under way."""
        self._stack.close()

    def _wait_for_room(self) -> None:
        """Wait until an actor takes a video. Raises UsageError when none does for too long."""
        while not self.room and not any(actor.videos for actor in self._actors):
            if not self._wait(_PATIENCE):
                raise _no_room()

    def _wait(self, timeout: float | None) -> bool:
        """Take news of one actor; False when there is none within `timeout` seconds."""
        waiting = {actor.reference: actor for actor in self._actors}
        done, _ = ray.wait(list(waiting), timeout=timeout, fetch_local=False)
        for reference in done:
            actor = waiting[reference]
            self._actors.remove(actor)
            try:
                if actor.stream is None:
                    actor.listen(*ray.get(reference))
                else:
                    self._take(actor, *ray.get(next(actor.stream)))
            except (RayError, StopIteration) as error:
                if actor.stream is None:
                    ray.kill(actor.handle)  # it may live on and hold its CPUs or GPU
                    self._give_up(error)
                elif isinstance(error, RayTaskError):
                    self._actors.append(actor)  # for `close`
                    raise _cause(error) from None
                else:
                    self._restart(actor, error)
            else:
                self._actors.append(actor)  # behind the others: each has its turn
        return bool(done)

    def _take(self, actor: _Actor, id: str, event: EngineEvent) -> None:
        if id in actor.videos:  # otherwise it was cancelled
            if isinstance(event, (DecodeReport, MstembaError)):
                actor.videos.discard(id)
            self._events.append((id, event))

    def _give_up(self, error: BaseException) -> None:
        """Do without an actor that could not start."""
        cause = _cause(error)
        reason = str(cause) if isinstance(cause, MstembaError) else first_line(error)
        if self._actors:
            message = f"a worker did not start: {reason}"
            self._on_event(Event("extract", message, warning=True))
            return
        if isinstance(cause, MstembaError):
            raise cause
        raise UsageError(
            f"no worker could be started on the Ray cluster: {reason}. "
            f"Every node needs mstemba[ray], installed as here"
        )

    def _restart(self, actor: _Actor, error: BaseException) -> None:
        """Report the videos of an actor that died as lost; Ray starts it again where it can."""
        name = type(error).__name__
        message = f"lost the worker on {actor.place} ({name}): starting it again if there is room"
        self._on_event(Event("extract", message, warning=True))
        lost = VideoLost(f"its worker on {actor.place} is lost")
        self._events.extend((id, lost) for id in actor.videos)
        # It may only have been out of reach: two engines in one process would mix up videos.
        ray.kill(actor.handle, no_restart=False)
        self._actors.append(_Actor(actor.handle))

    def _kill_all(self) -> None:
        for actor in self._actors:
            ray.kill(actor.handle)


@dataclass(eq=False)
class _Actor:
    """An extraction actor as this process sees it."""

    handle: Any
    capacity: int = 0
    """Videos that it takes at once; 0 until it is ready."""
    place: str = ""
    stream: Any = None
    """Its events, once it is ready."""
    videos: set[str] = field(default_factory=set)
    """Ids of the videos that it is working on."""

    def __post_init__(self) -> None:
        self._ready = self.handle.ready.remote()

    @property
    def reference(self) -> Any:
        """What Ray can wait for: that the actor is ready, then its next event."""
        return self._ready if self.stream is None else self.stream

    @property
    def room(self) -> int:
        return self.capacity - len(self.videos)

    def listen(self, place: str, capacity: int) -> None:
        """Take events from the actor, which is ready."""
        self.place, self.capacity = place, capacity
        events = self.handle.events.options(
            num_returns="streaming", _generator_backpressure_num_objects=_EVENTS_AHEAD
        )
        self.stream = events.remote()


class ExtractionActor:
    """A local engine in an actor: `start` and `cancel` are called while `events` runs."""

    def __init__(
        self, spec: FeatureSpec, backbone: ResolvedBackbone, options: RunOptions, cores: int
    ) -> None:
        self._spec, self._backbone = spec, backbone
        self._options, self._cores = options, cores
        self._requests: queue.SimpleQueue[tuple[str, VideoRequest | None]] = queue.SimpleQueue()

    @ray.method(max_task_retries=-1)
    def ready(self) -> tuple[str, int]:
        """Load the backbone; return where it is and how many videos the engine takes.

        Raises:
            UsageError: the weights are not on this node.
        """
        self._requests = queue.SimpleQueue()  # without what was meant for a lost predecessor
        place = f"{socket.gethostname()} (process {os.getpid()})"
        kind, _, sha = self._backbone.identity.partition(":")
        if kind == "sha256":
            file = Path(self._backbone.weights)
            found = file_sha256(file)[:8] if file.is_file() else "no such file"
            if not sha.startswith(found):
                raise UsageError(
                    f"{file} on {place}: {found}, expected {sha[:8]} (SHA-256): the weights have "
                    f"to be there on every node of the cluster"
                )
        torch.set_num_threads(self._cores)
        self._engine = LocalEngine(
            self._spec, self._backbone, self._options, ignore_events, cores=self._cores
        )
        self._engine.wait_loaded()
        return place, self._engine.room

    def start(self, id: str, request: VideoRequest) -> None:
        """Begin a video."""
        self._requests.put((id, request))

    def cancel(self, id: str) -> None:
        """Give no more events of a video."""
        self._requests.put((id, None))

    def events(self) -> Iterator[tuple[str, EngineEvent]]:
        """Yield the events of all videos, without end."""
        under_way: set[str] = set()
        while True:
            while not under_way or not self._requests.empty():
                id, request = self._requests.get()
                if request is None:
                    self._engine.cancel(id)
                    under_way.discard(id)
                else:
                    self._engine.start(id, request)
                    under_way.add(id)
            id, event = self._engine.next_event()
            if isinstance(event, (DecodeReport, MstembaError)):
                under_way.discard(id)
            yield id, event


def fast_precision(options: RunOptions) -> str:
    """Return the smallest type that the machines which compute have instructions for."""
    if options.address is None and not ray.is_initialized():
        return devices.fast_precision(options.device)  # it will be this machine
    with _connected(options.address):
        resources = _actor_resources(options)[0]
        ask = _remote(**resources)(devices.fast_precision)
        try:
            precision: str = ray.get(ask.remote(_device(resources)), timeout=_PATIENCE)
        except RayTaskError as error:
            raise _cause(error) from None
        except RayError:
            raise _no_room() from None
        return precision


def _actor_resources(options: RunOptions) -> list[dict[str, Any]]:
    """Return what each actor takes: a GPU and its share of the node's CPUs, or a few CPUs.

    Raises:
        UsageError: there is nothing to compute with, or no device of that name.
    """
    if options.device not in ("auto", "cpu", "cuda"):
        raise UsageError(f"--device {options.device} with --engine ray: expected auto, cpu or cuda")
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    counts = [(int(node.get("CPU", 0)), int(node.get("GPU", 0))) for node in nodes]
    cpus, gpus = (sum(count) for count in zip(*counts, strict=True))
    on_gpus = bool(gpus) and options.device != "cpu"
    gpu_nodes = [(cores, here) for cores, here in counts if cores and here]
    if not cpus or (options.device == "cuda" and not gpus) or (on_gpus and not gpu_nodes):
        raise UsageError(
            f"the Ray cluster has {counted(cpus, 'CPU')} and {counted(gpus, 'GPU')}: decoding "
            f"takes a CPU, on the same node as the GPU, and --device cuda a GPU. Add nodes that "
            f"have them (`ray start --address HOST:PORT`)"
        )
    if on_gpus:
        return [
            {"num_gpus": 1, "num_cpus": max(1, cores // here)}
            for cores, here in gpu_nodes
            for _ in range(here)
        ]
    spread = {"num_gpus": 0, "scheduling_strategy": "SPREAD"}
    return [
        {**spread, "num_cpus": min(_CORES, cores - first)}
        for cores, _ in counts
        for first in range(0, cores, _CORES)
    ]


def _device(resources: dict[str, Any]) -> str:
    """Return the device of an actor, which sees its own GPU and no other."""
    return "cuda" if resources["num_gpus"] else "cpu"


@contextlib.contextmanager
def _connected(address: str | None) -> Iterator[None]:
    """Join the cluster that this process is in already, or else the one at `address`.

    Raises:
        UsageError: there is no cluster.
    """
    if ray.is_initialized():
        yield
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody asked for it
        ray.init("local", num_cpus=devices.cores(), include_dashboard=False, **quiet)
    else:
        _check_listening(address)
        try:
            ray.init(address, **quiet)
        except (OSError, RuntimeError, ValueError) as error:
            raise _no_cluster(address, first_line(error)) from None
    try:
        yield
    finally:
        ray.shutdown()


def _check_listening(address: str) -> None:
    """Raise UsageError when nothing listens at an address."""
    if address.startswith("ray://"):
        raise _no_cluster(address, "Ray's client cannot stream results")
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS", address)
    host, _, port = address.rpartition(":")
    if host:
        try:
            socket.create_connection((host, int(port)), _CONNECT).close()
        except (OSError, ValueError) as error:
            raise _no_cluster(address, str(error)) from None


def _no_cluster(address: str, reason: str) -> UsageError:
    return UsageError(
        f"--address {address}: {reason}. Expected a Ray cluster: run this on one of its nodes with "
        f"--address auto, or give its head as HOST:PORT (`ray start --head` prints it)"
    )


def _no_room() -> UsageError:
    return UsageError(
        f"no worker of the Ray cluster was ready within {_PATIENCE:.0f} s: if `ray status` says "
        f"that all CPUs or GPUs are in use, wait for them or add nodes"
    )


def _cause(error: BaseException) -> BaseException:
    """Return the error of mstemba that was raised in an actor, or what Ray made of another one."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, MstembaError) else error
