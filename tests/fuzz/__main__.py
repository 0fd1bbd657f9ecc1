"""Run cases of the fuzz suite: `python -m tests.fuzz --count 1000 --seed 3`.

Case number k of a seed is always the same: `--seed 3 --case 17 --keep` repeats it and keeps its
folder. The cases run in processes that are forked from this one, which has imported everything.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import multiprocessing
import os
import pkgutil
import random
import shlex
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

# Before the imports, which read them.
os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
os.environ["MSTEMBA_SCAN"] = "chunked"  # Numba would compile in each process
os.environ.pop("MSTEMBA_WORKSPACE", None)

from tests.fuzz import runner, template
from tests.fuzz.mutations import mutate


@dataclass(frozen=True)
class Result:
    """What one case found."""

    number: int
    title: str
    """The damaged file, what was done, and the command."""
    faults: list[str]
    code: int
    output: str


class Suite:
    """A template, an idle process to compare with, and the cases of a seed."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self.folder, self._options = folder, options
        self.template = folder / "template"
        import_everything()
        self._make_template()
        self._idle = runner.run(lambda: None, folder / "idle.log").memory

    def _make_template(self) -> None:
        log = self.folder / "template.log"

        self._succeed("inputs", lambda: template.write_inputs(self.template), log)
        for line in template.COMMANDS:
            self._succeed(line, self._plain(line), log)
        self._succeed("training", lambda: template.leave_unfinished(self.template), log)

    def _plain(self, line: str) -> Callable[[], None]:
        def target() -> None:
            from mstemba.__main__ import main

            os.chdir(self.template)
            sys.argv = ["mstemba", *shlex.split(line)]
            main()

        return target

    def _succeed(self, what: str, target: Callable[[], None], log: Path) -> None:
        outcome = runner.run(target, log)
        if outcome.code != 0:
            raise SystemExit(f"the template cannot be made: {what}: {outcome.output}")

    def _command(self, line: str, case: runner.Case) -> runner.Outcome:
        words = runner.command(shlex.split(line), case)
        return runner.run(words, case.log, self._options.seconds)

    def check_commands(self) -> list[str]:
        """Return the command lines that fail in the undamaged template: they would show nothing."""
        wrong = []
        for line in sorted({line for target in template.TARGETS for line in target.commands}):
            case = runner.Case(self.folder / "check", self.template)
            outcome = self._command(line, case)
            bad = list(runner.faults(outcome, self._idle, 0))
            if outcome.code != 0 or bad:
                wrong.append(f"{line}: {outcome.code} {bad}: {outcome.output}")
            case.remove()
        return wrong

    def targets(self) -> list[template.Target]:
        """Return the targets of the chosen form or file."""
        only = self._options.only
        return [t for t in template.TARGETS if only is None or t.form == only or only in t.file]

    def run(self, number: int) -> Result:
        """Run one case."""
        rng = random.Random(f"{self._options.seed}/{number}")
        targets = self.targets()
        target = rng.choices(targets, [t.weight for t in targets])[0]
        line = rng.choice(target.commands)
        case = runner.Case(self.folder / f"case-{self._options.seed}-{number}", self.template)
        (path,) = case.workspace.glob(target.file)
        what = mutate(rng, target.form, path, case.outside)
        title = f"{target.file}: {what}\n    mstemba {line}"
        size = path.stat().st_size if path.is_file() else 0
        damaged = path.relative_to(case.workspace).as_posix()
        words, seconds = shlex.split(line), self._options.seconds
        outcome, found = runner.examine(
            runner.command(words, case), case, damaged, self._idle, size, seconds
        )
        if target.checked and outcome.code == 0 and line.startswith("evaluate"):
            whole = self.template / damaged
            if not (path.is_file() and path.read_bytes() == whole.read_bytes()):
                found.append("the damage was not noticed")
        if outcome.code and not found and target.form != "name" and rng.random() < 0.2:
            found += self._mended(case, path, line)
        if not (self._options.keep and found):
            case.remove()
        return Result(number, title, found, outcome.code, outcome.output)

    def _mended(self, case: runner.Case, path: Path, line: str) -> Iterator[str]:
        """Yield what is wrong if the damaged file is put back and the command repeated."""
        if path.is_symlink() or not path.is_dir():
            path.unlink(missing_ok=True)
        else:
            shutil.rmtree(path)
        whole = self.template / path.relative_to(case.workspace)
        path.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if whole.is_dir() else shutil.copy2)(whole, path)
        if "features" in path.parts:  # entries found damaged count as missing
            for again in (template.EXTRACT, "import npy"):
                self._command(again, case)
        outcome = self._command(line, case)
        if outcome.code != 0:
            last = outcome.output.splitlines()[-1:]
            yield f"with the file put back, the command still fails: {last}"


