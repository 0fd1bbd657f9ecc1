"""Classes of point events, and classes that training shows nothing of."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mstemba.data_manifests.annotations import read_annotations
from mstemba.data_manifests.manifest import Action
from mstemba.errors import UsageError
from mstemba.pipeline.dataset.labels import label_matrix
from mstemba.pipeline.evaluate.result import Evaluation
from mstemba.pipeline.evaluate.stage import evaluate
from mstemba.pipeline.features.row_times import even_rows
from mstemba.pipeline.options import EvaluateOptions
from mstemba.pipeline.progress import Event
from mstemba.pipeline.report.stage import report
from mstemba.pipeline.runs import leaderboard
from mstemba.pipeline.train.stage import TrainResult
from mstemba.pipeline.workspace import open_workspace
from tests.command_line import Runner
from tests.training import CLASSES, HERE, TINY, edit_videos, fit, make_workspace, videos_of

pytestmark = pytest.mark.usefixtures("one_thread")

FIELD = {"charades": "seconds", "smarthome": "frames", "multithumos": "seconds"}


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def make_points(workspace: Path, *subsets: str, class_id: int = 2) -> Path:
    """Make the actions of a class in the videos of subsets points in time."""
    for id, video in videos_of(workspace).items():
        if video["subset"] in subsets:
            listed = [[c, s, s if c == class_id else e] for c, s, e in video["actions"]]
            edit_videos(workspace, **{id: {"actions": listed}})
    return workspace


def drop(workspace: Path, class_id: int, *subsets: str) -> Path:
    """Remove the actions of a class from the videos of subsets."""
    for id, video in videos_of(workspace).items():
        if video["subset"] in subsets:
            kept = [action for action in video["actions"] if action[0] != class_id]
            edit_videos(workspace, **{id: {"actions": kept}})
    return workspace


def heard(workspace: Path, **options: Any) -> tuple[TrainResult, list[str], list[str]]:
    """The result of a training, its lines, and its warnings."""
    events: list[Event] = []
    result = fit(workspace, on_event=events.append, **options)
    lines = [event.message for event in events if not event.warning and event.total is None]
    return result, lines, [event.message for event in events if event.warning]


def measured(workspace: Path, **options: Any) -> tuple[Evaluation, list[str]]:
    """The result of `evaluate` on the validation videos, and its warnings."""
    events: list[Event] = []
    chosen = EvaluateOptions(subset="validation", device="cpu", **options)
    found = evaluate(chosen, workspace=open_workspace(workspace), on_event=events.append)
    return found, [event.message for event in events if event.warning]


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    return make_workspace(tmp_path / "w")


# Point events


def test_a_class_of_points_is_trained_by_the_rule_that_gives_it_rows(workspace: Path) -> None:
    make_points(workspace, "training", "validation")
    result, lines, warnings = heard(workspace)
    (line,) = [line for line in lines if line.startswith("labels overlap: ")]
    assert "'drink' have no length" in line
    assert not any("cannot be learnt" in message for message in warnings)
    assert read_json(result.run / "last" / "config.json")["train"]["labels"] == "overlap"
    assert fit(workspace, labels="overlap").cached
    assert not fit(workspace, labels="strict").cached


def test_other_classes_are_trained_by_the_rule_of_the_field(workspace: Path) -> None:
    # One point does not make a class of points.
    walk, *others = videos_of(workspace)["v0"]["actions"]
    edit_videos(workspace, v0={"actions": [[walk[0], walk[1], walk[1]], *others]})
    result, lines, _ = heard(workspace)
    assert not any(line.startswith("labels") for line in lines)
    assert read_json(result.run / "last" / "config.json")["train"]["labels"] == "strict"
    assert fit(workspace, labels="strict").cached


def test_the_training_videos_alone_decide_by_which_rule_is_trained(tmp_path: Path) -> None:
    for subset, rule in (("training", "overlap"), ("validation", "strict")):
        run = fit(make_points(make_workspace(tmp_path / subset), subset)).run
        assert read_json(run / "last" / "config.json")["train"]["labels"] == rule


def test_a_rule_that_is_asked_for_is_kept_and_what_it_loses_is_named(workspace: Path) -> None:
    make_points(workspace, "training")
    result, lines, warnings = heard(workspace, labels="strict")
    assert read_json(result.run / "last" / "config.json")["train"]["labels"] == "strict"
    assert not any(line.startswith("labels") for line in lines)
    assert "1 class cannot be learnt (no positive row in training): 'drink'" in warnings


def test_nothing_but_points_and_the_strict_rule_is_an_error_that_says_what_to_do(
    workspace: Path,
) -> None:
    for class_id in range(3):
        make_points(workspace, "training", class_id=class_id)
    with pytest.raises(UsageError, match=r"no row of the training .* or pass --labels overlap"):
        fit(workspace, labels="strict")
    assert fit(workspace).steps == TINY["min_steps"]


@pytest.mark.parametrize("dataset", FIELD)
def test_the_field_s_datasets_have_no_class_of_points(dataset: str, shared: Path) -> None:
    # Their numbers stay those of the strict rule: evaluate says by which rule it labels.
    manifest, _ = read_annotations(
        shared / "annotations" / f"{dataset}.json", time_unit=FIELD[dataset]
    )
    spans = {a.class_id for v in manifest.videos.values() for a in v.actions if a.end > a.start}
    assert spans == set(range(len(manifest.classes)))


@pytest.mark.parametrize("source", ["checkpoint", "predictions"])
def test_a_class_of_points_is_measured_in_the_rows_that_it_lies_in(
    source: str, workspace: Path, tmp_path: Path
) -> None:
    run = fit(workspace).run  # by the strict rule: how it was trained does not matter
    tables = {"v5": np.ones((3, 19)), "v6": np.ones((3, 26))}
    (tmp_path / "p.pkl").write_bytes(pickle.dumps(tables))
    options: dict[str, Any] = {"predictions": tmp_path / "p.pkl"}
    if source == "checkpoint":
        options = {"checkpoint": run, "features": workspace / "npy"}
    before, said = measured(workspace, **options)
    assert (before.labels, before.as_dict()["labels"]) == ("strict", "strict")
    assert not any("by the rule" in message for message in said)
    make_points(workspace, "training", "validation")
    found, said = measured(workspace, **options)
    (line,) = [message for message in said if "by the rule overlap" in message]
    assert line.endswith("'drink'")
    truth = [
        label_matrix(
            [Action(*action) for action in video["actions"]],
            even_rows(video["duration"], int(video["duration"])),
            3,
            "overlap",
        )
        for id, video in videos_of(workspace).items()
        if id in tables
    ]
    assert list(found.positives.values()) == np.concatenate(truth).sum(axis=0).tolist()
    assert (found.labels, found.positives["drink"]) == ("overlap", 2)
    assert found.per_class["drink"] is not None
    # Perfect scores are perfect by duration and near boundaries, too: the rule is the same there.
    perfect = dict(zip(tables, (table.T.astype(float) for table in truth), strict=True))
    (tmp_path / "q.pkl").write_bytes(pickle.dumps(perfect))
    metrics = measured(workspace, predictions=tmp_path / "q.pkl")[0].metrics
    assert metrics["frame"]["map"] == metrics["breakdown"]["boundary"]["near"]["map"] == 100
    durations = metrics["breakdown"]["duration"]
    assert [durations[name]["frame_map"] for name in ("short", "medium", "long")] == [100] * 3


def test_the_command_takes_the_rule_that_fits(workspace: Path, mstemba: Runner) -> None:
    make_points(workspace, "training")
    options = [f"--{name.replace('_', '-')}={value}" for name, value in (TINY | HERE).items()]
    command = ["train", "--features", "npy", *options]
    assert "labels overlap: " in mstemba(*command, cwd=workspace).stderr
    said = mstemba(*command, "--labels", "strict", cwd=workspace).stderr
    assert "labels overlap: " not in said
    assert "warning: 1 class cannot be learnt (no positive row in training): 'drink'" in said


def test_runs_of_before_the_rule_was_chosen_are_compared_as_strict(workspace: Path) -> None:
    one, _ = fit(workspace).run, fit(workspace, labels="overlap")
    for name in ("best", "last"):
        config = read_json(one / name / "config.json")
        del config["train"]["labels"]
        del config["sha256"]
        (one / name / "config.json").write_text(json.dumps(config))
    found = {run["name"]: run["differs"] for run in leaderboard(open_workspace(workspace))["runs"]}
    assert found[one.name] == {"labels": "strict"}


# Classes without training


def test_train_names_the_classes_that_it_cannot_learn(workspace: Path) -> None:
    drop(workspace, 0, "training", "validation")
    drop(workspace, 1, "training")
    drop(workspace, 2, "training")
    # Between two rows: nothing is learnt of it.
    edit_videos(workspace, v0={"actions": [[2, 3.2, 3.8], [3, 1.5, 9.0]]})
    path = workspace / "manifest.json"
    path.write_text(json.dumps(read_json(path) | {"classes": [*CLASSES, "eat"]}))
    result, _, warnings = heard(workspace)
    assert [message for message in warnings if "cannot be learnt" in message] == [
        "1 class cannot be learnt (no action in any video): 'walk'",
        "1 class cannot be learnt (actions only where nothing is trained on): 'sit'",
        "1 class cannot be learnt (no positive row in training): 'drink'",
    ]
    config = read_json(result.run / "best" / "config.json")
    assert config["untrained_classes"] == ["walk", "sit", "drink"]


def test_classes_that_all_occur_are_not_talked_of(workspace: Path) -> None:
    result, _, warnings = heard(workspace)
    assert not any("cannot be learnt" in message for message in warnings)
    found, said = measured(workspace, checkpoint=result.run, features=workspace / "npy")
    assert found.untrained == ()
    assert not any(
        "class without a positive row" in message or "classes without" in message
        for message in said
    )


def test_a_class_that_is_only_held_out_is_named(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w", ())
    held_out = fit(workspace, val_fraction=0.4).run
    assert read_json(held_out / "best" / "config.json")["untrained_classes"] == []
    for id in videos_of(workspace):
        edit_videos(workspace, **{id: {"actions": [[0, 1.5, 6.5]]}})
    # Of each video in turn: two of the five are held out.
    named = 0
    for id in videos_of(workspace):
        edit_videos(workspace, **{id: {"actions": [[0, 1.5, 6.5], [1, 2.5, 5.5]]}})
        _, _, warnings = heard(workspace, val_fraction=0.4)
        named += any("nothing is trained on): 'sit'" in message for message in warnings)
        edit_videos(workspace, **{id: {"actions": [[0, 1.5, 6.5]]}})
    assert named == 2


def test_many_classes_are_counted(workspace: Path) -> None:
    path = workspace / "manifest.json"
    names = [*CLASSES, *(f"c{number}" for number in range(30))]
    path.write_text(json.dumps(read_json(path) | {"classes": names}))
    (line,) = [message for message in heard(workspace)[2] if "cannot be learnt" in message]
    assert line.startswith("30 classes cannot be learnt (no action in any video): 'c0', 'c1', ")
    assert line.endswith("'c9' and 20 more")


def test_a_checkpoint_knows_what_it_was_not_trained_on(workspace: Path) -> None:
    actions = videos_of(workspace)["v0"]["actions"]
    drop(workspace, 1, "training")
    run = fit(workspace).run
    options = {"checkpoint": run, "features": workspace / "npy"}
    message = (
        "subset 'validation' has 1 class without a positive row in the training of this "
        "checkpoint: 'sit'"
    )
    found, said = measured(workspace, **options)
    assert (found.untrained, found.as_dict()["untrained"]) == (("sit",), ["sit"])
    assert message in said
    # A manifest that has changed since does not matter.
    edit_videos(workspace, v0={"actions": actions})
    drop(workspace, 0, "training")
    found, said = measured(workspace, **options)
    assert found.untrained == ("sit",)
    assert message in said
    # A class that the subset does not have is not of interest.
    drop(workspace, 1, "validation")
    assert measured(workspace, **options)[0].untrained == ()


def test_without_a_record_the_manifest_s_training_videos_count(
    workspace: Path, tmp_path: Path
) -> None:
    run = fit(workspace).run
    config = read_json(run / "best" / "config.json")
    del config["untrained_classes"], config["sha256"]  # as in older checkpoints
    (run / "best" / "config.json").write_text(json.dumps(config))
    path = tmp_path / "p.pkl"
    path.write_bytes(pickle.dumps({"v5": np.ones((3, 19)), "v6": np.ones((3, 26))}))
    drop(workspace, 1, "training")
    # What is not annotated in the training videos is not trained on.
    late = [[0, 0.5, 5.5], [2, 7.5, 8.5]]
    trained = [id for id, video in videos_of(workspace).items() if video["subset"] == "training"]
    edit_videos(workspace, **{id: {"actions": late, "annotated_until": 7.0} for id in trained})
    message = "2 classes without an action in the training videos of the manifest: 'sit', 'drink'"
    for options in ({"checkpoint": run, "features": workspace / "npy"}, {"predictions": path}):
        found, said = measured(workspace, **options)
        assert found.untrained == ("sit", "drink")
        assert any(line.endswith(message) for line in said)
    # A manifest of test videos alone says nothing about training.
    edit_videos(workspace, **{id: {"subset": None} for id in trained})
    found, said = measured(workspace, predictions=path)
    assert (found.untrained, said) == ((), [])


def test_evaluate_and_report_mark_the_class(workspace: Path, mstemba: Runner) -> None:
    drop(workspace, 1, "training")
    run = fit(workspace).run
    options = ["--checkpoint", run, "--features", "npy", "--subset", "validation"]
    said = mstemba("evaluate", *options, "--device", "cpu", cwd=workspace)
    marked = [line.split()[0] for line in said.stdout.splitlines() if "not in training" in line]
    assert marked == ["sit"]
    assert "warning: subset 'validation' has 1 class without a positive row" in said.stderr
    page = report(
        EvaluateOptions(
            subset="validation", device="cpu", checkpoint=run, features=workspace / "npy"
        ),
        workspace=open_workspace(workspace),
        output=workspace / "page.html",
    )
    assert page.data["evaluation"]["untrained"] == ["sit"]
    assert any("has 1 class without a positive row" in line for line in page.data["warnings"])
    assert page.page.read_text().count("(not in training)") == 1


def test_segments_name_the_classes_too(workspace: Path, tmp_path: Path) -> None:
    drop(workspace, 1, "training")
    listed = [{"label": "sit", "segment": [1.0, 9.0], "score": 0.5}]
    path = tmp_path / "r.json"
    path.write_text(json.dumps({"results": {"v5": listed, "v6": listed}}))
    found, said = measured(workspace, predictions=path)
    assert (found.untrained, found.labels) == (("sit",), None)
    assert any(message.endswith("of the manifest: 'sit'") for message in said)
