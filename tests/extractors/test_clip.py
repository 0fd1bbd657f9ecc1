"""CLIP's networks as they are loaded: without random numbers, and with QuickGELU folded.

All weights are random.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from mstemba.extractors import clip, torchvision_ops
from mstemba.extractors.folding import fold_quick_gelu
from tests.extractors.test_extractors import KINDS, TEXT, VISION

pytestmark = pytest.mark.usefixtures("one_thread")

QUICK = {"text_cfg": TEXT, "quick_gelu": True}
DEEP = {**VISION, "layers": 3}
MODELS: dict[str, dict[str, Any]] = {
    **KINDS,
    "quick": {"vision_cfg": DEEP, **QUICK},
    "quick-custom-blocks": {"vision_cfg": {**DEEP, "qk_norm": True}, **QUICK},
    "quick-coca": {**KINDS["coca"], "quick_gelu": True},
    "quick-resnet": {**KINDS["resnet"], "quick_gelu": True},
    # A layer norm between the activation and the second layer.
    "quick-normed": {"vision_cfg": {**DEEP, "scale_fc": True}, **QUICK},
}
KEEP_QUICK_GELU = {"quick-normed": 3}

Made = tuple[str, Any, str]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[[str], Made]]:
    """Make a model of a kind: its name, open_clip's own network, the file with its weights."""
    torchvision_ops.ensure()
    import open_clip
    from open_clip import factory

    before = (list(factory._MODEL_CONFIG_PATHS), dict(factory._MODEL_CONFIGS))

    def made(kind: str) -> Made:
        name, file = f"tiny-{kind}", tmp_path / "weights.pt"
        (tmp_path / f"{name}.json").write_text(json.dumps({"embed_dim": 24, **MODELS[kind]}))
        open_clip.add_model_config(tmp_path / f"{name}.json")
        torch.manual_seed(0)
        network = open_clip.create_model(name).eval()
        torch.save(network.state_dict(), file)
        return name, network, str(file)

    yield made
    factory._MODEL_CONFIG_PATHS[:], factory._MODEL_CONFIGS = before


def quick_gelus(network: nn.Module) -> int:
    from open_clip.transformer import QuickGELU

    return sum(isinstance(module, QuickGELU) for module in network.modules())


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((found - expected).abs().max() <= 1e-5 * expected.abs().max())


def same(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """To the bit; open_clip itself leaves a projection of CoCa uninitialised, which may be NaN."""
    return np.array_equal(found.numpy(), expected.numpy(), equal_nan=True)


@pytest.mark.parametrize("kind", [kind for kind in MODELS if kind.startswith("quick")])
@torch.inference_mode()
def test_quick_gelu_is_folded_in_both_towers_and_nothing_else_changes(
    kind: str, make: Callable[[str], Made]
) -> None:
    name, network, file = make(kind)
    loaded = clip.load_network(name, file).eval()
    assert quick_gelus(network) > 0
    assert quick_gelus(loaded) == KEEP_QUICK_GELU.get(kind, 0)
    images, tokens = torch.randn(4, 3, 32, 32), torch.randint(1, 50, (4, 8))
    for encode, given in (("encode_image", images), ("encode_text", tokens)):
        found, expected = (getattr(n, encode)(given, normalize=False) for n in (loaded, network))
        assert close(found, expected)
        assert len(expected.unique(dim=0)) == 4
    if kind == "quick-resnet":  # its image tower has ReLUs
        assert torch.equal(loaded.visual(images), network.visual(images))


def test_the_features_of_a_quick_model_are_open_clips_own(make: Callable[[str], Made]) -> None:
    name, network, file = make("quick")
    pictures = np.random.default_rng(0).integers(0, 256, (3, 1, 32, 32, 3), np.uint8)
    mean, std = (
        torch.tensor(value).view(3, 1, 1)
        for value in (network.visual.image_mean, network.visual.image_std)
    )
    pixels = torch.from_numpy(pictures[:, 0]).permute(0, 3, 1, 2) / 255
    with torch.inference_mode():
        expected = network.encode_image((pixels - mean) / std)
    for encode in (loaded := clip.load(name, file, "cpu", "float32"), loaded.copy_to("cpu")):
        assert close(torch.from_numpy(encode(pictures)[:, 0]), expected)


class RandomFillRecorder(TorchFunctionMode):
    """Notes what fills parameters with random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.functions: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        target = args[0] if args else kwargs.get("tensor")
        name = getattr(func, "__name__", "")
        if isinstance(target, nn.Parameter) and name in {
            "kaiming_uniform_", "normal_", "trunc_normal_", "uniform_", "xavier_uniform_",
        }:  # fmt: skip
            self.functions.append(name)
        return func(*args, **kwargs)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_loaded_to_the_bit_into_a_network_without_random_numbers(
    kind: str, make: Callable[[str], Made]
) -> None:
    import open_clip

    name, network, file = make(kind)
    with RandomFillRecorder() as drawn:
        open_clip.create_model(name)
    assert drawn.functions
    with RandomFillRecorder() as drawn:
        loaded = clip.load_network(name, file)
    assert drawn.functions == []
    state, expected = loaded.state_dict(), network.state_dict()
    assert state.keys() == expected.keys()
    assert all(same(state[key], expected[key]) for key in state)
    buffers = dict(loaded.named_buffers())  # those that no file holds, too
    assert all(same(buffers[key], value) for key, value in network.named_buffers())


class Quick(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(1.702 * x)


class Other(Quick):
    """An activation that may be another one."""


@torch.inference_mode()
def test_the_factors_of_quick_gelu_go_into_the_layers_around_it() -> None:
    torch.manual_seed(0)
    block = nn.Sequential(nn.Linear(5, 64), Quick(), nn.Identity(), nn.Linear(64, 3), nn.Identity())
    network, x = nn.ModuleDict({"block": block}), 3 * torch.randn(100, 5)
    expected = block(x)
    assert fold_quick_gelu(network, Quick) == 1
    assert isinstance(block[1], nn.SiLU)
    assert close(block(x), expected)
    assert fold_quick_gelu(network, Quick) == 0


@pytest.mark.parametrize(
    "block",
    [
        nn.Sequential(nn.Linear(5, 5), Other(), nn.Linear(5, 5)),
        nn.Sequential(nn.Linear(5, 5), nn.GELU(), nn.Linear(5, 5)),
        nn.Sequential(nn.Linear(5, 5), Quick(), nn.LayerNorm(5), nn.Linear(5, 5)),
        nn.Sequential(nn.Linear(5, 5), Quick()),
        nn.Sequential(nn.Linear(5, 5), Quick(), nn.Linear(5, 5), nn.ReLU()),
        nn.ModuleList([nn.Linear(5, 5), Quick(), nn.Linear(5, 5)]),
    ],
    ids=["subclass", "gelu", "norm", "no-second-layer", "fourth-layer", "no-sequence"],
)
def test_an_activation_anywhere_else_is_left_alone(block: nn.Module) -> None:
    before = {name: value.clone() for name, value in block.state_dict().items()}
    kinds = [type(module) for module in block.modules()]
    assert fold_quick_gelu(block, Quick) == 0
    assert [type(module) for module in block.modules()] == kinds
    assert all(torch.equal(value, before[name]) for name, value in block.state_dict().items())
