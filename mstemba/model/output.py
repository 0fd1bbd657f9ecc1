"""The output of the networks, and the initialisation of their heads."""

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
    """(B, T, C) from the head of each scale, for ``mstemba-v3``; otherwise empty."""
    consistency: Tensor
    """Scalar: how much the streams of a scale differ in their C states; 0, possibly on the CPU,
    except of ``mstemba-v3``."""
    center_logits: Tensor | None = None
    """(B, T, C): is the centre of an action here? Of ``ms-tct`` in training, otherwise None."""


@torch.no_grad()
def initialise_head(head: nn.Linear | nn.Conv1d) -> None:
    """Initialise a head: small weights, and a bias that gives every class the probability PRIOR."""
    assert head.bias is not None
    nn.init.trunc_normal_(head.weight, std=0.02)
    nn.init.constant_(head.bias, _logit(PRIOR))
    head.is_head = True  # type: ignore[assignment]


@torch.no_grad()
def set_prior(model: nn.Module, prior: float) -> None:
    """Set the biases of a network's heads so that every class has this probability."""
    for head in model.modules():
        if getattr(head, "is_head", False):
            assert isinstance(head.bias, Tensor)
            nn.init.constant_(head.bias, _logit(prior))


def _logit(probability: float) -> float:
    return math.log(probability / (1 - probability))
