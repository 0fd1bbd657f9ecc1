"""Two trainings of one run: one of them does it, the other waits and finds it done."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import pytest

from mstemba.errors import UsageError
from mstemba.pipeline.caching.locks import FolderLocks
from mstemba.pipeline.checkpoint import open_checkpoint, read_done
from mstemba.pipeline.progress import Event
from mstemba.pipeline.train.stage import TrainResult
from tests.training import KilledError, fit, kill_at, make_workspace, records
from tests.waiting import Watcher

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("names", [(None, None), ("run", "."), ("run", "link")])
def test_of_two_trainings_one_does_it_and_the_other_waits(
    names: tuple[str | None, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the same run folder is given under two names."""
    workspace = make_workspace(tmp_path / "w")
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path / "run")
    if "link" in names:
        (tmp_path / "link").symlink_to("run")
    one, two = (name and (Path() if name == "." else tmp_path / name) for name in names)
    waits, results = threading.Event(), list[TrainResult]()
    watcher = Watcher(waits.set)
    thread = threading.Thread(
        target=lambda: results.append(fit(workspace, output=two, on_event=watcher))
    )

    def start_second(event: Event) -> None:
        if event.total and not thread.ident:
            thread.start()
            assert waits.wait(60), "the second training does not wait"

    first = fit(workspace, output=one, on_event=start_second)
    thread.join()
    (other,) = results
    assert (first.cached, other.cached) == (False, True)
    assert first.run.samefile(other.run)
    assert (first.score, first.steps) == (other.score, other.steps)
    steps = records(first.run, "step")
    assert steps == sorted(steps)
    assert len(records(first.run, "loss")) == len(set(steps))
    assert f"waiting for process {os.getpid()}, which is training {first.run.name}" in watcher.news
    assert list(first.run.glob(".*")) == []


def test_a_waiting_training_resumes_the_run_of_one_that_ends_too_early(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w")
    with pytest.raises(KilledError):
        fit(workspace, on_event=kill_at(4))
    (run,) = (workspace / "runs").iterdir()
    lock = FolderLocks(run, "training").acquire(None)
    assert lock is not None
    watcher = Watcher(lock.release)
    assert not fit(workspace, on_event=watcher).cached
    assert any(message.startswith("resuming from step ") for message in watcher.news)


def test_a_run_of_other_options_that_begins_meanwhile_is_refused(tmp_path: Path) -> None:
    workspace, run = make_workspace(tmp_path / "w"), tmp_path / "run"
    fit(workspace, output=tmp_path / "other")
    lock = FolderLocks(run, "training").acquire(None)
    assert lock is not None

    def finish() -> None:
        (tmp_path / "other" / "last").rename(run / "last")
        lock.release()

    with pytest.raises(UsageError, match="holds a run with other options"):
        fit(workspace, output=run, on_event=Watcher(finish), seed=1)


def test_what_a_kill_leaves_after_the_end_of_a_run_is_removed_by_the_next_one(
    tmp_path: Path,
) -> None:
    workspace = make_workspace(tmp_path / "w")
    run = fit(workspace).run
    (run / ".locks").mkdir()
    (run / ".locks" / f"{run.name}.lock").write_text("4711 here training\n")
    for name in (".writing-4711-abc.json", "state.safetensors"):
        (run / name).write_text("half")
    assert fit(workspace).cached
    assert not [*run.glob(".*"), *run.glob("state*")]


@pytest.mark.parametrize(
    ("damaged", "says"),
    [
        ("last/model.safetensors", "its SHA-256 is not the one that was saved with it"),
        ("done.json", "not readable as JSON"),
        (None, "not a checkpoint, it has no model.safetensors"),
    ],
)
def test_a_finished_run_whose_result_is_damaged_is_trained_again(
    damaged: str | None, says: str, tmp_path: Path
) -> None:
    workspace = make_workspace(tmp_path / "w", validation=())
    run = fit(workspace).run
    weights, steps = run / "last" / "model.safetensors", records(run, "step")
    whole = weights.read_bytes()
    if damaged is None:
        weights.unlink()
    else:
        content = bytearray((run / damaged).read_bytes())
        content[0 if damaged == "done.json" else -5] ^= 2
        (run / damaged).write_bytes(content)
    events: list[Event] = []
    assert not fit(workspace, on_event=events.append).cached
    (told,) = [e.message for e in events if e.warning and "training again" in e.message]
    assert says in told
    assert weights.read_bytes() == whole
    assert records(run, "step") == steps
    assert fit(workspace).cached


def damage(run: Path) -> None:
    """Change one bit of the weights."""
    weights = run / "last" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 2
    weights.write_bytes(content)


@pytest.mark.parametrize("named", [False, True])
def test_of_two_trainings_that_find_a_run_damaged_one_trains_again(
    named: bool, tmp_path: Path
) -> None:
    workspace = make_workspace(tmp_path / "w", validation=())
    output = tmp_path / "run" if named else None
    run = fit(workspace, output=output).run
    damage(run)
    others: list[TrainResult] = []

    def overtake(event: Event) -> None:
        """Let the other one train as soon as this one has said its first word."""
        if not others:
            others.append(fit(workspace, output=output))
            marker.append((run / "done.json").stat().st_ino)

    marker: list[int] = []
    assert fit(workspace, output=output, on_event=overtake).cached
    assert [other.cached for other in others] == [False]
    assert marker == [(run / "done.json").stat().st_ino]
    assert list(run.glob(".*")) == []


def test_a_damaged_run_that_another_one_replaces_meanwhile_is_refused(tmp_path: Path) -> None:
    workspace, run = make_workspace(tmp_path / "w", validation=()), tmp_path / "run"
    fit(workspace, output=run)
    damage(run)

    events: list[Event] = []

    def replace(event: Event) -> None:
        events.append(event)
        if len(events) == 1:
            shutil.rmtree(run)
            fit(workspace, output=run, seed=1)

    with pytest.raises(UsageError, match="holds a run with other options"):
        fit(workspace, output=run, on_event=replace)
    assert fit(workspace, output=run, seed=1).cached


def test_what_is_deleted_from_a_run_while_it_trains_is_written_at_its_end(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w")

    def delete(event: Event) -> None:
        for config in workspace.glob("runs/*/*/config.json"):
            config.unlink()

    run = fit(workspace, on_event=delete).run
    assert open_checkpoint(run).train_key == read_done(run)["key"]
    assert fit(workspace).cached


def test_a_run_with_a_report_is_trained_again_after_its_checkpoints_were_deleted(
    tmp_path: Path,
) -> None:
    workspace = make_workspace(tmp_path / "w")
    for output in (None, tmp_path / "run"):
        run = fit(workspace, output=output).run
        (run / "report-testing.html").write_text("page")
        for name in ("best", "last"):
            shutil.rmtree(run / name)
        assert not fit(workspace, output=output).cached
