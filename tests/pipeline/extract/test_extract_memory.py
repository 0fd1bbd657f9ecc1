"""A long film takes the memory of a short one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.extract import peaks_of_extraction
from benchmarks.videos import looped
from mstemba.pipeline.options import FeatureOptions
from tests.videos import encode, encode_at, moving

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]


def test_the_peak_does_not_grow_with_the_length(tmp_path: Path) -> None:
    """Half an hour against a minute, decoder included; benchmarks/extract.py does it for an hour.

    Few frames are used, which bounds the time here and is harder on the decoder.
    """
    source = encode(tmp_path / "v.mp4", 300, width=640, height=360)
    options = FeatureOptions("efficientnet-lite0", frame_step=10, window=1, stride=1)
    (command, decoder), (long_command, long_decoder) = (
        peaks_of_extraction(
            looped(source, tmp_path / f"{seconds}.mp4", seconds),
            options,
            "auto",
            tmp_path / f"{seconds}",
        )
        for seconds in (60, 1800)
    )
    assert long_decoder <= 1.1 * decoder
    # How many frames wait for the backbone at once differs from run to run: runs of one film were
    # seen to differ by a fifth. The frames used in half an hour are twice what the command takes.
    assert long_command <= 1.35 * command


def test_decord_does_not_decode_the_whole_video_ahead(tmp_path: Path) -> None:
    """Ten minutes against less than two, by a backbone that is slower than the decoder."""
    times = [number / 5 for number in range(250)]
    images = moving(250, 640, 360)
    source = encode_at(tmp_path / "v.mp4", times, images=images, options={"g": "32"})
    options = FeatureOptions("efficientnet-lite0", window=1, stride=1)
    short, long = (
        peaks_of_extraction(
            looped(source, tmp_path / f"{seconds}.mp4", seconds),
            options,
            "auto",
            tmp_path / f"{seconds}",
        )[1]
        for seconds in (100, 600)
    )
    assert long <= 1.1 * short
