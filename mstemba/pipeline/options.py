"""The options of each stage: their defaults, what they mean, and which of them change numbers.

No heavy import here: the command line reads its defaults from these classes.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from mstemba.errors import UsageError
from mstemba.model.architectures import ARCHITECTURES

PRECISIONS = ("float32", "bfloat16", "float16")
TRACKERS = ("tensorboard", "wandb", "none")


def _option(default: Any, help: str, flag: str | None = None) -> Any:
    """A field with the help of its command-line option, and its name if that is not the field's."""
    return field(default=default, metadata={"help": help, "flag": flag})


def help_of(options: type, name: str) -> str:
    """The one-line help of an option."""
    return str(next(f for f in fields(options) if f.name == name).metadata["help"])


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UsageError(message)


@dataclass(frozen=True)
class FeatureOptions:
    """What decides the numbers of feature rows: each option is in the cache key."""

    backbone: str = _option("clip", "Backbone; `mstemba backbones` lists them.")
    model: str | None = _option(
        None, "Model of the backbone's family [default: ViT-L-14-quickgelu for clip]."
    )
    weights: str | None = _option(None, "A published tag of that model, or a local weights file.")
    window: int | None = _option(
        None, "Frames of one feature row, averaged or seen at once [default: 16]."
    )
    stride: int | None = _option(
        None, "Frames from one row to the next [default: 16; i3d-whole-clip: 8]."
    )
    frame_step: int = _option(1, "Use every N-th frame; window and stride count the frames used.")
    precision: str = _option(
        "auto",
        "Arithmetic of the backbone: float32, bfloat16, float16, or auto (that of the existing "
        "store, otherwise the smallest that the device has instructions for).",
    )
    dtype: str = _option("float32", "Numbers in the store: float32 or float16.")
    decoder: str = _option("auto", "auto (av, and decord if that hangs), av or decord.")

    def __post_init__(self) -> None:
        _require_finite(self)
        for name in ("window", "stride", "frame_step"):
            value = getattr(self, name)
            _require(value is None or value >= 1, f"{name} is {value}, expected 1 or more")
        _one_of("precision", self.precision, ("auto", *PRECISIONS))
        _one_of("dtype", self.dtype, ("float32", "float16"))
        _one_of("decoder", self.decoder, ("auto", "decord", "av"))


@dataclass(frozen=True)
class RunOptions:
    """Where and how fast features are extracted: no option changes a number or a cache key."""

    batch_size: int | None = _option(
        None, "Frames in one pass of the backbone [default: by backbone and device]."
    )
    device: str = _option("auto", "auto (every GPU, otherwise the CPU), cpu, cuda, cuda:1, mps.")
    workers: int | None = _option(None, "Decoder processes [default: by cores and devices].")
    decode_timeout: float = _option(
        120.0, "Seconds without a frame after which a decoder is given up."
    )
    engine: str = _option("local", "local, or ray to use every machine of a Ray cluster.")
    address: str | None = _option(
        None, "Ray cluster to join, auto for the running one [default: start one here]."
    )

    def __post_init__(self) -> None:
        _require_finite(self)
        for name in ("batch_size", "workers"):
            value = getattr(self, name)
            _require(value is None or value >= 1, f"{name} is {value}, expected 1 or more")
        timeout = self.decode_timeout
        _require(timeout > 0, f"decode_timeout is {timeout}, expected more than 0 s")
        _one_of("engine", self.engine, ("local", "ray"))
        _require(
            self.address is None or self.engine == "ray",
            f"address is {self.address!r}, but the engine is {self.engine}: add --engine ray",
        )


@dataclass(frozen=True)
class ImportOptions:
    """How published features were made, as far as that is known."""

    backbone: str | None = _option(None, "Backbone they came from.")
    model: str | None = _option(None, "Model of the backbone's family.")
    weights: str | None = _option(None, "Its weights: a published tag, or a local file.")
    window: int | None = _option(None, "Frames of one row [default: the backbone's].")
    stride: int | None = _option(None, "Frames from one row to the next [default: likewise].")
    fps: float | None = _option(None, "Frames a second, where the manifest does not say.")

    def __post_init__(self) -> None:
        _require_finite(self)
        for name in ("window", "stride", "fps"):
            value = getattr(self, name)
            _require(value is None or value > 0, f"{name} is {value}, expected more than 0")
        odd = [name for name in ("model", "weights", "window") if getattr(self, name) is not None]
        _require(self.backbone is not None or not odd, f"{'/'.join(odd)} is of a backbone: name it")


