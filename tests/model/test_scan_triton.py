"""The Triton kernels against the readable scan: on a GPU if there is one, else interpreted.

Triton's interpreter (TRITON_INTERPRET=1, set by tests/conftest.py) runs the kernels in NumPy, one
program after another. That shows what they compute; that they compile is a test of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="Triton has no wheels for Windows and macOS")

from mstemba.model.scan import reference
from mstemba.model.scan import triton as kernels
from mstemba.model.scan.reference import Reverse
from mstemba.model.scan.triton_kernels import run_small_kernel
from tests.model import scans
from tests.model.scans import assert_close, with_gradients

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DIRECTIONS: list[Reverse] = [False, True, "both"]
# The interpreter cuts bfloat16 off where a GPU rounds it.
ROUNDING = {torch.bfloat16: 0 if DEVICE == "cuda" else 2**-7, torch.float16: 0}

pytestmark = pytest.mark.skipif(
    DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1",
    reason="no GPU, and no interpreter: Triton before 3.9 has none that works with NumPy 2.4",
)


def arguments(*sizes: Any) -> list[Tensor]:
    """Sets, sequences, steps, channels, states and the direction, on the device of this test."""
    return scans.arguments(*sizes, device=DEVICE)


def assert_scans_like_reference(tensors: list[Tensor], reverse: Reverse) -> None:
    found = with_gradients(lambda *t: kernels.scan(*t, reverse, None), tensors)
    assert_close(found, with_gradients(lambda *t: reference.scan(*t, reverse, None), tensors))


@pytest.mark.parametrize(
    ("shape", "reverse"),
    [
        ((1, 1, 1, 1, 1), False),
        ((2, 2, 37, 5, 3), "both"),
        ((1, 1, 35, 37, 16), True),
        ((4, 1, 17, 3, 5), "both"),
        ((6, 1, 4, 2, 2), "both"),
        ((3, 2, 18, 4, 2), False),
        ((1, 1, 34, 2, 17), False),
    ],
    ids=str,
)
def test_scan_equals_reference(shape: tuple[int, int, int, int, int], reverse: Reverse) -> None:
    assert_scans_like_reference(arguments(*shape, reverse), reverse)


@pytest.mark.parametrize("reverse", DIRECTIONS)
def test_one_chunk_of_several_intervals(reverse: Reverse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "PROGRAMS", 1)
    assert_scans_like_reference(arguments(2, 1, 39, 3, 2, reverse), reverse)


@pytest.mark.parametrize("reverse", [False, True])
def test_more_chunks_than_the_carry_loads_at_once(
    reverse: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "BLOCK", 4)
    assert_scans_like_reference(arguments(1, 1, 164, 3, 2, reverse), reverse)


@pytest.mark.parametrize("reverse", DIRECTIONS)
def test_without_a_gate_from_slices_and_with_a_gradient_without_strides(reverse: Reverse) -> None:
    u, delta, A, B, C, D, _, bias = (t.detach() for t in arguments(2, 2, 19, 6, 3, reverse))
    projection = torch.cat([u[..., :5], B, C], -1).requires_grad_()  # rank 5, as x_proj gives them
    wide = torch.cat([u, u], -1).requires_grad_()  # the half of in_proj
    last = delta.mT.contiguous().requires_grad_()  # not contiguous in the last dimension
    tensors = [projection, wide, last, A.requires_grad_(), D.requires_grad_()]

    def scan(module: object) -> list[Tensor]:
        _, B, C = projection.split([5, 3, 3], -1)
        y = module.scan(  # type: ignore[attr-defined]
            wide[..., 6:], last.mT, A, B, C, D, None, bias, reverse, None
        )
        return [y.detach(), *torch.autograd.grad(y.sum(), tensors)]

    assert_close(scan(kernels), scan(reference))


@pytest.mark.parametrize("reverse", [True, "both"])
def test_the_gate_may_be_half_of_a_projection(reverse: Reverse) -> None:
    u, delta, A, B, C, D, z, bias = (t.detach() for t in arguments(2, 1, 5, 4, 2, reverse))
    both = torch.cat([z, z], -1).requires_grad_()
    results = []
    for module in (kernels, reference):
        y = module.scan(u, delta, A, B, C, D, both.chunk(2, -1)[1], bias, reverse, None)
        results.append([y.detach(), *torch.autograd.grad(y.square().sum(), [both])])
    assert_close(*results)


@pytest.mark.parametrize("reverse", [False, "both"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(reverse: Reverse, dtype: torch.dtype) -> None:
    tensors = [t.detach() for t in arguments(2, 1, 18, 3, 2, reverse)]
    halves = [t.to(dtype).requires_grad_() for t in tensors]
    floats = [t.detach().float().requires_grad_() for t in halves]

    def scan(tensors: list[Tensor]) -> list[Tensor]:
        y = kernels.scan(*tensors, reverse, None)
        return [y.detach(), *torch.autograd.grad(y.float().sum(), tensors)]

    for half, full in zip(scan(halves), scan(floats), strict=True):
        assert half.dtype == dtype
        torch.testing.assert_close(half, full.to(dtype), rtol=ROUNDING[dtype], atol=0)


@pytest.mark.parametrize("reverse", [False, True])
def test_state_carried_through_pieces_equals_one_pass(reverse: bool) -> None:
    u, delta, A, B, C, D, z, bias = (t.detach() for t in arguments(2, 2, 41, 5, 3, reverse))
    expected = reference.scan(u, delta, A, B, C, D, z, bias, reverse, None)
    state = torch.zeros(2, 2, 5, 3, device=DEVICE)
    pieces = [slice(0, 20), slice(20, 21), slice(21, 41)]
    for piece in reversed(pieces) if reverse else pieces:
        inputs = [t[:, :, piece] for t in (u, delta, B, C, z)]
        with torch.no_grad():
            y = kernels.scan(*inputs[:2], A, *inputs[2:4], D, inputs[4], bias, reverse, state)
        assert_close([y], [expected[:, :, piece]])


def test_state_of_both_directions() -> None:
    tensors = [t.detach() for t in arguments(4, 1, 18, 5, 3, "both")]
    start = torch.randn(4, 1, 5, 3, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    results = []
    for module in (kernels, reference):
        state = start.clone()
        with torch.no_grad():
            results.append([module.scan(*tensors, "both", state), state])
    assert_close(*results)


def test_without_gradients_nothing_is_kept_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    tilings = []
    forward = kernels.scan_forward
    monkeypatch.setattr(kernels, "scan_forward", lambda *a: tilings.append(a[0]) or forward(*a))
    tensors = arguments(1, 1, 3, 2, 2, False)
    with torch.no_grad():
        kernels.scan(*tensors, False, None)
    kernels.scan(*(t.detach() for t in tensors), False, None)
    kernels.scan(*tensors, False, None)
    assert [tiling.saves for tiling in tilings] == [False, False, True]


@pytest.mark.parametrize("reverse", DIRECTIONS)
def test_no_sequences(reverse: Reverse) -> None:
    assert_scans_like_reference(arguments(2, 0, 5, 3, 2, reverse), reverse)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # NumPy's, of the interpreter
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("where", [0, 1, 3, 4])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_infinity_are_not_hidden(reverse: bool, where: int, bad: float) -> None:
    tensors = [t.detach() for t in arguments(1, 1, 19, 3, 2, reverse)]
    tensors[where][0, 0, 17, 0] = bad
    with torch.no_grad():
        y = kernels.scan(*tensors, reverse, None)[0, 0]
    assert torch.isfinite(y[18:] if reverse else y[:17]).all()
    assert not torch.isfinite(y[17, 0])


def test_softplus_is_accurate_for_small_and_large_steps() -> None:
    x = torch.linspace(-16, 40, 1201, device=DEVICE)
    ones = torch.ones(1, 1, 1, 1201, device=DEVICE)
    one, zero = torch.ones(1, 1, 1, 1, device=DEVICE), torch.zeros(1, 1201, device=DEVICE)
    y = kernels.scan(
        ones, x.view_as(ones), zero[..., None], one, one, zero, None, zero, False, None
    )
    exact = torch.nn.functional.softplus(x.double(), threshold=100)
    assert float((y.flatten() / exact - 1).abs().max()) < 2e-6


@pytest.mark.parametrize(
    ("length", "n", "chunk"), [(10, 1, 16), (2500, 1, 32), (65_536, 1, 256), (2500, 64, 4096)]
)
def test_a_sequence_is_cut_to_fill_a_gpu(length: int, n: int, chunk: int) -> None:
    u = torch.empty(2, n, length, 1152, device="meta")
    tiling = kernels.make_tiling(u, 16, "both", saves=True)
    assert (tiling.chunk, tiling.chunks) == (chunk, -(-length // chunk))
    assert tiling.interval == 16  # what is kept for the backward pass is as large as u


@pytest.mark.parametrize(
    ("sets", "n", "length", "channels", "taps", "reverse"),
    [(2, 2, 37, 5, 4, "both"), (1, 1, 20, 130, 4, False), (4, 1, 5, 3, 3, "both"),
     (3, 1, 17, 3, 1, True), (2, 1, 3, 3, 4, "both"), (1, 1, 4, 2, 9, False),
     (2, 0, 4, 2, 4, "both")],
)  # fmt: skip
def test_convolution_equals_reference(
    sets: int, n: int, length: int, channels: int, taps: int, reverse: Reverse
) -> None:
    g = torch.Generator().manual_seed(0)
    given = sets // 2 if reverse == "both" else sets
    shapes = [(given, n, length, 2 * channels), (sets, channels, taps), (sets, channels)]
    tensors = [torch.randn(*s, generator=g).to(DEVICE).requires_grad_() for s in shapes]

    def convolve(module: object) -> list[Tensor]:  # of the half of a projection's result
        return with_gradients(
            lambda xz, *weights: module.convolve(  # type: ignore[attr-defined]
                xz[..., channels:], *weights, reverse
            ),
            tensors,
        )

    assert_close(convolve(kernels), convolve(reference))


def test_convolution_in_half_precision_is_computed_in_float32() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(1, 1, 9, 3, generator=g).bfloat16().to(DEVICE).requires_grad_()
    weight, bias = (torch.randn(*s, generator=g).to(DEVICE) for s in [(2, 3, 4), (2, 3)])
    y = kernels.convolve(x, weight, bias, "both")
    expected = kernels.convolve(x.float(), weight, bias, "both")
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, expected.bfloat16(), rtol=ROUNDING[y.dtype], atol=0)
    assert torch.autograd.grad(y.float().sum(), x)[0].dtype == torch.bfloat16


COMPILE = """
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from mstemba.model.scan import triton as host, triton_kernels as kernels

