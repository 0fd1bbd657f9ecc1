"""The networks by name: their configurations, and how they are built.

Nothing heavy is imported here: the command line reads the names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeAlias

from mstemba.errors import CheckpointError, UsageError
from mstemba.model.config import Config, LinearConfig, ModelConfig, MSTCTConfig, PDANConfig
from mstemba.reading.typed import shown

if TYPE_CHECKING:
    from mstemba.model.baselines.linear import LinearProbe
    from mstemba.model.baselines.ms_tct import MSTCT
    from mstemba.model.baselines.pdan import PDAN
    from mstemba.model.mstemba import MSTemba

    Network: TypeAlias = MSTemba | MSTCT | PDAN | LinearProbe

_CONFIGS: dict[str, type[Config]] = {
    "mstemba": ModelConfig,
    "mstemba-v3": ModelConfig,
    "ms-tct": MSTCTConfig,
    "pdan": PDANConfig,
    "linear": LinearConfig,
}
ARCHITECTURES = tuple(_CONFIGS)


def make_config(
    arch: str, in_features: int, classes: int, width: float = 1.0, **options: float
) -> Config:
    """Make the configuration of a network.

    Args:
        arch: One of `ARCHITECTURES`.
        in_features: Width of a feature row.
        classes: Number of classes.
        width: Fraction of the published numbers of channels, which are rounded to multiples of 8.
        options: Other fields of configurations; those that the network does not have are ignored.

    Raises:
        UsageError: The name is unknown, or a value is invalid.
    """
    if arch not in _CONFIGS:
        raise UsageError(f"arch: found {arch!r}, expected one of {', '.join(ARCHITECTURES)}")
    kind = _CONFIGS[arch]
    known = {field.name for field in fields(kind)}
    values: dict[str, Any] = {name: value for name, value in options.items() if name in known}
    for field in fields(kind):
        if field.name in ("width", "widths", "mixed"):
            values[field.name] = _scaled(field.default, width)
    return kind(in_features, classes, arch, **values)


def _scaled(channels: Any, share: float) -> Any:
    if isinstance(channels, tuple):
        return tuple(_scaled(c, share) for c in channels)
    return channels if share == 1 else max(8, 8 * round(channels * share / 8))


def config_from_dict(values: Mapping[str, Any]) -> Config:
    """Read the form of ``to_dict``. Raises CheckpointError, naming the value, if it is invalid."""
    arch = values.get("arch", "mstemba")
    if not isinstance(arch, str) or arch not in _CONFIGS:
        raise CheckpointError(
            f"model configuration: arch: found {shown(arch)}, "
            f"expected one of {', '.join(ARCHITECTURES)}"
        )
    return _CONFIGS[arch].from_dict(values)


def build(config: Config) -> Network:
    """Build the untrained network of a configuration, on the CPU."""
    from mstemba.model.baselines.linear import LinearProbe
    from mstemba.model.baselines.ms_tct import MSTCT
    from mstemba.model.baselines.pdan import PDAN
    from mstemba.model.mstemba import MSTemba

    match config:
        case ModelConfig():
            return MSTemba(config)
        case MSTCTConfig():
            return MSTCT(config)
        case PDANConfig():
            return PDAN(config)
        case LinearConfig():
            return LinearProbe(config)
