"""Videos that are annotated up to a time: training and evaluation do not know what lies beyond."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mstemba.errors import UsageError
from mstemba.pipeline.evaluate.result import Evaluation
from mstemba.pipeline.evaluate.stage import evaluate
from mstemba.pipeline.options import EvaluateOptions
from mstemba.pipeline.progress import Event, EventHandler, ignore_events
from mstemba.pipeline.report.stage import report
from mstemba.pipeline.workspace import open_workspace
from tests.training import FEATURES, edit_videos, fit, make_workspace, videos_of

pytestmark = pytest.mark.usefixtures("one_thread")

LONGER = 20
"""Rows, and seconds, that `lengthen` adds."""


def lengthen(workspace: Path, hide: bool = True) -> Path:
    """Add to every video a second part, full of all actions, which is not annotated."""
    for id, video in videos_of(workspace).items():
        end = video["duration"]
        file = workspace / "npy" / f"{id}.npy"
        more = np.random.default_rng(9).normal(3.0, 1.0, (LONGER, FEATURES)).astype(np.float32)
        np.save(file, np.concatenate([np.load(file), more]))
        change: dict[str, Any] = {"duration": end + LONGER}
        if hide:
            # One action is labelled there, by chance: it does not count either.
            change |= {"annotated_until": end}
            change |= {"actions": [*video["actions"], [2, end + 1.5, end + 9.5]]}
        edit_videos(workspace, **{id: change})
    return workspace


@pytest.mark.parametrize(
    "options",
    [{}, {"labels": "overlap"}, {"schedule": "released", "epochs": 3}],
    ids=["strict", "overlap", "released"],
)
def test_a_video_trains_as_if_it_ended_where_its_annotation_does(
    options: dict[str, Any], tmp_path: Path
) -> None:
    cut = fit(make_workspace(tmp_path / "a"), **options)
    half = fit(lengthen(make_workspace(tmp_path / "b")), **options)
    whole = fit(lengthen(make_workspace(tmp_path / "c"), hide=False), **options)
    for name in ("metrics.jsonl", "best/model.safetensors"):
        assert (half.run / name).read_bytes() == (cut.run / name).read_bytes(), name
        assert (half.run / name).read_bytes() != (whole.run / name).read_bytes(), name


def test_another_time_is_another_training_where_it_changes_a_row(tmp_path: Path) -> None:
    workspace = lengthen(make_workspace(tmp_path / "w"))
    edit_videos(workspace, v0={"actions": [], "annotated_until": 40.0})  # the labels are all zeros
    first = fit(workspace)
    edit_videos(workspace, v0={"annotated_until": 40.9})  # the same rows
    assert fit(workspace).cached
    runs = {first.run}
    # The 123 zeros of 41 rows take as many bytes as the 126 of 42.
    for until in (41.0, 42.0, None):
        edit_videos(workspace, v0={"annotated_until": until})
        runs.add(fit(workspace).run)
    assert len(runs) == 4


def test_videos_without_an_annotated_row_are_skipped_and_named(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w")
    edit_videos(workspace, v2={"annotated_until": 0.5}, v5={"annotated_until": 0})
    said: list[str] = []
    # As many steps as videos are trained on.
    found = fit(workspace, on_event=warnings_in(said), batch_size=1, min_steps=1)
    assert found.steps == 4
    (line,) = [message for message in said if "annotated_until" in message]
    assert line.startswith("2 videos skipped, for example v2: annotated_until")
    edit_videos(workspace, **{id: {"annotated_until": 0.5} for id in videos_of(workspace)})
    with pytest.raises(UsageError, match="nothing to train on: 7 videos skipped"):
        fit(workspace)


def warnings_in(said: list[str]) -> EventHandler:
    return lambda event: said.append(event.message) if event.warning else None


# Evaluation


def measured(workspace: Path, on_event: EventHandler = ignore_events, **options: Any) -> Any:
    """The result of `evaluate` on the validation videos, as it is written."""
    chosen = EvaluateOptions(subset="validation", device="cpu", **options)
    found: Evaluation = evaluate(chosen, workspace=open_workspace(workspace), on_event=on_event)
    return {**found.as_dict(), "checkpoint": ""}


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A workspace, and the same one with longer videos that are annotated as far as these."""
    cut = make_workspace(tmp_path / "cut")
    for id, video in videos_of(cut).items():  # nothing hangs over the end
        edit_videos(cut, **{id: {"actions": [[c, s, min(e, video["duration"])] for c, s, e in
                                      video["actions"]]}})  # fmt: skip
    longer = make_workspace(tmp_path / "longer")
    return cut, lengthen(longer)


