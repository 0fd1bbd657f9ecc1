"""Dense temporal action detection with MS-Temba: videos in, labelled segments out.

    import mstemba

    result = mstemba.detect("video.mp4", checkpoint="runs/mine")
    for segment in result.segments:
        print(segment.start, segment.end, segment.label, segment.score)

docs/python.md describes every name. Importing this package imports neither torch nor numpy: what
is named below is loaded on use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mstemba.errors import MstembaError, UsageError
    from mstemba.model.checkpoint import load_model
    from mstemba.pipeline.detect import DetectResult, detect
    from mstemba.pipeline.evaluate import evaluate
    from mstemba.pipeline.export import ExportResult, export
    from mstemba.pipeline.extract import extract
    from mstemba.pipeline.import_features import import_features
    from mstemba.pipeline.init import init
    from mstemba.pipeline.options import (
        DetectOptions,
        ExportOptions,
        ExtractOptions,
        ImportOptions,
        TrainOptions,
        ZeroShotOptions,
    )
    from mstemba.pipeline.outputs.detection import Detection
    from mstemba.pipeline.outputs.scores import KeptScores, read_scores
    from mstemba.pipeline.progress import Event
    from mstemba.pipeline.report import Report, report
    from mstemba.pipeline.segments import find_segments
    from mstemba.pipeline.train import train
    from mstemba.pipeline.workspace import Workspace, open_workspace
    from mstemba.records import Scores, Segment, TimeGrid

__version__ = "0.1.0"
__all__ = [
    "DetectOptions",
    "DetectResult",
    "Detection",
    "Event",
    "ExportOptions",
    "ExportResult",
    "ExtractOptions",
    "ImportOptions",
    "KeptScores",
    "MstembaError",
    "Report",
    "Scores",
    "Segment",
    "TimeGrid",
    "TrainOptions",
    "UsageError",
    "Workspace",
    "ZeroShotOptions",
    "detect",
    "evaluate",
    "export",
    "extract",
    "find_segments",
    "import_features",
    "init",
    "load_model",
    "open_workspace",
    "read_scores",
    "report",
    "train",
]

_WHERE = {
    "MstembaError": "errors",
    "UsageError": "errors",
    "load_model": "model.checkpoint",
    "DetectResult": "pipeline.detect",
    "detect": "pipeline.detect",
    "evaluate": "pipeline.evaluate",
    "ExportResult": "pipeline.export",
    "export": "pipeline.export",
    "extract": "pipeline.extract",
    "import_features": "pipeline.import_features",
    "init": "pipeline.init",
    "DetectOptions": "pipeline.options",
    "ExportOptions": "pipeline.options",
    "ExtractOptions": "pipeline.options",
    "ImportOptions": "pipeline.options",
    "TrainOptions": "pipeline.options",
    "ZeroShotOptions": "pipeline.options",
    "Detection": "pipeline.outputs.detection",
    "KeptScores": "pipeline.outputs.scores",
    "read_scores": "pipeline.outputs.scores",
    "Event": "pipeline.progress",
    "Report": "pipeline.report",
    "report": "pipeline.report",
    "find_segments": "pipeline.segments",
    "train": "pipeline.train",
    "Workspace": "pipeline.workspace",
    "open_workspace": "pipeline.workspace",
    "Scores": "records",
    "Segment": "records",
    "TimeGrid": "records",
}


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(f"mstemba.{_WHERE[name]}"), name)
    raise AttributeError(f"module 'mstemba' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
