"""The report's page: a template that escapes whatever it is given, its style and its one script."""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from mstemba.pipeline.detect.segments import find_segments
from mstemba.pipeline.evaluate.evaluation import BINS, Evaluation
from mstemba.pipeline.evaluate.stage import Scored
from mstemba.pipeline.options import ExportOptions
from mstemba.pipeline.report.figures import (
    LEVELS,
    Timeline,
    pr_chart,
    time_text,
    timeline,
    training_charts,
)
from mstemba.records import Scores

HERE = Path(__file__).parent
COLUMNS = {
    "ap": "AP",
    "charades_ap": "Charades AP",
    "detection_ap": "detection AP",
    "detection_ap_0.5": "at tIoU 0.5",
    **{f"{name}_ap": name for name in BINS},
}
"""Headings of the classes' figures, by their name in `Evaluation.classes`."""


def render(
    data: dict[str, Any],
    scored: Scored,
    evaluation: Evaluation,
    classes: tuple[str, ...],
    options: ExportOptions,
) -> str:
    """The whole page, as HTML; `data` is what `mstemba.pipeline.report.stage` has collected."""
    script = (HERE / "sort.js").read_text(encoding="utf-8")
    sha = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    template = _environment().get_template("page.html")
    videos = data["videos"]
    return template.render(
        **data,
        data=data,
        style=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_sha=sha,
        summary=evaluation.summary(),
        columns=COLUMNS,
        levels=LEVELS,
        charts={which: pr_chart(data["precision_recall"][which]) for which in ("best", "worst")},
        training_charts=training_charts(data["training"]),
        timelines=_timelines([*videos["best"], *videos["worst"]], scored, classes, options),
        figures={row["id"]: row for row in videos["ranking"]},
    )


def _timelines(
    ids: Sequence[str], scored: Scored, classes: tuple[str, ...], options: ExportOptions
) -> dict[str, Timeline]:
    found = {}
    for video, scores in zip(scored.videos, scored.scores, strict=True):
        if video.id in ids and video.grid is not None:
            whole = Scores(scores, video.grid, classes, video.id, video.duration, 0.0)
            segments = find_segments(whole, options.threshold, options.low_threshold)
            found[video.id] = timeline(video, scores, segments, scored.time_unit)
    return found


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False}
    environment.filters |= {
        "name": _name,
        "plain": _plain,
        "two": _two,
        "value": _value,
        "length": _length,
    }
    return environment


def _name(text: str) -> Markup:
    """A name as it is, apart from the text around it, which it then cannot turn to the left."""
    return Markup('<bdi class="name">{}</bdi>').format(_plain(text))


def _plain(text: str) -> str:
    # HTML has no control characters but white space; half a character is no text in UTF-8.
    return re.sub("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", lambda c: ascii(c[0])[1:-1], text)


def _two(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.2f}"


def _value(value: Any) -> str:
    """A number, a text or a list of the provenance."""
    if isinstance(value, list):
        return ", ".join(map(_value, value))
    if isinstance(value, float):
        return f"{value:.6g}"
    return "-" if value is None else str(value)


def _length(value: float, unit: str) -> str:
    """How long a video is."""
    clock = unit == "seconds" and value >= 120
    return time_text(value, clock) + (" min" if clock else f" {unit}")
