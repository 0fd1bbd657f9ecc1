"""Weights of the networks: read from files, the authors' and ours, and loaded by name."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from msgspec import Struct
from torch import Tensor, nn

from mstemba.errors import CheckpointError, UsageError, first_line
from mstemba.model.architectures import build, config_from_dict
from mstemba.model.config import Config, ModelConfig
from mstemba.reading.digests import check_digest
from mstemba.reading.files import file_size, read_bytes
from mstemba.reading.typed import convert, parse_untyped
from mstemba.tensor_files.mismatch import describe_mismatch, describe_network, some_of
from mstemba.tensor_files.reading import read_tensors

if TYPE_CHECKING:
    from mstemba.model.architectures import Network

WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "config.json"
"""Names inside a checkpoint folder; the configuration is under the key ``model``."""

# Vision Mamba's 1000-way ImageNet heads: in the authors' checkpoints, but never called.
_DEAD_HEAD = re.compile(r"(blocks\.\d+(\.\d+)?|interaction_block)\.head\.(weight|bias)")

# The weight that each architecture is known by.
_KNOWN_BY = {
    "mstemba": "blocks.0.conv.weight",
    "mstemba-v3": "blocks.0.linear.weight",
    "ms-tct": "stages.0.merge.weight",
    "pdan": "stage1.conv_1x1.weight",
    "linear": "head.weight",  # the last one: others have a head, too
}


class _ConfigFile(Struct):
    model: dict[str, Any]


def read_weights(path: str | os.PathLike[str], ours: bool = False) -> dict[str, Tensor]:
    """Return the tensors of a file of safetensors or torch, recognised by its content.

    Args:
        path: The file.
        ours: Whether it is in a checkpoint of ours, see `read_tensors`.

    Raises:
        CheckpointError: The file is missing, damaged, of another kind, or holds code.
    """
    path = Path(path)
    file_size(path, CheckpointError)
    try:
        return read_tensors(path, ours)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error


def infer_config(weights: Mapping[str, Tensor]) -> Config:
    """Return the configuration of the network that weights belong to, from names and shapes.

    ``split``, ``heads``, ``drop_path`` and ``dropout`` leave no trace in weights and get their
    defaults.

    Raises:
        CheckpointError: The weights are not those of a known architecture.
    """
    arch = next((arch for arch, name in _KNOWN_BY.items() if name in weights), None)
    if arch is None:
        known = ", ".join(f"{name} ({arch})" for arch, name in _KNOWN_BY.items())
        found = describe_network(weights) or some_of(list(weights)) or "nothing"
        raise CheckpointError(f"weights of an unknown network: found {found}, expected {known}")
    return config_from_dict({"arch": arch, **_SHAPES.get(arch, _mstemba_shape)(weights)})


def load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load every parameter of a network by name.

    The unused ``*.head.*`` below a Mamba block are ignored.

    Raises:
        CheckpointError: Tensors are missing, unknown or of another shape. The first few are named,
            and the network is unchanged.
    """
    model.load_state_dict(_fitting(model, weights))


