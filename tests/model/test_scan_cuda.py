"""The adapter to mamba-ssm and causal-conv1d, and both GPU backends where there is a GPU.

Without a GPU the two packages are replaced by functions written here from their documentation, so
that what is tested is the marshalling alone: layouts, types, directions, gradients. The real
kernels are only run by the tests marked ``needs_gpu``.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mstemba.model.scan import reference
from mstemba.model.scan.backends import list_backends
from mstemba.model.scan.operations import causal_convolution, selective_scan
from mstemba.model.scan.reference import Reverse
from tests.model.scans import arguments, assert_close, with_gradients

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
DIRECTIONS: list[Reverse] = [False, True, "both"]
GPU_BACKENDS = [b.name for b in list_backends() if b.available and b.name in ("triton", "cuda")]


def documented_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> Tensor:
    """u, delta, z: (batch, dim, L); A: (dim, S); B, C: (batch, groups, S, L); D, bias: (dim,)."""
    assert delta_softplus
    assert delta_bias is not None
    assert D is not None
    assert A.dtype == D.dtype == delta_bias.dtype == torch.float32
    assert all(t.dtype == u.dtype for t in (delta, B, C) + (() if z is None else (z,)))
    assert all(t.stride(-1) == 1 for t in (u, delta, B, C, D, delta_bias))
    step = F.softplus(delta.float() + delta_bias[:, None])
    group = A.shape[0] // B.shape[1]
    B, C = (t.float().repeat_interleave(group, 1) for t in (B, C))
    h = torch.zeros(*u.shape[:2], A.shape[1])
    columns = []
    for t in range(u.shape[2]):
        h = torch.exp(step[:, :, t, None] * A) * h
        h = h + (step[:, :, t] * u[:, :, t].float())[..., None] * B[..., t]
        columns.append((h * C[..., t]).sum(-1))
    y = torch.stack(columns, -1) + D[:, None] * u.float()
    return (y if z is None else y * F.silu(z.float())).to(u.dtype)


def documented_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None
) -> Tensor:
    """x: (batch, dim, L), time or channels contiguous; weight: (dim, 2 to 4); bias: (dim,)."""
    assert activation == "silu"
    assert bias is not None
    assert bias.dtype == weight.dtype
    assert 2 <= weight.shape[1] <= 4
    assert 1 in x.stride()[1:]
    padded = F.pad(x.to(weight.dtype), (weight.shape[1] - 1, 0))
    return F.silu(F.conv1d(padded, weight[:, None], bias, groups=len(weight))).to(x.dtype)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The adapter, on top of the documented functions."""
    replaced: dict[str, dict[str, Callable[..., Tensor]]] = {
        "mamba_ssm": {},
        "mamba_ssm.ops": {},
        "mamba_ssm.ops.selective_scan_interface": {"selective_scan_fn": documented_scan},
        "causal_conv1d": {"causal_conv1d_fn": documented_convolution},
    }
    for name, functions in replaced.items():
        module = ModuleType(name)
        vars(module).update(functions)
        monkeypatch.setitem(sys.modules, name, module)
    adapter = "mstemba.model.scan.cuda"
    monkeypatch.delitem(sys.modules, adapter, raising=False)
    yield importlib.import_module(adapter)
    sys.modules.pop(adapter, None)


def convolution_arguments(
    sets: int, n: int, length: int, channels: int, taps: int, reverse: Reverse
) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    given = sets // 2 if reverse == "both" else sets
    shapes = [(given, n, length, channels), (sets, channels, taps), (sets, channels)]
    return [torch.randn(*shape, generator=g).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("reverse", DIRECTIONS)
@pytest.mark.parametrize("n", [0, 2])
def test_scan_is_marshalled(cuda: ModuleType, reverse: Reverse, n: int) -> None:
    tensors = arguments(4, n, 9, 5, 3, reverse)
    expected = with_gradients(lambda *t: reference.scan(*t, reverse, None), tensors)
    assert_close(with_gradients(lambda *t: cuda.scan(*t, reverse, None), tensors), expected)


@pytest.mark.parametrize("reverse", DIRECTIONS)
def test_scan_without_gate_of_slices_in_half_precision(cuda: ModuleType, reverse: Reverse) -> None:
    u, delta, A, B, C, D, _, bias = (t.detach() for t in arguments(2, 1, 7, 6, 4, reverse))
    B, C = torch.cat([B, C], -1).split(4, -1)
    halves = [t.bfloat16() for t in (u, delta, B, C)]
    y = cuda.scan(*halves[:2], A, *halves[2:], D, None, bias, reverse, None)
    expected = reference.scan(*halves[:2], A, *halves[2:], D, None, bias, reverse, None)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, expected, rtol=2**-7, atol=2**-6)  # each direction is rounded


@pytest.mark.parametrize("reverse", DIRECTIONS)
@pytest.mark.parametrize("taps", [1, 2, 4, 5])
@pytest.mark.parametrize("n", [0, 2])
def test_convolution_is_marshalled(cuda: ModuleType, reverse: Reverse, taps: int, n: int) -> None:
    tensors = convolution_arguments(2, n, 9, 5, taps, reverse)
    expected = with_gradients(lambda *t: reference.convolve(*t, reverse), tensors)
    assert_close(with_gradients(lambda *t: cuda.convolve(*t, reverse), tensors), expected)


@needs_gpu
@pytest.mark.parametrize("backend", GPU_BACKENDS)
@pytest.mark.parametrize("reverse", DIRECTIONS)
def test_gpu_scan_equals_reference(backend: str, reverse: Reverse) -> None:
    tensors = arguments(2, 1, 2500, 96, 16, reverse, "cuda")

    def run(name: str) -> list[Tensor]:
        return with_gradients(lambda *t: selective_scan(*t, reverse=reverse, backend=name), tensors)

    # Rounding adds up over as many steps as the slowest state remembers, also in the reference.
    assert_close(run(backend), run("reference"), tolerance=1e-4)


@needs_gpu
@pytest.mark.parametrize("backend", GPU_BACKENDS)
@pytest.mark.parametrize("reverse", DIRECTIONS)
def test_gpu_convolution_equals_reference(backend: str, reverse: Reverse) -> None:
    tensors = [t.detach().cuda() for t in convolution_arguments(2, 2, 2500, 96, 4, reverse)]
    tensors = [t.requires_grad_() for t in tensors]

    def run(name: str) -> list[Tensor]:
        return with_gradients(
            lambda *t: causal_convolution(*t, reverse=reverse, backend=name), tensors
        )

    assert_close(run(backend), run("reference"), tolerance=1e-4)


@needs_gpu
@pytest.mark.skipif("triton" not in GPU_BACKENDS, reason="Triton cannot run here")
def test_triton_is_reproducible_to_the_bit_on_the_gpu() -> None:
    tensors = arguments(2, 2, 2500, 96, 16, "both", "cuda")
    runs = [
        with_gradients(lambda *t: selective_scan(*t, reverse="both", backend="triton"), tensors)
        for _ in range(3)
    ]
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))
