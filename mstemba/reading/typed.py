"""Read JSON and TOML into types, which say what a file may hold.

A type is a `msgspec.Struct`, a dict, a list and the like, with bounds from this module. What does
not fit is an error that names the file, the place in it (`$.videos.monday.actions[3]`), what
was found and what was expected.
"""

from __future__ import annotations

import codecs
import contextlib
import json
import re
import reprlib
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import msgspec
from msgspec import Meta

from mstemba.errors import UsageError
from mstemba.limits import (
    LARGEST_TIME,
    LEAST_FPS,
    LONGEST_NAME,
    LONGEST_PATH,
    LONGEST_VIDEO,
    MOST_FPS,
    MOST_NESTED,
    SPARE_MEMORY,
)
from mstemba.reading.files import read_bytes, reason

T = TypeVar("T")

# No NUL, and of the surrogates only those that stand for bytes of file names.
_IN_NAMES = r"^[^\x00\ud800-\udc7f\udd00-\udfff]*$"
Name = Annotated[str, Meta(min_length=1, max_length=LONGEST_NAME, pattern=_IN_NAMES)]
"""The name of a video."""
ClassName = Annotated[str, Meta(max_length=LONGEST_NAME, pattern=_IN_NAMES)]
"""The name of a class, which may be empty."""
PathText = Annotated[str, Meta(max_length=LONGEST_PATH, pattern=_IN_NAMES)]
"""A path that the system takes."""
Seconds = Annotated[float, Meta(ge=0, le=LONGEST_VIDEO)]
"""A duration, or a time in a video."""
Time = Annotated[float, Meta(ge=-LARGEST_TIME, le=LARGEST_TIME)]
"""A time in a video, in seconds or frames; before 0 where the recording began earlier."""
Finite = Annotated[float, Meta(ge=-1.7e308, le=1.7e308)]
"""A number that is neither NaN nor infinity."""
Positive = Annotated[float, Meta(gt=0, le=1.7e308)]
FrameRate = Annotated[float, Meta(ge=LEAST_FPS, le=MOST_FPS)]
Count = Annotated[int, Meta(ge=0, le=2**62)]

_NEITHER = bytes(set(range(256)) - set(b'"[]{}'))
_BYTES_OF_A_LIST, _BYTES_OF_A_VALUE = 80, 40
"""What Python takes for a list or an object, and for a value in one."""


def read_json(path: Path, type: type[T], error: type[UsageError] = UsageError) -> T:
    """Read a file of JSON.

    Args:
        path: A local file.
        type: What it holds.
        error: What to raise.

    Raises:
        UsageError: Or `error`: the file cannot be read, or holds something else.
    """
    return parse_json(read_bytes(path, error), type, str(path), error)


def parse_json(
    content: bytes, type: type[T], where: str, error: type[UsageError] = UsageError
) -> T:
    """Parse JSON that was read from a file or a URL, as `read_json` does.

    Args:
        content: UTF-8, with or without a byte order mark.
        type: What it holds.
        where: The file, for messages.
        error: What to raise.
    """
    content = content.removeprefix(codecs.BOM_UTF8)
    with contextlib.suppress(ValueError, RecursionError):
        if _memory_of(content) <= 2 * len(content) + SPARE_MEMORY:
            return msgspec.json.decode(content, type=type)
    # Again: for the message, and for file names that are not Unicode, which msgspec refuses.
    return convert(parse_untyped(content, where, error), type, where, error)


def parse_untyped(
    content: bytes, where: str, error: type[UsageError] = UsageError, unique: bool = False
) -> Any:
    """Parse JSON of unknown content, of which size and depth are checked first.

    Of several members with the same name the first counts; `repeated` returns these names.

    Args:
        content: UTF-8, with or without a byte order mark.
        where: The file, for messages.
        error: What to raise.
        unique: Whether several members with the same name are an error.
    """
    repeating: list[_Repeating] = []

    def keep_first(members: list[tuple[str, Any]]) -> dict[str, Any]:
        kept = _keep_first(members)
        if isinstance(kept, _Repeating):
            repeating.append(kept)
        return kept

    try:
        memory = _memory_of(content)  # before the text is copied
        text = content.decode("utf-8-sig")
        memory += len(content) + sys.getsizeof(text)
        if memory > 4 * len(content) + SPARE_MEMORY:
            raise ValueError(
                f"{len(content) / 2**20:,.0f} MB of lists and objects so small that they would "
                f"take {memory / 2**20:,.0f} MB of memory; divide it into several files"
            )
        data = json.loads(text, object_pairs_hook=keep_first)
    except (ValueError, RecursionError) as problem:
        raise error(f"{where}: not readable as JSON: {reason(problem)}") from None
    if unique and repeating:
        place = _place_of(repeating[0], data, "$")
        raise error(f"{where}: {shown(repeating[0].names[0])} appears twice at {place}; delete one")
    return data


def read_toml(path: Path, type: type[T], error: type[UsageError] = UsageError) -> T:
    """Read a file of TOML, as `read_json` does."""
    content = read_bytes(path, error)
    try:
        data = tomllib.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as problem:
        raise error(f"{path}: not readable as TOML: {reason(problem)}") from None
    return convert(data, type, str(path), error)


def convert(
    data: Any, type: type[T], where: str, error: type[UsageError] = UsageError, place: str = "$"
) -> T:
    """Return parsed content as a type.

    Args:
        data: What `json.loads` returns.
        type: What it should be.
        where: The file, for messages.
        error: What to raise.
        place: Of `data` in the file.

    Raises:
        UsageError: Or `error`: it is something else.
    """
    try:
        return msgspec.convert(data, type)
    except (ValueError, RecursionError, OverflowError) as problem:
        message, _, path = _plain(str(problem)).partition(" at ")
        if path.startswith("key") or "[...]" in path:
            located = _in_a_dict(data, type, place)
        else:
            if message.startswith("invalid enum value"):
                message = f"expected {_choices(type, path)}"
            if message.startswith("expected") and ", found " not in message:
                message += f", found {shown(_value_at(data, path))}"
            located = f"{message} at {place}{path.removeprefix('$')}"
    raise error(f"{where}: {located}")


