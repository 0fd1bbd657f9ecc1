"""The training loss: cross-entropy of the fused and the scales' scores, consistency, heat map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mstemba.errors import UsageError
from mstemba.model.inputs import check_mask
from mstemba.model.output import Output

Reduction = Literal["steps", "elements", "released"]

REACH = 2
"""An action is in the heat map up to this many of its lengths on either side of its centre."""


@dataclass(frozen=True)
class LossTerms:
    """Scalars with gradients. ``total`` is minimised; the others are its unweighted terms."""

    total: Tensor
    final: Tensor
    auxiliary: tuple[Tensor, ...]
    """One per scale, fine to coarse; of ``mstemba-v3``, empty for the others."""
    consistency: Tensor
    heatmap: Tensor | None = None
    """Of the actions' centres; of ``ms-tct``, None for the others."""


@dataclass(frozen=True)
class BatchTotals:
    """The divisors of the losses: counts over a whole batch, of which a process has a part."""

    clips: int
    steps: int
    """Real steps, not padded ones."""
    actions: int
    """Maximal stretches of consecutive positive labels of a class, each in a single clip."""


def detection_loss(
    output: Output,
    labels: Tensor,
    mask: Tensor | None = None,
    *,
    auxiliary_weight: float = 0.3,
    consistency_weight: float = 100.0,
    heatmap_weight: float = 0.05,
    reduction: Reduction = "steps",
    totals: BatchTotals | None = None,
) -> LossTerms:
    """Compute the training loss, the weighted sum of the terms that the output has:

    final + auxiliary_weight * sum(auxiliary) + consistency_weight * consistency
    + heatmap_weight * heatmap

    Args:
        output: of the network, for B clips of T steps and C classes.
        labels: (B, T, C), 0 or 1, any numeric type.
        mask: (B, T) bool, True at real steps; all of them when None.
        heatmap_weight: alpha of MS-TCT (arXiv 2112.03902, section 3.4); 0.05 is the authors'.
        reduction: ``steps`` divides the cross-entropy, summed over real steps and all classes, by
            the number of real steps; ``elements`` also divides by C; ``released`` does as the
            authors' code: padded steps count in the sum, but not in the divisor. The heat map is
            divided by the number of actions.
        totals: Of the batch of which these clips are a part; None if they are all of it. With
            it every term is the part's share, and the shares of all parts add up.

    Raises:
        UsageError: labels or mask of another shape, no real step, or an unknown reduction.
    """
    shape = tuple(output.logits.shape)
    if tuple(labels.shape) != shape:
        raise UsageError(f"labels: found shape {tuple(labels.shape)}, expected {shape}")
    if mask is not None:
        check_mask(mask, shape[:2])
    real_steps = totals.steps if totals else _count_steps(shape, mask)
    if real_steps == 0:
        raise UsageError("mask: found no real step, expected at least one")
    if reduction not in ("steps", "elements", "released"):
        raise UsageError(f"reduction: found {reduction!r}, expected steps, elements or released")
    divisor = real_steps * (labels.shape[2] if reduction == "elements" else 1)
    counted = None if reduction == "released" else mask

    heads = [output.logits, *output.scale_logits]
    entropies = _cross_entropy(heads, labels, counted) / divisor
    final, *auxiliary = entropies.unbind() if len(heads) > 1 else [entropies.squeeze(0)]
    # A mean over clips: the share of a part is proportional to its number of clips.
    part = len(labels) / totals.clips if totals else 1.0
    consistency = output.consistency if part == 1 else output.consistency * part
    total = torch.add(final, consistency, alpha=consistency_weight)
    if auxiliary:
        total = torch.add(total, entropies[1:].sum(), alpha=auxiliary_weight)
    heatmap = None
    if output.center_logits is not None:
        heatmap = _center_loss(output.center_logits, labels, mask, totals)
        total = torch.add(total, heatmap, alpha=heatmap_weight)
    return LossTerms(total, final, tuple(auxiliary), consistency, heatmap)


