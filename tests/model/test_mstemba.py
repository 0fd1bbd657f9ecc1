"""What the network promises for any length, padding and initialisation."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mstemba.errors import UsageError
from mstemba.model.config import ModelConfig
from mstemba.model.convolution import convolve, convolve_as_product
from mstemba.model.losses import detection_loss
from mstemba.model.mamba import CHUNK, BidirectionalMamba, MambaBlock
from mstemba.model.mstemba import MSTemba
from mstemba.model.output import PRIOR, Output
from mstemba.model.scan import backends, reference

KINDS = [("mstemba", "interleaved"), ("mstemba", "contiguous"), ("mstemba-v3", "interleaved")]
kinds = pytest.mark.parametrize(("arch", "split"), KINDS)


def tiny(arch: str = "mstemba", split: str = "interleaved", **options: float) -> MSTemba:
    torch.manual_seed(0)
    config = ModelConfig(5, 4, arch, (8, 12, 16), state=3, split=split, **options)
    model = MSTemba(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.endswith("_log"):  # biases too, or padding would have nothing to leak
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def prefix(lengths: list[int], steps: int) -> Tensor:
    return torch.arange(steps) < torch.tensor(lengths)[:, None]


@kinds
def test_any_number_of_steps(arch: str, split: str) -> None:
    model = tiny(arch, split)
    for steps in range(1, 14):
        output = model(torch.randn(2, steps, 5))
        assert output.logits.shape == (2, steps, 4)
        assert [tuple(x.shape) for x in output.scale_logits] == [(2, steps, 4)] * (
            3 if arch == "mstemba-v3" else 0
        )
        assert output.consistency.shape == ()
        assert torch.isfinite(output.logits).all()
        assert torch.isfinite(output.consistency)
    nothing = model(torch.randn(0, 6, 5))
    assert nothing.logits.shape == (0, 6, 4)
    assert nothing.consistency == 0


@kinds
def test_a_clip_scores_the_same_alone_and_padded_in_a_batch(arch: str, split: str) -> None:
    model = tiny(arch, split)
    clips = [torch.randn(n, 5, requires_grad=True) for n in range(1, 14)]
    lengths = [len(clip) for clip in clips]
    for steps in (13, 14, 17):
        batch = torch.stack([F.pad(clip, (0, 0, 0, steps - len(clip))) for clip in clips])
        padded = model(batch, prefix(lengths, steps))
        together = [padded.logits, *padded.scale_logits]
        consistency = 0.0
        for i, clip in enumerate(clips):
            alone = model(clip[None])
            consistency += alone.consistency.item() / len(clips)
            for a, b in zip(together, [alone.logits, *alone.scale_logits], strict=True):
                torch.testing.assert_close(a[i, : len(clip)], b[0], rtol=0, atol=1e-5)
            real = padded.logits[i, : len(clip)].square().sum()
            (found,) = torch.autograd.grad(real, clip, retain_graph=True)
            (expected,) = torch.autograd.grad(alone.logits.square().sum(), clip)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert padded.consistency.item() == pytest.approx(consistency, abs=1e-5)


@kinds
def test_what_stands_in_the_padding_changes_nothing(arch: str, split: str) -> None:
    model, mask = tiny(arch, split), prefix([5, 8, 1], 8)
    features, labels = torch.randn(3, 8, 5), torch.zeros(3, 8, 4)
    results = []
    for filling in (0.0, 1e6, math.nan):
        model.zero_grad()
        output = model(features.masked_fill(~mask[..., None], filling), mask)
        loss = detection_loss(output, labels.masked_fill(~mask[..., None], filling), mask)
        loss.total.backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        results.append([output.logits, loss.total, *gradients])
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


@kinds
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_scoring_in_chunks_is_one_pass(
    monkeypatch: pytest.MonkeyPatch, arch: str, split: str, backend: str
) -> None:
    model = tiny(arch, split).eval()
    model.set_scan_backend(backend)
    features, mask = torch.randn(2, 61, 5), prefix([61, 40], 61)
    with torch.no_grad():
        expected = model(features, mask)
        for chunk in (7, 16, 60):
            monkeypatch.setitem(CHUNK, "cpu", chunk)
            found = model(features, mask)
            for a, b in zip(found.scale_logits, expected.scale_logits, strict=True):
                torch.testing.assert_close(a[mask], b[mask], rtol=0, atol=1e-5)
            torch.testing.assert_close(found.logits[mask], expected.logits[mask], rtol=0, atol=1e-5)
            torch.testing.assert_close(found.consistency, expected.consistency)


def test_released_padding_is_zeros_that_are_scanned() -> None:
    masked, features = tiny(), torch.randn(2, 9, 5)
    released = MSTemba(replace(masked.config, padding="released"))
    released.load_state_dict(masked.state_dict())
    mask = prefix([9, 6], 9)
    zeroed = features.masked_fill(~mask[..., None], 0)
    found = released(features.masked_fill(~mask[..., None], math.nan), mask).logits
    assert torch.equal(found, masked(zeroed).logits)
    assert not torch.allclose(found[1, :6], masked(features, mask).logits[1, :6], atol=1e-4)


def test_chunks_are_not_used_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    model, features = tiny(), torch.randn(1, 30, 5)
    expected = model(features).logits
    monkeypatch.setitem(CHUNK, "cpu", 7)
    assert torch.equal(model(features).logits, expected)


@pytest.mark.parametrize("arch", ["mstemba", "mstemba-v3"])
def test_autocast_stays_close_in_training_and_in_chunks(
    monkeypatch: pytest.MonkeyPatch, arch: str
) -> None:
    model, features, mask = tiny(arch), torch.randn(2, 40, 5), prefix([40, 21], 40)
    exact = model(features, mask).logits[mask]
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(features, mask).logits[mask]
        with torch.no_grad():
            monkeypatch.setitem(CHUNK, "cpu", 7)
            in_chunks = model(features, mask).logits[mask]
    assert rounded.dtype == torch.bfloat16
    for found in (rounded, in_chunks):
        assert (found - exact).abs().max() < 0.05 * exact.abs().max()
    (gradient,) = torch.autograd.grad(rounded.float().square().sum(), model.proj.weight)
    assert torch.isfinite(gradient).all()


def test_float64_is_not_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    model, features = tiny().double().eval(), torch.randn(1, 40, 5, dtype=torch.float64)
    with torch.no_grad():
        whole = model(features).logits
        monkeypatch.setitem(CHUNK, "cpu", 7)
        torch.testing.assert_close(model(features).logits, whole, rtol=0, atol=1e-12)


def test_a_backend_that_cannot_carry_scores_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    model, features = tiny().eval(), torch.randn(1, 40, 5)
    # The reference under the name of the backend that cannot start from a state.
    monkeypatch.setitem(backends.BACKENDS, "cuda", ("", lambda: None))
    monkeypatch.setitem(backends.DEVICES, "cuda", "cpu")
    monkeypatch.setitem(sys.modules, "mstemba.model.scan.cuda", reference)
    monkeypatch.setitem(CHUNK, "cpu", 7)
    with torch.no_grad():
        expected = model(features).logits
        model.set_scan_backend("cuda")
        torch.testing.assert_close(model(features).logits, expected, rtol=0, atol=1e-5)


def test_a_full_mask_is_no_mask() -> None:
    model, features = tiny(), torch.randn(2, 7, 5)
    full = torch.ones(2, 7, dtype=torch.bool)
    assert torch.equal(model(features, full).logits, model(features).logits)


def test_features_of_another_precision_are_converted() -> None:
    model, features = tiny(), torch.randn(2, 7, 5).half()
    assert torch.equal(model(features).logits, model(features.float()).logits)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (torch.randn(2, 7, 6), r"found shape \(2, 7, 6\), expected \(clips, steps, 5\)"),
        (torch.randn(2, 0, 5), "steps >= 1"),
        (torch.randn(7, 5), r"found shape \(7, 5\)"),
        (torch.ones(2, 7, 5, dtype=torch.int64), "int64"),
        (torch.ones(2, 7, 5).index_fill(1, torch.tensor(3), math.nan), "nan in clip 0 at step 3"),
        (torch.ones(1, 7, 5) / torch.tensor([1.0, 1, 1, 1, 0]), "inf in clip 0 at step 0"),
    ],
)
def test_wrong_features_are_named(features: Tensor, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        tiny()(features)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(2, 7), "float32"),
        (torch.ones(2, 6, dtype=torch.bool), r"\(2, 6\)"),
        (torch.tensor([[True] * 7, [False] + [True] * 6]), "before a real one"),
        (torch.tensor([[True] * 7, [False] * 7]), "no real step"),
    ],
)
def test_wrong_masks_are_named(mask: Tensor, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        tiny()(torch.randn(2, 7, 5), mask)


@pytest.mark.parametrize("arch", ["mstemba", "mstemba-v3"])
def test_initial_step_sizes_matrix_and_prior(arch: str) -> None:
    model = MSTemba(ModelConfig(16, 4, arch, (32, 48, 64)))
    mixers = [m for m in model.modules() if isinstance(m, BidirectionalMamba)]
    assert len(mixers) == (4 if arch == "mstemba" else 7)
    for mixer in mixers:
        for projection in (mixer.dt_proj, mixer.dt_proj_b):
            dt = F.softplus(projection.bias.detach())
            assert 1e-3 * 0.999 <= dt.min() < 0.003
            assert 0.04 < dt.max() <= 0.1 * 1.001
            assert abs(dt.log().mean() - math.log(1e-2)) < 0.6
        torch.testing.assert_close(mixer.A_log[0].exp(), torch.arange(1.0, 17.0))
    probability = torch.sigmoid(model(torch.randn(1, 50, 16)).logits)
    assert PRIOR / 4 < probability.mean() < PRIOR * 4


def test_drop_path_and_dropout_act_in_training_only() -> None:
    model, features = tiny(drop_path=0.5, dropout=0.5), torch.randn(2, 9, 5)
    model.eval()
    assert torch.equal(model(features).logits, model(features).logits)
    model.train()
    assert not torch.equal(model(features).logits, model(features).logits)


def test_drop_path_keeps_the_mean() -> None:
    block = MambaBlock(4, drop_path=0.25)
    kept = block.drop(torch.ones(2, 10_000, 1, 1))
    assert sorted(set(kept.flatten().tolist())) == pytest.approx([0, 4 / 3])
    assert kept.mean().item() == pytest.approx(1, abs=0.03)


def test_a_block_sees_both_past_and_future() -> None:
    block, x = MambaBlock(4), torch.randn(1, 9, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(block(x)[0, 4, 0], x)
    assert (gradient.abs().sum(-1) > 0).all()


def output_of(*scales: Tensor) -> Output:
    return Output(scales[0], list(scales[1:]), torch.tensor(0.5))


def test_loss_by_hand() -> None:
    logits, labels = torch.zeros(2, 3, 4), torch.zeros(2, 3, 4)
    mask = prefix([3, 1], 3)
    terms = detection_loss(
        output_of(logits, logits), labels, mask, auxiliary_weight=2, consistency_weight=3
    )
    assert terms.final.item() == pytest.approx(4 * math.log(2))
    assert terms.total.item() == pytest.approx(4 * math.log(2) * 3 + 1.5)
    elements = detection_loss(output_of(logits), labels, mask, reduction="elements")
    assert elements.final.item() == pytest.approx(math.log(2))
    released = detection_loss(output_of(logits), labels, mask, reduction="released")
    assert released.final.item() == pytest.approx(6 * 4 * math.log(2) / 4)
    assert detection_loss(output_of(logits), labels.int()).auxiliary == ()


def test_what_is_padded_has_no_part_in_the_loss() -> None:
    mask = prefix([3, 1], 3)
    logits, labels = torch.randn(2, 3, 4), torch.ones(2, 3, 4)
    expected = detection_loss(output_of(logits), labels, mask).total
    padded = [t.masked_fill(~mask[..., None], math.nan).requires_grad_() for t in (logits, labels)]
    found = detection_loss(output_of(padded[0]), padded[1].detach(), mask).total
    assert torch.equal(found, expected)
    (gradient,) = torch.autograd.grad(found, padded[0])
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("steps", [1, 2, 3, 9])
@pytest.mark.parametrize(
    ("taps", "stride", "dilation"),
    [(1, 1, 1), (1, 2, 1), (3, 1, 1), (3, 1, 2), (3, 1, 3), (3, 2, 1), (5, 1, 2)],
)
def test_a_convolution_as_a_matrix_product_is_the_layer(
    taps: int, stride: int, dilation: int, steps: int
) -> None:
    padding = taps // 2 * dilation
    layer = torch.nn.Conv1d(4, 6, taps, stride, padding, dilation, dtype=torch.float64)
    x = torch.randn(2, steps, 4, dtype=torch.float64, requires_grad=True)
    results = []
    for function in (convolve, convolve_as_product):
        y = function(x, layer)
        results.append([y, *torch.autograd.grad(torch.cos(y).sum(), [x, *layer.parameters()])])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)


def raises(message: str, call: Callable[[], object]) -> None:
    with pytest.raises(UsageError, match=message):
        call()


def test_wrong_loss_inputs_are_named() -> None:
    output, labels = output_of(torch.zeros(2, 3, 4)), torch.zeros(2, 3, 4)
    none = torch.zeros(2, 3, dtype=torch.bool)
    raises(r"\(2, 3\), expected \(2, 3, 4\)", lambda: detection_loss(output, labels[..., 0]))
    raises("no real step", lambda: detection_loss(output, labels, none))
    raises("float32", lambda: detection_loss(output, labels, none.float()))
    raises("'mean'", lambda: detection_loss(output, labels, reduction="mean"))  # type: ignore
