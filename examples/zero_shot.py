"""Look for actions named in words in a video, with no training and no annotations.

    python examples/zero_shot.py video.mp4 --labels "opening a door, drinking, sitting down"

CLIP compares the pictures with the words; the first time its weights are downloaded, unless a file
is named by --weights. Its probabilities are rough: see docs/zero-shot.md before relying on them.
"""

import argparse
import sys

import mstemba


def show(event: mstemba.Event) -> None:
    """News and warnings in lines of their own, progress in one."""
    if event.share is None:
        print(f"\r{event.message}", file=sys.stderr)
    else:
        print(f"\r{event.stage} {event.share:4.0%}   ", end="", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("video")
    parser.add_argument("--labels", required=True, help="by commas, or a file with one a line")
    parser.add_argument("--model", help="of open_clip; the bigger, the better and slower")
    parser.add_argument("--weights", help="a weights file, or a published tag")
    parser.add_argument("--threshold", type=float, default=0.5)
    parser.add_argument("--output", default="detections")
    given = parser.parse_args()

    result = mstemba.detect(
        given.video,
        mstemba.ExportOptions(threshold=given.threshold),
        labels=given.labels,
        zero_shot=mstemba.ZeroShotOptions(model=given.model),
        weights=given.weights,
        output=given.output,
        on_event=show,
    )
    print(file=sys.stderr)
    scores = result.scores
    for class_id, label in enumerate(scores.classes):
        row = scores.probabilities[:, class_id].argmax()
        probability, time = scores.probabilities[row, class_id], scores.times[row]
        print(f"{label}: {probability:.2f} at best, at {time:.1f} s")
    print("segments:", *result.segments, sep="\n")
    print("files:", *(file for files in result.files.values() for file in files))


if __name__ == "__main__":
    try:
        main()
    except mstemba.MstembaError as error:
        raise SystemExit(f"{error}") from None
