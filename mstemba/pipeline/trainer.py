"""The optimisation itself: AdamW, warm-up and cosine by step, averaged weights, resumable state.

Every random draw follows from (seed, step) alone, so a resumed run needs no generator's state.
"""

from __future__ import annotations

import copy
import json
import math
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from tensorboard.compat.proto.event_pb2 import Event as EventRecord
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import Tensor, nn

from mstemba.errors import MstembaError, UsageError
from mstemba.model.architectures import build, make_config
from mstemba.model.checkpoint import save_weights
from mstemba.model.config import ModelConfig
from mstemba.model.losses import detection_loss
from mstemba.model.scan import explain
from mstemba.pipeline import plots
from mstemba.pipeline.checkpoint import WEIGHTS, score
from mstemba.pipeline.dataset import Clip, random_batch
from mstemba.pipeline.devices import pick_device
from mstemba.pipeline.files import TEMPORARY, write_atomically, write_text
from mstemba.pipeline.metrics import average_precision, mean_average_precision
from mstemba.pipeline.options import TrainOptions
from mstemba.pipeline.progress import Event, Listener

if TYPE_CHECKING:
    from mstemba.model.architectures import Network

STATE = "state.safetensors"
LOG_EVERY = 10
# How many training videos the training mAP is measured on: it only shows whether the model learns.
TRAIN_MAP_CLIPS = 8


class Trainer:
    """One training run."""

    def __init__(
        self,
        options: TrainOptions,
        training: Sequence[Clip],
        validation: Sequence[Clip],
        batch_size: int,
        steps: int,
    ) -> None:
        self._options = options
        self._training, self._validation = training, validation
        self._batch_size, self._steps = batch_size, steps
        self._accelerator = _accelerator(options)
        self.model_config = make_config(
            options.arch,
            in_features=training[0].features.shape[1],
            classes=training[0].labels.shape[1],
            drop_path=options.drop_path,
            dropout=options.dropout,
        )
        torch.manual_seed(options.seed)
        model = build(self.model_config)
        self._average = (
            copy.deepcopy(model).to(self._accelerator.device).eval().requires_grad_(False)
        )
        optimizer = torch.optim.AdamW(_groups(model, options.weight_decay), lr=options.lr)
        self._model, self._optimizer = self._accelerator.prepare(model, optimizer)
        self._step = 0
        self._best: float | None = None

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files."""
        return bool(self._accelerator.is_main_process)

    def fit(self, run: Path, check_every: int, key: str, listen: Listener) -> float | None:
        """Train to the end; the best validation mAP in percent, None without validation videos."""
        if self.is_main:
            _clear_half_written(run)
        if (run / STATE).is_file():
            self._load_state(run / STATE, key)
            listen(Event("train", f"going on from step {self._step} of {self._steps}"))
        if isinstance(self.model_config, ModelConfig):
            listen(Event("train", explain(self._accelerator.device)))
        log = _Log(run, self._step) if self.is_main else None
        saved = begin = time.perf_counter()
        first = self._step
        while self._step < self._steps:
            terms = self._train_step()
            at_check = self._step % check_every == 0 or self._step == self._steps
            if self._step % LOG_EVERY == 0 or at_check:
                values = {name: float(value) for name, value in terms.items()}
                if not math.isfinite(loss := values["loss"]):
                    raise MstembaError(
                        f"training diverged: the loss is {loss} at step {self._step}. "
                        f"Try a lower --lr, and look for NaN in the features"
                    )
                if log:
                    log.write({"step": self._step, "lr": self._rate(self._step - 1), **values})
                rate = (self._step - first) / (time.perf_counter() - begin)
                listen(
                    Event(
                        "train",
                        f"step {self._step}, loss {loss:.3f}, {rate:.1f} steps/s",
                        self._step,
                        self._steps,
                    )
                )
            if at_check and self.is_main:
                assert log is not None
                log.write({"step": self._step, **self._check(run)})
                if time.perf_counter() - saved > self._options.checkpoint_seconds:
                    self._save_state(run / STATE, key)
                    saved = time.perf_counter()
        if self.is_main:
            save_weights(run / "last" / WEIGHTS, self._average)
            plots.curves(run / "metrics.jsonl", run / "curves.png")
        self._accelerator.wait_for_everyone()
        return self._best

    def wait(self) -> None:
        """Until every process of a distributed run is here."""
        self._accelerator.wait_for_everyone()

    def forget_state(self, run: Path) -> None:
        """Delete the resumable state of a finished run."""
        (run / STATE).unlink(missing_ok=True)

    def _train_step(self) -> dict[str, Tensor]:
        options, accelerator = self._options, self._accelerator
        # Processes draw different batches; one process draws what it would draw alone.
        draw = self._step * accelerator.num_processes + accelerator.process_index
        torch.manual_seed(options.seed * 1_000_003 + draw + 1)
        arrays = random_batch(
            self._training,
            draw,
            self._batch_size,
            options.clip_length,
            options.min_crop,
            options.seed,
        )
        features, labels, mask = (torch.from_numpy(a).to(accelerator.device) for a in arrays)
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate(self._step)
        self._model.train()
        with accelerator.autocast():
            output = self._model(features, mask)
        terms = detection_loss(
            output,
            labels,
            mask,
            auxiliary_weight=options.auxiliary_weight,
            consistency_weight=options.consistency_weight,
        )
        accelerator.backward(terms.total)
        norm = accelerator.clip_grad_norm_(self._model.parameters(), options.clip_grad)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._update_average()
        self._step += 1
        losses = {"loss": terms.total, "final": terms.final, "grad_norm": norm}
        if terms.auxiliary:
            losses |= {"auxiliary": sum(terms.auxiliary), "consistency": terms.consistency}
        if terms.heatmap is not None:
            losses["heatmap"] = terms.heatmap
        return {name: value.detach() for name, value in losses.items()}

    def _rate(self, step: int) -> float:
        """Learning rate: a linear rise, then half a cosine to nothing, by optimiser step."""
        rise = max(1, round(self._options.warmup * self._steps))
        if step < rise:
            return self._options.lr * (step + 1) / rise
        done = (step - rise) / max(1, self._steps - rise)
        return self._options.lr * 0.5 * (1 + math.cos(math.pi * done))

    @torch.no_grad()
    def _update_average(self) -> None:
        # Early on the average follows closely, else it would remember the random start.
        decay = min(self._options.ema, (1 + self._step) / (10 + self._step))
        model = self._accelerator.unwrap_model(self._model)
        torch._foreach_lerp_(list(self._average.parameters()), list(model.parameters()), 1 - decay)

    def _check(self, run: Path) -> dict[str, float]:
        """mAP of the averaged weights; the best on the validation videos are written down."""
        measured = {"train_map": _map(self._average, self._training[:TRAIN_MAP_CLIPS])}
        if self._validation:
            value = measured["val_map"] = _map(self._average, self._validation)
            if self._best is None or value > self._best:
                self._best = value
                save_weights(run / "best" / WEIGHTS, self._average)
        return {name: value for name, value in measured.items() if math.isfinite(value)}

    def _save_state(self, path: Path, key: str) -> None:
        model = self._accelerator.unwrap_model(self._model)
        tensors = {f"model.{n}": p.detach() for n, p in model.named_parameters()}
        tensors |= {f"average.{n}": p for n, p in self._average.named_parameters()}
        for name, parameter in model.named_parameters():
            for part, value in self._moments(parameter).items():
                tensors[f"{part}.{name}"] = value
        metadata = {"key": key, "step": str(self._step), "best": json.dumps(self._best)}
        content = safetensors.torch.save(tensors, metadata)
        write_atomically(path, lambda temporary: temporary.write_bytes(content))

    def _load_state(self, path: Path, key: str) -> None:
        with safetensors.safe_open(path, "pt", device=str(self._accelerator.device)) as file:
            metadata = file.metadata()
            if metadata.get("key") != key:
                raise UsageError(f"{path}: belongs to another run; delete it to begin again")
            model = self._accelerator.unwrap_model(self._model)
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    parameter.copy_(file.get_tensor(f"model.{name}"))
                    self._optimizer.state[parameter] = {
                        "step": torch.tensor(float(metadata["step"])),
                        "exp_avg": file.get_tensor(f"exp_avg.{name}"),
                        "exp_avg_sq": file.get_tensor(f"exp_avg_sq.{name}"),
                    }
                for name, parameter in self._average.named_parameters():
                    parameter.copy_(file.get_tensor(f"average.{name}"))
        self._step, self._best = int(metadata["step"]), json.loads(metadata["best"])

    def _moments(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self._optimizer.state[parameter]
        return {part: state[part] for part in ("exp_avg", "exp_avg_sq")}


def _accelerator(options: TrainOptions) -> Accelerator:
    device = pick_device(options.device)
    precision = options.precision
    if precision == "auto":
        precision = "bf16" if device.startswith("cuda") and torch.cuda.is_bf16_supported() else "no"
    # accelerate keeps the settings and the device of its first use for the whole process.
    AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
    if device.startswith("cuda:"):
        torch.cuda.set_device(device)
    return Accelerator(cpu=device == "cpu", mixed_precision=precision)


def _groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Decay for matrices only; not for vectors, and not for A_log and D of the scan."""
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        matrix = parameter.ndim >= 2 and not name.endswith("_log")
        (decayed if matrix else free).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]


