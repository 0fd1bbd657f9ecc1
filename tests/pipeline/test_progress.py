"""What a stage says while it runs, and how it is shown: on a terminal, through a pipe, quietly."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mstemba import console as consoles
from mstemba.console import Console
from mstemba.errors import SomeFailed
from mstemba.pipeline.detect.stage import DetectResult
from mstemba.pipeline.extract.jobs import ExtractResult
from mstemba.pipeline.options import FeatureOptions, RunOptions
from mstemba.pipeline.progress import SPAN, Event, ProgressReporter, in_words, one_line
from tests.command_line import environment
from tests.training import fit, make_workspace
from tests.videos import encode


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


# Speed and the time left


def test_speed_and_time_left_follow_what_is_done() -> None:
    clock, said = Clock(), list[Event]()
    meter = ProgressReporter("extract", 1000.0, "frames", said.append, clock=clock)
    meter.update("a at 0 s", 0.0, 0, "a")
    clock.now += 20  # a start that comes once
    meter.update("a at 1 s", 100.0, 40, "a")
    clock.now += 2
    meter.update("a at 2 s", 200.0, 80, "a")
    clock.now += 2
    meter.update("a at 3 s", 300.0, 120, "a")
    *early, last = said
    assert [(event.rate, event.eta, event.share) for event in early] == [
        (None, None, 0.0), (None, None, 0.1), (None, None, 0.2)
    ]  # fmt: skip
    assert early[-1].message == "a at 2 s"
    assert (last.stage, last.video, last.count, last.unit) == ("extract", "a", 120, "frames")
    assert (last.done, last.total, last.share) == (300.0, 1000.0, 0.3)
    assert last.rate == pytest.approx(80 / 4)
    assert last.eta == pytest.approx(700 / (200 / 4))
    assert last.message == "a at 3 s, 20 frames/s"


def test_what_was_there_already_is_no_speed() -> None:
    clock, said = Clock(), list[Event]()
    meter = ProgressReporter("train", 600, "steps", said.append, clock=clock)
    for step in (310, 320):
        clock.now += 10
        meter.update(f"step {step}", step, step - 300)
    assert said[1].rate == pytest.approx(1.0)
    assert said[1].eta == pytest.approx(280.0)


def test_speed_is_that_of_the_last_minute() -> None:
    clock, said = Clock(), list[Event]()
    meter = ProgressReporter("extract", 10_000, "frames", said.append, clock=clock)
    for second in range(1, 200):
        clock.now += 1
        # Ten a second at first, then one.
        meter.update("", min(second, 100) * 10 + max(0, second - 100), second)
    left = 10_000 - said[-1].done
    assert said[-1].eta == pytest.approx(left, rel=0.05)
    assert said[99].eta == pytest.approx((10_000 - said[99].done) / 10, rel=0.05)
    assert len(meter._samples) <= SPAN + 2


def test_the_end_has_no_time_left() -> None:
    said = list[Event]()
    ProgressReporter("extract", 0, "frames", said.append).update("nothing", 0, 0)
    assert (said[0].eta, said[0].share) == (0.0, 1.0)
    assert Event("extract", "loading").share is None


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(0, 50)), max_size=30))
def test_time_left_and_speed_are_never_negative(steps: list[tuple[float, int]]) -> None:
    clock, said, done = Clock(), list[Event](), 0
    meter = ProgressReporter("extract", 500, "frames", said.append, clock=clock)
    for seconds, more in steps:
        clock.now += seconds
        done += more
        meter.update("", done, done)
    for event in said:
        assert event.rate is None or event.rate >= 0
        assert event.eta is None or event.eta >= 0


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (59.4, "59 s"), (59.6, "1:00 min"), (423, "7:03 min"), (7500, "2:05:00 h")],
)
def test_a_length_of_time_in_words(seconds: float, words: str) -> None:
    assert in_words(seconds) == words


@given(st.text(st.characters(), max_size=20))
def test_what_is_printed_is_one_line_without_control_characters(text: str) -> None:
    shown = one_line(text)
    assert not re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", shown)
    assert len(shown.splitlines()) <= 1
    shown.encode("utf-8")
    if text.isprintable():
        assert shown == text


def test_a_terminal_obeys_no_name() -> None:
    assert one_line("a\nb\x1b[31mc\udce9") == r"a\nb\x1b[31mc\udce9"
    assert one_line("שלום 動画 🎬 <b>") == "שלום 動画 🎬 <b>"


# A console


def progress(stage: str, done: float, **more: object) -> Event:
    return Event(stage, f"v{done:.0f} at 1 s, 30 frames/s", done, 10.0, **more)  # type: ignore[arg-type]


def test_lines_come_every_ten_seconds_with_video_and_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock()
    monkeypatch.setattr(consoles.time, "monotonic", clock)
    with Console() as console:
        console(progress("extract", 0))
        for second in range(1, 10):
            clock.now += 4
            console(progress("extract", second, eta=70.0))
        console(progress("extract", 10, eta=0.0))
    assert capsys.readouterr().err.splitlines() == [
        "extract 10 %: v1 at 1 s, 30 frames/s, 1:10 min left",
        "extract 40 %: v4 at 1 s, 30 frames/s, 1:10 min left",
        "extract 70 %: v7 at 1 s, 30 frames/s, 1:10 min left",
    ]


def test_a_new_stage_is_told_of_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(consoles.time, "monotonic", Clock())
    with Console() as console:
        console(progress("extract", 5))
        console(progress("detect", 5))
    assert [line.split()[0] for line in capsys.readouterr().err.splitlines()] == [
        "extract",
        "detect",
    ]


FAILED = DetectResult(Path("out"), failed={'a\n"b"': "not a readable video\x1b[2J"}, seconds=3.0)


@pytest.mark.parametrize("quiet", [False, True])
def test_a_failure_is_told_once(quiet: bool, capsys: pytest.CaptureFixture[str]) -> None:
    failed = {"a": "not a video", "b": "not a video"}
    result = ExtractResult(Path("s.zarr"), made=["c"], failed=failed)
    with Console(quiet) as console:
        console(Event("extract", "not a video", warning=True, video="a", failed=True))
        assert capsys.readouterr().err == "failed: a: not a video\n"  # at once
        with pytest.raises(SomeFailed, match=r"2 of 3 videos failed \(a, b\), the rest is done"):
            console.extract(result)
    assert capsys.readouterr().err == "failed: b: not a video\n"


@pytest.mark.parametrize("quiet", [False, True])
def test_warnings_and_failures_are_told_even_when_quiet(
    quiet: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    with Console(quiet) as console:
        console(Event("extract", "loading clip"))
        console(progress("extract", 5))
        console(Event("extract", "a: odd\nframes", warning=True))
        with pytest.raises(SomeFailed, match="the only video failed"):
            console.detect(FAILED)
    said = capsys.readouterr()
    urgent = [r"warning: a: odd\nframes", r'failed: a\n"b": not a readable video\x1b[2J']
    lines = said.err.splitlines()
    assert (lines if quiet else lines[2:]) == urgent
    summary = "out: 0 detected, 0 from saved scores, 1 failed, 3.0 s\n"
    assert said.out == ("" if quiet else summary)


SHOW = """
from pathlib import Path
from mstemba.console import Console
from mstemba.pipeline.progress import Event
with Console({quiet}) as console:
    for done in range(1, 5):
        name = "[red]v[/red]"
        console(Event("extract", f"{name} at {done} s, 30 frames/s", done, 10.0, eta=70.0))
        console._bar and console._bar.refresh()
    console(Event("extract", "[b]careful", warning=True))
    console._line("the result")
