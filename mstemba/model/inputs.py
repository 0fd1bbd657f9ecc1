"""Checks of the networks' inputs, and the handling of padded steps."""

from __future__ import annotations

import torch
from torch import Tensor

from mstemba.errors import UsageError


def check_features(
    features: Tensor, mask: Tensor | None, in_features: int, checked: bool = False
) -> Tensor | None:
    """Check the inputs of a network, and return the clips' lengths.

    Args:
        features: (B, T, in_features), T >= 1, of any floating-point type, finite at real steps.
        mask: (B, T) bool, True at real steps, which come first and are at least one a clip.
        checked: Look at shapes and types alone: the caller knows that the values are right.

    Returns:
        (B,) real steps of each clip; None if nothing is padded.

    Raises:
        UsageError: The shape, the type or the mask is wrong, or a real step has NaN or infinity.
    """
    shape = tuple(features.shape)
    if len(shape) != 3 or shape[1] < 1 or shape[2] != in_features:
        raise UsageError(
            f"features: found shape {shape}, expected (clips, steps, {in_features}) with steps >= 1"
        )
    if not features.is_floating_point():
        raise UsageError(f"features: found {features.dtype}, expected a floating-point type")
    if mask is not None:
        check_mask(mask, shape[:2])
    if checked:
        return None if mask is None else mask.sum(1)
    # A single pass over the features: NaN and infinity survive a sum in the networks' precision.
    not_finite = ~torch.isfinite(features.detach().sum(-1, dtype=torch.float32))
    if mask is None:
        if bool(not_finite.any()):
            _raise_if_not_finite(features, not_finite)
        return None
    lengths = mask.sum(1)
    prefix = torch.arange(shape[1], device=mask.device) < lengths[:, None]
    not_finite = not_finite & mask
    # Read together: reading each answer would wait for the GPU.
    answers = torch.stack(
        [(mask != prefix).any() | (lengths == 0).any(), not_finite.any(), mask.all()]
    )
    misplaced, suspect, whole = answers.tolist()
    if misplaced:
        raise UsageError(
            "mask: found a padded step before a real one, or a clip with no real step; "
            "expected at least one real step a clip and padding only at its end"
        )
    if suspect:
        _raise_if_not_finite(features, not_finite)
    return None if whole else lengths


def check_mask(mask: Tensor, shape: tuple[int, ...]) -> None:
    """Raise UsageError if a mask is not of bool and of this shape."""
    if mask.dtype != torch.bool or tuple(mask.shape) != shape:
        raise UsageError(
            f"mask: found {mask.dtype} of shape {tuple(mask.shape)}, "
            f"expected torch.bool of shape {shape}"
        )


def padded_steps(lengths: Tensor | None, steps: int) -> Tensor | None:
    """Return the padding mask (B, steps, 1), True from each clip's length (B,) on, or None."""
    if lengths is None:
        return None
    return (torch.arange(steps, device=lengths.device) >= lengths[:, None])[..., None]


def zero_padding(x: Tensor, padding_mask: Tensor | None) -> Tensor:
    """Set the padded steps of (B, T, D) to zero, NaN included."""
    return x if padding_mask is None else x.masked_fill(padding_mask, 0)


def _raise_if_not_finite(features: Tensor, suspects: Tensor) -> None:
    """Raise if one of the steps (B, T) holds NaN or infinity: a huge sum may overflow, too."""
    for clip, step in suspects.nonzero().tolist():
        row = features[clip, step].detach().float()
        bad = row[~torch.isfinite(row)]
        if len(bad):
            raise UsageError(
                f"features: found {bad[0].item()} in clip {clip} at step {step} "
                f"({len(bad)} of {len(row)} values), expected finite numbers; "
                f"extract this clip's features again"
            )
