"""`evaluate` on files of predictions: what it measures, prints and writes, and what it refuses."""

from __future__ import annotations

import csv
import json
import math
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mstemba.errors import CheckpointError, StoreError, UsageError
from mstemba.model.architectures import build, make_config
from mstemba.pipeline.checkpoint import score
from mstemba.pipeline.evaluate.frame_metrics import average_precision, mean_average_precision
from mstemba.pipeline.evaluate.metric_groups import METRIC_GROUPS
from mstemba.pipeline.evaluate.result import Evaluation
from mstemba.pipeline.evaluate.stage import evaluate
from mstemba.pipeline.options import EvaluateOptions
from mstemba.pipeline.progress import Event, EventHandler, ignore_events
from tests.command_line import Runner

CLASSES = ["walk", "sit", "eat"]


def run(
    metrics: Sequence[str] = METRIC_GROUPS, on_event: EventHandler = ignore_events, **options: Any
) -> Evaluation:
    return evaluate(EvaluateOptions(**options), metrics=metrics, on_event=on_event)


def write_manifest(folder: Path, videos: dict[str, Any], unit: str = "seconds") -> Path:
    content = {
        "format": "mstemba-manifest",
        "version": 1,
        "dataset": "",
        "classes": CLASSES,
        "time_unit": unit,
        "videos": videos,
    }
    path = folder / "manifest.json"
    path.write_text(json.dumps(content))
    return path


def video(
    duration: float | None, *actions: tuple[int, float, float], subset: str = "testing"
) -> Any:
    return {"path": None, "subset": subset, "duration": duration, "actions": actions}


VIDEOS = {
    "a": video(10.0, (0, 1.0, 4.2), (1, 3.0, 30.0), (0, 6.2, 7.2)),
    "b": video(20.0, (0, -5.0, 8.0), (1, 12.0, 12.0)),
    "c": video(5.0),
    "t": video(5.0, (2, 1.0, 4.0), subset="training"),
}
ROWS = {"a": 20, "b": 50, "c": 4}


def predictions(folder: Path, **more: np.ndarray) -> Path:
    """The field's pickle: (C, T) by video."""
    rng = np.random.default_rng(0)
    tables = {id: rng.random((3, rows)).astype(np.float32) for id, rows in ROWS.items()}
    path = folder / "test.pkl"
    path.write_bytes(pickle.dumps({**tables, **more}))
    return path


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    return write_manifest(tmp_path, VIDEOS)


@pytest.mark.parametrize("unit", ["seconds", "frames"])
def test_rows_are_spread_over_the_duration_and_labelled_as_the_field_does(
    unit: str, tmp_path: Path
) -> None:
    path = predictions(tmp_path)
    scores, labels = [], []
    for id, table in pickle.loads(path.read_bytes()).items():
        rate = table.shape[1] / VIDEOS[id]["duration"]
        truth = np.zeros(table.T.shape, bool)
        for c, start, end in VIDEOS[id]["actions"]:
            for row in range(len(truth)):
                truth[row, c] |= start < row / rate < end
        scores.append(table.T)
        labels.append(truth)
    truth = np.concatenate(labels)
    ap = average_precision(np.concatenate(scores), truth)
    result = run(predictions=path, manifest=write_manifest(tmp_path, VIDEOS, unit))
    assert result.map == pytest.approx(mean_average_precision(ap, truth.sum(axis=0)))
    assert result.per_class == {
        "walk": pytest.approx(100 * ap[0]),
        "sit": pytest.approx(100 * ap[1]),
        "eat": None,
    }
    assert list(result.positives.values()) == truth.sum(axis=0).tolist()
    assert (result.videos, result.rows, result.missing) == (3, 74, ())
    assert (result.checkpoint, result.time_unit) == (str(path), unit)
    assert result.metrics["frame"]["map_all_classes"] == pytest.approx(100 * ap.mean())
    assert tuple(result.metrics) == METRIC_GROUPS


