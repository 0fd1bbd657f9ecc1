"""The training loss: cross-entropy of the fused scores and of every scale, and consistency."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mstemba.errors import UsageError
from mstemba.model.mstemba import Output

Reduction = Literal["steps", "elements", "released"]


@dataclass(frozen=True)
class LossTerms:
    """Scalars, with gradient; ``total`` is what is minimised, the others are unweighted."""

    total: Tensor
    final: Tensor
    auxiliary: tuple[Tensor, ...]
    """One per scale, fine to coarse; empty for ``mstemba``."""
    consistency: Tensor


def detection_loss(
    output: Output,
    labels: Tensor,
    mask: Tensor | None = None,
    *,
    auxiliary_weight: float = 0.3,
    consistency_weight: float = 100.0,
    reduction: Reduction = "steps",
) -> LossTerms:
    """final + auxiliary_weight * sum(auxiliary) + consistency_weight * consistency.

    Args:
        output: of the network, for B clips of T steps and C classes.
        labels: (B, T, C), 0 or 1, any numeric type.
        mask: (B, T) bool, True at real steps; all of them when None.
        reduction: ``steps`` divides the cross-entropy summed over real steps and all classes by the
            number of real steps; ``elements`` further divides by C; ``released`` is the authors'
            code: padded steps are in the sum, but not in the number it is divided by.

    Raises:
        UsageError: labels or mask of another shape, no real step, or an unknown reduction.
    """
    shape = tuple(output.logits.shape)
    if tuple(labels.shape) != shape:
        raise UsageError(f"labels: found shape {tuple(labels.shape)}, expected {shape}")
    if mask is None:
        mask = torch.ones(shape[:2], dtype=torch.bool, device=labels.device)
    if mask.dtype != torch.bool or tuple(mask.shape) != shape[:2]:
        raise UsageError(
            f"mask: found {mask.dtype} of shape {tuple(mask.shape)}, "
            f"expected torch.bool of shape {shape[:2]}"
        )
    real_steps = int(mask.sum())
    if real_steps == 0:
        raise UsageError("mask: found no real step, expected at least one")
    if reduction not in ("steps", "elements", "released"):
        raise UsageError(f"reduction: found {reduction!r}, expected steps, elements or released")
    divisor = real_steps * (shape[2] if reduction == "elements" else 1)
    counted = None if reduction == "released" else mask

    final = _cross_entropy(output.logits, labels, counted) / divisor
    auxiliary = tuple(_cross_entropy(x, labels, counted) / divisor for x in output.scale_logits)
    total = final + consistency_weight * output.consistency
    for term in auxiliary:
        total = total + auxiliary_weight * term
    return LossTerms(total, final, auxiliary, output.consistency)


def _cross_entropy(logits: Tensor, labels: Tensor, mask: Tensor | None) -> Tensor:
    """Summed over the steps in ``mask``, in float32."""
    if mask is not None:
        logits, labels = logits[mask], labels[mask]
    return F.binary_cross_entropy_with_logits(logits.float(), labels.float(), reduction="sum")
