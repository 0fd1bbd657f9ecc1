"""The network against numbers made by the authors' code (float32, CPU)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mstemba.model.checkpoint import load_model
from mstemba.model.losses import detection_loss
from mstemba.model.mstemba import MSTemba
from mstemba.model.scan import backends

NAMES = [backend.name for backend in backends() if backend.available]
V1_STEPS = (2, 6, 8, 64, 66, 256)
V3_STEPS = (2, 3, 4, 7, 64, 65, 257)


def load(shared: Path, version: str, backend: str) -> tuple[MSTemba, dict[str, Tensor]]:
    golden = shared / "golden"
    split = "contiguous" if version == "v1" else None
    model = load_model(golden / f"mstemba_{version}_tiny_weights.safetensors", split=split)
    model.set_scan_backend(backend)
    return model, load_file(golden / f"mstemba_{version}_tiny_cases.safetensors")


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.detach(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("steps", V1_STEPS)
def test_v1_forward(shared: Path, backend: str, steps: int) -> None:
    model, cases = load(shared, "v1", backend)
    output = model(cases[f"T{steps}.x"].transpose(1, 2))
    assert_close(output.logits, cases[f"T{steps}.logits"])
    assert output.scale_logits == []
    assert output.consistency == 0


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("steps", V3_STEPS)
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


@pytest.mark.parametrize("backend", NAMES)
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
