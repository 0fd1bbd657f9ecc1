"""The fuzz suite finds no fault in the package, and it does find those that are planted."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from tests.command_line import environment
from tests.fuzz import runner
from tests.fuzz.mutations import CANARY, mutate

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]


def test_no_damaged_or_hostile_file_does_harm() -> None:
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.fuzz",
            "--check",
            "--jobs",
            "2",
            "--count",
            "300",
            "--seed",
            "18",
        ],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        encoding="utf-8",
        timeout=500,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "300 cases" in result.stdout


@pytest.fixture
def case(tmp_path: Path) -> runner.Case:
    template = tmp_path / "template"
    (template / "videos").mkdir(parents=True)
    (template / "videos" / "a.mp4").write_bytes(b"a video")
    (template / "manifest.json").write_text("{}")
    return runner.Case(tmp_path / "case", template)


def refuses() -> None:
    print("mstemba: manifest.json: wrong", file=sys.stderr)
    sys.exit(2)


def test_an_error_in_one_line_is_no_fault(case: runner.Case, tmp_path: Path) -> None:
    assert found(refuses, case, tmp_path) == []


def found(target: Callable[[], None], case: runner.Case, tmp_path: Path) -> list[str]:
    idle = runner.run(lambda: None, tmp_path / "idle.log").memory
    return runner.examine(target, case, "manifest.json", idle, 2, seconds=3.0)[1]


def raises() -> None:
    raise RecursionError("planted")


def eats() -> None:
    eaten = b"x" * (700 << 20)
    assert eaten


def asks_for_all() -> None:
    print("mstemba: this machine does not have enough memory", file=sys.stderr)
    sys.exit(1)


def is_silent() -> None:
    sys.exit(2)


@pytest.mark.parametrize(
    ("target", "fault"),
    [
        (raises, "traceback: RecursionError: planted"),
        (lambda: time.sleep(100), "not finished after 3 s"),
        (eats, "MB of memory for a file of 2 bytes"),
        (lambda: os.kill(os.getpid(), 9), "exit code -9"),
        (lambda: sys.exit(70), "exit code 70"),
        (asks_for_all, "asked for memory that nobody has"),
        (is_silent, "exit code 2 with 0 error lines"),
        (lambda: sys.exit(1), "no line says what failed"),
    ],
)
def test_a_planted_fault_is_found(
    target: Callable[[], None], fault: str, case: runner.Case, tmp_path: Path
) -> None:
    assert any(fault in one for one in found(target, case, tmp_path))


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda w: (w / "../../x").write_text(""), "outside the workspace: made: deep/x"),
        (lambda w: (w / "../../../home/x").mkdir(), "outside the workspace: made: home/x"),
        (lambda w: (w / "../../../tmp/x").write_text(""), "outside the workspace: made: tmp/x"),
        (
            lambda w: (w / "../../../outside/secret.txt").write_text("other"),
            "outside the workspace: changed: outside/secret.txt",
        ),
        (
            lambda w: (w / "../../../outside/secret.txt").unlink(),
            "outside the workspace: deleted: outside/secret.txt",
        ),
        (
            lambda w: (w / "../../../outside" / CANARY).mkdir(),
            f"executed: made: outside/{CANARY}",
        ),
        (lambda w: (w / ".writing-1-x").write_text(""), "left behind: .writing-1-x"),
        (lambda w: (w / "videos/a.mp4").unlink(), "after a failure deleted: videos/a.mp4"),
    ],
)
def test_a_planted_change_is_found(
    change: Callable[[Path], object], fault: str, case: runner.Case, tmp_path: Path
) -> None:
    def target() -> None:
        change(case.workspace)
        refuses()

    assert found(target, case, tmp_path) == [fault]


def test_a_hostile_pickle_would_leave_its_canary(tmp_path: Path) -> None:
    """Some of the programs do run where a pickle is read as one."""
    executed = 0
    for number in range(60):
        file, outside = tmp_path / f"{number}.pkl", tmp_path / str(number)
        outside.mkdir()
        file.write_bytes(pickle.dumps({"v": 1}))
        mutate(Random(number), "pickle", file, outside)
        if file.is_file() and file.stat().st_size < 10_000:
            runner.run(lambda f=file: pickle.loads(f.read_bytes()), tmp_path / "log")
        executed += (outside / CANARY).exists()
    assert executed > 0


def test_a_case_is_the_same_again(tmp_path: Path) -> None:
    made = []
    for name in ("one", "two"):
        file = tmp_path / name / "labels.json"
        file.parent.mkdir()
        file.write_text('{"videos": {"a": {"duration": 3, "actions": [[0, 1, 2]]}}}')
        what = mutate(Random("18/7"), "json", file, tmp_path)
        made.append((what, file.read_bytes() if file.is_file() else None))
    assert made[0] == made[1]