@dataclass(frozen=True)
class TrainOptions:
    """How a network is trained. Lengths count feature rows, rates are per optimiser step."""

    arch: str = _option(
        "mstemba",
        "mstemba (v1), mstemba-v3, or for comparison ms-tct (87 M parameters), pdan or linear.",
    )
    width: float = _option(1.0, "Share of the published numbers of channels: smaller, faster.")
    labels: str = _option(
        "strict",
        "Rows that an action makes positive: strict (the field's: their start is inside it) or "
        "overlap (every row it touches).",
    )
    epochs: int = _option(50, "Passes over the training videos.")
    min_steps: int = _option(300, "Train at least this many steps, however few the videos.")
    max_steps: int = _option(0, "Train at most this many steps, however many epochs; 0 for all.")
    batch_size: int = _option(4, "Clips in one step of all processes, at most the training videos.")
    clip_length: int = _option(512, "Longest random temporal crop, in feature rows.")
    min_crop: float = _option(0.5, "Shortest random crop, as a share of the longest possible.")
    lr: float = _option(5e-4, "Peak learning rate of AdamW.")
    schedule: str = _option(
        "cosine",
        "cosine (by step), or released (the authors' code as it runs: by validation loss).",
    )
    warmup: float = _option(0.1, "Share of the steps in which the rate rises to --lr.")
    warmup_lr: float = _option(0.0, "Learning rate at which the warm-up begins.")
    min_lr: float = _option(0.0, "Learning rate at which the schedule ends.")
    weight_decay: float = _option(0.05, "AdamW weight decay of the matrices.")
    clip_grad: float = _option(1.0, "Largest norm of the gradient; 0 leaves it as it is.")
    ema: float = _option(
        0.995, "Decay of the averaged weights, which are the ones kept; 0 for the last weights."
    )
    drop_path: float = _option(0.1, "MS-Temba: chance to skip a block's branch while training.")
    dropout: float = _option(0.1, "Dropout of the features (pdan: of its blocks) while training.")
    prior: float = _option(
        0.02, "Probability that an untrained network gives every class; the authors' code has 0.5."
    )
    auxiliary_weight: float = _option(0.02, "mstemba-v3: weight of each scale's own loss.")
    consistency_weight: float = _option(
        0.1, "mstemba-v3: weight of the consistency of the streams."
    )
    heatmap_weight: float = _option(0.05, "ms-tct: weight of the heat map of the actions' centres.")
    val_fraction: float = _option(0.1, "Training videos held out to choose the best checkpoint.")
    patience: int = _option(
        0, "Stop after this many checks of validation mAP without a better one; 0 for never."
    )
    seed: int = _option(0, "Seed of weights, crops and dropout.")
    precision: str = _option("auto", "auto (bf16 on a GPU that has it), no or bf16.")

    def __post_init__(self) -> None:
        _require_finite(self)
        for name in ("epochs", "min_steps", "batch_size", "clip_length"):
            value = getattr(self, name)
            _require(value >= 1, f"{name} is {value}, expected 1 or more")
        for name in ("warmup", "drop_path", "dropout", "val_fraction", "ema"):
            value = getattr(self, name)
            _require(0 <= value < 1, f"{name} is {value}, expected 0 <= {name} < 1")
        _require(0 < self.min_crop <= 1, f"min_crop is {self.min_crop}, expected 0 < min_crop <= 1")
        weights = ("auxiliary_weight", "consistency_weight", "heatmap_weight")
        for name in ("weight_decay", "clip_grad", "patience", "max_steps", *weights):
            value = getattr(self, name)
            _require(value >= 0, f"{name} is {value}, expected 0 or more")
        _require(0 <= self.seed < 2**32, f"seed is {self.seed}, expected 0 <= seed < 2^32")
        _require(self.lr > 0, f"lr is {self.lr}, expected more than 0")
        for name in ("warmup_lr", "min_lr"):
            value = getattr(self, name)
            _require(0 <= value <= self.lr, f"{name} is {value}, expected 0 to lr ({self.lr})")
        _one_of("schedule", self.schedule, ("cosine", "released"))
        _one_of("arch", self.arch, ARCHITECTURES)
        _require(0 < self.prior < 1, f"prior is {self.prior}, expected 0 < prior < 1")
        _require(0 < self.width <= 4, f"width is {self.width}, expected 0 < width <= 4")
        _one_of("labels", self.labels, ("strict", "overlap"))
        _one_of("precision", self.precision, ("auto", "no", "bf16"))


@dataclass(frozen=True)
class TrainRunOptions:
    """Where a training runs and where its metrics go: no option changes a number or a cache key."""

    checkpoint_seconds: float = _option(20.0, "Least time between two resumable states.")
    trackers: str = _option(
        "tensorboard", "Where metrics go as well: tensorboard, wandb, both by a comma, or none."
    )
    device: str = _option("auto", "auto, cpu, cuda, mps.")

    def __post_init__(self) -> None:
        _require_finite(self)
        for name in self.tracker_names:
            _one_of("trackers", name, TRACKERS)

    @property
    def tracker_names(self) -> tuple[str, ...]:
        """What `trackers` lists; nothing for `none`."""
        return tuple(n for part in self.trackers.split(",") if (n := part.strip()) != "none")


