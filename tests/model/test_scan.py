"""The compiled scan against the readable one, and what both promise."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mstemba.errors import UsageError
from mstemba.model.scan import backends, choose, selective_scan

NAMES = [backend.name for backend in backends() if backend.available]
CPU = torch.device("cpu")
needs_cpu = pytest.mark.skipif("cpu" not in NAMES, reason="Numba is not installed")


def arguments(n: int, length: int, channels: int, states: int, seed: int = 0) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    steps, signal = (n, length, states), (n, length, channels)
    A = -torch.rand(channels, states, generator=g) * 4 - 0.01
    tensors = [normal(*signal), normal(*signal) - 2, A, normal(*steps), normal(*steps)]
    tensors += [normal(channels), normal(*signal), normal(channels)]
    return [tensor.requires_grad_() for tensor in tensors]


def run(tensors: list[Tensor], backend: str, reverse: bool = False) -> list[Tensor]:
    """The output, then the gradient of a fixed weighting of it by every input."""
    y = selective_scan(*tensors, reverse=reverse, backend=backend)
    weights = torch.cos(torch.arange(y.numel(), dtype=torch.float32)).view_as(y)
    return [y.detach(), *torch.autograd.grad((y * weights).sum(), tensors)]


def assert_close(found: list[Tensor], expected: list[Tensor], tolerance: float = 1e-5) -> None:
    for index, (a, b) in enumerate(zip(found, expected, strict=True)):
        limit = tolerance * max(1.0, float(b.abs().max()) if b.numel() else 0.0)
        torch.testing.assert_close(a, b, rtol=0, atol=limit, msg=lambda m, i=index: f"{i}: {m}")


@needs_cpu
@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(0, 3),
    length=st.integers(1, 40),
    channels=st.integers(1, 40),
    states=st.integers(1, 17),
    reverse=st.booleans(),
)
def test_cpu_equals_reference(
    n: int, length: int, channels: int, states: int, reverse: bool
) -> None:
    tensors = arguments(n, length, channels, states)
    assert_close(run(tensors, "cpu", reverse), run(tensors, "reference", reverse))


@needs_cpu
def test_cpu_equals_reference_over_several_blocks_and_threads() -> None:
    torch.set_num_threads(2)
    tensors = arguments(2, 200, 150, 16)
    assert_close(run(tensors, "cpu"), run(tensors, "reference"))


@pytest.mark.parametrize("backend", NAMES)
def test_reverse_is_flip_scan_flip(backend: str) -> None:
    u, delta, A, B, C, D, z, bias = arguments(2, 19, 7, 3)
    there = selective_scan(u, delta, A, B, C, D, z, bias, reverse=True, backend=backend)
    flipped = (t.flip(1) for t in (u, delta, B, C, z))
    fu, fdelta, fB, fC, fz = flipped
    back = selective_scan(fu, fdelta, A, fB, fC, D, fz, bias, backend=backend).flip(1)
    torch.testing.assert_close(there, back)


def test_reference_gradient_is_right() -> None:
    tensors = [t.detach().double().requires_grad_() for t in arguments(1, 4, 2, 3)]
    assert torch.autograd.gradcheck(lambda *t: selective_scan(*t, backend="reference"), tensors)


@pytest.mark.parametrize("backend", NAMES)
def test_one_step_by_hand(backend: str) -> None:
    one = torch.ones(1, 1, 1)
    y = selective_scan(
        3 * one, one, -torch.ones(1, 1), 2 * one, 5 * one, torch.ones(1), backend=backend
    )
    delta = np.log1p(np.e)
    assert y.item() == pytest.approx(5 * delta * 2 * 3 + 3, rel=1e-6)


@pytest.mark.parametrize("backend", NAMES)
def test_non_contiguous_and_optional_inputs(backend: str) -> None:
    u, delta, A, B, C, *_ = (t.detach() for t in arguments(2, 11, 6, 4))
    expected = selective_scan(u, delta, A, B, C, backend="reference")
    strided = [t.transpose(0, -1).contiguous().transpose(0, -1) for t in (u, delta, A, B, C)]
    assert not strided[0].is_contiguous()
    torch.testing.assert_close(selective_scan(*strided, backend=backend), expected)


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(backend: str, dtype: torch.dtype) -> None:
    halves = [t.detach().to(dtype) for t in arguments(1, 9, 5, 3)]
    y = selective_scan(*halves, backend=backend)
    assert y.dtype == dtype
    expected = selective_scan(*(t.float() for t in halves), backend=backend)
    torch.testing.assert_close(y, expected.to(dtype), rtol=0, atol=0)


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("where", [0, 1, 3, 4])
def test_nan_and_infinity_are_not_hidden(backend: str, where: int) -> None:
    for bad in (float("nan"), float("inf")):
        tensors = [t.detach() for t in arguments(1, 9, 70, 3)]
        tensors[where][0, 4, 0] = bad
        y = selective_scan(*tensors, backend=backend)
        assert torch.isfinite(y[0, :4]).all()
        assert not torch.isfinite(y[0, 4, 0])


@needs_cpu
def test_cpu_is_reproducible_to_the_bit_for_any_number_of_threads() -> None:
    tensors = arguments(2, 300, 192, 16)
    results = []
    for threads in (1, 2, 2, 3):
        torch.set_num_threads(threads)
        results.append(run(tensors, "cpu"))
    for other in results[1:]:
        for a, b in zip(results[0][:6], other[:6], strict=True):  # the kernels' own results
            assert torch.equal(a, b)


@needs_cpu
def test_cpu_may_be_entered_from_several_threads() -> None:
    torch.set_num_threads(2)
    tensors = arguments(2, 200, 128, 8)
    expected = run(tensors, "cpu")
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: run(tensors, "cpu"), range(8)):
            assert torch.equal(found[0], expected[0])
            assert_close(found, expected)


@needs_cpu
def test_cpu_exponential_is_exact_to_float32_rounding() -> None:
    numba = pytest.importorskip("numba")
    from mstemba.model.scan import cpu

    exponential = cpu._exp

    @numba.njit
    def evaluate(x, out):  # type: ignore[no-untyped-def]
        for i in range(x.size):
            out[i] = exponential(x[i])

    x = np.concatenate([np.linspace(-86.9, 0, 200_001), -np.logspace(-9, 1.9, 20_001)])
    x = x.astype(np.float32)
    out = np.empty_like(x)
    evaluate(x, out)
    assert np.abs(out / np.exp(x.astype(np.float64)) - 1).max() < 1e-7
    edge = np.array([-np.inf, -1e30, -0.0, np.nan], np.float32)
    out = np.empty_like(edge)
    evaluate(edge, out)
    assert out[0] == out[1] < 2e-38
    assert out[2] == 1
    assert np.isnan(out[3])


def test_auto_takes_the_compiled_scan_for_float32_on_the_cpu() -> None:
    assert choose("auto", CPU) == ("cpu" if "cpu" in NAMES else "reference")
    assert choose("auto", CPU, torch.float64) == "reference"
    assert choose("auto", torch.device("cuda")) == "reference"


def test_a_backend_that_cannot_run_is_named_with_the_choices() -> None:
    with pytest.raises(UsageError, match=r"'warp'.*auto.*reference"):
        choose("warp", CPU)
    with pytest.raises(UsageError, match=r"'cpu' cannot run: .*; choices: auto"):
        choose("cpu", torch.device("cuda"))


def test_shapes_that_do_not_fit_are_named() -> None:
    u, delta, A, B, C, *_ = arguments(2, 5, 4, 3)
    with pytest.raises(UsageError, match=r"B has shape \(2, 4, 3\), expected \(2, 5, 3\)"):
        selective_scan(u, delta, A, B[:, 1:], C)
    with pytest.raises(UsageError, match="L >= 1"):
        selective_scan(u[:, :0], delta[:, :0], A, B[:, :0], C[:, :0])
