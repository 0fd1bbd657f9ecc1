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


def _runtime(default: Any, help: str) -> Any:
    """An option that changes where or how fast a stage runs, and no number: not in any key."""
    return field(default=default, metadata={"help": help, "runtime": True})


def _option(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help, "runtime": False})


def help_of(options: type, name: str) -> str:
    """The one-line help of an option."""
    return str(next(f for f in fields(options) if f.name == name).metadata["help"])


def numeric(options: Any) -> dict[str, Any]:
    """The options that change numbers, for a cache key."""
    names = {f.name for f in fields(options) if not f.metadata["runtime"]}
    return {name: value for name, value in asdict(options).items() if name in names}


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UsageError(message)


@dataclass(frozen=True)
class ExtractOptions:
    """How frames become feature rows."""

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
    every: int = _option(1, "Use every N-th frame; window and stride count the frames used.")
    precision: str = _option(
        "auto",
        "Arithmetic of the backbone: float32, bfloat16, float16, or auto (that of the store "
        "there is, else the smallest that the device has instructions for).",
    )
    dtype: str = _option("float32", "Numbers in the store: float32 or float16.")
    decoder: str = _option("auto", "auto (av, and decord if that hangs), av, decord or torchcodec.")
    batch_size: int | None = _runtime(
        None, "Frames in one pass of the backbone [default: by backbone and device]."
    )
    device: str = _runtime("auto", "auto (every GPU, else the CPU), cpu, cuda, cuda:1, mps.")
    workers: int | None = _runtime(None, "Decoder processes [default: by cores and devices].")
    decode_timeout: float = _runtime(
        120.0, "Seconds without a frame after which a decoder is given up."
    )
    engine: str = _runtime("local", "local, or ray to use every machine of a Ray cluster.")
    address: str | None = _runtime(
        None, "Ray cluster to join, auto for the one around [default: start one here]."
    )

    def __post_init__(self) -> None:
        _require_finite(self)
        for name in ("window", "stride", "every", "batch_size", "workers"):
            value = getattr(self, name)
            _require(value is None or value >= 1, f"{name} is {value}, expected 1 or more")
        timeout = self.decode_timeout
        _require(timeout > 0, f"decode_timeout is {timeout}, expected more than 0 s")
        _one_of("precision", self.precision, ("auto", *PRECISIONS))
        _one_of("dtype", self.dtype, ("float32", "float16"))
        _one_of("decoder", self.decoder, ("auto", "decord", "av", "torchcodec"))
        _one_of("engine", self.engine, ("local", "ray"))
        _require(
            self.address is None or self.engine == "ray",
            f"address is {self.address!r}, but the engine is {self.engine}: add --engine ray",
        )


@dataclass(frozen=True)
class TrainOptions:
    """How a network is trained. Lengths count feature rows, rates are per optimiser step."""

    arch: str = _option(
        "mstemba", "mstemba (v1), mstemba-v3, or for comparison ms-tct (87 M parameters) or pdan."
    )
    epochs: int = _option(50, "Passes over the training videos.")
    min_steps: int = _option(300, "Train at least this many steps, however few the videos.")
    batch_size: int = _option(4, "Clips in one step, at most the number of training videos.")
    clip_length: int = _option(512, "Longest random temporal crop, in feature rows.")
    min_crop: float = _option(0.5, "Shortest random crop, as a share of the longest possible.")
    lr: float = _option(5e-4, "Peak learning rate of AdamW.")
    warmup: float = _option(0.1, "Share of the steps in which the rate rises; cosine afterwards.")
    weight_decay: float = _option(0.05, "AdamW weight decay of the matrices.")
    clip_grad: float = _option(1.0, "Largest norm of the gradient.")
    ema: float = _option(0.995, "Decay of the averaged weights, which are the ones kept.")
    drop_path: float = _option(0.1, "MS-Temba: chance to skip a block's branch while training.")
    dropout: float = _option(0.1, "Dropout of the features (pdan: of its blocks) while training.")
    auxiliary_weight: float = _option(0.02, "mstemba-v3: weight of each scale's own loss.")
    consistency_weight: float = _option(
        0.1, "mstemba-v3: weight of the consistency of the streams."
    )
    val_fraction: float = _option(0.1, "Training videos held out to choose the best checkpoint.")
    seed: int = _option(0, "Seed of weights, crops and dropout.")
    precision: str = _option("auto", "auto (bf16 on a GPU that has it), no or bf16.")
    checkpoint_seconds: float = _runtime(20.0, "Least time between two resumable states.")
    device: str = _runtime("auto", "auto, cpu, cuda, mps.")

    def __post_init__(self) -> None:
        _require_finite(self)
        for name in ("epochs", "min_steps", "batch_size", "clip_length"):
            value = getattr(self, name)
            _require(value >= 1, f"{name} is {value}, expected 1 or more")
        for name in ("warmup", "drop_path", "dropout", "val_fraction", "ema"):
            value = getattr(self, name)
            _require(0 <= value < 1, f"{name} is {value}, expected 0 <= {name} < 1")
        _require(0 < self.min_crop <= 1, f"min_crop is {self.min_crop}, expected 0 < min_crop <= 1")
        for name in ("weight_decay", "auxiliary_weight", "consistency_weight"):
            value = getattr(self, name)
            _require(value >= 0, f"{name} is {value}, expected 0 or more")
        _require(0 <= self.seed < 2**32, f"seed is {self.seed}, expected 0 <= seed < 2^32")
        _require(self.lr > 0, f"lr is {self.lr}, expected more than 0")
        _require(self.clip_grad > 0, f"clip_grad is {self.clip_grad}, expected more than 0")
        _one_of("arch", self.arch, ARCHITECTURES)
        _one_of("precision", self.precision, ("auto", "no", "bf16"))


@dataclass(frozen=True)
class DetectOptions:
    """How dense scores become segments."""

    threshold: float = _runtime(0.5, "A segment begins where a class is at least this likely.")
    low: float | None = _runtime(
        None, "...and goes on while it is this likely [default: 0.6 x threshold]."
    )
    min_length: float = _runtime(0.0, "Shortest segment that is kept, in seconds.")
    formats: tuple[str, ...] = _runtime(("json", "csv", "png"), "Files to write.")
    batch_size: int | None = _runtime(
        None, "Frames in one pass of the backbone [default: by backbone and device]."
    )
    device: str = _runtime("auto", "auto, cpu, cuda, cuda:1, mps.")

    def __post_init__(self) -> None:
        _require_finite(self)
        _require(
            0 < self.threshold <= 1, f"threshold is {self.threshold}, expected 0 < threshold <= 1"
        )
        _require(
            0 <= self.low_threshold <= self.threshold,
            f"low is {self.low}, expected 0 <= low <= threshold ({self.threshold})",
        )
        size = self.batch_size
        _require(size is None or size >= 1, f"batch_size is {size}, expected 1 or more")
        _require(self.min_length >= 0, f"min_length is {self.min_length}, expected 0 s or more")

    @property
    def low_threshold(self) -> float:
        return 0.6 * self.threshold if self.low is None else self.low


def _require_finite(options: Any) -> None:
    for name, value in asdict(options).items():
        finite = not isinstance(value, float) or math.isfinite(value)
        _require(finite, f"{name} is {value}, expected a number")


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    _require(value in choices, f"{name} is {value!r}, expected one of {', '.join(choices)}")
