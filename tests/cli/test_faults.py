"""Processes killed at any moment: the same command then ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import EXTRACT, contents, current_run, current_store, edit_json, entries
from tests.cli.conftest import TRAIN as QUICK
from tests.command_line import command, environment, mstemba

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc and kills by signals"),
]
# Six videos of 30 frames, so that there is something left to kill.
VIDEOS = 6
# mAP and a resumable state after every step.
TRAIN = ("train", "--min-steps", "10", "--epochs", "1", "--checkpoint-seconds", "0")


class Run:
    """`mstemba ...` in a process group of its own."""

    def __init__(self, args: tuple[str, ...], cwd: Path) -> None:
        self.process = subprocess.Popen(
            command(*args),
            cwd=cwd,
            env=environment(),
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            stdout=subprocess.DEVNULL,
            stderr=(cwd / "stderr").open("w"),
        )

    def wait_until(self, seen: Callable[[], bool]) -> None:
        """Wait for something to be there, or for the end of the process."""
        while self.process.poll() is None and not seen():
            time.sleep(0.01)

    def kill(self) -> None:
        """Kill the process alone."""
        self.process.kill()
        self.process.wait()

    def kill_group(self) -> None:
        """Kill the process with its children."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def decoders(self) -> list[int]:
        """The decoder processes of this run, also when their parent has gone."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                fields = (folder / "stat").read_text().rsplit(")", 1)[1].split()
                words = (folder / "cmdline").read_bytes()
            except OSError:
                continue  # it has ended meanwhile
            state, session = fields[0], int(fields[3])
            if session == self.process.pid and b"decode.child" in words and state != "Z":
                found.append(int(folder.name))
        return found


@pytest.fixture
def many(fresh: Path) -> Path:
    """A workspace with more videos: v3 to v5 have the frames of v0 to v2 in other bytes."""
    manifest = json.loads((fresh / "manifest.json").read_text())
    for number in range(3, VIDEOS):
        source = fresh / "videos" / f"v{number - 3}.mp4"
        copy = fresh / "videos" / f"v{number}.mp4"
        # A trailing `free` box changes the file and no frame.
        copy.write_bytes(source.read_bytes() + (8 + number).to_bytes(4) + b"free" + bytes(number))
        manifest["videos"][copy.stem] = {"path": f"videos/{copy.name}", "actions": []}
    (fresh / "manifest.json").write_text(json.dumps(manifest))
    return fresh


@pytest.fixture(scope="module")
def values(finished: Path) -> dict[str, dict[str, Any]]:
    """The finished entries by video, without what tells one file from another of equal frames."""
    return {id: _frames_only(e) for id, e in entries(current_store(finished)).items()}


def _frames_only(entry: dict[str, Any]) -> dict[str, Any]:
    # Either decoder gives the same frames.
    other = ("id", "key", "fingerprint", "source", "decoder")
    return {k: v for k, v in entry.items() if k not in other}


def _check_whole(store: Path, values: dict[str, dict[str, Any]]) -> set[str]:
    """Every entry that exists is complete and right; gives their names."""
    found = entries(store) if (store / "zarr.json").is_file() else {}
    for id, entry in found.items():
        assert _frames_only(entry) == values[f"v{int(id[1:]) % 3}"], id
    return set(found)


@pytest.mark.parametrize(
    ("kill", "targets"),
    [
        # While it starts, and soon after it began with a video that it had not begun before.
        pytest.param(Run.kill, (None, "v0", "v3"), id="parent"),
        pytest.param(Run.kill_group, ("v1", "v3"), id="group"),
    ],
)
def test_extract_killed_again_and_again(
    kill: Callable[[Run], None],
    targets: tuple[str | None, ...],
    many: Path,
    finished: Path,
    values: dict[str, dict[str, Any]],
) -> None:
    store = many / "features" / current_store(finished).name
    done: set[str] = set()
    for target in targets:
        run = Run(EXTRACT, many)
        if target is not None:
            run.wait_until((store / target).exists)
        time.sleep(random.uniform(0, 0.5))
        kill(run)
        now = _check_whole(store, values)
        assert now >= done, "a finished entry is never lost"
        done = now
        run.wait_until(lambda: False)
        end = time.monotonic() + 10
        while run.decoders() and time.monotonic() < end:
            time.sleep(0.1)
        assert run.decoders() == [], "the decoder outlived its parent"
    assert len(done) < VIDEOS
    last = mstemba(*EXTRACT, cwd=many)
    assert f"{VIDEOS - len(done)} extracted, {len(done)} cached, 0 failed" in last.stdout
    assert _check_whole(store, values) == {f"v{i}" for i in range(VIDEOS)}


def test_a_killed_decoder_costs_nothing_but_time(
    many: Path, finished: Path, values: dict[str, dict[str, Any]]
) -> None:
    store = many / "features" / current_store(finished).name
    run = Run(EXTRACT, many)
    run.wait_until(lambda: bool(run.decoders()))
    (decoder,) = run.decoders()
    os.kill(decoder, signal.SIGKILL)
    assert run.process.wait(timeout=120) == 0
    found = entries(store)
    assert set(found) == {f"v{i}" for i in range(VIDEOS)}
    for id, entry in found.items():
        assert _frames_only(entry) == values[f"v{int(id[1:]) % 3}"], id


def test_an_interrupted_extract_says_so_and_goes_on(
    many: Path, finished: Path, values: dict[str, dict[str, Any]]
) -> None:
    store = many / "features" / current_store(finished).name
    run = Run(EXTRACT, many)
    run.wait_until((store / "v1").exists)
    run.process.send_signal(signal.SIGINT)
    assert run.process.wait(timeout=60) == 130
    *news, last = (many / "stderr").read_text().splitlines()
    assert last.startswith("mstemba: interrupted. ")
    assert not any("Traceback" in line for line in news)
    done = _check_whole(store, values)
    assert "v0" in done
    assert f"{len(done)} cached, 0 failed" in mstemba(*EXTRACT, cwd=many).stdout


@pytest.fixture
def labelled(request: pytest.FixtureRequest, untrained: Path) -> Path:
    """A workspace to train in, with or without a validation video."""
    if request.param == "validation":
        edit_json(
            untrained / "manifest.json", lambda m: m["videos"]["v1"].update(subset="validation")
        )
    return untrained


def _result(run: Path) -> dict[str, str]:
    """What must not depend on whether a training was interrupted."""
    names = ("last/", "best/", "metrics.jsonl")
    return {name: sha for name, (_, sha) in contents(run).items() if name.startswith(names)}


def _steps(run: Path) -> int:
    """Complete lines of the log so far: two a step."""
    log = run / "metrics.jsonl"
    return log.read_text().count("\n") // 2 if log.is_file() else 0


@pytest.mark.parametrize(
    ("labelled", "steps"), [("none", (4,)), ("validation", (0, 2, 6))], indirect=["labelled"]
)
def test_train_killed_again_and_again(labelled: Path, steps: tuple[int, ...]) -> None:
    mstemba(*TRAIN, cwd=labelled)
    run = current_run(labelled)
    undisturbed = _result(run)
    validated = any('"val_map"' in line for line in (run / "metrics.jsonl").open())
    assert {"best/model.safetensors" in undisturbed, "best/config.json" in undisturbed} == {
        validated
    }
    shutil.rmtree(run)
    for step in steps:
        job = Run(TRAIN, labelled)
        job.wait_until(lambda step=step: _steps(run) > step)
        time.sleep(random.uniform(0, 0.3))
        job.kill()
        assert not (run / "done.json").exists()
    last = mstemba(*TRAIN, cwd=labelled)
    assert "resuming from step " in last.stderr
    assert _result(run) == undisturbed
    assert list(run.glob(".*")) + list(run.glob("state*")) == []


def _new_folder(parent: Path, file: str) -> None:
    """What a kill leaves between making a folder and naming the first file in it."""
    shutil.rmtree(parent)
    (parent / file).parent.mkdir(parents=True)
    (parent / file).write_text("{")


@pytest.mark.parametrize(
    "prepare",
    [
        pytest.param(lambda w: _new_folder(current_store(w), ".writing-4711.json"), id="store"),
        pytest.param(
            lambda w: _new_folder(current_store(w) / "v0", ".writing-4711.json"), id="entry"
        ),
        pytest.param(lambda w: _new_folder(current_run(w), "last/.config.4711.json"), id="last"),
        pytest.param(lambda w: _new_folder(current_run(w), "best/config.json"), id="best"),
    ],
)
def test_what_a_kill_leaves_in_a_new_folder_stops_nothing(
    prepare: Callable[[Path], None], workspace: Path, finished: Path
) -> None:
    prepare(workspace)
    mstemba(*EXTRACT, cwd=workspace)
    mstemba(*QUICK, cwd=workspace)
    assert entries(current_store(workspace)) == entries(current_store(finished))
    assert (
        _result(current_run(workspace))["last/model.safetensors"]
        == (_result(current_run(finished))["last/model.safetensors"])
    )
