"""Links and names that lead out of a folder: nothing outside is written or deleted."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from mstemba.errors import MstembaWarning, UsageError
from mstemba.pipeline.caching.files import check_inside
from mstemba.pipeline.caching.keys import Fingerprints
from tests.cli.conftest import (
    EXTRACT,
    TRAIN,
    contents,
    current_run,
    current_store,
    edit_json,
)
from tests.command_line import Runner, command, environment
from tests.training import fit
from tests.training import make_workspace as arrays_to_train

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder of somebody else, which must stay as it is."""
    folder = tmp_path / "outside"
    (folder / "below").mkdir(parents=True)
    for name in ("model.safetensors", "settings.json", "fingerprints.json", "below/0", "zarr.json"):
        (folder / name).write_text("precious")
    return folder


def test_a_folder_may_be_a_link_and_what_is_in_it_may_not_lead_out(tmp_path: Path) -> None:
    real = tmp_path / "disk" / "runs"
    (real / "a").mkdir(parents=True)
    (tmp_path / "disk" / "runs2").mkdir()
    runs = tmp_path / "runs"
    runs.symlink_to(real)
    (real / "inside").symlink_to("a")
    (real / "out").symlink_to("../runs2")  # begins with the same name
    (real / "dangling").symlink_to("../missing")
    for name in ("a", "inside", "inside/new", "missing/new", "."):
        check_inside(runs / name, runs)
    for name in ("out", "out/new", "dangling", "a/../../x", "../x"):
        with pytest.raises(UsageError, match="outside of"):
            check_inside(runs / name, runs)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", ["best", "last", "tensorboard", "metrics.jsonl", "curves.png"])
def test_a_training_does_not_follow_links_out_of_its_run(
    name: str, tmp_path: Path, outside: Path
) -> None:
    workspace = arrays_to_train(tmp_path / "w")
    run = tmp_path / "run"
    run.mkdir()
    target = outside if "." not in name else outside / "settings.json"
    (run / name).symlink_to(target)
    before = contents(outside)
    with pytest.raises(UsageError, match=f"{name}: a link leads to {target}, outside of {run}"):
        fit(workspace, output=run, trackers="tensorboard")
    assert contents(outside) == before
    (run / name).unlink()
    disk = tmp_path / "disk"
    run.rename(disk)
    run.symlink_to(disk)
    assert not fit(workspace, output=run, trackers="tensorboard").cached
    assert (disk / "last" / "model.safetensors").is_file()


