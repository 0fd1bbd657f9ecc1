"""`report`: its page against `evaluate`, its figures, odd inputs, and a browser that opens it."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import mstemba
from mstemba.data_manifests.manifest import Action
from mstemba.errors import CheckpointError, StoreError, UsageError
from mstemba.model.architectures import build, make_config
from mstemba.pipeline.caching.files import write_json
from mstemba.pipeline.checkpoint import checkpoint_config, open_checkpoint, save_weights, score
from mstemba.pipeline.dataset.labels import label_matrix
from mstemba.pipeline.evaluate.metric_groups import ScoredVideo
from mstemba.pipeline.evaluate.stage import evaluate
from mstemba.pipeline.evaluate.summary import summary_rows
from mstemba.pipeline.features.row_times import even_rows
from mstemba.pipeline.options import EvaluateOptions, TrainOptions, TrainRunOptions
from mstemba.pipeline.progress import ignore_events
from mstemba.pipeline.report.figures import (
    MAX_CLASSES,
    MAX_COLUMNS,
    TIMELINE_WIDTH,
    make_timeline,
    training_charts,
)
from mstemba.pipeline.report.stage import Report, report
from mstemba.pipeline.train.stage import train
from mstemba.pipeline.workspace import open_workspace
from mstemba.records import FeatureSpec, Segment
from tests.pipeline.outputs.page.conftest import need_browser, programs
from tests.pipeline.report.test_error_analysis import loop_ap

CLASSES = ("walk", "sit", "eat", "never")
NASTY = (
    "</script><script>alert(1)</script>",
    "\"><img src=x onerror='alert(2)'>",
    "=1+1",
    "two\nlines",
    "{{ 7 * 7 }} {% raw %}",
    "ישיבה \u202e back",
    "caf\u00e9 \U0001f3ac",
)


def make_workspace(
    folder: Path,
    videos: dict[str, tuple[int, list[tuple[int, float, float]]]],
    classes: tuple[str, ...] = CLASSES,
    unit: str = "seconds",
) -> Path:
    """A workspace of .npy features, and `net`: a checkpoint whose scores follow their features.

    videos: rows, each a unit of time long, and actions, by id; those of no row have no features.
    """
    rng = np.random.default_rng(0)
    (folder / "npy").mkdir(parents=True)
    entries = {}
    for id, (rows, actions) in videos.items():
        values = rng.normal(size=(max(rows, 1), len(classes) + 2)).astype(np.float32)
        for class_id, start, end in actions:
            values[int(start) : int(end) + 1, class_id] += 2
        if rows:
            np.save(folder / "npy" / f"{id}.npy", values)
        entries[id] = {
            "path": None, "subset": "testing", "duration": float(max(rows, 1)), "actions": actions,
        }  # fmt: skip
    manifest = {
        "format": "mstemba-manifest", "version": 1, "dataset": "kitchen", "classes": classes,
        "time_unit": unit, "videos": entries,
    }  # fmt: skip
    write_json(folder / "manifest.json", manifest)
    (folder / "mstemba.toml").write_text('version = 1\nmanifest = "manifest.json"\n')
    make_checkpoint(folder / "net", classes)
    return folder


def make_checkpoint(folder: Path, classes: tuple[str, ...]) -> None:
    config = make_config("linear", len(classes) + 2, len(classes))
    network = build(config)
    with torch.no_grad():
        network.head.weight.copy_(2 * torch.eye(len(classes), len(classes) + 2))  # type: ignore[union-attr,operator]
    folder.mkdir(parents=True)
    save_weights(folder / "model.safetensors", network)
    spec = FeatureSpec.unknown(len(classes) + 2)
    recipe = {"lr": 1e-3, "recipe": "none"}
    content = checkpoint_config(config.to_dict(), classes, spec, None, recipe, "")
    write_json(folder / "config.json", content)


VIDEOS = {
    "a": (30, [(0, 2.5, 9.5), (1, 8.5, 20.5), (0, 25.5, 29.0)]),
    "b": (50, [(0, 5.5, 30.5), (2, 12.5, 14.5), (1, 40.0, 90.0)]),
    "c": (12, []),
    "d": (41, [(2, 1.5, 7.0)]),
    "gone": (0, [(0, 0.1, 0.9)]),
}


@pytest.fixture(scope="module")
def kitchen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace to report on; only read."""
    return make_workspace(tmp_path_factory.mktemp("report") / "kitchen", VIDEOS)


