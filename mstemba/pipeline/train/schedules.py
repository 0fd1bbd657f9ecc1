"""The learning-rate schedules."""

from __future__ import annotations

import math

from mstemba.pipeline.options import TrainOptions


def cosine_rate(options: TrainOptions, step: int, steps: int) -> float:
    """Return the rate of a step: a linear warm-up to the peak, then half a cosine to the floor."""
    rise = max(1, round(options.warmup * steps))
    if step < rise:
        return options.warmup_lr + (options.lr - options.warmup_lr) * (step + 1) / rise
    done = (step - rise) / max(1, steps - rise)
    return options.min_lr + (options.lr - options.min_lr) * 0.5 * (1 + math.cos(math.pi * done))


def released_rate(options: TrainOptions, loss: float | None) -> float:
    """Return the rate of an epoch as the authors' code sets it, from the last validation loss.

    Their schedule (timm's CosineLRScheduler: a rise over the warm-up epochs, a cosine over all
    epochs, the floor from then on) is a function of the epoch, but is called with the validation
    loss. A loss above the number of epochs keeps the rate at its floor.

    Args:
        options: Peak, floor, warm-up and epochs.
        loss: The validation loss after the previous epoch; None in the first epoch.
    """
    rise = options.warmup * options.epochs
    if loss is None:
        return options.warmup_lr if rise else options.lr
    if loss < rise:
        return options.warmup_lr + (options.lr - options.warmup_lr) * loss / rise
    if loss < options.epochs:
        done = loss / options.epochs
        return options.min_lr + (options.lr - options.min_lr) * 0.5 * (1 + math.cos(math.pi * done))
    return options.min_lr
