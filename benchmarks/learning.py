"""What the networks learn: synthetic features of real label tracks, one budget for all of them.

    python -m benchmarks.learning --annotations DIR [--datasets tsu] [--seeds 3] [--width 0.25]

DIR holds the field's charades.json, smarthome.json and multithumos.json. `mstemba train` trains
every network with the clip length, batch and learning rate of its recipe, and `mstemba evaluate`
scores it; runs that are finished are not repeated.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import safetensors
import torch

from benchmarks.common import RESULTS, save, show
from benchmarks.synthetic import Synthesis, make_features
from mstemba.data_manifests.annotations import read_annotations
from mstemba.data_manifests.manifest import Manifest, manifest_json
from mstemba.pipeline.workspace import create_workspace


@dataclass(frozen=True)
class Data:
    """One dataset of the benchmark."""

    file: str
    synthesis: Synthesis
    steps: int
    """Of every training: the budget."""
    training: int | None = None
    """Videos taken from each subset, None for all: what fits into the time."""
    testing: int | None = None


# `noise` was searched with a linear probe alone (300 steps of 4,096 rows of any videos, a falling
# rate from 0.01) until its mAP on the test videos was about 25, before any network was trained.
DATA = {
    "tsu": Data("smarthome", Synthesis(rate=1 / 16, noise=0.36), steps=600),
    "charades": Data("charades", Synthesis(rate=24 / 16, noise=0.6), 400, 2000, 1000),
    "multithumos": Data("multithumos", Synthesis(rate=30 / 16, noise=0.42), steps=1500),
}

HELD_OUT = 0.01
"""Training videos for the schedule of the released code to look at. The last weights are scored:
choosing the best on so few would be chance."""


@dataclass(frozen=True)
class Contestant:
    """A network and how it is trained."""

    name: str
    arch: str
    recipe: str = "tuned"
    options: tuple[str, ...] = ()


CONTESTANTS = {
    c.name: c
    for c in (
        Contestant("mstemba", "mstemba"),
        Contestant("mstemba-v3", "mstemba-v3"),
        Contestant("mstemba-v3 as released", "mstemba-v3", "paper", ("--schedule", "released")),
        Contestant("mstemba-v3 paper", "mstemba-v3", "paper"),
        Contestant("mstemba-v3 schedule alone", "mstemba-v3", options=("--schedule", "released")),
        Contestant("ms-tct", "ms-tct"),
        Contestant("pdan", "pdan"),
        Contestant("linear probe", "linear", options=("--lr", "0.01")),  # else far from trained
    )
}


def prepare(name: str, annotations: Path, work: Path) -> Path:
    """A workspace of the dataset with synthesised features, made once."""
    data = DATA[name]
    root = work / name
    made = {**asdict(data), "steps": None}
    if (root / "made.json").is_file():
        if json.loads((root / "made.json").read_text()) == made:
            return root
        raise SystemExit(f"{root}: made with other settings; delete it, or give another --work")
    unit = "frames" if name == "tsu" else "seconds"
    manifest, _ = read_annotations(annotations / f"{data.file}.json", time_unit=unit)
    manifest = _subset(replace(manifest, dataset=name), data)
    create_workspace(root)
    rows = make_features(manifest, data.synthesis, root / "npy", list(manifest.videos.values()))
    (root / "manifest.json").write_text(manifest_json(manifest, root))
    (root / "made.json").write_text(json.dumps(made))
    print(f"{name}: {len(manifest.videos)} videos, {rows} rows")
    return root


def _subset(manifest: Manifest, data: Data) -> Manifest:
    """Labelled videos, no more of a subset than the budget has time for, evenly chosen."""
    chosen = {}
    for subset, most in (("training", data.training), ("testing", data.testing)):
        videos = [v for v in manifest.subset(subset) if v.duration and v.actions]
        every = max(1, len(videos) // most) if most else 1
        chosen |= {v.id: v for v in videos[::every][:most]}
    return replace(manifest, videos=chosen)


def run(root: Path, who: Contestant, seed: int, steps: int, width: float) -> dict[str, Any]:
    """Train and score one network once; a finished run is read again."""
    output = root / "runs" / f"{who.name.replace(' ', '-')}-{width}-{steps}-{seed}"
    result = output / "test.json"
    place = ("--manifest", "manifest.json", "--features", "npy")
    options = (
        *("--recipe", who.recipe, "--arch", who.arch, "--width", width, "--seed", seed),
        *("--max-steps", steps, "--val-fraction", HELD_OUT, "--trackers", "none"),
        *who.options,
    )
    if not result.is_file():
        _command(root, "train", *place, *options, "--output", output.relative_to(root))
        checkpoint = ("--checkpoint", output.relative_to(root) / "last")
        _command(root, "evaluate", *place, *checkpoint, "--json", result.relative_to(root))
    done = json.loads((output / "done.json").read_text())
    return {
        "map": json.loads(result.read_text())["map"],
        "parameters": _parameters(output / "last" / "model.safetensors"),
        "seconds": round(done["seconds"], 1),
    }


def _command(root: Path, *arguments: object) -> None:
    command = [sys.executable, "-m", "mstemba", *map(str, arguments), "--quiet"]
    subprocess.run(command, cwd=root, check=True)


def _parameters(weights: Path) -> int:
    with safetensors.safe_open(weights, "np") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and spread over the seeds."""
    scores = [one["map"] for one in runs]
    return {
        "map_mean": round(statistics.mean(scores), 2),
        "map_std": round(statistics.stdev(scores), 2) if len(scores) > 1 else None,
        "maps": [round(score, 2) for score in scores],
        "parameters": runs[0]["parameters"],
        # Of the fastest: other work on the machine only adds.
        "seconds": min(one["seconds"] for one in runs),
    }


