"""Labels in words: the text tower, the scores, and what `detect` makes of both.

No real CLIP weights are needed: CLIP's own code runs with RANDOM weights, and where meaning counts
a backbone stands in whose pictures and words are colours.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from mstemba.errors import MstembaWarning, UsageError
from mstemba.extractors import clip_text, registry, torchvision_ops
from mstemba.extractors.backbone_spec import BackboneSpec
from mstemba.extractors.clip_text import TextEncoder
from mstemba.pipeline.caching.keys import Fingerprints
from mstemba.pipeline.detect.export import export
from mstemba.pipeline.detect.scores_file import read_scores
from mstemba.pipeline.detect.stage import DetectResult
from mstemba.pipeline.detect.zero_shot import (
    ABOVE_USUAL,
    ZeroShotDetector,
    probabilities,
    read_phrases,
    smooth,
    zero_shot_detector,
)
from mstemba.pipeline.extract.stage import extract
from mstemba.pipeline.options import ExportOptions, FeatureOptions, RunOptions, ZeroShotOptions
from mstemba.pipeline.progress import Event, ignore_events
from mstemba.pipeline.workspace import create_workspace
from mstemba.records import Features, TimeGrid
from tests.extractors.test_extractors import KINDS
from tests.pipeline.detect.colours import HOW, film, found_in, run
from tests.videos import encode

pytestmark = pytest.mark.usefixtures("one_thread")

# From a video to segments


def test_a_label_is_found_where_the_pictures_fit_it(loaded: list[str], tmp_path: Path) -> None:
    video = film(tmp_path / "v.mp4", [("red", 1.2), ("nothing", 0.8), ("blue", 2), ("red", 1)])
    events: list[Event] = []
    result = run(
        video, tmp_path / "out", "something red, blue things, green", on_event=events.append
    )
    assert found_in(result) == [
        ("something red", 0.0, 1.2),
        ("blue things", 2.0, 4.0),
        ("something red", 4.0, 5.0),
    ]
    (line,) = [e.message for e in events if e.message.startswith("zero-shot")]
    assert line == "zero-shot: 3 labels in 4 sentences each, against 5 of the background"
    said = json.loads((tmp_path / "out" / "v.json").read_text())["provenance"]
    assert said["zero_shot"]["labels"] == ["something red", "blue things", "green"]
    assert said["zero_shot"]["templates"] == list(HOW.templates)
    assert said["features"]["backbone"] == "colours"


@pytest.mark.parametrize(("window", "anchor"), [(1, 0.25), (2, 0.5), (4, 1.0), (8, 1.0)])
def test_scores_hold_in_the_middle_of_the_pictures_of_a_row(
    loaded: list[str], tmp_path: Path, window: int, anchor: float
) -> None:
    video = film(tmp_path / "v.mp4", [("nothing", 2), ("red", 2), ("nothing", 2)])
    result = run(video, tmp_path / "out", ["red"], replace(HOW, window=window))
    assert result.scores.anchor == anchor
    assert read_scores(tmp_path / "out" / "v.scores.npz").scores.anchor == anchor
    ((label, start, end),) = found_in(result)
    if window <= 4:  # rows of pictures further on than the next row are not corrected for
        assert (label, start, end) == (
            "red",
            pytest.approx(2, abs=0.11),
            pytest.approx(4, abs=0.11),
        )


def test_several_labels_may_be_active_at_once(loaded: list[str], tmp_path: Path) -> None:
    video = film(tmp_path / "v.mp4", [("nothing", 2), ("red", 2)])
    segments = found_in(run(video, tmp_path / "out", ["red", "very red", "blue"]))
    assert segments == [("red", 2.0, 4.0), ("very red", 2.0, 4.0)]


def test_an_action_that_fills_the_video_is_found_too(loaded: list[str], tmp_path: Path) -> None:
    video = film(tmp_path / "v.mp4", [("red", 1.4)])
    assert found_in(run(video, tmp_path / "a", ["red"])) == [("red", 0.0, 1.4)]
    only_relative = replace(HOW, contrast=1.0)
    assert found_in(run(video, tmp_path / "b", ["red"], only_relative)) == []


def test_another_threshold_needs_no_second_pass_and_other_labels_no_second_extraction(
    loaded: list[str], tmp_path: Path
) -> None:
    video = film(tmp_path / "v.mp4", [("red", 1), ("nothing", 2)])
    out = tmp_path / "out"
    first = run(video, out, ["red", "blue"])
    assert (loaded, first.cached) == (["text", "image"], [])
    options = ExportOptions(threshold=0.9, formats=("csv",))
    assert run(video, out, ["red", "blue"], options=options).cached == ["v"]
    assert loaded == ["text", "image"]
    assert run(video, out, "red,  blue").cached == ["v"]  # the same, written otherwise
    assert run(video, out, ["red", "green"]).cached == []
    assert loaded == ["text", "image", "text"]
    exported = export(out / "v.scores.npz", ExportOptions(formats=("csv",)))
    assert [s.label for s in exported.detections["v"].segments] == ["red"]


def test_the_features_that_a_workspace_has_are_used(loaded: list[str], tmp_path: Path) -> None:
    workspace = create_workspace(tmp_path)
    video = film(tmp_path / "v.mp4", [("red", 1), ("nothing", 1)])
    made = extract(
        video, FeatureOptions(backbone="colours", window=2, stride=2),
        RunOptions(device="cpu"),
        workspace=workspace,
    )  # fmt: skip
    loaded.clear()
    result = run(video, tmp_path / "out", ["red"], workspace=workspace)
    assert found_in(result) == [("red", 0.0, 1.0)]
    assert loaded == ["text"]
    assert [p.name for p in workspace.features.glob("*.zarr")] == [made.store.name]


def test_in_a_workspace_what_a_trained_network_found_is_left_alone(
    loaded: list[str], tmp_path: Path
) -> None:
    workspace = create_workspace(tmp_path)
    video = film(tmp_path / "v.mp4", [("red", 1)])
    events: list[Event] = []

    def detect(*labels: str) -> DetectResult:
        events.clear()
        found: DetectResult = run(video, None, labels, workspace=workspace, on_event=events.append)
        return found

    def replaced() -> list[str]:
        return [e.message for e in events if e.message.startswith("replacing")]

    assert detect("red").output == tmp_path / "detections" / "zero-shot" == workspace.zero_shot
    assert replaced() == []
    assert (detect("red").cached, replaced()) == (["v"], [])
    assert detect("blue").cached == []
    (line,) = replaced()
    assert line == (
        f"replacing what another checkpoint, other labels, other features or an earlier version "
        f"found in v ({workspace.zero_shot}); another --output keeps both"
    )
    assert [file.name for file in workspace.detections.iterdir()] == ["zero-shot"]
    exported = export("v", ExportOptions(formats=("csv",)), workspace=workspace)
    assert exported.files == {"v": [workspace.zero_shot / "v.csv"]}
    film(video, [("blue", 1)])  # another content: nobody's choice is replaced
    assert (detect("red").cached, replaced()) == ([], [])


def test_odd_names_are_kept_as_they_are(loaded: list[str], tmp_path: Path) -> None:
    odd = ['red, "quoted" <script>alert(1)</script>', "=green()", "אדום {} {0} %s", "日本\nblue"]
    video = film(tmp_path / "v.mp4", [("red", 1), ("nothing", 1)])
    result = run(video, tmp_path / "out", odd)
    assert result.detections["v"].scores.classes == tuple(odd)
    assert read_scores(tmp_path / "out" / "v.scores.npz").scores.classes == tuple(odd)
    assert json.loads((tmp_path / "out" / "v.json").read_text())["classes"] == odd
    assert found_in(result) == [(odd[0], 0.0, 1.0)]


# What decides the scores

TEXTS = {"red": "a red thing", "blue": "a blue thing", "mixed": "red and green"}


def detector(
    labels: Sequence[str], how: ZeroShotOptions = HOW, stores: Path = Path("none")
) -> ZeroShotDetector:
    return zero_shot_detector(labels, how, None, stores, RunOptions(device="cpu"), Fingerprints())


def features(rows: int = 9, dtype: Any = np.float32, step: float = 0.5) -> Features:
    values = np.random.default_rng(0).random((rows, 3)).astype(dtype)
    grid = TimeGrid.even(0.0, step, rows)
    return Features(values, grid, rows * step, 25.0, "key")


def scored(labels: Sequence[str], of: Features, how: ZeroShotOptions = HOW) -> NDArray[np.float32]:
    return detector(labels, how).load("cpu", ignore_events)(of)


LABELS = list(TEXTS.values())
CHANGES: dict[str, Any] = {
    "smoothing": 0.7,
    "contrast": 0.25,
    "templates": ("a drawing of {}.",),
    "background": ("grey",),
    "window": 4,
    "stride": 4,
}


@pytest.mark.parametrize("name", CHANGES)
def test_whatever_changes_a_number_changes_the_key(loaded: list[str], name: str) -> None:
    base, other = detector(LABELS), detector(LABELS, replace(HOW, **{name: CHANGES[name]}))
    assert set(CHANGES) | {"backbone", "model"} == {f.name for f in fields(ZeroShotOptions)}
    assert (base.key_parts(), base.spec) != (other.key_parts(), other.spec)
    assert detector(LABELS[::-1]).key_parts() != base.key_parts()
    assert detector(tuple(LABELS)).key_parts() == base.key_parts()


@pytest.mark.parametrize("contrast", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_label_is_scored_whatever_the_others_and_their_order(
    loaded: list[str], contrast: float, dtype: Any
) -> None:
    how = replace(HOW, smoothing=0.8, contrast=contrast)
    given = features(dtype=dtype)
    frame_step = scored(LABELS, given, how)
    assert frame_step.dtype == np.float32
    assert frame_step.shape == (9, 3)
    assert np.ptp(frame_step, axis=0).min() > 1e-3
    for i, label in enumerate(LABELS):
        assert scored([label], given, how)[:, 0] == pytest.approx(frame_step[:, i], abs=1e-6)
    assert scored(LABELS[::-1], given, how) == pytest.approx(frame_step[:, ::-1], abs=1e-6)


@pytest.mark.parametrize("rows", [1, 2])
def test_short_videos_and_black_frames_are_scored_too(loaded: list[str], rows: int) -> None:
    given = features(rows)
    given.values[0] = 0  # no direction at all: as near to the label as to the background
    found = scored(["red"], given, replace(HOW, contrast=0.0, smoothing=0.0))
    assert np.isfinite(found).all()
    assert found[0, 0] == pytest.approx(0.5)
    assert np.isfinite(scored(LABELS, given, ZeroShotOptions(backbone="colours"))).all()


def test_rows_are_compared_by_their_direction_only(loaded: list[str]) -> None:
    given = features()
    scaled = replace(given, values=given.values * np.geomspace(0.01, 1000, 9)[:, None])
    assert scored(LABELS, scaled) == pytest.approx(scored(LABELS, given), abs=1e-5)


def test_the_text_tower_is_kept_no_longer_than_it_is_needed(
    loaded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[weakref.ref[TextEncoder]] = []
    load_text = registry.BACKBONES["colours"].load_text
    assert load_text is not None

    def watched(*args: str) -> TextEncoder:
        text = load_text(*args)
        made.append(weakref.ref(text))
        return text

    changed = replace(registry.BACKBONES["colours"], load_text=watched)
    monkeypatch.setitem(registry.BACKBONES, "colours", changed)
    score = detector(LABELS).load("cpu", ignore_events)
    assert [text() for text in made] == [None]
    assert score(features()).shape == (9, 3)


# Probabilities


def draw_cosines(seed: int, rows: int, columns: int) -> NDArray[np.float64]:
    return np.random.default_rng(seed).uniform(-1, 1, (rows, columns))


@given(st.integers(0, 99), st.integers(1, 6), st.integers(1, 4), st.floats(0.1, 200))
def test_without_contrast_a_probability_is_clips_softmax_against_the_background(
    seed: int, rows: int, count: int, scale: float
) -> None:
    labels, background = draw_cosines(seed, rows, 3), draw_cosines(seed + 1, rows, count)
    found = probabilities(labels, background, scale, 0.0)
    for c in range(3):
        # Of equal background sentences, however many, the mean is one of them.
        with np.errstate(over="ignore", under="ignore"):
            rival = np.mean(np.exp(scale * (background - labels[:, [c]])), axis=1)
            assert found[:, c] == pytest.approx(1 / (1 + rival), abs=1e-6)
    doubled = np.concatenate([background, background], axis=1)
    assert probabilities(labels, doubled, scale, 0.0) == pytest.approx(found, abs=1e-6)


@given(st.integers(0, 99), st.integers(1, 7), st.floats(0, 1), st.floats(-0.2, 0.2))
def test_full_contrast_forgets_a_labels_own_level_and_asks_for_what_is_above_it(
    seed: int, rows: int, contrast: float, offset: float
) -> None:
    labels, background = draw_cosines(seed, rows, 2), draw_cosines(seed + 1, rows, 3)
    found = probabilities(labels, background, 100.0, contrast)
    assert np.isfinite(found).all()
    assert (found >= 0).all()
    assert (found <= 1).all()
    shifted = probabilities(labels + offset, background, 100.0, contrast)
    if offset > 0:
        assert (shifted >= found - 1e-6).all()
    full = probabilities(labels, background, 100.0, 1.0)
    assert probabilities(labels + offset, background, 100.0, 1.0) == pytest.approx(full, abs=1e-4)
    if rows % 2:  # else the median lies between two rows
        usual = 1 / (1 + np.exp(ABOVE_USUAL))
        assert np.median(full, axis=0) == pytest.approx(usual, abs=1e-4)


def simulated_f1(contrast: float, share: float) -> float:
    """F1 of the rows at threshold 0.5, on INVENTED cosines of 20 videos of two minutes, 10 labels.

    A label's level against the background varies by 0.02; an action lifts it by 0.03, goes on for
    this share of the video, and is in 7 videos of 10; a row's noise is 0.01.
    """
    random, grid = np.random.default_rng(1), TimeGrid.even(0.0, 0.64, 200)
    hits, wrong = 0, 0
    for _ in range(20):
        truth = np.zeros((200, 10), bool)
        for label in np.flatnonzero(random.random(10) < 0.7):
            first = random.integers(0, 201 - round(200 * share))
            truth[first : first + round(200 * share), label] = True
        levels = random.normal(-0.01, 0.02, 10) + random.normal(0, 0.01, (200, 10))
        background = random.normal(0, 0.01, 5) + random.normal(0, 0.007, (200, 5))
        cosines = smooth(np.concatenate([levels + 0.03 * truth, background], axis=1), grid, 1.0)
        found = probabilities(cosines[:, :10], cosines[:, 10:], 100.0, contrast) >= 0.5
        hits, wrong = hits + (found & truth).sum(), wrong + (found != truth).sum()
    return float(2 * hits / (2 * hits + wrong))


def test_the_default_contrast_fails_neither_rare_actions_nor_those_that_fill_the_video() -> None:
    by_contrast = {
        contrast: [simulated_f1(contrast, share) for share in (0.1, 0.8)]
        for contrast in (0.0, ZeroShotOptions.contrast, 1.0)
    }
    assert by_contrast[0.0][0] < 0.4  # levels of labels drown rare actions
    assert by_contrast[1.0][1] < 0.1  # what is usual is the action
    assert min(by_contrast[ZeroShotOptions.contrast]) > 0.5


# Smoothing


@st.composite
def grids(draw: st.DrawFn) -> TimeGrid:
    steps = draw(st.lists(st.floats(0.05, 3), min_size=0, max_size=12))
    return TimeGrid(np.cumsum([0.0, *steps]), draw(st.floats(0.05, 3)))


@given(grids(), st.floats(0, 5), st.integers(0, 99))
def test_smoothing_weighs_every_row_by_its_distance_in_time(
    grid: TimeGrid, deviation: float, seed: int
) -> None:
    values = draw_cosines(seed, grid.count, 2)
    found = smooth(values, grid, deviation)
    middles = (grid.starts + grid.ends) / 2
    apart = middles[:, None] - middles[None]
    weights = np.eye(grid.count)
    if deviation > 1e-6:
        weights = np.exp(-0.5 * (apart / deviation) ** 2)
    assert found == pytest.approx(weights @ values / weights.sum(1, keepdims=True), abs=1e-2)
    assert smooth(np.full((grid.count, 1), 0.3), grid, deviation) == pytest.approx(0.3)
    assert values.min() - 1e-9 <= found.min() <= found.max() <= values.max() + 1e-9


def test_smoothing_is_the_same_in_both_directions_and_none_by_none() -> None:
    grid = TimeGrid.even(0.0, 0.5, 20)
    values = draw_cosines(3, 20, 2)
    assert smooth(values[::-1], grid, 1.0) == pytest.approx(smooth(values, grid, 1.0)[::-1])
    assert np.array_equal(smooth(values, grid, 0.0), values)
    peak = smooth(np.eye(20)[:, [10]], grid, 1.0)[:, 0]
    assert peak[9] == pytest.approx(peak[11])
    assert peak[8] / peak[10] == pytest.approx(np.exp(-0.5), rel=1e-3)  # one second away
    assert peak[0] == 0  # beyond the reach


# What a user may get wrong


def test_labels_are_a_list_a_text_or_a_file(tmp_path: Path) -> None:
    file = tmp_path / "my, labels.txt"
    file.write_bytes(b"\xef\xbb\xbfopen, then close\r\n\r\n  drink \n\xe6\x97\xa5\xe6\x9c\xac")
    lines = ("open, then close", "drink", "日本")
    assert read_phrases(str(file)) == read_phrases(file) == lines
    assert read_phrases([str(file)]) == (str(file),)  # a list is what it says
    assert read_phrases(" open a door,drink , ") == ("open a door", "drink")
    assert read_phrases(["open, then close", " drink "]) == ("open, then close", "drink")
    file.write_bytes(b"caf\xe9")
    with pytest.warns(MstembaWarning, match=r"read as Windows-1252 .*'café' in my, labels\.txt"):
        assert read_phrases(file) == ("café",)
    file.write_bytes(b"caf\xe9\x00")
    with pytest.raises(UsageError, match=r"labels\.txt: not readable .* one phrase a line"):
        read_phrases(file)
    for missing in (str(tmp_path / "none.txt"), tmp_path / "none"):
        with pytest.raises(UsageError, match=r"none.*: no such file, expected a text file"):
            read_phrases(missing)
    assert read_phrases(["none.txt"]) == ("none.txt",)
    given: Any = ["sit", 5]
    with pytest.raises(UsageError, match="5 is int, expected text"):
        read_phrases(given)


@pytest.mark.parametrize(
    ("labels", "how", "says"),
    [
        ("", {}, "no labels: name at least one"),
        ([" ", ""], {}, "no labels"),
        (["sit", "Sit", "stand"], {}, "named more than once: 'sit', 'Sit'"),
        (["caf\udce9"], {}, "is not valid UTF-8 text"),
        (["sit\0"], {}, "is not valid UTF-8 text"),
        ("sit", {"templates": ("a photo.", "a {}")}, "template 'a photo.' has no {}"),
        ("sit", {"templates": ()}, "no templates"),
        ("sit", {"background": ()}, "no background"),
        ("sit", {"backbone": "efficientnet-lite0"}, "has no text tower.*can: clip"),
        ("sit", {"backbone": "i3d"}, "i3d was trained on images without text"),
        ("sit", {"backbone": "resnet"}, "unknown backbone 'resnet'"),
        ("sit", {"model": "ViT-XXL"}, "unknown CLIP model 'ViT-XXL'"),
    ],
)
def test_labels_that_cannot_be_looked_for_are_refused(
    labels: Any, how: dict[str, Any], says: str, tmp_path: Path
) -> None:
    video = tmp_path / "v.mp4"
    video.write_bytes(b"never read")
    with pytest.raises(UsageError, match=says):
        run(video, tmp_path / "out", labels, ZeroShotOptions(**how))


# CLIP's own text towers, with RANDOM weights

TEXT = {"vocab_size": 49408, "context_length": 20}
TINY = {name: KINDS[name] for name in ("custom-text", "coca", "resnet")}


@pytest.fixture(params=TINY)
def tiny(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Any, str]]:
    """(Model, open_clip's own network with RANDOM weights, the file that holds them)."""
    torchvision_ops.ensure()
    import open_clip
    from open_clip import factory

    name = f"tiny-{request.param}"
    config = TINY[request.param]
    config = {**config, "embed_dim": 24, "text_cfg": {**config["text_cfg"], **TEXT}}
    (tmp_path / f"{name}.json").write_text(json.dumps(config))
    before = (list(factory._MODEL_CONFIG_PATHS), dict(factory._MODEL_CONFIGS))
    open_clip.add_model_config(tmp_path / f"{name}.json")
    torch.manual_seed(0)
    network = open_clip.create_model(name).eval()
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    yield name, network, str(tmp_path / "weights.pt")
    factory._MODEL_CONFIG_PATHS[:], factory._MODEL_CONFIGS = before


def test_the_text_embedding_is_open_clips_own(tiny: tuple[str, Any, str]) -> None:
    import open_clip

    model, network, file = tiny
    sentences = [f"a photo of number {i}." for i in range(66)]  # more than one batch
    with torch.inference_mode():
        tokens = open_clip.get_tokenizer(model)(sentences)
        expected = network.encode_text(tokens, normalize=False).numpy()
    text = clip_text.load(model, file, "cpu")
    found = text.embed(sentences)
    assert found.shape == (66, 24)
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
    assert text.scale == pytest.approx(network.logit_scale.exp().item())
    assert len(np.unique(found.round(4), axis=0)) > 1
    with pytest.raises(UsageError, match=rf"^'a a a.*but CLIP {model} takes 20") as caught:
        text.embed(["short", "a " * 300])
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("tiny", ["resnet"], indirect=True)
def test_detect_runs_on_both_towers_of_one_weights_file(
    tiny: tuple[str, Any, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random weights: it shows that the way from video and words to files holds, and no more."""
    model, _, file = tiny
    about = BackboneSpec(24, 32, 32, "image", cpu_batch=8, gpu_batch=8)
    described = replace(registry.BACKBONES["clip"], describe=lambda model: about)
    monkeypatch.setitem(registry.BACKBONES, "clip", described)
    how = ZeroShotOptions(model=model, window=4, stride=4, smoothing=0.2)
    result = run(encode(tmp_path / "v.mp4", 12), tmp_path / "out", "sit, stand", how, weights=file)
    dense = result.detections["v"].scores
    assert dense.probabilities.shape == (3, 2)
    assert np.isfinite(dense.probabilities).all()
    assert np.ptp(dense.probabilities) > 0
    said = result.detections["v"].provenance
    assert said["features"]["model"] == model
    assert said["features"]["weights"].startswith("sha256:")


def test_a_tokenizer_that_cannot_be_had_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    torchvision_ops.ensure()
    import open_clip

    def unreachable(model: str) -> None:
        raise OSError("We couldn't connect to 'https://huggingface.co'\nand so on")

    monkeypatch.setattr(open_clip, "get_tokenizer", unreachable)
    with pytest.raises(UsageError, match=r"tokenizer of CLIP ViT-B-16-SigLIP .*couldn't connect"):
        clip_text.load("ViT-B-16-SigLIP", "webli", "cpu")


def test_the_list_of_backbones_tells_which_have_a_text_tower() -> None:
    assert [row["name"] for row in registry.listing() if row["text"]] == ["clip"]