def _fitting(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights that a network has. Raises CheckpointError if they do not fit."""
    found = {name: w for name, w in weights.items() if not _DEAD_HEAD.fullmatch(name)}
    if mismatch := describe_mismatch(model.state_dict(), found):
        raise CheckpointError(f"weights do not fit the model. {mismatch}")
    return found


def _check_sizes(config: Config, weights: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError if a network does not fit weights, before it takes memory."""
    if getattr(config, "blocks", 0) > len(weights):
        raise CheckpointError(
            f"weights do not fit the model: found {len(weights)} tensors, too few for its blocks"
        )
    try:
        with torch.device("meta"):
            model = build(config)
    except (RuntimeError, ValueError, TypeError, OverflowError) as error:
        raise CheckpointError(
            f"model configuration: found sizes that no network can have ({first_line(error)})"
        ) from None
    _fitting(model, weights)


def load_model(
    path: str | os.PathLike[str],
    device: torch.device | str | None = None,
    split: str | None = None,
    padding: str | None = None,
) -> Network:
    """Load a trained network.

    Args:
        path: A folder with ``model.safetensors`` and ``config.json``, or a weights file, from which
            the configuration is inferred.
        device: Where the network is put. Default: the CPU.
        split: How MS-Temba splits a sequence into streams, ``interleaved`` or ``contiguous``;
            replaces the configuration's. The released v1 weights were trained with ``contiguous``,
            which a weights file does not tell; the default for files is ``interleaved``.
        padding: How MS-Temba treats padded rows; replaces the configuration's. ``released`` scores
            clips padded to a fixed length as the authors' code does; ``masked``, the default,
            scores each clip as if it were alone.

    Returns:
        The network in evaluation mode, float32.

    Raises:
        CheckpointError: The weights or the configuration are missing, damaged or do not fit.
        UsageError: ``split`` or ``padding`` is given for another network than MS-Temba.
    """
    path = Path(path)
    if path.is_dir():
        values = _read_config(path / CONFIG_FILE)
        weights = read_weights(path / WEIGHTS_FILE, ours=True)
        with _naming(path / CONFIG_FILE):
            config = config_from_dict(values)
    else:
        weights = read_weights(path)
        with _naming(path):
            config = infer_config(weights)
    for name, value in (("split", split), ("padding", padding)):
        if value is None:
            continue
        if not isinstance(config, ModelConfig):
            raise UsageError(
                f"{name}: found {value!r}, but {config.arch} has no such option; omit it"
            )
        config = ModelConfig.from_dict({**config.to_dict(), name: value})
    with _naming(path):
        _check_sizes(config, weights)
        model = build(config)
        load_weights(model, weights)
    return model.to(device or "cpu").eval()


def _read_config(path: Path) -> dict[str, Any]:
    data = parse_untyped(read_bytes(path, CheckpointError), str(path), CheckpointError, unique=True)
    model = convert(data, _ConfigFile, str(path), CheckpointError).model
    check_digest(data, str(path), CheckpointError)
    return model


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Put a file before the message of a CheckpointError."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def _mstemba_shape(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    local = "conv" if _KNOWN_BY["mstemba"] in weights else "linear"
    mixer = "blocks.1.layers.0.mixer"
    widths = [_shape(weights, f"blocks.{i}.{local}.weight")[0] for i in (0, 2, 4)]
    inner, state = (*_shape(weights, f"{mixer}.A_log"), 0)[:2]
    return {
        "in_features": _shape(weights, "proj.weight")[-1],
        "classes": _shape(weights, "head.weight")[0],
        "widths": widths,
        "state": state,
        "expand": inner // widths[0],
        "conv": _shape(weights, f"{mixer}.conv1d.weight")[-1],
    }


def _ms_tct_shape(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    widths = [_shape(weights, f"stages.{i}.merge.weight")[0] for i in range(4)]
    inner = _shape(weights, "stages.0.blocks.0.local.expand.weight")[0]
    return {
        "in_features": (*_shape(weights, "stages.0.merge.weight"), 0)[1],
        "classes": _shape(weights, "head.weight")[0],
        "widths": widths,
        "blocks": _count(weights, r"stages\.0\.blocks\.\d+\.norm1\.weight"),
        "expand": inner // widths[0],
        "mixed": _shape(weights, "fuse.weight")[0],
    }


def _pdan_shape(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    width, in_features = (*_shape(weights, "stage1.conv_1x1.weight"), 0)[:2]
    return {
        "in_features": in_features,
        "classes": _shape(weights, "stage1.conv_out.weight")[0],
        "width": width,
        "blocks": _count(weights, r"stage1\.layers\.\d+\.conv_1x1\.weight"),
    }


def _linear_shape(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    classes, in_features = (*_shape(weights, "head.weight"), 0)[:2]
    return {"in_features": in_features, "classes": classes}


_SHAPES = {"ms-tct": _ms_tct_shape, "pdan": _pdan_shape, "linear": _linear_shape}


def _shape(weights: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    if name not in weights or weights[name].dim() == 0 or weights[name].numel() == 0:
        raise CheckpointError(f"incomplete weights: {name} is missing, a scalar or empty")
    return tuple(weights[name].shape)


def _count(weights: Mapping[str, Tensor], pattern: str) -> int:
    return sum(re.fullmatch(pattern, name) is not None for name in weights)
