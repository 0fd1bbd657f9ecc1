"""What every network returns, and where an untrained one starts."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

PRIOR = 0.02
"""Probability that an untrained head gives every class, so that the first steps of training are not
spent on learning that positives are rare (Lin et al., arXiv 1708.02002, section 3.3)."""


class Output(NamedTuple):
    """What a network returns for B clips of T steps and C classes."""

    logits: Tensor
    """(B, T, C)."""
    scale_logits: list[Tensor]
    """(B, T, C) from the head of each scale; of ``mstemba-v3``, empty for the others."""
    consistency: Tensor
    """Scalar: how far the streams of a scale differ in their C states; 0 but for ``mstemba-v3``."""
    center_logits: Tensor | None = None
    """(B, T, C): is the middle of an action here? From ``ms-tct`` in training, else None."""


@torch.no_grad()
def initialise_head(head: nn.Linear | nn.Conv1d) -> None:
    """Small weights, and a bias that gives every class the probability PRIOR."""
    assert head.bias is not None
    nn.init.trunc_normal_(head.weight, std=0.02)
    nn.init.constant_(head.bias, _logit(PRIOR))
    head.is_head = True  # type: ignore[assignment]


@torch.no_grad()
def set_prior(model: nn.Module, prior: float) -> None:
    """Let the heads of an untrained network give every class this probability."""
    for head in model.modules():
        if getattr(head, "is_head", False):
            assert isinstance(head.bias, Tensor)
            nn.init.constant_(head.bias, _logit(prior))


def _logit(probability: float) -> float:
    return math.log(probability / (1 - probability))
