"""PDAN: Pyramid Dilated Attention Network (Dai et al., WACV 2021, pp. 2970-2979).

A bottleneck, then blocks of dilated attention whose reach doubles from block to block, each with a
residual connection, and a linear head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mstemba.model.config import PDANConfig
from mstemba.model.convolution import convolve
from mstemba.model.inputs import check_features, padded_steps, zero_padding
from mstemba.model.output import Output, initialise_head

TAPS = 3
"""Steps that a dilated attention layer looks at: t - dilation, t and t + dilation."""


class DilatedAttention(nn.Module):
    """Attention over the three steps t - d, t, t + d, with weights of its own for every channel.

    The paper's Dilated Attention Layer (DAL) as the authors released it: a channel's weights are
    the softmax over the three of query times key, and a learned offset for each of the three
    is added to the values. Steps beyond either end are zero, as in a padded convolution.
    """

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.dilation = dilation
        self.rel_t = nn.Parameter(torch.randn(width, 1, TAPS))
        # Without bias: a key or value of a step that is zero stays zero.
        self.key_conv = nn.Conv1d(width, width, 1, bias=False)
        self.query_conv = nn.Conv1d(width, width, 1, bias=False)
        self.value_conv = nn.Conv1d(width, width, 1, bias=False)
        for conv in (self.key_conv, self.query_conv, self.value_conv):
            nn.init.kaiming_normal_(conv.weight, mode="fan_out")

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, T), zero at padded steps, to the same."""
        keys = self._neighbours(_pointwise(x, self.key_conv))
        values = self._neighbours(_pointwise(x, self.value_conv)) + self.rel_t
        weights = (_pointwise(x, self.query_conv)[..., None] * keys).softmax(-1)
        y: Tensor = (weights * values).sum(-1)
        return y

    def _neighbours(self, x: Tensor) -> Tensor:
        """(B, width, T) to (B, width, T, 3): every step's neighbours, zero beyond the ends."""
        padded, steps = F.pad(x, (self.dilation, self.dilation)), x.shape[2]
        shifts = range(0, TAPS * self.dilation, self.dilation)
        return torch.stack([padded[..., shift : shift + steps] for shift in shifts], dim=-1)


class PDANBlock(nn.Module):
    """x + dropout(linear(relu(attention(x))))."""

    def __init__(self, width: int, dilation: int, dropout: float) -> None:
        super().__init__()
        self.conv_attention = DilatedAttention(width, dilation)
        self.conv_1x1 = nn.Conv1d(width, width, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, T), zero at padded steps, to the same shape."""
        y: Tensor = self.dropout(_pointwise(F.relu(self.conv_attention(x)), self.conv_1x1))
        return x + y


class PDANStage(nn.Module):
    """Bottleneck, blocks of dilation 1, 2, 4, ..., head."""

    def __init__(self, config: PDANConfig) -> None:
        super().__init__()
        width = config.width
        self.conv_1x1 = nn.Conv1d(config.in_features, width, 1)
        self.layers = nn.ModuleList(
            PDANBlock(width, 2**i, config.dropout) for i in range(config.blocks)
        )
        self.conv_out = nn.Conv1d(width, config.classes, 1)
        initialise_head(self.conv_out)

    def forward(self, x: Tensor, padding_mask: Tensor | None) -> Tensor:
        """(B, F, T) to (B, C, T); ``padding_mask`` is (B, 1, T), True at padded steps."""
        x = zero_padding(_pointwise(x, self.conv_1x1), padding_mask)
        for layer in self.layers:
            x = zero_padding(layer(x), padding_mask)
        return _pointwise(x, self.conv_out)


class PDAN(nn.Module):
    """The network, of one stage. Parameter names are those of the authors' checkpoints."""

    def __init__(self, config: PDANConfig) -> None:
        super().__init__()
        self.config = config
        self.stage1 = PDANStage(config)

    def forward(
        self, features: Tensor, mask: Tensor | None = None, *, checked: bool = False
    ) -> Output:
        """Score every step (B, T, F) of every clip; arguments and errors as of ``MSTemba``."""
        lengths = check_features(features, mask, self.config.in_features, checked)
        padding_mask = padded_steps(lengths, features.shape[1])
        x = zero_padding(features.to(self.stage1.conv_1x1.weight.dtype), padding_mask)
        if padding_mask is not None:
            padding_mask = padding_mask.transpose(1, 2)
        logits = self.stage1(x.transpose(1, 2), padding_mask).transpose(1, 2)
        return Output(logits, [], logits.new_zeros((), dtype=torch.float32))


def _pointwise(x: Tensor, conv: nn.Conv1d) -> Tensor:
    """(B, width in, T) to (B, width out, T)."""
    return convolve(x.transpose(1, 2), conv).transpose(1, 2)
