"""Onset and offset errors: by hand, against the plain loop, and as `evaluate` gives them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mstemba.errors import CheckpointError
from mstemba.pipeline.evaluate.result import Evaluation
from mstemba.pipeline.evaluate.segment_metrics import SegmentArray
from mstemba.pipeline.evaluate.stage import evaluate
from mstemba.pipeline.evaluate.timing import TimingErrors, pair_by_overlap
from mstemba.pipeline.features.row_times import even_rows
from mstemba.pipeline.options import EvaluateOptions
from tests.command_line import Runner
from tests.training import fit, make_workspace

Row = tuple[int, int, float, float]


def segments(*rows: Row) -> SegmentArray:
    """Segments of (video, class, start, end)."""
    return SegmentArray.from_rows([(*row, 1.0) for row in rows])


def naive_pairs(truth: SegmentArray, found: SegmentArray) -> list[tuple[int, int]]:
    candidates = []
    for i in range(len(truth)):
        for j in range(len(found)):
            shared = min(truth.end[i], found.end[j]) - max(truth.start[i], found.start[j])
            union = truth.duration[i] + found.duration[j] - shared
            same = (truth.video[i], truth.class_id[i]) == (found.video[j], found.class_id[j])
            if same and shared > 0:
                candidates.append((-shared / union, i, j))
    pairs: list[tuple[int, int]] = []
    for _, i, j in sorted(candidates):
        if all(i != a and j != b for a, b in pairs):
            pairs.append((i, j))
    return pairs


@given(seed=st.integers(0, 10_000), count=st.integers(0, 12))
def test_pairs_equal_the_plain_loop(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)

    def some() -> SegmentArray:
        start, length = rng.integers(0, 12, count), rng.integers(1, 9, count)
        video, class_id = rng.integers(0, 2, (2, count))
        return SegmentArray(video, class_id, 1.0 * start, 1.0 * start + length, np.ones(count))

    truth, found = some(), some()
    actions, detections = pair_by_overlap(truth, found)
    pairs = list(zip(actions.tolist(), detections.tolist(), strict=True))
    assert sorted(pairs) == sorted(naive_pairs(truth, found))


TRUTH = segments((0, 0, 10.0, 20.0), (0, 1, 0.0, 30.0), (1, 0, 40.0, 50.0), (1, 0, 60.0, 70.0))
FOUND = segments((0, 0, 10.5, 19.0), (0, 1, 3.0, 31.0), (1, 0, 39.0, 52.0), (0, 2, 60.0, 70.0))


def test_errors_by_hand() -> None:
    errors = TimingErrors(TRUTH, FOUND, [100.0, 50.0], [0.5, 2.0])
    found = errors.figures()
    assert (found["actions"], found["matched"]) == (4, 3)
    # The second action begins with its video, and the third one ends with it: no edge to find.
    assert found["onset"] == {
        "edges": 2,
        "median": pytest.approx((0.5 - 1.0) / 2),
        "median_absolute": pytest.approx((0.5 + 1.0) / 2),
        "median_rows": pytest.approx((1.0 - 0.5) / 2),
        "median_absolute_rows": pytest.approx((1.0 + 0.5) / 2),
    }
    assert (found["offset"]["edges"], found["offset"]["median"]) == (2, 0.0)
    assert found["offset"]["median_absolute"] == 1.0
    short = errors.by_bin(np.array([0, 2, 1, 0]))["short"]
    assert (short["actions"], short["matched"], short["onset"]["median"]) == (2, 1, 0.5)
    by_class = errors.by_class(3)
    assert by_class["onset_error"] == pytest.approx([0.75, math.nan, math.nan], nan_ok=True)
    assert by_class["offset_error"] == pytest.approx([1.0, 1.0, math.nan], nan_ok=True)


def test_without_rows_or_pairs_there_is_no_error() -> None:
    found = TimingErrors(TRUTH, FOUND, [100.0, 50.0], None).figures()
    assert found["onset"]["median_absolute"] == pytest.approx(0.75)
    assert math.isnan(found["onset"]["median_absolute_rows"])
    none = TimingErrors(TRUTH, segments(), [100.0, 50.0], [1.0, 1.0]).figures()
    assert (none["matched"], none["offset"]["edges"]) == (0, 0)
    assert math.isnan(none["offset"]["median"])


def test_the_rounded_end_of_the_rows_is_no_edge() -> None:
    duration = float(even_rows(10.0, 12).ends[-1])
    assert duration > 10.0
    errors = TimingErrors(segments((0, 0, 1.0, 10.0)), segments((0, 0, 1.5, 9.0)), [duration], None)
    assert errors.figures()["offset"]["edges"] == 0


# What `evaluate` makes of it


def write_set(folder: Path, unit: str = "seconds") -> dict[str, Any]:
    """A video of 20 rows of 0.5 s, in which `walk` and `sit` are labelled and scored."""
    actions = [[0, 1.8, 4.8], [1, 5.8, 8.3]]
    video = {"path": None, "subset": "testing", "duration": 10.0, "actions": actions}
    manifest = {"format": "mstemba-manifest", "version": 1, "dataset": "", "time_unit": unit}
    content = {**manifest, "classes": ["walk", "sit", "eat"], "videos": {"a": video}}
    (folder / "manifest.json").write_text(json.dumps(content))
    scores = np.zeros((20, 3))
    scores[4:11, 0] = 1.0  # the rows that start from 2.0 to 5.0: from 1.75 to 5.25
    scores[12:17, 1] = 1.0  # from 6.0 to 8.0: from 5.75 to 8.25
    (folder / "scores.json").write_text(json.dumps({"a": scores.tolist()}))
    return {"predictions": folder / "scores.json", "manifest": folder / "manifest.json"}


def run(metrics: tuple[str, ...] = ("timing",), **options: Any) -> Evaluation:
    return evaluate(EvaluateOptions(**options), metrics=metrics)


@pytest.mark.parametrize("unit", ["seconds", "frames"])
def test_the_errors_of_the_segments_that_detect_makes(tmp_path: Path, unit: str) -> None:
    result = run(**write_set(tmp_path, unit))
    found = result.metrics["timing"]
    assert list(result.metrics) == ["frame", "timing"]
    assert (found["threshold"], found["low"]) == (0.5, 0.3)
    assert (found["actions"], found["detections"], found["matched"]) == (2, 2, 2)
    assert found["onset"]["median"] == pytest.approx(-0.05, abs=1e-6)
    assert found["onset"]["median_rows"] == pytest.approx(-0.1, abs=1e-6)
    assert found["offset"]["median"] == pytest.approx((0.45 - 0.05) / 2, abs=1e-6)
    assert found["offset"]["median_absolute_rows"] == pytest.approx(0.5, abs=1e-6)
    assert result.classes["walk"]["onset_error"] == pytest.approx(0.05, abs=1e-6)
    assert result.classes["walk"]["offset_error"] == pytest.approx(0.45, abs=1e-6)
    assert result.classes["eat"]["onset_error"] is None


def test_the_command_shows_and_writes_the_errors(tmp_path: Path, mstemba: Runner) -> None:
    options = [text for name, path in write_set(tmp_path).items() for text in (f"--{name}", path)]
    written = ["--json", tmp_path / "r.json", "--csv", tmp_path / "r.csv"]
    said = mstemba("evaluate", *options, *written, cwd=tmp_path).stdout
    (onset,) = [line for line in said.splitlines() if line.startswith("onset error")]
    assert "median 0.05 seconds (0.10 rows), signed -0.05; 2 of 2 actions matched" in onset
    assert "offset error" in said
    content = json.loads((tmp_path / "r.json").read_text())
    assert content["metrics"]["timing"]["offset"]["edges"] == 2
    head, walk, *_ = (tmp_path / "r.csv").read_text().splitlines()
    assert head.split(",")[-2:] == ["onset_error", "offset_error"]
    assert [float(cell) for cell in walk.split(",")[-2:]] == pytest.approx([0.05, 0.45], abs=1e-3)


def test_segments_of_a_file_have_errors_without_rows(tmp_path: Path) -> None:
    options = write_set(tmp_path)
    found = [{"label": "walk", "segment": [2.0, 4.8], "score": 0.1}]
    options["predictions"].write_text(json.dumps({"results": {"a": found}}))
    timing = run(**options).as_dict()["metrics"]["timing"]
    assert (timing["matched"], timing["actions"]) == (1, 2)
    assert timing["onset"]["median"] == pytest.approx(0.2)
    assert timing["onset"]["median_rows"] is None
    assert timing["long"]["onset"]["median"] == pytest.approx(0.2)


def test_the_rule_of_the_training_decides_when_its_scores_hold(tmp_path: Path) -> None:
    folder = make_workspace(tmp_path / "work")
    run = fit(folder, arch="linear", width=1.0, min_steps=200, lr=0.1, warmup=0.0).run
    config = run / "best" / "config.json"
    content = json.loads(config.read_text())
    del content["sha256"]
    found = {}
    for rule in ("strict", "overlap"):
        config.write_text(json.dumps(content | {"train": {**content["train"], "labels": rule}}))
        options = EvaluateOptions(subset="training", checkpoint=run, features=folder / "npy")
        result = evaluate(options, workspace=folder, metrics=("charades", "timing"))
        found[rule] = result.metrics
    # The field's metrics look at the same rows; the segments lie half a row later.
    assert found["strict"]["frame"] == found["overlap"]["frame"]
    assert found["strict"]["charades"] == found["overlap"]["charades"]
    strict, overlap = (found[rule]["timing"]["onset"] for rule in ("strict", "overlap"))
    assert min(strict["edges"], overlap["edges"]) > 5
    assert overlap["median_rows"] - strict["median_rows"] == pytest.approx(0.5, abs=0.2)
    config.write_text(json.dumps(content | {"train": {**content["train"], "labels": "new"}}))
    with pytest.raises(CheckpointError, match=r"labels 'new', expected one of strict, overlap"):
        evaluate(options, workspace=folder)
