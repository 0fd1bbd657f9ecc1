"""The options of each stage, with their defaults and their help on the command line.

Nothing heavy is imported here: the command line reads its defaults from these classes.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from mstemba.data_manifests.manifest import normalise_subset
from mstemba.errors import UsageError
from mstemba.limits import LEAST_FPS, MOST_FPS
from mstemba.model.architectures import ARCHITECTURES

PRECISIONS = ("float32", "bfloat16", "float16")
TRACKERS = ("tensorboard", "wandb", "none")
LABEL_RULES = ("strict", "overlap")


def _option(default: Any, help: str, flag: str | None = None) -> Any:
    """Return a field with the help of its option; `flag` is the option's name if it differs."""
    return field(default=default, metadata={"help": help, "flag": flag})


def help_of(options: type, name: str) -> str:
    """Return the help of an option."""
    return str(next(f for f in fields(options) if f.name == name).metadata["help"])


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UsageError(message)


@dataclass(frozen=True)
class InitOptions:
    """Options of how annotations are read."""

    dataset: str | None = _option(
        None,
        "Name of the dataset; charades, tsu and multithumos set classes, unit and split.",
    )
    classes: str | None = _option(None, "Text file with one class name per line.")
    time_unit: str | None = _option(None, "Unit of the annotations' times: seconds or frames.")
    split: str | None = _option(
        None,
        "Split of the dataset: cross-subject (the default) or cross-view for tsu; none: videos "
        "without a subset stay so [default: hashes of the ids choose 70/15/15 %].",
    )
    tiers: tuple[str, ...] | str | None = _option(
        None, "Tiers of ELAN to read, separated by commas [default: all]."
    )
    join_spellings: bool = _option(
        False, "Join classes that differ in case, spaces or underscores only."
    )
    strict: bool = _option(False, "Stop at warnings, before anything is written.")


@dataclass(frozen=True)
class FeatureOptions:
    """Options that decide the numbers of feature rows: all are in the cache key."""

    backbone: str = _option("clip", "Backbone; `mstemba backbones` lists them.")
    model: str | None = _option(
        None, "Model of the backbone [default: ViT-L-14-quickgelu for clip]."
    )
    weights: str | None = _option(None, "Weights of the backbone: a published tag or a local file.")
    window: int | None = _option(None, "Frames per feature row [default: 16].")
    stride: int | None = _option(
        None, "Frames from one row to the next [default: 16; i3d-whole-clip: 8]."
    )
    frame_step: int = _option(1, "Use every N-th frame; --window and --stride count these.")
    precision: str = _option(
        "auto",
        "Arithmetic of the backbone: float32, bfloat16, float16, or auto (that of the existing "
        "store, otherwise the smallest with hardware support).",
    )
    dtype: str = _option("float32", "Number format in the store: float32 or float16.")
    decoder: str = _option("auto", "Decoder: decord, av, or auto (decord where it is exact).")
    fps: float | None = _option(
        None, "Frames per second of videos whose frames have no times [default: assumed]."
    )

    def __post_init__(self) -> None:
        _require_finite(self)
        _at_least(1, self, "window", "stride", "frame_step")
        _require_frame_rate(self.fps)
        _one_of("precision", self.precision, ("auto", *PRECISIONS))
        _one_of("dtype", self.dtype, ("float32", "float16"))
        _one_of("decoder", self.decoder, ("auto", "decord", "av"))


@dataclass(frozen=True)
class RunOptions:
    """Options of where and how features are computed: none changes a number or a cache key."""

    batch_size: int | None = _option(
        None, "Frames per pass of the backbone [default: by backbone and device]."
    )
    device: str = _option(
        "auto", "Device: cpu, cuda, cuda:1, mps, or auto (every GPU, otherwise the CPU)."
    )
    workers: int | None = _option(None, "Decoder processes [default: by cores and devices].")
    decode_timeout: float = _option(
        120.0, "Seconds without a sign of life after which a decoder is killed."
    )
    engine: str = _option("local", "local (this machine) or ray (every machine of a Ray cluster).")
    address: str | None = _option(
        None, "Ray cluster to join; auto for the running one [default: start one here]."
    )

    def __post_init__(self) -> None:
        _require_finite(self)
        _at_least(1, self, "batch_size", "workers")
        timeout = self.decode_timeout
        _require(timeout > 0, f"decode_timeout is {timeout}, expected more than 0 s")
        _one_of("engine", self.engine, ("local", "ray"))
        _require(
            self.address is None or self.engine == "ray",
            f"address is {self.address!r}, which requires --engine ray",
        )


