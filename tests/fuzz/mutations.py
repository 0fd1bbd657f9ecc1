"""Damage to files, and hostile files in their place. All of it is drawn from a seeded generator."""

from __future__ import annotations

import ast
import io
import json
import os
import pickle
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

CANARY = "executed"
"""The file that a hostile program would create, in the folder `outside`."""
_EXTREMES = (0, 1, 127, 255, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63, 2**64 - 1)
_LARGE = 24 * 2**20


def mutate(rng: Random, form: str, path: Path, outside: Path) -> str:
    """Damage a file or folder in place.

    Args:
        rng: Every draw comes from it.
        form: See `Target.form`.
        path: The file.
        outside: A folder outside the workspace, with files that must not change.

    Returns:
        What was done, in a few words.
    """
    if form == "name":
        return _rename(rng, path)
    if form == "folder" or rng.random() < 0.15:
        return _replace(rng, path, outside)
    if rng.random() < 0.02 and form != "bytes":  # a longer video would only take longer
        return _enlarge(path)
    structured = _FORMS.get(form)
    if structured and rng.random() < 0.7:
        content, what = structured(rng, path.read_bytes(), outside)
    else:
        content, what = path.read_bytes(), ""
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            content, one = _damage(rng, content)
            what = f"{what}, {one}" if what else one
    _put(path, content)
    return what


def _put(path: Path, content: bytes) -> None:
    """Replace a file, which may be a link to the template's."""
    path.unlink()
    path.write_bytes(content)


def _place(rng: Random, size: int) -> int:
    # A fraction, so that sizes that differ by a few bytes do not change the later draws.
    return int(rng.random() * size)


# Bytes