def test_a_checkpoint_is_measured_on_the_annotated_part(pair: tuple[Path, Path]) -> None:
    cut, longer = pair
    # Its scores of a row do not depend on other rows.
    run = fit(cut, arch="linear").run
    expected, found = (
        measured(workspace, checkpoint=run, features=workspace / "npy") for workspace in pair
    )
    assert found == expected
    assert found["rows"] == 19 + 26
    page = report(
        EvaluateOptions(subset="validation", device="cpu", checkpoint=run, features=longer / "npy"),
        workspace=open_workspace(longer),
        output=longer / "page.html",
    )
    lengths = {row["id"]: row["duration"] for row in page.data["videos"]["ranking"]}
    assert lengths == {"v5": 19.0, "v6": 26.0}
    edit_videos(longer, v5={"annotated_until": None}, v6={"annotated_until": None})
    assert measured(longer, checkpoint=run, features=longer / "npy")["map"] != found["map"]


def test_a_network_that_sees_other_rows_scores_the_whole_video(pair: tuple[Path, Path]) -> None:
    run = fit(pair[0]).run
    expected, found = (
        measured(workspace, checkpoint=run, features=workspace / "npy") for workspace in pair
    )
    assert (found["rows"], found["positives"]) == (expected["rows"], expected["positives"])
    assert found["map"] != expected["map"]


@pytest.mark.parametrize("with_features", [True, False])
def test_predictions_of_scores_are_of_the_whole_video(
    with_features: bool, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    rng = np.random.default_rng(1)
    tables = {"v5": rng.random((3, 19 + LONGER)), "v6": rng.random((3, 26 + LONGER))}
    results = []
    for workspace, extra in zip(pair, (LONGER, 0), strict=True):
        path = tmp_path / f"{extra}.pkl"
        kept = {id: table[:, : table.shape[1] - extra] for id, table in tables.items()}
        path.write_bytes(pickle.dumps(kept))
        features = {"features": workspace / "npy"} if with_features else {}
        results.append(measured(workspace, predictions=path, **features))
    assert results[0] == results[1]


def test_predicted_segments_are_cut_where_the_annotation_ends(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    def results(name: str, more: list[tuple[str, float, float, float]], end: float) -> Path:
        segments = [("walk", 2.0, 11.0, 0.9), ("sit", 12.0, end, 0.8), ("drink", 1.0, 6.0, 0.7)]
        listed = [
            {"label": label, "segment": [start, stop], "score": score}
            for label, start, stop, score in [*segments, *more]
        ]
        path = tmp_path / name
        path.write_text(json.dumps({"results": {"v5": listed, "v6": listed[:1]}}))
        return path

    # One begins where the annotation of v5 ends, one much later, but not after the video.
    beyond = [("walk", 19.0, 22.0, 0.95), ("drink", 30.0, 32.0, 0.95)]
    expected = measured(pair[0], predictions=results("a.json", [], 19.0))
    said: list[Event] = []
    path = results("b.json", beyond, 29.0)
    assert measured(pair[1], said.append, predictions=path) == expected
    assert not [event for event in said if "after their video ends" in event.message]


def test_measured_videos_without_an_annotated_row_are_named(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    cut, _ = pair
    edit_videos(cut, v5={"annotated_until": 0.9})
    path = tmp_path / "p.pkl"
    path.write_bytes(pickle.dumps({"v5": np.ones((3, 19)), "v6": np.ones((3, 26))}))
    said: list[str] = []
    assert measured(cut, warnings_in(said), predictions=path)["videos"] == 1
    assert any(message.startswith("1 video skipped, for example v5") for message in said)
    edit_videos(cut, v6={"annotated_until": 0.9})
    with pytest.raises(UsageError, match="'validation': 2 videos skipped"):
        measured(cut, predictions=path)
