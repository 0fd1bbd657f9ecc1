"""The networks by name: their configurations, and how they are built.

No heavy import here: the command line reads the names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeAlias

from mstemba.errors import CheckpointError, UsageError
from mstemba.model.config import Config, ModelConfig, MSTCTConfig, PDANConfig

if TYPE_CHECKING:
    from mstemba.model.baselines.ms_tct import MSTCT
    from mstemba.model.baselines.pdan import PDAN
    from mstemba.model.mstemba import MSTemba

    Network: TypeAlias = MSTemba | MSTCT | PDAN

_CONFIGS: dict[str, type[Config]] = {
    "mstemba": ModelConfig,
    "mstemba-v3": ModelConfig,
    "ms-tct": MSTCTConfig,
    "pdan": PDANConfig,
}
ARCHITECTURES = tuple(_CONFIGS)


def make_config(arch: str, in_features: int, classes: int, **options: float) -> Config:
    """The named network's configuration, with those of the options that it has.

    Raises UsageError for an unknown name, or a value no network can have.
    """
    if arch not in _CONFIGS:
        raise UsageError(f"arch: found {arch!r}, expected one of {', '.join(ARCHITECTURES)}")
    kind = _CONFIGS[arch]
    known = {field.name for field in fields(kind)}
    values: dict[str, Any] = {name: value for name, value in options.items() if name in known}
    return kind(in_features, classes, arch, **values)


def config_from_dict(values: Mapping[str, Any]) -> Config:
    """Read a configuration's ``to_dict``. Raises CheckpointError for a bad value, naming it."""
    arch = values.get("arch", "mstemba")
    if not isinstance(arch, str) or arch not in _CONFIGS:
        raise CheckpointError(
            f"model configuration: arch: found {arch!r}, expected one of {', '.join(ARCHITECTURES)}"
        )
    return _CONFIGS[arch].from_dict(values)


def build(config: Config) -> Network:
    """The untrained network of a configuration, on the CPU."""
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
