"""The stage `train`: features and labels to a trained model, unless the run is finished."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mstemba.data_manifests.manifest import Manifest, load_manifest
from mstemba.errors import CheckpointError, MstembaError, UsageError, first_line
from mstemba.pipeline import distributed, recipes
from mstemba.pipeline.caching.files import as_local, as_path, check_inside, visible, write_json
from mstemba.pipeline.caching.keys import Fingerprints
from mstemba.pipeline.caching.locks import EntryLock, FolderLocks
from mstemba.pipeline.checkpoint import (
    CONFIG,
    DONE,
    WEIGHTS,
    Done,
    checkpoint_config,
    open_checkpoint,
    read_config,
    read_done,
    short_key,
)
from mstemba.pipeline.devices import fast_precision, is_out_of_memory, pick_device
from mstemba.pipeline.features.sources import FeatureSource, find_features
from mstemba.pipeline.options import TrainOptions, TrainRunOptions
from mstemba.pipeline.progress import Event, EventHandler, ignore_events, report_import
from mstemba.pipeline.train.loggers import check_installed
from mstemba.pipeline.train.plan import TrainPlan, make_plan
from mstemba.pipeline.workspace import (
    Workspace,
    find_workspace,
    remember_current,
    require_workspace,
)
from mstemba.reading.files import reason
from mstemba.tensor_files.safetensors_file import check_digest, stored_digest
from mstemba.wording import counted

# As in train/state.py, which imports torch.
_STATE = "state.safetensors"
# What a run writes into its folder.
RUN_FILES = {
    "best",
    "last",
    "tensorboard",
    "wandb",
    "metrics.jsonl",
    "curves.png",
    _STATE,
    DONE,
}
_REPORTS = "report-*.html"
"""What `mstemba report` writes there."""
_SECONDS_BETWEEN_QUESTIONS = 1.0


@dataclass(frozen=True)
class TrainResult:
    """The outcome of a training."""

    run: Path
    """Folder with `best/` and `last/` checkpoints, metrics.jsonl, curves.png and tensorboard/."""
    checkpoint: str
    """`best` (chosen on the validation videos) or `last` (there were none)."""
    score: float | None
    """Validation mAP in percent of the best checkpoint."""
    steps: int
    """Optimiser steps taken."""
    seconds: float
    cached: bool
    """Whether the run had finished before."""


def train(
    options: TrainOptions | None = None,
    run_options: TrainRunOptions | None = None,
    *,
    recipe: str | None = None,
    given: Collection[str] = (),
    workspace: Workspace | str | Path | None = None,
    manifest: str | Path | None = None,
    features: str | Path | None = None,
    output: str | Path | None = None,
    on_event: EventHandler = ignore_events,
) -> TrainResult:
    """Train a network on the training videos of a manifest.

    A finished run with the same key is returned as it is. An unfinished one is resumed from its
    last state and ends bit for bit (on a CPU) as if it had not been interrupted. While another
    process trains in the run folder, this one waits.

    Args:
        options: Those that decide the result. Default: `TrainOptions()`.
        run_options: Where the training runs, and where its metrics go.
        recipe: `paper`, `tuned`, `none`, or `auto` (`tuned` for the datasets that have it). It sets
            all options that are not given. Default: `auto` without `options`, otherwise `none`.
        given: Names of the options that take precedence over the recipe. Default: those of
            `options` that differ from their defaults.
        workspace: Default: the one around the current folder.
        manifest: Default: the workspace's.
        features: A store or a folder of .npy files. Default: the workspace's current ones.
        output: The run folder. Default: one in the workspace, named after the run's key.
        on_event: Called with progress and warnings.

    Raises:
        UsageError: There is nothing to train on, the recipe is unknown, or the processes of a
            distributed run do not share the run folder.
        MstembaError: The training diverged, see `Trainer.fit`, or the device's memory is too small.
    """
    workspace = find_workspace(workspace)
    listed = as_local(manifest) or require_workspace(workspace, "--manifest").manifest
    labels = load_manifest(listed)
    recipe = recipes.choose(labels.dataset, recipe or ("none" if options else "auto"))
    options, description = recipes.apply(options or TrainOptions(), labels.dataset, recipe, given)
    run_options = run_options or TrainRunOptions()
    source = find_features(as_path(features), workspace, videos=labels.videos.values())
    fingerprints = Fingerprints(workspace.fingerprints if workspace else None)
    plan = make_plan(options, run_options, labels, source, fingerprints)
    run = as_local(output) or require_workspace(workspace, "--output").runs / plan.name
    _check_run_folder(output, plan.key)
    found = _finished(run, plan.key)
    if found is None:
        check_installed(run_options.tracker_names)
    on_event(Event("train", description))
    with _locked(run, output, plan, found, on_event) as found, _memory_for(plan):
        done = found or _train(plan, recipe, source, labels, run, on_event)
    if workspace is not None and run.parent == workspace.runs and distributed.is_first():
        remember_current(workspace.runs, run.name)
    return TrainResult(
        run, done["checkpoint"], done["score"], done["steps"], done["seconds"], found is not None
    )


@contextmanager
def _memory_for(plan: TrainPlan) -> Iterator[None]:
    """Say what to do if the training does not fit into the memory of its device."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        options, device = plan.options, pick_device(plan.run_options.device)
        in_float32 = distributed.training_precision(device, options.precision) == "no"
        bf16 = "--precision bf16, " if in_float32 and fast_precision(device) == "bfloat16" else ""
        raise MstembaError(
            f"{device} does not have enough memory to train with batches of "
            f"{counted(plan.batch_size, 'clip')} of up to {counted(options.clip_length, 'row')}: "
            f"try a smaller --batch-size or --clip-length, {bf16}or another --device "
            f"({first_line(error)})"
        ) from error