def options(folder: Path, **more: Any) -> EvaluateOptions:
    """To measure the checkpoint `net` of a workspace."""
    paths = {"checkpoint": str(folder / "net"), "features": str(folder / "npy")}
    return EvaluateOptions(**{**paths, "device": "cpu", **more})


def run(folder: Path, output: Path | None = None, threshold: float = 0.5, **more: Any) -> Report:
    on_event = more.pop("on_event", ignore_events)
    return report(
        options(folder, **more),
        workspace=open_workspace(folder),
        output=output or folder / "out" / "report.html",
        threshold=threshold,
        on_event=on_event,
    )


class Page(HTMLParser):
    """What a browser would make of a page, and that its tags are closed in order."""

    EMPTY = frozenset({"meta", "link"})

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.names: list[str] = []
        self.scripts: list[str] = []
        self.rows: list[list[str]] = []
        """Of all tables, the text of the cells."""
        self.text = ""
        self._open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.EMPTY:
            self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.rows[-1].append("")
        if tag in ("bdi", "script"):
            (self.names if tag == "bdi" else self.scripts).append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if {"th", "td"} & set(self._open):
            self.rows[-1][-1] += data
        if self._open and self._open[-1] == "bdi":
            self.names[-1] += data
        if self._open and self._open[-1] == "script":
            self.scripts[-1] += data

    @property
    def data(self) -> Any:
        return json.loads(self.scripts[0])


# The figures.


def scored_video(actions: list[Action], duration: float, scores: np.ndarray) -> ScoredVideo:
    grid = even_rows(duration, len(scores))
    labels = label_matrix(actions, grid, scores.shape[1])
    return ScoredVideo("v", actions, duration, grid, labels, scores)


def test_a_timeline_is_where_things_are() -> None:
    scores = np.array([[0, 0.02], [0.5, 0.9], [0.5, 1.0], [1.0, 0.0]], np.float32)
    actions = [Action(1, -5.0, 20.0), Action(0, 90.0, 300.0)]
    video = scored_video(actions, 100.0, scores)
    found = make_timeline(video, [Segment(25.0, 75.0, 1, "sit", 0.9)], "seconds")
    first, second = found.bands
    assert (first.labelled, first.detected) == ("M900 0H1000", "")
    assert (second.labelled, second.detected) == ("M0 0H200", "M250 0H750")
    # The rows hold at their start, and are shown around it.
    assert first.shades == [(4, "M125 0H625"), (8, "M625 0H1000")]
    assert second.shades == [(7, "M125 0H375"), (8, "M375 0H625")]
    centred = make_timeline(replace(video, anchor=0.5), [], "seconds").bands
    assert centred[0].shades == [(4, "M250 0H750"), (8, "M750 0H1000")]
    assert found.ticks == [(0.0, "0"), (20.0, "20"), (40.0, "40"), (60.0, "60"), (80.0, "80")]


def test_a_timeline_keeps_short_peaks_and_says_what_it_leaves_out() -> None:
    rows, classes = 5000, 20
    scores = np.zeros((rows, classes), np.float32)
    scores[2501, 3] = 1.0
    actions = [Action(c, 0.0, 10.0 + c) for c in range(classes)]
    video = scored_video(actions, 5000.0, scores)
    found = make_timeline(video, [Segment(1.0, 4000.0, 3, "", 1.0)], "seconds")
    assert [band.class_id for band in found.bands] == [3, *range(9, 20)]
    assert (len(found.bands), found.hidden) == (MAX_CLASSES, classes - MAX_CLASSES)
    ((level, path),) = found.bands[0].shades
    begin, end = (float(x) for x in path[1:].replace(" 0H", " ").split())
    assert level == 8
    assert begin <= TIMELINE_WIDTH * 2501 / rows < end
    assert end - begin <= TIMELINE_WIDTH / MAX_COLUMNS * 1.1
    assert found.ticks[:3] == [(0.0, "0:00"), (18.0, "15:00"), (36.0, "30:00")]


