"""Pickled numpy arrays, read without executing anything.

A pickle is a program that may call whatever it names. Here it can name a few classes of this
module only, which take what a pickled array is made of and check it; numpy itself is not called
before the shape, the kind of number and the bytes are known to fit. What a small
pickle holds stays small: an array is made of bytes that are in it, and lists that are named again
and again are counted before they are written out.
"""

from __future__ import annotations

import io
import math
import pickle
import re
from collections import OrderedDict
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mstemba.errors import UsageError

SHARED = 20_000_000
"""Values that a pickle may hold beyond one a byte, by naming the same list or array repeatedly: as
many as the scores of a whole test set."""


def read_pickle(path: Path) -> Any:
    """What a pickle of plain values and numeric numpy arrays holds; protocols 0 to 5.

    Containers are dicts, lists and tuples. Raises UsageError, naming what it asked for, when the
    pickle holds anything else, and when it is damaged.
    """
    content = path.read_bytes()
    try:
        # latin1: Python 2 pickled the bytes of an array as text.
        value = _Reader(io.BytesIO(content), encoding="latin1").load()
        if _count(value, {}) > len(content) + SHARED:
            raise ValueError("it names the same lists or arrays too often: save arrays, not lists")
        return _plain(value)
    except _Refused as refused:
        raise UsageError(
            f"{path}: this pickle asks to run {refused}, and pickles are not executed here; only "
            f"plain values and numeric numpy arrays are read. Save a dict of video id to array "
            f"(as numpy arrays, not tensors), or write .npz or JSON"
        ) from None
    except Exception as error:  # a damaged pickle can raise anything
        raise UsageError(f"{path}: not readable as a pickle: {error!r}") from None


class _Refused(Exception):
    """A name that a pickle may not use."""


class _Part:
    """What stands for a numpy object while a pickle is read."""

    def __setstate__(self, state: Any) -> None:
        raise ValueError(f"{type(self).__name__} takes no state")


class _Type(_Part):
    """numpy.dtype, of plain numbers, or of text, as ids have it."""

    def __init__(self, name: str, *_: Any) -> None:
        if not re.fullmatch(r"b1|[iu][1248]|f[248]|[SU]\d{1,9}", name):
            raise ValueError(f"numbers of type {name!r}, expected plain ones")
        self.dtype = np.dtype(name)

    def __setstate__(self, state: Any) -> None:
        # (version, byte order, and what only structured types have)
        if state[2] is not None or state[3] is not None:
            raise ValueError("numbers of a structured type, expected plain ones")
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array(_Part):
    """What numpy's _reconstruct and _frombuffer return."""

    value: NDArray[Any]

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        _, shape, of, fortran, content = state
        self.fill(content, of, shape, "F" if fortran else "C")

    def fill(self, content: Any, of: _Type, shape: tuple[int, ...], order: str) -> None:
        data = content.encode("latin1") if isinstance(content, str) else content
        if not isinstance(data, (bytes, bytearray)):  # bytes(n) would be n zeros
            raise ValueError(f"an array of a {type(content).__name__}, expected its bytes")
        if len(data) != math.prod(shape) * of.dtype.itemsize:
            raise ValueError(f"{len(data)} bytes for an array of shape {shape}")
        array = np.frombuffer(data, of.dtype).reshape(shape, order="F" if order == "F" else "C")
        self.value = array.astype(of.dtype.newbyteorder("="), copy=False)


class _Buffer(_Array):
    """numpy's _frombuffer(buffer, dtype, shape, order), of protocol 5."""

    def __init__(self, content: Any, of: _Type, shape: tuple[int, ...], order: str) -> None:
        self.fill(content, of, shape, order)


class _Scalar(_Array):
    """numpy's scalar(dtype, bytes)."""

    def __init__(self, of: _Type, content: Any) -> None:
        self.fill(content, of, (), "C")


class _Bytes(_Part, bytes):
    """_codecs.encode(text, "latin1"), as protocols below 3 write bytes."""

    def __new__(cls, text: str, encoding: str) -> _Bytes:
        if encoding != "latin1":
            raise ValueError(f"bytes as {encoding!r}, expected latin1")
        return bytes.__new__(cls, text.encode("latin1"))


class _DefaultDict(_Part, dict[Any, Any]):
    """collections.defaultdict, which never gets to call what makes its defaults."""

    def __init__(self, *_: Any) -> None:
        super().__init__()


class _Named(_Part):
    """What may be named, as the maker of a defaultdict's defaults is, but not called."""


_KNOWN: dict[tuple[str, str], type | _Named] = {
    ("numpy", "ndarray"): _Array,  # the first argument of _reconstruct
    ("numpy", "dtype"): _Type,
    ("_codecs", "encode"): _Bytes,
    ("collections", "OrderedDict"): OrderedDict,
    ("collections", "defaultdict"): _DefaultDict,
}
for _name in ("dict", "float", "int", "list", "tuple"):
    _KNOWN["builtins", _name] = _KNOWN["__builtin__", _name] = _Named()
for _core in ("numpy.core", "numpy._core"):  # the names before and since numpy 2
    _KNOWN[f"{_core}.multiarray", "_reconstruct"] = _Array
    _KNOWN[f"{_core}.multiarray", "scalar"] = _Scalar
    _KNOWN[f"{_core}.numeric", "_frombuffer"] = _Buffer


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise _Refused(f"{module}.{name}")
        return _KNOWN[module, name]


def _count(value: Any, known: dict[int, int]) -> int:
    """How many values there are if each list is written out wherever it is named; `known` by id."""
    if isinstance(value, _Array):
        return 1 + int(value.value.size)
    if not isinstance(value, (dict, list, tuple)):
        return 1
    if id(value) not in known:
        items = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_count(item, known) for item in items)
    return known[id(value)]


def _plain(value: Any) -> Any:
    """The same with numpy arrays in the place of what stands for them."""
    if isinstance(value, _Scalar) and value.value.dtype.kind in "SU":
        return value.value.item()
    if isinstance(value, _Array):
        return value.value
    if isinstance(value, dict):
        found = {_key(key): _plain(item) for key, item in value.items()}
        if len(found) < len(value):
            raise ValueError("two entries of one key")
        return found
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(item) for item in value)
    return value


def _key(key: Hashable) -> str | bytes | int:
    plain = key.value.item() if isinstance(key, _Scalar) else key
    if not isinstance(plain, (str, bytes, int)):
        raise ValueError(f"a key of type {type(plain).__name__}, expected text or a number")
    return plain
