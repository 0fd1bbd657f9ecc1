"""Dense temporal action detection with MS-Temba: videos in, labelled segments out.

    import mstemba

    result = mstemba.detect("video.mp4", checkpoint="runs/mine")
    for segment in result.segments:
        print(segment.start, segment.end, segment.label, segment.score)

docs/python.md describes every name. Importing this package imports neither torch nor numpy: the
names below are loaded on first use.
"""

# Nothing is imported here: Ctrl-C during an import shows a traceback (mstemba.guard).
TYPE_CHECKING = False  # for type checkers it is True, as the one of `typing`
if TYPE_CHECKING:
    from mstemba.errors import MstembaError as MstembaError
    from mstemba.errors import UsageError as UsageError
    from mstemba.model.weights import load_model as load_model
    from mstemba.pipeline.detect.export import ExportResult as ExportResult
    from mstemba.pipeline.detect.export import export as export
    from mstemba.pipeline.detect.scores_file import SavedScores as SavedScores
    from mstemba.pipeline.detect.scores_file import read_scores as read_scores
    from mstemba.pipeline.detect.segments import find_segments as find_segments
    from mstemba.pipeline.detect.stage import DetectResult as DetectResult
    from mstemba.pipeline.detect.stage import detect as detect
    from mstemba.pipeline.evaluate.stage import evaluate as evaluate
    from mstemba.pipeline.extract.stage import extract as extract
    from mstemba.pipeline.features.import_npy import import_features as import_features
    from mstemba.pipeline.init import init as init
    from mstemba.pipeline.options import EvaluateOptions as EvaluateOptions
    from mstemba.pipeline.options import ExportOptions as ExportOptions
    from mstemba.pipeline.options import FeatureOptions as FeatureOptions
    from mstemba.pipeline.options import ImportOptions as ImportOptions
    from mstemba.pipeline.options import RunOptions as RunOptions
    from mstemba.pipeline.options import TrainOptions as TrainOptions
    from mstemba.pipeline.options import TrainRunOptions as TrainRunOptions
    from mstemba.pipeline.options import ZeroShotOptions as ZeroShotOptions
    from mstemba.pipeline.outputs.detection import Detection as Detection
    from mstemba.pipeline.progress import Event as Event
    from mstemba.pipeline.report.stage import Report as Report
    from mstemba.pipeline.report.stage import report as report
    from mstemba.pipeline.train.stage import train as train
    from mstemba.pipeline.workspace import Workspace as Workspace
    from mstemba.pipeline.workspace import open_workspace as open_workspace
    from mstemba.records import Scores as Scores
    from mstemba.records import Segment as Segment
    from mstemba.records import TimeGrid as TimeGrid

__version__ = "0.1.0"

# The public names by module, repeated above for type checkers.
_NAMES = {
    "errors": "MstembaError UsageError",
    "model.weights": "load_model",
    "pipeline.detect.export": "ExportResult export",
    "pipeline.detect.scores_file": "SavedScores read_scores",
    "pipeline.detect.segments": "find_segments",
    "pipeline.detect.stage": "DetectResult detect",
    "pipeline.evaluate.stage": "evaluate",
    "pipeline.extract.stage": "extract",
    "pipeline.features.import_npy": "import_features",
    "pipeline.init": "init",
    "pipeline.options": "EvaluateOptions ExportOptions FeatureOptions ImportOptions RunOptions "
    "TrainOptions TrainRunOptions ZeroShotOptions",
    "pipeline.outputs.detection": "Detection",
    "pipeline.progress": "Event",
    "pipeline.report.stage": "Report report",
    "pipeline.train.stage": "train",
    "pipeline.workspace": "Workspace open_workspace",
    "records": "Scores Segment TimeGrid",
}
__all__ = [name for names in _NAMES.values() for name in names.split()]


def __getattr__(name: str) -> object:
    import importlib

    for module, names in _NAMES.items():
        if name in names.split():
            return getattr(importlib.import_module(f"mstemba.{module}"), name)
    raise AttributeError(f"module 'mstemba' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
