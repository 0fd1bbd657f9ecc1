"""Files of tensors, of safetensors and of torch, read without ever running code from a file."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

_WRAPPERS = ("model", "model_state", "state_dict", "model_state_dict")
_SHOWN = 4
"""How many names a message lists."""


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file by name, on the CPU.

    A state dict under `model`, `state_dict` or the like, as training frameworks save it, is
    unwrapped, and a `module.` before every name is removed.

    Args:
        path: A `.safetensors` file, or one that `torch.save` wrote, with any other suffix.

    Raises:
        ValueError: The file is missing, damaged, holds something else than tensors, or holds code.
            The message does not name the file.
    """
    if path.suffix == ".safetensors":
        import safetensors.torch

        try:
            return safetensors.torch.load_file(path)
        except (safetensors.SafetensorError, OSError) as error:
            raise ValueError(f"not a complete safetensors file ({error})") from error
    return _state_dict(_unpickle(path))


def _unpickle(path: Path) -> Any:
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what matters is raised
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own message advises how to run the code; it is not passed on.
        code = re.search(r"GLOBAL ([\w.]+)", str(error))
        if code is None:
            raise ValueError(
                "refused: damaged, or a pickle of something other than tensors; "
                "pickled code is never executed"
            ) from error
        raise ValueError(
            f"refused: it holds pickled code ({code[1]}), which is never executed; "
            "ask for a .safetensors file, or for the state dict alone"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise ValueError(f"damaged, or not a torch file ({error})") from error


def _state_dict(content: Any) -> dict[str, Tensor]:
    from torch import Tensor

    for key in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"found {type(content).__name__}, expected a state dict")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ValueError(
                f"{name!r} is {type(value).__name__}, expected a state dict of tensors"
            )
    prefixed = all(name.startswith("module.") for name in content)
    return {name.removeprefix("module.") if prefixed else name: w for name, w in content.items()}


def describe_mismatch(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """Return which tensors are missing, unknown or of another shape; empty if all fit."""
    problems = {
        "missing": [name for name in expected if name not in found],
        "unknown": [name for name in found if name not in expected],
        "of another shape": [
            f"{name} {tuple(found[name].shape)}, expected {tuple(tensor.shape)}"
            for name, tensor in expected.items()
            if name in found and found[name].shape != tensor.shape
        ],
    }
    return "; ".join(f"{what}: {some_of(names)}" for what, names in problems.items() if names)


def some_of(names: list[str]) -> str:
    """Return the first few names, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
