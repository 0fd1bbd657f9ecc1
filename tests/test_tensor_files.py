"""Files of tensors: read by what they hold; everything else is called by its name."""

from __future__ import annotations

import argparse
import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

from mstemba.errors import CheckpointError
from mstemba.model.weights import read_weights

STATE = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.ones(2, dtype=torch.float16)}


def saved(content: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def zipped(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tarred(name: str, content: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        entry = tarfile.TarInfo(name)
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def numpy_bytes(save: Callable[..., None], *args: Any) -> bytes:
    buffer = io.BytesIO()
    save(buffer, *args)
    return buffer.getvalue()


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(
        found[name].dtype == value.dtype and torch.equal(found[name], value)
        for name, value in expected.items()
    )


POINTER = b"""version https://git-lfs.github.com/spec/v1
oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393
size 1710540580
"""
PAGE = b"""
<!DOCTYPE html>
<html lang="en"><head><title>
  Sign in &middot; GitLab
</title></head><body></body></html>"""
TENSORS = saved(STATE)
SAFE = safetensors_bytes(STATE)

# The content of a file, and what the message must say of it.
NO_TENSORS: dict[str, tuple[bytes, tuple[str, ...]]] = {
    "empty": (b"", ("found an empty file", "download or copy it again")),
    "zeros": (bytes(5000), ("begins with zeros", "interrupted download")),
    "lfs": (POINTER, ("Git LFS pointer to a file of 1,710,540,580 bytes", "git lfs pull")),
    "annex": (b"/annex/objects/SHA256E-s12--ab.pt\n", ("git-annex pointer", "git annex get")),
    "page": (PAGE, ("a web page ('Sign in &middot; GitLab')", "download the file itself")),
    "page-utf16": ("<html><title>No</title>".encode("utf-16"), ("a web page ('No')",)),
    "error": (
        b'<?xml version="1.0"?>\n<Error><Code>AccessDenied</Code></Error>',
        ("XML", "version"),
    ),
    "json": (b'{"error": "Repository Not Found"}', ("JSON", "Repository Not Found")),
    "page-saved": (
        "\ufeff\n <!-- saved from -->\n<HTML><TITLE>Seite\x1b[2J\n登录</TITLE>".encode(),
        ("a web page ('Seite [2J 登录')",),
    ),
    "text": (b"404: Not Found\n", ("text ('404: Not Found')",)),
    "program": (
        b"#!/usr/bin/env python\nimport os\n",
        ("text ('#!/usr/bin/env python import os')",),
    ),
    "byte": (b"\x80", ("unknown kind that begins with 80",)),
    "pickle": (
        pickle.dumps({"model": {"w": np.zeros(3)}}, 2),
        ("refused: found a pickle that torch.save did not write", "never executed"),
    ),
    "pickle-5": (pickle.dumps({"w": [1.0]}, 5), ("a pickle that torch.save did not write",)),
    "gzip": (gzip.compress(TENSORS), ("compressed with gzip", "unpack it")),
    "bzip2": (bz2.compress(TENSORS), ("compressed with bzip2", "unpack it")),
    "xz": (lzma.compress(TENSORS), ("compressed with xz", "unpack it")),
    "zip": (zipped(**{"m/w.pt": TENSORS}), ("a zip archive (w.pt)", "unpack it")),
    "keras": (zipped(**{"config.json": b"", "model.weights.h5": b""}), ("a Keras model",)),
    "tar": (tarred("m/weights.pt", TENSORS), ("a tar archive (weights.pt)", "unpack it")),
    "npy": (numpy_bytes(np.save, np.zeros(3)), ("a NumPy array (.npy)",)),
    "npz": (numpy_bytes(np.savez, np.zeros(3)), ("NumPy arrays (.npz)",)),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(600), ("an HDF5 file", "Keras")),
    "onnx": (b"\x08\x07\x12\x07pytorch\x1a\x031.9", ("ONNX or TensorFlow",)),
    "tflite": (b"\x1c\x00\x00\x00TFL3\x14\x00", ("TensorFlow Lite",)),
    "tensorflow": (b"\x00\x01\xff" * 40 + b"W\xfb\x80\x8b$uG\xdb", ("TensorFlow checkpoint",)),
    "gguf": (b"GGUF\x03\x00\x00\x00", ("a GGUF file",)),
    "noise": (b"\xff\xd8\xff\xe0" * 90, ("unknown kind", "ff d8 ff e0")),
    "half-zip": (TENSORS[: len(TENSORS) // 2], ("incomplete", "download or copy it again")),
    "half-safe": (
        SAFE[:-9],
        (f"incomplete safetensors file ({len(SAFE) - 9:,} of {len(SAFE):,} bytes)", "again"),
    ),
    "half-header": (SAFE[:60], ("safetensors", "ends inside its header")),
    "half-legacy": (saved(STATE, _use_new_zipfile_serialization=False)[:-20], ("incomplete",)),
}


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ""])
@pytest.mark.parametrize("kind", NO_TENSORS)
def test_what_is_not_weights_is_called_by_its_name(kind: str, suffix: str, tmp_path: Path) -> None:
    content, words = NO_TENSORS[kind]
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_weights(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    for word in (*words, "expected a .safetensors file or a state dict"):
        assert word in message
    assert message.isprintable()
    assert len(message) - len(str(path)) < 250
    assert "weights_only" not in message


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "w.pth.tar", "w.h5", "w"])
def test_files_are_read_by_their_content(name: str, tmp_path: Path) -> None:
    for content in (TENSORS, SAFE, saved(STATE, _use_new_zipfile_serialization=False)):
        (tmp_path / name).write_bytes(content)
        assert same(read_weights(tmp_path / name), STATE)


def test_an_empty_list_of_tensors_has_its_length_in_the_header(tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(safetensors_bytes({}))
    assert read_weights(tmp_path / "w") == {}


class Bomb:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


EXTRAS: dict[str, Any] = {
    "float64": np.float64(3.5),
    "float32": np.float32(0.1),
    "int": np.int64(7),
    "bool": np.bool_(True),
    "array": np.arange(4),
    "text-array": np.array(["a", "b"]),
    "options": argparse.Namespace(lr=np.float32(0.1), out=Path("out")),
}


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("extra", EXTRAS)
def test_a_training_file_with_numbers_paths_and_options_is_read(
    extra: str, new: bool, tmp_path: Path
) -> None:
    content = {"epoch": 3, "best": EXTRAS[extra], "state_dict": STATE, "more": [EXTRAS[extra]]}
    (tmp_path / "w.pth").write_bytes(saved(content, _use_new_zipfile_serialization=new))
    assert same(read_weights(tmp_path / "w.pth"), STATE)
    # torch's own list is as it was.
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "w.pth", weights_only=True)


def test_files_of_older_numpy_are_read(tmp_path: Path) -> None:
    content = saved({"best": np.float64(3), "model": STATE})
    old = zipfile.ZipFile(io.BytesIO(content))
    with zipfile.ZipFile(tmp_path / "w.pt", "w") as archive:
        for name in old.namelist():
            part = old.read(name)
            assert b"numpy._core." in part or not name.endswith("data.pkl") or np.__version__ < "2"
            archive.writestr(name, part.replace(b"numpy._core.", b"numpy.core."))
    assert same(read_weights(tmp_path / "w.pt"), STATE)


def test_what_a_file_holds_in_place_of_tensors_is_named(tmp_path: Path) -> None:
    for content, words in (
        ({"a.weight": np.zeros(3)}, ("'a.weight' is NumPy array",)),
        ({"epoch": 3, "net": STATE, "optimizer": {}}, ("'epoch' is int", "epoch, net, optimizer")),
    ):
        (tmp_path / "w.pt").write_bytes(saved(content))
        with pytest.raises(CheckpointError) as caught:
            read_weights(tmp_path / "w.pt")
        for word in (*words, "expected a state dict of tensors", "state_dict"):
            assert word in str(caught.value)


class Block(nn.Module):
    """A module with everything that a state dict may hold."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(2, 3, 1)
        self.norm = nn.BatchNorm2d(3)
        self.layers = nn.ModuleList([nn.Linear(3, 3, bias=False) for _ in range(2)])
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.register_buffer("shifted", torch.arange(12.0).view(3, 4).T[1:])
        self.register_buffer("none", torch.zeros(0, 3))
        self.constant = torch.ones(3, 1, 1)  # neither a parameter nor a buffer
        self.layers[1].weight = self.layers[0].weight  # shared

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.convolution(x)) * self.scale + self.constant
        for layer in self.layers:
            x = layer(x.movedim(1, -1)).movedim(-1, 1)
        return x


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("make", ["script", "trace"])
@pytest.mark.parametrize("half", [False, True])
def test_the_tensors_of_a_torchscript_archive_are_those_of_its_state_dict(
    make: str, half: bool, tmp_path: Path
) -> None:
    block = Block().eval()
    if half:
        block.layers.half()
        block.layers.float() if make == "trace" else None
    made = (
        torch.jit.script(block)
        if make == "script"
        else torch.jit.trace(block, torch.zeros(1, 2, 4, 4))
    )
    made.save(str(tmp_path / "w.pt"))
    expected = torch.jit.load(str(tmp_path / "w.pt")).state_dict()
    assert len(expected) >= 10
    assert "constant" not in expected
    assert same(read_weights(tmp_path / "w.pt"), dict(expected))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_nothing_in_a_torchscript_archive_is_executed(tmp_path: Path) -> None:
    crater = tmp_path / "crater"
    torch.jit.script(nn.Linear(2, 2)).save(str(tmp_path / "good.pt"))
    good = zipfile.ZipFile(tmp_path / "good.pt")
    for protocol in (0, 2, 4):
        for part in ("data.pkl", "constants.pkl"):
            with zipfile.ZipFile(tmp_path / "bomb.pt", "w") as archive:
                for name in good.namelist():
                    bomb = name.endswith(f"/{part}")
                    content = pickle.dumps(Bomb(crater), protocol) if bomb else good.read(name)
                    archive.writestr(name, content)
            if part == "data.pkl":
                with pytest.raises(CheckpointError, match=r"refused: .*mkdir.*never executed"):
                    read_weights(tmp_path / "bomb.pt")
            else:  # constants belong to the code, and are not read
                assert read_weights(tmp_path / "bomb.pt").keys() == {"weight", "bias"}
            assert not crater.exists()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("change", ["offset", "lost", "empty"])
def test_a_damaged_torchscript_archive_is_refused(change: str, tmp_path: Path) -> None:
    torch.jit.script(nn.Linear(2, 2)).save(str(tmp_path / "good.pt"))
    good = zipfile.ZipFile(tmp_path / "good.pt")
    with zipfile.ZipFile(tmp_path / "bad.pt", "w") as archive:
        for name in good.namelist():
            content = good.read(name)
            if "/data/" in name:
                if change == "lost":
                    continue
                content = b"" if change == "empty" else content[:-4]
            archive.writestr(name, content)
    with pytest.raises(CheckpointError, match="damaged or incomplete"):
        read_weights(tmp_path / "bad.pt")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_damaged_compressed_part_of_a_torchscript_archive_is_refused(tmp_path: Path) -> None:
    torch.jit.script(nn.Linear(2, 2)).save(str(tmp_path / "good.pt"))
    good = zipfile.ZipFile(tmp_path / "good.pt")
    with zipfile.ZipFile(tmp_path / "bad.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in good.namelist():
            archive.writestr(name, good.read(name))
        part = next(i for i in archive.infolist() if i.filename.endswith("/data.pkl"))
    content = bytearray((tmp_path / "bad.pt").read_bytes())
    begin = part.header_offset + 30 + len(part.filename)  # after its entry of 30 bytes and its name
    content[begin : begin + part.compress_size] = b"\xff" * part.compress_size
    (tmp_path / "bad.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged or incomplete"):
        read_weights(tmp_path / "bad.pt")


def test_module_before_every_name_is_removed_in_every_format(tmp_path: Path) -> None:
    prefixed = {f"module.{name}": tensor for name, tensor in STATE.items()}
    for content in (safetensors_bytes(prefixed), saved(prefixed)):
        (tmp_path / "w").write_bytes(content)
        assert read_weights(tmp_path / "w").keys() == STATE.keys()


def test_a_file_of_old_torch_may_be_cut_anywhere(tmp_path: Path) -> None:
    whole = saved(STATE, _use_new_zipfile_serialization=False)
    for size in range(len(whole)):
        (tmp_path / "cut.pt").write_bytes(whole[:size])
        with pytest.raises(CheckpointError):
            read_weights(tmp_path / "cut.pt")


@pytest.mark.parametrize(
    "header",
    [
        b"{",
        b"[]",
        b'{"a": 1}',
        b'{"a": {"data_offsets": [0]}}',
        b'{"a": {"data_offsets": [0, 1e999]}}',
        b"{" + b"[" * 9000,
        b'{"a":\xff}',
    ],
)
def test_a_damaged_header_of_safetensors_is_refused(header: bytes, tmp_path: Path) -> None:
    padded = b"{" + header[1:] if header.startswith(b"{") else b'{"__metadata__": 3}'
    (tmp_path / "w").write_bytes(struct.pack("<Q", len(padded)) + padded + bytes(8))
    with pytest.raises(CheckpointError, match="safetensors file"):
        read_weights(tmp_path / "w")


def test_json_of_any_form_is_not_taken_for_safetensors(tmp_path: Path) -> None:
    for content in ({"a": {"b": 1}}, [[[{"a": 1}]]], {"abcd": {}}):
        (tmp_path / "w.safetensors").write_text(json.dumps(content))
        with pytest.raises(CheckpointError, match="found JSON"):
            read_weights(tmp_path / "w.safetensors")


def _torch_file(content: bytes) -> bytes:
    """Return a file of torch before 1.6 whose third pickle has the content."""
    magic, protocol = 0x1950A86A20F9469CFC6C, 1001
    parts = [pickle.dumps(magic, 2), pickle.dumps(protocol, 2), b"\x80\x02" + content]
    return b"".join([*parts, pickle.dumps({}, 2), pickle.dumps([], 2)])


def test_a_class_with_a_name_of_a_million_characters_is_refused_at_once(tmp_path: Path) -> None:
    content = b"ctorch\nFloatStorage" + b"2N" * 500_000 + b"\n."
    (tmp_path / "w.pth").write_bytes(_torch_file(content))
    with pytest.raises(CheckpointError, match="damaged or incomplete"):
        read_weights(tmp_path / "w.pth")


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(b"%s)R.", id="reduce"),
        pytest.param(b"%s)\x81.", id="new object"),
        pytest.param(b"%s\x85)R.", id="a tuple"),
        pytest.param(b"](%se)R.", id="a list"),
        pytest.param(b"%sq\x00h\x00)R.", id="a value from the memo"),
    ],
)
def test_a_call_of_a_text_of_a_million_characters_is_refused_at_once(
    call: bytes, tmp_path: Path
) -> None:
    text = b"X" + (1_000_000).to_bytes(4, "little") + b"2N" * 500_000
    (tmp_path / "w.pth").write_bytes(_torch_file(call % text))
    with pytest.raises(CheckpointError, match="refused: damaged, or a pickle of something"):
        read_weights(tmp_path / "w.pth")


class Outer:
    class Inner:
        """A class that a pickle reaches through the class that holds it."""


def test_a_class_in_a_class_is_code_and_no_damage(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(2), "config": Outer.Inner()}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="refused: "):
        read_weights(tmp_path / "w.pth")
