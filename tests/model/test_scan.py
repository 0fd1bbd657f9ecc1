"""The compiled scan against the readable one, and what both promise."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mstemba.errors import UsageError
from mstemba.model.scan import backends, chunked, threads, vector
from mstemba.model.scan.backends import choose, describe_choice
from mstemba.model.scan.operations import causal_convolution, selective_scan
from mstemba.model.scan.reference import Reverse
from tests.command_line import environment
from tests.model.operations import CountOperations
from tests.model.scans import arguments, assert_close, with_gradients

CPU = torch.device("cpu")
NAMES = ["cpu", "chunked", "reference"]
FAST = ["cpu", "chunked"]


def single(n: int, length: int, channels: int, states: int) -> list[Tensor]:
    """The same for one set, without the leading dimension."""
    return [t.detach()[0].requires_grad_() for t in arguments(1, n, length, channels, states)]


def run(tensors: list[Tensor], backend: str, reverse: Reverse = False) -> list[Tensor]:
    """The output and every gradient."""
    return with_gradients(lambda *t: selective_scan(*t, reverse, backend=backend), tensors)


shapes = given(
    n=st.integers(0, 3),
    length=st.integers(1, 40),
    channels=st.integers(1, 80),
    states=st.integers(1, 17),
    sets=st.sampled_from([2, 4]),
    reverse=st.sampled_from([False, True, "both"]),
)


@pytest.mark.parametrize("backend", FAST)
@settings(max_examples=60)
@shapes
def test_scan_equals_reference(
    backend: str, n: int, length: int, channels: int, states: int, sets: int, reverse: Reverse
) -> None:
    tensors = arguments(sets, n, length, channels, states, reverse)
    assert_close(run(tensors, backend, reverse), run(tensors, "reference", reverse))


@settings(max_examples=60)
@shapes
def test_cpu_convolution_equals_reference(
    n: int, length: int, channels: int, states: int, sets: int, reverse: Reverse
) -> None:
    taps, given_sets = 1 + states % 5, sets // 2 if reverse == "both" else sets
    g = torch.Generator().manual_seed(0)
    shapes = [(given_sets, n, length, channels), (sets, channels, taps), (sets, channels)]
    inputs = [torch.randn(*shape, generator=g).requires_grad_() for shape in shapes]
    found, expected = (
        with_gradients(lambda *t, b=backend: causal_convolution(*t, reverse, backend=b), inputs)
        for backend in ("cpu", "reference")
    )
    assert_close(found, expected)


@pytest.mark.parametrize("reverse", [False, True])
def test_convolution_is_torchs(reverse: bool) -> None:
    x, weight, bias = torch.randn(1, 2, 9, 5), torch.randn(1, 5, 4), torch.randn(1, 5)
    found = causal_convolution(x, weight, bias, reverse, backend="reference")[0]
    signal = (x[0].flip(1) if reverse else x[0]).transpose(1, 2)
    y = F.conv1d(F.pad(signal, (3, 0)), weight[0, :, None], bias[0], groups=5)
    expected = F.silu(y).transpose(1, 2)
    torch.testing.assert_close(found, expected.flip(1) if reverse else expected)


def test_cpu_equals_reference_over_several_blocks_and_threads() -> None:
    torch.set_num_threads(2)
    tensors = arguments(4, 2, 200, 150, 16, "both")
    assert_close(run(tensors, "cpu", "both"), run(tensors, "reference", "both"))


@pytest.mark.parametrize("backend", NAMES)
def test_both_directions_are_the_sum_of_each(backend: str) -> None:
    u, delta, A, B, C, D, z, bias = (t.detach() for t in arguments(4, 2, 9, 5, 3, "both"))
    both = selective_scan(u, delta, A, B, C, D, z, bias, "both", backend=backend)
    halves = zip(*(t.chunk(2) for t in (u, delta, A, B, C, D)), bias.chunk(2), strict=True)
    there, back = (
        selective_scan(*half[:6], None, half[6], reverse, backend=backend)
        for half, reverse in zip(halves, (False, True), strict=True)
    )
    torch.testing.assert_close(both, (there + back) * F.silu(z))


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("reverse", [False, True])
def test_pieces_that_carry_the_state_are_one_pass(backend: str, reverse: bool) -> None:
    u, delta, A, B, C, D, z, bias = (t.detach() for t in arguments(3, 2, 50, 70, 5))
    whole = selective_scan(u, delta, A, B, C, D, z, bias, reverse, backend="reference")
    state = torch.zeros(3, 2, 70, 5)
    cuts = [(0, 1), (1, 20), (20, 50)]
    pieces = {}
    for start, stop in reversed(cuts) if reverse else cuts:
        cut = [t[:, :, start:stop] for t in (u, delta, B, C, z)]
        with torch.no_grad():
            pieces[start] = selective_scan(
                *cut[:2], A, *cut[2:4], D, cut[4], bias, reverse, state=state, backend=backend
            )
    torch.testing.assert_close(torch.cat([pieces[s] for s, _ in cuts], dim=2), whole)


@pytest.mark.parametrize("backend", NAMES)
def test_reverse_is_flip_scan_flip(backend: str) -> None:
    u, delta, A, B, C, D, z, bias = single(2, 19, 7, 3)
    there = selective_scan(u, delta, A, B, C, D, z, bias, reverse=True, backend=backend)
    flipped = (t.flip(1) for t in (u, delta, B, C, z))
    fu, fdelta, fB, fC, fz = flipped
    back = selective_scan(fu, fdelta, A, fB, fC, D, fz, bias, backend=backend).flip(1)
    torch.testing.assert_close(there, back)


def test_reference_gradient_is_right() -> None:
    tensors = [t.detach().double().requires_grad_() for t in single(1, 4, 2, 3)]
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
    u, delta, A, B, C, *_ = (t.detach() for t in single(2, 11, 6, 4))
    expected = selective_scan(u, delta, A, B, C, backend="reference")
    strided = [t.transpose(0, -1).contiguous().transpose(0, -1) for t in (u, delta, A, B, C)]
    assert not strided[0].is_contiguous()
    torch.testing.assert_close(selective_scan(*strided, backend=backend), expected)


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(backend: str, dtype: torch.dtype) -> None:
    halves = [t.detach().to(dtype) for t in single(1, 9, 5, 3)]
    y = selective_scan(*halves, backend=backend)
    assert y.dtype == dtype
    expected = selective_scan(*(t.float() for t in halves), backend=backend)
    torch.testing.assert_close(y, expected.to(dtype), rtol=0, atol=0)


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("where", [0, 1, 3, 4])
def test_nan_and_infinity_are_not_hidden(backend: str, where: int) -> None:
    for bad in (float("nan"), float("inf")):
        tensors = [t.detach() for t in single(1, 9, 70, 3)]
        tensors[where][0, 4, 0] = bad
        y = selective_scan(*tensors, backend=backend)
        assert torch.isfinite(y[0, :4]).all()
        assert not torch.isfinite(y[0, 4, 0])


def kept_bytes(tensors: list[Tensor], backend: str) -> int:
    """The memory that autograd keeps for the backward pass of a scan."""
    kept = dict[int, int]()

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        selective_scan(*tensors, backend=backend)
    return sum(kept.values())


def test_cpu_keeps_a_few_states_for_the_backward_pass_and_not_all() -> None:
    tensors = single(1, 640, 64, 16)
    inputs = sum(t.nbytes for t in tensors)
    states = tensors[0].nbytes * 16
    assert kept_bytes(tensors, "cpu") <= inputs + states / 15


def test_cpu_is_reproducible_to_the_bit_for_any_number_of_threads() -> None:
    tensors = single(2, 300, 192, 16)
    results = []
    for count in (1, 2, 2, 3):
        torch.set_num_threads(count)
        results.append(run(tensors, "cpu"))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


def test_cpu_may_be_entered_from_several_threads() -> None:
    torch.set_num_threads(2)
    tensors = single(2, 200, 128, 8)
    expected = run(tensors, "cpu")
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: run(tensors, "cpu"), range(8)):
            assert torch.equal(found[0], expected[0])
            assert_close(found, expected)


@pytest.mark.parametrize(
    ("name", "exact", "lowest", "highest", "error"),
    [
        ("exp", np.exp, -86.9, 0.0, 1e-7),
        ("sigmoid", lambda x: 1 / (1 + np.exp(-x)), -86.0, 86.0, 3e-7),
        ("softplus", lambda x: np.logaddexp(0, x), -86.0, 1e4, 5e-7),
    ],
)
def test_vector_arithmetic_is_exact_to_float32_rounding(
    name: str, exact: Callable[..., Any], lowest: float, highest: float, error: float
) -> None:
    function = getattr(vector, name)

    @numba.njit
    def evaluate(x, out):  # type: ignore[no-untyped-def]
        for i in range(x.size):
            out[i] = function(x[i])

    small = np.logspace(-9, 1.9, 20_001)
    x = np.concatenate([np.linspace(lowest, highest, 200_001), -small, small])
    x = x[(x >= lowest) & (x <= highest)].astype(np.float32)
    out = np.empty_like(x)
    evaluate(x, out)
    assert np.abs(out / exact(x.astype(np.float64)) - 1).max() < error
    edge = np.array([-np.inf, -1e30, np.nan], np.float32)
    out = np.empty_like(edge)
    evaluate(edge, out)
    assert out[0] == out[1] < 2e-38
    assert np.isnan(out[2])


def test_auto_takes_the_compiled_scan_for_float32_on_the_cpu() -> None:
    assert choose("auto", CPU) == "cpu"
    assert choose("auto", CPU, torch.float64) == "chunked"
    assert choose("auto", torch.device("mps")) == "chunked"


def test_state_is_carried_without_gradients_only() -> None:
    u, delta, A, B, C, *_ = arguments(1, 1, 5, 4, 3)
    with pytest.raises(UsageError, match="no_grad"):
        selective_scan(u, delta, A, B, C, state=torch.zeros(1, 1, 4, 3))
    with torch.no_grad(), pytest.raises(UsageError, match="float64, expected contiguous"):
        selective_scan(u, delta, A, B, C, state=torch.zeros(1, 1, 4, 3, dtype=torch.float64))


@pytest.fixture
def fresh_choice() -> Iterator[None]:
    """Nothing that was chosen before is remembered, nor what is chosen here afterwards."""
    backends.choose_fastest.cache_clear()
    yield
    backends.choose_fastest.cache_clear()


@pytest.mark.usefixtures("fresh_choice")
def test_auto_takes_the_fastest_that_can_run_and_says_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    missing = {"cpu": "no Numba", "triton": "no compiler", "cuda": None, "chunked": None}
    missing |= {"reference": None}
    for name, reason in missing.items():
        entry = (f"the {name} one", lambda reason=reason: reason)
        monkeypatch.setitem(backends.BACKENDS, name, entry)
    caplog.set_level("INFO")
    gpu = torch.device("cuda")
    assert choose("auto", gpu) == "cuda"
    assert "cuda (the cuda one); not triton: no compiler, for torch.float32 on cuda" in caplog.text
    assert describe_choice(gpu) == "scan backend cuda (the cuda one); not triton: no compiler"
    assert describe_choice(CPU) == "scan backend chunked (the chunked one); not cpu: no Numba"
    assert choose("auto", gpu, torch.float64) == "chunked"
    assert choose("auto", gpu, carries=True) == "chunked"
    with pytest.raises(UsageError, match="cannot start from a state"):
        choose("cuda", gpu, carries=True)
    with pytest.raises(UsageError, match="'triton' cannot run: no compiler; choices: auto, cuda"):
        choose("triton", gpu)
    monkeypatch.setitem(backends.BACKENDS, "triton", ("", lambda: None))
    backends.choose_fastest.cache_clear()
    assert choose("auto", gpu) == "triton"  # also where mamba-ssm's kernels are installed


@pytest.mark.usefixtures("fresh_choice")
def test_triton_is_taken_only_where_a_kernel_has_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU and a compiler that are found are no proof: folders, drivers and flags fail too."""
    pytest.importorskip("triton", reason="Triton has no wheels for Windows and macOS")
    from mstemba.model.scan import triton_kernels

    def fail(device: str) -> None:
        raise RuntimeError("cannot find -lcuda\ncollect2: error")

    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(backends, "missing_gpu", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(backends.shutil, "which", lambda name: name)
    monkeypatch.setattr(backends.Path, "is_file", lambda path: True)
    for run_kernel, expected in (
        (fail, "Triton cannot run a kernel here (cannot find -lcuda)"),
        (lambda device: None, None),
    ):
        monkeypatch.setattr(triton_kernels, "run_small_kernel", run_kernel)
        backends.missing_for_triton.cache_clear()
        try:
            assert backends.missing_for_triton() == expected
        finally:
            backends.missing_for_triton.cache_clear()


def test_the_environment_names_a_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MSTEMBA_SCAN", "reference")
    assert choose("auto", CPU) == "reference"
    assert describe_choice(CPU) == "scan backend reference, named by MSTEMBA_SCAN"
    for unset in ("", "auto"):
        monkeypatch.setenv("MSTEMBA_SCAN", unset)
        assert choose("auto", CPU) == "cpu"
        assert (
            describe_choice(CPU)
            == "scan backend cpu (compiled by Numba on first use, in up to a minute)"
        )
    monkeypatch.setenv("MSTEMBA_SCAN", "warp")
    with pytest.raises(UsageError, match="'warp'"):
        choose("auto", CPU)


def test_work_is_shared_out_and_failures_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(item: int) -> None:
        raise ValueError(f"item {item}")

    for pool in (threads.openmp(), None):
        monkeypatch.setattr(threads, "openmp", lambda pool=pool: pool)
        for count in (1, 2, 5):
            done: list[int] = []
            threads.share_out(done.append, [(i,) for i in range(20)], count)
            assert sorted(done) == list(range(20))
            with pytest.raises(ValueError, match="item"):
                threads.share_out(fail, [(1,), (2,)], count)


def test_an_interrupt_that_a_thread_dropped_loses_no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """ctypes prints and drops what is raised before its callback's first line."""
    shares, done = [(i,) for i in range(20)], list[int]()

    def only_the_caller(callback: Callable[..., None], *_: object) -> None:
        callback(None)

    def nobody(*_: object) -> None:
        return

    monkeypatch.setattr(threads, "openmp", lambda: only_the_caller)
    threads.share_out(done.append, shares, 2)
    assert sorted(done) == list(range(20))
    monkeypatch.setattr(threads, "openmp", lambda: nobody)
    with pytest.raises(KeyboardInterrupt):
        threads.share_out(done.append, shares, 2)


@pytest.mark.usefixtures("fresh_choice")
def test_kernels_that_are_installed_and_do_not_load_are_skipped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backends, "missing_gpu", lambda: None)
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: name)
    backends.missing_for_cuda.cache_clear()
    try:
        reason = backends.missing_for_cuda()
    finally:
        backends.missing_for_cuda.cache_clear()
    assert reason is not None
    assert reason.startswith("the kernels installed do not load here")