def test_the_families_are_the_golden_numbers(shared: Path, tmp_path: Path) -> None:
    """A row lasts one second here, and every run of labels is an action around its rows."""
    expected = json.loads((shared / "golden" / "metrics_expected.json").read_text())
    videos, tables = {}, {}
    with np.load(shared / "golden" / "metrics_inputs.npz") as data:
        for number in range(6):
            labels = np.pad(data[f"labels_{number}"].astype(int), ((1, 1), (0, 0)))
            actions = [
                (c, float(begin) - 0.5, float(end) - 0.5)
                for c in range(9)
                for begin, end in zip(
                    np.flatnonzero(np.diff(labels[:, c]) == 1),
                    np.flatnonzero(np.diff(labels[:, c]) == -1),
                    strict=True,
                )
            ]
            tables[str(number)] = data[f"probs_{number}"].T
            videos[str(number)] = video(float(len(labels) - 2), *actions)
    path = write_manifest(tmp_path, videos)
    content = json.loads(path.read_text()) | {"classes": [f"class {c}" for c in range(9)]}
    path.write_text(json.dumps(content))
    (tmp_path / "p.pkl").write_bytes(pickle.dumps(tables))
    found = run(predictions=tmp_path / "p.pkl", manifest=path).metrics
    assert found["frame"]["map"] == pytest.approx(expected["map_present_classes"], rel=1e-6)
    assert found["frame"]["map_all_classes"] == pytest.approx(expected["map_all_classes"], rel=1e-6)
    legacy = found["charades"]["legacy"]["map_all_classes"]
    assert legacy == pytest.approx(expected["sampled25_map_all"], rel=1e-6)
    for tau in ("0", "20", "40"):  # the golden is of eight classes: the ninth never occurs
        fractions = {name: value / 100 for name, value in found["conditional"][tau].items()}
        assert fractions["recall"] == pytest.approx(expected[f"conditional_t{tau}"]["recall"])


def perfect(folder: Path) -> Path:
    """1 in the rows of an action, fading with the distance from it elsewhere."""
    tables = {}
    for id, rows in ROWS.items():
        times = np.arange(rows) * VIDEOS[id]["duration"] / rows
        table = np.full((3, rows), 0.001)
        for c, start, end in VIDEOS[id]["actions"]:
            table[c, (start < times) & (times < end)] = 0.999
        tables[id] = table
    path = folder / "perfect.pkl"
    path.write_bytes(pickle.dumps(tables))
    return path


def test_perfect_scores_are_100_everywhere(manifest: Path, tmp_path: Path) -> None:
    found = run(predictions=perfect(tmp_path), manifest=manifest).metrics
    assert found["frame"]["map"] == 100
    assert found["conditional"]["0"]["recall"] == 100
    assert found["detection"]["map"]["0.5"] == 100
    boundary = found["breakdown"]["boundary"]
    assert boundary["near"]["map"] == boundary["far"]["map"] == 100
    assert 0 < boundary["far"]["chance"] < 100


def test_actions_are_cut_to_their_video_and_what_is_left_out_is_counted(
    manifest: Path, tmp_path: Path
) -> None:
    found = run(predictions=perfect(tmp_path), manifest=manifest).metrics
    detection = found["detection"]
    assert (detection["actions"], detection["actions_without_length"]) == (4, 1)
    durations = found["breakdown"]["duration"]
    # They last 3.2, 7, 1 and 8 seconds.
    assert durations["limits"] == pytest.approx([3.2, 7.0])
    counts = [durations[name]["actions"] for name in ("short", "medium", "long")]
    assert counts == [1, 1, 2]


def test_families_can_be_chosen(manifest: Path, tmp_path: Path) -> None:
    found = run(predictions=predictions(tmp_path), manifest=manifest, metrics=["charades"])
    assert list(found.metrics) == ["frame", "charades"]
    assert list(found.classes["walk"]) == ["ap", "charades_ap"]


def heard(**arguments: Any) -> tuple[Evaluation, list[str]]:
    """The result, and the warnings."""
    events: list[Event] = []
    result = run(**arguments, on_event=events.append)
    return result, [event.message for event in events if event.warning]


def test_videos_that_do_not_fit_are_counted(manifest: Path, tmp_path: Path) -> None:
    more = {name: np.zeros((3, 4), np.float32) for name in ("t", "x", "y")}
    path = predictions(tmp_path, **more)
    tables = pickle.loads(path.read_bytes())
    del tables["c"]
    path.write_bytes(pickle.dumps(tables))
    result, said = heard(predictions=path, manifest=manifest)
    assert (result.videos, result.missing) == (2, ("c",))
    assert len(said) == 4
    assert "1 prediction for videos of other subsets" in said[0]
    assert "2 predictions for videos that the manifest does not have" in said[1]
    assert "'x'" in said[1]
    assert "1 of 3 videos skipped because they have no predictions" in said[2]
    assert "in the training videos of the manifest: 'walk', 'sit'" in said[3]


