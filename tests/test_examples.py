"""The scripts in examples/, each run as its docstring says, one on the results of another."""

from __future__ import annotations

import ast
import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import mstemba
from tests.command_line import environment
from tests.videos import encode

EXAMPLES = Path(__file__).parents[1] / "examples"
NAMES = (
    "correct_and_retrain.py",
    "detect_one_video.py",
    "rethreshold_and_export.py",
    "your_own_annotations.py",
    "zero_shot.py",
)

TINY_CLIP = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 224, "layers": 1, "width": 64, "patch_size": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}

slow = pytest.mark.slow
pytestmark = pytest.mark.usefixtures("one_thread")

Run = Callable[..., str]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs an example with these words; gives what it prints. Its process is this one."""
    monkeypatch.delenv("MSTEMBA_WORKSPACE", raising=False)
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])  # the decoder is a process

    def script(name: str, *arguments: str | Path) -> str:
        assert name in NAMES
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return script


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two annotated videos and one more."""
    folder = tmp_path_factory.mktemp("examples")
    (folder / "videos").mkdir()
    rows = ["video,start,end,label,subset,duration"]
    for number in range(2):
        encode(folder / "videos" / f"v{number}.mp4", 64 + 10 * number)
        rows += [f"v{number}.mp4,{start},4.0,{label},training,6.4" for start, label in ACTIONS]
    encode(folder / "new.mp4", 70)
    (folder / "torn.mp4").write_bytes(b"no video")
    (folder / "labels.csv").write_text("\n".join(rows), encoding="utf-8")
    return folder


ACTIONS = ((0.5, "drifts"), (1.5, '<i>"runs"</i>'))


@pytest.fixture
def trained(folder: Path, run: Run) -> Path:
    """A workspace made by the example, once."""
    work = folder / "work"
    if not work.is_dir():
        said = run(
            "your_own_annotations.py", folder / "videos", folder / "labels.csv",
            "--workspace", work, "--steps", "4",
            "--detect", folder / "new.mp4", folder / "torn.mp4",
        )  # fmt: skip
        (folder / "said").write_text(said)
    return work


@slow
def test_your_own_annotations(trained: Path, folder: Path) -> None:
    said = (folder / "said").read_text()
    assert "2 classes; videos {'training': 2}; actions {'training': 4}" in said
    assert "Detection('new', " in said
    assert "torn failed: " in said
    assert list(trained.glob("runs/*/last/model.safetensors"))


@slow
def test_detect_one_video(trained: Path, folder: Path, run: Run) -> None:
    (checkpoint,) = trained.glob("runs/*/last")
    said = run(
        "detect_one_video.py", folder / "new.mp4", "--checkpoint", checkpoint,
        "--threshold", "0.01", "--output", folder / "one",
    )  # fmt: skip
    scores = mstemba.read_scores(folder / "one" / "new.scores.npz").scores
    for label, best in zip(scores.classes, scores.probabilities.max(axis=0), strict=True):
        assert f"{best:8.2f} {label}" in said
    segments = json.loads((folder / "one" / "new.json").read_text())["segments"]
    assert segments
    for segment in segments:
        assert f"{segment['start']:8.2f} {segment['end']:8.2f}" in said


@slow
def test_rethreshold_and_export(trained: Path, run: Run, tmp_path: Path) -> None:
    kept = trained / "detections" / "new.scores.npz"
    said = run("rethreshold_and_export.py", kept)
    assert said.count("threshold 0.") == 9
    assert "wrote" not in said
    run(
        "rethreshold_and_export.py", kept, "--threshold", "0.01",
        "--format", "json, csv", "--output", tmp_path,
    )  # fmt: skip
    segments = json.loads((tmp_path / "new.json").read_text())["segments"]
    expected = mstemba.find_segments(mstemba.read_scores(kept).scores, 0.01, 0.006)
    assert [s["label"] for s in segments] == [s.label for s in expected]
    assert (tmp_path / "new.csv").is_file()


