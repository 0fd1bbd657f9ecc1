"""The selective scan by backend, against the reference and against the scans that others publish.

    python -m benchmarks.scan [--device cuda] [--lengths 64,2500] [--channels 1024] [--states 16]

One sequence, one direction, softplus, D and gate included; forward alone, and forward with
backward. Time is the fastest of several calls, memory the peak of one, error the largest difference
from the reference relative to its largest value. What would not fit into memory is not run, and
the table says so. On a GPU the table also has the GPU's own time and the launches of a call. The
file is written after every row.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import duration, mebibytes, memory_here, peak_memory, save, show, times
from benchmarks.gpu_times import describe_error
from benchmarks.peers import Candidate, peers
from mstemba.errors import UsageError
from mstemba.model.scan.backends import choose, list_backends
from mstemba.model.scan.operations import selective_scan
from mstemba.pipeline.devices import all_devices

LENGTHS = (64, 256, 1024, 2500, 8192, 32_768, 131_072)
LONG = 5.0
"""Seconds beyond which one call is enough."""
FORWARD, TRAINING = "forward", "forward+backward"


def arguments(length: int, channels: int, states: int, device: torch.device) -> list[Tensor]:
    """u, delta, A, B, C, D, z and delta_bias of one sequence."""
    g = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    A = -torch.arange(1.0, states + 1).repeat(channels, 1)
    wide, narrow = (1, length, channels), (1, length, states)
    tensors = [normal(*wide), normal(*wide), A, normal(*narrow), normal(*narrow)]
    tensors += [normal(channels), normal(*wide), normal(channels) - 4]
    return [tensor.to(device).requires_grad_() for tensor in tensors]


def candidates(device: torch.device) -> dict[str, Candidate]:
    """Ours that can run here, and the others', by name."""
    found: dict[str, Candidate] = {}
    for backend in list_backends():
        try:
            choose(backend.name, device)
        except UsageError as error:  # says what is missing
            print(error)
            continue
        scan = partial(selective_scan, backend=backend.name)
        found[f"ours: {backend.name}"] = (
            Candidate(scan, 0, 5, trains_up_to=4096)
            if backend.name == "reference"
            else Candidate(scan)
        )
    return found | peers()


def training(scan: Callable[..., Tensor], inputs: list[Tensor]) -> list[Tensor]:
    y = scan(*inputs)
    return list(torch.autograd.grad(y.sum(), inputs))


@torch.no_grad()
def forward(scan: Callable[..., Tensor], inputs: list[Tensor]) -> list[Tensor]:
    return [scan(*inputs)]


def swapped(tensors: list[Tensor]) -> list[Tensor]:
    """The arguments, their gradients or the result, steps and channels exchanged in each."""
    signals = (0, 1, 3, 4, 6) if len(tensors) > 1 else (0,)
    return [t.transpose(1, 2).contiguous() if i in signals else t for i, t in enumerate(tensors)]


def error(found: list[Tensor], expected: list[Tensor] | None) -> float | None:
    if expected is None:
        return None
    pairs = zip(found, expected, strict=True)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


def measure(
    found: dict[str, Candidate],
    length: int,
    channels: int,
    states: int,
    device: torch.device,
    seconds: float,
) -> Iterator[dict[str, Any]]:
    """Every candidate on sequences of one length, row by row."""
    inputs = arguments(length, channels, states, device)
    expected: dict[str, list[Tensor]] = {}
    # The reference first: the others' errors are measured against it.
    for name in sorted(found, key=lambda name: name != "ours: reference"):
        candidate, state_bytes = found[name], length * channels * states * 4
        for kind, held in ((FORWARD, candidate.held), (TRAINING, candidate.held_in_training)):
            row: dict[str, Any] = {"length": length, "scan": name, "kind": kind}
            if held * state_bytes > 0.6 * memory_here(device):
                row["skipped"] = f"needs about {held * state_bytes / 2**30:.0f} GiB"
            elif kind == TRAINING and length > candidate.trains_up_to:
                row["skipped"] = "takes minutes to hours"
            else:
                try:
                    fill_in(row, candidate, inputs, expected, device, seconds)
                except Exception as failure:  # the other rows are still worth having
                    row["failed"] = describe_error(failure)
            print(f"{length:,} steps, {name}, {kind}: {duration(row)}", flush=True)
            yield row


def fill_in(
    row: dict[str, Any],
    candidate: Candidate,
    inputs: list[Tensor],
    expected: dict[str, list[Tensor]],
    device: torch.device,
    seconds: float,
) -> None:
    """Add the memory, error and time of one candidate to its row.

    ``expected`` holds the reference's results by kind, and is filled from the reference's rows.
    """
    given = inputs
    if candidate.time_last:
        given = [t.detach().requires_grad_() for t in swapped(inputs)]
    call = forward if row["kind"] == FORWARD else training
    run = partial(call, candidate.scan, given)
    results: list[list[Tensor]] = []
    begin = time.perf_counter()
    row["peak_bytes"] = peak_memory(lambda: results.append(run()), device)
    first = time.perf_counter() - begin
    made = swapped(results[0]) if candidate.time_last else results[0]
    if row["scan"] == "ours: reference":
        expected[row["kind"]] = made
    row["error"] = error(made, expected.get(row["kind"]))
    if first > LONG:
        row["seconds"] = {"best": first, "median": first, "calls": 1}
    else:
        row["seconds"] = times(run, device, seconds)


def table(rows: list[dict[str, Any]]) -> list[list[str]]:
    """The rows as text, with the time relative to the reference of the same length and kind."""
    base = {
        (row["length"], row["kind"]): row["seconds"]["best"]
        for row in rows
        if row["scan"] == "ours: reference" and "seconds" in row
    }
    lines = []
    for row in rows:
        start = [row["scan"], f"{row['length']:,}", row["kind"]]
        if "seconds" not in row:
            lines.append([*start, duration(row), "-", "-", "-"])
            continue
        best, reference = row["seconds"]["best"], base.get((row["length"], row["kind"]))
        ratio = "-" if reference is None else f"{reference / best:.3g} x"
        worst = "-" if row["error"] is None else f"{row['error']:.1e}"
        lines.append([*start, duration(row), ratio, mebibytes(row["peak_bytes"]), worst])
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--lengths", default=",".join(map(str, LENGTHS)))
    parser.add_argument("--channels", type=int, default=1024)
    parser.add_argument("--states", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=1.0, help="time for one measurement")
    parser.add_argument("--scans", default="", help="names, as in ours: cpu,ours: chunked")
    parser.add_argument("--name", default="scan", help="of the results' file")
    options = parser.parse_args()
    device = torch.device(all_devices(options.device)[0])
    content: dict[str, Any] = {"channels": options.channels, "states": options.states, "rows": []}
    found = candidates(device)
    if options.scans:
        found = {name: found[name] for name in options.scans.split(",")}
    for length in map(int, options.lengths.split(",")):
        sizes = (length, options.channels, options.states)
        for row in measure(found, *sizes, device, options.seconds):
            content["rows"].append(row)
            path = save(options.name, device, content)
    columns = ["scan", "steps", "what", "time", "x reference", "peak memory", "error"]
    show(
        f"Selective scan, {options.channels} channels, {options.states} states",
        columns,
        table(content["rows"]),
    )
    print(path)


if __name__ == "__main__":
    main()
