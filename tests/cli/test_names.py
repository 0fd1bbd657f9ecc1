"""Videos with difficult names: nothing collides, nothing is lost, nothing is taken for markup."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import pytest

from mstemba.pipeline.features.store import FeatureStore
from mstemba.pipeline.outputs import WRITERS
from mstemba.pipeline.progress import one_line
from tests.cli.conftest import EXTRACT, current_run, current_store, film
from tests.command_line import mstemba

pytestmark = pytest.mark.slow

NAMES = {
    "quotes": 'a "b" <c> $x$ ü.mp4',
    "dash": "-n.mp4",
    "markup": "[red]x[bold] %s.mp4",
    "formula": "=1+1.mp4",
    "dots": "a..b.c.mp4",
    "other-script": "ビデオ 🎬.mp4",
    "case": "V0.MP4",
    "script": "<script>alert(1).mp4",
    "newline": "two\nlines \x1b[2J.mp4",
    "right-to-left": "שלום \u202e עולם.mp4",
    "no-text": "caf\udce9.mp4",  # é in Latin-1
}
if sys.platform != "linux":  # names are text elsewhere
    del NAMES["no-text"], NAMES["newline"]


@pytest.fixture(scope="module")
def done(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace of difficult names after `extract` and `detect`."""
    folder = tmp_path_factory.mktemp("names")
    for seed, name in enumerate(NAMES.values()):
        film(folder / "videos" / name, seed % 4)
    film(folder / "videos" / "monday" / "same.mp4", 1)
    film(folder / "videos" / "tuesday" / "same.mp4", 2)
    mstemba("init", "--videos", "videos", cwd=folder)
    mstemba(*EXTRACT, cwd=folder)
    result = mstemba(
        "detect", "videos", "--checkpoint", current_run(finished), "--threshold", "0.01",
        "--format", ",".join(WRITERS), cwd=folder,
    )  # fmt: skip
    (folder / "printed").write_bytes((result.stdout + result.stderr).encode(errors="strict"))
    return folder


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_a_video_of_any_name_is_extracted_and_detected(name: str, done: Path) -> None:
    id = Path(name).stem
    assert FeatureStore.open(current_store(done)).read(id).values.shape == (2, 1280)
    detection = json.loads((done / "detections" / f"{id}.json").read_text())
    assert Path(detection["video"]).name == name
    assert (done / "detections" / f"{id}.png").stat().st_size > 1000
    for writer in WRITERS.values():
        assert (done / "detections" / f"{id}.{writer.suffix}").stat().st_size > 0
    assert f"\n{one_line(id)}: " in "\n" + (done / "printed").read_text()


def test_two_videos_of_one_name_do_not_collide(done: Path) -> None:
    store = FeatureStore.open(current_store(done))
    monday, tuesday = (store.read(f"{day}/same") for day in ("monday", "tuesday"))
    assert (monday.values != tuesday.values).any()
    for day in ("monday", "tuesday"):
        detection = json.loads((done / "detections" / f"{day}__same.json").read_text())
        assert Path(detection["video"]).parent.name == day


def test_all_videos_have_their_own_files(done: Path) -> None:
    files = [file.name for file in (done / "detections").iterdir()]
    kept = [name.removesuffix(".scores.npz") for name in files if name.endswith(".scores.npz")]
    assert len(kept) == len(NAMES) + 2
    wanted = [f"{name}.{writer.suffix}" for name in kept for writer in WRITERS.values()]
    assert set(wanted) <= set(files)
    videos = {json.loads((done / "detections" / f"{n}.json").read_text())["video"] for n in kept}
    assert len(videos) == len(NAMES) + 2


def test_what_is_printed_moves_no_cursor_and_breaks_no_line(done: Path) -> None:
    printed = (done / "printed").read_text()
    assert "\x1b" not in printed
    assert r"two\nlines \x1b[2J: " in printed or "newline" not in NAMES


def test_a_name_is_no_formula_in_a_spreadsheet(done: Path) -> None:
    rows = list(csv.DictReader((done / "detections" / "=1+1.csv").open(newline="")))
    assert {row["video"] for row in rows} == {"'=1+1.mp4"}


def test_drawing_a_name_warns_of_nothing(done: Path) -> None:
    assert "UserWarning" not in (done / "printed").read_text()


def test_status_shows_every_name(done: Path) -> None:
    report = json.loads(mstemba("status", "--json", "-", cwd=done).stdout)
    assert {v["video"] for v in report["videos"]} >= {Path(n).stem for n in NAMES.values()}
    assert {v["state"] for v in report["videos"]} == {"done"}


def test_a_video_of_the_same_name_elsewhere_keeps_its_own_results(
    done: Path, finished: Path, tmp_path: Path
) -> None:
    film(tmp_path / "first" / "v.mp4", 1)
    film(tmp_path / "second" / "v.mp4", 2)
    for folder in ("first", "second"):
        mstemba(
            "detect", f"{folder}/v.mp4", "--checkpoint", current_run(finished),
            "--format", "json", cwd=tmp_path,
        )  # fmt: skip
    videos = [json.loads(f.read_text())["video"] for f in (tmp_path / "detections").glob("*.json")]
    assert sorted(videos) == [str(tmp_path / folder / "v.mp4") for folder in ("first", "second")]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("zarr.json.mp4", id="file-of-the-store"),
        pytest.param(".hidden.mp4", id="hidden"),
        # A legal name of 210 bytes, three times as long when it is quoted.
        pytest.param("動" * 70 + ".mp4", id="long"),
        pytest.param(
            "caf\udce9.mp4",  # é in Latin-1
            id="no-unicode",
            marks=pytest.mark.skipif(sys.platform != "linux", reason="names are text elsewhere"),
        ),
    ],
)
def test_a_name_that_is_no_folder_name_as_it_stands(name: str, tmp_path: Path) -> None:
    film(tmp_path / "v.mp4").rename(tmp_path / name)
    args = (*EXTRACT, ".", "--store", "s.zarr")
    assert "1 extracted" in mstemba(*args, cwd=tmp_path).stdout
    assert "1 cached" in mstemba(*args, cwd=tmp_path).stdout
