"""The baselines promise what MS-Temba does, and are the networks of their papers."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mstemba.errors import UsageError
from mstemba.model.architectures import ARCHITECTURES, build, make_config
from mstemba.model.baselines.ms_tct import GlobalRelation, LocalRelation, stretch
from mstemba.model.baselines.pdan import DilatedAttention
from mstemba.model.config import MSTCTConfig, PDANConfig
from mstemba.model.inputs import check_features
from mstemba.model.losses import REACH, center_heatmap, detection_loss
from mstemba.model.output import PRIOR, Output
from mstemba.pipeline.options import TrainOptions
from tests.cli.conftest import CLASSES, EXTRACT, current_run, make_workspace
from tests.command_line import mstemba

BASELINES = ("ms-tct", "pdan")
baselines = pytest.mark.parametrize("arch", BASELINES)


def tiny(arch: str, dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    model = build(
        MSTCTConfig(5, 4, arch, (8, 8, 12, 16), 2, heads=2, expand=2, mixed=6, dropout=dropout)
        if arch == "ms-tct"
        else PDANConfig(5, 4, arch, width=8, blocks=3, dropout=dropout)
    )
    with torch.no_grad():
        for parameter in model.parameters():  # biases too, or padding would have nothing to leak
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def prefix(lengths: list[int], steps: int) -> Tensor:
    return torch.arange(steps) < torch.tensor(lengths)[:, None]


def scores(output: Output) -> Tensor:
    """(B, T, C) or (B, T, 2C): all that is scored at every step."""
    centers = [] if output.center_logits is None else [output.center_logits]
    return torch.cat([output.logits, *centers], dim=-1)


@baselines
def test_any_number_of_steps(arch: str) -> None:
    model = tiny(arch)
    for steps in range(1, 20):
        output = model(torch.randn(2, steps, 5))
        assert output.logits.shape == (2, steps, 4)
        assert output.scale_logits == []
        assert output.consistency.shape == ()
        assert output.consistency == 0
        assert torch.isfinite(scores(output)).all()
    assert model(torch.randn(0, 6, 5)).logits.shape == (0, 6, 4)


@baselines
def test_a_clip_scores_the_same_alone_and_padded_in_a_batch(arch: str) -> None:
    model = tiny(arch)
    clips = [torch.randn(n, 5, requires_grad=True) for n in range(1, 20)]
    lengths = [len(clip) for clip in clips]
    for steps in (19, 20, 27):
        batch = torch.stack([F.pad(clip, (0, 0, 0, steps - len(clip))) for clip in clips])
        together = scores(model(batch, prefix(lengths, steps)))
        for i, clip in enumerate(clips):
            alone = scores(model(clip[None]))[0]
            torch.testing.assert_close(together[i, : len(clip)], alone, rtol=0, atol=1e-5)
            real = together[i, : len(clip)].square().sum()
            (found,) = torch.autograd.grad(real, clip, retain_graph=True)
            (expected,) = torch.autograd.grad(alone.square().sum(), clip)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@baselines
def test_what_stands_in_the_padding_changes_nothing(arch: str) -> None:
    model, mask = tiny(arch), prefix([5, 8, 1], 8)
    features, labels = torch.randn(3, 8, 5), (torch.rand(3, 8, 4) > 0.5).float()
    results = []
    for filling in (0.0, 1e6, math.nan):
        model.zero_grad()
        output = model(features.masked_fill(~mask[..., None], filling), mask)
        loss = detection_loss(output, labels.masked_fill(~mask[..., None], filling), mask)
        loss.total.backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        assert len(gradients) == len(list(model.parameters()))
        results.append([scores(output), loss.total, *gradients])
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


@baselines
def test_a_full_mask_is_no_mask(arch: str) -> None:
    model, features = tiny(arch), torch.randn(2, 7, 5)
    full = torch.ones(2, 7, dtype=torch.bool)
    assert torch.equal(model(features, full).logits, model(features).logits)


@baselines
def test_features_of_another_precision_are_converted(arch: str) -> None:
    model, features = tiny(arch), torch.randn(2, 7, 5).half()
    assert torch.equal(model(features).logits, model(features.float()).logits)


@baselines
def test_dropout_acts_in_training_only(arch: str) -> None:
    model, features = tiny(arch, dropout=0.5), torch.randn(2, 9, 5)
    assert not torch.equal(model(features).logits, model(features).logits)
    model.eval()
    assert torch.equal(model(features).logits, model(features).logits)


def test_the_heat_map_is_of_training_only() -> None:
    model, features = tiny("ms-tct"), torch.randn(2, 9, 5)
    assert model(features).center_logits.shape == (2, 9, 4)
    assert model.eval()(features).center_logits is None


# Input that cannot be


@baselines
@pytest.mark.parametrize(
    ("features", "message"),
    [
        (torch.randn(2, 7, 6), r"found shape \(2, 7, 6\), expected \(clips, steps, 5\)"),
        (torch.randn(2, 0, 5), "steps >= 1"),
        (torch.randn(7, 5), r"found shape \(7, 5\)"),
        (torch.ones(2, 7, 5, dtype=torch.int64), "int64"),
        (torch.full((2, 7, 5), math.nan), "found nan in clip 0 at step 0"),
    ],
)
def test_wrong_features_are_named(arch: str, features: Tensor, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        tiny(arch)(features)


@baselines
@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(2, 7), "float32"),
        (torch.ones(2, 6, dtype=torch.bool), r"\(2, 6\)"),
        (torch.tensor([[True] * 7, [False] + [True] * 6]), "before a real one"),
        (torch.tensor([[True] * 7, [False] * 7]), "no real step"),
    ],
)
def test_wrong_masks_are_named(arch: str, mask: Tensor, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        tiny(arch)(torch.randn(2, 7, 5), mask)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("mask", [None, prefix([4, 3], 4), prefix([4, 4], 4)])
def test_the_first_step_that_is_no_number_is_named(value: float, mask: Tensor | None) -> None:
    features = torch.randn(2, 4, 5)
    features[1, 2, 3:] = value
    message = rf"features: found {value} in clip 1 at step 2 \(2 of 5 values\)"
    with pytest.raises(UsageError, match=message):
        check_features(features, mask, 5)


def test_padding_need_not_be_numbers_and_numbers_may_be_huge() -> None:
    mask = prefix([4, 3], 4)
    features = torch.randn(2, 4, 5).masked_fill(~mask[..., None], math.nan)
    assert check_features(features, mask, 5).tolist() == [4, 3]
    assert check_features(torch.full((2, 4, 5), 3e38), None, 5) is None  # their sum overflows
    assert check_features(torch.full((2, 4, 5), 6e4).half(), None, 5) is None
    assert check_features(torch.randn(2, 4, 5), prefix([4, 4], 4), 5) is None


# The networks of the papers


@pytest.mark.parametrize(
    ("arch", "parameters"),
    [
        # The paper's 87 M. The authors' module has 512 * 512 + 512 more: a layer never called.
        ("ms-tct", 87_503_930 - 262_656),
        ("pdan", 5_858_461),
    ],
)
def test_published_sizes(arch: str, parameters: int) -> None:
    with torch.device("meta"):
        model = build(make_config(arch, 1024, 157))
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_options_that_an_architecture_does_not_have_are_left_out(arch: str) -> None:
    config = make_config(arch, 6, 3, dropout=0.25, drop_path=0.5)
    assert (config.arch, config.in_features, config.classes) == (arch, 6, 3)
    assert config.dropout == 0.25
    assert getattr(config, "drop_path", None) == (0.5 if arch.startswith("mstemba") else None)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_architecture_can_be_asked_for(arch: str) -> None:
    assert TrainOptions(arch=arch).arch == arch


def test_an_unknown_architecture_is_named() -> None:
    with pytest.raises(UsageError, match="found 'lstm', expected one of mstemba, mstemba-v3, ms-"):
        make_config("lstm", 6, 3)


@pytest.mark.parametrize("config", [MSTCTConfig(16, 4, mixed=64), PDANConfig(16, 4, width=64)])
def test_an_untrained_network_gives_every_class_the_prior(config: MSTCTConfig | PDANConfig) -> None:
    torch.manual_seed(0)
    probabilities = torch.sigmoid(scores(build(config)(torch.randn(1, 50, 16))))
    assert PRIOR / 4 < probabilities.mean() < PRIOR * 4


@torch.no_grad()
def test_self_attention_by_hand() -> None:
    torch.manual_seed(0)
    layer, lengths = GlobalRelation(6, heads=2), [5, 3]
    x = torch.randn(2, 5, 6)
    found = layer(x, ~prefix(lengths, 5)[..., None])
    for clip, length in enumerate(lengths):
        attended = torch.zeros(length, 6)
        rows = F.linear(x[clip, :length], layer.qkv.weight, layer.qkv.bias)
        for head in (slice(0, 3), slice(3, 6)):
            query, key, value = (part[:, head] for part in rows.split(6, dim=1))
            for t in range(length):
                weights = torch.tensor([query[t] @ key[s] / math.sqrt(3) for s in range(length)])
                attended[t, head] = weights.softmax(0) @ value
        torch.testing.assert_close(found[clip, :length], layer.project(attended))


@torch.no_grad()
def test_local_relation_by_hand() -> None:
    torch.manual_seed(0)
    layer, lengths = LocalRelation(3, expand=2), [5, 1]
    x = torch.randn(2, 5, 3)
    found = layer(x, ~prefix(lengths, 5)[..., None])
    for clip, length in enumerate(lengths):
        inner = layer.expand(x[clip, :length])
        for t in range(length):
            near = layer.conv.bias.clone()
            for tap in range(3):
                if 0 <= t + tap - 1 < length:
                    near += layer.conv.weight[:, 0, tap] * inner[t + tap - 1]
            torch.testing.assert_close(found[clip, t], layer.contract(F.gelu(near)))


@pytest.mark.parametrize("dilation", [1, 2, 4])
@torch.no_grad()
def test_dilated_attention_by_hand(dilation: int) -> None:
    torch.manual_seed(0)
    layer, steps = DilatedAttention(3, dilation), 6
    x = torch.randn(1, 3, steps)
    query, key, value = (
        conv.weight[..., 0] @ x[0] for conv in (layer.query_conv, layer.key_conv, layer.value_conv)
    )
    expected = torch.zeros(1, 3, steps)
    for channel in range(3):
        for t in range(steps):
            at = [s if 0 <= s < steps else None for s in (t - dilation, t, t + dilation)]
            keys = torch.tensor([0.0 if s is None else key[channel, s] for s in at])
            values = torch.tensor([0.0 if s is None else value[channel, s] for s in at])
            weights = (query[channel, t] * keys).softmax(0)
            expected[0, channel, t] = weights @ (values + layer.rel_t[channel, 0])
    torch.testing.assert_close(layer(x), expected)


def test_stretching_is_interpolation_of_each_clip_by_itself() -> None:
    x, steps = torch.randn(4, 6, 3), 21
    before, after = torch.tensor([6, 5, 1, 3]), torch.tensor([21, 20, 1, 12])
    found = stretch(x, before, after, steps)
    for clip in range(4):
        real = x[clip : clip + 1, : before[clip]].transpose(1, 2)
        expected = F.interpolate(real, int(after[clip]), mode="linear", align_corners=False)
        torch.testing.assert_close(found[clip, : after[clip]], expected[0].T)
    assert torch.isfinite(found).all()
    torch.testing.assert_close(
        stretch(x, None, None, steps),
        F.interpolate(x.transpose(1, 2), steps, mode="linear").transpose(1, 2),
    )


@pytest.mark.parametrize(
    "config",
    [
        MSTCTConfig(5, 4, widths=(16, 16, 24, 24), blocks=1, heads=2, expand=4, mixed=16),
        PDANConfig(5, 4, width=32, blocks=3),
    ],
    ids=BASELINES,
)
def test_a_small_task_is_learnt(config: MSTCTConfig | PDANConfig) -> None:
    torch.manual_seed(0)
    model = build(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    mask = prefix([16, 11, 16, 7], 16)
    losses = []
    for _ in range(200):
        features = torch.randn(4, 16, 5)
        # Every class is the sign of one feature at the step before.
        labels = F.pad(features[:, :-1, :4] > 0, (0, 0, 1, 0)).float()
        terms = detection_loss(model(features, mask), labels, mask, reduction="elements")
        optimizer.zero_grad()
        terms.total.backward()
        optimizer.step()
        losses.append(terms.final.item())
    assert sum(losses[-10:]) / 10 < 0.4  # without the features it is log 2 = 0.69 at best


# The heat map of the actions' centres


def labels_of(text: str) -> Tensor:
    """One clip of one class."""
    return torch.tensor([[[float(letter == "#")] for letter in text]])


def heat(distance: float, length: int) -> float:
    return math.exp(-((distance / (length + 0.25)) ** 2))


@pytest.mark.parametrize(
    ("text", "centers", "values"),
    [
        ("..###..", [3], [heat(t - 3, 3) for t in range(7)]),
        ("####.", [2], [heat(t - 2, 4) for t in range(5)]),  # two middles: the later one
        ("...#...", [3], [0, heat(2, 1), heat(1, 1), 1, heat(1, 1), heat(2, 1), 0]),
        ("#.##", [0, 3], [1, heat(1, 1), heat(1, 2), 1]),  # the larger of the two
        (".....", [], [0] * 5),
        ("#", [0], [1]),
    ],
)
def test_heat_map_by_hand(text: str, centers: list[int], values: list[float]) -> None:
    labels = labels_of(text)
    map, middle = center_heatmap(labels, torch.ones(1, len(text), dtype=torch.bool))
    assert middle[0, :, 0].nonzero().flatten().tolist() == centers
    assert map[0, :, 0].tolist() == pytest.approx(values)


def test_heat_map_of_many_actions_equals_one_made_action_by_action() -> None:
    torch.manual_seed(0)
    labels, lengths = (torch.rand(3, 30, 4) > 0.4).float(), [30, 17, 1]
    map, middle = center_heatmap(labels, prefix(lengths, 30))
    expected, centers = torch.zeros(3, 30, 4), torch.zeros(3, 30, 4, dtype=torch.bool)
    for clip, length in enumerate(lengths):
        for c in range(4):
            row = [*labels[clip, :length, c].tolist(), 0.0]
            begin = None
            for t, value in enumerate(row):
                if value and begin is None:
                    begin = t
                if not value and begin is not None:
                    center, size = (begin + t) // 2, t - begin
                    centers[clip, center, c] = True
                    for s in range(max(0, center - REACH * size), 30):
                        if s <= center + REACH * size:
                            known = float(expected[clip, s, c])
                            expected[clip, s, c] = max(known, heat(s - center, size))
                    begin = None
    assert torch.equal(middle, centers)
    torch.testing.assert_close(map, expected)


def with_centers(logits: Tensor, centers: Tensor) -> Output:
    return Output(logits, [], torch.tensor(0.0), centers)


def test_heat_map_loss_by_hand() -> None:
    labels, mask = labels_of("..#.####"), prefix([4], 8)
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0, 9.0, 9.0, 9.0, 9.0]).view(1, 8, 1)
    p = torch.sigmoid(logits[0, :4, 0])
    others = [(heat(2, 1), p[0]), (heat(1, 1), p[1]), (heat(1, 1), p[3])]
    expected = -((1 - p[2]) ** 2) * p[2].log()
    expected = expected - sum((1 - g) ** 4 * q**2 * (1 - q).log() for g, q in others)
    output = with_centers(torch.zeros(1, 8, 1), logits)
    terms = detection_loss(output, labels, mask, heatmap_weight=3)
    assert terms.heatmap.item() == pytest.approx(expected.item())
    assert terms.total.item() == pytest.approx(terms.final.item() + 3 * expected.item())


def test_heat_map_loss_is_a_mean_over_actions() -> None:
    one, none = labels_of("..#.."), labels_of(".....")
    loss = [
        detection_loss(
            with_centers(torch.zeros_like(x), torch.ones_like(x)), x, heatmap_weight=1
        ).heatmap.item()
        for x in (one, torch.cat([one, one]), none)
    ]
    assert loss[1] == pytest.approx(loss[0])
    p = 1 / (1 + math.exp(-1))
    assert loss[2] == pytest.approx(-5 * p**2 * math.log(1 - p))


def test_without_a_heat_map_there_is_no_such_term() -> None:
    output = Output(torch.zeros(1, 3, 2), [], torch.tensor(0.0))
    terms = detection_loss(output, torch.zeros(1, 3, 2))
    assert terms.heatmap is None
    assert terms.total == terms.final


# The commands


@pytest.mark.slow
@baselines
def test_the_commands_train_evaluate_and_detect(arch: str, tmp_path: Path) -> None:
    folder = make_workspace(tmp_path, ("training", "training", "testing"))
    mstemba(*EXTRACT, cwd=folder)
    mstemba("train", "--arch", arch, "--min-steps", "2", "--epochs", "1", cwd=folder)
    run = current_run(folder)
    assert run.name.startswith(f"{arch}-")
    assert json.loads((run / "last" / "config.json").read_text())["model"]["arch"] == arch
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert any("heatmap" in row for row in logged) == (arch == "ms-tct")
    result = json.loads(mstemba("evaluate", "--json", "-", cwd=folder).stdout)
    assert 0 < result["map"] <= 100
    mstemba("detect", "videos/v2.mp4", "--threshold", "0.001", cwd=folder)
    found = json.loads((folder / "detections" / "v2.json").read_text())
    assert found["segments"]
    assert found["classes"] == CLASSES
    assert mstemba("train", "--arch", arch, "--min-steps", "2", "--epochs", "1", cwd=folder)
    assert current_run(folder) == run
