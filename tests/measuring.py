"""`evaluate` and `report` with their options as keywords, as most tests call them."""

from __future__ import annotations

from typing import Any

from mstemba.pipeline.evaluate import stage as evaluate_stage
from mstemba.pipeline.evaluate.evaluation import Evaluation
from mstemba.pipeline.options import EvaluateOptions
from mstemba.pipeline.report import stage as report_stage
from mstemba.pipeline.report.stage import Report

_OPTIONS = set(EvaluateOptions.__dataclass_fields__)


def _split(arguments: dict[str, Any]) -> tuple[EvaluateOptions, dict[str, Any]]:
    options = {name: value for name, value in arguments.items() if name in _OPTIONS}
    others = {name: value for name, value in arguments.items() if name not in _OPTIONS}
    return EvaluateOptions(**options), others


def evaluate(**arguments: Any) -> Evaluation:
    options, others = _split(arguments)
    return evaluate_stage.evaluate(options, **others)


def report(**arguments: Any) -> Report:
    options, others = _split(arguments)
    return report_stage.report(options, **others)