@dataclass(frozen=True)
class ImportOptions:
    """How published features were made, as far as this is known."""

    backbone: str | None = _option(None, "Backbone that the features come from.")
    model: str | None = _option(None, "Model of the backbone.")
    weights: str | None = _option(None, "Weights of the backbone: a published tag or a local file.")
    window: int | None = _option(None, "Frames per feature row [default: the backbone's].")
    stride: int | None = _option(None, "Frames from one row to the next [default: the backbone's].")
    fps: float | None = _option(None, "Frames per second, if the manifest does not contain it.")
    transposed: bool | None = _option(
        None, "Whether the arrays are (features, rows) [default: seen from their shapes]."
    )

    def __post_init__(self) -> None:
        _require_finite(self)
        _require_frame_rate(self.fps)
        for name in ("window", "stride"):
            value = getattr(self, name)
            _require(value is None or value > 0, f"{name} is {value}, expected more than 0")
        for name in ("model", "weights", "window"):
            unused = self.backbone is None and getattr(self, name) is not None
            _require(not unused, f"--{name} requires --backbone")


@dataclass(frozen=True)
class TrainOptions:
    """Options that decide the trained weights: all are in the cache key."""

    arch: str = _option(
        "mstemba",
        "Network: mstemba (v1), mstemba-v3, or a baseline: ms-tct (87 M parameters), pdan, linear.",
    )
    width: float = _option(1.0, "Fraction of the published number of channels.")
    labels: str = _option(
        "auto",
        "Rows that an action labels: strict (rows that start inside it, as in the literature), "
        "overlap (rows whose centre lies inside it, but at least one), or auto (strict; overlap if "
        "a class has only actions without length).",
    )
    epochs: int = _option(50, "Passes over the training videos.")
    min_steps: int = _option(300, "Minimum number of training steps.")
    max_steps: int = _option(0, "Maximum number of training steps; 0 for no limit.")
    batch_size: int = _option(
        4, "Clips per step over all processes, at most one per training video."
    )
    clip_length: int = _option(512, "Longest random crop in time, in feature rows.")
    min_crop: float = _option(0.5, "Shortest random crop, as a fraction of the longest possible.")
    lr: float = _option(5e-4, "Peak learning rate of AdamW.")
    schedule: str = _option(
        "cosine",
        "Learning rate schedule: cosine, or released (by validation loss, like the authors' code).",
    )
    warmup: float = _option(0.1, "Fraction of the steps in which the learning rate rises to --lr.")
    warmup_lr: float = _option(0.0, "Learning rate at the start of the warm-up.")
    min_lr: float = _option(0.0, "Learning rate at the end of the schedule.")
    weight_decay: float = _option(0.05, "AdamW weight decay of the matrices.")
    clip_grad: float = _option(1.0, "Maximum norm of the gradient; 0 for no clipping.")
    ema: float = _option(
        0.995, "Decay of the moving average of the weights, which is saved; 0 for none."
    )
    drop_path: float = _option(
        0.1, "MS-Temba: probability of skipping the branch of a block in training."
    )
    dropout: float = _option(0.1, "Dropout of the features (pdan: of its blocks) in training.")
    prior: float = _option(
        0.02, "Probability of every class in an untrained network; 0.5 in the authors' code."
    )
    auxiliary_weight: float = _option(0.02, "mstemba-v3: weight of the loss of each scale.")
    consistency_weight: float = _option(
        0.1, "mstemba-v3: weight of the loss for consistency of the streams."
    )
    heatmap_weight: float = _option(0.05, "ms-tct: weight of the loss of the action centres.")
    val_fraction: float = _option(
        0.1, "Fraction of the training videos held out to choose the best checkpoint."
    )
    patience: int = _option(
        0, "Validations without improvement after which training stops; 0 for never."
    )
    seed: int = _option(0, "Seed of weights, crops and dropout.")
    precision: str = _option(
        "auto", "Mixed precision: bf16, no, or auto (bf16 on a GPU that has it)."
    )

    def __post_init__(self) -> None:
        _require_finite(self)
        _at_least(1, self, "epochs", "min_steps", "batch_size", "clip_length")
        for name in ("warmup", "drop_path", "dropout", "val_fraction", "ema"):
            value = getattr(self, name)
            _require(0 <= value < 1, f"{name} is {value}, expected 0 <= {name} < 1")
        _require(0 < self.min_crop <= 1, f"min_crop is {self.min_crop}, expected 0 < min_crop <= 1")
        weights = ("auxiliary_weight", "consistency_weight", "heatmap_weight")
        _at_least(0, self, "weight_decay", "clip_grad", "patience", "max_steps", *weights)
        _require(0 <= self.seed < 2**32, f"seed is {self.seed}, expected 0 <= seed < 2^32")
        _require(self.lr > 0, f"lr is {self.lr}, expected more than 0")
        for name in ("warmup_lr", "min_lr"):
            value = getattr(self, name)
            _require(0 <= value <= self.lr, f"{name} is {value}, expected 0 to lr ({self.lr})")
        _one_of("schedule", self.schedule, ("cosine", "released"))
        _one_of("arch", self.arch, ARCHITECTURES)
        _require(0 < self.prior < 1, f"prior is {self.prior}, expected 0 < prior < 1")
        _require(0 < self.width <= 4, f"width is {self.width}, expected 0 < width <= 4")
        _one_of("labels", self.labels, ("auto", *LABEL_RULES))
        _one_of("precision", self.precision, ("auto", "no", "bf16"))


