"""The metrics of a training: metrics.jsonl, and optionally TensorBoard and Weights & Biases."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import re
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from mstemba.errors import UsageError
from mstemba.pipeline.caching.files import write_text
from mstemba.pipeline.train.metrics_file import METRICS, read_rows
from mstemba.pipeline.train.plan import TrainPlan
from mstemba.reading.files import real_path


def check_installed(names: tuple[str, ...]) -> None:
    """Raise UsageError if the package of a tracker is missing."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UsageError(
                f"--trackers {','.join(names)}: the package {name} is not installed; "
                f"pip install 'mstemba[{name}]', or choose among tensorboard, wandb and none"
            )


class MetricsLogger:
    """Writes a run's metrics. A resumed run drops what the killed one wrote after `step`.

    A context manager: leaving it closes the trackers, and tells them whether the run failed.
    """

    def __init__(self, run: Path, step: int, plan: TrainPlan) -> None:
        self._path = run / METRICS
        kept = io.BytesIO()
        if self._path.is_file():
            for line, row in read_rows(self._path):
                if row and row["step"] <= step:
                    kept.write(line.rstrip(b"\r\n") + b"\n")
        write_text(self._path, kept.getvalue().decode())
        self._trackers: list[_TensorBoard | _WandB] = []
        names = plan.run_options.tracker_names
        if "tensorboard" in names:
            board = _TensorBoard(run / "tensorboard")
            for _, row in read_rows(self._path):
                board.write(**(row or {}))
            self._trackers.append(board)
        if "wandb" in names:
            self._trackers.append(_WandB(run, plan))

    def write(self, values: dict[str, float]) -> None:
        """Add the numbers of one step; `step` is one of them."""
        with self._path.open("a") as file:
            file.write(json.dumps(values) + "\n")
        for tracker in self._trackers:
            tracker.write(**values)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        for tracker in self._trackers:
            tracker.close(failed=kind is not None)


class _TensorBoard:
    """A new TensorBoard event file.

    torch's SummaryWriter writes from a thread, which can only print its errors; this one raises in
    the caller if the disk is full.
    """

    def __init__(self, folder: Path) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self._file = (folder / f"events.out.tfevents.{time.time():.0f}").open("wb")
        self._records = RecordWriter(self._file)
        self._add(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def write(self, step: float, **values: float) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        summary = Summary(
            value=[Summary.Value(tag=n, simple_value=value) for n, value in values.items()]
        )
        self._add(Event(wall_time=time.time(), step=int(step), summary=summary))

    def close(self, failed: bool) -> None:
        self._file.close()

    def _add(self, record: Any) -> None:
        self._records.write(record.SerializeToString())
        self._file.flush()


class _WandB:
    """A run of Weights & Biases, in the project `mstemba` unless WANDB_PROJECT names another.

    Its own environment variables apply: WANDB_MODE=offline keeps everything in the run's folder.
    """

    def __init__(self, run: Path, plan: TrainPlan) -> None:
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "mstemba"),
            name=real_path(run).name,
            # A resumed run continues its record. wandb refuses blanks at the ends of an id, some
            # punctuation, and more than 128 characters.
            id=re.sub(r"[^\w.-]", "-", f"{plan.key[:16]}-{real_path(run).name}")[:128],
            resume="allow",
            dir=run,
            config=asdict(plan.options),
            settings=wandb.Settings(silent=True),
        )

    def write(self, step: float, **values: float) -> None:
        self._run.log(values, step=int(step))

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))
