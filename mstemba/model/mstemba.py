"""MS-Temba: multi-scale temporal Mamba for dense action detection (arXiv 2501.06138).

Three scales k = 1, 2, 3, each a local module and a Mamba block over k streams of the sequence, then
a fuser of the scales. ``mstemba`` is version 1 of the paper, ``mstemba-v3`` its CVPR 2026 version.
"""

from __future__ import annotations

import math
from itertools import combinations
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mstemba.errors import UsageError
from mstemba.model.config import ModelConfig
from mstemba.model.mamba import BidirectionalMamba, MambaBlock
from mstemba.model.streams import merge_streams, split_streams, stream_mask

PRIOR = 0.02
"""Probability that an untrained head gives every class, so that the first steps of training are not
spent on learning that positives are rare (Lin et al., arXiv 1708.02002, section 3.3)."""


class Output(NamedTuple):
    """What the network returns for B clips of T steps and C classes."""

    logits: Tensor
    """(B, T, C)."""
    scale_logits: list[Tensor]
    """(B, T, C) from the head of each scale; empty for ``mstemba``."""
    consistency: Tensor
    """Scalar: how far the streams of a scale differ in their C states; 0 for ``mstemba``."""


class TemporalLocalModule(nn.Module):
    """Convolution over three steps at distance k, LayerNorm, GELU (arXiv 2501.06138 v1, TLM)."""

    def __init__(self, width_in: int, width_out: int, dilation: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(width_in, width_out, 3, padding=dilation, dilation=dilation)
        self.norm = nn.LayerNorm(width_out)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, width_in) to (B, T, width_out)."""
        return F.gelu(self.norm(self.conv(x.transpose(1, 2)).transpose(1, 2)))


class PointwiseModule(nn.Module):
    """Linear, LayerNorm, GELU at every step: version 3's place of the TLM."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width_in, width_out)
        self.norm = nn.LayerNorm(width_out)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, width_in) to (B, T, width_out)."""
        return F.gelu(self.norm(self.linear(x)))


class MSTemba(nn.Module):
    """The network. Parameter names are those of the authors' checkpoints."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        versioned = config.arch == "mstemba-v3"
        widths, fused = config.widths, config.widths[-1]
        self.dropout = nn.Dropout(config.dropout)
        self.proj = nn.Linear(config.in_features, widths[0])
        self.blocks = nn.ModuleList()
        for k, (width_in, width) in enumerate(zip((widths[0], *widths), widths, strict=False), 1):
            if versioned:
                streams = nn.ModuleList(self._mamba(width) for _ in range(k))
                self.blocks.append(PointwiseModule(width_in, width))
                self.blocks.append(streams if k > 1 else streams[0])
            else:
                self.blocks.append(TemporalLocalModule(width_in, width, dilation=k))
                self.blocks.append(self._mamba(width))
        if versioned:
            self.block_heads = nn.ModuleList(nn.Linear(width, config.classes) for width in widths)
        self.scale_proj1 = nn.Linear(widths[0], fused)
        self.scale_proj2 = nn.Linear(widths[1], fused)
        self.scale_proj3 = nn.Linear(widths[2], fused)
        self.norm = nn.LayerNorm(fused)
        self.interaction_block = self._mamba(fused)
        self.head = nn.Linear(fused, config.classes)
        self._initialise()

    def forward(self, features: Tensor, mask: Tensor | None = None) -> Output:
        """Score every step of every clip.

        Args:
            features: (B, T, F), T >= 1, of any floating-point type.
            mask: (B, T) bool, True at real steps, which come first and are at least one a clip.
                A clip's scores do not depend on how far it is padded, or with what.

        Raises:
            UsageError: another shape or type, naming what was found and what was expected.
        """
        lengths = self._check(features, mask)
        absent = None
        if lengths is not None:
            steps = torch.arange(features.shape[1], device=features.device)
            absent = (steps >= lengths[:, None])[..., None]
        features = _clear(features.to(self.proj.weight.dtype), absent)
        x = _clear(self.proj(self.dropout(features)), absent)
        scales: list[Tensor] = []
        consistency = x.new_zeros((), dtype=torch.float32)
        for k in (1, 2, 3):
            local, block = self.blocks[2 * k - 2], self.blocks[2 * k - 1]
            x = _clear(local(x), absent)
            x, C, stream_steps = self._dilated(block, x, k, lengths)
            x = _clear(x, absent)
            scales.append(x)
            if isinstance(block, nn.ModuleList):
                consistency = consistency + _inconsistency(C, stream_steps)
        projections = (self.scale_proj1, self.scale_proj2, self.scale_proj3)
        fused = sum(self.norm(p(x)) for p, x in zip(projections, scales, strict=True))
        mask_fused = None if absent is None else ~absent[..., 0]
        fused, _ = self.interaction_block(_clear(fused, absent), mask_fused)
        heads = getattr(self, "block_heads", ())
        scale_logits = [head(x) for head, x in zip(heads, scales, strict=False)]
        return Output(self.head(fused), scale_logits, consistency)

    def set_scan_backend(self, backend: str) -> None:
        """Run every scan on this backend of ``mstemba.model.scan``; the default is ``auto``."""
        for module in self.modules():
            if isinstance(module, BidirectionalMamba):
                module.scan_backend = backend

    def _mamba(self, width: int) -> MambaBlock:
        c = self.config
        return MambaBlock(width, c.state, c.expand, c.conv, c.drop_path)

    def _dilated(
        self, block: nn.Module, x: Tensor, k: int, lengths: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Scan the k streams of x.

        Returns the sequence, the streams' C (B, k, L, S), and where they were scanned (B, k, L) or
        None for everywhere.
        """
        steps = x.shape[1]
        streams = split_streams(x, k, lengths, self.config.split)
        # The released v3 code pads the three streams of scale 3, but not the two of scale 2.
        ragged = k == 2 and isinstance(block, nn.ModuleList)
        mask = None
        if lengths is not None or (ragged and steps % k):
            whole = torch.full((len(x),), steps, device=x.device)
            mask = stream_mask(whole if lengths is None else lengths, k, streams.shape[2], ragged)
        if isinstance(block, nn.ModuleList):
            each = [None] * k if mask is None else list(mask.unbind(1))
            pairs = [one(streams[:, i], each[i]) for i, one in enumerate(block)]
            scanned, C = (torch.stack(parts, dim=1) for parts in zip(*pairs, strict=True))
        else:  # shared weights: the streams are so many more sequences
            pair = block(streams.flatten(0, 1), None if mask is None else mask.flatten(0, 1))
            scanned, C = (part.unflatten(0, (-1, k)) for part in pair)
        return merge_streams(scanned, steps, lengths, self.config.split), C, mask

    def _check(self, features: Tensor, mask: Tensor | None) -> Tensor | None:
        """The clips' lengths (B,), or None when nothing is padded."""
        wanted = self.config.in_features
        shape = tuple(features.shape)
        if len(shape) != 3 or shape[1] < 1 or shape[2] != wanted:
            raise UsageError(
                f"features: found shape {shape}, expected (clips, steps, {wanted}) with steps >= 1"
            )
        if not features.is_floating_point():
            raise UsageError(f"features: found {features.dtype}, expected a floating-point type")
        if mask is None:
            return None
        if mask.dtype != torch.bool or tuple(mask.shape) != shape[:2]:
            raise UsageError(
                f"mask: found {mask.dtype} of shape {tuple(mask.shape)}, "
                f"expected torch.bool of shape {shape[:2]}"
            )
        lengths = mask.sum(1)
        prefix = torch.arange(shape[1], device=mask.device) < lengths[:, None]
        if not bool((mask == prefix).all()) or bool((lengths == 0).any()):
            raise UsageError(
                "mask: found a padded step before a real one, or a clip with no real step; "
                "expected at least one real step a clip and padding only at its end"
            )
        return None if bool(mask.all()) else lengths

    @torch.no_grad()
    def _initialise(self) -> None:
        """Linear layers outside the Mamba blocks; the blocks keep Mamba's own initialisation."""
        heads = [self.head, *getattr(self, "block_heads", ())]
        for layer in (self.proj, self.scale_proj1, self.scale_proj2, self.scale_proj3, *heads):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        for head in heads:
            nn.init.constant_(head.bias, math.log(PRIOR / (1 - PRIOR)))


def _clear(x: Tensor, absent: Tensor | None) -> Tensor:
    """Zero the padded steps, whatever they hold (a product would keep NaN)."""
    return x if absent is None else x.masked_fill(absent, 0)


def _inconsistency(C: Tensor, mask: Tensor | None) -> Tensor:
    """1 - cosine similarity of the streams' C states, mean over pairs of streams and over clips.

    C is (B, k, L, S), mask (B, k, L). Streams are compared over the shortest of them; a clip too
    short to have two streams is consistent.
    """
    shared = C.new_ones(C.shape[0], C.shape[2], dtype=torch.bool) if mask is None else mask.all(1)
    flat = C.float().masked_fill(~shared[:, None, :, None], 0).flatten(2)
    pairs = combinations(range(C.shape[1]), 2)
    similarity = torch.stack(
        [F.cosine_similarity(flat[:, i], flat[:, j], dim=-1) for i, j in pairs], dim=-1
    )
    return (1 - similarity).masked_fill(~shared[:, :1], 0).mean()
