"""Decoding in processes of its own: order, bounds, what becomes of a decoder that dies or hangs."""

from __future__ import annotations

import contextlib
import gc
import io
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mstemba.errors import DecodeError
from mstemba.pipeline.decode import worker
from mstemba.pipeline.decode.child import FilledBlock
from mstemba.pipeline.decode.request import DecodeReport, DecodeRequest, Opened, Restart, Resume
from mstemba.pipeline.decode.worker import DecodePool
from mstemba.records import Frames
from tests.pipeline.decode.test_reader import DECODERS, SIZE, gather, needs_decord, run
from tests.videos import encode

Children = list[subprocess.Popen[bytes]]
needs_signals = pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGSTOP")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 frames at 10 fps, 160x120."""
    return encode(tmp_path_factory.mktemp("v") / "clip.mp4", 40)


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More frames than three small batches, so that the decoder is at work for as long as nobody
    takes them."""
    return encode(tmp_path_factory.mktemp("v") / "long.mp4", 900)


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> Children:
    """The decoder processes that were started."""
    started: Children = []
    popen = subprocess.Popen

    def recording(*args: Any, **kwargs: Any) -> subprocess.Popen[bytes]:
        started.append(popen(*args, **kwargs))
        return started[-1]

    monkeypatch.setattr(worker.subprocess, "Popen", recording)
    return started


def is_end(event: Any) -> bool:
    return isinstance(event, (DecodeError, DecodeReport))


def decode_all(
    requests: Sequence[DecodeRequest], workers: int = 1, timeout: float = 60.0
) -> Iterator[tuple[int, Any]]:
    """All events of a pool that is kept full: (index of the request, event)."""
    waiting = deque(enumerate(requests))
    with DecodePool[int](workers, timeout) as pool:
        unfinished = 0
        while unfinished or waiting:
            while waiting and pool.room:
                pool.submit(*waiting.popleft())
                unfinished += 1
            key, event = pool.next_event()
            unfinished -= is_end(event)
            yield key, event


def by_video(events: Iterator[tuple[int, Any]], count: int) -> list[list[Any]]:
    found: list[list[Any]] = [[] for _ in range(count)]
    for index, event in events:
        found[index].append(event)
    return found


# Order and bounds


@pytest.mark.parametrize("workers", [1, 3])
def test_many_videos_go_through_few_processes_in_order(
    clip: Path, tmp_path: Path, children: Children, workers: int
) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    paths = [clip, tmp_path / "bad.mp4", tmp_path / "none.mp4", clip, clip]
    found = by_video(decode_all([DecodeRequest(p, SIZE) for p in paths], workers), 5)
    assert len(children) <= workers
    here = run(clip)
    for index in (0, 3, 4):
        there = gather(iter(found[index]))
        assert np.array_equal(there.images, here.images)
        assert there.report == here.report
        batches = [event for event in found[index] if isinstance(event, Frames)]
        assert all(batch.images.flags.writeable for batch in batches), "torch warns otherwise"
    for index, says in ((1, "not a readable video"), (2, "no such file")):
        assert len([e for e in found[index] if isinstance(e, (DecodeError, DecodeReport))]) == 1
        error = found[index][-1]
        assert isinstance(error, DecodeError)
        assert says in str(error)
    assert all(child.returncode is not None for child in children)


def test_a_pool_without_a_video_starts_nothing(children: Children) -> None:
    with DecodePool[int](3) as pool, pytest.raises(ValueError, match="no video is being decoded"):
        pool.next_event()
    assert children == []


def test_a_pool_takes_one_video_more_than_it_has_processes(
    long: Path, clip: Path, children: Children
) -> None:
    with DecodePool[int](2) as pool:
        assert pool.room == 3
        for index in range(3):
            pool.submit(index, DecodeRequest(long if index < 2 else clip, SIZE, batch_size=8))
        assert pool.room == 0
        with pytest.raises(ValueError, match=r"clip\.mp4: the decoders have no room"):
            pool.submit(3, DecodeRequest(clip, SIZE))
        first = [pool.next_event() for _ in range(10)]
        time.sleep(0.3)
        assert {key for key, _ in first} <= {0, 1}, "both are held back in their first video"
        assert pool.room == 0
        ended: list[int] = []
        while len(ended) < 6:
            key, event = pool.next_event()
            if is_end(event):
                ended.append(key)
                assert pool.room == max(1, len(ended) - 3)
                if len(ended) < 4:
                    pool.submit(2 + len(ended), DecodeRequest(clip, SIZE, batch_size=8))
        assert sorted(ended) == list(range(6))
        assert pool.room == 3
    assert len(children) == 2


def test_several_videos_are_decoded_at_the_same_time(long: Path) -> None:
    # Several: on a busy machine the second process may start when the first video is done.
    requests = [DecodeRequest(long, SIZE, batch_size=8)] * 6
    order = [index for index, _ in decode_all(requests, workers=2)]
    assert order != sorted(order)


def test_only_a_few_batches_wait_for_a_slow_consumer(long: Path) -> None:
    with DecodePool[int]() as pool:
        pool.submit(0, DecodeRequest(long, SIZE, batch_size=2))
        held = []
        while len(held) < 20:  # nothing is written over frames that somebody has
            event = pool.next_event()[1]
            held += [event] if isinstance(event, Frames) else []
            time.sleep(0.02)
        gc.collect()
        waiting = [o for o in gc.get_objects() if type(o) is FilledBlock]
        assert len(waiting) <= 5
    assert np.array_equal(np.concatenate([frames.images for frames in held]), run(long).images[:40])


def test_what_nobody_foresaw_reaches_the_consumer(
    clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_more(*args: Any, **kwargs: Any) -> None:
        raise OSError("too many processes")

    monkeypatch.setattr(worker.subprocess, "Popen", no_more)
    threads = threading.active_count()
    with DecodePool[int](2) as pool, pytest.raises(OSError, match="too many processes"):
        pool.submit(0, DecodeRequest(clip, SIZE))
    assert threading.active_count() == threads


class Recorder(io.RawIOBase):
    """A pipe that remembers what was written to it."""

    def __init__(self, pipe: Any) -> None:
        self.written = io.BytesIO()
        self._pipe = pipe

    def write(self, data: Any) -> int:
        self.written.write(data)
        return int(self._pipe.write(data))

    def flush(self) -> None:
        self._pipe.flush()

    def close(self) -> None:
        self._pipe.close()


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[DecodeRequest]]:
    """All requests that were sent to decoder processes."""
    recorders: list[Recorder] = []
    popen = subprocess.Popen

    def recording(*args: Any, **kwargs: Any) -> subprocess.Popen[bytes]:
        process = popen(*args, **kwargs)
        recorders.append(Recorder(process.stdin))
        process.stdin = recorders[-1]  # type: ignore[assignment]
        return process

    def requests() -> list[DecodeRequest]:
        messages = []
        for recorder in recorders:
            recorder.written.seek(0)
            with contextlib.suppress(EOFError):
                while True:
                    messages.append(pickle.load(recorder.written))
        return [message for message in messages if isinstance(message, DecodeRequest)]

    monkeypatch.setattr(worker.subprocess, "Popen", recording)
    return requests


@pytest.mark.parametrize(
    ("workers", "quota", "threads"), [(1, None, [0, 5]), (1, 8, [5, 8]), (3, None, [2, 5])]
)
def test_threads_are_shared_out_among_the_workers(
    clip: Path,
    monkeypatch: pytest.MonkeyPatch,
    sent: Callable[[], list[DecodeRequest]],
    workers: int,
    quota: int | None,
    threads: list[int],
) -> None:
    monkeypatch.setattr(worker, "cores", lambda: 8)
    monkeypatch.setattr(worker, "cpu_quota", lambda: quota)
    asked = [DecodeRequest(clip, SIZE), DecodeRequest(clip, SIZE, threads=5)]
    found = by_video(decode_all(asked, workers), 2)
    assert all(isinstance(events[-1], DecodeReport) for events in found)
    assert sorted(request.threads for request in sent()) == threads


def test_a_video_goes_on_in_the_middle(clip: Path) -> None:
    whole = run(clip)
    resume = Resume(25, whole.report.decoder, (24, float(whole.times[24])))
    request = DecodeRequest(clip, SIZE, resume=resume)
    events = [event for _, event in decode_all([request])]
    frames = [event for event in events if isinstance(event, Frames)]
    assert np.array_equal(np.concatenate([f.images for f in frames]), whole.images[25:])
    assert events[-1] == whole.report


# Decoders that die


def end_first_decoders(
    requests: list[DecodeRequest], children: Children, sign: int, count: int, timeout: float = 60
) -> list[list[Any]]:
    """Decode; the first `count` decoders get this signal once they gave a frame of video 0."""
    found: list[list[Any]] = [[] for _ in requests]
    ended: list[int] = []
    for index, event in decode_all(requests, timeout=timeout):
        found[index].append(event)
        child = children[-1]
        first = index == 0 and isinstance(event, Frames) and child.pid not in ended
        if first and len(ended) < count:
            assert child.poll() is None
            os.kill(child.pid, sign)
            ended.append(child.pid)
    assert len(ended) == count
    return found


def one_end(events: list[Any]) -> Any:
    """The report or error of a video, of which there is one, at the end."""
    assert sum(map(is_end, events)) == 1
    return events[-1]


@needs_signals
@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("sign", ["SIGKILL", "SIGSEGV"])
def test_a_decoder_that_dies_takes_only_its_own_video(
    long: Path, clip: Path, children: Children, sign: str, decoder: str
) -> None:
    requests = [
        DecodeRequest(long, SIZE, batch_size=1, decoder=decoder),
        DecodeRequest(clip, SIZE, batch_size=1, decoder=decoder),
        DecodeRequest(clip, SIZE, batch_size=1),
    ]
    found = end_first_decoders(requests, children, getattr(signal, sign), count=1)
    error = one_end(found[0])
    assert isinstance(error, DecodeError)
    for part in (sign, str(long), "--decoder auto"):
        assert part in str(error)
    for events in found[1:]:
        assert gather(iter(events)).report.frames == 40
    assert len(children) == 2


@needs_signals
@pytest.mark.parametrize("sign", ["SIGKILL", "SIGSEGV"])
def test_a_video_whose_decoder_died_is_tried_once_more_with_pyav_alone(
    long: Path,
    clip: Path,
    children: Children,
    sent: Callable[[], list[DecodeRequest]],
    sign: str,
) -> None:
    requests = [DecodeRequest(path, SIZE, batch_size=1) for path in (long, clip)]
    found = end_first_decoders(requests, children, getattr(signal, sign), count=1)
    again = gather(iter(found[0]))
    assert (again.report.decoder, again.report.frames, again.restarts) == ("av", 900, 1)
    assert Restart("av") in found[0]
    assert np.array_equal(again.images, run(long).images)
    assert gather(iter(found[1])).report.frames == 40
    tries = [(request.decoder, request.single_threaded) for request in sent()]
    assert tries == [("auto", False), ("av", True), ("auto", False)]


def test_a_decoder_that_dies_before_it_has_read_anything_is_replaced(
    clip: Path, children: Children
) -> None:
    with DecodePool[int]() as pool:
        pool.submit(0, DecodeRequest(clip, SIZE))
        children[0].kill()
        events = [pool.next_event()[1]]
        while not is_end(events[-1]):
            events.append(pool.next_event()[1])
    assert events[0] == Restart("av")
    assert gather(iter(events)).report.frames == 40


@needs_signals
def test_a_video_whose_decoder_dies_twice_is_given_up(
    long: Path, clip: Path, children: Children
) -> None:
    requests = [DecodeRequest(path, SIZE, batch_size=1) for path in (long, clip)]
    found = end_first_decoders(requests, children, signal.SIGKILL, count=2)
    assert isinstance(one_end(found[0]), DecodeError)
    assert gather(iter(found[1])).report.frames == 40
    assert len(children) == 3


# Decoders that hang


@needs_signals
@pytest.mark.parametrize(
    ("frame_step", "first"), [pytest.param(1, "decord", marks=needs_decord), (2, "av")]
)
def test_a_video_whose_decoder_hangs_is_done_whole_by_pyav(
    long: Path, clip: Path, children: Children, frame_step: int, first: str
) -> None:
    requests = [
        DecodeRequest(path, SIZE, batch_size=1, frame_step=frame_step) for path in (long, clip)
    ]
    found = end_first_decoders(requests, children, signal.SIGSTOP, count=1, timeout=2)
    assert next(e for e in found[0] if isinstance(e, Opened)).decoder == first
    again = gather(iter(found[0]))
    assert (again.report.decoder, again.restarts) == ("av", 1)
    assert np.array_equal(again.images, run(long, frame_step=frame_step).images)
    assert gather(iter(found[1])).report.frames == 40 // frame_step
    assert len(children) == 2


@needs_signals
@pytest.mark.parametrize(
    ("decoder", "tries", "advice"),
    [
        ("av", 1, "--decoder auto"),
        pytest.param("decord", 1, "--decoder auto", marks=needs_decord),
        ("auto", 2, "ffmpeg"),
    ],
)
def test_a_video_whose_last_decoder_hangs_is_an_error(
    long: Path, clip: Path, children: Children, decoder: str, tries: int, advice: str
) -> None:
    requests = [
        DecodeRequest(long, SIZE, batch_size=1, decoder=decoder),
        DecodeRequest(clip, SIZE, batch_size=1),
    ]
    found = end_first_decoders(requests, children, signal.SIGSTOP, count=tries, timeout=2)
    error = one_end(found[0])
    assert isinstance(error, DecodeError)
    for part in (str(long), "sent nothing for 2 s", advice):
        assert part in str(error)
    assert gather(iter(found[1])).report.frames == 40
    assert len(children) == tries + 1


def test_a_decoder_that_is_held_back_is_not_taken_for_one_that_hangs(
    long: Path, children: Children
) -> None:
    events = decode_all([DecodeRequest(long, SIZE, batch_size=1)], timeout=2)
    found = [next(events)[1] for _ in range(3)]
    time.sleep(2.5)
    assert gather(iter([*found, *(event for _, event in events)])).restarts == 0
    assert len(children) == 1


@needs_signals
@pytest.mark.parametrize("decoder", DECODERS)
def test_a_decoder_that_shows_signs_of_life_is_left_alone(
    long: Path, children: Children, decoder: str
) -> None:
    # One batch of the whole video by a process that rarely runs: nothing but signs of life.
    done, pause, pauses = threading.Event(), 0.3, 0

    def slow_down() -> None:
        nonlocal pauses
        while pauses * pause < 3 and not done.wait(0.01):
            children[0].send_signal(signal.SIGSTOP)
            pauses += not done.wait(pause)
            children[0].send_signal(signal.SIGCONT)

    events = decode_all([DecodeRequest(long, SIZE, batch_size=900, decoder=decoder)], timeout=2)
    found = [next(events)[1]]
    brake = threading.Thread(target=slow_down)
    brake.start()
    try:
        found += [event for _, event in events]
    finally:
        done.set()
        brake.join()
    assert gather(iter(found)).report.frames == 900
    assert pauses * pause > 2, "held back for less than the timeout"


# Consumers that stop


@needs_signals
@pytest.mark.parametrize(("batch_size", "stopped"), [(1, False), (900, False), (1, True)])
def test_a_consumer_that_stops_early_leaves_no_process_and_no_thread(
    long: Path, children: Children, batch_size: int, stopped: bool
) -> None:
    threads = threading.active_count()
    pool = DecodePool[int](workers=2)
    for index in range(3):
        pool.submit(index, DecodeRequest(long, SIZE, batch_size=batch_size))
    pool.next_event()
    if stopped:
        for child in children:
            child.send_signal(signal.SIGSTOP)
    pool.close()
    assert all(child.returncode is not None for child in children)
    assert threading.active_count() == threads


def test_a_consumer_that_fails_leaves_no_process(long: Path, children: Children) -> None:
    def consume() -> None:
        with DecodePool[int]() as pool:
            pool.submit(0, DecodeRequest(long, SIZE, batch_size=1))
            pool.next_event()
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        consume()
    assert [child.poll() is not None for child in children] == [True]


@needs_signals
def test_decoders_end_with_a_parent_that_is_killed(long: Path) -> None:
    # Nobody takes their frames any more: they are held back by full pipes.
    program = (
        "import subprocess, sys; from pathlib import Path\n"
        "from mstemba.pipeline.decode.request import DecodeRequest\n"
        "from mstemba.pipeline.decode.worker import DecodePool\n"
        "started = []\n"
        "class Popen(subprocess.Popen):\n"
        "    def __init__(self, *args, **kwargs):\n"
        "        super().__init__(*args, **kwargs); started.append(self.pid)\n"
        "subprocess.Popen = Popen\n"
        "pool = DecodePool(2); seen = set()\n"
        "for key in range(3):\n"
        "    pool.submit(key, DecodeRequest(Path(sys.argv[1]), 64, batch_size=1))\n"
        "while len(seen) < 2:\n"
        "    seen.add(pool.next_event()[0])\n"
        "print(*started, flush=True); sys.stdin.read()\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program, str(long)], stdout=subprocess.PIPE, stdin=subprocess.PIPE
    )
    assert parent.stdout
    pids = [int(word) for word in parent.stdout.readline().split()]
    assert len(pids) == 2
    assert all(runs(pid) for pid in pids)
    parent.kill()
    parent.communicate()
    limit = time.monotonic() + 10
    while any(runs(pid) for pid in pids) and time.monotonic() < limit:
        time.sleep(0.05)
    assert not any(runs(pid) for pid in pids)


def runs(pid: int) -> bool:
    """Whether the process runs; one that has ended and waits for its parent does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"


def test_files_in_the_current_folder_do_not_get_into_the_decoder(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # `python -m` puts the current folder first: a user's av.py there would be imported.
    root = str(Path(worker.__file__).parents[3])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]))
    for name in ("av", "numpy", "queue", "signal"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a file of the user')\n")
    monkeypatch.chdir(tmp_path)
    events = [event for _, event in decode_all([DecodeRequest(clip, SIZE)])]
    assert isinstance(events[-1], DecodeReport), events[-1]


@needs_signals
def test_a_process_that_dies_between_two_videos_is_replaced(clip: Path, children: Children) -> None:
    with DecodePool[int](timeout=5) as pool:
        for index in range(2):
            pool.submit(index, DecodeRequest(clip, SIZE))
            events = []
            while not events or not is_end(events[-1]):
                events.append(pool.next_event()[1])
            assert gather(iter(events)).report.frames == 40
            children[-1].kill()
            children[-1].wait()
