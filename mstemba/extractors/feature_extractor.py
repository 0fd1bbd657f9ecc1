"""Decoded frames to feature vectors on a device: what all backbones share."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

_HAS_TRITON = importlib.util.find_spec("triton") is not None


class FeatureExtractor:
    """A backbone ready to run.

    `forward` maps normalised pixels to features: images (N, 3, S, S) to (N, F), or with `clips`
    (N, 3, L, S, S) to (N, R, F). `mean` and `std` are the backbone's own, for pixels in [0, 1].
    `precision` is the type that weights and pixels are cast to.
    """

    def __init__(
        self,
        module: nn.Module,
        forward: Callable[[Tensor], Tensor],
        mean: Sequence[float],
        std: Sequence[float],
        device: str,
        precision: str,
        *,
        clips: bool = False,
    ) -> None:
        self.device = torch.device(device)
        self._dtype: torch.dtype = getattr(torch, precision)
        # The frames arrive in this layout, and convolutions on a CPU are twice as fast in it.
        layout = torch.channels_last_3d if clips else torch.channels_last
        module.eval().requires_grad_(False).to(self.device, self._dtype)
        for part in module.modules():
            if isinstance(part, nn.Conv3d if clips else nn.Conv2d):
                part.to(memory_format=layout)  # type: ignore[call-overload]
        self._forward = forward
        self._clips = clips
        self._mean, self._std = (torch.tensor(x, dtype=torch.float64) for x in (mean, std))
        self._repeated: dict[int, tuple[Tensor, Tensor]] = {}

    @torch.inference_mode()
    def __call__(self, frames: NDArray[np.uint8] | Tensor) -> NDArray[np.float32]:
        """(N, L, S, S, 3) uint8 RGB to (N, R, F) float32; L and R are 1 for images.

        Pinned frames are copied to a GPU without waiting, in the calling thread's stream.
        """
        pixels = self._normalise(torch.as_tensor(frames).to(self.device, non_blocking=True))
        if self._clips:
            return self._forward(pixels.permute(0, 4, 1, 2, 3)).float().cpu().numpy()
        features = self._forward(pixels.squeeze(1).permute(0, 3, 1, 2))
        return features.float().cpu().numpy()[:, None]

    def _normalise(self, frames: Tensor) -> Tensor:
        """uint8 to (x - mean) / std, computed in float32."""
        if frames.is_cuda and _HAS_TRITON:
            from mstemba.extractors import pixels

            return pixels.normalise(frames, *self._factors(1), self._dtype)
        # Whole rows of pixels: factors of three numbers would be broadcast five times as slowly.
        scale, shift = self._factors(frames.shape[-2])
        values = frames.flatten(-2).float().mul_(scale).add_(shift)
        return values.to(self._dtype).view(frames.shape)

    def _factors(self, width: int) -> tuple[Tensor, Tensor]:
        """Scale and shift of the three colours, `width` times over."""
        if width not in self._repeated:
            scale, shift = 1 / (255 * self._std), -self._mean / self._std
            self._repeated[width] = (
                scale.repeat(width).float().to(self.device),
                shift.repeat(width).float().to(self.device),
            )
        return self._repeated[width]