def test_charts_show_a_single_point_and_a_loss_that_stays() -> None:
    training = {"loss": [(1.0, 2.0), (9.0, 2.0)], "val_map": [(9.0, 50.0)], "train_map": []}
    (_, loss), (_, maps) = training_charts(training)
    assert loss.y.position(2.0) == (loss.y.begin + loss.y.end) / 2
    assert len(loss.y.ticks) >= 2
    assert maps.lines == [("validation videos", f"M{maps.x.end} {maps.y.position(50):g}m-4 0h8")]
    assert training_charts({"loss": [], "val_map": [], "train_map": []}) == []


# The page.


def test_the_numbers_are_those_of_evaluate(kitchen: Path, tmp_path: Path) -> None:
    result = run(kitchen, tmp_path / "new" / "page.html")
    page = Page(result.page)
    same = evaluate(options(kitchen), workspace=open_workspace(kitchen))
    assert result.evaluation == same
    assert page.data == json.loads(json.dumps(result.data))
    assert page.data["evaluation"] == json.loads(json.dumps(same.as_dict()))
    for row in summary_rows(same):
        assert list(row) in page.rows
    shown = {row[0]: row[1:] for row in page.rows if row[0] in CLASSES and len(row) == 12}
    for name, figures in same.classes.items():
        ap, *others = ["-" if value is None else f"{value:.2f}" for value in figures.values()]
        counts = [same.positives[name], result.data["actions"][name]]
        assert shown[name][:3] == [ap, *map(str, counts)]
        assert sorted(shown[name][3:]) == sorted(others)
    assert list(shown) == list(CLASSES)
    assert result.data["actions"] == {"walk": 3, "sit": 2, "eat": 2, "never": 0}
    assert page.data["evaluation"]["per_class"]["never"] is None
    curves = page.data["precision_recall"]
    assert [c["class"] for c in [*curves["best"], *curves["worst"][::-1]]] == sorted(
        CLASSES[:3], key=lambda name: -(same.per_class[name] or 0)
    )
    for curve in [*curves["best"], *curves["worst"]]:
        area = np.sum(np.diff(curve["recall"], prepend=0) * curve["precision"])
        assert 100 * area == pytest.approx(same.per_class[curve["class"]])


def test_videos_are_ranked_as_a_loop_ranks_them(kitchen: Path, tmp_path: Path) -> None:
    data = run(kitchen, tmp_path / "page.html").data
    found = open_checkpoint(kitchen / "net")
    model = found.load("cpu")
    expected = {}
    for id, (rows, actions) in VIDEOS.items():
        if rows and actions:
            scores = score(model, np.load(kitchen / "npy" / f"{id}.npy"))
            labels = np.zeros(scores.shape, bool)
            for class_id, start, end in actions:
                labels[[start < row < end for row in range(rows)], class_id] = True
            expected[id] = 100 * loop_ap(scores.ravel().tolist(), labels.ravel().tolist())
    ranking = data["videos"]["ranking"]
    assert {row["id"]: row["ap"] for row in ranking} == pytest.approx(expected)
    order = sorted(expected, key=lambda id: -expected[id])
    assert [row["id"] for row in ranking] == order
    assert (data["videos"]["best"], data["videos"]["worst"]) == (order[:2], order[2:])
    assert data["videos"]["without_positives"] == ["c"]
    assert data["evaluation"]["missing"] == ["gone"]
    assert any(
        "1 of 5 videos skipped because they have no features" in line for line in data["warnings"]
    )


def test_equal_inputs_give_equal_bytes(kitchen: Path, tmp_path: Path) -> None:
    first, second = (run(kitchen, tmp_path / f"{n}.html").page.read_bytes() for n in (1, 2))
    assert first == second