def _plain(message: str) -> str:
    """Return a message of msgspec in the words of ours."""
    message = " ".join(message.replace("`", "").split()).replace(" - at ", " at ")
    message = message.replace("matching regex " + repr(_IN_NAMES), "that a file name can have")
    message = message.replace(", got ", ", found ").replace("Object missing", "missing")
    return message[:1].lower() + message[1:]


_STEPS = re.compile(r"\.([^.\[]+)|\[(\d+)\]")


def _value_at(data: Any, path: str) -> Any:
    for name, index in _STEPS.findall(path):
        data = data[int(index)] if index else data[name]
    return data


def _choices(type: Any, path: str) -> str:
    """Return the values of the Literal at a place of a type, which has structs and lists only."""
    of_item: Any = Any
    for name, index in _STEPS.findall(path):
        for member in get_args(type) if get_origin(type) in (Union, UnionType) else [type]:
            if index and get_origin(member) in (list, tuple):
                items = get_args(member)
                of_item = items[min(int(index), len(items) - 1)]
            elif name and not get_args(member):
                of_item = get_type_hints(member)[name]
        type = of_item
    literals = [member for member in (type, *get_args(type)) if get_origin(member) is Literal]
    return " or ".join(repr(value) for literal in literals for value in get_args(literal))


def _in_a_dict(data: Any, type: Any, place: str) -> str:
    """Return the message for the first wrong key or value of a dict in the data."""
    for key, value, of in _values_of_dicts(data, type):
        try:
            convert(value, of, "", UsageError, f"{place}{key}")
        except UsageError as error:
            return str(error).removeprefix(": ")
    return f"unexpected content at {place}"


def _values_of_dicts(data: Any, type: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yield the values of the dicts that a type has, each with its place and its type."""
    if get_origin(type) is Annotated:
        type = get_args(type)[0]
    if get_origin(type) is dict and isinstance(data, dict):
        of_key, of_value = get_args(type)
        for key, value in data.items():
            place = f".{_in_a_place(key)}"
            yield place, key, of_key
            yield place, value, of_value
    elif isinstance(type, msgspec._core.StructMeta) and isinstance(data, dict):
        for field in msgspec.structs.fields(type):
            if field.encode_name in data:
                for key, value, of in _values_of_dicts(data[field.encode_name], field.type):
                    yield f".{field.encode_name}{key}", value, of


def _in_a_place(key: Any) -> str:
    plain = isinstance(key, str) and key.isprintable() and 0 < len(key) <= LONGEST_NAME
    return key if plain else shown(key)


def _memory_of(content: bytes) -> int:
    """Return approximately how many bytes JSON takes as Python objects.

    Raises ValueError if it is nested too deeply.
    """
    values = content.count(b",") + content.count(b":")
    if content.count(b"[") + content.count(b"{") <= MOST_NESTED:  # the rest is slow for many lines
        return values * _BYTES_OF_A_VALUE
    # Strings are removed: first what may be escaped in them, then all but quotes and brackets. Two
    # adjacent quotes can be dropped even if they belong to different strings.
    bare = content
    if b"\\" in bare:
        bare = bare.replace(rb"\\", b"").replace(rb"\"", b"")
    bare = bare.translate(None, _NEITHER).replace(b'""', b"")
    bare = re.sub(rb'"[^"]*"', b"", bare)
    lists = bare.count(b"[") + bare.count(b"{")
    memory = lists * _BYTES_OF_A_LIST + values * _BYTES_OF_A_VALUE
    if memory <= 3 * len(content) + SPARE_MEMORY:  # more is refused without a closer look
        import numpy as np  # here: `--help` needs none

        brackets = np.frombuffer(bare, np.uint8)
        opening = (brackets == ord("[")) | (brackets == ord("{"))
        steps = np.where(opening, np.int8(1), np.int8(-1))
        deepest = int(np.cumsum(steps, dtype=np.int32).max(initial=0))
        if deepest > MOST_NESTED:
            raise ValueError(f"nested {deepest} levels deep, expected at most {MOST_NESTED}")
    return memory


class _Repeating(dict[str, Any]):
    """A JSON object that has several members with the same name."""

    names: list[str]


def _place_of(wanted: _Repeating, data: Any, place: str) -> str | None:
    """Return where in the data an object is."""
    if data is wanted:
        return place
    items = data.items() if isinstance(data, dict) else ()
    named = [(f"{place}.{_in_a_place(name)}", value) for name, value in items]
    if isinstance(data, list):
        named = [(f"{place}[{number}]", value) for number, value in enumerate(data)]
    return next(filter(None, (_place_of(wanted, v, at) for at, v in named)), None)


def _keep_first(members: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(members)
    if len(unique) == len(members):
        return unique
    first = _Repeating(unique | dict(reversed(members)))  # in the order of the file
    counts = Counter(name for name, _ in members)
    first.names = [name for name, count in counts.items() for _ in range(count - 1)]
    return first


def repeated(data: dict[str, Any]) -> list[str]:
    """Return the names of repeated members, once per repetition."""
    return data.names if isinstance(data, _Repeating) else []


_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother, _SHORT.maxlong = 3, 80, 80, 40


def shown(value: Any) -> str:
    """Return a value from a file as a short text for a message: a text in quotes, no deep list."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # a number with more digits than Python prints
        return "a very long number"
