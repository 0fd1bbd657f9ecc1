"""Splits a sequence into the k streams of a dilated scan, and merges them.

Streams come first, (k, B, L, D): each is a set of sequences for the block that scans it.

A clip of n steps gives streams of ceil(n / k) entries, the last of them zero where k does not
divide n; those zeros are scanned like any step, unless the streams are ragged. ``interleaved`` puts
step t at (t mod k, t // k); ``contiguous`` gives every stream ceil(n / k) neighbouring steps, so
that where a step goes depends on the clip's own length.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def split_streams(x: Tensor, k: int, lengths: Tensor | None, split: str) -> Tensor:
    """Split (B, T, D), zero from ``lengths`` (B,) on, into (k, B, ceil(T / k), D)."""
    steps = x.shape[1]
    size = -(-steps // k)
    if split == "interleaved" or k == 1:
        padded = F.pad(x, (0, 0, 0, size * k - steps)) if steps % k else x
        return padded.view(len(x), size, k, x.shape[2]).permute(2, 0, 1, 3)
    own = size if lengths is None else ((lengths + k - 1) // k)[:, None, None]
    within = torch.arange(size, device=x.device)
    step = torch.arange(k, device=x.device)[:, None] * own + within
    step = torch.where(within < own, step, steps).clamp(max=steps)  # row ``steps`` is zero
    clip = torch.arange(len(x), device=x.device)[:, None, None]
    return F.pad(x, (0, 0, 0, 1))[clip, step].transpose(0, 1)


def merge_streams(streams: Tensor, steps: int, lengths: Tensor | None, split: str) -> Tensor:
    """Merge (k, B, L, D) into (B, T, D); rows from ``lengths`` on are arbitrary."""
    k, _, size, _ = streams.shape
    if split == "interleaved" or k == 1:
        return streams.permute(1, 2, 0, 3).flatten(1, 2)[:, :steps]
    streams = streams.transpose(0, 1)
    own = size if lengths is None else ((lengths + k - 1) // k)[:, None]
    step = torch.arange(steps, device=streams.device)
    place = (step // own * size + step % own).clamp(max=k * size - 1)
    clip = torch.arange(len(streams), device=streams.device)[:, None]
    return streams.flatten(1, 2)[clip, place]


def stream_mask(lengths: Tensor, k: int, size: int, ragged: bool) -> Tensor:
    """Return which entries of each clip's streams are scanned, (k, B, size) bool.

    With ``ragged``, the zeros at the end of the streams that have one step fewer are not.
    """
    late = torch.arange(k, device=lengths.device) if ragged else lengths.new_zeros(k)
    sizes = (lengths - late[:, None] + k - 1) // k
    return torch.arange(size, device=lengths.device) < sizes[..., None]
