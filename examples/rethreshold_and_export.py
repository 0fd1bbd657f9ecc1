"""Find a threshold on the scores that `detect` has kept, and write the files for it.

    python examples/rethreshold_and_export.py detections/video.scores.npz --threshold 0.4 \
        --format eaf,vtt

Neither the video nor the checkpoint is needed.
"""

import argparse
from collections import Counter

import mstemba


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scores", help="a file VIDEO.scores.npz")
    parser.add_argument("--threshold", type=float, help="write files; else only look")
    parser.add_argument("--format", default="json,csv", help="formats, separated by commas")
    parser.add_argument("--output", help="folder of the files, if not beside the scores")
    given = parser.parse_args()

    kept = mstemba.read_scores(given.scores)
    print(kept.scores)
    for percent in range(10, 100, 10):
        threshold = percent / 100
        segments = mstemba.find_segments(kept.scores, threshold, low=0.6 * threshold)
        counts = Counter(segment.label for segment in segments)
        print(f"threshold {threshold:.1f}: {len(segments)} segments {dict(counts)}")

    if given.threshold is not None:
        options = mstemba.ExportOptions(threshold=given.threshold, formats=given.format)
        result = mstemba.export(given.scores, options, output=given.output)
        for files in result.files.values():
            print("wrote", *files)
        for name, reason in result.failed.items():
            print(f"{name} failed: {reason}")


if __name__ == "__main__":
    try:
        main()
    except mstemba.MstembaError as error:
        raise SystemExit(f"{error}") from None
