"""What every network asks of its input, and how padding is kept out of it."""

from __future__ import annotations

import torch
from torch import Tensor

from mstemba.errors import UsageError


def check_features(features: Tensor, mask: Tensor | None, in_features: int) -> Tensor | None:
    """The clips' lengths (B,), or None when nothing is padded.

    Args:
        features: (B, T, in_features), T >= 1, of any floating-point type, finite at real steps.
        mask: (B, T) bool, True at real steps, which come first and are at least one a clip.

    Raises:
        UsageError: another shape, type or mask, or a real step with NaN or infinity, naming what
            was found and what was expected.
    """
    shape = tuple(features.shape)
    if len(shape) != 3 or shape[1] < 1 or shape[2] != in_features:
        raise UsageError(
            f"features: found shape {shape}, expected (clips, steps, {in_features}) with steps >= 1"
        )
    if not features.is_floating_point():
        raise UsageError(f"features: found {features.dtype}, expected a floating-point type")
    # One pass over the features: NaN and infinity survive a sum, in the precision of the networks.
    unsound = ~torch.isfinite(features.detach().sum(-1, dtype=torch.float32))
    if mask is None:
        if bool(unsound.any()):
            _refuse_unsound(features, unsound)
        return None
    if mask.dtype != torch.bool or tuple(mask.shape) != shape[:2]:
        raise UsageError(
            f"mask: found {mask.dtype} of shape {tuple(mask.shape)}, "
            f"expected torch.bool of shape {shape[:2]}"
        )
    lengths = mask.sum(1)
    prefix = torch.arange(shape[1], device=mask.device) < lengths[:, None]
    unsound = unsound & mask
    # Read together: each answer read alone would make the host wait for a GPU.
    answers = torch.stack(
        [(mask != prefix).any() | (lengths == 0).any(), unsound.any(), mask.all()]
    )
    misplaced, suspect, whole = answers.tolist()
    if misplaced:
        raise UsageError(
            "mask: found a padded step before a real one, or a clip with no real step; "
            "expected at least one real step a clip and padding only at its end"
        )
    if suspect:
        _refuse_unsound(features, unsound)
    return None if whole else lengths


def padded_steps(lengths: Tensor | None, steps: int) -> Tensor | None:
    """(B, steps, 1), True from each clip's own length (B,) on; None when nothing is padded."""
    if lengths is None:
        return None
    return (torch.arange(steps, device=lengths.device) >= lengths[:, None])[..., None]


def zero_padding(x: Tensor, padding_mask: Tensor | None) -> Tensor:
    """Zero the padded steps, whatever they hold (a product would keep NaN)."""
    return x if padding_mask is None else x.masked_fill(padding_mask, 0)


def _refuse_unsound(features: Tensor, suspects: Tensor) -> None:
    """Raise if a suspect step (B, T) does hold NaN or infinity: huge sums may overflow as well."""
    for clip, step in suspects.nonzero().tolist():
        row = features[clip, step].detach().float()
        bad = row[~torch.isfinite(row)]
        if len(bad):
            raise UsageError(
                f"features: found {bad[0].item()} in clip {clip} at step {step} "
                f"({len(bad)} of {len(row)} values), expected finite numbers; "
                f"extract this clip's features again"
            )
