"""The next batch is made in a thread while a step runs, and no step waits for the device."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from mstemba.errors import MstembaError
from mstemba.model.baselines.linear import LinearProbe
from mstemba.model.baselines.ms_tct import MSTCT
from mstemba.model.baselines.pdan import PDAN
from mstemba.model.mstemba import MSTemba
from mstemba.pipeline.features.npy_folder import NpyFolder
from mstemba.pipeline.train import trainer
from mstemba.pipeline.train.sampling import Batch, make_batch, prefetch
from tests.training import KilledError, fit, kill_at, make_workspace, records

pytestmark = pytest.mark.usefixtures("one_thread")

NETWORKS = {
    "mstemba": MSTemba,
    "mstemba-v3": MSTemba,
    "ms-tct": MSTCT,
    "pdan": PDAN,
    "linear": LinearProbe,
}


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    return make_workspace(tmp_path / "w")


# The thread


def test_the_next_one_is_made_while_this_one_is_used() -> None:
    begun = [threading.Event() for _ in range(4)]

    def make(step: int) -> int:
        begun[step].set()
        return step

    used = []
    for step in prefetch(make, range(1, 4)):
        used.append(step)
        assert step == 3 or begun[step + 1].wait(10)
        assert not any(event.is_set() for event in begun[step + 2 :])
    assert used == [1, 2, 3]
    assert not begun[0].is_set()
    assert list(prefetch(make, range(4, 4))) == []


def test_an_error_is_raised_at_its_own_step() -> None:
    failed = threading.Event()

    def make(step: int) -> int:
        if step == 2:
            failed.set()
            raise ValueError(f"step {step}")
        return step

    made = prefetch(make, range(9))
    assert [next(made), next(made)] == [0, 1]
    assert failed.wait(10)
    with pytest.raises(ValueError, match="step 2"):
        next(made)


@pytest.mark.parametrize(
    ("end", "made"),
    [
        ({}, (6, 6)),
        ({"patience": 2, "lr": 1e-12, "min_steps": 40}, (6, 7)),
        (KilledError, (4, 5)),
        (KeyboardInterrupt, (4, 5)),
    ],
    ids=["end", "patience", "failure", "ctrl-c"],
)
def test_no_thread_and_no_needless_batch_is_left(
    end: Any, made: tuple[int, int], workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = []

    def counted(*args: Any) -> Batch:
        threads.append(threading.current_thread())
        return make_batch(*args)

    monkeypatch.setattr(trainer, "make_batch", counted)
    if isinstance(end, dict):
        fit(workspace, arch="linear", **end)
    else:
        with pytest.raises(end):
            fit(workspace, arch="linear", on_event=kill_at(4, end))
    assert made[0] <= len(threads) <= made[1]
    assert threading.current_thread() not in threads
    assert not any(thread.is_alive() for thread in threads)


def test_features_that_are_not_finite_stop_the_step_that_needs_them(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "LOG_EVERY", 1)
    read, drawn = NpyFolder.values, []

    def values(self: NpyFolder, id: str) -> Any:
        found = np.array(read(self, id))
        if id == "v3":
            found[-1] = np.inf
        return found

    def recorded(crops: Any, *parts: int) -> Batch:
        drawn.append(crops[0][0].id)
        return make_batch(crops, *parts)

    monkeypatch.setattr(NpyFolder, "values", values)
    monkeypatch.setattr(trainer, "make_batch", recorded)
    with pytest.raises(MstembaError) as caught:
        fit(workspace, arch="linear", batch_size=1, min_crop=1.0)  # whole videos, one by one
    step = drawn.index("v3") + 1
    assert step > 1  # so the batch was made ahead
    assert str(caught.value).startswith(
        f"training stopped at step {step}: the features of video 'v3' hold NaN or infinity, first "
        f"in row 22; extract them again"
    )
    (run,) = (workspace / "runs").glob("linear-*")
    assert len(records(run, "loss")) == step - 1


# Waits

aten = torch.ops.aten
READS_VALUE = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.equal.default,
    aten.is_nonzero.default,
}
"""Operations whose result, or its size, must be known on the CPU."""
INDEX_OPERATIONS = {
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
}
"""Operations that look for the True entries of an index of bool, and wait for their number."""


KNOWN_WAITS = {"aten.nonzero.default in mstemba.model.losses.center_heatmap"}
"""The known wait: MS-TCT's heat map is made from a list of the actions."""


READS_ALL = {torch.Tensor.tolist, torch.Tensor.cpu, torch.Tensor.numpy}
"""Methods that copy from a GPU; on a CPU they dispatch nothing."""


class WaitRecorder(TorchDispatchMode):
    """Records the operations of each training step for which the host would wait for a GPU.

    Those of the optimiser do not count: on a CPU its counters are on the CPU, on a GPU it is fused.
    """

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[list[str]] = []
        self.counts = True

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        by_bool = func in INDEX_OPERATIONS and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        # A tensor made of Python numbers is copied to the device, from memory that is not pinned.
        from_host = func == aten.lift_fresh.default and args[0].ndim > 0
        if func in READS_VALUE or by_bool or from_host:
            self.note(str(func))
        return func(*args, **(kwargs or {}))

    def note(self, wait: str) -> None:
        if self.steps and self.counts:
            frames = (frame for frame, _ in traceback.walk_stack(None))
            names = (f"{f.f_globals['__name__']}.{f.f_code.co_name}" for f in frames)
            caller = next(name for name in names if name.startswith("mstemba."))
            self.steps[-1].append(f"{wait} in {caller}")


class ReadRecorder(TorchFunctionMode):
    """Records the methods that dispatch nothing on a CPU."""

    def __init__(self, recorder: WaitRecorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in READS_ALL:
            self._recorder.note(func.__name__)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def recorder() -> Iterator[WaitRecorder]:
    recorder = WaitRecorder()

    def count(value: bool) -> Any:
        return lambda *args: setattr(recorder, "counts", value)

    hooks = [
        register_optimizer_step_pre_hook(count(False)),
        register_optimizer_step_post_hook(count(True)),
    ]
    yield recorder
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("batch_size", [1, 2], ids=["whole", "padded"])
@pytest.mark.parametrize("arch", NETWORKS)
def test_no_step_waits_for_the_device(
    arch: str,
    batch_size: int,
    workspace: Path,
    recorder: WaitRecorder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    forward = NETWORKS[arch].forward
    padded = set()

    def recorded(self: Any, features: Any, mask: Any = None, **options: Any) -> Any:
        if self.training:  # a step reaches from here to the next one's forward pass
            padded.add(mask is not None)
            recorder.steps.append([])
        return forward(self, features, mask, **options)

    monkeypatch.setattr(NETWORKS[arch], "forward", recorded)
    with recorder, ReadRecorder(recorder):
        fit(workspace, arch=arch, batch_size=batch_size, min_steps=12, dropout=0.1, drop_path=0.1)
    epoch = 5 if batch_size == 1 else 3  # steps
    logged = {step for step in range(1, 13) if step % epoch == 0 or step in (10, 12)}
    assert padded == {False} if batch_size == 1 else True in padded
    waits = {
        step: {
            wait for wait in set(found) - KNOWN_WAITS if " in mstemba.model.scan.cpu." not in wait
        }
        for step, found in enumerate(recorder.steps, 1)
    }
    read = "tolist in mstemba.pipeline.train.trainer._global_values"
    assert {step for step in waits if read in waits[step]} == logged
    assert {step: waits[step] for step in waits if waits[step] and step not in logged} == {}