def _map(model: Network, clips: Sequence[Clip]) -> float:
    scores = np.concatenate([score(model, clip.features) for clip in clips])
    labels = np.concatenate([clip.labels for clip in clips])
    return mean_average_precision(average_precision(scores, labels), labels.sum(axis=0))


def _clear_half_written(run: Path) -> None:
    """Delete the temporary files that a killed run left; they are as large as the model."""
    for pattern in (f"{TEMPORARY}*", ".*.tmp"):
        for file in run.rglob(pattern):
            file.unlink()


class _Log:
    """metrics.jsonl and TensorBoard; a resumed run drops what the killed one wrote too far."""

    def __init__(self, run: Path, step: int) -> None:
        self._path = run / "metrics.jsonl"
        lines = self._path.read_text().splitlines() if self._path.is_file() else []
        kept = [line for line in lines if _step_of(line) <= step]
        write_text(self._path, "".join(line + "\n" for line in kept))
        self._board = _Board(run / "tensorboard")
        for line in kept:
            self._board.write(json.loads(line))

    def write(self, values: dict[str, float]) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(values) + "\n")
        self._board.write(values)


class _Board:
    """One TensorBoard event file, begun anew.

    torch's SummaryWriter writes from a thread, which can only print what goes wrong; this one
    raises in the caller when the disk is full.
    """

    def __init__(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self._file = (folder / f"events.out.tfevents.{time.time():.0f}").open("wb")
        self._records = RecordWriter(self._file)
        self._add(EventRecord(wall_time=time.time(), file_version="brain.Event:2"))

    def write(self, values: dict[str, float]) -> None:
        summary = Summary(
            value=[
                Summary.Value(tag=name, simple_value=value)
                for name, value in values.items()
                if name != "step"
            ]
        )
        step = int(values["step"])
        self._add(EventRecord(wall_time=time.time(), step=step, summary=summary))

    def _add(self, record: EventRecord) -> None:
        self._records.write(record.SerializeToString())
        self._file.flush()


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError):
        return math.inf  # a line that the kill cut in two
