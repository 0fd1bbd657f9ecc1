"""Weights on disk: the authors' files and ours, read without ever running code from a file."""

from __future__ import annotations

import json
import os
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from mstemba.errors import CheckpointError
from mstemba.model.config import ModelConfig
from mstemba.model.mstemba import MSTemba

WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "config.json"
"""Names inside a checkpoint folder; the configuration is under the key ``model``."""

# Vision Mamba's 1000-way ImageNet heads: in the authors' checkpoints, but never called.
_DEAD_HEAD = re.compile(r"(blocks\.\d+(\.\d+)?|interaction_block)\.head\.(weight|bias)")
_PICKLED = (".pt", ".pth", ".bin", ".ckpt")
_WRAPPERS = ("model", "state_dict", "model_state_dict")


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


def infer_config(weights: Mapping[str, Tensor]) -> ModelConfig:
    """The configuration of the network these weights belong to, from their names and shapes.

    ``split``, ``drop_path`` and ``dropout`` leave no trace in weights and are the defaults. Raises
    CheckpointError where the weights are of no MS-Temba.
    """
    if "blocks.0.conv.weight" in weights:
        arch, local = "mstemba", "conv"
    elif "blocks.0.linear.weight" in weights:
        arch, local = "mstemba-v3", "linear"
    else:
        raise CheckpointError(
            f"not MS-Temba weights: found {_some(list(weights)) or 'nothing'}, "
            "expected blocks.0.conv.weight (v1) or blocks.0.linear.weight (v3)"
        )
    mixer = "blocks.1.layers.0.mixer"
    widths = tuple(_shape(weights, f"blocks.{i}.{local}.weight")[0] for i in (0, 2, 4))
    inner, state = (*_shape(weights, f"{mixer}.A_log"), 0)[:2]
    return ModelConfig(
        arch=arch,
        in_features=_shape(weights, "proj.weight")[-1],
        classes=_shape(weights, "head.weight")[0],
        widths=widths,
        state=state,
        expand=inner // widths[0],
        conv=_shape(weights, f"{mixer}.conv1d.weight")[-1],
    )


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
) -> MSTemba:
    """The network of a weights file, or of a folder with ``model.safetensors`` and ``config.json``.

    Args:
        path: in a bare file the configuration is inferred from the weights.
        device: where the model is put; the CPU when None.
        split: replaces the configuration's. The released v1 weights were trained with
            ``contiguous``, which a bare file cannot tell; the default there is ``interleaved``.

    Returns:
        The model in evaluation mode, float32.

    Raises:
        CheckpointError: see ``read_weights``, ``infer_config`` and ``load_weights``.
    """
    path = Path(path)
    values: dict[str, Any]
    if path.is_dir():
        values = _read_config(path / CONFIG_FILE)
        weights = read_weights(path / WEIGHTS_FILE)
    else:
        weights = read_weights(path)
        values = infer_config(weights).to_dict()
    if split is not None:
        values["split"] = split
    model = MSTemba(ModelConfig.from_dict(values))
    load_weights(model, weights)
    return model.to(device or "cpu").eval()


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
        raise CheckpointError(f"not whole MS-Temba weights: {name} is missing or a scalar")
    return tuple(weights[name].shape)


def _some(names: list[str], limit: int = 4) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
