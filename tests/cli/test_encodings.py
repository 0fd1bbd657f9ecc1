"""Output in an encoding that lacks some letters: they are replaced, and the command succeeds."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mstemba import __main__ as entry
from tests.command_line import command, environment

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="names are text elsewhere")
NAME = "ü ビ 🎬 caf\udce9"  # the end is é in Latin-1


@pytest.fixture
def named(workspace: Path) -> Path:
    """A workspace with the detections of a video whose name is hard to print."""
    folder = workspace / "detections"
    shutil.copy(folder / "v2.scores.npz", folder / f"{NAME}.scores.npz")
    return workspace


def run(encoding: str, *args: str, cwd: Path, expect: int = 0) -> tuple[bytes, bytes]:
    env = environment(PYTHONUTF8="0", PYTHONIOENCODING=encoding)
    result = subprocess.run(command(*args), cwd=cwd, env=env, capture_output=True, timeout=300)
    assert result.returncode == expect, result
    assert b"Traceback" not in result.stderr
    return result.stdout, result.stderr


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("ascii", rb"\xfc \u30d3 \U0001f3ac caf\udce9"),
        ("cp1252", rb"%s \u30d3 \U0001f3ac caf\udce9" % "ü".encode("cp1252")),
        ("utf-8", rb"%s caf\udce9" % "ü ビ 🎬".encode()),
    ],
)
def test_letters_that_the_output_lacks_are_escaped(
    encoding: str, shown: bytes, named: Path
) -> None:
    assert shown in run(encoding, "status", cwd=named)[0]
    missing = f"{NAME}.mp4"
    stderr = run(encoding, "detect", missing, cwd=named, expect=2)[1]
    assert stderr == b"mstemba: %s.mp4: no such file or folder\n" % shown
    run(encoding, f"--{NAME}", cwd=named, expect=2)
    data = json.loads(run(encoding, "status", "--json", "-", cwd=named)[0].decode(encoding))
    assert NAME in [detection["video"] for detection in data["detections"]]


def test_the_bars_of_evaluate_are_plain(named: Path) -> None:
    stdout = run("cp1252", "evaluate", cwd=named)[0].decode("cp1252")
    assert "mAP" in stdout
    assert " ####" in stdout
    assert "\\u" not in stdout


def test_output_that_has_no_encoding_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(entry.sys, "stdout", None)
    monkeypatch.setattr(entry.sys, "argv", ["mstemba", "backbones", "--json", "-"])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        entry.main()
    assert not ended.value.code