def _damage(rng: Random, content: bytes) -> tuple[bytes, str]:
    """Return bytes with one damage, as disks, transfers and editors do it."""
    start, other = sorted(_place(rng, len(content) + 1) for _ in range(2))
    length = min(int(2 ** (rng.random() * 10)), len(content) - start)
    end = start + length
    value = rng.choice(_EXTREMES)
    noise = rng.randbytes(16)
    kind = rng.choice(
        ("flip", "flip", "flip", "truncate", "zero", "double", "swap", "insert", "number", "text")
    )
    before, block, after = content[:start], content[start:end], content[end:]
    if kind == "flip":
        flipped = bytearray(content)
        for byte in noise[: 1 + noise[0] % 8]:
            place = (start + byte * length // 256) % max(1, len(content))
            flipped[place : place + 1] = bytes([flipped[place] ^ 1 << byte % 8]) if content else b""
        return bytes(flipped), f"bits flipped near {start}"
    if kind == "truncate":
        return before, f"truncated to {start} bytes"
    if kind == "zero":
        return before + bytes(length) + after, f"{length} bytes zeroed at {start}"
    if kind == "double":
        return before + block + block + after, f"{length} bytes doubled at {start}"
    if kind == "swap":
        moved = content[other : other + length]
        return before + moved + content[end:other] + block, f"blocks at {start}, {other} swapped"
    if kind == "insert":
        return before + noise + block + after, f"16 random bytes inserted at {start}"
    if kind == "number":
        size = rng.choice((1, 2, 4, 8))
        number = (value % 2 ** (8 * size)).to_bytes(size, rng.choice(("little", "big")))
        return content[:start] + number + content[start + size :], f"{value} written at {start}"
    text = rng.choice(_TEXTS)
    return before + text + after, f"{text[:20]!r} at {start}"


_TEXTS = (
    b"\0", b'"', b"'", b",", b";", b"\t", b"\n", b"\r\n\r\n", b"\xff\xfe", b"\xef\xbb\xbf",
    b"\xed\xa0\x80", b"nan", b"inf", b"-1", b"1e400", b"-0.0", b"9" * 5000, b"9" * 20,
    b"\xe2\x80\xae", b"../../x", b"99:99:99.999", b"1_000", b"=1+1", b"-->", b"{", b"]", b"<", b"&",
    b'"""', b"x" * 100_000, b"2000000000", b"\x1a", b"\x1b[31m", b"[" * 2000,
)  # fmt: skip


def _enlarge(path: Path) -> str:
    """Repeat the middle of a file until it has many megabytes."""
    content = path.read_bytes()
    third = max(1, len(content) // 3)
    lines = content[third : 2 * third] or b"x"
    middle = (lines * (_LARGE // len(lines) + 1))[:_LARGE]
    _put(path, content[:third] + middle + content[third:])
    return f"its middle repeated to {_LARGE >> 20} MB"


# Kinds and names of files


def _replace(rng: Random, path: Path, outside: Path) -> str:
    """Put something of another kind in place of a file or folder."""
    was_folder = path.is_dir()
    kept = outside / "kept" / path.name
    kind = rng.choice(
        ("missing", "empty", "folder", "pipe", "zeros", "itself", "dangling", "elsewhere", "text")
    )
    if kind == "elsewhere":  # the content is right, and the place is not
        kept.parent.mkdir(exist_ok=True)
        (shutil.copytree if was_folder else shutil.copy)(path, kept)
    (shutil.rmtree if was_folder else os.unlink)(path)
    if kind == "empty":
        path.mkdir() if was_folder else path.touch()
    elif kind == "folder":
        path.touch() if was_folder else (path / "inner").mkdir(parents=True)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "text":
        path.write_text("not what was expected\n")
    elif kind != "missing":
        target = {
            "zeros": Path("/dev/zero"),
            "itself": path,
            "dangling": outside / "nothing",
            "elsewhere": kept,
        }[kind]
        path.symlink_to(target)
    return f"replaced: {kind}"


_NAMES = (
    b"-v.x", b"--help", b"a b ", b" ", b"a\nb", b"a\tb", b"\x1b[31m", b"\xff\xfe", b"\xed\xa0\x80",
    b"x" * 255, "ü".encode() * 120, "u\u0308".encode(), "日本".encode(), b"a'b\"c", b"$(touch x)",
    b"`id`;&|", b"%s%n{0}", b"a,b", b"a:b", b"*", b"[x]", b"~", b"..x", b"con", b"<b>&amp;",
    "\u202etxt".encode(), b"=cmd", b"current", b"zarr.json", b".hidden", b"a\\b", b"http:x",
)  # fmt: skip


def _rename(rng: Random, path: Path) -> str:
    stem, ending = rng.choice(_NAMES), os.fsencode("." + path.name.split(".", 1)[1])
    keeps = rng.random() < 0.8
    name = (stem[: 255 - len(ending)] + ending) if keeps else stem
    path.rename(path.parent / os.fsdecode(name))
    return f"renamed {name[:30]!r}"


# JSON and TOML


class Raw(str):
    """JSON that `json.dumps` would not write."""


_MANY_LISTS = Raw(f"[{'[],' * 5_000_000}[]]")  # each of three bytes takes eighty in memory


def _values(outside: Path) -> list[Any]:
    """Return what may stand where something else is expected. A `Raw` is written as it is."""
    return [
        None, True, False, 0, -1, 1, 0.5, -0.0, 1e300, 10**30, 2**31, 2**63, 2_000_000_000, "", " ",
        [], {}, [[]], [None], {"": None}, "nan", "\0", "a\0b", "\ud800", "\udcff", "../../x", "..",
        ".", "/", "/etc/passwd", "/dev/zero", str(outside / "secret.txt"), str(outside / "folder"),
        "x" * 300, "x" * 5000, "\u202e", "a\nb", "http://localhost:1/x", "s3://x/y", "file:///x",
        "float64", "object", [1, 2, 3], [-1, -1], [2**40, 2**40], ["x"] * 50, {"a": {"b": 1}},
        Raw("NaN"), Raw("-Infinity"), Raw("1e999"), Raw("9" * 5000), Raw("-" + "9" * 400),
        Raw("01"), Raw("[" * 60 + "]" * 60), Raw("[" * 100_000 + "]" * 100_000),
        Raw('{"a":' * 5000), Raw('{"a":' * 900 + "1" + "}" * 900), Raw('"\\ud800\\udc"'),
        Raw("1e-400"), Raw("0.1e+308"), _MANY_LISTS,
    ]  # fmt: skip


def _nodes(data: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the place of every value in parsed JSON, as keys and numbers."""
    found = [place]
    items = data.items() if isinstance(data, dict) else ()
    for key, value in enumerate(data) if isinstance(data, list) else items:
        found += _nodes(value, (*place, key))
    return found


def _change_json(rng: Random, content: bytes, outside: Path) -> tuple[bytes, str]:
    """Return JSON of which one or two values, names or members are others."""
    data: Any = [json.loads(content)]  # in a list: the whole has a place, too
    raw: dict[str, str] = {}
    said = []
    for _ in range(rng.choice((1, 1, 2))):
        nodes = _nodes(data)[1:]
        *parents, key = nodes[_place(rng, len(nodes))]
        holder = data
        for step in parents:
            holder = holder[step]
        values = _values(outside)
        # Of the same type half the time: another type is often refused before all else.
        alike = [value for value in values if type(value) is type(holder[key])]
        value = rng.choice(alike if rng.random() < 0.5 and alike else values)
        kind = rng.choice(("value",) * 4 + ("delete", "name", "repeat", "number"))
        where, shown = "/".join(map(str, (*parents[1:], key)))[:60], repr(value)[:20]
        if isinstance(value, Raw):
            raw[mark := f"<raw {len(raw)}>"] = value
            shown, value = value[:20], mark
        if kind == "delete" and len(nodes) > 1 and parents:
            del holder[key]
        elif kind == "name" and isinstance(holder, dict):
            holder[value if isinstance(value, str) else str(value)] = holder.pop(key)
        elif kind == "repeat" and isinstance(holder, dict):
            raw[mark := f"<raw {len(raw)}>"] = json.dumps(holder[key])
            twice = f"{raw[mark]}, {json.dumps(key)}: {json.dumps(value)}"
            raw[mark], holder[key] = twice, mark
        elif kind == "number" and isinstance(holder[key], int | float):
            holder[key] = type(holder[key])(rng.choice((-1, 0.999, 2, 1000, 1e9)) * holder[key])
        else:
            kind, holder[key] = "value", value
        said.append(f"{kind} of {where}" + (f" {shown}" if kind in ("value", "name") else ""))
    text = json.dumps(data[0])
    for mark, written in reversed(raw.items()):  # the last may hold an earlier one
        text = text.replace(json.dumps(mark), written).replace(mark, written)
    return text.encode("utf-8", "surrogatepass"), ", ".join(said)


def _change_toml(rng: Random, content: bytes, outside: Path) -> tuple[bytes, str]:
    """Return TOML in which the value of a line is another."""
    lines = content.decode().splitlines()
    place, value = _place(rng, len(lines)), rng.choice(_values(outside))
    text = value if isinstance(value, Raw) else json.dumps(value)
    key = lines[place].split("=")[0] if "=" in lines[place] else "manifest "
    lines[place] = f"{key}= {text}"
    return "\n".join(lines).encode(), f"{lines[place][:60]!r}"


# Arrays


def _change_npy(rng: Random, content: bytes, outside: Path) -> tuple[bytes, str]:
    """Return an array whose header promises something else."""
    stream = io.BytesIO(content)
    version = np.lib.format.read_magic(stream)
    (length,) = struct.unpack("<H", stream.read(2))
    header = ast.literal_eval(stream.read(length).decode())
    body = stream.read()
    text = None
    kind = rng.choice(("shape", "shape", "descr", "descr", "order", "text", "version", "object"))
    if kind == "shape":
        shape = rng.choice((
            (), (0,), (-1,), (2**40,), (2**62, 4), (2**31, 2**31), (12,), (1, 1, 12, 24),
            (12, 24, 0), (3, -5), (10**30,), (1.5, 2), ("a",), (True, 24), 12, (24, 12),
            (1,) * 70, (2**29,),
        ))  # fmt: skip
        header["shape"] = shape
    elif kind == "descr":
        header["descr"] = rng.choice((
            "|O", "<f2", ">f4", "<f8", "<c8", "|S0", "|V8", "<U1000000000", "<M8[s]", "|b1",
            "f4,f4", "", "x", None, 5, [("a", "<f4")], [("a", "|O")], "<f4" * 1000, "\0", "<i8",
            "|S2147483647",
        ))  # fmt: skip
    elif kind == "order":
        header["fortran_order"] = rng.choice((True, None, "x", 2))
    elif kind == "text":
        text = rng.choice((
            "(" * 5000, "{" * 100, "", "\0", "{'descr': '<f4'}", "__import__('os').system('true')",
            "{**{}}", "1" * 5000, "[" * 90 + "]" * 90, repr(header)[:-3], "{'a':" * 300,
        ))  # fmt: skip
    elif kind == "object":
        array = np.array([Runs(outside)], object)
        out = io.BytesIO()
        np.save(out, array, allow_pickle=True)
        return out.getvalue(), "an array of objects"
    elif kind == "version":
        version = rng.choice(((2, 0), (3, 0), (9, 9), (0, 0)))
    written = (repr(header) if text is None else text).encode()
    size = struct.pack("<H" if version[0] < 2 else "<I", len(written) % 65536)
    return b"\x93NUMPY" + bytes(version) + size + written + body, f"{kind}: {written[:90]!r}"


def _change_zip(rng: Random, content: bytes, outside: Path) -> tuple[bytes, str]:
    """Return a zip archive with another member, a lying directory, or damage inside a member."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    names = list(members)
    name = names[_place(rng, len(names))]
    what = rng.choice(
        ("member", "member", "member", "directory", "directory", "bomb", "drop", "twice", "stored")
    )
    if what == "directory":
        return _lie_in_directory(rng, content)
    if what == "member" and name.endswith(".npy"):
        members[name], what = _change_text_array(rng, members[name], outside)
    elif what == "member" and name.endswith(".pkl"):
        members[name], what = _change_pickle(rng, members[name], outside)
    elif what == "member":
        members[name], what = _damage(rng, members[name])
    elif what == "bomb":
        members[name] = b""
    elif what == "drop":
        del members[name]
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for member, data in members.items():
            archive.writestr(member, data)
        if what == "twice":
            archive.writestr(rng.choice(("../../x", name + "2.npy", "a\0b.npy", "x" * 300)), b"x")
    made = out.getvalue()
    return (_bomb(name) if what == "bomb" else made), f"{name}: {what}"


def _change_text_array(rng: Random, content: bytes, outside: Path) -> tuple[bytes, str]:
    """Return an array of another header, or, of one that holds text, of other text."""
    array = np.load(io.BytesIO(content))
    if array.ndim == 0 and array.dtype.kind == "U" and rng.random() < 0.7:
        text, what = str(array), "text"
        if text[:1] in ("{", "["):
            changed, what = _change_json(rng, text.encode(), outside)
            text = changed.decode("utf-8", "replace")
        else:
            text = str(rng.choice(_values(outside)))
        array = np.array(text[:1_000_000])
    elif rng.random() < 0.5:
        array, what = _change_numbers(rng, array)
    else:
        return _change_npy(rng, content, outside)
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue(), what


def _change_numbers(rng: Random, array: Any) -> tuple[Any, str]:
    """Return an array with other values or another shape, of which the header is right."""
    value = rng.choice((np.nan, np.inf, -1.0, 0.0, 1e30, 2.0, 1e9))
    what = rng.choice(("all", "one", "empty", "axis", "short", "none"))
    if array.dtype.kind not in "fiu" or what == "none":
        return np.array(value), f"{value} in its place"
    if what == "all":
        return np.full_like(array, value, dtype=float), f"all {value}"
    if what == "one" and array.size:
        array = array.astype(float)
        array.flat[_place(rng, array.size)] = value
        return array, f"one {value}"
    return {"empty": array[..., :0], "axis": array[None], "short": array[:1]}.get(
        what, array
    ) if array.ndim else np.array([value] * 3), what  # fmt: skip


def _lie_in_directory(rng: Random, content: bytes) -> tuple[bytes, str]:
    """Return a zip archive with another number in an entry of its directory."""
    found = content.find(b"PK\x01\x02", _place(rng, content.rfind(b"PK\x01\x02") + 1))
    field, size = rng.choice(((6, 2), (8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (42, 4)))
    value = rng.choice(_EXTREMES) % 2 ** (8 * size)
    place = found + field
    changed = content[:place] + value.to_bytes(size, "little") + content[place + size :]
    return changed, f"{value} in field {field} of the zip directory"


def _bomb(name: str, size: int = 2**30) -> bytes:
    """Return a zip archive whose one member has a gigabyte of zeros in a few kilobytes."""
    header = b"\x93NUMPY\x01\x00" + struct.pack("<H", 118)
    text = repr({"descr": "<f4", "fortran_order": False, "shape": (size // 12, 3)})
    head = header + text.encode().ljust(117) + b"\n"
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    zeros = bytes(2**20)
    packed, crc = [packer.compress(head)], zlib.crc32(head)
    for _ in range(size >> 20):
        packed.append(packer.compress(zeros))
        crc = zlib.crc32(zeros, crc)
    body = b"".join(packed) + packer.flush()
    total, encoded = size + len(head), name.encode()
    common = struct.pack("<HHHHHIIIHH", 20, 0, 8, 0, 33, crc, len(body), total, len(encoded), 0)
    local = b"PK\x03\x04" + common + encoded + body
    entry = b"PK\x01\x02\x14\0" + common + bytes(14) + encoded
    end = struct.pack("<HHHHIIH", 0, 0, 1, 1, len(entry), len(local), 0)
    return local + entry + b"PK\x05\x06" + end


# Pickles


class Runs:
    """Pickles as a program that creates the canary."""

    def __init__(self, outside: Path) -> None:
        self._file = str(outside / CANARY)

    def __reduce__(self) -> Any:
        return os.mkdir, (self._file,)


def _programs(outside: Path) -> list[bytes]:
    canary = str(outside / CANARY).encode()
    short = b"\x80\x02"
    return [
        b"cos\nsystem\n(S'touch " + canary + b"'\ntR.",
        b"cposix\nmkdir\n(S'" + canary + b"'\ntR.",
        b"cbuiltins\neval\n(S'open(\"" + canary + b"\",\"w\")'\ntR.",
        b"(S'touch " + canary + b"'\nios\nsystem\n.",
        short + b"cbuiltins\ngetattr\ncos\nsystem\nX\x04\0\0\0call\x86R.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.",
        pickle.dumps({"v2": Runs(outside)}),
        pickle.dumps({"state_dict": Runs(outside)}, 2),
        short + b"Nr\xff\xff\xff\x7f.",
        short + b"Nr\xff\xff\xff\xff.",
        short + b"j\xff\xff\xff\x7f.",
        b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"x.",
        b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"x.",
        b"\x80\x04\x95" + struct.pack("<Q", 2**63) + b"N.",
        short + b"\x8b" + struct.pack("<i", 2**31 - 1) + b"\x01.",
        short + b"]" * 100_000 + b"a" * 99_999 + b".",
        short + b"(" * 1_000_000 + b".",
        short + b"}" + b"}s" * 50_000 + b".",
        short + b"N2" * 500_000 + b".",
        short + b"NN\x86" * 100_000 + b".",
        short + b"I" + b"9" * 5000 + b"\n.",
        short + b"F1e999\n.",
        short + b"Ynot ascii \xff\n.",
        short + b"X\x03\0\0\0\xed\xa0\x80.",
        short + b"\x82\x01.", b"\x80\xff.", short + b".", short + b"b.", short + b"0.",
        short + b"R.", b"\x80\x05\x97.", b"\x80\x05N\x98.", short + b"Q.", short + b"}(NNNu.",
        short + b"(l(d.",
    ]  # fmt: skip


def _change_pickle(rng: Random, content: bytes, outside: Path) -> tuple[bytes, str]:
    """Return a hostile program, or one inside the pickle."""
    program = rng.choice(_programs(outside))
    if rng.random() < 0.5:
        return program, f"program {program[:40]!r}"
    place = 2 + _place(rng, max(1, len(content) - 2))
    return content[:place] + program[2:-1] + content[place:], f"{program[:30]!r} at {place}"


# safetensors, XML


def _change_safetensors(rng: Random, content: bytes, outside: Path) -> tuple[bytes, str]:
    """Return a file whose header says something else; its length fits, or is extreme."""
    (length,) = struct.unpack("<Q", content[:8])
    header, what = _change_json(rng, content[8 : 8 + length], outside)
    said = rng.choice((len(header),) * 6 + _EXTREMES)
    return struct.pack("<Q", said) + header + content[8 + length :], f"{what}, length {said}"


def _change_xml(rng: Random, content: bytes, outside: Path) -> tuple[bytes, str]:
    """Return XML with entities, deep nesting, or another attribute."""
    text = content.decode()
    secret = (outside / "secret.txt").as_uri()
    kind = rng.choice(("bomb", "external", "parameter", "deep", "attribute", "attribute", "drop"))
    head, _, body = text.partition("?>")
    if kind in ("bomb", "external", "parameter"):
        levels = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 12))
        entities = {
            "bomb": f'<!ENTITY e0 "xxxxxxxxxx">{levels}',
            "external": f'<!ENTITY e11 SYSTEM "{secret}">',
            "parameter": f'<!ENTITY % p SYSTEM "{secret}"> %p;',
        }[kind]
        value = ">&e11;</ANNOTATION_VALUE>" if kind != "parameter" else "></ANNOTATION_VALUE>"
        body = body.replace("></ANNOTATION_VALUE>", value, 1)
        body = body.replace("</ANNOTATION_VALUE>", f"{value[1:]}", 1)
        text = f"{head}?><!DOCTYPE ANNOTATION_DOCUMENT [{entities}]>{body}"
    elif kind == "deep":
        text = f"{head}?>" + "<a>" * 100_000 + "</a>" * 100_000
    else:
        parts = text.split('"')
        place = 1 + 2 * _place(rng, len(parts) // 2)
        value = rng.choice(_values(outside))
        escaped = str(value)[:10_000].replace("&", "&amp;").replace("<", "&lt;").replace('"', "")
        parts[place] = "" if kind == "drop" else escaped
        text = '"'.join(parts)
    return text.encode("utf-8", "surrogatepass"), kind


_Change = Callable[[Random, bytes, Path], tuple[bytes, str]]
_FORMS: dict[str, _Change] = {
    "json": _change_json,
    "toml": _change_toml,
    "npy": _change_npy,
    "npz": _change_zip,
    "torch": _change_zip,
    "pickle": _change_pickle,
    "safetensors": _change_safetensors,
    "xml": _change_xml,
}
