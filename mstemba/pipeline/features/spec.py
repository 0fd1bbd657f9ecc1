"""The specification of a feature store, and its folder name."""

from __future__ import annotations

from mstemba.errors import UsageError
from mstemba.extractors import registry
from mstemba.pipeline.caching.keys import spec_key
from mstemba.pipeline.options import FeatureOptions
from mstemba.records import FeatureSpec


def make_spec(backbone: registry.ResolvedBackbone, options: FeatureOptions) -> FeatureSpec:
    """Return the specification of features.

    Args:
        backbone: Its own window and stride apply if the options have none.
        options: With a precision other than `auto`.

    Raises:
        UsageError: A whole-clip backbone cannot have another window or stride than its own.
    """
    own = backbone.spec
    window, stride = options.window or own.window, options.stride or own.stride
    if own.kind == "whole-clip" and (window, stride) != (own.window, own.stride):
        raise UsageError(
            f"{backbone.name} gives one row of {own.window} frames every {own.stride}: omit "
            f"--window ({window}) and --stride ({stride})"
        )
    return FeatureSpec(
        backbone=backbone.name,
        model=backbone.model,
        weights=backbone.identity,
        width=own.width,
        input_size=own.input_size,
        short_side=own.short_side,
        window=window,
        stride=stride,
        frame_step=options.frame_step,
        precision=options.precision,
        dtype=options.dtype,
        decoder=options.decoder,
        fps=options.fps,
    )


def store_name(spec: FeatureSpec) -> str:
    """Return the folder name of a store in a workspace: readable, and unique to its spec."""
    return f"{spec.backbone}-w{spec.window}s{spec.stride}-{spec_key(spec)[:8]}.zarr"
