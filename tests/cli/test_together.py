"""All commands in one workspace, four processes of each, killed at random: nothing is lost, done
twice or left behind.

Any number of rounds: `python -m tests.cli.test_together --rounds 20 --seed 1`.
"""

from __future__ import annotations

import argparse
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mstemba.pipeline.detect.scores_file import read_scores
from mstemba.pipeline.features.store import FeatureStore
from tests.cli.conftest import EXTRACT, entries, make_workspace
from tests.command_line import command, environment, mstemba

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="kills by signals"),
]
SUBSETS = ("training", "training", "testing")
PROCESSES = 4
# detect needs the features that extract makes. train measures mAP, and saves a state, at each step.
COMMANDS = {
    "extract": EXTRACT,
    "import": ("import", "published", "--store", "imported.zarr", "--fps", "10"),
    "train": (
        "train", "--features", "published", "--output", "run", "--width", "0.1",
        "--min-steps", "10", "--epochs", "1", "--checkpoint-seconds", "0",
    ),
    "detect": (
        "detect", "videos", "--checkpoint", "detector", "--output", "found", "--threshold", "0.05",
        "--format", "json,csv,vtt",
    ),
    "export": ("export", "saved", "--output", "exported", "--format", "json,csv,vtt"),
}  # fmt: skip
# What each command makes.
MADE = {
    "extract": "features", "import": "imported.zarr", "train": "run", "detect": "found",
    "export": "exported",
}  # fmt: skip
MADE_ANEW = re.compile(r"(\d+) (?:extracted|imported|detected)")
LEFTOVERS = (".writing-*", "*.lock", "*.locks", ".locks", "state.safetensors")


@dataclass
class Figures:
    """What happened in some rounds."""

    rounds: int = 0
    processes: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    waits: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        kills = ", ".join(f"{count} {name}" for name, count in sorted(self.kills.items()))
        return (
            f"{self.rounds} rounds, {self.processes} processes, {self.kills.total()} kills "
            f"({kills}), {self.waits} waited for another process, {self.seconds:.0f} s"
        )


def prepare(folder: Path) -> Path:
    """A workspace with all that the commands need, so that none needs another's result."""
    make_workspace(folder, SUBSETS)
    mstemba(*EXTRACT, "--store", "first.zarr", cwd=folder)
    store = FeatureStore.open(folder / "first.zarr")
    (folder / "published").mkdir()
    for id in entries(store.root):
        np.save(folder / "published" / f"{id}.npy", store.read(id).values)
    train = ("train", "--features", "first.zarr", "--width", "0.1", "--min-steps", "4")
    mstemba(*train, "--epochs", "1", "--output", "detector", cwd=folder)
    detect = ("detect", "videos", "--checkpoint", "detector", "--output", "saved")
    mstemba(*detect, "--threshold", "0.05", cwd=folder)
    shutil.rmtree(store.root)
    for file in (folder / "saved").glob("*.json"):
        file.unlink()
    return folder


def made_by(name: str, folder: Path) -> dict[str, Any]:
    """What a command has made, without what differs from one run to the next: times of day."""
    place = folder / MADE[name]
    if name == "extract":
        (place,) = place.glob("*.zarr")
    if name in ("extract", "import"):
        return entries(place)
    kept = ("last/", "best/", "metrics.jsonl") if name == "train" else ("",)
    found: dict[str, Any] = {}
    for file in sorted(place.rglob("*")):
        path = file.relative_to(place).as_posix()
        if not file.is_file() or not path.startswith(kept):
            continue
        found[path] = file.read_bytes()
        if path.endswith(".scores.npz"):
            scores = read_scores(file)
            found[path] = (scores.key, scores.scores.probabilities.tobytes())
    return found


class Process:
    """One command in a process group of its own, whose output is kept in files."""

    def __init__(self, name: str, number: int, cwd: Path) -> None:
        self.name, self.killed = name, False
        self._out, self._err = (cwd / "said" / f"{name}{number}.{kind}" for kind in ("out", "err"))
        self.process = subprocess.Popen(
            command(*COMMANDS[name]),
            cwd=cwd,
            env=environment(),
            start_new_session=True,
            stdout=self._out.open("w"),
            stderr=self._err.open("w"),
        )

    def kill(self) -> bool:
        """Kill the process alone; its children end by themselves. False if it has ended."""
        if self.process.poll() is not None:
            return False
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.killed = True
        return True

    def wait(self) -> tuple[str, str]:
        """Wait for the end; return standard output and standard error."""
        self.process.wait(timeout=600)
        return self._out.read_text(), self._err.read_text()


