"""The tensors of a TorchScript archive, such as OpenAI's files of CLIP, without its code.

`torch.jit.load` would compile the archive's code, and may run parts of it.
"""

from __future__ import annotations

import io
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from mstemba.reading.arrays import open_zip
from mstemba.reading.pickles import check_pickle

_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class _Inert:
    """Stands for an object of the archive: keeps its attributes and does nothing."""

    is_module = False
    declared: frozenset[str] | None = None
    """Names of a module's parameters and buffers; None if the archive does not tell."""

    def __init__(self, *args: Any) -> None:
        self.attributes: dict[Any, Any] = {}

    def __new__(cls, *args: Any) -> _Inert:
        found = super().__new__(cls)
        found.attributes = {}
        return found

    def __setstate__(self, state: Any) -> None:
        self.attributes = state if isinstance(state, dict) else {}


class _Unpickler(pickle.Unpickler):
    """Builds tensors and inert objects. Every other name is refused."""

    def __init__(self, archive: zipfile.ZipFile, folder: str) -> None:
        content = archive.read(f"{folder}/data.pkl")
        check_pickle(content)
        super().__init__(io.BytesIO(content))
        self._archive, self._folder = archive, folder
        self._storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch._utils" and name == "_rebuild_tensor_v2":
            return _rebuild
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module.split(".")[0] == "__torch__" or module == "torch.jit._pickle":
            return self._stand_in(module, name)
        raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")

    def _stand_in(self, module: str, name: str) -> type[_Inert]:
        """Return an inert class with what the text of the code declares."""
        try:
            code = self._archive.read(f"{self._folder}/code/{module.replace('.', '/')}.py").decode()
        except KeyError:
            return _Inert
        body = re.search(rf"^class {re.escape(name)}\(Module\):\n((?:  .*\n|\n)*)", code, re.M)
        lists = re.findall(
            r"^  __(?:parameters|buffers)__ = \[(.*)\]$", body[1] if body else "", re.M
        )
        names = frozenset(re.findall(r'"([^"]+)"', " ".join(lists)))
        declared = names if len(lists) == 2 else None
        return type(name, (_Inert,), {"is_module": body is not None, "declared": declared})

    def persistent_load(self, pid: Any) -> Tensor:
        _, dtype, key, _, count = pid
        if key not in self._storages:
            content = bytearray(self._archive.read(f"{self._folder}/data/{key}"))
            self._storages[key] = (
                torch.frombuffer(content, dtype=dtype, count=count)
                if count
                else torch.empty(0, dtype=dtype)
            )
        return self._storages[key]


def _rebuild(storage: Tensor, offset: int, size: Any, stride: Any, *rest: Any) -> Tensor:
    return storage.as_strided(size, stride, offset)


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Return the tensors of an archive by name, on the CPU, as its `state_dict()` would.

    Raises:
        pickle.UnpicklingError: It holds another kind of object, which is not created.
        UsageError, ValueError: It is damaged, or is of torch 1.1 or older.
    """
    with open_zip(path) as archive:
        folder = PurePosixPath(archive.namelist()[0]).parts[0]
        root = _Unpickler(archive, folder).load()
    if not isinstance(root, _Inert):
        raise ValueError("expected a module")
    return dict(_tensors(root, ""))


def _tensors(module: _Inert, prefix: str) -> Iterator[tuple[str, Tensor]]:
    for name, value in module.attributes.items():
        if isinstance(value, Tensor) and (module.declared is None or name in module.declared):
            yield f"{prefix}{name}", value
        elif isinstance(value, _Inert) and value.is_module:
            yield from _tensors(value, f"{prefix}{name}.")