HALF = "u delta z y x dx dy du ddelta dz dout B C".split()
FLOAT = "BC A D bias ends sums state starts carried pairs total dBC weight parts"
scan = {"BS": 16, "BE": 32}
tile = {"MODE": 2, "TAPS": 4, "ROWS": host.ROWS, "COLUMNS": host.COLUMNS}
for kernel, warps, constants in [
    (kernels.chunk_ends, 1, {"MODE": 2, **scan}),
    (kernels.carry, 1, {"MODE": 2, "OPPOSITE": True, "GIVEN": True, "BLOCK": 128}),
    (kernels.outputs, 1, {"MODE": 2, "GATED": True, "SAVE": True, "GIVEN": True, **scan}),
    (kernels.outputs, 1, {"MODE": 1, "GATED": False, "SAVE": False, "GIVEN": False, **scan}),
    (kernels.chunk_gradients, 1, {"MODE": 1, **scan}),
    (kernels.gradients, 1, {"MODE": 0, **scan}),
    (kernels._write_one, 4, {}),
    (host._pack, 4, {"PADDED": 16, "ROWS": host.PACKED}),
    (host._gate_gradients, 4, {"BLOCK": 512}),
    (host._convolution, 4, tile),
    (host._convolution_gradients, 4, tile),
]:
    types = dict.fromkeys(kernel.arg_names, "i32") | dict.fromkeys(constants, "constexpr")
    types |= {name: "*bf16" for name in HALF if name in types}
    types |= {name: "*fp32" for name in FLOAT.split() if name in types}
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(kernel, types, places)
    built = compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})
    assert built.asm["cubin"]
"""


def test_the_kernel_that_is_tried_first_runs() -> None:
    run_small_kernel(DEVICE)


def test_the_kernels_compile_for_a_gpu_that_is_not_here() -> None:
    import triton

    if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 3):
        pytest.skip("Triton before 3.3 has a different compiler interface")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    subprocess.run([sys.executable, "-c", COMPILE], check=True, env=environment)
