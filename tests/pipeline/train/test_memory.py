"""A device whose memory is too small: one line that says what was tried and what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mstemba.errors import MstembaError
from mstemba.model.architectures import build, make_config
from mstemba.model.baselines.linear import LinearProbe
from mstemba.pipeline.checkpoint import score
from mstemba.pipeline.train import stage
from tests.command_line import Runner, complaint
from tests.training import HERE, TINY, fit, make_workspace

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    return make_workspace(tmp_path / "w")


def out_of_gpu_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def out_of_cpu_memory() -> None:
    torch.empty(1 << 50)


def out_of_numpy_memory() -> None:
    np.empty(1 << 50)


def fail_when(monkeypatch: pytest.MonkeyPatch, training: bool, fail: Any) -> None:
    """Let the linear network fail in training, or when it scores."""
    forward = LinearProbe.forward

    def failing(self: LinearProbe, *args: Any, **options: Any) -> Any:
        if self.training == training:
            fail()
        return forward(self, *args, **options)

    monkeypatch.setattr(LinearProbe, "forward", failing)


@pytest.mark.parametrize("fail", [out_of_gpu_memory, out_of_cpu_memory, out_of_numpy_memory])
@pytest.mark.parametrize(
    ("precision", "fast", "advice"),
    [
        ("auto", "float32", "--clip-length, or another --device"),
        ("no", "bfloat16", "--clip-length, --precision bf16, or another --device"),
        ("bf16", "bfloat16", "--clip-length, or another --device"),
    ],
)
def test_a_training_that_does_not_fit_says_what_to_do(
    fail: Any,
    precision: str,
    fast: str,
    advice: str,
    workspace: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fail_when(monkeypatch, True, fail)
    monkeypatch.setattr(stage, "fast_precision", lambda device: fast)
    with pytest.raises(MstembaError) as caught:
        fit(workspace, arch="linear", precision=precision)
    message, _, cause = str(caught.value).partition(" (")
    assert message == (
        "cpu does not have enough memory to train with batches of 3 clips of up to 24 rows: "
        f"try a smaller --batch-size or {advice}"
    )
    assert "allocate" in cause
    assert caught.value.exit_code == 1


def test_a_network_that_does_not_fit_is_told_as_well(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LinearProbe, "to", lambda self, device: out_of_gpu_memory())
    with pytest.raises(MstembaError, match="cpu does not have enough memory to train"):
        fit(workspace, arch="linear")


def test_the_commands_say_it_in_one_line(
    workspace: Path, mstemba: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {**TINY, **HERE, "arch": "linear", "features": "npy"}
    words = [x for k, v in options.items() for x in (f"--{k.replace('_', '-')}", str(v))]
    with monkeypatch.context() as patch:
        fail_when(patch, True, out_of_gpu_memory)
        assert "does not have enough memory to train" in complaint(
            mstemba("train", *words, cwd=workspace, expect=1)
        )
    mstemba("train", *words, cwd=workspace)
    words = ["--features", "npy", "--subset", "validation", "--device", "cpu"]
    advice = "use a machine with more memory (CUDA out of memory. Tried to allocate 2.00 GiB.)"
    with monkeypatch.context() as patch:
        fail_when(patch, False, out_of_gpu_memory)
        assert complaint(mstemba("evaluate", *words, cwd=workspace, expect=1)) == (
            f"mstemba: cpu does not have enough memory for a video of 19 rows: {advice}"
        )
    monkeypatch.setattr(LinearProbe, "to", lambda self, device: out_of_gpu_memory())
    assert complaint(mstemba("evaluate", *words, cwd=workspace, expect=1)) == (
        f"mstemba: cpu does not have enough memory for the network: {advice}"
    )


def test_a_video_that_does_not_fit_into_a_gpu_may_be_scored_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fail_when(monkeypatch, False, out_of_gpu_memory)
    network = build(make_config("linear", 6, 3)).eval().to("meta")
    with pytest.raises(
        MstembaError, match=r"meta does not have .* video of 5 rows: try --device cpu"
    ):
        score(network, np.zeros((5, 6), np.float32))


def test_the_video_that_does_not_fit_in_training_is_named(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_when(monkeypatch, False, out_of_cpu_memory)
    with pytest.raises(
        MstembaError, match=r"video 'v0': cpu does not have .* for a video of 31 rows"
    ):
        fit(workspace, arch="linear")


@pytest.mark.parametrize("training", [True, False])
def test_other_errors_are_left_alone(
    training: bool, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise RuntimeError("shapes cannot be multiplied")

    fail_when(monkeypatch, training, fail)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        fit(workspace, arch="linear")