class Markers:
    """The files that say that something is done: once there, nobody may write them again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen: dict[Path, tuple[int, int]] = {}

    def look(self) -> None:
        """Notice new ones, and compare those that are known."""
        for file in (
            *self._folder.glob("features/*.zarr/*/zarr.json"),
            *self._folder.glob("imported.zarr/*/zarr.json"),
            *self._folder.glob("found/[!.]*.scores.npz"),
            *self._folder.glob("run/done.json"),
        ):
            if file.name == "zarr.json" and '"unfinished"' in file.read_text():
                continue
            found = file.stat()
            now = found.st_ino, found.st_mtime_ns
            assert self._seen.setdefault(file, now) == now, f"{file}: done twice"


def disturb(folder: Path, draw: random.Random, kills: int, figures: Figures) -> set[str]:
    """Run all commands at once, kill some of them, and check what the others say.

    Returns:
        The commands of which at least one process was not killed.
    """
    (folder / "said").mkdir()
    starts = [(name, number) for name in COMMANDS for number in range(PROCESSES)]
    draw.shuffle(starts)
    running = [Process(name, number, folder) for name, number in starts]
    markers, next_kill = Markers(folder), time.monotonic() + draw.uniform(0, 3)
    while any(process.process.poll() is None for process in running):
        markers.look()
        time.sleep(0.02)
        if not kills or time.monotonic() < next_kill:
            continue
        # Every second time one that holds a lock: most of the time a process only starts.
        alive = [process for process in running if process.process.poll() is None]
        holders = pids_in_locks(folder)
        at_work = [process for process in alive if process.process.pid in holders]
        victim = draw.choice(at_work if at_work and draw.random() < 0.7 else alive or running)
        if victim.kill():
            kills -= 1
            figures.kills[victim.name] += 1
        next_kill = time.monotonic() + draw.uniform(0, 3)
    return check_survivors(running, figures)


def check_survivors(running: list[Process], figures: Figures) -> set[str]:
    """Check that all others ended well, and that no two did the same; return their commands."""
    made: Counter[str] = Counter()
    survivors: set[str] = set()
    for process in running:
        out, err = process.wait()
        said = f"{process.name} {process.process.returncode}\n{out}\n{err}"
        assert "Traceback" not in said, said
        figures.processes += 1
        figures.waits += "waiting for process" in err
        if not process.killed:
            assert process.process.returncode == 0, said
            survivors.add(process.name)
            made[process.name] += made_anew(out)
    for name in ("extract", "import", "train", "detect"):
        # What a killed process made, and for extract what detect did, counts for nobody.
        exact = name != "extract" and not any(p.killed for p in running if p.name == name)
        most = 1 if name == "train" else len(SUBSETS)
        assert made[name] == most if exact else made[name] <= most, (name, made[name])
    return survivors


def made_anew(out: str) -> int:
    """How much a command says it has made, and not found made."""
    return sum(map(int, MADE_ANEW.findall(out))) + (": trained in" in out)


def pids_in_locks(folder: Path) -> set[int]:
    """The processes that hold a lock now, as the lock files say."""
    found = set()
    for file in folder.rglob("*.locks/*"):
        try:
            words = file.read_text().split()
        except OSError:
            continue  # released meanwhile
        found |= {int(words[0])} if words else set()
    return found


def run_rounds(folder: Path, rounds: int, seed: int) -> Figures:
    """Disturb copies of one workspace, and compare each in the end with an undisturbed one."""
    draw, figures, begin = random.Random(seed), Figures(), time.monotonic()
    prepared, work = prepare(folder / "prepared"), folder / "work"
    # Always the same path, because results name videos by it.
    shutil.copytree(prepared, work)
    for name in ("import", "train", "extract", "detect", "export"):
        mstemba(*COMMANDS[name], cwd=work)
    undisturbed = {name: made_by(name, work) for name in COMMANDS}
    assert all(undisturbed.values())
    for number in range(rounds):
        shutil.rmtree(work)
        shutil.copytree(prepared, work)
        survivors = disturb(work, draw, draw.randint(4, 12), figures)
        for name in COMMANDS:
            last = mstemba(*COMMANDS[name], cwd=work)
            if name in survivors:
                assert made_anew(last.stdout) == 0, f"round {number}: {last.stdout}"
        for name in COMMANDS:
            assert made_by(name, work) == undisturbed[name], f"round {number}: {name} differs"
        left = [file for pattern in LEFTOVERS for file in work.rglob(pattern)]
        assert left == [], f"round {number}: left behind"
        figures.rounds += 1
        figures.seconds = time.monotonic() - begin
        print(figures, flush=True)
    return figures


def test_all_commands_at_once_with_kills(tmp_path: Path) -> None:
    figures = run_rounds(tmp_path, rounds=2, seed=0)
    assert figures.kills.total() >= 8
    assert figures.waits


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run_rounds(Path(folder), given.rounds, given.seed)
