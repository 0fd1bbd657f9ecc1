"""The real command line in a process of its own, and a small workspace to run it in."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
from numpy.typing import NDArray

import mstemba as package
from mstemba.__main__ import main
from mstemba.pipeline.caching.keys import file_sha256
from mstemba.pipeline.decode.pyav import write_video
from mstemba.pipeline.features.store import FeatureStore
from mstemba.pipeline.workspace import get_current

FPS = 10
CLASSES = ["moves right", "moves down", "stands"]
EXTRACT = ("extract", "--backbone", "efficientnet-lite0", "--window", "4", "--stride", "4")
TRAIN = ("train", "--min-steps", "6", "--epochs", "1")
# A threshold that the barely trained model surely reaches.
DETECT = ("detect", "videos/v2.mp4", "--threshold", "0.05")


def command(*args: str | Path) -> list[str]:
    return [sys.executable, "-m", "mstemba", *map(str, args)]


def environment(**more: str) -> dict[str, str]:
    """The caller's environment, naming no workspace, and this checkout from any folder."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("MSTEMBA_")}
    return {
        **kept,
        "PYTHONPATH": str(Path(package.__file__).parents[1]),
        # Several threads on such small work mostly wait for each other where the cores are shared.
        "OMP_NUM_THREADS": "1",
        **more,
    }


def mstemba(
    *args: str | Path,
    cwd: Path,
    expect: int | None = 0,
    env: dict[str, str] | None = None,
    before: Callable[[], None] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run `mstemba` and check its exit code (None: any), and that nobody sees a traceback.

    `before` runs in the new process, before the command.
    """
    result = subprocess.run(
        command(*args),
        cwd=cwd,
        env=environment(**(env or {})),
        preexec_fn=before,
        capture_output=True,
        encoding="utf-8",
        errors="surrogateescape",
        timeout=300,
    )
    said = f"{' '.join(map(str, args))}\n{result.stdout}\n{result.stderr}"
    assert "Traceback" not in said, said
    assert expect in (None, result.returncode), f"exit code {result.returncode}: {said}"
    return result


class Runner(Protocol):
    """Runs `mstemba` with these words."""

    def __call__(
        self,
        *args: str | Path,
        cwd: Path,
        expect: int | None = 0,
        env: dict[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]: ...


@pytest.fixture(name="mstemba")
def in_this_process(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Runner:
    """Return `mstemba` in this process, which is faster; an exception fails the test."""
    monkeypatch.delenv("MSTEMBA_WORKSPACE", raising=False)
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])  # the decoder is a process

    def run(
        *args: str | Path,
        cwd: Path,
        expect: int | None = 0,
        env: dict[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        for name, value in (env or {}).items():
            monkeypatch.setenv(name, value)
        monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, "argv", ["mstemba", *map(str, args)])
        capfd.readouterr()
        # A process would print warnings on standard error.
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            with pytest.raises(SystemExit) as ended:
                main()
        said = capfd.readouterr()
        assert [str(w.message) for w in warned if w.category is UserWarning] == []
        code = ended.value.code or 0
        assert expect in (None, code), said
        return subprocess.CompletedProcess(args, int(code), said.out, said.err)

    return run


# What else may stand on stderr: lists, and what a stage is doing.
_NEWS = re.compile(
    r"warning: |failed: |(extract|train|evaluate|detect|export) \d+ %: |loading |scan backend |"
    r"recipe |\d+ training videos|zero-shot: |replacing "
)


def complaint(result: subprocess.CompletedProcess[str]) -> str:
    """The one line that says what is wrong."""
    lines = [line for line in result.stderr.splitlines() if not _NEWS.match(line)]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("mstemba: ")
    return lines[0]


def squares(seed: int, count: int, size: int = 64) -> Iterator[NDArray[np.uint8]]:
    """A bright square that moves over a dark picture, (size, size, 3) RGB."""
    for i in range(count):
        image = np.full((size, size, 3), 40, np.uint8)
        x, y = (7 * seed + 2 * i) % (size - 16), (3 * i) % (size - 16)
        image[y : y + 16, x : x + 16] = 180 + 20 * seed
        yield image


def film(path: Path, seed: int = 0, count: int = 8) -> Path:
    """Encode a small video."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, squares(seed, count), FPS)
    return path


def make_workspace(folder: Path, subsets: tuple[str, ...]) -> Path:
    """Three seconds of video for each subset named, labelled, and made a workspace."""
    entries = {}
    for number, subset in enumerate(subsets):
        film(folder / "videos" / f"v{number}.mp4", number, 3 * FPS)
        actions = [[0, 0.5, 1.5], [1, 1.0 + number / 5, 2.5], [2, 0.1, 0.8]]
        entries[f"v{number}"] = {"subset": subset, "duration": 3.0, "actions": actions}
    labels = {"classes": CLASSES, "time_unit": "seconds", "videos": entries}
    (folder / "labels.json").write_text(json.dumps(labels))
    mstemba("init", "--videos", "videos", "--annotations", "labels.json", cwd=folder)
    return folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace after the whole path. Only read here; tests that change it take `workspace`."""
    folder = make_workspace(
        tmp_path_factory.mktemp("finished"), ("training", "training", "testing")
    )
    mstemba(*EXTRACT, cwd=folder)
    mstemba(*TRAIN, cwd=folder)
    mstemba(*DETECT, cwd=folder)
    return folder


@pytest.fixture
def workspace(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished workspace."""
    return shutil.copytree(finished, tmp_path / "workspace")


@pytest.fixture
def untrained(workspace: Path) -> Path:
    """A workspace with features and no model."""
    shutil.rmtree(workspace / "detections")
    shutil.rmtree(workspace / "runs")
    return workspace


@pytest.fixture
def fresh(untrained: Path) -> Path:
    """A workspace with neither features nor a model."""
    shutil.rmtree(untrained / "features")
    return untrained


def edit_json(path: Path, change: Callable[[Any], object]) -> None:
    """Change a JSON file in place."""
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def current_store(workspace: Path) -> Path:
    store = get_current(workspace / "features")
    assert store is not None
    return store


def current_run(workspace: Path) -> Path:
    run = get_current(workspace / "runs")
    assert run is not None
    return run


def contents(folder: Path) -> dict[str, tuple[int, str]]:
    """Modification time and SHA-256 of every file.

    The fingerprints, a mere memory, are left out; a pointer may be written again as it was.
    """
    return {
        file.relative_to(folder).as_posix(): (
            0 if file.name == "current" else file.stat().st_mtime_ns,
            file_sha256(file),
        )
        for file in sorted(folder.rglob("*"))
        if file.is_file() and ".cache" not in file.parts
    }


def entries(store: Path) -> dict[str, dict[str, Any]]:
    """Every finished entry of a store: its numbers as bytes, and what is said of it but when."""
    opened = FeatureStore.open(store)
    found = {}
    for id in sorted(p.name for p in store.iterdir() if p.is_dir()):
        said = opened.entry(id)
        if said is not None:
            values = opened.read(id).values
            facts = {name: fact for name, fact in said.items() if name != "made"}
            found[id] = {**facts, "shape": values.shape, "values": values.tobytes()}
    return found