def check_page(page: Page) -> None:
    """One file that asks for nothing, with every anchor in place."""
    ids = [values["id"] for _, values in page.tags if "id" in values]
    assert len(set(ids)) == len(ids)
    for tag, values in page.tags:
        assert not any(name.startswith("on") for name in values), values
        assert tag not in {"img", "iframe", "object", "embed", "form", "base"}
        for name in ("src", "href", "xlink:href"):
            target = values.get(name) or "#"
            assert target == "data:," or target.removeprefix("#") in {"", *ids}, target
        if tag == "th":
            assert values["scope"] in ("row", "col")
    assert len(page.scripts) == 2
    policy = next(v["content"] or "" for _, v in page.tags if v.get("http-equiv"))
    assert "default-src 'none'" in policy
    assert "script-src 'sha256-" in policy


def test_names_are_shown_as_they_are_and_run_nowhere(tmp_path: Path) -> None:
    videos = {name.replace("/", "|"): (20, [(n, 2.5, 9.5)]) for n, name in enumerate(NASTY)}
    with contextlib.suppress(OSError):  # of a file system that takes only names that are UTF-8
        (tmp_path / "bytes \udcff").touch()
        videos["bytes \udcff"] = (20, [(0, 3.5, 8.0)])
    folder = make_workspace(tmp_path / "w", videos, classes=NASTY)
    result = run(folder)
    page = Page(result.page)
    check_page(page)
    assert set(NASTY) <= set(page.names)
    assert {id for id in videos if id.isprintable() or "\n" in id} <= set(page.names)
    assert "bytes \\udcff" in page.names
    assert page.data["videos"]["ranking"][0]["id"] in videos
    assert page.data["evaluation"]["per_class"].keys() == set(NASTY)
    assert "alert(1)" not in page.scripts[1]


@pytest.mark.parametrize("count", [1, 3])
def test_one_class_and_few_videos(count: int, tmp_path: Path) -> None:
    videos = {f"v{n}": (20, [(0, 2.5, 9.5)]) for n in range(count)}
    result = run(make_workspace(tmp_path / "w", videos, classes=("walk",)))
    page = Page(result.page)
    check_page(page)
    assert len(result.data["videos"]["best"]) == (count + 1) // 2
    assert len(result.data["precision_recall"]["best"]) == 1
    assert result.data["precision_recall"]["worst"] == []
    assert result.data["mistaken"] == []
    assert "No class gets more probability" in page.text


