"""Decoding in processes of its own: order, bounds, what becomes of a decoder that dies or hangs."""

from __future__ import annotations

import gc
import io
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mstemba.errors import DecodeError
from mstemba.pipeline.decode import transport, worker
from mstemba.pipeline.decode.reader import DecodeReport, DecodeRequest, Opened, Restart, Resume
from mstemba.pipeline.decode.worker import decode_all
from mstemba.records import Frames
from tests.pipeline.decode.test_reader import SIZE, gather, needs_decord, run
from tests.videos import encode

Children = list[subprocess.Popen[bytes]]
needs_signals = pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGSTOP")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 frames at 10 fps, 160x120."""
    return encode(tmp_path_factory.mktemp("v") / "clip.mp4", 40)


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More frames than fit between the processes, so that the decoder is at work for as long as
    nobody takes them: 900 times 64x64x3 bytes are more than a pipe of 1 MiB and three batches."""
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


def numbered(requests: Iterable[DecodeRequest]) -> Iterator[tuple[int, DecodeRequest]]:
    return enumerate(requests)


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
    found = by_video(decode_all(numbered(DecodeRequest(p, SIZE) for p in paths), workers), 5)
    assert len(children) <= workers
    here = run(clip)
    for index in (0, 3, 4):
        there = gather(iter(found[index]))
        assert np.array_equal(there.images, here.images)
        assert there.report == here.report
    for index, says in ((1, "not a readable video"), (2, "no such file")):
        assert len([e for e in found[index] if isinstance(e, (DecodeError, DecodeReport))]) == 1
        error = found[index][-1]
        assert isinstance(error, DecodeError)
        assert says in str(error)
    assert all(child.returncode is not None for child in children)


def test_no_request_starts_nothing(children: Children) -> None:
    assert list(decode_all(iter([]), workers=3)) == []
    assert children == []


def test_a_request_is_taken_when_a_process_is_free_and_no_two_at_a_time(
    long: Path, clip: Path
) -> None:
    taken: list[int] = []
    inside = threading.Lock()

    def requests() -> Iterator[tuple[int, DecodeRequest]]:
        for index in range(6):
            assert inside.acquire(blocking=False), "two threads at once"
            time.sleep(0.01)
            taken.append(index)
            inside.release()
            yield index, DecodeRequest(long if index < 2 else clip, SIZE, batch_size=8)

    events = decode_all(requests(), workers=2)
    first = [next(events) for _ in range(10)]
    time.sleep(0.3)
    assert taken == [0, 1], "both processes are held back in their first video"
    ended = [k for k, e in [*first, *events] if isinstance(e, DecodeReport)]
    assert sorted(ended) == taken == list(range(6))


def test_several_videos_are_decoded_at_the_same_time(long: Path) -> None:
    # Several: on a busy machine the second process may start when the first video is done.
    requests = [DecodeRequest(long, SIZE, batch_size=8)] * 6
    order = [index for index, _ in decode_all(numbered(requests), workers=2)]
    assert order != sorted(order)


def test_only_a_few_batches_wait_for_a_slow_consumer(long: Path) -> None:
    events = decode_all(numbered([DecodeRequest(long, SIZE, batch_size=2)]))
    for _, event in events:
        if isinstance(event, Frames):
            break
    time.sleep(0.3)
    gc.collect()
    waiting = [o for o in gc.get_objects() if type(o) is Frames]
    assert 3 <= len(waiting) <= 6
    events.close()


def test_what_the_requests_raise_reaches_the_consumer(clip: Path, children: Children) -> None:
    def requests() -> Iterator[tuple[str, DecodeRequest]]:
        yield "one", DecodeRequest(clip, SIZE)
        raise OSError("the claims are gone")

    with pytest.raises(OSError, match="the claims are gone"):
        list(decode_all(requests(), workers=2))
    assert all(child.returncode is not None for child in children)


def test_threads_are_shared_out_among_the_workers(
    clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[int] = []
    monkeypatch.setattr(worker, "cores", lambda: 8)
    monkeypatch.setattr(
        worker._Child, "send", lambda self, r: (sent.append(r.threads), worker.send(self._stdin, r))
    )
    asked = [DecodeRequest(clip, SIZE), DecodeRequest(clip, SIZE, threads=5)]
    list(decode_all(numbered(asked), workers=3))
    assert sorted(sent) == [2, 5]
    sent.clear()
    list(decode_all(numbered(asked)))
    assert sent == [0, 5]


def test_a_video_goes_on_in_the_middle(clip: Path) -> None:
    whole = run(clip)
    resume = Resume(25, whole.report.decoder, (24, float(whole.times[24])))
    request = DecodeRequest(clip, SIZE, resume=resume)
    events = [event for _, event in decode_all(numbered([request]))]
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
    for index, event in decode_all(numbered(requests), timeout=timeout):
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
    assert sum(isinstance(e, (DecodeError, DecodeReport)) for e in events) == 1
    return events[-1]


@needs_signals
@pytest.mark.parametrize("sign", ["SIGKILL", "SIGSEGV"])
def test_a_decoder_that_dies_takes_only_its_own_video(
    long: Path, clip: Path, children: Children, sign: str
) -> None:
    requests = [
        DecodeRequest(long, SIZE, batch_size=1, decoder="av"),
        DecodeRequest(clip, SIZE, decoder="av"),
        DecodeRequest(clip, SIZE),
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
    long: Path, clip: Path, children: Children, sign: str
) -> None:
    requests = [DecodeRequest(long, SIZE, batch_size=1), DecodeRequest(clip, SIZE)]
    found = end_first_decoders(requests, children, getattr(signal, sign), count=1)
    again = gather(iter(found[0]))
    assert (again.report.decoder, again.report.frames, again.restarts) == ("av", 900, 1)
    assert Restart("av") in found[0]
    assert np.array_equal(again.images, run(long).images)
    assert gather(iter(found[1])).report.frames == 40


@needs_signals
def test_a_video_whose_decoder_dies_twice_is_given_up(
    long: Path, clip: Path, children: Children
) -> None:
    requests = [DecodeRequest(long, SIZE, batch_size=1), DecodeRequest(clip, SIZE)]
    found = end_first_decoders(requests, children, signal.SIGKILL, count=2)
    assert isinstance(one_end(found[0]), DecodeError)
    assert gather(iter(found[1])).report.frames == 40
    assert len(children) == 3


# Decoders that hang


@needs_signals
@needs_decord
def test_a_video_whose_decoder_hangs_is_done_whole_by_the_other_one(
    long: Path, clip: Path, children: Children
) -> None:
    requests = [DecodeRequest(long, SIZE, batch_size=1), DecodeRequest(clip, SIZE)]
    found = end_first_decoders(requests, children, signal.SIGSTOP, count=1, timeout=2)
    assert next(e for e in found[0] if isinstance(e, Opened)).decoder == "av"
    again = gather(iter(found[0]))
    assert (again.report.decoder, again.report.frames, again.restarts) == ("decord", 900, 1)
    assert np.array_equal(again.images, run(long).images)
    assert gather(iter(found[1])).report.frames == 40
    assert len(children) == 2


@needs_signals
@pytest.mark.parametrize(
    ("suffix", "decoder", "advice"),
    [
        (".mp4", "av", "--decoder auto"),
        (".ts", "auto", "ffmpeg"),  # decord cannot read it
    ],
)
def test_a_video_with_no_other_decoder_is_an_error_when_its_own_hangs(
    tmp_path: Path, clip: Path, children: Children, suffix: str, decoder: str, advice: str
) -> None:
    path = encode(tmp_path / f"v{suffix}", 900)
    requests = [
        DecodeRequest(path, SIZE, batch_size=1, decoder=decoder),
        DecodeRequest(clip, SIZE),
    ]
    found = end_first_decoders(requests, children, signal.SIGSTOP, count=1, timeout=2)
    error = one_end(found[0])
    assert isinstance(error, DecodeError)
    for part in (str(path), "gave nothing for 2 s", advice):
        assert part in str(error)
    assert gather(iter(found[1])).report.frames == 40
    assert len(children) == 2


def test_a_decoder_that_is_held_back_is_not_taken_for_one_that_hangs(
    long: Path, children: Children
) -> None:
    events = decode_all(numbered([DecodeRequest(long, SIZE, batch_size=1)]), timeout=0.5)
    found = [next(events)[1] for _ in range(3)]
    time.sleep(1.5)
    assert gather(iter([*found, *(event for _, event in events)])).restarts == 0
    assert len(children) == 1


def test_a_decoder_that_shows_signs_of_life_is_left_alone(
    clip: Path, monkeypatch: pytest.MonkeyPatch, children: Children
) -> None:
    # One batch of the whole video: nothing but signs of life for the whole time.
    slowly = (
        "import time; from mstemba.pipeline.decode import child, pyav_reader; child._PULSE = 0.1; "
        "there = pyav_reader._time; "
        "pyav_reader._time = lambda *a: (time.sleep(0.06), there(*a))[1]; child.main()"
    )
    popen = subprocess.Popen

    def patched(command: list[str], **kwargs: Any) -> subprocess.Popen[bytes]:
        head = command[2].split("; ")[:2]
        return popen([*command[:2], "; ".join([*head, slowly])], **kwargs)

    monkeypatch.setattr(worker.subprocess, "Popen", patched)
    request = DecodeRequest(clip, SIZE, batch_size=40, decoder="av")
    begin = time.monotonic()
    events = [event for _, event in decode_all(numbered([request]), timeout=1)]
    assert isinstance(events[-1], DecodeReport), events[-1]
    assert time.monotonic() - begin > 2


# Consumers that stop


@needs_signals
@pytest.mark.parametrize(("batch_size", "stopped"), [(1, False), (900, False), (1, True)])
def test_a_consumer_that_stops_early_leaves_no_process_and_no_thread(
    long: Path, children: Children, batch_size: int, stopped: bool
) -> None:
    threads = threading.active_count()
    requests = [DecodeRequest(long, SIZE, batch_size=batch_size)] * 4
    events = decode_all(numbered(requests), workers=2)
    next(events)
    if stopped:
        for child in children:
            child.send_signal(signal.SIGSTOP)
    begin = time.monotonic()
    events.close()
    assert time.monotonic() - begin < 2
    assert all(child.returncode is not None for child in children)
    assert threading.active_count() == threads


def test_a_consumer_that_fails_leaves_no_process(long: Path, children: Children) -> None:
    def consume() -> None:
        for _ in decode_all(numbered([DecodeRequest(long, SIZE, batch_size=1)])):
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        consume()
    assert [child.poll() is not None for child in children] == [True]


@needs_signals
def test_decoders_end_with_a_parent_that_is_killed(long: Path) -> None:
    # Nobody takes their frames any more: they are held back by full pipes.
    program = (
        "import sys; from mstemba.pipeline.decode import worker; "
        "from mstemba.pipeline.decode.reader import DecodeRequest; from pathlib import Path\n"
        "events = worker.decode_all(((i, DecodeRequest(Path(sys.argv[1]), 64, batch_size=1)) "
        "for i in range(1000)), workers=2)\n"
        "seen = set()\n"
        "for key, _ in events:\n"
        "    seen.add(key)\n"
        "    if len(seen) == 2: break\n"
        "pids = [lane._child._process.pid for lane in events.gi_frame.f_locals['pool']._lanes]\n"
        "print(*pids, flush=True); sys.stdin.read()\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program, str(long)], stdout=subprocess.PIPE, stdin=subprocess.PIPE
    )
    assert parent.stdout
    pids = [int(word) for word in parent.stdout.readline().split()]
    assert len(pids) == 2
    assert all(heartbeat(pid) for pid in pids)
    parent.kill()
    parent.communicate()
    limit = time.monotonic() + 10
    while any(heartbeat(pid) for pid in pids) and time.monotonic() < limit:
        time.sleep(0.05)
    assert not any(heartbeat(pid) for pid in pids)


def heartbeat(pid: int) -> bool:
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
    events = [event for _, event in decode_all(numbered([DecodeRequest(clip, SIZE)]))]
    assert isinstance(events[-1], DecodeReport), events[-1]


# Messages


@pytest.mark.parametrize("count", [0, 1, 7])
def test_a_message_arrives_as_it_was_sent(count: int) -> None:
    images = np.arange(count * 12, dtype=np.uint8).reshape(count, 2, 2, 3)
    frames = Frames(images, np.arange(count, dtype=np.float64))
    pipe = io.BytesIO()
    for message in (frames, None, DecodeReport("av", 3, 1.0, 3.0, ["a warning"])):
        transport.send(pipe, message)
    assert len(pipe.getvalue()) < 2000
    pipe.seek(0)
    found = transport.receive(pipe)
    assert np.array_equal(found.images, images)
    assert np.array_equal(found.times, frames.times)
    assert found.images.flags.writeable, "torch warns of arrays that are not"
    assert transport.receive(pipe) is None
    assert transport.receive(pipe) == DecodeReport("av", 3, 1.0, 3.0, ["a warning"])
    with pytest.raises(EOFError):
        transport.receive(pipe)


def test_pixels_are_not_in_the_pickle() -> None:
    frames = Frames(np.zeros((4, 32, 32, 3), np.uint8), np.zeros(4))
    pipe = io.BytesIO()
    transport.send(pipe, frames)
    whole = len(pickle.dumps(frames, protocol=5))
    assert frames.images.nbytes < len(pipe.getvalue()) < whole + 100
    body = pipe.getvalue()[: -frames.images.nbytes - frames.times.nbytes]
    assert len(body) < 1000


def test_half_a_message_is_the_end() -> None:
    pipe = io.BytesIO()
    transport.send(pipe, Frames(np.zeros((4, 32, 32, 3), np.uint8), np.zeros(4)))
    for length in (1, 8, 30, len(pipe.getvalue()) - 1):
        with pytest.raises(EOFError):
            transport.receive(io.BytesIO(pipe.getvalue()[:length]))
