"""MS-Temba: multi-scale temporal Mamba for dense action detection (arXiv 2501.06138).

Three scales k = 1, 2, 3, each a local module and a Mamba block over k streams of the sequence, then
a fuser of the scales. ``mstemba`` is version 1 of the paper, ``mstemba-v3`` its CVPR 2026 version.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mstemba.model.config import ModelConfig
from mstemba.model.convolution import convolve
from mstemba.model.inputs import check_features, padded_steps, zero_padding
from mstemba.model.mamba import MambaBlock, chunk_length, run_blocks
from mstemba.model.output import Output, initialise_head
from mstemba.model.streams import merge_streams, split_streams, stream_mask


class TemporalLocalModule(nn.Module):
    """Convolution over three steps at distance k, LayerNorm, GELU (arXiv 2501.06138 v1, TLM)."""

    def __init__(self, width_in: int, width_out: int, dilation: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(width_in, width_out, 3, padding=dilation, dilation=dilation)
        self.norm = nn.LayerNorm(width_out)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, width_in) to (B, T, width_out)."""
        return F.gelu(self.norm(convolve(x, self.conv)))


class PointwiseModule(nn.Module):
    """Linear, LayerNorm, GELU at every step; version 3 has it in place of the TLM."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width_in, width_out)
        self.norm = nn.LayerNorm(width_out)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, width_in) to (B, T, width_out)."""
        return F.gelu(self.norm(self.linear(x)))


class MSTemba(nn.Module):
    """MS-Temba. Parameter names are those of the authors' checkpoints."""

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

    def forward(
        self, features: Tensor, mask: Tensor | None = None, *, checked: bool = False
    ) -> Output:
        """Score every step of every clip.

        Args:
            features: (B, T, F), T >= 1, of any floating-point type, finite at real steps.
            mask: (B, T) bool, True at real steps, which come first and are at least one a clip.
                A clip's scores do not depend on how far it is padded, or with what, unless the
                configuration's ``padding`` is ``released``.
            checked: Promise that features and mask are as above, so that nothing is read back:
                on a GPU that would be a wait for all that has been queued.

        Raises:
            UsageError: see ``check_features``.
        """
        lengths = check_features(features, mask, self.config.in_features, checked)
        padding_mask = padded_steps(lengths, features.shape[1])
        features = zero_padding(features.to(self.proj.weight.dtype), padding_mask)
        if self.config.padding == "released":
            lengths = padding_mask = None
        x = zero_padding(self.proj(self.dropout(features)), padding_mask)
        scales, scale_logits, inconsistencies = [], [], []
        for k in (1, 2, 3):
            local, block = self.blocks[2 * k - 2], self.blocks[2 * k - 1]
            x, C, scanned = self._dilated(block, zero_padding(local(x), padding_mask), k, lengths)
            x = zero_padding(x, padding_mask)
            if isinstance(block, nn.ModuleList):
                inconsistencies.append(
                    _inconsistency(torch.unflatten(C, 0, (2, k)).mean(0), scanned)
                )
            if self.config.arch == "mstemba-v3":
                scale_logits.append(self.block_heads[k - 1](x))
            scales.append(x)
        real = None if padding_mask is None else ~padding_mask[..., 0]
        x = self.interaction_block(zero_padding(self._fuse(scales), padding_mask), real)
        consistency = torch.zeros(())  # of the host: a kernel for it would be a launch
        if inconsistencies:
            consistency = inconsistencies[0] + inconsistencies[1]
        return Output(self.head(x), scale_logits, consistency)

    def set_scan_backend(self, backend: str) -> None:
        """Run every scan on a backend of ``mstemba.model.scan``. The default is ``auto``."""
        for module in self.modules():
            if isinstance(module, MambaBlock):
                module.scan_backend = backend

    def _fuse(self, scales: list[Tensor]) -> Tensor:
        """Project, normalise and add up the scales (B, T, width_k), in chunks without gradients."""
        steps = scales[0].shape[1]
        chunk = chunk_length(steps, scales[0].device)
        if steps > chunk:
            cut = zip(*(torch.split(x, chunk, dim=1) for x in scales), strict=True)
            return torch.cat([self._fuse(list(parts)) for parts in cut], dim=1)
        projections = (self.scale_proj1, self.scale_proj2, self.scale_proj3)
        projected = [p(x) for p, x in zip(projections, scales, strict=True)]
        fused: Tensor = self.norm(torch.stack(projected)).sum(0)
        return fused

    def _mamba(self, width: int) -> MambaBlock:
        c = self.config
        return MambaBlock(width, c.state, c.expand, c.conv, c.drop_path)

    def _dilated(
        self, block: nn.Module, x: Tensor, k: int, lengths: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Scan the k streams of x.

        Returns:
            The sequence, C as of ``run_blocks``, and which entries of the streams were scanned
            (k, B, L), None for all.
        """
        steps = x.shape[1]
        streams = split_streams(x, k, lengths, self.config.split)
        blocks: list[Any] = list(block) if isinstance(block, nn.ModuleList) else [block]
        # The released v3 code pads the three streams of scale 3, but not the two of scale 2.
        ragged = len(blocks) == 2
        mask = None
        if lengths is not None or (ragged and steps % k):
            whole = torch.full((len(x),), steps, device=x.device)
            mask = stream_mask(whole if lengths is None else lengths, k, streams.shape[2], ragged)
        if len(blocks) == k:
            scanned, C = run_blocks(blocks, streams, mask)
        else:  # shared weights: the streams are more sequences of the same set
            flat = None if mask is None else mask.flatten(0, 1)[None]
            pair = run_blocks(blocks, streams.flatten(0, 1)[None], flat)
            scanned, C = pair[0].view(streams.shape), pair[1]
        return merge_streams(scanned, steps, lengths, self.config.split), C, mask

    @torch.no_grad()
    def _initialise(self) -> None:
        """Initialise the layers outside the Mamba blocks, which have their own initialisation."""
        for layer in (self.proj, self.scale_proj1, self.scale_proj2, self.scale_proj3):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        for head in (self.head, *getattr(self, "block_heads", ())):
            initialise_head(head)


def _inconsistency(C: Tensor, mask: Tensor | None) -> Tensor:
    """Return 1 - cosine similarity of the streams' C states, averaged over pairs and clips.

    C is (k, B, L, S), mask (k, B, L). Streams are compared over the shortest of them; a clip too
    short to have two streams is consistent.
    """
    C = C.float()
    compared: Tensor | int = C.shape[1]
    if mask is not None:
        shared = mask.all(0)
        C, compared = C.masked_fill(~shared[..., None], 0), shared[:, 0].sum()
    unit = F.normalize(C.flatten(2), dim=-1, eps=1e-8)
    # Neighbours in a ring of two or three are all pairs. (A list of indices would be copied to the
    # GPU, and waited for.)
    similarity = (unit * unit.roll(1, 0)).sum() / len(C)
    return (compared - similarity) / max(1, C.shape[1])
