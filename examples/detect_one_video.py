"""Detect the actions in one video with a trained checkpoint, and print them.

    python examples/detect_one_video.py video.mp4 --checkpoint runs/mine

The scores are kept: asked again, with another threshold, the answer comes at once.
"""

import argparse
import sys

import mstemba


def show(event: mstemba.Event) -> None:
    """A progress callback: what a program would put into its window."""
    if event.warning:
        print(f"\n{event.video}: {event.message}", file=sys.stderr)
    elif event.share is not None:
        speed = "" if event.rate is None else f" {event.rate:.0f} {event.unit}/s"
        left = "" if event.eta is None else f" {event.eta:.0f} s left"
        print(f"\r{event.stage} {event.share:4.0%}{speed}{left}   ", end="", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("video")
    parser.add_argument("--checkpoint", required=True, help="a run's folder, or a checkpoint's")
    parser.add_argument("--threshold", type=float, default=0.5)
    parser.add_argument("--output", default="detections")
    given = parser.parse_args()

    options = mstemba.ExportOptions(threshold=given.threshold)
    result = mstemba.detect(
        given.video, options, checkpoint=given.checkpoint, output=given.output, on_event=show
    )
    print(file=sys.stderr)
    for segment in result.segments:  # the reason is raised here if the video could not be read
        print(f"{segment.start:8.2f} {segment.end:8.2f} {segment.score:.2f} {segment.label}")
    best = result.scores.probabilities.max(axis=0)
    print("highest probability of each class:")
    for label, probability in zip(result.scores.classes, best, strict=True):
        print(f"{probability:8.2f} {label}")


if __name__ == "__main__":
    try:
        main()
    except mstemba.MstembaError as error:
        raise SystemExit(f"{error}") from None
