"""Extraction on a Ray cluster: decoders on its CPUs, forward passes on its GPUs, one writer here.

Decoded frames go from a decoder to a forward pass through Ray's object store; this process sees
references to them, hands those out in batches, and writes the features. Batches have the sizes
that they have on one machine, so that the store is the same.

Every node needs mstemba, the videos and a `--weights` file under the same paths as here. Published
weights are fetched by each node.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import socket
import threading
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from mstemba.errors import DecodeError, MstembaError, UsageError
from mstemba.extractors.registry import ResolvedBackbone
from mstemba.extractors.weights import first_line
from mstemba.extractors.windows import FeatureArray
from mstemba.pipeline import devices
from mstemba.pipeline.caching.keys import file_sha256
from mstemba.pipeline.decode.reader import DecodeReport, DecodeRequest
from mstemba.pipeline.decode.worker import decode_all
from mstemba.pipeline.extract.batches import Batch
from mstemba.pipeline.extract.crew import PATIENCE, Crew, Room, Worker, no_room, own
from mstemba.pipeline.extract.engine import EngineEvent, FramesLost
from mstemba.pipeline.extract.local_engine import LocalEngine, batch_size
from mstemba.pipeline.options import RunOptions
from mstemba.pipeline.progress import EventHandler, ignore_events
from mstemba.records import FeatureSpec, Frames

try:
    import ray
    from ray.exceptions import RayError, RayTaskError
except ImportError:
    raise UsageError("--engine ray: Ray is not installed: pip install 'mstemba[ray]'") from None

K = TypeVar("K")

_remote: Any = ray.remote  # its types do not know all of its options

# Batches that a forward worker has at once: the frames of one are fetched, or copied to the GPU,
# while another is computed.
_IN_FLIGHT = 2
# Objects of one decoder that wait for this process; a block of frames is two, its times the first.
_WAITING = 4
# How often a batch whose worker died goes to another one.
_TRIES = 5
# Seconds that fetching the frames of one batch from other nodes may take.
_FETCH = 120.0
# Seconds between two looks for decoders that have just come up.
_GLANCE = 0.5
# Seconds that the head of a cluster may take to answer; Ray itself would try for ten minutes.
_CONNECT = 5.0


class RemoteFrames(Frames):
    """Frames in Ray's object store: `images` is a reference to them."""

    def __post_init__(self) -> None:
        pass  # the shape was checked where the frames were made


class RayEngine:
    """Decoders and forward passes as Ray actors, one forward actor a GPU.

    Without GPUs each forward actor has one CPU and computes with one thread.
    """

    def __init__(
        self,
        spec: FeatureSpec,
        backbone: ResolvedBackbone,
        options: RunOptions,
        on_event: EventHandler,
    ) -> None:
        with contextlib.ExitStack() as stack:
            stack.enter_context(_connected(options.address))
            room = _room(options)
            self.batch_size = batch_size(
                backbone, options.batch_size, spec.window, on_cpu=not room.gpus
            )
            self.ahead = _IN_FLIGHT * room.forward
            self._pool = stack.enter_context(ThreadPoolExecutor(self.ahead, "batch"))
            if backbone.file:
                backbone = replace(backbone, weights=backbone.file)  # nodes have other folders
            forward = _remote(max_concurrency=_IN_FLIGHT, **_for_forward(room))(ForwardActor)
            decoder = _remote(**_on_cpu(room))(DecodeActor)
            hire = partial(_hire, forward, spec, backbone, replace(options, device=room.device))
            changed = threading.Condition()
            self._forward = Crew("forward worker", _IN_FLIGHT, hire, ray.kill, on_event, changed)
            stack.callback(self._forward.close)
            hire = partial(_hire, decoder, options.decode_timeout)
            self._decoders = Crew("decoder", 1, hire, ray.kill, on_event, changed)
            stack.callback(self._decoders.close)
            if not room.gpus:
                self._forward.rival, self._decoders.rival = self._decoders, self._forward
            # One of each before the others: in a cluster that is half full, neither kind must
            # take all the room there is.
            crews = (self._forward, room.forward), (self._decoders, room.decoders)
            for crew, _ in crews:
                crew.grow(1)
            for crew, count in crews:
                crew.give(crew.take())
                crew.grow(count - 1)
            self._stack = stack.pop_all()

    def decode(
        self, requests: Iterator[tuple[K, DecodeRequest]], videos: int
    ) -> Generator[tuple[K, EngineEvent]]:
        streams: dict[Any, tuple[K, Worker]] = {}
        more = True
        try:
            while True:
                while more and (
                    worker := self._decoders.free() if streams else self._decoders.take()
                ):
                    item = next(requests, None)
                    if item is None:
                        more = False
                        self._decoders.give(worker)
                    else:
                        streams[_stream(worker, item[1])] = item[0], worker
                if not streams:
                    return
                ready, _ = ray.wait(
                    list(streams), timeout=_GLANCE if more else None, fetch_local=False
                )
                for stream in ready:
                    key, worker = streams.pop(stream)
                    event = self._next(stream, worker)
                    if isinstance(event, (DecodeReport, DecodeError, FramesLost)):
                        self._decoders.give(worker)
                    else:
                        streams[stream] = key, worker  # behind the others: each has its turn
                    yield key, event
        finally:
            for _, worker in streams.values():
                self._decoders.replace(worker)  # the only way to stop it

    def _next(self, stream: Any, worker: Worker) -> EngineEvent:
        try:
            event: Any = ray.get(next(stream))
            return RemoteFrames(next(stream), event) if isinstance(event, np.ndarray) else event
        except RayTaskError as error:
            raise own(error) from None
        except (RayError, StopIteration) as error:
            self._decoders.lost(worker, error)
            return FramesLost(f"its decoder on {worker.where} is gone")

    def submit(self, batch: Batch) -> Future[FeatureArray]:
        return self._pool.submit(self._run, replace(batch, owners=[]))  # those stay here

    def _run(self, batch: Batch) -> FeatureArray:
        for _ in range(_TRIES):
            worker = self._forward.take()
            try:
                features: FeatureArray = ray.get(worker.actor.encode.remote(batch))
                return features
            except RayTaskError as error:
                raise own(error) from None
            except RayError as error:
                self._forward.lost(worker, error)
            finally:
                self._forward.give(worker)
        raise MstembaError(
            f"{_TRIES} forward workers died of the same batch, the last one on {worker.where}: "
            f"they may have too little memory; try a smaller --batch-size"
        )

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._stack.close()