def test_many_classes_fit_into_a_small_page(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    classes = tuple(f"class {n}" for n in range(157))
    videos = {}
    for number in range(24):
        spans = zip(rng.integers(0, 150, 30).tolist(), rng.uniform(0, 90, 30).tolist(), strict=True)
        videos[f"v{number}"] = (120, [(c, start, start + 20) for c, start in spans])
    result = run(make_workspace(tmp_path / "w", videos, classes=classes), threshold=0.2)
    page = Page(result.page)
    check_page(page)
    assert result.page.stat().st_size < 3_000_000
    assert set(classes) <= set(page.names)
    assert len([1 for tag, values in page.tags if values.get("class") == "video"]) == 20
    assert {len(c) for c in result.data["precision_recall"].values()} == {5}


def test_frames_are_the_unit_where_the_manifest_has_them(tmp_path: Path) -> None:
    page = Page(run(make_workspace(tmp_path / "w", VIDEOS, unit="frames")).page)
    assert "30 frames" in page.text
    assert "seconds" not in page.text.split("Provenance")[0]


# The run's folder: training curves, and where the page goes.


def a_run(folder: Path) -> Path:
    """A run as `train` leaves it, of the checkpoint `net`."""
    made = folder / "runs" / "r"
    shutil.copytree(folder / "net", made / "best")
    write_json(
        made / "done.json", {"checkpoint": "best", "score": 50.0, "steps": 1000, "seconds": 9}
    )
    rows = [{"step": n, "loss": 1000 / n} for n in range(1, 1001)]
    rows += [{"step": 500, "val_map": 40.0}, {"step": 1000, "val_map": 50.0, "loss": float("nan")}]
    (made / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "runs" / "current").write_text("r\n")
    return made


def test_a_run_brings_its_curves_and_gets_the_page(tmp_path: Path) -> None:
    folder = make_workspace(tmp_path / "w", VIDEOS)
    made = a_run(folder)
    result = report(options(folder, checkpoint=None), workspace=open_workspace(folder))
    assert result.page == made / "report-testing.html"
    page = Page(result.page)
    check_page(page)
    training = page.data["training"]
    assert training["val_map"] == [[500.0, 40.0], [1000.0, 50.0]]
    assert training["train_map"] == []
    assert len(training["loss"]) == 200
    assert training["loss"][0] == [5.0, pytest.approx(np.mean([1000 / n for n in range(1, 6)]))]
    assert "validation videos" in page.text
    assert page.data["provenance"]["run"]["steps"] == 1000
    assert page.data["provenance"]["train"] == {"lr": 1e-3, "recipe": "none"}


def test_a_checkpoint_of_no_run_has_no_curves_and_its_page_is_here(
    kitchen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = report(options(kitchen, device="auto"), workspace=open_workspace(kitchen))
    assert result.page == Path("report-testing.html")
    assert result.data["training"] is None
    assert "no record of a training" in Page(result.page).text


@pytest.mark.parametrize(
    "line",
    [
        '{"step": 1, "loss"', "[]", "3", '{"loss": 1}', '{"step": "1", "loss": 2}',
        '{"step": NaN, "loss": 2}', '{"step": 1, "loss": [2]}', "[" * 100_000, "\0",
        '{"step": 1, "loss": 1' + "0" * 5000 + "}",
    ],
)  # fmt: skip
def test_damaged_lines_of_the_record_of_the_training_are_ignored_with_a_warning(
    tmp_path: Path, line: str
) -> None:
    folder = make_workspace(tmp_path / "w", VIDEOS)
    metrics = a_run(folder) / "metrics.jsonl"
    metrics.write_text(f'{{"step": 1, "loss": 4}}\n{line}\n{{"step": 2, "loss": 3}}\n')
    result = report(options(folder, checkpoint=None), workspace=open_workspace(folder))
    assert result.data["training"]["loss"] == [(1.0, 4.0), (2.0, 3.0)]
    (warning,) = (text for text in result.data["warnings"] if "metrics.jsonl" in text)
    assert "1 damaged line ignored" in warning


@pytest.mark.parametrize("extreme", ["1e308", "-1e308", "1e-320"])
def test_numbers_for_which_axes_have_no_room_are_not_drawn(tmp_path: Path, extreme: str) -> None:
    folder = make_workspace(tmp_path / "w", VIDEOS)
    metrics = a_run(folder) / "metrics.jsonl"
    rows = [f'{{"step": {n}, "loss": {loss}}}' for n, loss in ((1, extreme), (2, 4), (3, 3))]
    metrics.write_text("\n".join(rows))
    result = report(options(folder, checkpoint=None), workspace=open_workspace(folder))
    assert result.data["training"]["loss"] == [(2.0, 4.0), (3.0, 3.0)]


# What is no training of ours.


def test_predictions_give_the_page_of_the_checkpoint_that_made_them(
    kitchen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = open_checkpoint(kitchen / "net").load("cpu")
    features = {file.stem: np.load(file) for file in (kitchen / "npy").glob("*.npy")}
    np.savez(tmp_path / "dense.npz", **{id: score(model, rows) for id, rows in features.items()})
    monkeypatch.chdir(tmp_path)
    found = report(EvaluateOptions(predictions="dense.npz"), workspace=kitchen)
    assert found.page == Path("report-testing.html")
    page, other = Page(found.page), run(kitchen, tmp_path / "other.html")
    check_page(page)
    for part in ("actions", "precision_recall", "mistaken", "videos"):
        assert found.data[part] == other.data[part]
    assert found.evaluation.metrics == other.evaluation.metrics
    assert page.data["training"] is None
    assert page.data["provenance"]["predictions"]["file"] == "dense.npz"
    assert "checkpoint" not in page.data["provenance"]
    assert "Predictions in dense.npz" in page.text
    assert "1 without predictions" in page.text
    assert "no record of a training (metrics.jsonl) for these predictions" in page.text


def test_released_weights_give_a_page(
    tmp_path: Path, kitchen: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    config = make_config("mstemba", len(CLASSES) + 2, len(CLASSES), widths=(8, 8, 8), state=2)
    torch.save(build(config).state_dict(), tmp_path / "authors.pth")
    manifest = json.loads((kitchen / "manifest.json").read_text()) | {"dataset": "charades"}
    write_json(tmp_path / "manifest.json", manifest)
    monkeypatch.chdir(a_run(make_workspace(tmp_path / "w", VIDEOS)))
    shutil.move(tmp_path / "authors.pth", "best.pth")  # it is not of the run it lies in
    measured = options(
        kitchen, checkpoint="best.pth", released=True, manifest=str(tmp_path / "manifest.json")
    )
    found = report(measured)
    assert found.page == Path("report-testing.html")
    assert found.evaluation == evaluate(measured)
    page = Page(found.page)
    check_page(page)
    assert page.data["training"] is None
    assert page.data["provenance"]["model"]["padding"] == "released"
    assert (page.data["provenance"]["run"], page.data["provenance"]["train"]) == ({}, {})


def test_segments_alone_are_no_report(kitchen: Path, tmp_path: Path) -> None:
    found = [{"label": "walk", "segment": [2.5, 9.5], "score": 0.5}]
    (tmp_path / "found.json").write_text(json.dumps({"results": {"a": found}}))
    with pytest.raises(
        UsageError, match=r"found\.json: predictions of segments, but a report requires"
    ):
        report(EvaluateOptions(predictions=str(tmp_path / "found.json")), workspace=kitchen)


def test_the_package_offers_it() -> None:
    assert mstemba.report is report


# What it refuses.


def test_an_output_that_cannot_be_is_told_before_the_work(
    kitchen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(event: object) -> None:
        pytest.fail("the work has begun")

    with pytest.raises(UsageError, match="a folder, expected the name of a file"):
        run(kitchen, tmp_path, on_event=stop)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"file: this is a file, expected a folder for page\.html"):
        run(kitchen, tmp_path / "file" / "page.html", on_event=stop)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    with pytest.raises(
        UsageError,
        match=r"may not be written to, expected a folder for page\.html; "
        r"name another one with --output",
    ):
        run(kitchen, tmp_path / "new" / "page.html", on_event=stop)


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        (
            {"subset": "nonsense"},
            UsageError,
            "no video is in the subset 'nonsense'; videos by subset: ",
        ),
        ({"checkpoint": "nowhere"}, CheckpointError, "nowhere: no such checkpoint"),
        ({"checkpoint": None}, UsageError, "no training has finished"),
        ({"features": "nowhere"}, StoreError, "nowhere"),
        ({"features": None}, UsageError, "pass them with --features"),
        ({"threshold": 0.0}, UsageError, "threshold is 0.0"),
    ],
)
def test_bad_requests_leave_no_page(
    kitchen: Path, tmp_path: Path, more: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        run(kitchen, tmp_path / "page.html", **more)
    assert list(tmp_path.iterdir()) == []


# In a browser.


@pytest.fixture
def browser() -> Iterator[Any]:
    """A headless Chromium that keeps what the page asks for and complains of."""
    need_browser()
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    found = programs()
    assert found
    options = webdriver.ChromeOptions()
    options.binary_location = found[0]
    for argument in ("--headless=new", "--no-sandbox", "--hide-scrollbars"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(executable_path=found[1]))
    yield driver
    driver.quit()


NAMES = (
    "pour water", "stir", "cut bread", "open cupboard", "close cupboard", "drink from cup",
    "wash hands", "read book", "sit down", "stand up", "use phone", "walk", "make tea",
)  # fmt: skip


def trained_kitchen(folder: Path) -> Path:
    """A workspace as people have them, and a run: 20 test videos, and a class that is absent."""
    rng = np.random.default_rng(1)
    make_workspace(folder, {}, classes=NAMES)
    directions = rng.normal(size=(len(NAMES), 24)) * np.linspace(1.0, 0.2, len(NAMES))[:, None]
    entries = {}
    for number in range(50):
        rows = int(rng.integers(90, 700))
        labels, actions = np.zeros((rows, len(NAMES))), []
        for class_id in np.flatnonzero(rng.random(len(NAMES) - 1) < 0.55).tolist():
            for _ in range(rng.integers(1, 5)):
                length = float(np.clip(rng.lognormal(2.6, 0.9), 3, rows / 2))
                start = float(rng.uniform(0, rows - length))
                actions.append((class_id, round(start, 2), round(start + length, 2)))
                labels[int(start) : int(start + length), class_id] = 1
        # The noise lasts for some seconds, as what disturbs a camera does.
        noise = rng.normal(size=(rows + 8, 24)) * rng.uniform(1, 4)
        noise = np.stack([np.convolve(n, np.full(9, 1 / 9), "valid") for n in noise.T], axis=1)
        id = f"kitchen_{number:02d}"
        np.save(folder / "npy" / f"{id}.npy", (labels @ directions + noise).astype(np.float32))
        entries[id] = {
            "path": None, "subset": "training" if number < 30 else "testing",
            "duration": float(rows), "actions": actions,
        }  # fmt: skip
    manifest = json.loads((folder / "manifest.json").read_text())
    write_json(folder / "manifest.json", {**manifest, "videos": entries})
    options = TrainOptions(arch="linear", min_steps=300, epochs=1, lr=0.02)
    here = TrainRunOptions(device="cpu", trackers="none")
    train(options, here, workspace=open_workspace(folder), features=folder / "npy")
    return folder


def emulate(browser: Any, width: int) -> None:
    """A window that wide."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def take_picture(browser: Any, path: Path) -> None:
    """The head of the page in light, and its timelines in dark, side by side."""
    parts = []
    for scheme, anchor in (("light", "header"), ("dark", "#best")):
        media = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
        top = browser.execute_script(
            "return document.querySelector(arguments[0]).getBoundingClientRect().top + scrollY",
            anchor,
        )
        clip = {"x": 0, "y": max(0, top - 16), "width": 1200, "height": 2050, "scale": 0.7}
        shot = browser.execute_cdp_cmd(
            "Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip}
        )
        parts.append(Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("RGB"))
    whole = Image.new("RGB", (sum(part.width for part in parts), parts[0].height))
    for number, part in enumerate(parts):
        whole.paste(part, (number * parts[0].width, 0))
    whole.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(
        path, optimize=True
    )
    assert path.stat().st_size < 300_000


@pytest.mark.slow
def test_a_browser_opens_sorts_and_asks_for_nothing(
    browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = trained_kitchen(tmp_path / "w")
    monkeypatch.chdir(folder)  # no path of this machine belongs into the picture
    page = run(Path(), checkpoint=None, threshold=0.4).page.resolve()
    browser.get(page.as_uri())

    def column(number: int) -> list[str]:
        rows = "[...document.querySelectorAll('#classes tbody tr')]"
        script = f"return {rows}.map(row => row.cells[arguments[0]].innerText)"
        return [str(text).strip() for text in browser.execute_script(script, number)]

    def click(heading: int) -> None:
        browser.execute_script(
            "document.querySelectorAll('#classes th button')[arguments[0]].click()", heading
        )

    assert column(0) == list(NAMES)
    click(1)
    *falling, unknown = column(1)
    assert unknown == "-"
    assert falling == sorted(falling, key=float, reverse=True)
    click(1)
    assert column(1) == [*falling[::-1], "-"]
    click(0)
    assert column(0) == sorted(NAMES)
    assert browser.get_log("browser") == []
    asked = [
        json.loads(entry["message"])["message"]["params"]["request"]["url"]
        for entry in browser.get_log("performance")
        if json.loads(entry["message"])["message"]["method"] == "Network.requestWillBeSent"
    ]
    assert {url for url in asked if not url.startswith("data:")} == {page.as_uri()}
    assert len(browser.find_elements("css selector", "figure.video")) == 20
    assert page.stat().st_size < 1_000_000
    for width in (400, 1200):
        emulate(browser, width)
        wide = browser.execute_script("return document.documentElement.scrollWidth")
        assert wide <= width
    if os.environ.get("MSTEMBA_SCREENSHOTS"):
        take_picture(browser, Path(__file__).parents[3] / "docs" / "images" / "report.png")
