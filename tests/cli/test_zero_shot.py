"""`mstemba detect --labels`: its options reach the detector, and what is wrong is said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mstemba.pipeline.detect import stage
from mstemba.pipeline.detect.stage import DetectResult
from mstemba.pipeline.options import ExportOptions, RunOptions, ZeroShotOptions
from tests.cli.conftest import film
from tests.command_line import Runner, complaint, mstemba

Asked = Callable[..., dict[str, Any]]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, mstemba: Runner, tmp_path: Path) -> Asked:
    """Run `detect`, and return the arguments that the pipeline gets."""
    seen: dict[str, Any] = {}

    def detect(videos: Any, options: Any, run_options: Any, **more: Any) -> DetectResult:
        seen.update(more, options=options, run_options=run_options)
        return DetectResult(Path("out"))

    monkeypatch.setattr(stage, "detect", detect)

    def run(*args: str) -> dict[str, Any]:
        mstemba("detect", "video.mp4", *args, cwd=tmp_path)
        return seen

    return run


def test_every_option_reaches_the_detector(asked: Asked) -> None:
    found = asked(
        *("--labels", "opening a door, drinking", "--threshold", "0.4", "--weights", "laion400m"),
        *("--model", "ViT-B-32", "--stride", "8", "--smoothing", "0.5", "--contrast", "0"),
        *("--templates", "a {}, a drawing of {}", "--background", "nothing"),
        *("--workers", "3", "--decode-timeout", "7.5", "--batch-size", "4", "--device", "cpu"),
        *("--engine", "ray", "--address", "auto"),
    )
    assert found["run_options"] == RunOptions(
        batch_size=4, device="cpu", workers=3, decode_timeout=7.5, engine="ray", address="auto"
    )
    assert found["labels"] == "opening a door, drinking"
    assert found["weights"] == "laion400m"
    assert found["options"] == ExportOptions(threshold=0.4)
    assert found["zero_shot"] == ZeroShotOptions(
        model="ViT-B-32",
        stride=8,
        smoothing=0.5,
        contrast=0.0,
        templates="a {}, a drawing of {}",
        background="nothing",
    )


def test_without_labels_nothing_changes(asked: Asked) -> None:
    found = asked()
    assert (found["labels"], found["weights"]) == (None, None)
    assert found["zero_shot"] is None
    assert found["run_options"] == RunOptions()


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--labels", "sit", "--backbone", "efficientnet-lite0"), "no text tower"),
        (("--labels", "sit", "--checkpoint", "run"), "pass --labels or --checkpoint"),
        # The defaults, too: who names one wants labels to be looked for.
        (
            ("--backbone", "clip", "--contrast", "0.5"),
            "--backbone, --contrast cannot be used without --labels",
        ),
        (("--labels", "sit", "--templates", "my, lines.txt"), "my, lines.txt: no such file"),
    ],
    ids=["image-only", "checkpoint", "no-labels", "file-with-comma"],
)
def test_what_cannot_be_is_one_line_and_exit_code_2(
    args: tuple[str, ...], says: str, tmp_path: Path
) -> None:
    film(tmp_path / "v.mp4")
    result = mstemba("detect", "v.mp4", *args, cwd=tmp_path, expect=2)
    assert says in complaint(result)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["v.mp4"]


@pytest.mark.slow
def test_weights_that_cannot_be_had_are_named_before_anything_is_decoded(tmp_path: Path) -> None:
    film(tmp_path / "v.mp4")
    offline = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hub")}
    result = mstemba("detect", "v.mp4", "--labels", "sit", cwd=tmp_path, expect=2, env=offline)
    assert "weights 'openai' of CLIP ViT-L-14-quickgelu are missing" in complaint(result)
    assert "pass the file with --weights" in result.stderr
    assert not (tmp_path / "detections").exists()
