"""The network against numbers made by the authors' code (float32, CPU)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mstemba.model.losses import detection_loss
from mstemba.model.mstemba import MSTemba
from mstemba.model.scan.backends import list_backends
from mstemba.model.weights import load_model

NAMES = [backend.name for backend in list_backends() if backend.available]
GPU = torch.cuda.is_available()
# Where there is no GPU, Triton's interpreter runs its kernels: right, and slow.
SHORT = 8
V1_STEPS = (2, 6, 8, 64, 66, 256)
V3_STEPS = (2, 3, 4, 7, 64, 65, 257)


def load(shared: Path, version: str, backend: str) -> tuple[MSTemba, dict[str, Tensor]]:
    golden = shared / "golden"
    split = "contiguous" if version == "v1" else None
    device = "cuda" if GPU and backend in ("cuda", "triton") else "cpu"
    weights = golden / f"mstemba_{version}_tiny_weights.safetensors"
    model = load_model(weights, device=device, split=split)
    assert isinstance(model, MSTemba)
    model.set_scan_backend(backend)
    cases = load_file(golden / f"mstemba_{version}_tiny_cases.safetensors", device=device)
    return model, cases


def cases_of(steps: tuple[int, ...]) -> list[tuple[str, int]]:
    """Every backend and length, but only short ones where Triton is interpreted."""
    return [(n, t) for n in NAMES for t in steps if t <= SHORT or GPU or n != "triton"]


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.detach(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("backend", "steps"), cases_of(V1_STEPS))
def test_v1_forward(shared: Path, backend: str, steps: int) -> None:
    model, cases = load(shared, "v1", backend)
    output = model(cases[f"T{steps}.x"].transpose(1, 2))
    assert_close(output.logits, cases[f"T{steps}.logits"])
    assert output.scale_logits == []
    assert output.consistency == 0


@pytest.mark.parametrize(("backend", "steps"), cases_of(V3_STEPS))
def test_v3_forward(shared: Path, backend: str, steps: int) -> None:
    model, cases = load(shared, "v3", backend)
    output = model(cases[f"T{steps}.x"].transpose(1, 2))
    assert_close(output.logits, cases[f"T{steps}.logits"])
    for i, logits in enumerate(output.scale_logits, 1):
        assert_close(logits, cases[f"T{steps}.block{i}"])
    assert_close(output.consistency[None], cases[f"T{steps}.alignment_loss"])


def test_every_golden_case_is_tested(shared: Path) -> None:
    for version, steps in (("v1", V1_STEPS), ("v3", V3_STEPS)):
        names = load_file(shared / "golden" / f"mstemba_{version}_tiny_cases.safetensors")
        assert {n for n in names if n.startswith("T") and n.endswith(".x")} == {
            f"T{n}.x" for n in steps
        }


@pytest.mark.parametrize(
    "backend", [pytest.param(n, marks=pytest.mark.slow if n == "triton" else ()) for n in NAMES]
)
def test_v3_training_step(shared: Path, backend: str) -> None:
    """Every loss term, every gradient; the authors sum over padding too: ``released``."""
    model, cases = load(shared, "v3", backend)
    output = model.train()(cases["step.x"].transpose(1, 2))
    mask = cases["step.mask"] > 0
    assert not mask.all()
    loss = detection_loss(output, cases["step.labels"], mask, reduction="released")
    assert_close(loss.final[None], cases["step.loss_final"])
    assert_close(torch.stack(loss.auxiliary), cases["step.loss_blocks"])
    assert_close(loss.consistency[None], cases["step.alignment_loss"])
    assert_close(loss.total[None], cases["step.loss"])
    loss.total.backward()
    gradients = {n.removeprefix("step.grad."): g for n, g in cases.items() if "step.grad." in n}
    parameters = dict(model.named_parameters())
    assert parameters.keys() == gradients.keys()
    for name, expected in gradients.items():
        error = torch.linalg.norm(parameters[name].grad - expected) / torch.linalg.norm(expected)
        assert error < 1e-3, name
