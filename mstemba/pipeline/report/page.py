"""Render the report's page: a template that escapes all it is given, a style and one script."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from mstemba.pipeline.detect.segments import find_segments
from mstemba.pipeline.evaluate.inputs import ScoredSubset
from mstemba.pipeline.evaluate.result import Evaluation
from mstemba.pipeline.evaluate.segment_metrics import BINS
from mstemba.pipeline.evaluate.summary import summary_rows, two_decimals
from mstemba.pipeline.evaluate.timing import EDGES
from mstemba.pipeline.options import ExportOptions
from mstemba.pipeline.report.figures import (
    LEVELS,
    Timeline,
    make_timeline,
    pr_chart,
    time_text,
    training_charts,
)
from mstemba.wording import counted

HERE = Path(__file__).parent
COLUMNS = {
    "ap": "AP",
    "charades_ap": "Charades AP",
    "detection_ap": "detection AP",
    "detection_ap_0.5": "at tIoU 0.5",
    **{f"{name}_ap": name for name in BINS},
    **{f"{edge}_error": f"{edge} error" for edge in EDGES},
}
"""Headings of the columns, by their name in `Evaluation.classes`."""


def render(
    data: dict[str, Any],
    scored: ScoredSubset,
    evaluation: Evaluation,
    options: ExportOptions,
) -> str:
    """Return the page as HTML; `data` is the content of the report, see docs/report.md."""
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
        summary=summary_rows(evaluation),
        columns=COLUMNS,
        levels=LEVELS,
        charts={which: pr_chart(data["precision_recall"][which]) for which in ("best", "worst")},
        training_charts=training_charts(data["training"]),
        timelines=_timelines([*videos["best"], *videos["worst"]], scored, options),
        figures={row["id"]: row for row in videos["ranking"]},
    )


def _timelines(
    ids: Sequence[str], scored: ScoredSubset, options: ExportOptions
) -> dict[str, Timeline]:
    found = {}
    for video in scored.videos:
        if video.id in ids:
            scores = video.as_scores(scored.classes)
            segments = find_segments(scores, options.threshold, options.low_threshold)
            found[video.id] = make_timeline(video, segments, scored.time_unit)
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
        "counted": counted,
        "name": _name,
        "plain": _plain,
        "two": two_decimals,
        "value": _value,
        "length": _length,
    }
    return environment


def _name(text: str) -> Markup:
    """Isolate a name, so that right-to-left text in it does not turn the text around it."""
    return Markup('<bdi class="name">{}</bdi>').format(_plain(text))


def _plain(text: str) -> str:
    # HTML has no control characters except white space, and UTF-8 has no lone surrogates.
    return re.sub("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", lambda c: ascii(c[0])[1:-1], text)


def _value(value: Any) -> str:
    """Format a number, a text or a list of the provenance."""
    if isinstance(value, list):
        return ", ".join(map(_value, value))
    if isinstance(value, float):
        return f"{value:.6g}"
    return "-" if value is None else str(value)


def _length(value: float, unit: str) -> str:
    """Format the length of a video."""
    clock = unit == "seconds" and value >= 120
    return time_text(value, clock) + (" min" if clock else f" {unit}")