def _check_run_folder(given: str | Path | None, key: str) -> None:
    """Raise UsageError if a given folder holds anything other than this run, finished or not."""
    if (output := as_local(given)) is None:
        return  # its name has the key: what it holds is this run, or damaged
    last = output / "last"
    if (last / CONFIG).is_file():
        if read_config(last, verify=False).key != key:
            raise UsageError(
                f"{output}: holds a run with other options, features or labels; "
                f"pass another --output"
            )
    elif output.is_dir():
        names = {file.name for file in visible(output, "*") if not file.match(_REPORTS)}
        if foreign := sorted(names - RUN_FILES):
            raise UsageError(
                f"{output}: not a training run, it holds {foreign[0]}; pass another --output"
            )


def _finished(
    run: Path, key: str, on_damage: Callable[[str], object] = lambda problem: None
) -> Done | None:
    """Return the content of done.json; None if the run is unfinished, damaged or another's.

    Of the processes of a distributed run only the first one reads the weights.
    """
    if not (run / DONE).is_file():
        return None
    try:
        done, checkpoint = read_done(run), open_checkpoint(run)
        if checkpoint.train_key == key:
            if distributed.is_first():
                check_digest(checkpoint.weights)
            return done
        problem = f"{checkpoint.folder}: the result of another training"
    except CheckpointError as error:
        problem = str(error)
    except (OSError, ValueError) as error:
        problem = f"{run}: its weights are damaged or cannot be read: {reason(error)}"
    on_damage(problem)
    return None


@contextmanager
def _locked(
    run: Path,
    output: str | Path | None,
    plan: TrainPlan,
    found: Done | None,
    on_event: EventHandler,
) -> Iterator[Done | None]:
    """Wait until no other process trains in a run folder, and keep others from it.

    A finished run is only read, and needs no lock. Of the processes of a distributed run the first
    one takes the lock.

    Args:
        run: The run folder.
        output: As it was given.
        plan: Of the training.
        found: What `_finished` has returned.
        on_event: Receives a message if the result is damaged, or the lock is waited for.

    Yields:
        The content of done.json; None if there is something to train.
    """

    def reopen(problem: str) -> None:
        on_event(Event("train", f"{problem}; training again", warning=True))
        (run / DONE).unlink(missing_ok=True)

    def look_again() -> Done | None:
        """Return what is there under the lock: another process may have made it meanwhile."""
        _check_run_folder(output, plan.key)
        return _finished(run, plan.key, reopen)

    locks = FolderLocks(run, "training")
    with ExitStack() as held:
        if distributed.world_size() > 1:
            lock = _wait_together(locks, plan, found is not None, look_again, on_event)
            if lock is not None:
                held.enter_context(lock)
            _check_run_folder(output, plan.key)
            found = read_done(run) if _is_done(run, plan, lock is not None) else None
        elif found is None:
            held.enter_context(
                locks.wait_for(None, on_wait=lambda line: on_event(Event("train", line)))
            )
            found = look_again()
        if distributed.is_first() and (run / DONE).is_file():
            # What a process leaves that was killed as soon as it was done.
            locks.sweep()
            with suppress(OSError):
                (run / _STATE).unlink(missing_ok=True)
        yield found


