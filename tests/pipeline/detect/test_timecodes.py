"""Start timecodes: from the video through saved scores to the formats of editing programs."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import opentimelineio
import pytest
from av.video.frame import VideoFrame

from mstemba.pipeline.detect.export import export
from mstemba.pipeline.detect.scores_file import SavedScores, read_scores, save_scores
from mstemba.pipeline.options import ExportOptions
from mstemba.records import Scores, TimeGrid
from tests.pipeline.detect.colours import WORDS, run
from tests.videos import moving

NTSC = Fraction(30_000, 1001)


def film(path: Path, code: str, fps: Fraction) -> Path:
    """Two seconds of video with a start timecode."""
    with av.open(f"file:{path}", "w") as out:
        out.metadata["timecode"] = code
        stream = out.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = 48, 48, "yuv420p"
        for number, image in enumerate(moving(round(2 * fps), 48, 48)):
            frame = VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = number, 1 / fps
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


@pytest.mark.usefixtures("loaded", "one_thread")
@pytest.mark.parametrize(
    ("name", "code", "fps", "mode", "end"),
    [
        ("tc.mov", "10:00:00:00", Fraction(25), "NON-DROP FRAME", "10:00:02:00"),
        ("tc.mkv", "10:00:00:00", Fraction(25), "NON-DROP FRAME", "10:00:02:00"),
        ("tc.mov", "09:59:59;00", NTSC, "DROP FRAME", "10:00:01;00"),
    ],
)
def test_detect_and_export_count_from_the_timecode_of_the_video(
    tmp_path: Path, name: str, code: str, fps: Fraction, mode: str, end: str
) -> None:
    video, out = film(tmp_path / name, code, fps), tmp_path / "out"
    formats = ExportOptions(formats=("json", "edl", "otio"))
    result = run(video, out, list(WORDS), options=formats)
    assert result.scores.timecode == code
    exported = export(out, formats, output=tmp_path / "exported")
    (folder,) = {file.parent for file in exported.files["tc"]}
    for where in (out, folder):
        text = (where / "tc.edl").read_text()
        assert f"FCM: {mode}\n" in text
        assert f" {code} {end} {code} {end}\n" in text
        (clip,) = opentimelineio.adapters.read_from_file(str(where / "tc.otio")).find_clips()
        start = clip.source_range.start_time.to_seconds()
        assert start == pytest.approx(36_000 - (fps == NTSC), abs=0.1)
        assert json.loads((where / "tc.json").read_text())["timecode"] == code


def test_scores_of_before_timecodes_have_none(tmp_path: Path) -> None:
    path = tmp_path / "v.scores.npz"
    grid, video = TimeGrid.even(0.0, 1.0, 20), str(tmp_path / "v.mp4")
    dense = Scores(np.zeros((20, 1), np.float32), grid, ("sit",), video, 20.0, 25.0, "10:00:00:00")
    save_scores(path, SavedScores(dense, "key", "print"))
    assert read_scores(path).scores.timecode == "10:00:00:00"
    with np.load(path) as data:
        content = {name: data[name] for name in data if name != "timecode"}
    np.savez(path, **content)  # type: ignore[arg-type]
    assert read_scores(path).scores.timecode == ""
    exported = export(path, ExportOptions(formats=("edl",)), output=tmp_path / "out")
    assert " 00:00:00:00 00:00:20:00\n" in exported.files["v"][0].read_text()
