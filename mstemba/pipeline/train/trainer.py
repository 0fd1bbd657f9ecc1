"""The training loop: AdamW, a schedule, averaged weights, resumable state, several processes.

Every random draw depends on (seed, step) alone. So a resumed run needs no generator's state, and
every process knows the whole batch of which it computes a part.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor, nn

from mstemba.errors import MstembaError
from mstemba.model.architectures import build, make_config
from mstemba.model.config import ModelConfig
from mstemba.model.losses import BatchTotals, LossTerms, detection_loss
from mstemba.model.output import set_prior
from mstemba.model.scan.backends import describe_choice
from mstemba.pipeline.checkpoint import WEIGHTS, save_weights, score
from mstemba.pipeline.dataset.clips import Clip
from mstemba.pipeline.distributed import make_accelerator
from mstemba.pipeline.evaluate.frame_metrics import average_precision, mean_average_precision
from mstemba.pipeline.progress import Event, EventHandler, ProgressReporter
from mstemba.pipeline.train.curves import plot_curves
from mstemba.pipeline.train.loggers import MetricsLogger
from mstemba.pipeline.train.plan import TrainPlan
from mstemba.pipeline.train.sampling import make_batch, prefetch, random_crops
from mstemba.pipeline.train.schedules import cosine_rate, released_rate
from mstemba.pipeline.train.state import STATE, TrainerState, load_state, save_state

LOG_EVERY = 10
# Training videos that the training mAP is measured on: it only shows whether the model learns.
TRAIN_MAP_CLIPS = 8

Value = TypeVar("Value")

Inputs = tuple[Tensor, Tensor, Tensor | None, BatchTotals]
"""Features, labels, mask (None if nothing is padded), and the counts of the whole batch."""


class Trainer:
    """A training run, or one process of a distributed one."""

    def __init__(self, plan: TrainPlan) -> None:
        self._plan, self._options = plan, plan.options
        options, clip = plan.options, plan.training[0]
        self._accelerator = make_accelerator(plan.run_options.device, options.precision)
        self.model_config = make_config(
            options.arch,
            in_features=clip.features.shape[1],
            classes=clip.labels.shape[1],
            width=options.width,
            drop_path=options.drop_path,
            dropout=options.dropout,
        )
        torch.manual_seed(options.seed)
        model = build(self.model_config)
        set_prior(model, options.prior)
        device = self._accelerator.device
        self._average = copy.deepcopy(model).to(device).eval().requires_grad_(False)
        optimizer = torch.optim.AdamW(
            _groups(model, options.weight_decay),
            lr=options.lr,
            fused=device.type == "cuda" or None,  # None: torch chooses, as for any other device
        )
        self._model, self._optimizer = self._accelerator.prepare(model, optimizer)
        self._weights = tuple(model.parameters())
        self._averages = tuple(self._average.parameters())
        self._state = TrainerState()
        self._loss = partial(
            detection_loss,
            auxiliary_weight=options.auxiliary_weight,
            consistency_weight=options.consistency_weight,
            heatmap_weight=options.heatmap_weight,
        )
        # The first steps at which the loss, and the gradient, were not finite; -1 for never. Read
        # only when something is logged: reading them at every step would wait for the device.
        self._first_bad = torch.full((2,), -1, device=device)

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files."""
        return bool(self._accelerator.is_main_process)

    @property
    def step(self) -> int:
        """Optimiser steps taken."""
        return self._state.step

    @property
    def out_of_patience(self) -> bool:
        """Whether the last `patience` checks brought no better validation mAP."""
        return 0 < self._options.patience <= self._state.checks_since_best

    def fit(self, run: Path, on_event: EventHandler) -> float | None:
        """Train to the end, from the saved state of the run if there is one.

        Args:
            run: The run folder; a state in it that another run has left is refused.
            on_event: Called with progress.

        Returns:
            The best validation mAP in percent; None without validation videos.

        Raises:
            MstembaError: The loss or the gradient is not finite. The message names the step and the
                cause; what was saved before stays.
        """
        if (run / STATE).is_file():
            device = self._accelerator.device
            self._state = load_state(run / STATE, self._plan.key, *self._parts(), device)
            on_event(Event("train", f"resuming from step {self.step} of {self._plan.steps}"))
        if isinstance(self.model_config, ModelConfig):
            on_event(Event("train", describe_choice(self._accelerator.device)))
        with MetricsLogger(run, self.step, self._plan) if self.is_main else nullcontext() as logger:
            self._loop(run, logger, on_event)
        if self.is_main:
            save_weights(run / "last" / WEIGHTS, self._average)
            plot_curves(run / "metrics.jsonl", run / "curves.png")
        self._accelerator.wait_for_everyone()
        return self._state.best

    def wait_for_everyone(self) -> None:
        """Wait until every process of a distributed run is here."""
        self._accelerator.wait_for_everyone()

    def _loop(self, run: Path, logger: MetricsLogger | None, on_event: EventHandler) -> None:
        saved_at = time.perf_counter()
        plan, state, steps = self._plan, self._state, self._plan.steps
        first = state.step
        progress = ProgressReporter("train", steps, "steps", on_event)
        with closing(prefetch(self._make_batch, range(first, steps))) as batches:
            while state.step < steps and not self.out_of_patience:
                rate = self._rate(state.step)
                terms = self._train_step(next(batches), rate)
                checked = state.step % plan.check_every == 0 or state.step == steps
                logged = state.step % LOG_EVERY == 0 or checked
                if logged:
                    values = self._global_values(terms, run)
                    if logger:
                        logger.write({"step": state.step, "lr": rate, **values})
                    message = f"step {state.step} of {steps}, loss {values['loss']:.3f}"
                    progress.update(message, state.step, state.step - first)
                if self._options.schedule == "released" and state.step % plan.rate_epoch == 0:
                    state.epoch_loss = self._validation_loss()
                if checked:
                    measured = self._check(run)
                    if logger:
                        logger.write({"step": state.step, **measured})
                # Only after `_global_values`: a state that has diverged is never saved.
                due = time.perf_counter() - saved_at > plan.run_options.checkpoint_seconds
                if logged and self.is_main and due:
                    save_state(run / STATE, plan.key, state, *self._parts())
                    saved_at = time.perf_counter()

    def _parts(self) -> tuple[nn.Module, nn.Module, torch.optim.Optimizer]:
        """Return what a state holds the tensors of."""
        return self._accelerator.unwrap_model(self._model), self._average, self._optimizer

    def _train_step(self, batch: Inputs, rate: float) -> dict[str, Tensor]:
        """Take a step of the optimiser, and return this process's share of the loss terms.

        Nothing here reads a value from the device: the host would wait for it at every step.
        """
        accelerator, state = self._accelerator, self._state
        part, parts = accelerator.process_index, accelerator.num_processes
        # A single process uses the plain seed; the others differ in the low bits, which matter.
        torch.manual_seed(self._options.seed * 1_000_003 + state.step + 1 + part * 2_654_435_761)
        terms = self._forward(*batch)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        # accelerate averages the processes' gradients, but their shares of the loss add up.
        accelerator.backward(terms.total * parts if parts > 1 else terms.total)
        largest = self._options.clip_grad or math.inf
        norm = accelerator.clip_grad_norm_(self._weights, largest)
        self._optimizer.step()
        self._optimizer.zero_grad()
        with torch.no_grad():
            # At first the average follows closely; otherwise it would remember the random start.
            decay = min(self._options.ema, (1 + state.step) / (10 + state.step))
            torch._foreach_lerp_(self._averages, self._weights, 1 - decay)
        state.step += 1
        not_finite = ~torch.isfinite(torch.stack([terms.total.detach(), norm]))
        self._first_bad = self._first_bad.masked_fill(
            (self._first_bad < 0) & not_finite, state.step
        )
        losses = {"loss": terms.total, "final": terms.final, "grad_norm": norm}
        if terms.auxiliary:
            losses |= {"auxiliary": sum(terms.auxiliary), "consistency": terms.consistency}
        if terms.heatmap is not None:
            losses["heatmap"] = terms.heatmap
        return {name: value.detach() for name, value in losses.items()}

    def _forward(
        self, features: Tensor, labels: Tensor, mask: Tensor | None, totals: BatchTotals
    ) -> LossTerms:
        """Return the loss of this process's part of a batch."""
        device = self._accelerator.device
        pinned = device.type == "cuda"
        features, labels = (x.to(device, non_blocking=pinned) for x in (features, labels))
        if mask is not None:
            mask = mask.to(device, non_blocking=pinned)
        self._model.train()
        with self._accelerator.autocast():
            output = self._model(features, mask, checked=True)
        return self._loss(output, labels, mask, totals=totals)

    def _make_batch(self, step: int) -> Inputs:
        """Make this process's part of a step's batch on the CPU, in a thread of its own.

        Raises MstembaError if the features are not finite.
        """
        crops, accelerator = self._crops(step), self._accelerator
        batch = make_batch(crops, accelerator.process_index, accelerator.num_processes)
        if not np.isfinite(batch.features).all():
            raise _bad_features(step + 1, crops)
        tensors = [torch.from_numpy(a) for a in (batch.features, batch.labels, batch.mask)]
        if accelerator.device.type == "cuda":  # pinned memory is copied without waiting
            tensors = [tensor.pin_memory() for tensor in tensors]
        features, labels, mask = tensors
        totals = BatchTotals(batch.clips, batch.rows, batch.actions)
        return features, labels, None if batch.mask.all() else mask, totals

    def _crops(self, step: int) -> list[tuple[Clip, slice]]:
        plan, o = self._plan, self._options
        return random_crops(plan.training, step, plan.batch_size, o.clip_length, o.min_crop, o.seed)

    def _rate(self, step: int) -> float:
        if self._options.schedule == "released":
            return released_rate(self._options, self._state.epoch_loss)
        return cosine_rate(self._options, step, self._plan.steps)

    def _global_values(self, terms: dict[str, Tensor], run: Path) -> dict[str, float]:
        """Return the terms of the whole batch. Raises MstembaError if a step was not finite."""
        shares = torch.stack([value.float() for value in terms.values()])
        bad = self._first_bad[None]
        if self._accelerator.num_processes > 1:
            shares = self._accelerator.reduce(shares, "sum")
            bad = self._accelerator.gather(bad)
        rows: list[list[int]] = bad.tolist()
        loss_steps, gradient_steps = zip(*rows, strict=True)
        if steps := [step for step in (*loss_steps, *gradient_steps) if step > 0]:
            what = "loss" if min(steps) in loss_steps else "gradient"
            raise self._divergence(min(steps), f"the {what} is not finite", run)
        values = dict(zip(terms, shares.tolist(), strict=True))
        return {**values, "grad_norm": float(terms["grad_norm"])}  # the same in every process

    def _divergence(self, step: int, found: str, run: Path) -> MstembaError:
        """Return an error that says why the training stopped at a step, counted from 1."""
        return MstembaError(
            f"training diverged at step {step}: {found}; the features of that step are finite, "
            f"the learning rate was {self._rate(step - 1):.1e}. The last saved weights are in "
            f"{run}. Try a lower --lr, a longer --warmup, or --precision no"
        )

    def _check(self, run: Path) -> dict[str, float]:
        """Measure the mAP of the averaged weights, and save them if they are the best so far."""
        measured = {"train_map": self._map(self._plan.training[:TRAIN_MAP_CLIPS])}
        if self._plan.validation:
            value = measured["val_map"] = self._map(self._plan.validation)
            self._state.checks_since_best += 1
            if self._state.best is None or value > self._state.best:
                self._state.best, self._state.checks_since_best = value, 0
                if self.is_main:
                    save_weights(run / "best" / WEIGHTS, self._average)
        return {name: value for name, value in measured.items() if math.isfinite(value)}

    def _map(self, clips: Sequence[Clip]) -> float:
        """Return the per-frame mAP of the averaged weights in percent."""
        scores = self._for_each(clips, lambda clip: score(self._average, clip.features))
        labels = np.concatenate([clip.labels for clip in clips])
        ap = average_precision(np.concatenate(scores), labels)
        return mean_average_precision(ap, labels.sum(axis=0))

    @torch.no_grad()
    def _validation_loss(self) -> float:
        """Return the loss that the released schedule follows: the mean over validation videos.

        It is that of the trained weights, not of the averaged ones. Videos longer than
        `clip_length` are cut, as in the released code; shorter ones are not padded.
        """
        model = self._accelerator.unwrap_model(self._model).eval()
        device, end = self._accelerator.device, self._options.clip_length

        def loss(clip: Clip) -> float:
            arrays = (clip.features[:end], clip.labels[:end].astype(np.float32))
            features, labels = (torch.from_numpy(a)[None].to(device) for a in arrays)
            return float(self._loss(model(features), labels).total)

        losses = self._for_each(self._plan.validation, loss)
        return math.fsum(losses) / len(losses)

    def _for_each(self, clips: Sequence[Clip], measure: Callable[[Clip], Value]) -> list[Value]:
        """Return the value of every clip, in every process; each of them measures some clips."""
        own = []
        for i in range(
            self._accelerator.process_index, len(clips), self._accelerator.num_processes
        ):
            try:
                own.append((i, measure(clips[i])))
            except MstembaError as error:
                raise MstembaError(f"video {clips[i].id!r}: {error}") from error
        return [value for _, value in sorted(gather_object(own), key=lambda pair: pair[0])]


def _bad_features(step: int, crops: Sequence[tuple[Clip, slice]]) -> MstembaError:
    """Return an error that names the first row in a step's crops that is not finite."""
    id, row = next(
        (clip.id, window.start + int(row))
        for clip, window in crops
        for row in np.flatnonzero(~np.isfinite(clip.features[window]).all(axis=1))
    )
    return MstembaError(
        f"training stopped at step {step}: the features of video {id!r} hold NaN or infinity, "
        f"first in row {row}; extract them again, or remove the video from the manifest"
    )


def _groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return the optimiser's parameter groups: only matrices decay, but not A_log of the scan."""
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        matrix = parameter.ndim >= 2 and not name.endswith("_log")
        (decayed if matrix else free).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]
