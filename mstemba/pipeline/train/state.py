"""The state from which an unfinished training is resumed: weights, averages, moments, counts."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import nn

from mstemba.errors import UsageError
from mstemba.pipeline.caching.files import write_atomically
from mstemba.reading.files import file_size, reason
from mstemba.reading.typed import Count, Finite, convert, parse_untyped
from mstemba.tensor_files.safetensors_file import (
    DIGEST,
    NO_DIGEST,
    check_digest,
    read_header,
    with_digest,
)

STATE = "state.safetensors"
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass
class TrainerState:
    """The progress of a training, without its tensors."""

    step: Count = 0
    """Optimiser steps taken."""
    best: Finite | None = None
    """Best validation mAP in percent."""
    checks_since_best: Count = 0
    """Measurements of the validation mAP since the best one."""
    epoch_loss: Finite | None = None
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
    metadata = {"key": key, DIGEST: NO_DIGEST, **counts}
    content = with_digest(safetensors.torch.save(tensors, metadata))
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
    state, found_key = _read_facts(path, check=True)
    if found_key != key:
        raise UsageError(f"{path}: belongs to another run; delete it to start again")
    _check_tensors(path, model, average)
    # The processes of a distributed run call their CPU "cpu:0", which safetensors does not know.
    place = "cpu" if device.type == "cpu" else str(device)
    with safetensors.safe_open(path, "pt", device=place) as file:
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
    return _read_facts(path)[0].step if path.is_file() else None


def _read_facts(path: Path, check: bool = False) -> tuple[TrainerState, str | None]:
    """Return a state without its tensors, and its key.

    Args:
        path: The file.
        check: Whether to check all of the file against its SHA-256.
    """
    file_size(path)
    names = {field.name for field in fields(TrainerState)}
    try:
        if check:
            check_digest(path, ("key", *names))
        metadata = read_header(path).metadata
        found = {name: parse_untyped(metadata[name].encode(), name) for name in names}
        return convert(found, TrainerState, "its state"), metadata.get("key")
    except (OSError, ValueError, KeyError, UsageError) as error:
        raise _damaged(path, reason(error)) from None


def _damaged(path: Path, problem: str) -> UsageError:
    return UsageError(
        f"{path}: damaged or incomplete ({problem}); delete it to start the training again"
    )


def _check_tensors(path: Path, model: nn.Module, average: nn.Module) -> None:
    """Raise UsageError for other tensors than those of the networks, before they are read."""
    expected = {f"average.{name}": parameter for name, parameter in average.named_parameters()}
    for name, parameter in model.named_parameters():
        expected |= {f"{kind}.{name}": parameter for kind in ("model", *MOMENTS)}
    found = {name: tuple(entry.shape) for name, entry in read_header(path).tensors.items()}
    if found != {name: tuple(parameter.shape) for name, parameter in expected.items()}:
        raise _damaged(path, "its tensors are not those of the network")
