"""What a file is, by its content and not by its suffix. Imports no torch."""

from __future__ import annotations

import re
import tarfile
from pathlib import Path, PurePosixPath

from mstemba.errors import UsageError
from mstemba.reading.arrays import open_zip
from mstemba.reading.files import file_size
from mstemba.tensor_files.safetensors_file import read_header

SAFETENSORS, TORCH, TORCHSCRIPT, NPZ = "safetensors", "torch", "TorchScript", "npz"

EXPECTED = "expected a .safetensors file or a state dict that torch.save wrote"
_AGAIN = "download or copy it again"
_UNPACK = "unpack it and pass the file of weights in it"
_HEAD = 1024
"""How many bytes at the beginning of a file are looked at."""
_SHOWN = 40
"""How many characters of a text a message shows."""

# Files that begin with these bytes, at this offset, are of another kind: what it is, what to do.
_OTHERS: tuple[tuple[int, bytes, str, str | None], ...] = (
    (0, b"\x1f\x8b", "a file compressed with gzip", _UNPACK),
    (0, b"BZh", "a file compressed with bzip2", _UNPACK),
    (0, b"\xfd7zXZ\x00", "a file compressed with xz", _UNPACK),
    (0, b"\x28\xb5\x2f\xfd", "a file compressed with Zstandard", _UNPACK),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (0, b"Rar!\x1a\x07", "a RAR archive", _UNPACK),
    (0, b"\x93NUMPY", "a NumPy array (.npy)", None),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file, such as Keras writes (.h5)", None),
    (4, b"TFL3", "a TensorFlow Lite model", None),
    (0, b"GGUF", "a GGUF file", None),
)
# The number at the beginning of what torch.save wrote before torch 1.6.
_TORCH_MAGIC = bytes.fromhex("6cfc9c46f9206aa85019")
_TENSORFLOW = b"\x57\xfb\x80\x8b\x24\x75\x47\xdb"  # the last bytes of its tables


def tensor_format(path: Path) -> str:
    """Return SAFETENSORS, TORCH, TORCHSCRIPT or NPZ.

    A file of TORCH may still hold code or something other than tensors.

    Raises:
        ValueError: The file is none of these, or is incomplete. The message says what was found
            and expected, and what to do, without the name of the file.
        OSError: The file cannot be read.
    """
    size = _regular(path)
    with path.open("rb") as file:
        head = file.read(_HEAD)
        file.seek(max(0, size - len(_TENSORFLOW)))
        tail = file.read()
    if head.startswith(b"PK\x03\x04"):
        return _zip_format(path)
    if re.match(rb"\x80[\x02-\x05]", head):
        if _TORCH_MAGIC not in head[:40]:
            raise ValueError(
                f"refused: found a pickle that torch.save did not write, {EXPECTED}; "
                f"pickled code is never executed"
            )
        return TORCH
    if len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**32:
        try:
            read_header(path)
        except ValueError as error:
            raise _error(str(error), _AGAIN) from None
        return SAFETENSORS
    raise _error(*_other(path, head, tail))


def _regular(path: Path) -> int:
    """Return the size of a file. Raises ValueError for a pipe and the like, OSError for none."""
    path.stat()
    try:
        return file_size(path)
    except UsageError as error:
        raise ValueError(str(error).removeprefix(f"{path}: ")) from None


def holds_tensors(path: Path) -> bool:
    """Return whether a file exists and is, by its beginning and its end, one of tensors."""
    try:
        tensor_format(path)
    except (OSError, ValueError):
        return False
    return True


def _error(what: str, advice: str | None = None) -> ValueError:
    return ValueError(f"found {what}, {EXPECTED}" + (f"; {advice}" if advice else ""))


def _other(path: Path, head: bytes, tail: bytes) -> tuple[str, str | None]:
    """Return what a file that does not hold tensors is, and what to do about it."""
    if not head:
        return "an empty file", _AGAIN
    if not head.strip(b"\0"):
        return "a file that begins with zeros, such as an interrupted download", _AGAIN
    for offset, magic, what, advice in _OTHERS:
        if head[offset:].startswith(magic):
            return what, advice
    if tail == _TENSORFLOW:
        return "a part of a TensorFlow checkpoint", None
    # Both are protocol buffers that begin with a version and a text or message.
    if re.match(rb"\x08[\x01-\x20][\x12\x1a\x22\x2a\x32\x3a\x42]", head):
        return "an ONNX or TensorFlow model", None
    if head[257:262] == b"ustar":
        return f"a tar archive{_contents(_tar_names(path))}", _UNPACK
    return _text(head) or (f"a file of an unknown kind that begins with {head[:8].hex(' ')}", None)


def _text(head: bytes) -> tuple[str, str | None] | None:
    """Recognise texts: pointers, pages, error messages. None for binary data."""
    encoding = "utf-16" if head[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    text = head.decode(encoding, "ignore").strip()
    controls = len(re.findall(r"[\x00-\x08\x0e-\x1f\x7f]", text))
    if len(text) < max(1, len(head) // 4) or controls > len(text) // 20:
        return None
    if text.startswith(("version https://git-lfs", "version https://hawser")):
        size = re.search(r"^size (\d+)$", text, re.MULTILINE)
        of = f" to a file of {int(size[1]):,} bytes" if size else ""
        return f"a Git LFS pointer{of}", "run `git lfs pull` in its repository"
    if text.startswith("/annex/objects/"):
        return "a git-annex pointer", "run `git annex get` in its repository"
    if re.match(r"(<!--.*?-->\s*)*<(!doctype html|html|head)", text, re.IGNORECASE | re.DOTALL):
        title = re.search(r"<title[^>]*>([^<]*)", text, re.IGNORECASE)
        return f"a web page{_quoted(title[1]) if title else ''}", "download the file itself"
    kind = "XML" if text.startswith("<") else "JSON" if text[:1] in ("{", "[") else "text"
    return f"{kind}{_quoted(text)}", None


def _quoted(text: str) -> str:
    """Return the beginning of a text in parentheses, on one line."""
    line = _shortened(text)
    return f" ({line!r})" if line else ""


def _shortened(text: str) -> str:
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= _SHOWN else f"{line[: _SHOWN - 1]}…"


def _zip_format(path: Path) -> str:
    try:
        with open_zip(path) as archive:
            names = archive.namelist()
    except UsageError as error:
        told = str(error).removeprefix(f"{path}: ")
        raise _error(f"an incomplete or damaged file ({told})", _AGAIN) from None
    parts = {"/".join(PurePosixPath(name).parts[1:]) for name in names}
    if "constants.pkl" in parts or any(part.startswith("code/") for part in parts):
        return TORCHSCRIPT
    if "data.pkl" in parts:
        return TORCH
    if names and all(name.endswith(".npy") for name in names):
        return NPZ
    if "model.weights.h5" in names:
        raise _error("a Keras model (.keras)")
    raise _error(f"a zip archive{_contents(names)}", _UNPACK)


def _tar_names(path: Path) -> list[str]:
    try:
        with tarfile.open(path, "r:") as archive:
            return [member.name for member in archive if member.isfile()]
    except (tarfile.TarError, ValueError):
        return []


def _contents(names: list[str]) -> str:
    files = [name for name in names if not name.endswith("/")]
    shown = _shortened(", ".join(PurePosixPath(name).name for name in files[:3]))
    return f" ({shown}{', ...' if len(files) > 3 else ''})" if files else ""