def test_fingerprints_are_not_written_through_a_link(tmp_path: Path, outside: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (work / "a.mp4").write_bytes(b"a video")
    (work / ".cache").symlink_to(outside)
    before = contents(outside)
    fingerprints = Fingerprints(work / ".cache" / "fingerprints.json")
    fingerprints.of(work / "a.mp4")
    with pytest.warns(MstembaWarning, match=f"a link leads to {outside}, outside of"):
        fingerprints.save()
    assert contents(outside) == before


@pytest.mark.slow
def test_extract_does_not_follow_links_out_of_its_store(
    mstemba: Runner, workspace: Path, outside: Path
) -> None:
    store = current_store(workspace)
    before = contents(outside)
    for place in (store / "v0", store.parent / f".{store.name}.locks"):
        if place.is_dir():
            shutil.rmtree(place)
        place.symlink_to(outside)
        mstemba(*EXTRACT, cwd=workspace, expect=None)
        assert contents(outside) == before
        place.unlink()
    mstemba(*EXTRACT, cwd=workspace)
    # The shards of an entry as well, which is removed and made again.
    shutil.rmtree(store / "v0" / "c")
    (store / "v0" / "c").symlink_to(outside)
    edit_json(store / "v0" / "zarr.json", lambda entry: entry["attributes"].update(key="0" * 64))
    mstemba(*EXTRACT, cwd=workspace, expect=None)
    assert contents(outside) == before


HOSTILE = ("../../x", "/{outside}/x", "con", "nul.txt", "x.", "x. ", ".", "..", ".hidden", "a\\b")


@pytest.mark.slow
def test_ids_and_subsets_of_a_manifest_are_no_paths(
    mstemba: Runner, workspace: Path, outside: Path
) -> None:
    ids = [id.format(outside=outside) for id in HOSTILE]
    manifest = workspace / "manifest.json"
    data = json.loads(manifest.read_text())
    template = data["videos"]["v0"]
    data["videos"] = {}
    for number, id in enumerate(ids):
        copy = workspace / "videos" / f"copy{number}.mp4"
        source = (workspace / "videos" / "v0.mp4").read_bytes()
        copy.write_bytes(source + (9 + number).to_bytes(4) + b"free" + bytes(number + 1))
        subset = "../../subset" if number % 2 else "training"
        path = f"videos/{copy.name}"
        data["videos"][id] = {**template, "path": path, "subset": subset}
    manifest.write_text(json.dumps(data))
    for folder in ("features", "runs", "detections"):
        shutil.rmtree(workspace / folder)
    around = contents(workspace.parent / "outside")
    siblings = {file.name for file in workspace.parent.iterdir()}
    mstemba(*EXTRACT, cwd=workspace)
    mstemba(*TRAIN, cwd=workspace)
    mstemba("report", "--subset", "../../subset", cwd=workspace)
    copies = sorted((workspace / "videos").glob("copy*.mp4"))
    mstemba("detect", *copies, "--threshold", "0.05", "--format", "csv,html", cwd=workspace)
    mstemba("export", "--format", "vtt", cwd=workspace)
    assert contents(outside) == around
    assert {file.name for file in workspace.parent.iterdir()} == siblings
    results = [file.name for file in (workspace / "detections").iterdir()]
    for ending in (".scores.npz", ".csv", ".html", ".vtt"):
        assert sum(name.endswith(ending) for name in results) == len(ids)
    assert sum(place.is_dir() for place in current_store(workspace).iterdir()) == len(ids)
    assert list(current_run(workspace).glob("report-*.html"))


linux = pytest.mark.skipif(sys.platform != "linux", reason="pipes and links of Linux")


@linux
def test_a_result_goes_into_a_pipe_and_does_not_replace_it(mstemba: Runner, tmp_path: Path) -> None:
    expected = mstemba("backbones", "--json", "-", cwd=tmp_path).stdout
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for name in ("pipe", "link"):
        # Open for both, so that nobody waits; a pipe holds 64 KiB.
        descriptor = os.open(tmp_path / "pipe", os.O_RDWR)
        mstemba("backbones", "--json", name, cwd=tmp_path)
        assert os.read(descriptor, 2**16).decode() == expected
        os.close(descriptor)
        assert (tmp_path / "pipe").is_fifo()
    assert (tmp_path / "link").is_symlink()


@linux
def test_a_device_is_written_to_and_not_replaced(mstemba: Runner, tmp_path: Path) -> None:
    nowhere = tmp_path / "null"  # as /dev/null, which root could replace
    try:
        os.mknod(nowhere, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("only root makes devices")
    mstemba("backbones", "--json", nowhere, cwd=tmp_path)
    assert nowhere.is_char_device()


@linux
def test_a_result_goes_to_an_open_file_as_of_a_process_substitution(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    result = subprocess.run(
        command("backbones", "--json", f"/dev/fd/{writing}"), cwd=tmp_path, env=environment(),
        pass_fds=[writing], capture_output=True, text=True,
    )  # fmt: skip
    os.close(writing)
    with os.fdopen(reading) as pipe:
        assert len(json.load(pipe)) == len(result.stdout.splitlines()) - 2
    assert (result.returncode, result.stderr) == (0, "")


@linux
def test_dev_stdout_is_standard_output(tmp_path: Path) -> None:
    for target in ("-", "/dev/stdout"):
        with (tmp_path / "result.json").open("w") as file:
            subprocess.run(
                command("backbones", "--json", target), cwd=tmp_path, env=environment(),
                stdout=file, check=True,
            )  # fmt: skip
        assert json.loads((tmp_path / "result.json").read_text())
    assert Path("/dev/stdout").is_symlink()


def test_results_into_folders_that_are_missing_or_are_files(
    mstemba: Runner, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    said = mstemba("backbones", "--json", "file/a.json", cwd=tmp_path, expect=2).stderr
    assert said.startswith("mstemba: file: this is a file, expected a folder for a.json")
    said = mstemba("backbones", "--json", ".", cwd=tmp_path, expect=2).stderr
    assert said.startswith("mstemba: .: a folder, expected the name of a file")
    mstemba("backbones", "--json", "new/folder/a.json", cwd=tmp_path)
    assert json.loads((tmp_path / "new" / "folder" / "a.json").read_text())


@linux
@pytest.mark.parametrize("args", [("status",), ("runs",), ("extract",)])
def test_a_current_folder_that_is_gone_is_said(args: tuple[str, ...], tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    result = subprocess.run(
        ["sh", "-c", 'rmdir "$PWD" && exec "$@"', "sh", *command(*args)], cwd=gone,
        env=environment(), capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode in (1, 2)
    assert result.stderr == (
        "mstemba: the current folder has been deleted; change to another one\n"
    )
