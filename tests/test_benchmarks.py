"""The benchmarks start, and the scripts for a GPU machine name nothing that has moved."""

from __future__ import annotations

import ast
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.videos import encode

ROOT = Path(__file__).parents[1]
GPU = ROOT / "benchmarks" / "gpu"
RUN = (GPU / "run.sh").read_text(encoding="utf-8").replace("\\\n", " ")
PROBE = GPU / "probe.py"
# `stage NAME SECONDS COMMAND...`, `tests NAME SECONDS ARGUMENTS...`
STAGE = re.compile(
    r"^\s*(?:\w+=\w+ )?(?:\[ .* \] \|\| )?(stage|tests) ([a-z][\w-]*) \d+ (.*)$", re.M
)
STAGES = [(kind, name, command) for kind, name, command in STAGE.findall(RUN)]


def run(*command: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
        capture_output=True,
        text=True,
    )


def help_of(*module: str) -> str:
    done = run(sys.executable, "-m", *module, "--help")
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("file", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda f: f.stem)
def test_a_benchmark_imports_what_exists(file: Path) -> None:
    importlib.import_module(f"benchmarks.{file.stem}")


def test_frames_become_jpeg_files_without_ffmpeg(tmp_path: Path) -> None:
    from benchmarks.videos import to_jpeg

    video = encode(tmp_path / "v.mp4", 12, width=64, height=48)
    to_jpeg(video, tmp_path, 10)
    files = sorted(tmp_path.glob("*.jpg"))
    assert len(files) == 10
    assert all(file.read_bytes().startswith(b"\xff\xd8\xff") for file in files)


def test_the_stages_of_the_gpu_script_are_found() -> None:
    names = [name for _, name, _ in STAGES]
    assert len(names) >= 15
    listed = re.search(r"Stages, in order: (.*?);", (GPU / "README.md").read_text(), re.S)
    assert listed
    assert list(dict.fromkeys(names)) == listed[1].replace("\n", " ").split(", ")


def test_every_path_of_the_gpu_scripts_exists() -> None:
    files = [*GPU.glob("*.sh"), *GPU.glob("*.py"), GPU / "README.md"]
    named = set()
    for file in files:
        text = file.read_text(encoding="utf-8").replace("$GPU", "benchmarks/gpu")
        named |= set(re.findall(r"\b(?:tests|benchmarks|mstemba)(?:/\w+)*/[\w.]+\w", text))
    made_by_the_scripts = {"benchmarks/gpu/bundle"}
    missing = {path for path in named if not (ROOT / path).exists()} - made_by_the_scripts
    assert len(named) > 10
    assert missing == set()


def test_every_module_and_name_that_the_probe_imports_exists() -> None:
    for node in ast.walk(ast.parse(PROBE.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith(("mstemba", "benchm")):
            module = importlib.import_module(str(node.module))
            for alias in node.names:
                if not hasattr(module, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")


@pytest.mark.slow
@pytest.mark.parametrize("module", ["scan", "model", "extract", "demo"])
def test_every_option_that_the_gpu_script_gives_exists(module: str) -> None:
    start = "-m mstemba demo" if module == "demo" else f"-m benchmarks.{module}"
    calls = [command for _, _, command in STAGES if start in command]
    assert calls
    said = help_of("mstemba", "demo") if module == "demo" else help_of(f"benchmarks.{module}")
    for call in calls:
        for option in re.findall(r" (--[a-z-]+)", call.split(start)[1]):
            assert option in said, call


def test_the_tests_that_the_gpu_script_selects_exist() -> None:
    for _, name, command in STAGES:
        if (chosen := re.search(r"-k '?([\w ]+)'?", command)) is None:
            continue
        files = re.findall(r"tests/[\w/]+\.py", command)
        assert files, name
        sources = [(ROOT / file).read_text(encoding="utf-8") for file in files]
        for word in chosen[1].split(" or "):
            assert any(word in source for source in sources), f"{name}: {word}"


@pytest.mark.slow
def test_every_part_of_the_probe_that_the_script_runs_exists() -> None:
    calls = [command for _, _, command in STAGES if "probe.py" in command]
    asked = {part for call in calls for part in call.split('probe.json"')[1].split()}
    done = run(sys.executable, PROBE)
    assert done.returncode != 0
    known = done.stderr.split("parts: ")[1].strip().split(", ")
    assert asked == set(known)


@pytest.mark.slow
def test_a_part_that_fails_stops_no_other(tmp_path: Path) -> None:
    import torch

    no_gpu = {"CUDA_VISIBLE_DEVICES": ""}
    done = run(sys.executable, PROBE, tmp_path / "r.json", "ceilings", "versions", env=no_gpu)
    assert done.returncode == 1
    assert "1 of 2 parts done, failed: ceilings" in done.stdout
    assert f"torch {torch.__version__}" in done.stdout


STUB = """#!/bin/sh
case "$*" in
*test_golden*) echo "FAILED tests/model/test_golden.py::test_v1"; exit 1 ;;
*"benchmarks.scan"*) sleep 60 ;;
*) echo "said: $1 $2" ;;
esac
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="the script is of bash")
def test_a_stage_that_fails_or_hangs_is_one_line_and_stops_nothing(tmp_path: Path) -> None:
    stub = tmp_path / "python"
    stub.write_text(STUB)
    stub.chmod(0o755)
    out = tmp_path / "out"
    stages = "versions goldens scan model"
    # The third stage takes what is left of the time, and the fourth finds none.
    env = {"PYTHON": str(stub), "OUT": str(out), "STAGES": stages, "LIMIT": "10", "LEAST": "4"}
    done = run("bash", GPU / "run.sh", env=env)
    assert done.returncode == 0, done.stderr
    lines = [line.partition("] ")[2] for line in (out / "summary.txt").read_text().splitlines()]
    assert lines[0].startswith("versions: ok in ")
    assert lines[0].endswith("said: benchmarks/gpu/probe.py " + str(out / "probe.json"))
    assert lines[1].startswith("goldens: FAILED (1) in ")
    assert (out / "summary.txt").read_text().splitlines()[2].startswith("FAILED tests/model")
    assert re.match(r"scan: STOPPED after \d+ s in \d+ s", lines[3])
    assert lines[4] == "model: skipped, the time is used up"
    assert lines[5].startswith("all stages done; in ")
    logs = (out / "logs.txt").read_text()
    assert [part for part in stages.split() if f"##### {part}: " in logs] == [
        "versions", "goldens", "scan",
    ]  # fmt: skip