def main() -> None:
    """Every network on every dataset, seed by seed; the file is written after each dataset."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--annotations", type=Path, required=True)
    parser.add_argument("--datasets", nargs="+", choices=DATA, default=list(DATA))
    parser.add_argument("--networks", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="of each training [default: by dataset]")
    parser.add_argument("--width", type=float, default=0.25, help="share of the channels")
    parser.add_argument("--work", type=Path, default=Path("learning"))
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    wanted = [CONTESTANTS[name] for name in args.networks]
    for name in args.datasets:
        root = prepare(name, args.annotations.resolve(), args.work.resolve())
        steps = args.steps or DATA[name].steps
        runs: dict[str, list[dict[str, Any]]] = {who.name: [] for who in wanted}
        for seed in range(args.seeds):
            for who in wanted:
                runs[who.name].append(run(root, who, seed, steps, args.width))
                print(name, seed, who.name, runs[who.name][-1], flush=True)
        results = {who: summary(found) for who, found in runs.items()}
        _save(
            f"learning-{name}-{steps}",
            device,
            {"data": asdict(DATA[name]), "steps": steps, "width": args.width},
            results,
        )
        _show(name, results)


def _save(
    name: str, device: torch.device, content: dict[str, Any], results: dict[str, Any]
) -> None:
    """Beside what an earlier call found of other networks, if all else was the same."""
    file = RESULTS / f"{name}-{device.type}.json"
    earlier = json.loads(file.read_text()) if file.is_file() else {}
    same = all(earlier.get(key) == value for key, value in content.items())
    save(name, device, {**content, "results": {**(earlier["results"] if same else {}), **results}})


def _show(name: str, results: dict[str, dict[str, Any]]) -> None:
    rows = [
        [who, f"{r['map_mean']:.2f}", str(r["map_std"]), f"{r['parameters']:,}", f"{r['seconds']}"]
        for who, r in results.items()
    ]
    show(name, ["network", "mAP %", "std of seeds", "parameters", "seconds"], rows)


if __name__ == "__main__":
    main()
