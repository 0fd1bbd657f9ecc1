"""The benchmarks start, and the scripts for a GPU machine name nothing that has moved."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import common, model, scan, tables
from benchmarks.gpu import probe
from benchmarks.peers import Candidate
from mstemba.errors import UsageError
from mstemba.model import architectures
from mstemba.model.architectures import build, make_config
from mstemba.model.scan.backends import list_backends
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
    no_gpu = {"CUDA_VISIBLE_DEVICES": ""}
    done = run(sys.executable, PROBE, tmp_path / "r.json", "ceilings", "versions", env=no_gpu)
    assert done.returncode == 1
    assert "1 of 2 parts done, failed: ceilings; torch sees no GPU here" in done.stdout
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


# The tables of README.md.

CARD = "NVIDIA H100 80GB HBM3"


def scaled(value: Any) -> Any:
    """Every number of a JSON file, half as large again."""
    if isinstance(value, dict):
        return {k: v if k == "machine" else scaled(v) for k, v in value.items()}
    if isinstance(value, list):
        return [scaled(v) for v in value]
    return value * 1.5 if isinstance(value, int | float) and value is not True else value


def test_the_page_holds_the_results() -> None:
    page = tables.README.read_text(encoding="utf-8")
    assert tables.fill(page) == page, "run `python -m benchmarks.tables`"
    assert {name for _, name, _ in tables.BLOCK.findall(page)} == tables.TABLES.keys()


@pytest.mark.parametrize("file", sorted(common.RESULTS.glob("*.json")), ids=lambda f: f.stem)
def test_other_numbers_make_other_tables(file: Path, tmp_path: Path) -> None:
    shutil.copytree(common.RESULTS, tmp_path, dirs_exist_ok=True)
    (tmp_path / file.name).write_text(json.dumps(scaled(json.loads(file.read_text()))))
    mine = [name for name, (pattern, _) in tables.TABLES.items() if file.match(f"{pattern}.json")]
    assert mine
    for name in mine:
        assert tables.tables(name, tmp_path) != tables.tables(name, common.RESULTS), name


def test_every_number_stands_in_its_place() -> None:
    rates = {"decode": 11, "forward": 12, "jpeg": 13, "whole": 14, "steady": 15}
    extraction = {
        "backbone": "clip",
        "model": "ViT",
        "precision": "float32",
        "median": {**rates, "wall_over_sum": 1.6, "over_jpeg": 1.7},
        "rounds": [{"wall_over_sum": 1.5}, {"wall_over_sum": 1.8}],
        "limited_by": "forward",
        "short_clips": {"ratio": 1.9},
        "memory": {"minute": 20 << 20, "hour": 21 << 20},
    }
    rows = [row[1] for row in tables.extraction({"extract": extraction})]
    assert rows == ["clip ViT, float32", "11", "12", "13", "14", "15", "1.60 (1.50 to 1.80)", "1.7",
                    "forward", "1.90", "20 MiB", "21 MiB"]  # fmt: skip
    taken = [
        {"command": "train", "spin": "own", "busy": busy, "seconds": seconds}
        for busy, seconds in ((True, [30, 40, 90]), (False, [10, 20, 30]))
    ]
    assert tables.busy({"busy": {"rows": taken}})[1] == ["train", "own", "20.0 s", "40.0 s", "2.0"]
    labels = {
        "rows": 7,
        "seconds": {"ours": {"fastest": 1, "median": 2}},
        "ratio": {"ours": {"fastest": 3, "median": 4}},
    }
    assert tables.labels({"labels": labels})[1] == ["ours", "1 s", "2 s", "3", "4"]
    errors = {"median_absolute_rows": 0.125, "median_rows": -0.375}
    found = {"actions": 9, "matched": 8, "onset": errors, "offset": {**errors, "median_rows": 2}}
    spans = {**dict.fromkeys(("all", "short", "medium"), found), "long": {**found, "matched": 0}}
    timing = {"results": {"noise": {"strict": {"as now": spans}}}}
    assert tables.timing({"timing": timing})[1] == [
        "noise", "strict", "as now", "8 of 9", *["0.12 / 0.12"] * 3, "-", "-0.38 / +2.00",
    ]  # fmt: skip
    metrics = {"seconds": {"map": {"all": {"best": 1, "median": 2}}}, "per_frame_together": 3}
    assert tables.metrics({"metrics": metrics})[1:] == [
        ["map: all", "1 s", "2 s"],
        ["per frame: all of these, once", "3 s", "-"],
    ]


def test_results_of_a_gpu_get_tables_with_the_name_of_the_card(tmp_path: Path) -> None:
    content = json.loads((common.RESULTS / "scan-cpu.json").read_text())
    content["machine"] |= {"gpu": CARD, "torch": "2.11.0+cu130"}
    content["rows"] = content["rows"][:2]
    gpu = {"seconds": 45e-6, "launches": 9, "waits": 0}
    for row, more in zip(content["rows"], ({}, {"not_recorded": "it waits"}), strict=True):
        row["seconds"]["gpu"] = {**gpu, **more}
    (tmp_path / "scan-cuda.json").write_text(json.dumps(content))
    forward, training = (tables.tables(f"scan-{k}", tmp_path) for k in ("forward", "training"))
    assert f"{CARD}, torch 2.11.0+cu130: [scan-cuda](results/scan-cuda.json)" in forward
    assert "(GPU 45 µs, 9 launches)" in forward
    assert "(GPU at most 45 µs, not recorded, 9 launches)" in training
    assert [tables.tables(name, tmp_path) for name in ("probe", "model", "extract")] == [""] * 3


# Times on a GPU, with torch.cuda replaced by what a CPU can do.


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """Stand-ins for CUDA graphs and events; ``mode`` is what a wait does at present."""
    found = SimpleNamespace(mode="default", recorded=0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # small operations: threads would wait for each other

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = time.perf_counter()

        def synchronize(self) -> None:
            pass

        def elapsed_time(self, end: Event) -> float:
            return 1e3 * (end.at - self.at)

    @contextmanager
    def graph(_: object) -> Iterator[None]:
        yield
        found.recorded += 1

    for name, value in {
        "Event": Event,
        "graph": graph,
        "CUDAGraph": lambda: SimpleNamespace(replay=lambda: None),
        "synchronize": lambda *_: None,
        "set_sync_debug_mode": lambda mode: setattr(found, "mode", mode),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    yield found
    torch.set_num_threads(threads)


def test_times_on_a_gpu_have_those_of_the_gpu_alone(fake_cuda: SimpleNamespace) -> None:
    taken = common.times(partial(time.sleep, 2e-3), torch.device("cuda"), 0.01)
    assert taken["best"] >= 2e-3
    assert taken["gpu"]["seconds"] < 2e-3  # of the replay
    assert {"launches", "waits"} < taken["gpu"].keys()
    assert fake_cuda.recorded == 1
    assert "gpu" not in common.times(int, torch.device("cpu"), 0.01)


def test_a_call_that_waits_says_so_and_is_not_recorded(fake_cuda: SimpleNamespace) -> None:
    def waits() -> None:
        if fake_cuda.mode == "error":
            raise RuntimeError("called a synchronizing CUDA operation\nand a stack")
        time.sleep(2e-3)

    row = common.times_or_failure(waits, torch.device("cuda"), 0.01)
    gpu = row["seconds"]["gpu"]
    assert gpu["not_recorded"] == "RuntimeError: called a synchronizing CUDA operation"
    assert gpu["seconds"] >= 2e-3
    assert (fake_cuda.recorded, fake_cuda.mode) == (0, "default")
    assert "not recorded" in common.duration(row)


def test_what_cannot_run_at_all_says_why() -> None:
    def fails() -> None:
        raise ValueError("of no use")

    row = common.times_or_failure(fails, torch.device("cpu"))
    assert common.duration(row) == "ValueError: of no use"


# The scan and the network: every backend, and a file after every row.


def test_every_available_backend_is_measured() -> None:
    found = scan.candidates(torch.device("cpu"))
    device = {"cpu", "chunked", "reference"}  # the others need a GPU, or an interpreter of Triton
    available = {b.name for b in list_backends() if b.available} & device
    assert {f"ours: {name}" for name in available} <= found.keys()


def fast(*tensors: torch.Tensor) -> torch.Tensor:
    return sum(tensor.sum() for tensor in tensors) * tensors[0]


def fails(*_: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("out of memory")


def stops(*_: torch.Tensor) -> torch.Tensor:
    raise KeyboardInterrupt


def test_rows_of_the_scan_are_saved_as_they_are_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    scans = {"ours: reference": fast, "fails": fails, "stops": stops}
    found = {name: Candidate(function) for name, function in scans.items()}
    monkeypatch.setattr(scan, "candidates", lambda _: found)
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    sizes = "--device cpu --lengths 8 --channels 4 --states 2 --seconds 0.1"
    monkeypatch.setattr(sys, "argv", ["scan", *sizes.split()])
    with pytest.raises(KeyboardInterrupt):
        scan.main()
    rows = json.loads((tmp_path / "scan-cpu.json").read_text())["rows"]
    assert [row["scan"] for row in rows] == ["ours: reference"] * 2 + ["fails"] * 2
    assert rows[0]["seconds"]["calls"] >= 3
    assert rows[2]["failed"] == "RuntimeError: out of memory"
    assert "out of memory" in tables.tables("scan-forward", tmp_path)


def small_network(arch: str) -> Any:
    return build(make_config(arch, 8, 3, width=0.05))


def test_rows_of_the_network_are_saved_as_they_are_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    for name, value in {
        "STEPS": 8,
        "build": lambda _: small_network("mstemba-v3"),
        "peers": dict,
        "list_backends": lambda: [b for b in list_backends() if b.name == "reference"],
        "large_product_rate": lambda _: 1e9,
        "by_length": lambda *_: iter(stops, None),
    }.items():
        monkeypatch.setattr(model, name, value)
    options = "--device cpu --features 8 --seconds 0.1"
    monkeypatch.setattr(sys, "argv", ["model", *options.split()])
    with pytest.raises(KeyboardInterrupt):
        model.main()
    found = json.loads((tmp_path / "model-mstemba-v3-cpu.json").read_text())
    assert {"reference"} <= {row["scan"] for row in found["backends"]}
    assert [row["variant"] for row in found["variants"]] == ["float32", "bfloat16 autocast"]
    assert "bfloat16 autocast" in tables.fill(tables.README.read_text(encoding="utf-8"), tmp_path)
    assert "reference | separate calls" in tables.tables("model", tmp_path)


@pytest.mark.parametrize("arch", ["mstemba", "mstemba-v3"])
def test_what_is_timed_does_not_check_the_features(arch: str) -> None:
    network, bad = small_network(arch), torch.full((1, 4, 8), torch.nan)
    model.forward(network, bad)
    model.step(network, bad)
    with pytest.raises(UsageError, match="features"):
        network(bad)


# The probe.


def test_the_probe_makes_what_the_tables_hold(
    fake_cuda: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(scan, "candidates", lambda _: {"ours: chunked": Candidate(fast)})
    monkeypatch.setattr(architectures, "make_config", partial(make_config, width=0.05))
    for name, value in {
        "DEVICE": torch.device("cpu"), "BACKEND": "cpu", "STEPS": 8, "LENGTHS": (4,),
        "CHANNELS": 8,
    }.items():  # fmt: skip
        monkeypatch.setattr(probe, name, value)
    monkeypatch.setattr(sys, "argv", ["probe", str(tmp_path / "probe.json"), "networks", "scans"])
    with pytest.raises(SystemExit) as ended:
        probe.main()
    assert not ended.value.code
    networks = tables.tables("probe-networks", tmp_path)
    assert "| mstemba forward |" in networks
    assert "| mstemba-v3 training step, bf16 |" in networks
    assert "| 4 bfloat16 ours: chunked |" in tables.tables("probe-scans", tmp_path)


def test_a_part_of_the_probe_keeps_what_it_had_before_it_failed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def half() -> Iterator[tuple[str, float]]:
        yield "copy, GB/s", 3000.0
        raise RuntimeError("lost")

    monkeypatch.setitem(probe.PARTS, "ceilings", half)
    monkeypatch.setattr(sys, "argv", ["probe", str(tmp_path / "probe.json"), "ceilings"])
    with pytest.raises(SystemExit) as ended:
        probe.main()
    assert ended.value.code
    found = json.loads((tmp_path / "probe.json").read_text())
    assert found["failed"] == {"ceilings": "RuntimeError: lost"}
    assert "| ceilings | copy, GB/s | 3000 |" in tables.tables("probe", tmp_path)


def test_the_lines_that_wait_are_counted(
    fake_cuda: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    import warnings

    def waits() -> None:
        if fake_cuda.mode == "warn":
            for _ in range(2):
                warnings.warn("called a synchronizing CUDA operation", stacklevel=1)

    found = probe.waits_at(waits)
    assert [(place.split(":")[0], count) for place, count in found.items()] == [
        ("test_benchmarks.py", 2)
    ]


def test_of_mamba_ssm_only_the_scans_are_imported(tmp_path: Path) -> None:
    ops = tmp_path / "mamba_ssm" / "ops"
    ops.mkdir(parents=True)
    (tmp_path / "selective_scan_cuda.py").touch()
    (ops.parent / "__init__.py").write_text("raise ImportError('transformers is missing')")
    (ops / "__init__.py").touch()
    (ops / "selective_scan_interface.py").write_text(
        "selective_scan_fn = selective_scan_ref = lambda *_, **__: None"
    )
    code = "from benchmarks.peers import peers; print(*peers(), sep='; ')"
    done = run(sys.executable, "-c", code, env={"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"})
    assert "mamba-ssm kernel" in done.stdout.split("; "), done.stderr
