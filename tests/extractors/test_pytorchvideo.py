"""pytorchvideo's networks: features are its own, for clips of any length. All weights random."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mstemba.errors import UsageError
from mstemba.extractors import pytorchvideo, registry, torchvision_ops
from mstemba.extractors.feature_extractor import FeatureExtractor
from tests.videos import moving

pytestmark = pytest.mark.usefixtures("one_thread")
needed = pytest.mark.skipif(
    importlib.util.find_spec("pytorchvideo") is None, reason="pytorchvideo is not installed"
)
# Frames that a network's own head pools over, and what is fed: SlowFast's authors' slow frames.
NATIVE = {"i3d_r50": 8, "slow_r50": 8, "slowfast_r50": 32, "x3d_m": 16}
SLOW = [0, 4, 8, 13, 17, 22, 26, 31]


def make(model: str, width: int = 400) -> Any:
    """The hub's own network, head and all, with random weights and batch norms that do something.

    pytorchvideo starts the last batch norm of each block at zero, which would hide the block.
    """
    torchvision_ops.ensure()
    from pytorchvideo.models import hub

    torch.manual_seed(0)
    network = getattr(hub, model)(pretrained=False, model_num_class=width).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.weight.data.uniform_(0.4, 0.8)
            module.bias.data.normal_(0, 0.1)
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.7, 1.3)
    return network


@pytest.fixture(scope="module", params=NATIVE if needed.args[0] is False else [])
def loaded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Any, FeatureExtractor]:
    """(name, the hub's network, ours with the same weights)."""
    model: str = request.param
    network = make(model)
    file = tmp_path_factory.mktemp(model) / "weights.pyth"
    torch.save({"model_state": network.state_dict(), "epoch": 3}, file)
    return model, network, registry.BACKBONES[model].load(model, str(file), "cpu", "float32")


@needed
def test_features_are_what_the_networks_own_head_gives_its_classifier(
    loaded: tuple[str, Any, FeatureExtractor],
) -> None:
    model, network, encoder = loaded
    frames = np.stack(moving(NATIVE[model], 224, 224))[None]
    clips = (torch.from_numpy(frames).permute(0, 4, 1, 2, 3).float() / 255 - 0.45) / 0.225
    head = network.blocks[-1]
    head.proj = head.activation = None
    with torch.inference_mode():
        fed = [clips[:, :, SLOW], clips] if model == "slowfast_r50" else clips
        expected = network(fed).numpy()
    found = encoder(frames)
    assert found.shape == (1, 1, pytorchvideo.describe(model).width)
    assert found.dtype == np.float32
    assert expected.std() > 0.01
    assert np.abs(found[:, 0] - expected).max() <= 1e-4 * max(1, np.abs(expected).max())
    assert np.array_equal(encoder.copy_to("cpu")(frames), found)


@needed
def test_clips_of_any_length_have_features(loaded: tuple[str, Any, FeatureExtractor]) -> None:
    model, _, encoder = loaded
    frames = np.stack(moving(19, 64, 64))
    features = []
    for length in (1, 2, 3, 5, 16, 19):
        found = encoder(np.stack([frames[:length], frames[-length:]]))
        assert found.shape == (2, 1, pytorchvideo.NETWORKS[model].width)
        assert np.isfinite(found).all()
        features.append(found)
    assert np.abs(features[0] - features[-1]).max() > 1e-3
    # The clips of a batch have nothing to do with each other.
    assert np.abs(encoder(frames[None, -19:]) - features[-1][1:]).max() <= 1e-4


@needed
def test_every_batch_norm_is_folded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for model in NATIVE:
        network = pytorchvideo.headless(model)
        file = tmp_path / f"{model}.pt"
        torch.save(network.state_dict(), file)  # a plain one, without a classifier
        norms = sum(isinstance(module, nn.BatchNorm3d) for module in network.modules())
        monkeypatch.setattr(pytorchvideo, "headless", lambda _, made=network: made)
        pytorchvideo.load(model, str(file), "cpu", "float32")
        monkeypatch.undo()
        assert norms > 50
        assert not any(isinstance(module, nn.BatchNorm3d) for module in network.modules())


@needed
def test_other_classes_are_no_matter_and_another_networks_file_is_refused(tmp_path: Path) -> None:
    torch.save(make("x3d_m", 157).state_dict(), tmp_path / "x3d.pt")
    encoder = pytorchvideo.load("x3d_m", str(tmp_path / "x3d.pt"), "cpu", "float32")
    assert encoder(np.zeros((1, 2, 32, 32, 3), np.uint8)).shape == (1, 1, 2048)
    with pytest.raises(UsageError, match=r"x3d\.pt: not weights of slow_r50: missing: blocks\.0"):
        pytorchvideo.load("slow_r50", str(tmp_path / "x3d.pt"), "cpu", "float32")


@needed
def test_the_slow_path_is_spread_as_its_authors_spread_it() -> None:
    clips = torch.arange(32.0).view(1, 1, 32, 1, 1)
    slow, fast = pytorchvideo.inputs("slowfast_r50", clips)
    assert slow.flatten().tolist() == SLOW
    assert torch.equal(fast, clips)
    for length, count in ((1, 1), (3, 1), (4, 1), (5, 2), (16, 4), (17, 5)):
        assert pytorchvideo.inputs("slowfast_r50", clips[:, :, :length])[0].shape[2] == count


def test_the_addresses_are_those_in_pytorchvideos_own_code() -> None:
    torchvision_ops.ensure()
    pytest.importorskip("pytorchvideo")
    from pytorchvideo.models.hub import resnet, slowfast, x3d

    theirs = resnet.checkpoint_paths | slowfast.checkpoint_paths | x3d.checkpoint_paths
    for model, network in pytorchvideo.NETWORKS.items():
        assert network.published == {"kinetics": theirs[model]}


def test_without_the_package_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pytorchvideo, "installed", lambda: False)
    with pytest.raises(UsageError, match=r"x3d_m needs.*pip install 'mstemba\[pytorchvideo\]'"):
        pytorchvideo.load("x3d_m", "kinetics", "cpu", "float32")
    rows = {str(row["name"]): row for row in registry.listing()}
    assert rows["x3d_m"]["here"] is False
