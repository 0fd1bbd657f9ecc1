"""Dense temporal action detection with MS-Temba: videos in, labelled segments out.

    import mstemba

    mstemba.extract(["videos"], mstemba.ExtractOptions(backbone="efficientnet-lite0"), store=...)
    result = mstemba.detect(["video.mp4"], checkpoint=..., output=...)

Importing this package imports neither torch nor numpy: what is named below is loaded on use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mstemba.model.checkpoint import load_model
    from mstemba.pipeline.detect import detect
    from mstemba.pipeline.evaluate import evaluate
    from mstemba.pipeline.extract import extract
    from mstemba.pipeline.import_features import import_features
    from mstemba.pipeline.init import init
    from mstemba.pipeline.options import (
        DetectOptions,
        ExtractOptions,
        ImportOptions,
        TrainOptions,
    )
    from mstemba.pipeline.train import train

__version__ = "0.1.0"
__all__ = [
    "DetectOptions",
    "ExtractOptions",
    "ImportOptions",
    "TrainOptions",
    "detect",
    "evaluate",
    "extract",
    "import_features",
    "init",
    "load_model",
    "train",
]

_WHERE = {
    "load_model": "model.checkpoint",
    "detect": "pipeline.detect",
    "evaluate": "pipeline.evaluate",
    "extract": "pipeline.extract",
    "import_features": "pipeline.import_features",
    "init": "pipeline.init",
    "train": "pipeline.train",
    "DetectOptions": "pipeline.options",
    "ExtractOptions": "pipeline.options",
    "ImportOptions": "pipeline.options",
    "TrainOptions": "pipeline.options",
}


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(f"mstemba.{_WHERE[name]}"), name)
    raise AttributeError(f"module 'mstemba' has no attribute {name!r}")
