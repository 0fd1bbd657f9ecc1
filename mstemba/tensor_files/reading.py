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

from mstemba.errors import MstembaWarning, UsageError, library_warnings_ignored
from mstemba.reading.arrays import open_zip
from mstemba.reading.files import check_memory, reason
from mstemba.reading.pickles import check_pickle
from mstemba.reading.typed import shown
from mstemba.tensor_files.formats import EXPECTED, NPZ, SAFETENSORS, TORCHSCRIPT, tensor_format
from mstemba.tensor_files.mismatch import some_of
from mstemba.tensor_files.safetensors_file import DIGEST, check_digest, read_header

if TYPE_CHECKING:
    from torch import Tensor

_DAMAGE = (
    RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, TypeError, AttributeError,
    AssertionError, OverflowError, RecursionError, MemoryError, struct.error, zlib.error,
    zipfile.BadZipFile,
)  # fmt: skip
_LEGACY_PICKLES = 5
"""At the beginning of files of torch before 1.6: a number, versions, the content, its keys."""
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


def read_tensors(path: Path, ours: bool = False) -> dict[str, Tensor]:
    """Return the tensors of a file by name, on the CPU.

    A state dict under `model`, `state_dict` or the like, as training frameworks save it, is
    unwrapped, and a `module.` before every name is removed.

    Args:
        path: A file of safetensors, one that `torch.save` wrote, or a TorchScript archive, with
            any suffix.
        ours: Whether it is in a checkpoint of ours, whose metadata are a SHA-256 or nothing.

    Raises:
        ValueError: The file is missing, damaged, of another kind, holds something other than
            tensors, or holds code. The message does not name the file.
    """
    try:
        kind = tensor_format(path)
    except OSError as error:
        raise ValueError(f"cannot be read ({reason(error)})") from error
    if kind == NPZ:
        raise ValueError(f"found NumPy arrays (.npz), {EXPECTED}")
    if kind == SAFETENSORS:
        return _without_prefix(_read_safetensors(path, ours))
    if kind == TORCHSCRIPT:
        from mstemba.tensor_files.torchscript import read_torchscript

        tensors = _state_dict(path, _without_code(read_torchscript, path))
    else:
        tensors = _state_dict(path, _without_code(_unpickle, path))
    try:
        _check_sizes(path, tensors)
    except UsageError as error:
        raise ValueError(str(error).removeprefix(f"{path}: ")) from None
    return tensors


def _read_safetensors(path: Path, ours: bool) -> dict[str, Tensor]:
    import safetensors.torch

    try:
        metadata = read_header(path).metadata
        # The metadata of others may have a text of the same name.
        if ours or (metadata.keys() <= {DIGEST, "format"} and len(metadata.get(DIGEST, "")) == 64):
            check_digest(path)
    except ValueError as error:
        raise ValueError(f"{error}; copy it again, or train again") from None
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, *_DAMAGE) as error:
        raise ValueError(f"not a complete safetensors file ({reason(error)})") from error


def _unpickle(path: Path) -> Any:
    import torch

    _check_torch_file(path)

    stand_ins: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
        *((_stand_in(name), name) for name in _IGNORED),
        *((OrderedDict, name) for name in _READ_AS_DICT),
    ]
    # An open file: torch takes a path that ends in .safetensors for what its suffix says.
    with (
        path.open("rb") as file,
        library_warnings_ignored(),  # what matters is raised
        torch.serialization.safe_globals(stand_ins),
    ):
        return torch.load(file, map_location="cpu", weights_only=True)


def _check_torch_file(path: Path) -> None:
    """Raise an error for damaged members, which torch does not see, and for hostile pickles."""
    if zipfile.is_zipfile(path):
        with open_zip(path) as archive:
            if damaged := archive.testzip():
                raise ValueError(f"{damaged} is damaged")
            for name in archive.namelist():
                if name.endswith("data.pkl"):
                    check_pickle(archive.read(name))
    else:
        content, place = path.read_bytes(), 0
        for _ in range(_LEGACY_PICKLES):
            place = check_pickle(content, place)


def _check_sizes(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise UsageError or ValueError for tensors that are larger than their file.

    A tensor may have many elements for each that is stored, and torch does not compare the size of
    a member of an archive with what is to be in it.
    """
    size = path.stat().st_size
    needed = sum(tensor.numel() * max(4, tensor.itemsize) for tensor in tensors.values())
    check_memory(str(path), size, size + needed)
    if any(tensor.is_sparse or tensor.is_quantized for tensor in tensors.values()):
        raise ValueError(f"found sparse or quantized tensors, {EXPECTED}")
    if zipfile.is_zipfile(path):
        with open_zip(path) as archive:
            stored = {member.file_size for member in archive.infolist()}
        if any(t.untyped_storage().nbytes() not in stored for t in tensors.values()):
            raise ValueError(f"found a damaged file, {EXPECTED}; download or copy it again")


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
    except (*_DAMAGE, UsageError) as error:
        raise ValueError(
            "found a damaged or incomplete file, or one of a very old torch, "
            f"{EXPECTED}; download or copy it again"
        ) from error


def _state_dict(path: Path, content: Any) -> dict[str, Tensor]:
    from torch import Tensor

    for key in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            inner = {name: content[name] for name in _WRAPPERS if name in content}
            full = [name for name, held in inner.items() if _holds(held, Tensor)]
            if len(full) > 1 and full[0] == key:
                warnings.warn(
                    f"{path}: found tensors under {' and '.join(map(repr, full))}; those under "
                    f"{key!r} are read. To use others, save them alone",
                    MstembaWarning,
                    stacklevel=2,
                )
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"found {type(content).__name__}, expected a state dict")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            held = some_of([key if isinstance(key, str) else shown(key) for key in content])
            raise ValueError(
                f"{shown(name)} is {type(value).__name__}, expected a state dict of tensors, by "
                f"itself or under {', '.join(_WRAPPERS)}; the file holds {held}"
            )
    return _without_prefix(content)


def _holds(content: Any, kind: type) -> bool:
    return isinstance(content, Mapping) and any(isinstance(v, kind) for v in content.values())


def _without_prefix(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    prefixed = all(name.startswith("module.") for name in tensors)
    return {name.removeprefix("module.") if prefixed else name: w for name, w in tensors.items()}
