"""The state from which an unfinished training is resumed: weights, averages, moments, counts."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import safetensors
import torch
from torch import nn

from mstemba.errors import UsageError
from mstemba.pipeline.caching.files import write_atomically
from mstemba.tensor_files.digest import check_digest, with_digest

STATE = "state.safetensors"
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass
class TrainerState:
    """The progress of a training, without its tensors."""

    step: int = 0
    """Optimiser steps taken."""
    best: float | None = None
    """Best validation mAP in percent."""
    checks_since_best: int = 0
    """Measurements of the validation mAP since the best one."""
    epoch_loss: float | None = None
    """The last epoch's validation loss, which the released schedule follows."""


def save_state(
    path: Path,
    key: str,
    state: TrainerState,
    model: nn.Module,
    average: nn.Module,
    optimizer: torch.optim.Optimizer,
) -> None:
    """Replace the state file in one step. Raises OSError if the disk is full."""
    tensors = {f"average.{n}": p.detach() for n, p in average.named_parameters()}
    for name, parameter in model.named_parameters():
        tensors[f"model.{name}"] = parameter.detach()
        for moment in MOMENTS:
            tensors[f"{moment}.{name}"] = optimizer.state[parameter][moment]
    counts = {name: json.dumps(value) for name, value in asdict(state).items()}
    content = with_digest(tensors, {"key": key, **counts})
    write_atomically(path, lambda temporary: temporary.write_bytes(content))


@torch.no_grad()
def load_state(
    path: Path,
    key: str,
    model: nn.Module,
    average: nn.Module,
    optimizer: torch.optim.Optimizer,
    device: torch.device,
) -> TrainerState:
    """Load a file's tensors into the model, the average and the optimiser.

    Returns:
        The rest of the state.

    Raises:
        UsageError: The file is damaged, or was written by a run with another key.
    """
    # The processes of a distributed run call their CPU "cpu:0", which safetensors does not know.
    place = "cpu" if device.type == "cpu" else str(device)
    with _opened(path, place) as file:
        metadata = file.metadata() or {}
        if metadata.get("key") != key:
            raise UsageError(f"{path}: belongs to another run; delete it to start again")
        state = TrainerState(**{f.name: json.loads(metadata[f.name]) for f in fields(TrainerState)})
        for name, parameter in model.named_parameters():
            parameter.copy_(file.get_tensor(f"model.{name}"))
            # A fused optimiser counts its steps on the device, any other one on the CPU.
            counter = parameter.device if optimizer.defaults["fused"] else "cpu"
            optimizer.state[parameter] = {
                "step": torch.tensor(float(state.step), device=counter),
                **{moment: file.get_tensor(f"{moment}.{name}") for moment in MOMENTS},
            }
        for name, parameter in average.named_parameters():
            parameter.copy_(file.get_tensor(f"average.{name}"))
    return state


def saved_step(path: Path) -> int | None:
    """Return the step of a saved state; None if there is none. UsageError if it is damaged."""
    if not path.is_file():
        return None
    with _opened(path) as file:
        return int(file.metadata()["step"])


def _opened(path: Path, device: str = "cpu") -> safetensors.safe_open:
    try:
        check_digest(path, {"key", *(field.name for field in fields(TrainerState))})
        return safetensors.safe_open(path, "pt", device=device)
    except (safetensors.SafetensorError, ValueError) as error:
        raise UsageError(
            f"{path}: damaged or incomplete ({error}); delete it to start the training again"
        ) from None