def fast_precision(options: RunOptions) -> str:
    """The smallest type that the machines which compute have instructions for."""
    if options.address is None and not ray.is_initialized():
        return devices.fast_precision(options.device)  # it will be this machine
    with _connected(options.address):
        room = _room(options)
        ask = _remote(**_for_forward(room))(devices.fast_precision)
        try:
            precision: str = ray.get(ask.remote(room.device), timeout=PATIENCE)
        except RayTaskError as error:
            raise own(error) from None
        except RayError:
            raise no_room("forward worker") from None
        return precision


class DecodeActor:
    """Decodes one video at a time, by a decoder process that it keeps."""

    def __init__(self, timeout: float) -> None:
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._events = decode_all(iter(self._requests.get, None), 1, timeout)

    def start(self) -> str:
        return _here()

    def decode(self, request: DecodeRequest) -> Iterator[Any]:
        """The video's events; of Frames the times, and then the images."""
        self._requests.put((None, request))
        for _, event in self._events:
            if isinstance(event, Frames):
                yield event.times
                yield event.images
            else:
                yield event
            if isinstance(event, (DecodeReport, DecodeError)):
                return


class ForwardActor:
    """One device's forward passes: a local engine that fetches the frames first."""

    def __init__(self, spec: FeatureSpec, backbone: ResolvedBackbone, options: RunOptions) -> None:
        self._spec, self._backbone, self._options = spec, backbone, options

    def start(self) -> str:
        """Load the backbone. Raises UsageError when its weights are not on this node."""
        backbone = self._backbone
        kind, _, sha = backbone.identity.partition(":")
        if kind == "sha256":
            file = Path(backbone.weights)
            found = file_sha256(file)[:8] if file.is_file() else "no such file"
            if not sha.startswith(found):
                raise UsageError(
                    f"{file} on {_here()}: {found}, expected {sha[:8]} (SHA-256): the weights have "
                    f"to be there on every node of the cluster"
                )
        torch.set_num_threads(1)  # on a CPU, one a worker
        self._engine = LocalEngine(self._spec, backbone, self._options, ignore_events)
        return _here()

    def encode(self, batch: Batch) -> FeatureArray:
        """(samples, R, F) of a batch of references. Raises FramesLost."""
        try:
            blocks = ray.get([piece.block for piece in batch.pieces], timeout=_FETCH)
        except RayError as error:  # whatever it is, the frames are not to be had
            raise FramesLost(f"decoded frames were lost ({type(error).__name__})") from None
        pieces = [
            replace(piece, block=block) for piece, block in zip(batch.pieces, blocks, strict=True)
        ]
        return self._engine.submit(replace(batch, pieces=pieces)).result()


@contextlib.contextmanager
def _connected(address: str | None) -> Iterator[None]:
    """Within a Ray cluster: the one this process is in already, or else the one at `address`.

    Raises UsageError when none is there.
    """
    if ray.is_initialized():
        yield
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody asked for it
        ray.init("local", num_cpus=devices.cores(), include_dashboard=False, **quiet)
    else:
        _knock(address)
        try:
            ray.init(address, **quiet)
        except (OSError, RuntimeError, ValueError) as error:
            raise _no_cluster(address, first_line(error)) from None
    try:
        yield
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Raise UsageError when nobody listens at an address."""
    if address.startswith("ray://"):
        raise _no_cluster(address, "Ray's client cannot stream frames")
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


def _room(options: RunOptions) -> Room:
    return Room.of(ray.cluster_resources(), options)  # type: ignore[no-untyped-call]


def _for_forward(room: Room) -> dict[str, Any]:
    """Resources of a forward worker."""
    return {"num_cpus": 0, "num_gpus": 1} if room.gpus else _on_cpu(room)


def _on_cpu(room: Room) -> dict[str, Any]:
    return {"num_cpus": room.cpus, "scheduling_strategy": "SPREAD"}


def _hire(actor_class: Any, *arguments: Any) -> tuple[Any, Future[str]]:
    actor = actor_class.remote(*arguments)
    return actor, actor.start.remote().future()


def _stream(worker: Worker, request: DecodeRequest) -> Any:
    """Begin a video; gives the generator of references to its events."""
    # Of a node's cores the decoder has one, and its own folder to be in.
    request = replace(request, path=request.path.absolute(), threads=request.threads or 1)
    method = worker.actor.decode.options(
        num_returns="streaming", _generator_backpressure_num_objects=_WAITING
    )
    return method.remote(request)


def _here() -> str:
    return f"{socket.gethostname()} (process {os.getpid()})"