"""


def in_terminal(*args: str, cwd: Path | None = None) -> str:
    """What a command writes when standard output and error are a terminal."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        args,
        stdin=follower,
        stdout=follower,
        stderr=follower,
        cwd=cwd,
        env=environment(COLUMNS="160", TERM="xterm"),
    )
    os.close(follower)
    said = b""
    while True:
        try:
            part = os.read(leader, 65536)
        except OSError:  # the other side is closed: the end, on Linux
            break
        if not part:
            break
        said += part
    os.close(leader)
    assert process.wait(60) == 0, said
    return said.decode()


def python(code: str, quiet: bool) -> tuple[str, str, str]:
    return sys.executable, "-c", code.replace("{quiet}", str(quiet))


def test_on_a_terminal_there_is_a_bar_and_names_are_no_markup() -> None:
    said = in_terminal(*python(SHOW, quiet=False))
    assert "━" in said
    assert "[red]v[/red] at 4 s, 30 frames/s, 1:10 min left" in said
    assert re.search(r"\b40 %", said)
    assert "warning: [b]careful" in said
    # The bar is gone when the result is there.
    after = said[said.index("the result") :]
    assert "━" not in after


def test_on_a_terminal_quiet_has_no_bar() -> None:
    said = in_terminal(*python(SHOW, quiet=True))
    assert said.splitlines() == ["warning: [b]careful"]


def test_through_a_pipe_there_are_plain_lines() -> None:
    done = subprocess.run(
        python(SHOW, quiet=False), env=environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout == "the result\n"
    assert done.stderr.splitlines() == [
        "extract 10 %: [red]v[/red] at 1 s, 30 frames/s, 1:10 min left",
        "warning: [b]careful",
    ]


# The stages


@pytest.mark.usefixtures("one_thread")
def test_extract_tells_a_program_all_that_it_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mstemba as library

    monkeypatch.setattr("mstemba.pipeline.progress.SETTLED", 1e-9)
    said = list[Event]()
    options = FeatureOptions(backbone="efficientnet-lite0", window=4, stride=4)
    here = RunOptions(batch_size=8, device="cpu")
    (tmp_path / "videos").mkdir()
    for name in ("a", "b"):
        encode(tmp_path / "videos" / f"{name}.mp4", 24)
    library.extract(
        tmp_path / "videos", options, here, store=tmp_path / "s.zarr", on_event=said.append
    )
    events = [event for event in said if event.total]
    assert {event.stage for event in events} == {"extract"}
    assert {event.unit for event in events} == {"frames"}
    assert {event.video for event in events} == {"a", "b"}
    shares = [event.share or 0.0 for event in events]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert (events[-1].count, events[-1].eta) == (48, 0.0)
    _, *later = [event for event in events if event.count]
    assert later
    assert all(event.rate and event.rate > 0 for event in later)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_train_tells_its_steps_also_when_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stop(Exception):
        pass

    monkeypatch.setattr("mstemba.pipeline.progress.SETTLED", 1e-9)
    said = list[Event]()

    def stop(event: Event) -> None:
        if event.done == 6:
            raise Stop
        said.append(event)

    workspace = make_workspace(tmp_path / "w")
    with pytest.raises(Stop):
        fit(workspace, on_event=stop, min_steps=8)
    fit(workspace, on_event=said.append, min_steps=8)
    steps = [event for event in said if event.total]
    assert {(event.stage, event.unit, event.total) for event in steps} == {("train", "steps", 8)}
    # The state of step 4 is the last one saved; what it had done is not counted again.
    assert [(event.done, event.count) for event in steps] == [(2, 2), (4, 4), (6, 2), (8, 4)]
    assert steps[0].message.startswith("step 2 of 8, loss ")
    assert [event.eta == 0.0 for event in steps] == [False, False, False, True]
    assert [bool(event.rate) for event in steps] == [False, True] * 2  # from a second event on
