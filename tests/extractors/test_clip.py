"""CLIP's networks as they are loaded: without random numbers, and with QuickGELU folded.

All weights are random.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.overrides import TorchFunctionMode

from mstemba.errors import UsageError
from mstemba.extractors import clip, torchvision_ops
from mstemba.extractors.folding import fold_quick_gelu
from tests.extractors.test_extractors import KINDS, TEXT, VISION

pytestmark = pytest.mark.usefixtures("one_thread")

QUICK = {"text_cfg": TEXT, "quick_gelu": True}
DEEP = {**VISION, "layers": 3}
MODELS: dict[str, dict[str, Any]] = {
    **KINDS,
    "plain": {"vision_cfg": {**VISION, "layers": 1}, "text_cfg": TEXT},
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


# Files that are not open_clip's own


def as_openai_publishes_it(network: Any, file: Path) -> None:
    """Save a TorchScript archive with three numbers among its tensors, the mask a constant."""
    network.attn_mask = network._buffers.pop("attn_mask")
    sizes = {"input_resolution": 32, "context_length": 8, "vocab_size": 50}
    for size, value in sizes.items():
        vars(network).pop(size, None)  # open_clip keeps some as plain numbers
        network.register_buffer(size, torch.tensor(value))
    images, tokens = torch.zeros(1, 3, 32, 32), torch.zeros(1, 8, dtype=torch.long)
    parts = {"encode_image": (images,), "encode_text": (tokens,)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace_module(network, parts, check_trace=False).save(str(file))


@pytest.mark.parametrize("asked", ["quick", "plain"])
def test_openais_archives_are_read_and_get_the_activation_they_were_trained_with(
    asked: str, make: Callable[[str], Made], tmp_path: Path
) -> None:
    import open_clip

    name, network, _ = make("quick")
    as_openai_publishes_it(network, tmp_path / "ViT.pt")
    if asked == "plain":  # the same model without QuickGELU, as users often name it
        config = {"embed_dim": 24, **MODELS["quick"], "quick_gelu": False}
        (tmp_path / "tiny-plain.json").write_text(json.dumps(config))
        open_clip.add_model_config(tmp_path / "tiny-plain.json")
        name = "tiny-plain"
    loaded = clip.load_network(name, str(tmp_path / "ViT.pt")).eval()
    images, tokens = torch.randn(4, 3, 32, 32), torch.randint(1, 50, (4, 8))
    with torch.inference_mode():
        assert close(loaded.encode_image(images), network.encode_image(images))
        assert close(loaded.encode_text(tokens), network.encode_text(tokens))


def test_the_cache_of_openais_own_package_is_used(
    make: Callable[[str], Made], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants
    from open_clip import pretrained

    name, network, _ = make("quick")
    cache = tmp_path / ".cache" / "clip"
    cache.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    tag = {"hf_hub": "me/tiny/", "url": "https://example.org/abc/ViT-L-14.pt", "quick_gelu": True}
    monkeypatch.setitem(pretrained._PRETRAINED, name, {"ours": tag})
    as_openai_publishes_it(network, cache / "ViT-L-14.pt")
    images = torch.randn(2, 3, 32, 32)
    loaded = clip.load_network(name, "ours").eval()
    with torch.inference_mode():
        assert close(loaded.encode_image(images), network.encode_image(images))
    assert clip.default_available()
    (cache / "ViT-L-14.pt").write_bytes((cache / "ViT-L-14.pt").read_bytes()[:-50])
    assert not clip.default_available()


@pytest.mark.parametrize("form", ["safetensors.pt", "torch.safetensors", "training.ckpt"])
def test_the_content_of_a_file_counts_and_not_its_suffix(
    form: str, make: Callable[[str], Made], tmp_path: Path
) -> None:
    name, network, _ = make("custom-text")
    file, state = tmp_path / form, network.state_dict()
    if form == "safetensors.pt":
        save_file(state, file)
    elif form == "torch.safetensors":
        with file.open("wb") as opened:
            torch.save(state, opened)
    else:
        named = {f"module.{key}": value for key, value in state.items()}
        torch.save({"epoch": 3, "best": np.float64(0.5), "state_dict": named}, file)
    loaded = clip.load_network(name, str(file))
    assert all(torch.equal(loaded.state_dict()[key], value) for key, value in state.items())


def empty(*shape: int) -> torch.Tensor:
    """A tensor that takes no space in a file."""
    return torch.zeros(()).expand(shape)


VIT_B_32 = {
    "visual.conv1.weight": empty(768, 3, 32, 32),
    "visual.positional_embedding": empty(50, 768),
    **{f"visual.transformer.resblocks.{i}.ln_1.weight": empty(768) for i in range(12)},
    "token_embedding.weight": empty(49408, 512),
    "text_projection": empty(512, 512),
}
NOT_FITTING: dict[str, tuple[dict[str, torch.Tensor], tuple[str, ...]]] = {
    "another-model": (
        VIT_B_32,
        (
            "missing: positional_embedding, logit_scale, visual.class_embedding, ",
            "unknown: visual.transformer.resblocks.1.ln_1.weight, ",
            "of another shape: ",
            "looks like CLIP. Its sizes are those of --model ViT-B-32-quickgelu or ViT-B-32",
        ),
    ),
    "positions-of-another-width": (  # open_clip cannot even adapt them
        {**VIT_B_32, "positional_embedding": empty(77, 512)},
        ("positional_embedding (77, 512), expected (8, 32)", "--model ViT-B-32"),
    ),
    "odd-names-and-shapes": (
        {**VIT_B_32, "visual.transformer.mask": empty(3), "visual.positional_embedding": empty()},
        ("unknown: ", "Use "),
    ),
    "sizes-that-are-none": (
        {**VIT_B_32, "visual.conv1.weight": empty(), "text_projection": empty()},
        ("of another shape: ", "Use "),
    ),
    "transformers": (
        {"vision_model.embeddings.class_embedding": empty(768)},
        ("missing: ", "CLIP as Hugging Face transformers saves it. Use "),
    ),
    "unknown": ({"a.weight": empty(3)}, (" more; unknown: a.weight. Use ",)),
}


@pytest.mark.parametrize("case", NOT_FITTING)
def test_what_does_not_fit_is_named(case: str, make: Callable[[str], Made], tmp_path: Path) -> None:
    state, words = NOT_FITTING[case]
    name, _, _ = make("plain")
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(UsageError) as caught:
        clip.load_network(name, str(tmp_path / "w.pt"))
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'w.pt'}: not weights of CLIP tiny-plain: ")
    for word in words:
        assert word in message
    assert "\n" not in message
    assert "loading state_dict" not in message
