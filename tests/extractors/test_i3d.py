"""Inception-I3D: the published network's names and numbers, in both forms. All weights random."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from mstemba.errors import UsageError
from mstemba.extractors import i3d, registry
from mstemba.extractors.feature_extractor import FeatureExtractor
from mstemba.extractors.i3d_network import InceptionI3D
from tests.videos import moving

pytestmark = pytest.mark.usefixtures("one_thread")

State = dict[str, Tensor]


def random_state(channels: int = 3, classes: int | None = 400) -> State:
    """Random weights whose activations neither vanish nor explode over the layers."""
    torch.manual_seed(channels)
    state = InceptionI3D(channels, classes).state_dict()
    for name, value in state.items():
        if name.endswith("conv3d.weight"):
            value.normal_(0, math.sqrt(2 / value[0].numel()))
        elif name.endswith("running_var") or name.endswith("bn.weight"):
            value.uniform_(0.7, 1.3)
        elif name.endswith("running_mean") or name.endswith("bias"):
            value.normal_(0, 0.2)
    return state


@pytest.fixture(scope="module")
def state() -> State:
    return random_state()


@pytest.fixture(scope="module")
def weights(state: State, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("i3d") / "rgb.pt"
    torch.save(state, file)
    return file


@pytest.fixture(scope="module")
def network(weights: Path) -> InceptionI3D:
    return i3d.load_network(str(weights))


# A second I3D, written to be read: every layer spelled out, every pad that of TensorFlow's SAME


def same(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    pads: list[int] = []
    for size, k, s in zip(x.shape[2:], kernel, stride, strict=True):
        total = max((math.ceil(size / s) - 1) * s + k - size, 0)
        pads = [total // 2, total - total // 2, *pads]
    return functional.pad(x, pads)


def pool(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    return functional.max_pool3d(same(x, kernel, stride), kernel, stride)


def unit(x: Tensor, state: State, name: str, stride: int = 1) -> Tensor:
    weight = state[f"{name}.conv3d.weight"]
    x = functional.conv3d(same(x, tuple(weight.shape[2:]), (stride,) * 3), weight, stride=stride)
    mean, var = state[f"{name}.bn.running_mean"], state[f"{name}.bn.running_var"]
    scale, shift = state[f"{name}.bn.weight"], state[f"{name}.bn.bias"]
    return functional.batch_norm(x, mean, var, scale, shift, eps=1e-3).relu()


def mixed(x: Tensor, state: State, name: str) -> Tensor:
    first = unit(unit(x, state, f"{name}.b1a"), state, f"{name}.b1b")
    second = unit(unit(x, state, f"{name}.b2a"), state, f"{name}.b2b")
    pooled = unit(pool(x, (3, 3, 3), (1, 1, 1)), state, f"{name}.b3b")
    return torch.cat([unit(x, state, f"{name}.b0"), first, second, pooled], dim=1)


def maps(x: Tensor, state: State) -> Tensor:
    x = pool(unit(x, state, "Conv3d_1a_7x7", 2), (1, 3, 3), (1, 2, 2))
    x = unit(unit(x, state, "Conv3d_2b_1x1"), state, "Conv3d_2c_3x3")
    x = pool(x, (1, 3, 3), (1, 2, 2))
    x = pool(mixed(mixed(x, state, "Mixed_3b"), state, "Mixed_3c"), (3, 3, 3), (2, 2, 2))
    for letter in "bcdef":
        x = mixed(x, state, f"Mixed_4{letter}")
    x = pool(x, (2, 2, 2), (2, 2, 2))
    return mixed(mixed(x, state, "Mixed_5b"), state, "Mixed_5c")


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-4) -> bool:
    assert found.shape == expected.shape
    assert expected.std() > 0.05  # it is not that everything vanished
    return bool((found - expected).abs().max() <= tolerance * max(1.0, float(expected.abs().max())))


def clip(length: int, side: int = 16, channels: int = 3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(1, channels, length, side, side, generator=generator) * 2 - 1


# Names


def test_names_and_shapes_are_the_published_ones() -> None:
    found = {name: tuple(value.shape) for name, value in InceptionI3D().state_dict().items()}
    assert len(found) == 344
    assert found["Conv3d_1a_7x7.conv3d.weight"] == (64, 3, 7, 7, 7)
    assert found["Conv3d_2c_3x3.conv3d.weight"] == (192, 64, 3, 3, 3)
    assert found["Mixed_3c.b2b.conv3d.weight"] == (96, 32, 3, 3, 3)
    assert found["Mixed_4e.b1a.conv3d.weight"] == (144, 512, 1, 1, 1)
    assert found["Mixed_4f.b3b.bn.running_var"] == (128,)
    assert found["Mixed_5c.b0.bn.num_batches_tracked"] == ()
    assert found["Mixed_5c.b1b.conv3d.weight"] == (384, 192, 3, 3, 3)
    assert found["logits.conv3d.weight"] == (400, 1024, 1, 1, 1)
    assert found["logits.conv3d.bias"] == (400,)


def test_names_and_shapes_are_those_of_the_file_that_the_field_uses(
    shared: Path, tmp_path: Path
) -> None:
    shapes = json.loads((shared / "golden" / "official_i3d_rgb_shapes.json").read_text())
    made = {name: list(value.shape) for name, value in InceptionI3D().state_dict().items()}
    assert made == shapes
    file = tmp_path / "official.pt"
    torch.save({name: torch.rand(shape) for name, shape in shapes.items()}, file)
    assert i3d.load_network(str(file)).rows(clip(8)).shape == (1, 1, 1024)


# Numbers


def test_a_snippet_is_what_pytorch_i3d_extracts(weights: Path, state: State) -> None:
    """16 frames of 224 x 224, whose average pool is fixed at 2 x 7 x 7 there."""
    frames = np.stack(moving(16, 224, 224))[None]
    pixels = torch.from_numpy(frames).permute(0, 4, 1, 2, 3).float() / 255 * 2 - 1
    with torch.inference_mode():
        expected = functional.avg_pool3d(maps(pixels, state), (2, 7, 7), stride=1)
    load = registry.BACKBONES["i3d"].load
    found = load(i3d.MODEL, str(weights), "cpu", "float32")(frames)
    assert found.dtype == np.float32
    assert close(torch.from_numpy(found), expected.flatten(1)[:, None])


@pytest.mark.parametrize("size", [(1, 17, 17), (16, 32, 45), (21, 50, 33), (26, 33, 64)])
def test_maps_of_any_size_are_those_of_the_readable_network(
    network: InceptionI3D, state: State, size: tuple[int, int, int]
) -> None:
    clips = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.inference_mode():
        found, expected = network.maps(clips), maps(clips, state)
    assert close(found, expected)
    assert (found[0] - found[1]).abs().max() > 0.01


def test_folding_leaves_no_batch_norm_and_the_same_numbers(
    network: InceptionI3D, state: State
) -> None:
    unfolded = InceptionI3D().eval()
    unfolded.load_state_dict(state)
    kinds = [type(module) for module in network.modules()]
    assert nn.BatchNorm3d not in kinds
    assert kinds.count(nn.Identity) == 57
    with torch.inference_mode():
        assert close(network.rows(clip(24, 32)), unfolded.rows(clip(24, 32)))


def test_every_length_has_its_rows(network: InceptionI3D) -> None:
    with torch.inference_mode():
        for length in range(1, 34):
            assert network.snippet(clip(length)).shape == (1, 1, 1024)
            rows = max(1, math.ceil(length / 8) - 1)
            assert network.rows(clip(length)).shape == (1, rows, 1024)


def test_rows_are_the_means_of_two_time_steps(network: InceptionI3D, state: State) -> None:
    with torch.inference_mode():
        found = network.rows(clip(40, 64))
        expected = functional.avg_pool3d(maps(clip(40, 64), state), (2, 2, 2), stride=1)
    assert close(found, expected.flatten(2).transpose(1, 2))


def test_scores_are_those_of_the_rows(state: State) -> None:
    network = InceptionI3D().eval()
    network.load_state_dict(state)
    with torch.inference_mode():
        scores, rows = network(clip(24)), network.rows(clip(24))
    weight, bias = state["logits.conv3d.weight"].flatten(1), state["logits.conv3d.bias"]
    assert close(scores, (rows @ weight.T + bias).transpose(1, 2))


# A long video in passes


def reach(network: InceptionI3D, length: int, row: int) -> tuple[int, int]:
    """Frames that a row sees before its first and after its sixteenth."""
    clips = clip(length).requires_grad_()
    network.rows(clips)[0, row].sum().backward()
    assert clips.grad is not None
    seen = clips.grad[0].abs().amax(dim=(0, 2, 3)).nonzero().flatten()
    return 8 * row - int(seen[0]), int(seen[-1]) - (8 * row + 15)


def test_a_row_sees_no_further_than_the_context_and_needs_all_but_a_step_of_it(
    network: InceptionI3D,
) -> None:
    context = i3d.describe_whole_clip(i3d.MODEL).context
    found = [reach(network, length, 9) for length in (160, 161, 162, 163)]
    assert max(before for before, _ in found) == 47
    assert max(after for _, after in found) == 47
    # Beyond the rows that it gives, a pass sees one step less: their last begins 8 frames before.
    assert context == 56
    assert context % 8 == 0


def by_passes(network: InceptionI3D, video: Tensor, context: int = 56, modulus: int = 8) -> Tensor:
    """The rule in the docstring of `InceptionI3D.rows`, spelled out, for 40 frames a pass."""
    length, chunk, parts = video.shape[2], 40, []
    count = max(1, math.ceil(length / 8) - 1)
    for p in range(0, count, chunk // 8):
        q = min(p + chunk // 8, count)
        begin, end = max(0, 8 * p - context), min(length, 8 * q + context + length % modulus)
        parts.append(network.rows(video[:, :, begin:end])[:, p - begin // 8 : q - begin // 8])
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("length", [229, 230, 231, 232])
def test_a_video_in_passes_has_the_rows_of_the_whole(network: InceptionI3D, length: int) -> None:
    video = clip(length)
    with torch.inference_mode():
        whole = network.rows(video)
        assert close(by_passes(network, video), whole, 1e-5)
        if length == 229:  # and the test can tell: with less it is not so
            assert not close(by_passes(network, video, context=24), whole, 1e-5)
            assert not close(by_passes(network, video, modulus=1), whole, 1e-3)


def test_a_video_of_unknown_length_can_be_completed_to_a_multiple_of_four(
    network: InceptionI3D,
) -> None:
    """Streaming, the passes before the last cannot know L mod 8; then this makes it not matter."""
    video = clip(203)
    video = torch.cat([video, video[:, :, -1:].repeat(1, 1, -203 % 4, 1, 1)], dim=2)
    with torch.inference_mode():
        whole = network.rows(video)
        assert whole.shape[1] == math.ceil(203 / 8) - 1
        first = network.rows(video[:, :, : 40 + 56])[:, :5]
        last = network.rows(video[:, :, 160 - 56 :])[:, 7:]
    assert close(first, whole[:, :5], 1e-5)
    assert close(last, whole[:, 20:], 1e-5)


def test_the_whole_clip_form_gives_the_rows(weights: Path, network: InceptionI3D) -> None:
    backbone = registry.BACKBONES["i3d-whole-clip"]
    encoder = backbone.load(i3d.MODEL, str(weights), "cpu", "float32")
    assert isinstance(encoder, FeatureExtractor)
    frames = np.stack(moving(30, 48, 48))[None]
    pixels = torch.from_numpy(frames).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
    with torch.inference_mode():
        assert close(torch.from_numpy(encoder(frames)), network.rows(pixels))
    assert np.array_equal(encoder.copy_to("cpu")(frames), encoder(frames))


# Files


def test_a_classifier_of_any_size_or_none_and_missing_counters_are_all_right(
    state: State, network: InceptionI3D, tmp_path: Path
) -> None:
    """Charades has 157 classes; files as old as the published ones count no batches."""
    named = {name: value for name, value in state.items() if not name.endswith("tracked")}
    named["logits.conv3d.weight"] = torch.zeros(157, 1024, 1, 1, 1)
    named["logits.conv3d.bias"] = torch.zeros(157)
    without = {name: value for name, value in named.items() if not name.startswith("logits.")}
    with torch.inference_mode():
        expected = network.rows(clip(16))
        for number, held in enumerate((named, without, {"state_dict": named})):
            torch.save(held, tmp_path / f"{number}.pt")
            found = i3d.load_network(str(tmp_path / f"{number}.pt")).rows(clip(16))
            assert torch.equal(found, expected)


def test_a_file_that_does_not_fit_is_told_name_by_name(state: State, tmp_path: Path) -> None:
    wrong = dict(state)
    del wrong["Mixed_3b.b0.bn.weight"]
    wrong["Mixed_6a.bias"] = torch.zeros(1)
    wrong["Conv3d_2b_1x1.conv3d.weight"] = torch.zeros(64, 32, 1, 1, 1)
    torch.save(wrong, tmp_path / "wrong.pt")
    with pytest.raises(UsageError) as caught:
        i3d.load_network(str(tmp_path / "wrong.pt"))
    message = str(caught.value)
    assert f"{tmp_path / 'wrong.pt'}: not weights of Inception-I3D" in message
    assert "missing: Mixed_3b.b0.bn.weight" in message
    assert "unknown: Mixed_6a.bias" in message
    shapes = "(64, 32, 1, 1, 1), expected (64, 64, 1, 1, 1)"
    assert f"of another shape: Conv3d_2b_1x1.conv3d.weight {shapes}" in message


def test_flow_weights_give_features_of_flow_and_are_refused_for_rgb(tmp_path: Path) -> None:
    state = random_state(channels=2)
    torch.save(state, tmp_path / "flow.pt")
    network = i3d.load_network(str(tmp_path / "flow.pt"), channels=2)
    flow = clip(16, 32, channels=2)
    with torch.inference_mode():
        expected = maps(flow, state).mean(dim=(2, 3, 4))
        assert close(network.snippet(flow)[:, 0], expected)
    with pytest.raises(UsageError, match=r"Conv3d_1a_7x7\.conv3d\.weight \(64, 2, 7, 7, 7\)"):
        i3d.load_network(str(tmp_path / "flow.pt"))
