"""Training and extraction on an idle machine and next to one process that keeps a core busy.

    python -m benchmarks.busy WORKSPACE [--rounds N] [--steps N]

WORKSPACE is one in which `mstemba extract` has been run. Every round has each command with OpenMP's
own spin and with that of the command line, idle and busy.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import save
from mstemba.guard import SPIN_COUNT

SPINS = {"OpenMP's own": "300000", "the command's": SPIN_COUNT}
"""The first is the default of libgomp, GNU's OpenMP."""


def seconds(command: list[str], workspace: Path, spin: str, busy: bool) -> float:
    """Run a command and return how long it took, its start included."""
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if busy else None
    try:
        begin = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "mstemba", *command],
            cwd=workspace,
            env={**os.environ, "GOMP_SPINCOUNT": spin},
            check=True,
            capture_output=True,
        )
        return time.perf_counter() - begin
    finally:
        if other:
            other.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workspace", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=30)
    options = parser.parse_args()
    rows: dict[tuple[str, str, bool], list[float]] = {}
    for _ in range(options.rounds):
        for name in ("train", "extract"):
            for busy in (False, True):
                for label, spin in SPINS.items():
                    with tempfile.TemporaryDirectory() as folder:
                        command = ["train", "--output", f"{folder}/run"]
                        command += [f"--{which}-steps={options.steps}" for which in ("min", "max")]
                        if name == "extract":
                            command = ["extract", "--backbone", "efficientnet-lite0"]
                            command += ["--store", f"{folder}/store.zarr", "--device", "cpu"]
                        taken = seconds(command, options.workspace, spin, busy)
                    rows.setdefault((name, label, busy), []).append(taken)
                    print(f"{name}, {label} spin, busy: {busy}, {taken:.1f} s", flush=True)
    found: list[dict[str, Any]] = [
        {"command": name, "spin": label, "busy": busy, "seconds": taken}
        for (name, label, busy), taken in rows.items()
    ]
    print(save("busy", torch.device("cpu"), {"steps": options.steps, "rows": found}))


if __name__ == "__main__":
    main()
