"""Read pickled numpy arrays without executing anything.

A pickle is a program that may call whatever it names. The unpickler here resolves only the names
that pickled arrays and plain containers need, and resolves them to stand-ins of this module: numpy
itself never sees a type, a shape or bytes that were not checked, and gets no state from the pickle,
which could otherwise have it treat numbers as pointers. A small pickle also stays small: see
`mstemba.reading.pickles`, and arrays consist of bytes that are in the file.
"""

from __future__ import annotations

import io
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mstemba.errors import UsageError
from mstemba.limits import LARGEST_PICKLE
from mstemba.reading.files import read_bytes, reason
from mstemba.reading.pickles import check_pickle
from mstemba.reading.typed import shown

_LONGEST = 200
"""Characters of an error of the unpickler, which may have texts of the pickle in it."""


def read_pickle(path: Path) -> Any:
    """Read a pickle of plain values and numeric numpy arrays, in protocols 0 to 5.

    Returns:
        Dicts (with text, bytes or whole numbers as keys), lists and tuples of arrays and values.

    Raises:
        UsageError: The pickle names anything else, or is damaged.
    """
    content = read_bytes(path, largest=LARGEST_PICKLE)
    try:
        if content[check_pickle(content) :].strip(b"\0 \r\n"):
            raise ValueError("data after its end: it holds more than one object, or is damaged")
        # latin1: Python 2 pickled the bytes of an array as text.
        return _unwrap(_Unpickler(io.BytesIO(content), encoding="latin1").load(), {})
    except _ForbiddenName as name:
        raise UsageError(
            f"{path}: this pickle asks to run {name}, and pickles are not executed here; only "
            f"plain values and numeric numpy arrays are read. Save a dict of video id to array "
            f"(as numpy arrays, not tensors), or write .npz or JSON"
        ) from None
    except Exception as error:  # a damaged pickle can raise anything
        raise UsageError(f"{path}: not readable as a pickle: {reason(error)[:_LONGEST]}") from None


class _ForbiddenName(Exception):
    """A name that a pickle may not use."""


class _Name:
    """What a name in a pickle resolves to; some may be called."""

    def __init__(self, function: Callable[..., Any] | None) -> None:
        self._function = function

    def __call__(self, *args: Any) -> Any:
        if self._function is None:
            raise ValueError("this name is not callable")
        return self._function(*args)

    def __setstate__(self, state: Any) -> None:
        # Without this method a pickle could set attributes.
        raise ValueError("a name takes no state")


class _DType:
    """Stands for numpy.dtype of plain numbers, or of text, as ids have it."""

    def __init__(self, name: str, *_: Any) -> None:
        if not re.fullmatch(r"b1|[iu][1248]|f[248]|[SU][1-9]\d{0,8}", name):
            raise ValueError(f"numbers of type {shown(name)}, expected plain ones")
        self.dtype = np.dtype(name)

    def __setstate__(self, state: Any) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])  # the rest is of structured types


class _Array:
    """Stands for an array, whose content comes as its state."""

    def __init__(self, *_: Any) -> None:
        self.array: NDArray[Any] | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, content = state
        self.array = _make_array(content, dtype, shape, "F" if fortran else "C")


def _make_array(content: Any, dtype: _DType, shape: Any, order: Any) -> NDArray[Any]:
    data = content.encode("latin1") if isinstance(content, str) else content
    if not isinstance(data, (bytes, bytearray)):  # for None, numpy would allocate memory
        raise ValueError(f"an array of a {type(content).__name__}, expected its bytes")
    array: NDArray[Any] = np.ndarray(shape, dtype.dtype, data, order=order)
    if array.nbytes != len(data) or array.shape != tuple(shape):
        raise ValueError(f"{len(data)} bytes for an array of shape {shown(shape)}")
    return array.astype(dtype.dtype.newbyteorder("="), copy=False)


def _from_buffer(content: Any, dtype: _DType, shape: Any, order: str, axes: Any = None) -> _Array:
    found = _Array()
    array = _make_array(content, dtype, shape, "F" if order == "F" else "C")
    found.array = array if axes is None else array.transpose(axes)
    return found


def _encode(text: str, encoding: str) -> bytes:
    """Do what _codecs.encode does, which protocols below 3 use for bytes."""
    if encoding != "latin1":
        raise ValueError(f"bytes as {shown(encoding)}, expected latin1")
    return text.encode("latin1")


_FUNCTIONS: dict[str, Callable[..., Any] | None] = {
    "numpy.dtype": _DType,
    "numpy._core.multiarray._reconstruct": _Array,
    "numpy._core.multiarray.scalar": lambda dtype, content: _make_array(content, dtype, (), "C")[
        ()
    ],
    "numpy._core.numeric._frombuffer": _from_buffer,
    "_codecs.encode": _encode,
    # Python 2 gives the items of an OrderedDict here; a defaultdict gives the maker of defaults.
    "collections.OrderedDict": lambda items=(): dict(items),
    "collections.defaultdict": lambda *_: {},
    # An argument of _reconstruct, and makers of defaults: named, but never called.
    **dict.fromkeys(("numpy.ndarray", "builtins.dict", "builtins.list", "builtins.tuple")),
    **dict.fromkeys(("builtins.float", "builtins.int")),
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy.core", "numpy._core")  # the name before numpy 2
        module = module.replace("__builtin__", "builtins")  # the name in Python 2
        if f"{module}.{name}" not in _FUNCTIONS:
            raise _ForbiddenName(f"{module}.{name}")
        return _Name(_FUNCTIONS[f"{module}.{name}"])


def _unwrap(value: Any, done: dict[int, Any]) -> Any:
    """Return a value with arrays in the place of their stand-ins."""
    if isinstance(value, _Array) and value.array is not None:
        return value.array
    if isinstance(value, (_Array, _DType, _Name)):
        raise ValueError("a name, expected a value")
    if not isinstance(value, (dict, list, tuple)):
        return value
    if id(value) not in done:
        items = value.values() if isinstance(value, dict) else value
        plain: Any = [_unwrap(item, done) for item in items]
        if isinstance(value, dict):
            if odd := [key for key in value if not isinstance(key, (str, bytes, int, np.integer))]:
                raise ValueError(
                    f"a key of type {type(odd[0]).__name__}, expected text or a number"
                )
            plain = dict(zip(value, plain, strict=True))
        done[id(value)] = tuple(plain) if isinstance(value, tuple) else plain
    return done[id(value)]