@dataclass(frozen=True)
class TrainRunOptions:
    """Options of where training runs and logs: none changes a number or a cache key."""

    checkpoint_seconds: float = _option(20.0, "Minimum time between two saved training states.")
    trackers: str = _option(
        "tensorboard", "Experiment trackers, separated by commas: tensorboard, wandb, or none."
    )
    device: str = _option("auto", "Device: auto, cpu, cuda, mps.")

    def __post_init__(self) -> None:
        _require_finite(self)
        for name in self.tracker_names:
            _one_of("trackers", name, TRACKERS)

    @property
    def tracker_names(self) -> tuple[str, ...]:
        """The names in `trackers`, without `none`."""
        return tuple(n for part in self.trackers.split(",") if (n := part.strip()) != "none")


@dataclass(frozen=True)
class EvaluateOptions:
    """What `evaluate` and `report` measure, and on which videos."""

    subset: str = _option(
        "testing", "Subset of the manifest to measure on: testing, validation, training or another."
    )
    checkpoint: str | Path | None = _option(
        None, "Checkpoint folder [default: the workspace's last training]."
    )
    released: bool = _option(
        False,
        "Treat the checkpoint as a file of the authors' weights: pad, crop and split like their "
        "code.",
    )
    predictions: str | Path | None = _option(
        None, "File of predictions to measure instead of a checkpoint: pickle, .npz or JSON."
    )
    manifest: str | Path | None = _option(None, "Manifest file [default: the workspace's].")
    features: str | Path | None = _option(
        None,
        "Feature store or folder of .npy files [default: those that the checkpoint was trained "
        "on].",
    )
    device: str = _option("auto", "Device: auto, cpu, cuda, cuda:1, mps.")

    def __post_init__(self) -> None:
        subset = normalise_subset(self.subset)
        if subset is None:
            raise UsageError(f"--subset is {self.subset!r}, expected a name such as testing")
        object.__setattr__(self, "subset", subset)
        _require(
            self.checkpoint is None or self.predictions is None,
            f"--checkpoint {self.checkpoint} cannot be combined with --predictions "
            f"{self.predictions}: pass one of them",
        )
        _require(
            not self.released or self.checkpoint is not None,
            "--released requires --checkpoint, the file of released weights",
        )