def test_logits_are_told_of(manifest: Path, tmp_path: Path) -> None:
    path = predictions(tmp_path, a=np.full((3, 20), -4.0))
    assert "logits" in heard(predictions=path, manifest=manifest)[1][0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"subset": ""}, ("--subset is ''", "such as testing")),
        ({"subset": "n/a"}, ("--subset is 'n/a'", "such as testing")),
        ({"subset": "training"}, ("its videos (3)", "'a'", "'training'", "'t'")),
        ({"metrics": ["frame", "fast"]}, ("'fast'", "frame, charades")),
        ({"checkpoint": "runs"}, ("one of them",)),
        ({"features": "no.zarr"}, ("no.zarr",)),
    ],
)
def test_requests_that_cannot_be_met_are_refused(
    arguments: dict[str, Any], words: tuple[str, ...], manifest: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as refused:
        run(**{"predictions": predictions(tmp_path), "manifest": manifest, **arguments})
    assert all(word in str(refused.value) for word in words), refused.value


def test_an_unknown_subset_is_told_which_there_are(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path, {**VIDEOS, "n": video(5.0, subset="")})
    with pytest.raises(UsageError, match=r"3 testing, 1 training, 1 without .* --subset"):
        run(predictions=predictions(tmp_path), manifest=manifest, subset="final")


def test_training_videos_are_told_of(manifest: Path, tmp_path: Path) -> None:
    path = predictions(tmp_path, t=np.zeros((3, 4), np.float32))
    for subset, count in (("train", 1), ("testing", 0)):
        said = heard(predictions=path, manifest=manifest, subset=subset)[1]
        assert sum("these are training videos" in line for line in said) == count


def test_a_subset_may_be_spelled_as_in_the_annotations(manifest: Path, tmp_path: Path) -> None:
    path = predictions(tmp_path)
    assert run(predictions=path, manifest=manifest, subset="Test").subset == "testing"


@pytest.mark.parametrize(("subset", "told"), [("testing", True), ("fold 1", False)])
def test_videos_of_an_unknown_subset_are_told_of(
    subset: str, told: bool, manifest: Path, tmp_path: Path
) -> None:
    more = {"f": video(10.0, (0, 1, 4), subset="Fold 1"), "g": video(10.0, subset="fold 1")}
    said = list[Event]()
    run(
        predictions=predictions(tmp_path, f=np.zeros((3, 4), np.float32)),
        manifest=write_manifest(tmp_path, {**VIDEOS, **more}),
        subset=subset,
        on_event=said.append,
    )
    lines = [event.message for event in said if not event.warning]
    assert any("are not measured: 2 fold 1" in line for line in lines) == told


def test_a_video_without_duration_needs_features(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path, {**VIDEOS, "b": video(None, (0, 1, 2))})
    with pytest.raises(UsageError, match=r"'b' no duration.*--features"):
        run(predictions=predictions(tmp_path), manifest=manifest)


def test_a_subset_without_an_action_has_nothing_to_measure(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path, {"a": video(10.0)})
    with pytest.raises(UsageError, match="nothing to measure"):
        run(predictions=predictions(tmp_path), manifest=manifest)


def test_features_say_when_the_rows_are(manifest: Path, tmp_path: Path) -> None:
    folder = tmp_path / "features"
    folder.mkdir()
    for id, rows in ROWS.items():
        np.save(folder / f"{id}.npy", np.zeros((rows, 4), np.float32))
    path = predictions(tmp_path)
    with_them = run(predictions=path, manifest=manifest, features=folder)
    assert with_them.map == run(predictions=path, manifest=manifest).map
    np.save(folder / "b.npy", np.zeros((49, 4), np.float32))
    with pytest.raises(UsageError, match=r"50 rows of 'b'.*49"):
        run(predictions=path, manifest=manifest, features=folder)


def results(folder: Path, **found: list[tuple[str, float, float, float]]) -> Path:
    """ActivityNet's results of (label, start, end, score)."""
    listed = {
        id: [{"label": n, "segment": [s, e], "score": p} for n, s, e, p in segments]
        for id, segments in found.items()
    }
    path = folder / "results.json"
    path.write_text(json.dumps({"results": listed}))
    return path


def test_segments_are_measured_as_detections_alone(manifest: Path, tmp_path: Path) -> None:
    path = results(
        tmp_path,
        a=[("walk", 1.0, 4.2, 0.9), ("walk", 1.0, 4.0, 0.8), ("sit", 3.0, 10.0, 0.5)],
    )
    result, said = heard(predictions=path, manifest=manifest)
    assert math.isnan(result.map)
    assert list(result.metrics) == ["detection", "breakdown", "timing"]
    # sit: its one action is found; walk: the first of three.
    assert result.metrics["detection"]["map"]["0.9"] == pytest.approx(100 * (1 + 1 / 3) / 2)
    assert result.positives == {"walk": 3, "sit": 1, "eat": 0}
    assert result.missing == ("b", "c")
    assert "2 of 3 videos without segments: all their actions are missed" in said[0]
    content = result.as_dict()
    assert (content["map"], content["metric"]) == (None, "detection mAP, percent")


def test_segments_of_another_time_unit_are_told(manifest: Path, tmp_path: Path) -> None:
    frames = [("walk", 100.0 * k, 100.0 * k + 50, 0.5) for k in range(1, 4)]
    path = results(tmp_path, a=frames)
    with pytest.raises(UsageError, match="another time unit than seconds"):
        run(predictions=path, manifest=manifest)
    path = results(tmp_path, a=[("walk", 1.0, 2.0, 0.9), ("walk", 2.0, 3.0, 0.9), *frames[:1]])
    assert "1 of 3 segments with a start after" in heard(predictions=path, manifest=manifest)[1][-1]


def test_seconds_need_features_where_the_manifest_counts_frames(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path, VIDEOS, "frames")
    content = {"video": "a.mp4", "segments": [{"label": "sit", "start": 3, "end": 9, "score": 1}]}
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(UsageError, match="Pass --features"):
        run(predictions=tmp_path / "a.json", manifest=manifest)


def test_videos_of_a_folder_of_detections_are_known_by_their_files(tmp_path: Path) -> None:
    folder = tmp_path / "detections"
    folder.mkdir()
    videos = {}
    for day in ("monday", "tuesday"):
        file = tmp_path / day / "cam1.mp4"
        videos[f"{day}/cam1"] = {**video(10.0, (0, 1.0, 4.0)), "path": str(file)}
        item = {"label": "walk", "start": 1.0, "end": 4.0, "score": 0.9}
        content = json.dumps({"video": str(file), "segments": [item]})
        (folder / f"{day}__cam1.json").write_text(content)
    result, said = heard(predictions=folder, manifest=write_manifest(tmp_path, videos))
    assert (result.metrics["detection"]["average_map"], said) == (pytest.approx(100), [])


def test_the_command_prints_a_table_and_writes_json_and_csv(
    manifest: Path, tmp_path: Path, mstemba: Runner
) -> None:
    options = ["--predictions", predictions(tmp_path), "--manifest", manifest]
    written = ["--json", tmp_path / "r.json", "--csv", tmp_path / "r.csv"]
    lines = mstemba("evaluate", *options, *written, cwd=tmp_path).stdout.splitlines()
    content = json.loads((tmp_path / "r.json").read_text())
    assert lines[0].split() == ["measure", "mAP", "%"]
    assert lines[-2].startswith(f"per-frame mAP {content['map']:.2f} % on testing (3 videos, 74 ")
    assert "docs/metrics.md" in lines[-1]
    for words in ("Charades", "20 rows after", "segments, at", "short actions (under", "a start"):
        assert any(words in line for line in lines), words
    table = list(csv.DictReader((tmp_path / "r.csv").open(newline="")))
    assert [row["class"] for row in table] == CLASSES
    assert float(table[0]["ap"]) == pytest.approx(content["per_class"]["walk"], abs=1e-4)
    assert (table[2]["positives"], table[2]["ap"]) == ("0", "")
    assert set(table[0]) == {"class", "positives", *content["classes"]["walk"]}


def test_the_command_prints_segments_too(manifest: Path, tmp_path: Path, mstemba: Runner) -> None:
    path = results(tmp_path, a=[("walk", 1.0, 4.2, 0.9)])
    options = ["--predictions", path, "--manifest", manifest]
    said = mstemba("evaluate", *options, cwd=tmp_path).stdout
    assert said.splitlines()[-2].startswith("detection mAP 16.67 % on testing (3 videos")


def test_scores_that_are_no_numbers_are_refused() -> None:
    import torch

    network = build(make_config("linear", 6, 3)).eval()
    rows = np.zeros((5, 6), np.float32)
    assert score(network, rows).shape == (5, 3)
    with pytest.raises(StoreError, match="NaN or infinity in row 1 of 5"):
        score(network, np.where(np.arange(5)[:, None] == 1, np.nan, rows).astype(np.float32))
    other = build(make_config("mstemba", 6, 3)).eval()
    with pytest.raises(CheckpointError, match=r"or the features are too large \(up to 3e\+38\)"):
        score(other, np.full((5, 6), 3e38, np.float32))
    with torch.no_grad():
        next(network.parameters()).fill_(torch.nan)
    with pytest.raises(CheckpointError, match="its weights are damaged, or its training diverged"):
        score(network, rows)