def _wait_together(
    locks: FolderLocks,
    plan: TrainPlan,
    finished: bool,
    look_again: Callable[[], object],
    on_event: EventHandler,
) -> EntryLock | None:
    """Return the lock to the first process of a distributed run, once it has it and has looked.

    A finished run needs none. The others ask again and again, because a single question may not
    take hours.
    """
    lock, told = None, False
    while True:
        if distributed.is_first() and not finished and (lock := locks.acquire(None)):
            with suppress(UsageError):  # every process raises it afterwards
                look_again()
        may_start = not distributed.is_first() or finished or lock is not None
        if all(distributed.gather(plan.run_options.device, plan.options.precision, may_start)):
            return lock
        time.sleep(_SECONDS_BETWEEN_QUESTIONS)
        if distributed.is_first() and not told:
            on_event(Event("train", locks.waiting_for(None)))
            told = True


def _is_done(run: Path, plan: TrainPlan, locked: bool) -> bool:
    """Return whether a distributed run has finished before.

    Raises:
        UsageError: In every process, if they find different things: otherwise one would wait
            forever for another that has nothing to do.
    """
    done = (run / DONE).is_file()
    from mstemba.pipeline.train.state import STATE, saved_step

    step = saved_step(run / STATE)
    mine = "a finished run" if done else "no state" if step is None else f"the state of step {step}"
    if distributed.is_first() and not done and not locked:
        mine = "a run whose result has just been deleted"  # training it needs the lock
    found = distributed.gather(plan.run_options.device, plan.options.precision, mine)
    if len(set(found)) > 1:
        raise UsageError(
            f"{run}: process 0 finds {found[0]} there, others find "
            f"{', '.join(sorted(set(found) - {found[0]}))}; the run folder must be shared by all "
            f"machines: pass an --output on a file system that all of them see"
        )
    return done


def _train(
    plan: TrainPlan,
    recipe: str,
    source: FeatureSource,
    manifest: Manifest,
    run: Path,
    on_event: EventHandler,
) -> Done:
    """Train, and return the content of done.json, which only the first process is sure to see."""
    for name in sorted(RUN_FILES):
        check_inside(run / name, run)
    for message in (*source.notes, *plan.notes, plan.summary):
        on_event(Event("train", message))
    for message in plan.warnings:
        on_event(Event("train", message, warning=True))
    # torch is imported here: a finished run does not need it.
    report_import("train", on_event)
    from mstemba.pipeline.train.state import STATE
    from mstemba.pipeline.train.trainer import Trainer

    begin = time.perf_counter()
    trainer = Trainer(plan)
    if trainer.is_main:
        config = checkpoint_config(
            trainer.model_config.to_dict(),
            manifest.classes,
            source.spec,
            source.weights_file,
            {**asdict(plan.options), "recipe": recipe},
            plan.key,
            [manifest.classes[number] for number in plan.untrained],
            map(short_key, plan.trained_on),
        )
        _write_configs(run, plan, config)
    best = trainer.fit(run, on_event)
    done: Done = {
        "checkpoint": "last" if best is None else "best",
        "score": best,
        "steps": trainer.step,
        "planned_steps": plan.steps,
        "stopped": "patience" if trainer.out_of_patience else "end",
        "seconds": time.perf_counter() - begin,
        "key": plan.key,
    }
    if trainer.is_main:
        _write_configs(run, plan, config)  # again: somebody may have deleted them
        if digest := stored_digest(run / done["checkpoint"] / WEIGHTS):
            done["weights"] = digest
        write_json(run / DONE, done)
        (run / STATE).unlink(missing_ok=True)
    trainer.wait_for_everyone()
    return done


def _write_configs(run: Path, plan: TrainPlan, config: dict[str, Any]) -> None:
    """Write the configuration of the checkpoints, of `last` first: by it a run is recognised."""
    for name in ("last", "best") if plan.validation else ("last",):
        write_json(run / name / CONFIG, config)
