"""Damaged and hostile files of arrays: one error of ours, and no memory that they only promise."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import struct
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mstemba.errors import CheckpointError, MstembaWarning, StoreError, UsageError
from mstemba.extractors import registry
from mstemba.model.architectures import build
from mstemba.model.config import LinearConfig, ModelConfig
from mstemba.model.weights import load_model, read_weights
from mstemba.pipeline.caching.files import write_json
from mstemba.pipeline.checkpoint import checkpoint_config, open_checkpoint, save_weights
from mstemba.pipeline.detect.scores_file import SavedScores, open_scores, read_scores, save_scores
from mstemba.pipeline.detect.zero_shot import read_phrases
from mstemba.pipeline.evaluate.predictions import read_predictions
from mstemba.pipeline.features.npy_folder import NpyFolder
from mstemba.pipeline.train.state import TrainerState, load_state, save_state
from mstemba.reading.arrays import read_npy, read_npz
from mstemba.reading.pickles import check_pickle
from mstemba.records import FeatureSpec, Scores, TimeGrid

CONFIG = LinearConfig(6, 3)
ROWS = np.random.default_rng(0).random((20, 3)).astype(np.float32)


def npy_header(text: str, version: int = 1) -> bytes:
    length = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + length + text.encode()


def array_header(shape: str, dtype: str = "'<f4'") -> bytes:
    return npy_header(f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}, }}\n")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (array_header("(5000000, 5000)"), "expected 100,000,000,000 for float32 of shape"),
        (array_header("(5, 3)") + bytes(64), "found 64 bytes of data, expected 60"),
        (array_header("(2, -3)") + bytes(24), "found the shape [2, -3]"),
        (
            array_header("(99999999999999999999,)"),
            "found the shape [99999999999999999999], expected",
        ),
        (array_header("(2,)", "'|O'") + bytes(16), "found an array of object"),
        (array_header("(2,)", "'<c8'") + bytes(16), "complex64, expected real numbers"),
        (array_header("(2,)", "[('a', '<f4')]") + bytes(8), "expected real numbers"),
        (array_header("(2,)", "'<U3'") + bytes(24), "expected real numbers"),
        (npy_header("(" * 9000), "damaged header"),
        (npy_header("\t1\n  2\n 3"), "damaged header"),
        (npy_header("{'descr': '''"), "damaged header"),
        (npy_header("{}", 2), "damaged header"),
        (npy_header("{}", 9), "damaged header"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff{", "damaged header"),
        (b"\x93NUMPY", "damaged header"),
        (b"PK\x03\x04", "it begins with b'PK"),
        (b"", "it begins with b''"),
    ],
)
def test_a_header_that_promises_what_the_file_does_not_hold(
    content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(StoreError, match=r"a\.npy: not readable as an array: ") as error:
        read_npy(tmp_path / "a.npy", StoreError)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "p")
    readers: list[Callable[[Path], object]] = [
        read_npy,
        read_npz,
        read_scores,
        read_weights,
        lambda path: read_predictions(path, ["sit"]),
        lambda path: registry.resolve("clip", None, str(path), str),
    ]
    for read in readers:
        with pytest.raises(UsageError, match=r"p: found a named pipe, expected a file"):
            read(tmp_path / "p")
    with pytest.raises(UsageError, match=r"p: found a named pipe, expected a text file"):
        read_phrases(tmp_path / "p")
    (tmp_path / "checkpoint").mkdir()
    os.mkfifo(tmp_path / "checkpoint" / "config.json")
    with pytest.raises(UsageError, match=r"config.json: found a named pipe, expected a file"):
        load_model(tmp_path / "checkpoint")
    assert open_scores(tmp_path / "p") is None


def test_archives_that_would_take_all_memory_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, a=np.zeros((10**7, 20), np.float32))
    with pytest.raises(UsageError, match="would take 763 MB of memory"):
        read_npz(path)
    np.savez_compressed(path, a=np.zeros((10**7, 20), np.uint8))  # and in float32
    with pytest.raises(UsageError, match="would take 954 MB of memory"):
        read_npz(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("v.npy", array_header("(5,)") + bytes(20))
        archive.writestr("v", array_header("(5,)") + bytes(20))
    with pytest.raises(UsageError, match="two of its files have the same name"):
        read_npz(path)
    for kind, message in ((zipfile.ZIP_LZMA, "unknown compression"), (0, "v: .*b'text'")):
        with zipfile.ZipFile(path, "w", kind) as archive:
            archive.writestr("v.npy", b"text")
        with pytest.raises(UsageError, match=message):
            read_npz(path)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("v.npy", array_header("(5,)") + bytes(20))
    content = bytearray(buffer.getvalue())
    content[content.index(b"PK\x01\x02") + 8] |= 1  # the flag of encryption
    path.write_bytes(content)
    with pytest.raises(UsageError, match="encrypted"):
        read_npz(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x80\x02Nr\xff\xff\xff\x7f.", "calls the next one 2147483647"),
        (b"\x80\x05\x96\xff\xff\xff\xff\x03\x00\x00\x00.", "promises 17,179,869,183 bytes"),
        (b"\x80\x04}" + b")" + b"2\x86" * 60 + b"Ns.", "too often"),
        (b"\x80\x04}" + b")q\x00" + b"h\x00h\x00\x86q\x00" * 60 + b"Ns.", "too often"),
        (b"\x80\x04]" + b"}" * 4_000_000 + b"e.", "save arrays, not lists"),
        (b"\x80\x04" + b"N\x94" * 8_000_000 + b".", "save arrays, not lists"),
        (b"\x80\x04h\x05.", "names value 5"),
        (b"\x80\x04\xff.", "unknown operation"),
        (b"\x80\x04ccollections\n", "not found"),
        (b"I" + b"9" * 5000 + b"\n.", "could not convert"),
    ],
)
def test_a_pickle_that_asks_for_memory_or_time_is_refused(
    content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / "p.pkl").write_bytes(content)
    with pytest.raises(UsageError, match=r"p\.pkl: not readable as a pickle") as error:
        read_predictions(tmp_path / "p.pkl", ("a",))
    assert message in str(error.value)


def test_the_end_of_a_pickle_is_found() -> None:
    content = {"a": [1, 2.5, (3, 4, 5, 6), {1, 2}, frozenset([3])], "b": ROWS, "é" * 2000: b"x"}
    for protocol in range(6):
        whole = pickle.dumps(content, protocol)
        assert check_pickle(b"123" + whole + b"rest", 3) == 3 + len(whole)


# Digests


def checkpoint(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    save_weights(folder / "model.safetensors", build(CONFIG))
    (folder / "config.json").write_text(json.dumps({"model": CONFIG.to_dict()}))
    return folder / "model.safetensors"


def test_a_checkpoint_with_any_changed_bit_is_refused(tmp_path: Path) -> None:
    weights = checkpoint(tmp_path)
    whole = weights.read_bytes()
    for bit in random.Random(1).sample(range(8 * len(whole)), 500):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        weights.write_bytes(changed)
        with pytest.raises(CheckpointError, match=r"model\.safetensors: "):
            load_model(tmp_path)
    weights.write_bytes(whole)
    load_model(tmp_path)


def test_a_changed_number_says_what_to_do(tmp_path: Path) -> None:
    weights = checkpoint(tmp_path)
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    for path in (tmp_path, weights):
        with pytest.raises(CheckpointError, match=r"SHA-256 .* copy it again, or train again"):
            load_model(path)


def test_equal_networks_give_equal_files_and_older_ones_are_read(tmp_path: Path) -> None:
    first, second = checkpoint(tmp_path / "a"), checkpoint(tmp_path / "b")
    assert first.read_bytes() == second.read_bytes()
    network = build(CONFIG)
    save_file(network.state_dict(), second)  # as before there was a SHA-256
    assert torch.equal(load_model(second.parent).state_dict()["head.weight"], network.head.weight)


def test_a_configuration_with_a_changed_bit_is_refused_or_says_the_same(tmp_path: Path) -> None:
    weights = checkpoint(tmp_path)
    path, names = tmp_path / "config.json", ("walk", "sit", "né")
    model, train = CONFIG.to_dict(), {"labels": "overlap", "lr": 1e-05, "epochs": 1, "seed": None}
    config = checkpoint_config(model, names, FeatureSpec.unknown(6), None, train, "k", ["sit"])
    write_json(path, config)
    whole = path.read_bytes()
    known = open_checkpoint(tmp_path)
    refused = 0
    for bit in range(8 * len(whole)):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        try:
            found = open_checkpoint(tmp_path)
        except CheckpointError:
            refused += 1
        else:
            assert found == known
    assert refused > 0.8 * 8 * len(whole)
    # Another layout and another order say the same.
    path.write_text(json.dumps(dict(reversed(config.items())), indent=4))
    assert open_checkpoint(weights) == known


def test_a_network_is_not_loaded_with_a_changed_or_doubtful_configuration(tmp_path: Path) -> None:
    config = ModelConfig(6, 3, widths=(8, 8, 8), state=2)
    save_weights(tmp_path / "model.safetensors", build(config))
    spec = FeatureSpec.unknown(6)
    content = checkpoint_config(config.to_dict(), ("a", "b", "c"), spec, None, {}, "")
    path = tmp_path / "config.json"
    write_json(path, content)
    assert load_model(tmp_path).config == config
    whole = path.read_text()
    path.write_text(whole.replace("interleaved", "contiguous"))
    with pytest.raises(CheckpointError, match=r"config\.json: damaged or edited: .*'sha256'"):
        load_model(tmp_path)
    path.write_text(whole.replace('"state": 2', '"state": 2, "state": 3'))
    for read in (load_model, open_checkpoint):
        with pytest.raises(CheckpointError, match=r"'state' appears twice at \$\.model"):
            read(tmp_path)


def test_a_state_with_any_changed_bit_is_refused(tmp_path: Path) -> None:
    def parts() -> tuple[torch.nn.Module, torch.nn.Module, torch.optim.Optimizer]:
        model = torch.nn.Linear(3, 2)
        return model, torch.nn.Linear(3, 2), torch.optim.AdamW(model.parameters())

    model, average, optimizer = parts()
    model(torch.ones(3)).sum().backward()
    optimizer.step()
    path = tmp_path / "state.safetensors"
    save_state(path, "key", TrainerState(7, 41.5), model, average, optimizer)
    whole = path.read_bytes()
    for bit in random.Random(0).sample(range(8 * len(whole)), 400):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        with pytest.raises(UsageError, match=r"state\.safetensors: .*; delete it to start"):
            load_state(path, "key", *parts(), torch.device("cpu"))
    path.write_bytes(whole)
    assert load_state(path, "key", *parts(), torch.device("cpu")).step == 7
    other = torch.nn.Linear(300, 2)
    with pytest.raises(UsageError, match="not those of the network"):
        load_state(path, "key", other, other, torch.optim.AdamW(other.parameters()), "cpu")


# Sizes of networks


@pytest.mark.parametrize(
    "change",
    [
        {"in_features": 10**15},
        {"classes": 10**12},
        {"in_features": 10**30},
        {"arch": "pdan", "blocks": 10**9},
        {"arch": "pdan", "width": 10**9},
        {"arch": "ms-tct", "widths": [10**8, 8, 8, 8], "heads": 1},
        {"arch": "mstemba", "widths": [10**8, 8, 8]},
        {"arch": "mstemba", "conv": 10**12},
    ],
)
def test_a_configuration_of_other_sizes_than_the_weights_is_refused(
    change: dict[str, object], tmp_path: Path
) -> None:
    checkpoint(tmp_path)
    values = {"in_features": 6, "classes": 3, "arch": "linear", **change}
    (tmp_path / "config.json").write_text(json.dumps({"model": values}))
    with pytest.raises(CheckpointError, match=r"do not fit the model|expected int <="):
        load_model(tmp_path)


def test_weights_whose_shapes_cost_no_bytes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save({"head.weight": torch.zeros(1).expand(10**6, 10**6)}, path)
    with pytest.raises(CheckpointError, match="of memory"):
        load_model(path)
    save_file({"head.weight": torch.zeros(0, 10**12), "head.bias": torch.zeros(0)}, path)
    with pytest.raises(CheckpointError):
        load_model(path)
    network = build(ModelConfig(5, 4, widths=(8, 8, 8)))
    state = {n: w.int() if n == "head.weight" else w for n, w in network.state_dict().items()}
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=r"another type: head.weight torch.int32"):
        load_model(path)


def test_a_tensor_larger_than_its_member_is_refused(tmp_path: Path) -> None:
    torch.save({"head.weight": torch.zeros(3, 6), "head.bias": torch.zeros(3)}, tmp_path / "w.pt")
    good = zipfile.ZipFile(tmp_path / "w.pt")
    with zipfile.ZipFile(tmp_path / "bad.pt", "w") as archive:
        for name in good.namelist():
            content = good.read(name)
            archive.writestr(name, content[:4] if "/data/" in name else content)
    with pytest.raises(CheckpointError, match="damaged"):
        load_model(tmp_path / "bad.pt")


# Mutations


def write_npy(path: Path) -> None:
    np.save(path, ROWS)


def write_scores(path: Path) -> None:
    scores = Scores(ROWS, TimeGrid.even(0, 0.5, 20), ("a", "b", "c"), "v.mp4", 10.0, 25.0)
    provenance = {"features": {"window": 16, "stride": 16}, "zero_shot": {}}
    save_scores(path, SavedScores(scores, "key", "print", provenance, "v"))


def write_torch(path: Path, new: bool = True) -> None:
    torch.save(build(CONFIG).state_dict(), path, _use_new_zipfile_serialization=new)


def read_features(path: Path) -> None:
    source = NpyFolder(path.parent)
    source.values("f")


def read_dense(path: Path) -> None:
    read_predictions(path, ("a", "b", "c"))


FILES: dict[str, tuple[Callable[[Path], object], Callable[[Path], object]]] = {
    "f.npy": (write_npy, read_features),
    "p.npz": (lambda path: np.savez(path, v=ROWS, w=ROWS), read_dense),
    "c.npz": (lambda path: np.savez_compressed(path, v=ROWS), read_dense),
    "s.scores.npz": (write_scores, read_scores),
    "p.pkl": (lambda path: path.write_bytes(pickle.dumps({"v": ROWS, "w": [1.0]})), read_dense),
    "p0.pkl": (lambda path: path.write_bytes(pickle.dumps({"v": ROWS}, 0)), read_dense),
    "w.safetensors": (lambda path: save_weights(path, build(CONFIG)), load_model),
    "w.pt": (write_torch, load_model),
    "old.pt": (lambda path: write_torch(path, False), load_model),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.filterwarnings("error")
def test_a_damaged_file_is_an_error_of_ours(name: str, tmp_path: Path) -> None:
    write, read = FILES[name]
    path = tmp_path / name
    write(path)
    whole = path.read_bytes()
    chance = random.Random(name)
    refused = 0
    for number in range(300):
        changed = bytearray(whole)
        place = chance.randrange(len(whole))
        if number % 3 == 0:
            changed[place] ^= 1 << chance.randrange(8)
        elif number % 3 == 1:
            del changed[place:]
        else:  # as in a field of lengths
            changed[place : place + 4] = chance.choice((b"\xff" * 4, bytes(4), b"\0\0\0\x80"))
        path.write_bytes(changed)
        message = problem(read, path)
        refused += bool(message)
        assert not message or (str(tmp_path) in message and "\n" not in message)
    assert refused >= 150


def problem(read: Callable[[Path], object], path: Path) -> str:
    try:
        read(path)
    except UsageError as error:
        return str(error)
    return ""


MEASURE = """
import resource, sys
from pathlib import Path
from mstemba.errors import UsageError
from mstemba.model.weights import load_model
from mstemba.pipeline.evaluate.predictions import read_predictions
from mstemba.reading.arrays import read_npy
import torch, safetensors.torch
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
for name in sys.argv[1:]:
    path = Path(name)
    read = {".npy": read_npy, ".pt": load_model, ".safetensors": load_model}.get(
        path.suffix, lambda path: read_predictions(path, ("a",)))
    try:
        read(path)
    except UsageError as error:
        print(path.name, (peak() - before) // 1024, error)
"""


@pytest.mark.slow
def test_small_files_take_little_memory(tmp_path: Path) -> None:
    (tmp_path / "memo.pkl").write_bytes(b"\x80\x02Nr\xff\xff\xff\x7f.")
    (tmp_path / "buffer.pkl").write_bytes(b"\x80\x05\x96\xff\xff\xff\xff\x03\x00\x00\x00.")
    (tmp_path / "a.npy").write_bytes(array_header("(5000000, 5000)"))
    tensor = {"dtype": "F32", "shape": [5 * 10**6, 5000], "data_offsets": [0, 10**11]}
    header = json.dumps({"head.weight": tensor}).encode()
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    for name in ("bomb.npz", "bomb.pt"):
        member = "v.npy" if name.endswith("npz") else "w/data.pkl"
        with (
            zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as archive,
            archive.open(member, "w") as file,
        ):
            file.write(array_header("(268435456, 1)"))
            for _ in range(1024):
                file.write(bytes(2**20))
    files = [str(path) for path in sorted(tmp_path.iterdir())]
    done = subprocess.run([sys.executable, "-c", MEASURE, *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(files)
    assert all(int(line.split()[1]) < 500 for line in lines), lines


def test_the_parts_of_saved_scores_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "v.scores.npz"
    write_scores(path)
    with np.load(path) as data:
        content = dict(data)
    for change, message in (
        ({"fps": np.nan}, "fps"),
        ({"fps": 0.0}, "fps"),
        ({"duration": 1e12}, "duration"),
        ({"video": "a\0b"}, "video"),
        ({"classes": "[1, 2, 3]"}, r"\$.classes"),
        ({"classes": "[" * 10_000}, "nested"),
        ({"classes": '["a"]'}, "expected (20, 1)"),
        ({"provenance": '{"features": {"stride": "x"}}'}, r"$.features.stride"),
        ({"provenance": "[]"}, "expected object"),
        ({"starts": np.arange(20.0) * 1e9}, "31622400"),
        ({"starts": np.array(["a"] * 20)}, "starts"),
        ({"step": np.array([1.0, 2.0])}, "step"),
        ({"probabilities": ROWS * np.nan}, "0 to 1"),
        ({"key": 3}, "expected str"),
    ):
        np.savez(path, **{**content, **change})
        with pytest.raises(StoreError) as error:
            read_scores(path)
        assert message.replace("\\", "") in str(error.value)


@pytest.mark.parametrize("step", [1e300, 1e10, 0.0, -1.0])
def test_scores_of_rows_that_no_video_has_are_damaged(tmp_path: Path, step: float) -> None:
    path = tmp_path / "v.scores.npz"
    scores = Scores(ROWS, TimeGrid.even(0.0, 0.5, 20), ("a", "b", "c"), "v.mp4", 10.0, 25.0)
    save_scores(path, SavedScores(scores, "k", "f"))
    assert read_scores(path).scores.grid.step == 0.5
    with np.load(path) as content:
        arrays = {**content, "step": step}
    np.savez(path, **arrays)
    with pytest.raises(StoreError, match=r"not readable as saved scores \(.*\$\.step"):
        read_scores(path)


@pytest.mark.parametrize(
    ("first", "second"), [("model", "state_dict"), ("state_dict", "model_state_dict")]
)
def test_a_file_of_two_state_dicts_says_which_one_is_read(
    tmp_path: Path, first: str, second: str
) -> None:
    used, other = build(CONFIG).state_dict(), build(CONFIG).state_dict()
    path = tmp_path / "w.pt"
    torch.save({second: other, first: used}, path)
    message = rf"w\.pt: found tensors under '{first}' and '{second}'; those under '{first}' are"
    with pytest.warns(MstembaWarning, match=message):
        read = read_weights(path)
    assert torch.equal(read["head.weight"], used["head.weight"])
    torch.save({first: used, second: {"epochs": 3}}, path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_weights(path)
