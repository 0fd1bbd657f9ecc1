"""A backbone without weights, whose pictures and words are colours, and `detect` run with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import mstemba
from mstemba.pipeline.detect.stage import DetectResult
from mstemba.pipeline.options import ExportOptions, RunOptions, ZeroShotOptions
from tests.videos import encode_at

FPS = 10
WORDS = {"red": (1.0, 0, 0), "green": (0, 1.0, 0), "blue": (0, 0, 1.0)}
HOW = ZeroShotOptions(backbone="colours", window=2, stride=2, smoothing=0.0)


def colour_of(sentence: str) -> NDArray[np.float32]:
    """The colours that a sentence names, or grey."""
    named = [WORDS[word] for word in WORDS if word in sentence]
    return np.sum(named or [(1.0, 1.0, 1.0)], axis=0, dtype=np.float32)


def film(path: Path, seconds: Sequence[tuple[str, float]]) -> Path:
    """A video that is of one colour after the other."""
    images = [
        np.full((48, 48, 3), 255 * colour_of(name) / colour_of(name).max(), np.uint8)
        for name, length in seconds
        for _ in range(round(FPS * length))
    ]
    return encode_at(path, [i / FPS for i in range(len(images))], images=images)


def run(video: Any, out: Path | None, labels: Any, how: ZeroShotOptions = HOW, **more: Any) -> Any:
    options = ExportOptions(formats=("json",))
    here = RunOptions(device="cpu")
    return mstemba.detect(
        video,
        **{
            "options": options,
            "run_options": here,
            "labels": labels,
            "zero_shot": how,
            "output": out,
            **more,
        },
    )


def found_in(result: DetectResult) -> list[tuple[str, float, float]]:
    """Return the only video's segments, to the frame: edges between two rows are estimates."""
    (detection,) = result.detections.values()
    return [(s.label, round(s.start, 1), round(s.end, 1)) for s in detection.segments]