def import_everything() -> None:
    """Import what the commands import, so that each forked process has it already."""
    import mstemba
    from mstemba.extractors import torchvision_ops

    torchvision_ops.ensure()
    for module in pkgutil.walk_packages(mstemba.__path__, "mstemba."):
        if not module.name.startswith(("mstemba.model.scan.cuda", "mstemba.model.scan.triton")):
            importlib.import_module(module.name)
    # open_clip for what it imports of torch: commands that train import the same.
    for name in ("matplotlib.pyplot", "open_clip", "zarr", "accelerate", "safetensors.torch"):
        importlib.import_module(name)
    gc.collect()
    gc.freeze()


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser("python -m tests.fuzz", description=__doc__.split("\n\n")[0])
    parser.add_argument("--count", type=int, default=300, help="number of cases")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=int, default=0, help="number of the first case")
    parser.add_argument("--case", type=int, help="run this case alone, and show its output")
    parser.add_argument("--only", help="cases of this form (json, npz, ...), or of files with this")
    parser.add_argument("--keep", action="store_true", help="keep the folders of failing cases")
    parser.add_argument("--jobs", type=int, default=1, help="number of processes")
    parser.add_argument("--seconds", type=float, default=60.0, help="what is longer is a hang")
    parser.add_argument("--check", action="store_true", help="first run every command undamaged")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    try:
        code = _run(options, folder)
    finally:
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)
    sys.stdout.flush()
    os._exit(code)  # nothing is left to do, and torch takes seconds for it


def _run(options: argparse.Namespace, folder: Path) -> int:
    begin = time.monotonic()
    suite = Suite(folder, options)
    print(f"template made in {time.monotonic() - begin:.0f} s in {folder}", flush=True)
    if options.check and (wrong := suite.check_commands()):
        print("\n".join(wrong))
        return 1
    numbers = range(options.start, options.start + options.count)
    if options.case is not None:
        numbers = range(options.case, options.case + 1)
    failed, codes = 0, Counter[int]()
    for result in _results(suite, numbers, options.jobs):
        failed += bool(result.faults)
        codes[result.code] += 1
        if result.faults or options.case is not None:
            _show(result, options.seed)
    ended = ", ".join(f"{count} with {code}" for code, count in sorted(codes.items()))
    print(f"{len(numbers)} cases in {time.monotonic() - begin:.0f} s, {failed} failed", end="")
    print(f" (exit codes: {ended})")
    return int(failed > 0)


def _results(suite: Suite, numbers: range, jobs: int) -> Iterator[Result]:
    """Yield the results of cases in their order."""
    if jobs == 1:
        yield from map(suite.run, numbers)
        return
    with multiprocessing.get_context("fork").Pool(jobs) as pool:
        yield from pool.imap(suite.run, numbers)


def _show(result: Result, seed: int) -> None:
    """Print a case, what is wrong with it, and the lines of its output that tell the place."""
    print(f"case {result.number} (--seed {seed} --case {result.number}): {result.title}")
    print("".join(f"  {fault}\n" for fault in result.faults), end="")
    lines = result.output.splitlines()
    frames = [line for line in lines[:-12] if "/mstemba/" in line]
    print("".join(f"  | {line[:300]}\n" for line in frames + lines[-12:]), flush=True)


if __name__ == "__main__":
    main()
