"""What defines a model: everything needed to build the network, and nothing about training it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mstemba.errors import CheckpointError, UsageError

ARCHITECTURES = ("mstemba", "mstemba-v3")
SPLITS = ("interleaved", "contiguous")


@dataclass(frozen=True)
class ModelConfig:
    """The shape of an MS-Temba network (arXiv 2501.06138).

    ``mstemba`` is version 1 of the paper, ``mstemba-v3`` its CVPR 2026 version. Raises UsageError,
    naming what was found and what was expected, for a value no network can have.
    """

    in_features: int
    """Width F of one feature row."""
    classes: int
    """Number C of action classes."""
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
    drop_path: float = 0.0
    """Probability of skipping the mixer of a block, per sequence, in training."""
    dropout: float = 0.0
    """Probability of zeroing an input feature in training."""

    def __post_init__(self) -> None:
        _expect_choice("arch", self.arch, ARCHITECTURES)
        _expect_choice("split", self.split, SPLITS)
        if isinstance(self.widths, str) or not isinstance(self.widths, (tuple, list)):
            raise UsageError(f"widths: found {self.widths!r}, expected three positive integers")
        object.__setattr__(self, "widths", tuple(self.widths))
        if len(self.widths) != 3:
            raise UsageError(f"widths: found {len(self.widths)} of them, expected three")
        for index, width in enumerate(self.widths):
            _expect_positive_integer(f"widths[{index}]", width)
        for name in ("in_features", "classes", "state", "expand", "conv"):
            _expect_positive_integer(name, getattr(self, name))
        for name in ("drop_path", "dropout"):
            _expect_probability(name, getattr(self, name))

    def to_dict(self) -> dict[str, Any]:
        """The configuration as plain JSON values; ``from_dict`` reads it back."""
        return {**dataclasses.asdict(self), "widths": list(self.widths)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
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


def dt_rank(width: int) -> int:
    """Rank of the projection that makes the step size delta, for a block of this width."""
    return math.ceil(width / 16)


def _expect_choice(name: str, found: object, choices: tuple[str, ...]) -> None:
    if found not in choices:
        raise UsageError(f"{name}: found {found!r}, expected one of {', '.join(choices)}")


def _expect_positive_integer(name: str, found: object) -> None:
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise UsageError(f"{name}: found {found!r}, expected a positive integer")


def _expect_probability(name: str, found: object) -> None:
    if not isinstance(found, (int, float)) or isinstance(found, bool) or not 0 <= found < 1:
        raise UsageError(f"{name}: found {found!r}, expected a number in [0, 1)")
