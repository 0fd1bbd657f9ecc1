"""Weights on disk: the authors' files and ours, read without ever running code from a file."""

from __future__ import annotations

import json
import os
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from mstemba.errors import CheckpointError, UsageError
from mstemba.model.architectures import build, config_from_dict
from mstemba.model.config import Config, ModelConfig

if TYPE_CHECKING:
    from mstemba.model.architectures import Network

WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "config.json"
"""Names inside a checkpoint folder; the configuration is under the key ``model``."""

# Vision Mamba's 1000-way ImageNet heads: in the authors' checkpoints, but never called.
_DEAD_HEAD = re.compile(r"(blocks\.\d+(\.\d+)?|interaction_block)\.head\.(weight|bias)")
_PICKLED = (".pt", ".pth", ".bin", ".ckpt")
_WRAPPERS = ("model", "state_dict", "model_state_dict")

# The weight that each architecture is known by.
_KNOWN_BY = {
    "mstemba": "blocks.0.conv.weight",
    "mstemba-v3": "blocks.0.linear.weight",
    "ms-tct": "stages.0.merge.weight",
    "pdan": "stage1.conv_1x1.weight",
    "linear": "head.weight",  # the last one: others have a head, too
}


def read_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors``, ``.pt``, ``.pth``, ``.bin`` or ``.ckpt`` file, by name.

    A state dict under ``model`` or ``state_dict`` is unwrapped, and a ``module.`` before every name
    cut off. Raises CheckpointError for a file that is missing, damaged, of another kind, or holds
    code.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file, expected model weights")
    if path.suffix == ".safetensors":
        try:
            return safetensors.torch.load_file(path)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: not a whole safetensors file ({error})") from error
    if path.suffix in _PICKLED:
        return _unwrap(path, _read_pickle(path))
    raise CheckpointError(
        f"{path}: found {path.suffix or 'no suffix'}, "
        f"expected {', '.join(('.safetensors', *_PICKLED))}"
    )


def infer_config(weights: Mapping[str, Tensor]) -> Config:
    """The configuration of the network these weights belong to, from their names and shapes.

    ``split``, ``heads``, ``drop_path`` and ``dropout`` leave no trace in weights and are the
    defaults. Raises CheckpointError where the weights are of no architecture there is.
    """
    arch = next((arch for arch, name in _KNOWN_BY.items() if name in weights), None)
    if arch is None:
        known = ", ".join(f"{name} ({arch})" for arch, name in _KNOWN_BY.items())
        found = _some(list(weights)) or "nothing"
        raise CheckpointError(f"weights of no known network: found {found}, expected {known}")
    return config_from_dict({"arch": arch, **_SHAPES.get(arch, _mstemba_shape)(weights)})


def load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Fill every parameter, by name.

    The unused ``*.head.*`` below a Mamba block are left out. Raises CheckpointError, with the model
    unchanged, naming the first few tensors that are missing, unknown or of another shape.
    """
    expected = model.state_dict()
    found = {name: w for name, w in weights.items() if not _DEAD_HEAD.fullmatch(name)}
    misshapen = [
        f"{name} {tuple(found[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in found and found[name].shape != tensor.shape
    ]
    problems = {
        "missing": [name for name in expected if name not in found],
        "unknown": [name for name in found if name not in expected],
        "of another shape": misshapen,
    }
    text = "; ".join(f"{what}: {_some(names)}" for what, names in problems.items() if names)
    if text:
        raise CheckpointError(f"weights do not fit the model. {text}")
    model.load_state_dict(found)


def save_weights(
    path: str | os.PathLike[str], model_or_state: nn.Module | Mapping[str, Tensor]
) -> None:
    """Write a safetensors file that appears whole or not at all, even if the machine stops."""
    if isinstance(model_or_state, nn.Module):
        model_or_state = model_or_state.state_dict()
    tensors = {name: w.detach().cpu().contiguous() for name, w in model_or_state.items()}
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(safetensors.torch.save(tensors))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load_model(
    path: str | os.PathLike[str],
    device: torch.device | str | None = None,
    split: str | None = None,
    padding: str | None = None,
) -> Network:
    """The network of a weights file, or of a folder with ``model.safetensors`` and ``config.json``.

    Args:
        path: in a bare file the configuration is inferred from the weights.
        device: where the model is put; the CPU when None.
        split: of MS-Temba; replaces the configuration's. The released v1 weights were trained with
            ``contiguous``, which a bare file cannot tell; the default there is ``interleaved``.
        padding: of MS-Temba; replaces the configuration's. ``released`` scores clips padded to a
            fixed length as the authors' code does, ``masked``, the default, as if each were alone.

    Returns:
        The model in evaluation mode, float32.

    Raises:
        CheckpointError: see ``read_weights``, ``infer_config`` and ``load_weights``.
        UsageError: a split or a padding for a network that has no such choice.
    """
    path = Path(path)
    values: dict[str, Any]
    if path.is_dir():
        values = _read_config(path / CONFIG_FILE)
        weights = read_weights(path / WEIGHTS_FILE)
    else:
        weights = read_weights(path)
        values = infer_config(weights).to_dict()
    config = config_from_dict(values)
    for name, value in (("split", split), ("padding", padding)):
        if value is None:
            continue
        if not isinstance(config, ModelConfig):
            raise UsageError(f"{name}: found {value!r}, but {config.arch} has none; leave it out")
        config = ModelConfig.from_dict({**config.to_dict(), name: value})
    model = build(config)
    load_weights(model, weights)
    return model.to(device or "cpu").eval()


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


def _read_pickle(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what matters is raised
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))  # torch gives the name in words only
        if named is None:
            raise CheckpointError(
                f"refused {path}: damaged, or a pickle of something else than tensors; "
                "pickled code is never executed"
            ) from error
        raise CheckpointError(
            f"refused {path}: it holds pickled code ({named[1]}), which is never executed; "
            "ask for a .safetensors file, or for the state dict alone"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise CheckpointError(f"{path}: damaged, or not a torch file ({error})") from error


def _unwrap(path: Path, content: Any) -> dict[str, Tensor]:
    for key in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"{path}: found {type(content).__name__}, expected a state dict")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f"{path}: {name!r} is {type(value).__name__}, expected a state dict of tensors"
            )
    wrapped = all(name.startswith("module.") for name in content)
    return {name.removeprefix("module.") if wrapped else name: w for name, w in content.items()}


def _read_config(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON ({error})") from error
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict):
        raise CheckpointError(f"{path}: expected an object with the configuration under 'model'")
    return model


def _shape(weights: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    if name not in weights or weights[name].dim() == 0:
        raise CheckpointError(f"incomplete weights: {name} is missing or a scalar")
    return tuple(weights[name].shape)


def _count(weights: Mapping[str, Tensor], pattern: str) -> int:
    """How many of the weights have such a name."""
    return sum(re.fullmatch(pattern, name) is not None for name in weights)


def _some(names: list[str], limit: int = 4) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
