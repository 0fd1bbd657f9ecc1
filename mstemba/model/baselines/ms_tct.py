"""MS-TCT: Multi-Scale Temporal ConvTransformer (Dai et al., CVPR 2022, arXiv 2112.03902).

Four stages of attention and convolution, each at half the temporal resolution of the one before,
brought back to the first one's resolution and mixed, then a head for the classes and, in training,
one for the middles of the actions. Every resolution has its own lengths of the clips, so that
padding reaches no real step.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mstemba.model.config import MSTCTConfig
from mstemba.model.convolution import convolve
from mstemba.model.inputs import check_features, padded_steps, zero_padding
from mstemba.model.output import Output, initialise_head


class GlobalRelation(nn.Module):
    """Multi-head self-attention over all real steps (MS-TCT, section 3.2)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)

    def forward(self, x: Tensor, padding_mask: Tensor | None) -> Tensor:
        """(B, T, width) to the same; ``padding_mask`` is (B, T, 1), True at padded steps."""
        # (3, B, heads, T, width / heads)
        heads = self.qkv(x).unflatten(2, (3, self.heads, x.shape[2] // self.heads))
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        seen = None if padding_mask is None else ~padding_mask[:, None, None, :, 0]
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        y: Tensor = self.project(attended.transpose(1, 2).flatten(2))
        return y


class LocalRelation(nn.Module):
    """Linear, depthwise convolution over three steps, GELU, linear (MS-TCT, section 3.2)."""

    def __init__(self, width: int, expand: int) -> None:
        super().__init__()
        inner = expand * width
        self.expand = nn.Linear(width, inner)
        self.conv = nn.Conv1d(inner, inner, 3, padding=1, groups=inner)
        self.contract = nn.Linear(inner, width)

    def forward(self, x: Tensor, padding_mask: Tensor | None) -> Tensor:
        """(B, T, width) to the same; ``padding_mask`` is (B, T, 1), True at padded steps."""
        x = zero_padding(self.expand(x), padding_mask).transpose(1, 2)
        y: Tensor = self.contract(F.gelu(self.conv(x)).transpose(1, 2))
        return y


class GlobalLocalBlock(nn.Module):
    """The two relations, each normalised before and added to what it is given."""

    def __init__(self, width: int, heads: int, expand: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = GlobalRelation(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.local = LocalRelation(width, expand)

    def forward(self, x: Tensor, padding_mask: Tensor | None) -> Tensor:
        """(B, T, width) to the same; ``padding_mask`` is (B, T, 1), True at padded steps."""
        x = x + self.attention(self.norm1(x), padding_mask)
        y: Tensor = x + self.local(self.norm2(x), padding_mask)
        return y


class Stage(nn.Module):
    """Temporal merging, a convolution over three steps at every ``stride``-th, and its blocks."""

    def __init__(self, width_in: int, width: int, stride: int, config: MSTCTConfig) -> None:
        super().__init__()
        self.stride = stride
        self.merge = nn.Conv1d(width_in, width, 3, stride=stride, padding=1)
        self.merge_norm = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(
            GlobalLocalBlock(width, config.heads, config.expand) for _ in range(config.blocks)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """(B, T, width_in) to (B, ceil(T / stride), width), and the clips' lengths (B,) there.

        Both the sequence given and the one returned are zero beyond the lengths.
        """
        x = self.merge_norm(convolve(x, self.merge))
        if lengths is not None:
            lengths = (lengths + self.stride - 1) // self.stride
        padding_mask = padded_steps(lengths, x.shape[1])
        for block in self.blocks:
            x = block(x, padding_mask)
        return zero_padding(self.norm(x), padding_mask), lengths


class ScaleMixer(nn.Module):
    """Brings the scales to one width and resolution; adds the coarsest to each other one.

    The Temporal Scale Mixer (MS-TCT, section 3.3).
    """

    def __init__(self, widths: tuple[int, ...], mixed: int) -> None:
        super().__init__()
        self.project = nn.ModuleList(nn.Linear(width, mixed) for width in widths)
        self.mix = nn.ModuleList(nn.Linear(mixed, mixed) for _ in widths[:-1])

    def forward(self, scales: list[Tensor], lengths: list[Tensor | None]) -> tuple[Tensor, Tensor]:
        """Scales, fine to coarse, (B, T_k, width_k), with the clips' lengths (B,) at each.

        Returns the mixed scales and the unmixed ones side by side, (B, T_1, 4 mixed) each.
        """
        steps = scales[0].shape[1]
        finest, *coarser = (p(x) for p, x in zip(self.project, scales, strict=True))
        coarser = [
            stretch(x, length, lengths[0], steps)
            for x, length in zip(coarser, lengths[1:], strict=True)
        ]
        plain, coarsest = [finest, *coarser], coarser[-1]
        mixed = [x + mix(coarsest) for x, mix in zip(plain, self.mix, strict=False)]
        return torch.cat([*mixed, coarsest], dim=-1), torch.cat(plain, dim=-1)


class MSTCT(nn.Module):
    """The network. Parameter names are this project's own."""

    def __init__(self, config: MSTCTConfig) -> None:
        super().__init__()
        self.config = config
        widths, mixed = config.widths, config.mixed
        self.dropout = nn.Dropout(config.dropout)
        self.stages = nn.ModuleList(
            Stage(width_in, width, 1 if number == 0 else 2, config)
            for number, (width_in, width) in enumerate(
                zip((config.in_features, *widths), widths, strict=False)
            )
        )
        self.mixer = ScaleMixer(widths, mixed)
        self.fuse = nn.Linear(len(widths) * mixed, mixed)
        self.head = nn.Linear(mixed, config.classes)
        self.center_conv = nn.Conv1d(len(widths) * mixed, mixed, 3, padding=1)
        self.center_head = nn.Linear(mixed, config.classes)
        self._initialise()

    def forward(
        self, features: Tensor, mask: Tensor | None = None, *, checked: bool = False
    ) -> Output:
        """Score every step (B, T, F) of every clip; arguments and errors as of ``MSTemba``."""
        lengths = check_features(features, mask, self.config.in_features, checked)
        padding_mask = padded_steps(lengths, features.shape[1])
        x = self.dropout(zero_padding(features.to(self.fuse.weight.dtype), padding_mask))
        scales: list[Tensor] = []
        scale_lengths: list[Tensor | None] = []
        for stage in self.stages:
            x, lengths = stage(x, lengths)
            scales.append(x)
            scale_lengths.append(lengths)
        mixed, plain = self.mixer(scales, scale_lengths)
        logits = self.head(self.dropout(self.fuse(mixed)))
        centers = self._centers(zero_padding(plain, padding_mask)) if self.training else None
        return Output(logits, [], logits.new_zeros((), dtype=torch.float32), centers)

    def _centers(self, x: Tensor) -> Tensor:
        """The heat-map branch (MS-TCT, section 3.4); nothing but the training loss needs it."""
        y: Tensor = self.center_head(F.relu(convolve(x, self.center_conv)))
        return y

    @torch.no_grad()
    def _initialise(self) -> None:
        """As the authors do, but for the heads, which start at the prior."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Conv1d):
                fan_out = module.kernel_size[0] * module.out_channels // module.groups
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        for head in (self.head, self.center_head):
            initialise_head(head)


def stretch(x: Tensor, lengths: Tensor | None, target_lengths: Tensor | None, steps: int) -> Tensor:
    """Interpolate every clip linearly in time, from its own length to its own target length.

    A clip alone gives what ``torch.nn.functional.interpolate`` gives (mode ``linear``, corners not
    aligned); padding has no part in it.

    Args:
        x: (B, T, D).
        lengths: (B,) real steps of each clip in x; T of them when None.
        target_lengths: (B,) steps that they become; all of ``steps`` when None.
        steps: length of the result.

    Returns:
        (B, steps, D); finite, but without meaning, beyond the target lengths.
    """
    if lengths is None or target_lengths is None:
        lengths = torch.full((1,), x.shape[1], device=x.device)
        target_lengths = torch.full((1,), steps, device=x.device)
    last = lengths[:, None] - 1
    ratio = (lengths / target_lengths)[:, None]
    position = ratio * (torch.arange(steps, device=x.device) + 0.5) - 0.5
    position = torch.minimum(position.clamp(min=0), last)
    before = position.long()
    after = torch.minimum(before + 1, last)
    share = (position - before)[..., None].to(x.dtype)
    # Not x[clip, before]: torch does not promise equal gradients of it from run to run on a CPU.
    first, second = (torch.take_along_dim(x, i[..., None], dim=1) for i in (before, after))
    return torch.lerp(first, second, share)
