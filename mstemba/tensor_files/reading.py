"""The tensors of a file, read without executing anything in it."""

from __future__ import annotations

import pickle
import re
import struct
import warnings
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mstemba.tensor_files.formats import EXPECTED, NPZ, SAFETENSORS, TORCHSCRIPT, tensor_format
from mstemba.tensor_files.mismatch import some_of

if TYPE_CHECKING:
    from torch import Tensor

_WRAPPERS = ("model", "model_state", "state_dict", "model_state_dict")


class _Inert:
    """Stands for a value of a training file that is not needed: takes anything, does nothing."""

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


# Training files also hold numbers, paths and options. None of these classes is created.
_IGNORED = (
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "numpy.ndarray",
    "numpy.dtype",
    "argparse.Namespace",
    *(
        f"{module}.{name}"
        for module in ("pathlib", "pathlib._local")
        for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
    ),
)
_READ_AS_DICT = (
    "easydict.EasyDict",
    "fvcore.common.config.CfgNode",
    "lightning.fabric.utilities.data.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "yacs.config.CfgNode",
)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file by name, on the CPU.

    A state dict under `model`, `state_dict` or the like, as training frameworks save it, is
    unwrapped, and a `module.` before every name is removed.

    Args:
        path: A file of safetensors, one that `torch.save` wrote, or a TorchScript archive, with
            any suffix.

    Raises:
        ValueError: The file is missing, damaged, of another kind, holds something other than
            tensors, or holds code. The message does not name the file.
    """
    try:
        kind = tensor_format(path)
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror})") from error
    if kind == NPZ:
        raise ValueError(f"found NumPy arrays (.npz), {EXPECTED}")
    if kind == SAFETENSORS:
        import safetensors.torch

        try:
            content = safetensors.torch.load_file(path)
        except (safetensors.SafetensorError, OSError) as error:
            raise ValueError(f"not a complete safetensors file ({error})") from error
        return _without_prefix(content)
    if kind == TORCHSCRIPT:
        from mstemba.tensor_files.torchscript import read_torchscript

        return _state_dict(_without_code(read_torchscript, path))
    return _state_dict(_without_code(_unpickle, path))


def _unpickle(path: Path) -> Any:
    import torch

    stand_ins: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
        *((_stand_in(name), name) for name in _IGNORED),
        *((OrderedDict, name) for name in _READ_AS_DICT),
    ]
    # An open file: torch takes a path that ends in .safetensors for what its suffix says.
    with (
        path.open("rb") as file,
        warnings.catch_warnings(),
        torch.serialization.safe_globals(stand_ins),
    ):
        warnings.simplefilter("ignore")  # what matters is raised
        return torch.load(file, map_location="cpu", weights_only=True)


def _stand_in(name: str) -> type[_Inert]:
    shown = "NumPy array" if name.endswith(("_reconstruct", "ndarray")) else name
    return type(shown.replace("core.multiarray.", ""), (_Inert,), {})


def _without_code(read: Callable[[Path], Any], path: Path) -> Any:
    try:
        return read(path)
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
    except (
        RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, TypeError,
        AttributeError, AssertionError, OverflowError, struct.error, zlib.error,
        zipfile.BadZipFile,
    ) as error:  # fmt: skip
        raise ValueError(
            "found a damaged or incomplete file, or one of a very old torch, "
            f"{EXPECTED}; download or copy it again"
        ) from error


def _state_dict(content: Any) -> dict[str, Tensor]:
    from torch import Tensor

    for key in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"found {type(content).__name__}, expected a state dict")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            held = some_of([str(key) for key in content])
            raise ValueError(
                f"{name!r} is {type(value).__name__}, expected a state dict of tensors, by itself "
                f"or under {', '.join(_WRAPPERS)}; the file holds {held}"
            )
    return _without_prefix(content)


def _without_prefix(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    prefixed = all(name.startswith("module.") for name in tensors)
    return {name.removeprefix("module.") if prefixed else name: w for name, w in tensors.items()}
