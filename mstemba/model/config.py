"""What defines a model: everything needed to build the network, and nothing about training it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self, TypeAlias

from mstemba.errors import CheckpointError, UsageError

VERSIONS = ("mstemba", "mstemba-v3")
SPLITS = ("interleaved", "contiguous")
PADDINGS = ("masked", "released")


@dataclass(frozen=True)
class _Config:
    """What every network has, and the way to JSON and back.

    Raises UsageError, naming what was found and what was expected, for a value no network can have.
    """

    in_features: int
    """Width F of one feature row."""
    classes: int
    """Number C of action classes."""

    def to_dict(self) -> dict[str, Any]:
        """The configuration as plain JSON values; ``from_dict`` reads it back."""
        values = dataclasses.asdict(self).items()
        return {name: list(v) if isinstance(v, tuple) else v for name, v in values}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read ``to_dict``'s form. Raises CheckpointError for an unknown, missing or bad value."""
        fields = dataclasses.fields(cls)
        unknown = sorted(set(values) - {field.name for field in fields})
        if unknown:
            raise CheckpointError(
                f"model configuration: unknown {', '.join(unknown)}; "
                f"expected {', '.join(field.name for field in fields)}"
            )
        required = {field.name for field in fields if field.default is dataclasses.MISSING}
        missing = sorted(required - set(values))
        if missing:
            raise CheckpointError(f"model configuration: {', '.join(missing)} missing")
        try:
            return cls(**values)
        except UsageError as error:
            raise CheckpointError(f"model configuration: {error}") from error

    def __post_init__(self) -> None:
        """Check every value by the type of its field, and keep ``widths`` as a tuple."""
        for field in dataclasses.fields(self):
            name, found = field.name, getattr(self, field.name)
            default: Any = field.default
            if name == "arch":
                _expect_choice(name, found, VERSIONS if default in VERSIONS else (default,))
            elif name == "widths":
                if not isinstance(found, (tuple, list)) or len(found) != len(default):
                    expected = f"expected {len(default)} positive integers"
                    raise UsageError(f"widths: found {found!r}, {expected}")
                for index, width in enumerate(found):
                    _expect_positive_integer(f"widths[{index}]", width)
                object.__setattr__(self, "widths", tuple(found))
            elif field.type == "int":
                _expect_positive_integer(name, found)
            elif field.type == "float":
                number = isinstance(found, (int, float)) and not isinstance(found, bool)
                if not number or not 0 <= found < 1:
                    raise UsageError(f"{name}: found {found!r}, expected a number in [0, 1)")


@dataclass(frozen=True)
class ModelConfig(_Config):
    """The shape of an MS-Temba network (arXiv 2501.06138).

    ``mstemba`` is version 1 of the paper, ``mstemba-v3`` its CVPR 2026 version.
    """

    arch: str = "mstemba"
    widths: tuple[int, ...] = (256, 384, 576)
    """Channels at scales 1, 2 and 3; the fuser works at the last one."""
    state: int = 16
    """State size S of the selective scan."""
    expand: int = 2
    """Inner channels of a Mamba block per channel of its input."""
    conv: int = 4
    """Taps of the depthwise causal convolution."""
    split: str = "interleaved"
    """The k streams of scale k: t = i + j k, or k contiguous parts (released v1 code)."""
    padding: str = "masked"
    """What the mask leaves out reaches no real step, or, ``released``, is zeros that are scanned
    like any step: what the authors' code makes of clips padded to a fixed length."""
    drop_path: float = 0.0
    """Probability of skipping the mixer of a block, per sequence, in training."""
    dropout: float = 0.0
    """Probability of zeroing an input feature in training."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _expect_choice("split", self.split, SPLITS)
        _expect_choice("padding", self.padding, PADDINGS)


@dataclass(frozen=True)
class MSTCTConfig(_Config):
    """The shape of an MS-TCT network (arXiv 2112.03902); the defaults are the paper's."""

    arch: str = "ms-tct"
    widths: tuple[int, ...] = (256, 384, 576, 864)
    """Channels at the four stages, each at half the temporal resolution of the one before."""
    blocks: int = 3
    """Global-local relational blocks of a stage."""
    heads: int = 8
    """Heads of the self-attention."""
    expand: int = 8
    """Inner channels of a local relation per channel of its input."""
    mixed: int = 512
    """Channels of every scale in the mixer."""
    dropout: float = 0.0
    """Probability of zeroing an input of the network or of its head in training (authors: 0.5)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(width % self.heads for width in self.widths):
            raise UsageError(
                f"heads: found {self.heads}, expected a divisor of the widths "
                f"{', '.join(map(str, self.widths))}"
            )


@dataclass(frozen=True)
class PDANConfig(_Config):
    """The shape of a PDAN network (Dai et al., WACV 2021); the defaults are the paper's."""

    arch: str = "pdan"
    width: int = 512
    """Channels of the bottleneck and of every block."""
    blocks: int = 5
    """Blocks of dilated attention; block i has dilation 2^i, counted from 0."""
    dropout: float = 0.0
    """Probability of zeroing an output of a block's branch in training (authors: 0.5)."""


@dataclass(frozen=True)
class LinearConfig(_Config):
    """A linear probe: every row alone, what the features say without any context."""

    arch: str = "linear"
    dropout: float = 0.0
    """Probability of zeroing an input feature in training."""


Config: TypeAlias = ModelConfig | MSTCTConfig | PDANConfig | LinearConfig
"""Any network's configuration."""


def dt_rank(width: int) -> int:
    """Rank of the projection that makes the step size delta, for a block of this width."""
    return math.ceil(width / 16)


def _expect_choice(name: str, found: object, choices: tuple[str, ...]) -> None:
    if found not in choices:
        raise UsageError(f"{name}: found {found!r}, expected one of {', '.join(choices)}")


def _expect_positive_integer(name: str, found: object) -> None:
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise UsageError(f"{name}: found {found!r}, expected a positive integer")
