"""From your own videos and a table of actions to a trained detector, in Python.

    python examples/your_own_annotations.py videos labels.csv --workspace work --detect new.mp4

The table has the columns video, start, end, label (seconds) and, if you like, subset. Run it again
after a change: only what the change touches is computed again.
"""

import argparse

import mstemba


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("videos", help="folder of the annotated videos")
    parser.add_argument("annotations", help="CSV, or any other form that docs/init.md lists")
    parser.add_argument("--workspace", default="workspace")
    parser.add_argument("--detect", nargs="*", help="videos to detect in, when it is trained")
    parser.add_argument("--backbone", default="efficientnet-lite0")
    parser.add_argument("--steps", type=int, default=300, help="of training, at least")
    given = parser.parse_args()

    made = mstemba.init(given.videos, given.annotations, root=given.workspace)
    print(f"{len(made.manifest.classes)} classes; videos {made.subsets}; actions {made.actions}")
    for line in made.report.lines():
        print("odd in the annotations:", line)

    extraction = mstemba.extract(
        options=mstemba.FeatureOptions(backbone=given.backbone), workspace=made.workspace
    )
    for id, reason in extraction.failed.items():
        print(f"{id} could not be read: {reason}")
    options = mstemba.TrainOptions(min_steps=given.steps, epochs=1)
    training = mstemba.train(options, workspace=made.workspace)
    print(f"{training.run / training.checkpoint}: validation mAP {training.score}")

    if given.detect:
        found = mstemba.detect(given.detect, workspace=made.workspace)
        for detection in found:
            print(detection)
        for id, reason in found.failed.items():
            print(f"{id} failed: {reason}")


if __name__ == "__main__":
    try:
        main()
    except mstemba.MstembaError as error:
        raise SystemExit(f"{error}") from None
