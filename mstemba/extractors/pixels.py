"""uint8 frames to normalised pixels on a GPU in one pass, by Triton, which CUDA torch brings."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024


def normalise(frames: Tensor, scale: Tensor, shift: Tensor, dtype: torch.dtype) -> Tensor:
    """Contiguous (..., 3) uint8 to x * scale + shift in `dtype`; computed in float32.

    `scale` and `shift` are (3,) float32 on the frames' device.
    """
    pixels = torch.empty(frames.shape, dtype=dtype, device=frames.device)
    count = frames.numel()
    _normalise[(triton.cdiv(count, _BLOCK),)](frames, scale, shift, pixels, count, BLOCK=_BLOCK)
    return pixels


@triton.jit  # type: ignore[untyped-decorator]
def _normalise(frames, scale, shift, pixels, count, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    colour = place % 3
    value = tl.load(frames + place, inside, other=0).to(tl.float32)
    value = value * tl.load(scale + colour) + tl.load(shift + colour)
    tl.store(pixels + place, value.to(pixels.dtype.element_ty), inside)