@dataclass(frozen=True)
class EvaluateOptions:
    """What `evaluate` and `report` measure, and on which videos."""

    subset: str = _option("testing", "Subset of the manifest to score.")
    checkpoint: str | None = _option(
        None, "Checkpoint folder [default: the workspace's last training]."
    )
    released: bool = _option(
        False,
        "The checkpoint is a file of the authors' weights: pad, cut and split as their code does.",
        flag="--released",
    )
    predictions: str | None = _option(
        None, "Measure this file instead of a checkpoint: pickle, .npz or JSON by video."
    )
    manifest: str | None = _option(None, "Manifest file [default: the workspace's].")
    features: str | None = _option(
        None, "Features, a store or a folder of .npy [default: those the checkpoint needs]."
    )
    device: str = _option("auto", "auto, cpu, cuda, cuda:1, mps.")

    def __post_init__(self) -> None:
        if self.checkpoint is not None and self.predictions is not None:
            raise UsageError(
                f"--checkpoint {self.checkpoint} cannot be combined with --predictions "
                f"{self.predictions}: pass one of them"
            )
        if self.released and self.checkpoint is None:
            raise UsageError("--released requires --checkpoint, the file of released weights")


@dataclass(frozen=True)
class ExportOptions:
    """How dense scores become segments, and segments files."""

    threshold: float = _option(0.5, "A segment begins where a class is at least this likely.")
    low: float | None = _option(
        None,
        "A segment continues while its class is at least this likely [default: 0.6 x threshold].",
    )
    min_length: float = _option(0.0, "Shortest segment that is kept, in seconds.")
    formats: tuple[str, ...] | str = _option(
        ("json", "csv", "png", "html"),
        "Files to write, separated by commas; docs/formats.md lists them all.",
        flag="--format",
    )
    embed: bool = _option(
        False, "html: put the video into the page, which otherwise links to it.", flag="--embed"
    )

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
        _require(
            "html" in self.formats or not self.embed,
            "embed is of the page, and html is not among the formats: add html to --format",
        )

    @property
    def low_threshold(self) -> float:
        return 0.6 * self.threshold if self.low is None else self.low


@dataclass(frozen=True)
class ZeroShotOptions:
    """How labels in words are looked for in a video, with no training; see docs/zero-shot.md.

    `templates` and `background` are sentences, or a text as the command line gives it: sentences
    separated by commas, or the name of a file with one a line.
    """

    backbone: str = _option("clip", "With --labels: backbone, one that has a text tower.")
    model: str | None = _option(
        None, "With --labels: model of the family [default: ViT-L-14-quickgelu for clip]."
    )
    window: int | None = _option(
        None, "With --labels: frames of one feature row, averaged [default: 16]."
    )
    stride: int | None = _option(
        None,
        "With --labels: frames from one row to the next; fewer for short actions [default: 16].",
    )
    smoothing: float = _option(
        1.0, "With --labels: seconds of deviation of the Gaussian that smooths over time; 0: none."
    )
    contrast: float = _option(
        0.5,
        "With --labels: 0 compares a label with the background only, 1 with its own median over "
        "the video only.",
    )
    templates: tuple[str, ...] | str = _option(
        (
            "a photo of {}.",
            "a photo of a person {}.",
            "a video of {}.",
            "a video of a person {}.",
        ),
        "With --labels: sentences with {} for a label, separated by commas, or a text file with "
        "one a line.",
    )
    background: tuple[str, ...] | str = _option(
        (
            "a photo.",
            "a video.",
            "a photo of a place.",
            "a photo of a person.",
            "a photo of a person doing nothing.",
        ),
        "With --labels: sentences for moments without a label, given likewise.",
    )

    def __post_init__(self) -> None:
        _require_finite(self)
        for name in ("window", "stride"):
            value = getattr(self, name)
            _require(value is None or value >= 1, f"{name} is {value}, expected 1 or more")
        _require(self.smoothing >= 0, f"smoothing is {self.smoothing}, expected 0 s or more")
        _require(
            0 <= self.contrast <= 1, f"contrast is {self.contrast}, expected 0 <= contrast <= 1"
        )


def _require_finite(options: Any) -> None:
    for name, value in asdict(options).items():
        finite = not isinstance(value, float) or math.isfinite(value)
        _require(finite, f"{name} is {value}, expected a number")


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    _require(value in choices, f"{name} is {value!r}, expected one of {', '.join(choices)}")