def test_a_backend_that_cannot_run_is_named_with_the_choices() -> None:
    with pytest.raises(UsageError, match=r"'warp'.*auto.*reference"):
        choose("warp", CPU)
    with pytest.raises(UsageError, match=r"'cpu' cannot run: .*; choices: auto"):
        choose("cpu", torch.device("cuda"))


@pytest.mark.parametrize("reverse", [False, True, "both"])
def test_chunks_in_several_pieces(reverse: Reverse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked, "ELEMENTS", 100)
    tensors = arguments(2, 1, 150, 5, 3, reverse)
    assert_close(run(tensors, "chunked", reverse), run(tensors, "reference", reverse))


def test_chunks_in_float64_are_not_rounded() -> None:
    tensors = [t.detach().double().requires_grad_() for t in single(1, 40, 2, 3)]
    for a, b in zip(run(tensors, "chunked"), run(tensors, "reference"), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12 * max(1.0, float(b.abs().max())))


@pytest.mark.parametrize("backend", NAMES)
def test_autocast_changes_no_bit(backend: str) -> None:
    tensors = [t.detach() for t in single(1, 40, 8, 4)]
    expected = selective_scan(*tensors, backend=backend)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(selective_scan(*tensors, backend=backend), expected)


def test_chunked_is_few_large_operations() -> None:
    """What makes it fast on a GPU: the reference dispatches 137,500 small ones."""
    counts = {}
    for name in ("chunked", "reference"):
        tensors = single(1, 2500, 2 if name == "reference" else 1024, 16)
        with CountOperations() as counter:
            run(tensors, name)
        counts[name] = counter.dispatched
    assert counts["chunked"] <= counts["reference"] / 50


