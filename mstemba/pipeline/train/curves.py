"""The curves of a training, drawn with matplotlib without a display."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from mstemba.pipeline.caching.files import write_atomically
from mstemba.pipeline.train.metrics_file import read_curves


def plot_curves(metrics: Path, output: Path) -> None:
    """Plot the loss and the mAP over the steps of a training, from its metrics.jsonl."""
    curves, _ = read_curves(metrics, ("loss", "train_map", "val_map"))
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    loss_axes, map_axes = figure.subplots(1, 2)
    loss_axes.plot(*curves["loss"].T, color="#0072B2")
    loss_axes.set(xlabel="step", ylabel="loss", yscale="log", title="training loss")
    for name, label, colour in (
        ("train_map", "training videos", "#999999"),
        ("val_map", "validation videos", "#D55E00"),
    ):
        if len(curves[name]):
            map_axes.plot(*curves[name].T, color=colour, label=label)
    map_axes.set(xlabel="step", ylabel="per-frame mAP (%)", ylim=(0, 101), title="averaged weights")
    map_axes.legend(loc="lower right")
    for axes in (loss_axes, map_axes):
        axes.grid(alpha=0.3)
    write_atomically(output, lambda temporary: figure.savefig(temporary, dpi=120))
