"""Weights files: the authors' are accepted whole, everything else is refused by name."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mstemba.errors import CheckpointError, UsageError
from mstemba.model.architectures import ARCHITECTURES, build, config_from_dict
from mstemba.model.config import Config, LinearConfig, ModelConfig, MSTCTConfig, PDANConfig
from mstemba.model.mstemba import MSTemba
from mstemba.model.weights import infer_config, load_model, load_weights, read_weights
from mstemba.pipeline.checkpoint import save_weights

TINY = ModelConfig(5, 4, "mstemba", (8, 12, 16), state=3)
# One of every architecture, with all that leaves a trace in weights other than by default.
SMALL: dict[str, Config] = {
    "mstemba": ModelConfig(6, 3, "mstemba", (8, 20, 12), state=5, expand=3, conv=2),
    "mstemba-v3": ModelConfig(6, 3, "mstemba-v3", (8, 20, 12), state=5, expand=3, conv=2),
    "ms-tct": MSTCTConfig(6, 3, widths=(8, 16, 8, 24), blocks=2, expand=3, mixed=7),
    "pdan": PDANConfig(6, 3, width=7, blocks=4),
    "linear": LinearConfig(6, 3),
}
small = pytest.mark.parametrize("config", SMALL.values(), ids=SMALL)


def empty_weights(path: Path) -> dict[str, Tensor]:
    return {name: torch.zeros(shape) for name, shape in json.loads(path.read_text()).items()}


@pytest.mark.parametrize(
    ("version", "arch", "parameters"),
    [("v1", "mstemba", 10_040_829), ("v3", "mstemba-v3", 16_613_708)],
)
def test_official_checkpoints_fit(shared: Path, version: str, arch: str, parameters: int) -> None:
    weights = empty_weights(shared / "golden" / f"official_{version}_charades_clip_shapes.json")
    assert sum(w.numel() for w in weights.values()) == parameters
    dead = sum(w.numel() for n, w in weights.items() if ".head." in n)
    config = infer_config(weights)
    assert config == ModelConfig(768, 157, arch)
    with torch.device("meta"):
        model = MSTemba(config)
    live = sum(p.numel() for p in model.parameters())
    assert live == parameters - dead
    assert version == "v1" or live == 13_278_708
    load_weights(model.to_empty(device="cpu"), weights)


@pytest.mark.parametrize("version", ["v1", "v3"])
def test_a_missing_official_parameter_is_named(shared: Path, version: str) -> None:
    weights = empty_weights(shared / "golden" / f"official_{version}_charades_clip_shapes.json")
    del weights["scale_proj2.bias"]
    with torch.device("meta"):
        model = MSTemba(infer_config(weights))
    with pytest.raises(CheckpointError, match=r"missing: scale_proj2\.bias"):
        load_weights(model, weights)


def test_misfits_are_named_and_leave_the_model_alone() -> None:
    model = MSTemba(TINY)
    before = {name: w.clone() for name, w in model.state_dict().items()}
    weights = {name: w + 1 for name, w in before.items()}
    del weights["norm.bias"]
    weights["head.weight"] = torch.zeros(9, 16)
    weights |= {name: torch.zeros(1) for name in ("blocks.1.heads.weight", "x.head.bias")}
    with pytest.raises(CheckpointError) as caught:
        load_weights(model, weights)
    assert "missing: norm.bias" in str(caught.value)
    assert "unknown: blocks.1.heads.weight, x.head.bias" in str(caught.value)
    assert "head.weight (9, 16), expected (4, 16)" in str(caught.value)
    assert all(torch.equal(w, before[name]) for name, w in model.state_dict().items())


def test_many_misfits_are_counted() -> None:
    with pytest.raises(CheckpointError, match=r"and \d+ more"):
        load_weights(MSTemba(TINY), {})


def test_the_table_speaks_of_every_architecture() -> None:
    assert tuple(SMALL) == ARCHITECTURES


@small
def test_configuration_from_weights(config: Config) -> None:
    assert infer_config(build(config).state_dict()) == config


def test_other_weights_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"found conv1\.weight, expected blocks\.0"):
        infer_config({"conv1.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="A_log"):
        infer_config({f"blocks.{i}.conv.weight": torch.zeros(4, 4, 3) for i in (0, 2, 4)})


@small
def test_incomplete_weights_are_refused(config: Config) -> None:
    weights = build(config).state_dict()
    for name in weights:
        with pytest.raises(CheckpointError):
            load_weights(build(config), {n: w for n, w in weights.items() if n != name})
    for wrong in (torch.zeros(()), torch.zeros(8)):
        with pytest.raises(CheckpointError):
            infer_config(dict.fromkeys(weights, wrong))


@small
def test_every_architecture_comes_back_from_a_file_and_from_a_folder(
    tmp_path: Path, config: Config
) -> None:
    model, features = build(config).eval(), torch.randn(1, 9, 6)
    save_weights(tmp_path / "model.safetensors", model)
    (tmp_path / "config.json").write_text(json.dumps({"model": config.to_dict()}))
    for path in (tmp_path, tmp_path / "model.safetensors"):
        loaded = load_model(path)
        assert type(loaded) is type(model)
        assert loaded.config == config
        assert not loaded.training
        assert torch.equal(loaded(features).logits, model(features).logits)


@pytest.mark.parametrize("arch", ["ms-tct", "pdan", "linear"])
@pytest.mark.parametrize(("name", "value"), [("split", "contiguous"), ("padding", "released")])
def test_a_split_and_a_padding_are_of_ms_temba_only(
    tmp_path: Path, arch: str, name: str, value: str
) -> None:
    save_weights(tmp_path / "w.safetensors", build(SMALL[arch]))
    with pytest.raises(UsageError, match=f"{name}: found '{value}', but {arch} has no such option"):
        load_model(tmp_path / "w.safetensors", **{name: value})


def test_a_file_gives_back_the_model(tmp_path: Path) -> None:
    model, features = MSTemba(TINY).eval(), torch.randn(1, 9, 5)
    expected = model(features).logits
    state = model.state_dict()
    save_weights(tmp_path / "w.safetensors", model)
    torch.save(state, tmp_path / "bare.pth")
    torch.save({"model": {f"module.{n}": w for n, w in state.items()}}, tmp_path / "wrapped.pt")
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "lightning.ckpt")
    for name in ("w.safetensors", "bare.pth", "wrapped.pt", "lightning.ckpt"):
        loaded = load_model(tmp_path / name)
        assert not loaded.training
        assert torch.equal(loaded(features).logits, expected)
    released = load_model(tmp_path / "bare.pth", split="contiguous", padding="released").config
    assert (released.split, released.padding) == ("contiguous", "released")
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_a_folder_gives_back_the_model_and_its_options(tmp_path: Path) -> None:
    config = ModelConfig(5, 4, "mstemba-v3", (8, 12, 16), state=3, drop_path=0.1)
    save_weights(tmp_path / "model.safetensors", MSTemba(config))
    (tmp_path / "config.json").write_text(json.dumps({"model": config.to_dict(), "classes": []}))
    assert load_model(tmp_path).config == config
    (tmp_path / "config.json").write_text(json.dumps({"model": {**config.to_dict(), "depth": 2}}))
    with pytest.raises(CheckpointError, match=r"unknown .depth."):
        load_model(tmp_path)
    for text, message in (("{", "not readable as JSON"), ("[]", "expected object, found array")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match=message):
            load_model(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(CheckpointError, match="no such file"):
        load_model(tmp_path)


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "w.safetensors"
    network = build(SMALL["linear"])
    save_weights(path, network)
    written = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        save_weights(path, build(SMALL["linear"]))
    assert path.read_bytes() == written
    assert list(tmp_path.iterdir()) == [path]


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path: Path, form: str) -> None:
    path, crater = tmp_path / "bomb.pt", tmp_path / "crater"
    content = {"model": {"head.weight": torch.zeros(1)}, "extra": Bomb(crater)}
    if form == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(CheckpointError, match=r"bomb.pt: refused: .*never executed"):
        read_weights(path)
    assert not crater.exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_damaged_files_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"w{suffix}"
    with pytest.raises(CheckpointError, match="no such file"):
        read_weights(path)
    if suffix == ".pt":
        torch.save({"a": torch.zeros(500)}, path)
    else:
        save_file({"a": torch.zeros(500)}, path)
    whole = path.read_bytes()
    damaged = [whole[:n] for n in (0, 1, 9, 200, len(whole) // 2, len(whole) - 30)]
    for content in [*damaged, b"\xff" * 400, b"<html>not found</html>"]:
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=path.name):
            read_weights(path)


def test_what_is_no_state_dict_is_refused(tmp_path: Path) -> None:
    for content, message in (([1], "found list"), ({"a": 1}, "'a' is int"), ({}, "found dict")):
        torch.save(content, tmp_path / "w.pt")
        with pytest.raises(CheckpointError, match=message):
            read_weights(tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arch": "mamba"}, "arch: found 'mamba', expected one of mstemba, mstemba-v3"),
        ({"split": "odd"}, "split: found 'odd'"),
        ({"classes": 0}, r"expected int >= 1, found 0 at \$\.classes"),
        ({"in_features": 2.0}, r"expected int, found float at \$\.in_features"),
        ({"widths": (8, 8)}, r"expected array of length 3, found 2 at \$\.widths"),
        ({"widths": (8, 8, -1)}, r"expected int >= 1, found -1 at \$\.widths\[2\]"),
        ({"widths": 8}, r"expected array, found int at \$\.widths"),
        ({"in_features": 10**9}, r"expected int <= 1048576, found 1000000000 at \$\.in_features"),
        ({"state": 10**5000}, r"expected int <= 1048576, found .* at \$\.state"),
        ({"widths": ([[[8]]], 8, 8)}, r"expected int, found array at \$\.widths\[0\]"),
        ({"dropout": float("nan")}, r"expected float .*, found nan at \$\.dropout"),
        ({"classes": 10_001}, r"expected int <= 10000, found 10001 at \$\.classes"),
        ({"drop_path": 1.0}, r"expected float < 1\.0, found 1\.0 at \$\.drop_path"),
        ({"dropout": "x"}, r"expected float, found str at \$\.dropout"),
    ],
)
def test_a_configuration_that_cannot_be_is_named(change: dict[str, object], message: str) -> None:
    values = {**TINY.to_dict(), **change}
    with pytest.raises(UsageError, match=message):
        ModelConfig(**values)
    with pytest.raises(CheckpointError, match=message):
        ModelConfig.from_dict(values)


@pytest.mark.parametrize(
    ("arch", "change", "message"),
    [
        (
            "ms-tct",
            {"widths": (8, 8, 8)},
            r"expected array of length 4, found 3 at \$\.widths",
        ),
        ("ms-tct", {"widths": 8}, r"expected array, found int at \$\.widths"),
        ("ms-tct", {"heads": 3}, "heads: found 3, expected a divisor of the widths 8, 16, 8, 24"),
        ("ms-tct", {"blocks": 0}, r"expected int >= 1, found 0 at \$\.blocks"),
        ("ms-tct", {"mixed": 1.5}, r"expected int, found float at \$\.mixed"),
        ("ms-tct", {"dropout": 1}, r"expected float < 1\.0, found 1 at \$\.dropout"),
        ("pdan", {"width": True}, r"expected int, found bool at \$\.width"),
        ("pdan", {"dropout": -0.5}, r"expected float >= 0\.0, found -0\.5 at \$\.dropout"),
        ("pdan", {"in_features": 0}, r"expected int >= 1, found 0 at \$\.in_features"),
    ],
)
def test_a_baseline_that_cannot_be_is_named(
    arch: str, change: dict[str, object], message: str
) -> None:
    config = SMALL[arch]
    values = {**config.to_dict(), **change}
    with pytest.raises(UsageError, match=message):
        type(config)(**values)
    with pytest.raises(CheckpointError, match=message):
        config_from_dict(values)


@small
def test_configuration_round_trip(config: Config) -> None:
    written = json.loads(json.dumps(config.to_dict()))
    assert written["arch"] in ARCHITECTURES
    assert config_from_dict(written) == config
    assert type(config).from_dict(written) == config


def test_a_configuration_says_its_architecture() -> None:
    with pytest.raises(CheckpointError, match="classes missing"):
        ModelConfig.from_dict({"in_features": 3})
    for arch in ("lstm", 5, None):
        with pytest.raises(CheckpointError, match=f"arch: found {arch!r}, expected one of mstemba"):
            config_from_dict({**TINY.to_dict(), "arch": arch})
    with pytest.raises(UsageError, match="arch: found 'pdan', expected one of ms-tct"):
        MSTCTConfig(5, 4, "pdan")
    with pytest.raises(UsageError, match="arch: found 'mstemba', expected one of pdan"):
        PDANConfig(5, 4, "mstemba")


def test_a_machine_without_memory_is_no_fault_of_the_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(config: Config) -> None:
        raise MemoryError

    save_weights(tmp_path / "w.safetensors", build(SMALL["linear"]))
    monkeypatch.setattr("mstemba.model.weights.build", fail)
    with pytest.raises(MemoryError):
        load_model(tmp_path / "w.safetensors")
