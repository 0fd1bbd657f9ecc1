"""The curves of a training, drawn with matplotlib without a display."""

from __future__ import annotations

import json
from pathlib import Path

from matplotlib.figure import Figure

from mstemba.pipeline.caching.files import write_atomically


def plot_curves(metrics: Path, output: Path) -> None:
    """Plot the loss and the mAP over the steps of a training, from its metrics.jsonl."""
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    loss_axes, map_axes = figure.subplots(1, 2)
    losses = [(row["step"], row["loss"]) for row in rows if "loss" in row]
    loss_axes.plot(*zip(*losses, strict=True), color="#0072B2")
    loss_axes.set(xlabel="step", ylabel="loss", yscale="log", title="training loss")
    for name, label, colour in (
        ("train_map", "training videos", "#999999"),
        ("val_map", "validation videos", "#D55E00"),
    ):
        points = [(row["step"], row[name]) for row in rows if name in row]
        if points:
            map_axes.plot(*zip(*points, strict=True), color=colour, label=label)
    map_axes.set(xlabel="step", ylabel="per-frame mAP (%)", ylim=(0, 101), title="averaged weights")
    map_axes.legend(loc="lower right")
    for axes in (loss_axes, map_axes):
        axes.grid(alpha=0.3)
    write_atomically(output, lambda temporary: figure.savefig(temporary, dpi=120))