def test_chunked_keeps_one_state_a_chunk_for_the_backward_pass() -> None:
    kept = {length: kept_bytes(single(1, length, 64, 16), "chunked") for length in (640, 6400)}
    states = 640 * 64 * 16 * 4
    inputs = sum(t.nbytes for t in single(1, 640, 64, 16))
    assert kept[640] <= 2 * inputs + states / 16
    assert kept[6400] <= 10.5 * kept[640]


def test_shapes_that_do_not_fit_are_named() -> None:
    u, delta, A, B, C, *_ = single(2, 5, 4, 3)
    with pytest.raises(UsageError, match=r"B has shape \(1, 2, 4, 3\), expected \(1, 2, 5, 3\)"):
        selective_scan(u, delta, A, B[:, 1:], C)
    for odd in (1, "backwards", None):
        with pytest.raises(UsageError, match=r"reverse is .*, expected False, True or 'both'"):
            selective_scan(u, delta, A, B, C, reverse=odd)  # type: ignore[arg-type]
    for t in (u.int(), u.to("meta")):
        with pytest.raises(UsageError, match="expected a floating-point type on"):
            selective_scan(t, delta, A, B, C)
    with pytest.raises(UsageError, match="found 1 sets, expected an even number"):
        selective_scan(u, delta, A, B, C, reverse="both")
    with pytest.raises(UsageError, match=r"x has shape .*, expected \(1, N, L, 4\)"):
        causal_convolution(u[None, ..., :3], torch.ones(2, 4, 3), torch.ones(2, 4), "both")
    with pytest.raises(UsageError, match="L >= 1"):
        selective_scan(u[:, :0], delta[:, :0], A, B[:, :0], C[:, :0])


@pytest.mark.parametrize(
    ("name", "value"), [("NUMBA_NUM_THREADS", "0"), ("NUMBA_DISABLE_JIT", "1")]
)
def test_a_variable_that_stops_numba_is_named_and_another_backend_runs(
    name: str, value: str
) -> None:
    # In a process of its own: Numba reads the variables when it is imported.
    program = (
        "import torch; from mstemba.model.scan.backends import describe_choice; "
        "print(describe_choice(torch.device('cpu')))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        env=environment(**{name: value, "MSTEMBA_SCAN": ""}),
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.startswith("scan backend chunked (large PyTorch operations); not cpu: ")
    assert "NUMBA_" in result.stdout
