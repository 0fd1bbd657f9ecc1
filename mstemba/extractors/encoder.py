"""Decoded frames to feature vectors on a device: what all image backbones share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


class FrameEncoder:
    """An image backbone ready to run.

    `forward` maps normalised images (N, 3, S, S) to features (N, F); `mean` and `std` are the
    backbone's own, for pixels in [0, 1].
    """

    def __init__(
        self,
        module: nn.Module,
        forward: Callable[[Tensor], Tensor],
        mean: Sequence[float],
        std: Sequence[float],
        device: str,
        precision: str,
    ) -> None:
        self._device = torch.device(device)
        # The frames arrive in this layout, and convolutions on a CPU are twice as fast in it.
        module.eval().requires_grad_(False).to(self._device)
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._forward = forward
        self._mean = 255 * torch.tensor(mean, device=self._device).view(3, 1, 1)
        self._std = 255 * torch.tensor(std, device=self._device).view(3, 1, 1)
        self._autocast = getattr(torch, precision) if precision != "float32" else None

    @torch.inference_mode()
    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(N, S, S, 3) uint8 RGB to (N, F) float32."""
        # TF32, cuDNN's default, is not float32; and a feature must not depend on the device.
        exact = self._autocast is None
        pixels = torch.from_numpy(images).to(self._device).permute(0, 3, 1, 2).float()
        with (
            torch.backends.cudnn.flags(enabled=True, allow_tf32=not exact),
            torch.autocast(self._device.type, dtype=self._autocast, enabled=not exact),
        ):
            features = self._forward((pixels - self._mean) / self._std)
        return features.float().cpu().numpy()
