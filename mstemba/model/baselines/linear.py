"""A linear probe: the classes of every row from its own features, for comparison."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mstemba.model.config import LinearConfig
from mstemba.model.inputs import check_features, padded_steps, zero_padding
from mstemba.model.output import Output, initialise_head


class LinearProbe(nn.Module):
    """LayerNorm, which makes the scale of the features irrelevant, and one linear layer."""

    def __init__(self, config: LinearConfig) -> None:
        super().__init__()
        self.config = config
        self.norm = nn.LayerNorm(config.in_features)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(config.in_features, config.classes)
        initialise_head(self.head)

    def forward(
        self, features: Tensor, mask: Tensor | None = None, *, checked: bool = False
    ) -> Output:
        """Score every row (B, T, F) by itself; arguments and errors as of ``MSTemba``."""
        lengths = check_features(features, mask, self.config.in_features, checked)
        features = features.to(self.head.weight.dtype)
        x = zero_padding(features, padded_steps(lengths, features.shape[1]))
        logits = self.head(self.dropout(self.norm(x)))
        return Output(logits, [], torch.zeros((), device=logits.device))
