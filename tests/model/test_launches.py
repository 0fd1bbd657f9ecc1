"""How many kernels a pass of the network starts on a GPU, and that the host waits for none.

On a large GPU the host may need longer to start the kernels of a clip than the GPU to run them.
They are counted with tensors on the device ``meta``. These have no values, so code that reads one,
and so would wait for a GPU and could not be recorded as a CUDA graph, raises an error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

pytest.importorskip("triton", reason="Triton has no wheels for Windows and macOS")

from mstemba.model.architectures import build, make_config
from mstemba.model.config import ModelConfig
from mstemba.model.losses import BatchTotals, detection_loss
from mstemba.model.mstemba import MSTemba
from mstemba.model.scan import backends
from mstemba.model.scan import triton as kernels
from tests.model.operations import CountOperations

STEPS = 2500
# Of a forward pass and of a training step without the optimiser. Before they were counted, 190 and
# 500 for version 1, 245 and 720 for version 3.
MAX_KERNELS = {"mstemba": (90, 250), "mstemba-v3": (110, 360)}

Count = Callable[[Callable[[], object]], CountOperations]


@pytest.fixture
def count(monkeypatch: pytest.MonkeyPatch) -> Count:
    """Count what a call starts, with our own kernels in it, but without running them."""
    counters: list[CountOperations] = []

    def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
        counters[-1].kernels[kernel.fn.__name__] += 1

    class Norm(torch.autograd.Function):
        """Like torch's own on a GPU: a kernel there and one back. Elsewhere it is put together."""

        @staticmethod
        def forward(ctx: Any, x: Tensor, weight: Tensor | None) -> Tensor:
            ctx.save_for_backward(x, weight)
            counters[-1].kernels["rms_norm"] += 1
            return torch.empty_like(x)

        @staticmethod
        def backward(ctx: Any, dy: Tensor) -> Any:
            counters[-1].kernels["rms_norm_backward"] += 1
            return tuple(None if t is None else torch.empty_like(t) for t in ctx.saved_tensors)

    def rms_norm(x: Tensor, shape: object, weight: Tensor | None, eps: float) -> Any:
        return Norm.apply(x, weight)  # type: ignore[no-untyped-call]

    monkeypatch.setitem(backends.BACKENDS, "triton", ("", lambda: None))
    monkeypatch.setitem(backends.DEVICES, "triton", "meta")
    monkeypatch.setattr(kernels, "launch", launch)
    monkeypatch.setattr(F, "rms_norm", rms_norm)

    def count(call: Callable[[], object]) -> CountOperations:
        counters.append(CountOperations())
        with counters[-1]:
            call()
        return counters[-1]

    return count


def make(arch: str, **options: Any) -> MSTemba:
    with torch.device("meta"):
        model = MSTemba(ModelConfig(1024, 51, arch, **options))
    model.set_scan_backend("triton")
    return model


def test_copies_from_the_host_are_counted(count: Count) -> None:
    x = torch.empty(3, 4, device="meta")
    for copy in (
        lambda: torch.tensor([1, 2], device="meta"),
        lambda: x[[0, 2]],
        lambda: x + torch.ones(4).to("meta"),
    ):
        assert count(copy).from_host.total() == 1
    counted = count(lambda: x + torch.full((4,), 2.0, device="meta"))
    assert (counted.from_host.total(), counted.kernels.total()) == (0, 2)


@pytest.mark.parametrize("arch", MAX_KERNELS)
def test_a_forward_pass_starts_few_kernels(count: Count, arch: str) -> None:
    model, features = make(arch).eval(), torch.empty(1, STEPS, 1024, device="meta")
    with torch.no_grad():
        counted = count(lambda: model(features, checked=True))
    assert counted.kernels.total() <= MAX_KERNELS[arch][0], counted.kernels
    assert counted.kernels["outputs"] == 4  # three scales and the fuser
    assert not counted.from_host


@pytest.mark.parametrize("arch", MAX_KERNELS)
def test_a_training_step_starts_few_kernels(count: Count, arch: str) -> None:
    model, features = make(arch).train(), torch.empty(1, STEPS, 1024, device="meta")
    labels = torch.empty(1, STEPS, 51, device="meta")

    def step() -> None:
        output = model(features, checked=True)
        detection_loss(output, labels, totals=BatchTotals(1, STEPS, 1)).total.backward()

    counted = count(step)
    assert counted.kernels.total() <= MAX_KERNELS[arch][1], counted.kernels
    assert counted.kernels["gradients"] == 4
    assert not counted.from_host


@pytest.mark.parametrize("arch", ["mstemba", "pdan", "ms-tct"])
def test_no_convolution_is_left_to_tf32(count: Count, arch: str) -> None:
    """cuDNN computes float32 convolutions in TF32; depthwise ones are not cuDNN's."""
    with torch.device("meta"):
        model = build(make_config(arch, 64, 5))
    if arch == "mstemba":
        model.set_scan_backend("triton")
    depthwise = [m for m in model.modules() if isinstance(m, nn.Conv1d) and m.groups > 1]
    features = torch.empty(1, 100, 64, device="meta")
    counted = count(lambda: model.train()(features, checked=True))
    assert counted.kernels["convolution"] == (len(depthwise) if arch == "ms-tct" else 0)


@pytest.mark.parametrize(
    ("arch", "options"),
    [
        ("mstemba", {}),
        ("mstemba", {"padding": "released"}),
        ("mstemba", {"split": "contiguous"}),
        ("mstemba-v3", {}),
        ("mstemba-v3", {"padding": "released"}),
    ],
)
def test_nothing_waits_where_clips_are_padded(
    count: Count, arch: str, options: dict[str, str]
) -> None:
    model = make(arch, **options).train()
    features, labels = (torch.empty(2, 100, n, device="meta") for n in (1024, 51))
    mask = torch.empty(2, 100, dtype=torch.bool, device="meta")

    def step() -> None:
        output = model(features, mask, checked=True)
        detection_loss(output, labels, mask, totals=BatchTotals(3, 150, 1)).total.backward()

    assert not count(step).from_host