@dataclass(frozen=True)
class ExportOptions:
    """How dense scores are cut into segments, and which files are written."""

    threshold: float = _option(0.5, "Probability at which a segment starts and ends.")
    low: float | None = _option(
        None, "Probability below which a dip splits a segment [default: 0.6 x threshold]."
    )
    min_length: float = _option(0.0, "Minimum length of a segment, in seconds.")
    formats: tuple[str, ...] | str = _option(
        ("json", "csv", "png", "html"),
        "File formats, separated by commas; docs/formats.md lists them all.",
        flag="--format",
    )
    embed: bool = _option(False, "html: embed the video in the page instead of linking to it.")

    def __post_init__(self) -> None:
        _require_finite(self)
        if isinstance(self.formats, str):
            names = [name.strip() for name in self.formats.split(",")]
            object.__setattr__(self, "formats", tuple(name for name in names if name))
        _require(
            0 < self.threshold <= 1, f"threshold is {self.threshold}, expected 0 < threshold <= 1"
        )
        _require(
            0 <= self.low_threshold <= self.threshold,
            f"low is {self.low}, expected 0 <= low <= threshold ({self.threshold})",
        )
        _require(self.min_length >= 0, f"min_length is {self.min_length}, expected 0 s or more")
        _require("html" in self.formats or not self.embed, "--embed requires html in --format")

    @property
    def low_threshold(self) -> float:
        """The probability below which a dip splits a segment: `low` or its default."""
        return 0.6 * self.threshold if self.low is None else self.low


@dataclass(frozen=True)
class ZeroShotOptions:
    """How `detect` scores labels without training; see docs/zero-shot.md.

    `templates` and `background` are sentences, or one string as on the command line: sentences
    separated by commas, or the name of a file with one per line.
    """

    backbone: str = _option("clip", "With --labels: backbone with a text tower.")
    model: str | None = _option(
        None, "With --labels: model of the backbone [default: ViT-L-14-quickgelu for clip]."
    )
    window: int | None = _option(None, "With --labels: frames per feature row [default: 16].")
    stride: int | None = _option(
        None, "With --labels: frames from one row to the next [default: 16]."
    )
    smoothing: float = _option(
        1.0, "With --labels: standard deviation of the temporal smoothing, in seconds; 0 for none."
    )
    contrast: float = _option(
        0.5,
        "With --labels: from 0 (compare a label with the background) to 1 (with its own median "
        "over the video).",
    )
    templates: tuple[str, ...] | str = _option(
        (
            "a photo of {}.",
            "a photo of a person {}.",
            "a video of {}.",
            "a video of a person {}.",
        ),
        "With --labels: sentences with {} in place of a label, separated by commas, or a text file "
        "with one per line.",
    )
    background: tuple[str, ...] | str = _option(
        (
            "a photo.",
            "a video.",
            "a photo of a place.",
            "a photo of a person.",
            "a photo of a person doing nothing.",
        ),
        "With --labels: sentences for moments without a label, separated by commas, or a text "
        "file with one per line.",
    )

    def __post_init__(self) -> None:
        _require_finite(self)
        _at_least(1, self, "window", "stride")
        _require(self.smoothing >= 0, f"smoothing is {self.smoothing}, expected 0 s or more")
        _require(
            0 <= self.contrast <= 1, f"contrast is {self.contrast}, expected 0 <= contrast <= 1"
        )


def _require_finite(options: Any) -> None:
    for name, value in asdict(options).items():
        finite = not isinstance(value, float) or math.isfinite(value)
        _require(finite, f"{name} is {value}, expected a number")


def _require_frame_rate(fps: float | None) -> None:
    _require(
        fps is None or LEAST_FPS <= fps <= MOST_FPS,
        f"fps is {fps}, expected {LEAST_FPS:g} (a frame a day) to {MOST_FPS:g}",
    )


def _at_least(least: int, options: Any, *names: str) -> None:
    for name in names:
        value = getattr(options, name)
        _require(value is None or value >= least, f"{name} is {value}, expected {least} or more")


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    _require(value in choices, f"{name} is {value!r}, expected one of {', '.join(choices)}")