@slow
def test_correct_and_retrain(trained: Path, folder: Path, run: Run, tmp_path: Path) -> None:
    before = set(trained.glob("runs/*"))
    corrected = {
        "classes": ["a new class", "drifts"],
        "time_unit": "seconds",
        "videos": {
            "new": {
                "subset": "training",
                "duration": 7.0,
                "actions": [[0, 1.0, 3.0], [1, 2.0, 5.0]],
            },
            "v0": {"subset": "training", "duration": 6.4, "actions": [[1, 0.0, 6.0]]},
        },
    }
    (tmp_path / "corrected.json").write_text(json.dumps(corrected))
    said = run(
        "correct_and_retrain.py", trained, tmp_path / "corrected.json",
        "--videos", folder / "new.mp4", "--steps", "4", "--yes",
    )  # fmt: skip
    assert "videos {'training': 3}; actions {'training': 5} videos annotated again: 1 (" in said
    manifest = json.loads((trained / "manifest.json").read_text())
    assert set(manifest["classes"]) == {"a new class", *(label for _, label in ACTIONS)}
    drifts = manifest["classes"].index("drifts")
    assert manifest["videos"]["v0"]["actions"] == [[drifts, 0.0, 6.0]]
    (run_folder,) = set(trained.glob("runs/*")) - before
    config = json.loads((run_folder / "last" / "config.json").read_text())
    assert config["classes"] == manifest["classes"]


@slow
def test_zero_shot(folder: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from mstemba.extractors import clip, torchvision_ops

    torchvision_ops.ensure()
    import open_clip

    # Random weights of a tiny model: what it finds means nothing, that it runs does.
    (tmp_path / "example-clip.json").write_text(json.dumps(TINY_CLIP))
    open_clip.add_model_config(tmp_path / "example-clip.json")
    monkeypatch.setattr(clip, "config_folder", lambda: tmp_path)
    torch.save(open_clip.create_model("example-clip").state_dict(), tmp_path / "weights.pt")
    said = run(
        "zero_shot.py", folder / "new.mp4", "--labels", "a square runs, <b>sits</b>",
        "--model", "example-clip", "--weights", tmp_path / "weights.pt",
        "--threshold", "0.3", "--output", tmp_path / "out",
    )  # fmt: skip
    assert "a square runs: 0." in said
    assert "<b>sits</b>: 0." in said
    assert "frames/s" not in said  # progress goes to standard error, in one line
    kept = mstemba.read_scores(tmp_path / "out" / "new.scores.npz")
    assert kept.scores.classes == ("a square runs", "<b>sits</b>")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("correct_and_retrain.py . nope.json", "not a workspace, it has no"),
        ("detect_one_video.py nope.mp4 --checkpoint runs", "nope.mp4: no such file or folder"),
        ("rethreshold_and_export.py nope.scores.npz", "no such file"),
        ("your_own_annotations.py nope nope.csv", "nope: no such file or folder"),
        ("zero_shot.py nope.mp4 --labels walks", "nope.mp4: no such file or folder"),
    ],
)
def test_a_mistake_ends_an_example_in_one_line(
    line: str, message: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=message) as ended:
        run(*line.split())
    assert len(str(ended.value.code).splitlines()) == 1


@slow
def test_an_unreadable_video_ends_an_example_in_one_line(
    trained: Path, folder: Path, run: Run, tmp_path: Path
) -> None:
    checkpoint = next(trained.glob("runs/*/last"))  # another example may have trained one, too
    with pytest.raises(SystemExit, match="torn"):
        run(
            "detect_one_video.py", folder / "torn.mp4", "--checkpoint", checkpoint,
            "--output", tmp_path,
        )  # fmt: skip


def test_every_example_has_a_test() -> None:
    assert {file.name for file in EXAMPLES.glob("*")} - {"__pycache__"} == set(NAMES)
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert {Path(name).stem for name in NAMES} <= tested


@pytest.mark.parametrize("name", NAMES)
def test_an_example_is_short_says_what_it_is_for_and_is_linked(name: str) -> None:
    text = (EXAMPLES / name).read_text(encoding="utf-8")
    assert len(text.splitlines()) < 60
    said = ast.get_docstring(ast.parse(text)) or ""
    assert f"python examples/{name}" in said
    assert f"](examples/{name})" in (EXAMPLES.parent / "README.md").read_text(encoding="utf-8")