def center_heatmap(labels: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the heat map of the actions' centres (MS-TCT, arXiv 2112.03902, section 3.4).

    An action is a maximal stretch of consecutive positive labels of one class. With its middle m
    (the later one of two) and its length of d steps, it puts exp(-((t - m) / (d + 1/4))^2) at the
    steps t from m - 2d to m + 2d, the width of the authors' code; of several actions of a class
    the largest value counts.

    Args:
        labels: (B, T, C), 0 or 1, any numeric type.
        mask: (B, T) bool, True at real steps; there are no actions elsewhere. All when None.

    Returns:
        The heat map (B, T, C) in [0, 1], float32, and its centres (B, T, C), bool.
    """
    active = labels > 0.5
    if mask is not None:
        active = active & mask[..., None]
    active = active.transpose(1, 2)
    clips, classes, steps = active.shape
    edges = torch.diff(F.pad(active.flatten(0, 1).to(torch.int8), (1, 1)))
    # Both lists go row by row and forwards in time: the i-th end is that of the i-th beginning.
    row, begin = (edges == 1).nonzero(as_tuple=True)
    end = (edges == -1).nonzero(as_tuple=True)[1]
    middle, length = (begin + end) // 2, (end - begin)[:, None]
    distance = torch.arange(steps, device=labels.device) - middle[:, None]
    bumps = torch.exp(-((distance / (length + 0.25)) ** 2))
    bumps = bumps.masked_fill(distance.abs() > REACH * length, 0)
    heat = bumps.new_zeros(clips * classes, steps)
    heat = heat.scatter_reduce(0, row[:, None].expand_as(bumps), bumps, "amax")
    centers = torch.zeros_like(heat, dtype=torch.bool)
    centers[row, middle] = True
    shape = (clips, classes, steps)
    return heat.view(shape).transpose(1, 2), centers.view(shape).transpose(1, 2)


def _count_steps(shape: tuple[int, ...], mask: Tensor | None) -> int:
    return shape[0] * shape[1] if mask is None else int(mask.sum())


def _cross_entropy(heads: list[Tensor], labels: Tensor, mask: Tensor | None) -> Tensor:
    """Return the cross-entropy of K heads' logits (B, T, C), summed over the steps in ``mask``.

    In float32, (K,). Steps are not picked by the mask: how many they are would be waited for.
    """
    logits = (torch.stack(heads) if len(heads) > 1 else heads[0][None]).float()
    labels, weight = labels.float(), None
    if mask is not None:
        padding_mask = ~mask[..., None]
        logits, labels = logits.masked_fill(padding_mask, 0), labels.masked_fill(padding_mask, 0)
        weight = mask[..., None].float()
    losses = F.binary_cross_entropy_with_logits(
        logits, labels.expand_as(logits), weight, reduction="none"
    )
    return losses.sum((1, 2, 3))


def _center_loss(
    logits: Tensor, labels: Tensor, mask: Tensor | None, totals: BatchTotals | None
) -> Tensor:
    """Return the focal loss of the heat map, summed over real steps, divided by the actions.

    With the target g and the probability p: -(1 - p)^2 log p at a centre and
    -(1 - g)^4 p^2 log(1 - p) elsewhere (CornerNet, arXiv 1808.01244, equation 1).
    """
    heat, centers = center_heatmap(labels, mask)
    x = logits.float()
    p = torch.sigmoid(x)
    at_center = (1 - p) ** 2 * F.logsigmoid(x)
    elsewhere = (1 - heat) ** 4 * p**2 * F.logsigmoid(-x)
    terms = torch.where(centers, at_center, elsewhere)
    if mask is not None:
        terms = terms.masked_fill(~mask[..., None], 0)
    actions = max(1, totals.actions) if totals else centers.sum().clamp(min=1)
    return -terms.sum() / actions
