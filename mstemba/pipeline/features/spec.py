"""What decides the numbers of a feature store: its specification, and the folder named after it."""

from __future__ import annotations

from mstemba.errors import UsageError
from mstemba.extractors import registry
from mstemba.pipeline.caching.keys import spec_key
from mstemba.pipeline.options import FeatureOptions
from mstemba.records import FeatureSpec


def make_spec(backbone: registry.ResolvedBackbone, options: FeatureOptions) -> FeatureSpec:
    """What decides the numbers, from a backbone and options whose precision is not `auto`."""
    about = backbone.spec
    window, stride = options.window or about.window, options.stride or about.stride
    if about.kind == "whole-clip" and (window, stride) != (about.window, about.stride):
        raise UsageError(
            f"{backbone.name} gives one row of {about.window} frames every {about.stride}: leave "
            f"--window ({window}) and --stride ({stride}) out"
        )
    return FeatureSpec(
        backbone=backbone.name,
        model=backbone.model,
        weights=backbone.identity,
        width=about.width,
        input_size=about.input_size,
        short_side=about.short_side,
        window=window,
        stride=stride,
        frame_step=options.frame_step,
        precision=options.precision,
        dtype=options.dtype,
        decoder=options.decoder,
    )


def store_name(spec: FeatureSpec) -> str:
    """Folder name of a store in a workspace: readable, and its own for every specification."""
    return f"{spec.backbone}-w{spec.window}s{spec.stride}-{spec_key(spec)[:8]}.zarr"
