"""What defines a model: everything needed to build the network, and nothing about training it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Self, TypeAlias, get_type_hints

from msgspec import Meta

from mstemba.errors import CheckpointError, UsageError
from mstemba.limits import MOST_BLOCKS, MOST_CLASSES, WIDEST
from mstemba.reading.typed import convert, shown

VERSIONS = ("mstemba", "mstemba-v3")
SPLITS = ("interleaved", "contiguous")
PADDINGS = ("masked", "released")
_WHERE = "model configuration"
_Size = Annotated[int, Meta(ge=1, le=WIDEST)]
_Share = Annotated[float, Meta(ge=0, lt=1)]


@dataclass(frozen=True)
class _Config:
    """What every network has, and the way to JSON and back.

    Raises UsageError, naming what was found and what was expected, for a value no network can have.
    """

    in_features: _Size
    """Width F of one feature row."""
    classes: Annotated[int, Meta(ge=1, le=MOST_CLASSES)]
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
                f"{_WHERE}: unknown {', '.join(map(shown, unknown[:5]))}; "
                f"expected {', '.join(field.name for field in fields)}"
            )
        required = {field.name for field in fields if field.default is dataclasses.MISSING}
        missing = sorted(required - set(values))
        if missing:
            raise CheckpointError(f"{_WHERE}: {', '.join(missing)} missing")
        try:
            return cls(**values)
        except UsageError as error:
            raise CheckpointError(str(error)) from error

    def __post_init__(self) -> None:
        """Check every value by the type of its field, and keep ``widths`` as a tuple."""
        for name, kind in get_type_hints(type(self), include_extras=True).items():
            value = convert(getattr(self, name), kind, _WHERE, place=f"$.{name}")
            if name == "widths":
                object.__setattr__(self, name, value)
            elif name == "arch":
                default: str = type(self).__dict__[name]
                _expect_choice(name, value, VERSIONS if default in VERSIONS else (default,))


@dataclass(frozen=True)
class ModelConfig(_Config):
    """The shape of an MS-Temba network (arXiv 2501.06138).

    ``mstemba`` is version 1 of the paper, ``mstemba-v3`` its CVPR 2026 version.
    """

    arch: str = "mstemba"
    widths: tuple[_Size, _Size, _Size] = (256, 384, 576)
    """Channels at scales 1, 2 and 3; the fuser works at the last one."""
    state: _Size = 16
    """State size S of the selective scan."""
    expand: _Size = 2
    """Inner channels of a Mamba block per channel of its input."""
    conv: _Size = 4
    """Taps of the depthwise causal convolution."""
    split: str = "interleaved"
    """The k streams of scale k: t = i + j k, or k contiguous parts (released v1 code)."""
    padding: str = "masked"
    """What the mask leaves out reaches no real step, or, ``released``, is zeros that are scanned
    like any step: what the authors' code makes of clips padded to a fixed length."""
    drop_path: _Share = 0.0
    """Probability of skipping the mixer of a block, per sequence, in training."""
    dropout: _Share = 0.0
    """Probability of zeroing an input feature in training."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _expect_choice("split", self.split, SPLITS)
        _expect_choice("padding", self.padding, PADDINGS)


@dataclass(frozen=True)
class MSTCTConfig(_Config):
    """The shape of an MS-TCT network (arXiv 2112.03902); the defaults are the paper's."""

    arch: str = "ms-tct"
    widths: tuple[_Size, _Size, _Size, _Size] = (256, 384, 576, 864)
    """Channels at the four stages, each at half the temporal resolution of the one before."""
    blocks: Annotated[int, Meta(ge=1, le=MOST_BLOCKS)] = 3
    """Global-local relational blocks of a stage."""
    heads: _Size = 8
    """Heads of the self-attention."""
    expand: _Size = 8
    """Inner channels of a local relation per channel of its input."""
    mixed: _Size = 512
    """Channels of every scale in the mixer."""
    dropout: _Share = 0.0
    """Probability of zeroing an input of the network or of its head in training (authors: 0.5)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(width % self.heads for width in self.widths):
            raise UsageError(
                f"{_WHERE}: heads: found {self.heads}, expected a divisor of the widths "
                f"{', '.join(map(str, self.widths))}"
            )


@dataclass(frozen=True)
class PDANConfig(_Config):
    """The shape of a PDAN network (Dai et al., WACV 2021); the defaults are the paper's."""

    arch: str = "pdan"
    width: _Size = 512
    """Channels of the bottleneck and of every block."""
    blocks: Annotated[int, Meta(ge=1, le=MOST_BLOCKS)] = 5
    """Blocks of dilated attention; block i has dilation 2^i, counted from 0."""
    dropout: _Share = 0.0
    """Probability of zeroing an output of a block's branch in training (authors: 0.5)."""


@dataclass(frozen=True)
class LinearConfig(_Config):
    """A linear probe: every row alone, what the features say without any context."""

    arch: str = "linear"
    dropout: _Share = 0.0
    """Probability of zeroing an input feature in training."""


Config: TypeAlias = ModelConfig | MSTCTConfig | PDANConfig | LinearConfig
"""Any network's configuration."""


def dt_rank(width: int) -> int:
    """Rank of the projection that makes the step size delta, for a block of this width."""
    return math.ceil(width / 16)


def _expect_choice(name: str, found: str, choices: tuple[Any, ...]) -> None:
    if found not in choices:
        expected = ", ".join(choices)
        raise UsageError(f"{_WHERE}: {name}: found {shown(found)}, expected one of {expected}")
