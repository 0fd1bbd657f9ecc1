"""Take annotations that were corrected in the page of `detect` into a workspace, and train again.

    python examples/correct_and_retrain.py workspace corrected.json another.json

A corrected video replaces what the manifest said of it, and new class names are added; --yes lets
a video have fewer actions than before. Videos of which the manifest knows nothing, because `detect`
alone has seen them, are named by --videos.
The same in a shell: `mstemba init --annotations FILE --merge` for each, then `mstemba train`.
"""

import argparse
from pathlib import Path

import mstemba


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workspace")
    parser.add_argument("corrected", nargs="+", type=Path, help="annotation JSON from the page")
    parser.add_argument("--videos", nargs="*", default=[], help="further videos, or folders")
    parser.add_argument("--steps", type=int, default=300, help="of training, at least")
    parser.add_argument("--yes", action="store_true", help="let videos have fewer actions")
    given = parser.parse_args()

    for file in given.corrected:
        made = mstemba.init(given.videos, file, root=given.workspace, merge=True, yes=given.yes)
        print(f"{file}: videos {made.subsets}; actions {made.actions}", *made.report.notes)
    options = mstemba.TrainOptions(min_steps=given.steps, epochs=1)
    training = mstemba.train(options, workspace=made.workspace)
    print(f"{training.run / training.checkpoint}: validation mAP {training.score}")


if __name__ == "__main__":
    try:
        main()
    except (mstemba.MstembaError, OSError) as error:
        raise SystemExit(f"{error}") from None
