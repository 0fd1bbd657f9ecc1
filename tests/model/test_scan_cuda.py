"""The adapter to mamba-ssm and causal-conv1d, and both GPU backends where there is a GPU.

Without a GPU the two packages are replaced by functions written here from their documentation, so
that what is tested is the marshalling alone: layouts, types, directions, gradients. The real
kernels are only run by the tests marked ``gpu``.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
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

DIRECTIONS: list[Reverse] = [False, True, "both"]
GPU_BACKENDS = [b.name for b in list_backends() if b.available and b.name in ("triton", "cuda")]


def scan_once(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor | None,
    delta_bias: Tensor,
) -> tuple[Tensor, Tensor]:
    """y before and after the gate, with gradients."""
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
    return y, y if z is None else y * F.silu(z.float())


class CompiledScan(ModuleType):
    """What selective_scan.cpp of mamba-ssm 2.3 takes and returns, as its checks have it.

    u, delta, z: (batch, dim, L); A: (dim, S); B, C: (batch, groups, S, L); D, bias: (dim,).
    """

    @staticmethod
    def fwd(*given: object) -> list[Tensor]:
        *inputs, softplus = given
        assert softplus is True
        u, delta, A, B, C, D, z, bias = inputs
        assert A.dtype == D.dtype == bias.dtype == torch.float32
        assert all(t.dtype == u.dtype for t in (delta, B, C) + (() if z is None else (z,)))
        assert all(t.stride(-1) == 1 for t in (u, delta, B, C, D, bias))
        y, gated = scan_once(*inputs)
        ends = torch.zeros(*u.shape[:2], 1, 2 * A.shape[1])
        return [y.to(u.dtype), ends] + ([] if z is None else [gated.to(u.dtype)])

    @staticmethod
    def bwd(*given: object) -> list[Tensor]:
        *inputs, dout, ends, out, dz, softplus, again = given
        u, A, z = inputs[0], inputs[2], inputs[6]
        assert (dz, softplus, again) == (None, True, False)
        assert dout.stride(-1) == 1
        assert dout.dtype == u.dtype
        assert ends.shape == (*u.shape[:2], 1, 2 * A.shape[1])
        assert out is None if z is None else out.shape == u.shape
        own = [None if t is None else t.detach().requires_grad_() for t in inputs]
        with torch.enable_grad():
            _, y = scan_once(*own)
        wanted = [t for t in own if t is not None]
        found = dict(
            zip(map(id, wanted), torch.autograd.grad(y, wanted, dout.float()), strict=True)
        )
        du, ddelta, dA, dB, dC, dD, dz, dbias = (None if t is None else found[id(t)] for t in own)
        return [du, ddelta, dA, dB, dC, dD, dbias] + ([] if z is None else [dz])


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
    """The adapter on top of stand-ins, where mamba_ssm itself cannot be imported."""
    monkeypatch.setitem(sys.modules, "mamba_ssm", None)
    monkeypatch.setitem(sys.modules, "selective_scan_cuda", CompiledScan("selective_scan_cuda"))
    convolution = ModuleType("causal_conv1d")
    convolution.causal_conv1d_fn = documented_convolution  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "causal_conv1d", convolution)
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


@pytest.mark.gpu
@pytest.mark.parametrize("backend", GPU_BACKENDS)
@pytest.mark.parametrize("reverse", DIRECTIONS)
def test_gpu_scan_equals_reference(backend: str, reverse: Reverse) -> None:
    tensors = arguments(2, 1, 2500, 96, 16, reverse, "cuda")

    def run(name: str) -> list[Tensor]:
        return with_gradients(lambda *t: selective_scan(*t, reverse=reverse, backend=name), tensors)

    # Rounding adds up over as many steps as the slowest state remembers, also in the reference.
    assert_close(run(backend), run("reference"), tolerance=1e-4)


@pytest.mark.gpu
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


@pytest.mark.gpu
@pytest.mark.skipif("triton" not in GPU_BACKENDS, reason="Triton cannot run here")
def test_triton_is_reproducible_to_the_bit_on_the_gpu() -> None:
    tensors = arguments(2, 2, 2500, 96, 16, "both", "cuda")
    runs = [
        with_gradients(lambda *t: selective_scan(*t, reverse="both", backend="triton"), tensors)
        for _ in range(3)
    ]
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))
