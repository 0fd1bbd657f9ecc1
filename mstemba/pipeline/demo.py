"""The demo: a small labelled set of rendered videos, and the whole pipeline run on it.

Two figures move over a dim background; their movements are the actions, which overlap. Each clip
has its own seed; the last clips are held out for testing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import av
import numpy as np
from av.video.frame import VideoFrame
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Circle, RegularPolygon
from numpy.typing import NDArray

from mstemba.data_manifests.manifest import Action, Manifest, Video, manifest_json
from mstemba.pipeline.caching.files import write_atomically, write_text
from mstemba.pipeline.detect.stage import DetectResult, detect
from mstemba.pipeline.evaluate.result import Evaluation
from mstemba.pipeline.evaluate.stage import evaluate
from mstemba.pipeline.extract.jobs import ExtractResult
from mstemba.pipeline.extract.stage import extract
from mstemba.pipeline.init import init
from mstemba.pipeline.options import (
    EvaluateOptions,
    FeatureOptions,
    RunOptions,
    TrainOptions,
    TrainRunOptions,
)
from mstemba.pipeline.progress import Event, EventHandler, ignore_events
from mstemba.pipeline.train.stage import TrainResult, train

FPS = 10
SECONDS = 12
SIZE = 128
TRAINING_CLIPS, TEST_CLIPS = 10, 3
# For each figure the actions that it performs, one at a time.
ACTIONS = (("disc jumps", "disc grows", "disc crosses"), ("triangle spins", "triangle shakes"))
CLASSES = tuple(name for figure in ACTIONS for name in figure)


@dataclass(frozen=True)
class DemoResult:
    """Results of the stages that the demo ran."""

    extraction: ExtractResult
    training: TrainResult
    evaluation: Evaluation
    detection: DetectResult
    seconds: float


def demo(
    folder: Path, *, device: str = "auto", on_event: EventHandler = ignore_events
) -> DemoResult:
    """Render the videos below `folder` and run init, extract, train, evaluate and detect there."""
    begin = time.perf_counter()
    clips = TRAINING_CLIPS + TEST_CLIPS
    on_event(Event("demo", f"rendering {clips} clips of {SECONDS} s below {folder}"))
    annotations = render(folder)
    workspace = init([folder / "videos"], annotations, root=folder).workspace
    extraction = extract(
        options=FeatureOptions(backbone="efficientnet-lite0", window=2, stride=2),
        run_options=RunOptions(device=device),
        workspace=workspace,
        on_event=on_event,
    )
    training = train(
        TrainOptions(min_steps=200, epochs=1),
        TrainRunOptions(device=device),
        workspace=workspace,
        on_event=on_event,
    )
    evaluation = evaluate(EvaluateOptions(device=device), workspace=workspace, on_event=on_event)
    video = folder / "videos" / f"clip_{TRAINING_CLIPS:02d}.mp4"
    detection = detect(
        [video], run_options=RunOptions(device=device), workspace=workspace, on_event=on_event
    )
    return DemoResult(extraction, training, evaluation, detection, time.perf_counter() - begin)


def render(folder: Path) -> Path:
    """Write the missing clips and the annotation file; return the path of the annotations."""
    videos = {}
    for number in range(TRAINING_CLIPS + TEST_CLIPS):
        id = f"clip_{number:02d}"
        subset = "training" if number < TRAINING_CLIPS else "testing"
        tracks = [
            _schedule(np.random.default_rng([number, i]), names) for i, names in enumerate(ACTIONS)
        ]
        path = folder / "videos" / f"{id}.mp4"
        if not path.is_file():
            frames = _frames(tracks, np.random.default_rng([number, len(ACTIONS)]))
            write_atomically(path, partial(write_video, frames=frames, fps=FPS))
        actions = tuple(action for track in tracks for action in track)
        videos[id] = Video(id, path, subset, float(SECONDS), actions)
    manifest = Manifest("demo", CLASSES, "seconds", videos)
    annotations = folder / "annotations.json"
    write_text(annotations, manifest_json(manifest, folder))
    return annotations


def _schedule(rng: np.random.Generator, names: tuple[str, ...]) -> list[Action]:
    """What a figure does when: pauses and actions in turn, each of its actions at least once."""
    order = [*rng.permutation(len(names)), *rng.integers(0, len(names), 10)]
    actions, clock = [], float(rng.uniform(0.3, 1.2))
    for choice in order:
        end = clock + float(rng.uniform(1.4, 2.6))
        if end > SECONDS:
            break
        actions.append(Action(CLASSES.index(names[choice]), round(clock, 2), round(end, 2)))
        clock = end + float(rng.uniform(0.4, 1.0))
    return actions


def _frames(tracks: list[list[Action]], rng: np.random.Generator) -> Iterator[NDArray[np.uint8]]:
    """Yield the frames of one clip, (SIZE, SIZE, 3) RGB."""
    shade = rng.uniform(0.1, 0.3, 3)
    colours = rng.uniform(0.5, 1.0, (2, 3))
    figure = Figure(figsize=(1, 1), dpi=SIZE)
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    for number in range(FPS * SECONDS):
        axes.clear()
        axes.set(xlim=(0, 1), ylim=(0, 1))
        axes.set_axis_off()
        figure.set_facecolor(tuple(shade))
        doing = [_current(track, number / FPS) for track in tracks]
        axes.add_patch(_disc(*doing[0], colour=colours[0]))
        axes.add_patch(_triangle(*doing[1], colour=colours[1]))
        canvas.draw()  # type: ignore[no-untyped-call]
        noise = rng.normal(0, 4, (SIZE, SIZE, 1))
        picture = np.asarray(canvas.buffer_rgba())[..., :3]  # type: ignore[no-untyped-call]
        yield np.clip(picture + noise, 0, 255).astype(np.uint8)


def _current(track: list[Action], time: float) -> tuple[str, float]:
    """Return the action of a figure at a time, and the seconds since it began; "" at rest."""
    for action in track:
        if action.start < time < action.end:
            return CLASSES[action.class_id], time - action.start
    return "", 0.0


def _disc(action: str, t: float, colour: NDArray[np.floating]) -> Circle:
    x, y, radius = 0.28, 0.3, 0.1
    if action == "disc jumps":
        y += 0.35 * abs(math.sin(2 * math.pi * t))
    elif action == "disc grows":
        radius += 0.1 * (1 - math.cos(2 * math.pi * t))
    elif action == "disc crosses":
        x += 0.25 * (1 - math.cos(2 * math.pi * t / 1.5))
    return Circle((x, y), radius, color=colour)


def _triangle(action: str, t: float, colour: NDArray[np.floating]) -> RegularPolygon:
    x, y, angle = 0.7, 0.75, math.pi / 2
    if action == "triangle spins":
        angle += 2 * math.pi * 0.8 * t
    elif action == "triangle shakes":
        x += 0.12 * math.sin(2 * math.pi * 2 * t)
    return RegularPolygon((x, y), 3, radius=0.16, orientation=angle - math.pi / 2, color=colour)


def write_video(path: Path, frames: Iterable[NDArray[np.uint8]], fps: int) -> None:
    """Encode (H, W, 3) RGB frames as H.264 in the container that the file name asks for."""
    with av.open(f"file:{path}", "w") as container:
        stream = None
        for image in frames:
            if stream is None:
                stream = container.add_stream(
                    "libx264", rate=fps, options={"crf": "23", "preset": "fast"}
                )
                stream.height, stream.width = image.shape[:2]
                stream.pix_fmt = "yuv420p"
            container.mux(stream.encode(VideoFrame.from_ndarray(image, format="rgb24")))
        if stream is None:
            raise ValueError("no frames to write")
        container.mux(stream.encode())
