"""The gate for what is read from disk: kinds and sizes of files, typed JSON."""

from __future__ import annotations

import json
import os
import resource
from pathlib import Path
from typing import Literal

import pytest
from msgspec import Struct

from mstemba.errors import ManifestError, UsageError
from mstemba.limits import MOST_NESTED
from mstemba.reading import files, typed


class Entry(Struct):
    duration: typed.Seconds | None = None
    actions: list[tuple[int, float, float]] = []
    unit: Literal["seconds", "frames"] | None = None


class Content(Struct):
    videos: dict[typed.Name, Entry]


def parse(text: str | bytes) -> Content:
    content = text.encode() if isinstance(text, str) else text
    return typed.parse_json(content, Content, "m.json", ManifestError)


@pytest.mark.parametrize(
    ("videos", "message"),
    [
        (
            '{"monday": {"actions": [[1, 2, 3], [1, 2, "x"]]}}',
            "expected float, found str at $.videos.monday.actions[1][2]",
        ),
        (
            '{"a": {}, "b": {"duration": -1}}',
            "expected float >= 0.0, found -1 at $.videos.b.duration",
        ),
        (
            '{"a": {"duration": 1e999}}',
            "expected float <= 31622400.0, found inf at $.videos.a.duration",
        ),
        ('{"a": {"duration": NaN}}', "expected float >= 0.0, found nan at $.videos.a.duration"),
        ('{"a": {"actions": [[1.5, 2, 3]]}}', "expected int, found float at $.videos.a.actions[0]"),
        (r'{"a\u0000": {}}', r"that a file name can have, found 'a\x00' at $.videos.'a\x00'"),
        (r'{"a\ud800": {}}', r"that a file name can have, found 'a\ud800' at $.videos.'a\ud800'"),
        (
            '{"a": {"unit": "hours"}}',
            "expected 'seconds' or 'frames', found 'hours' at $.videos.a.unit",
        ),
        ("3", "expected object, found int at $.videos"),
        (f'{{"a": {{"duration": {"9" * 5000}}}}}', "not readable as JSON: Exceeds the limit"),
        (f'{{"a": {"[" * 100 + "]" * 100}}}', "nested 102 levels deep, expected at most 64"),
        (f'{{"a": {"[" * 100_000}', "nested 100002 levels deep, expected at most 64"),
    ],
)
def test_what_does_not_fit_is_named_with_its_place(videos: str, message: str) -> None:
    with pytest.raises(ManifestError) as error:
        parse(f'{{"videos": {videos}}}')
    assert str(error.value).startswith("m.json: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"[1]", b"{}", b"\xff\xfe{", b'{"videos": {}} x'])
def test_what_is_not_such_an_object_is_an_error(content: bytes) -> None:
    with pytest.raises(ManifestError, match=r"m\.json: "):
        parse(content)


def test_names_that_are_not_unicode_and_a_byte_order_mark_are_read() -> None:
    assert parse(rb'{"videos": {"a\udc80b": {}}}').videos.keys() == {"a\udc80b"}
    assert parse("\ufeff" + '{"videos": {}}').videos == {}


def test_brackets_in_texts_are_not_nesting() -> None:
    deep = json.dumps(['\\"[{' * 100, "[" * 100, {"]\\": "}"}])
    assert typed.parse_untyped(deep.encode(), "m.json") == json.loads(deep)
    allowed = "[" * MOST_NESTED + "]" * MOST_NESTED
    assert typed.parse_untyped(allowed.encode(), "m.json") == json.loads(allowed)


def test_json_that_would_take_all_memory_is_refused() -> None:
    content = b"[" + b"[]," * 8_000_000 + b"[]]"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for parsed in (typed.parse_untyped, lambda c, w: typed.parse_json(c, list, w)):
        with pytest.raises(UsageError, match="divide it into several files"):
            parsed(content, "m.json")
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert (after - before) * 1024 < 4 * len(content)


def test_the_first_of_repeated_members_counts() -> None:
    data = typed.parse_untyped(b'{"a": 1, "b": 2, "a": 3, "a": 4}', "m.json")
    assert data == {"a": 1, "b": 2}
    assert typed.repeated(data) == ["a", "a"]


def test_repeated_members_are_refused_with_their_place_where_they_must_differ() -> None:
    content = b'[{}, {"v": {"a": 1, "b": [], "a": 3}}]'
    with pytest.raises(ManifestError, match=r"m: 'a' appears twice at \$\[1\]\.v; delete one"):
        typed.parse_untyped(content, "m", ManifestError, unique=True)


def test_only_files_of_a_sensible_size_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(b"123")
    for name, message in (
        ("pipe", "found a named pipe, expected a file"),
        ("missing", "no such file"),
        ("a\0b", "cannot be read: embedded null byte"),
        ("large", "0 MB, expected at most 0 MB"),
        ("", "found a folder, expected a file"),
    ):
        with pytest.raises(ManifestError) as error:
            files.read_bytes(tmp_path / name, ManifestError, largest=2)
        assert message in str(error.value)
    with pytest.raises(UsageError, match="found a device, expected a file"):
        files.read_bytes(Path("/dev/zero"))
