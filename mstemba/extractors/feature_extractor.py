"""Runs a backbone on decoded frames: what all backbones share."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


class FeatureExtractor:
    """A backbone that is ready to run.

    Args:
        module: The network that `forward` runs.
        forward: Runs the module on normalised images (N, 3, S, S) and returns (N, F), or, with
            `clips`, on normalised clips (N, 3, L, S, S) and returns (N, R, F).
        mean: Of the three colours, for pixels in [0, 1].
        std: Standard deviation, likewise.
        device: As torch names it.
        precision: The torch dtype that weights and pixels are cast to.
        clips: Whether `forward` takes clips.
    """

    def __init__(
        self,
        module: nn.Module,
        forward: Callable[[Any, Tensor], Tensor],
        mean: Sequence[float],
        std: Sequence[float],
        device: str,
        precision: str,
        *,
        clips: bool = False,
    ) -> None:
        self.device = torch.device(device)
        self._dtype: torch.dtype = getattr(torch, precision)
        # Frames arrive in this layout, and convolutions on a CPU are twice as fast in it.
        layout = torch.channels_last_3d if clips else torch.channels_last
        module.eval().requires_grad_(False).to(self.device, self._dtype)
        for part in module.modules():
            if isinstance(part, nn.Conv3d if clips else nn.Conv2d):
                part.to(memory_format=layout)  # type: ignore[call-overload]
        self._module, self._forward = module, forward
        self._clips = clips
        self._mean, self._std = (torch.tensor(x, dtype=torch.float64) for x in (mean, std))
        self._repeated: dict[int, tuple[Tensor, Tensor]] = {}

    def copy_to(self, device: str) -> FeatureExtractor:
        """Return the same extractor on another device, without loading its weights again."""
        made = copy.copy(self)
        made.device = torch.device(device)
        made._module = copy.deepcopy(self._module).to(made.device)
        made._repeated = {}
        return made

    @torch.inference_mode()
    def __call__(self, frames: NDArray[np.uint8] | Tensor) -> NDArray[np.float32]:
        """Return the features of a batch.

        Pinned frames are copied to a GPU without waiting, in the calling thread's stream.

        Args:
            frames: (N, L, S, S, 3) uint8 RGB; L is 1 for images.

        Returns:
            (N, R, F) float32; R is 1 for images.
        """
        pixels = self._normalise(torch.as_tensor(frames).to(self.device, non_blocking=True))
        if self._clips:
            clips = pixels.permute(0, 4, 1, 2, 3)
            return self._forward(self._module, clips).float().cpu().numpy()
        features = self._forward(self._module, pixels.squeeze(1).permute(0, 3, 1, 2))
        return features.float().cpu().numpy()[:, None]

    def _normalise(self, frames: Tensor) -> Tensor:
        """Return (x / 255 - mean) / std of uint8 frames, computed in float32."""
        width = frames.shape[-2]
        if width not in self._repeated:
            scale, shift = 1 / (255 * self._std), -self._mean / self._std
            self._repeated[width] = (
                scale.repeat(width).float().to(self.device),
                shift.repeat(width).float().to(self.device),
            )
        # Whole rows of pixels: broadcasting three numbers would be five times as slow on a CPU.
        scale, shift = self._repeated[width]
        values = frames.flatten(-2).float().mul_(scale).add_(shift)
        return values.to(self._dtype).view(frames.shape)
