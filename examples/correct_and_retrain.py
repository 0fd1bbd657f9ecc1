"""Take annotations that were corrected in the page of `detect` into a workspace, and train again.

    python examples/correct_and_retrain.py workspace corrected.json another.json

A corrected video replaces what the manifest said of it, and new class names are added. Videos of
which the manifest knows nothing, because `detect` alone has seen them, are named by --videos.
"""

import argparse
import json
from pathlib import Path

import mstemba


def merge(known: dict, given: dict) -> None:
    """Put the annotations `given` into `known`, whose classes may be others."""
    if known["time_unit"] != given["time_unit"]:
        raise SystemExit(f"times in {given['time_unit']}, the manifest has {known['time_unit']}")
    known["classes"] += [name for name in given["classes"] if name not in known["classes"]]
    number = [known["classes"].index(name) for name in given["classes"]]
    for id, video in given["videos"].items():
        former = known["videos"].get(id, {})
        video["subset"] = video.get("subset") or former.get("subset") or "training"
        video["actions"] = [[number[c], start, end] for c, start, end in video["actions"]]
        known["videos"][id] = {**former, **video}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workspace")
    parser.add_argument("corrected", nargs="+", type=Path, help="annotation JSON from the page")
    parser.add_argument("--videos", nargs="*", default=[], help="further videos, or folders")
    parser.add_argument("--steps", type=int, default=300, help="of training, at least")
    given = parser.parse_args()

    workspace = mstemba.open_workspace(given.workspace)
    known = json.loads(workspace.manifest.read_text(encoding="utf-8"))
    paths = [workspace.root / v["path"] for v in known["videos"].values() if v.get("path")]
    for file in given.corrected:
        merge(known, json.loads(file.read_text(encoding="utf-8")))
    annotations = workspace.root / "corrected.json"
    annotations.write_text(json.dumps(known), encoding="utf-8")

    made = mstemba.init([*paths, *given.videos], annotations, root=workspace.root)
    print(f"videos {made.subsets}; actions {made.actions}; former manifest {made.backup}")
    options = mstemba.TrainOptions(min_steps=given.steps, epochs=1)
    training = mstemba.train(options, workspace=made.workspace)
    print(f"{training.run / training.checkpoint}: validation mAP {training.score}")


if __name__ == "__main__":
    try:
        main()
    except (mstemba.MstembaError, OSError) as error:
        raise SystemExit(f"{error}") from None
