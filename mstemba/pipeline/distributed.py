"""The processes of a distributed training, started by torchrun, accelerate or a cluster."""

from __future__ import annotations

import atexit
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from mstemba.errors import UsageError, first_line
from mstemba.pipeline.devices import fast_precision, is_out_of_memory, pick_device

if TYPE_CHECKING:
    from accelerate import Accelerator

_OF_LAUNCHERS = re.compile(
    r"((LOCAL_)?(RANK|WORLD_SIZE)|MASTER_(ADDR|PORT)|MPI_LOCAL(RANKID|NRANKS)"
    r"|(PMI|OMPI_COMM_WORLD|MV2_COMM_WORLD)_(LOCAL_)?(RANK|SIZE))"
)
"""The variables in which accelerate looks for the other processes."""
_OF_ACCELERATE = re.compile(r"(ACCELERATE|FSDP)_\w+")
"""The variables that set up accelerate."""


def world_size() -> int:
    """Return the number of processes, from the launcher's environment variable.

    Raises UsageError if that is not a number.
    """
    return _number("WORLD_SIZE", "1")


def _check_launcher() -> None:
    """Raise UsageError if processes that belong together cannot find each other."""
    if world_size() > 1:
        _number("RANK")
        _number("MASTER_PORT")
        if not os.environ.get("MASTER_ADDR"):
            raise _not_launched("MASTER_ADDR is not set")


def _number(name: str, default: str = "") -> int:
    text = os.environ.get(name) or default
    if not re.fullmatch("[0-9]{1,6}", text):
        raise _not_launched(f"{name} is {text!r}, expected a number")
    return int(text)


def _not_launched(problem: str) -> UsageError:
    return UsageError(
        f"environment variables of a distributed training: {problem}; start it with torchrun or "
        f"`accelerate launch`, or unset WORLD_SIZE"
    )


def is_first() -> bool:
    """Return whether this process writes files and messages for all of them.

    RANK alone means nothing: clusters export it to every command of a job.
    """
    return os.environ.get("WORLD_SIZE", "1") in ("", "1") or os.environ.get("RANK", "0") == "0"


def training_precision(device: str, precision: str) -> str:
    """Return `bf16` or `no`: `auto` is bf16 on a GPU that computes it natively."""
    if precision != "auto":
        return precision
    device = pick_device(device)
    native = device.startswith("cuda") and fast_precision(device) == "bfloat16"
    return "bf16" if native else "no"


def make_accelerator(device: str, precision: str) -> Accelerator:
    """Make accelerate's handle of this process. Waits until all processes have started.

    Raises UsageError if the environment variables of the launcher or of accelerate are missing or
    wrong.
    """
    _check_launcher()
    import torch
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    device, precision = pick_device(device), training_precision(device, precision)
    # accelerate keeps the settings and the device of its first use for the whole process.
    AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
    if device.startswith("cuda:"):
        torch.cuda.set_device(device)
    with _checked_environment():
        accelerator = Accelerator(cpu=device == "cpu", mixed_precision=precision)
    if (steps := accelerator.gradient_accumulation_steps) != 1:  # it would divide every loss
        raise UsageError(
            f"ACCELERATE_GRADIENT_ACCUMULATION_STEPS is {steps}, expected 1; use --batch-size"
        )
    if accelerator.num_processes > 1:
        _destroy_group_at_exit()
    return accelerator


@contextmanager
def _checked_environment() -> Iterator[None]:
    """Turn errors of accelerate into a UsageError that names the environment variables it reads.

    One process does not look for others: any command in the shell of an MPI job has such variables.
    """
    alone = world_size() <= 1
    hidden = {name: os.environ.pop(name) for name in _set(_OF_LAUNCHERS)} if alone else {}
    try:
        yield
    except Exception as error:  # of torch, accelerate and the packages that it is told to use
        names = [*_set(_OF_LAUNCHERS), *_set(_OF_ACCELERATE)]
        if not names or is_out_of_memory(error):
            raise
        raise UsageError(
            f"accelerate cannot start: {first_line(error).rstrip('.')}; it reads the environment "
            f"variables {', '.join(names)}"
        ) from error
    finally:
        os.environ.update(hidden)


def _set(names: re.Pattern[str]) -> list[str]:
    """Return the environment variables that are set, of those with such names."""
    return sorted(name for name in os.environ if names.fullmatch(name))


@cache
def _destroy_group_at_exit() -> None:
    """End the communication threads before the interpreter exits; otherwise it may abort."""
    import torch.distributed

    def destroy() -> None:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()

    atexit.register(destroy)


def gather(device: str, precision: str, value: Any) -> list[Any]:
    """Return the values of all processes, by rank, in each of them."""
    from accelerate.utils import gather_object

    make_accelerator(device, precision)
    return list(gather_object([value]))
