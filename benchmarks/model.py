"""The whole network against its floor, by scan backend, precision and length.

    python -m benchmarks.model [--device cuda] [--arch mstemba-v3] [--features 1024] [--classes 51]

The floor is the time that the network's matrix products alone would take at the rate of one large
product, measured in the same run. Reported:

- ``backends``: forward and training step (forward, a plain sum as the loss, backward) by backend,
  with all streams and directions together, and with one call each, as the authors arrange it;
  others' scans in the place of ours;
- ``variants``: the forward pass in float32, with bfloat16 autocast and with torch.compile;
- ``lengths``: forward by length, what doubling it costs, and the memory of hours and days;
- ``training memory``: the peak of a step against the activations (B, T, ...) that it keeps.

On a GPU every row also has the launches and waits of a call, and the time of replaying it as a CUDA
graph. The file is written after every row.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import (
    duration,
    large_product_rate,
    mebibytes,
    peak_allocated,
    peak_memory,
    readable,
    save,
    show,
    times,
    times_or_failure,
)
from benchmarks.gpu_times import describe_error
from benchmarks.peers import Scan, peers
from mstemba.errors import UsageError
from mstemba.model import mamba, mstemba
from mstemba.model.architectures import build, make_config
from mstemba.model.mstemba import MSTemba
from mstemba.model.scan.backends import choose, list_backends
from mstemba.model.scan.reference import Reverse
from mstemba.pipeline.devices import all_devices

STEPS = 2500
LENGTHS = (625, 1250, 2500, 5000, 10_000, 20_000, 40_000)
LONG = {"an hour": 5_400, "a day": 130_000}
"""Rows of 16 frames at 24 frames a second."""


def forward(network: MSTemba, features: Tensor) -> None:
    with torch.no_grad():
        network(features, checked=True)


def step(network: MSTemba, features: Tensor) -> None:
    network.zero_grad(set_to_none=True)
    output = network(features, checked=True)
    loss = output.logits.sum() + output.consistency + sum(x.sum() for x in output.scale_logits)
    loss.backward()


def product_operations(network: MSTemba, features: Tensor) -> int:
    """Floating-point operations of the matrix products of one forward pass."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(features)
    return counter.get_total_flops()


@contextmanager
def separate_calls() -> Iterator[None]:
    """One block after another and one direction after the other, as the authors arrange it.

    On our layout and with our convolution: what is compared is the number of calls alone.
    """

    def run_blocks(
        blocks: list[mamba.MambaBlock], x: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        masks = [None if mask is None else mask[i : i + 1] for i in range(len(blocks))]
        parts = [blocks_together([b], x[i : i + 1], masks[i]) for i, b in enumerate(blocks)]
        return torch.cat([y for y, _ in parts]), torch.cat([C for _, C in parts])

    def scan(
        weights: Any, x: Tensor, gate: Tensor, absent: Tensor | None, _: Reverse, backend: str
    ) -> tuple[Tensor, Tensor]:
        ways = [
            scan_together(weights.direction(way), x, gate, absent, way, backend)
            for way in (False, True)
        ]
        return ways[0][0] + ways[1][0], torch.cat([ways[0][1], ways[1][1]])

    blocks_together, scan_together, chunk = mamba.run_blocks, mamba._scan, dict(mamba.CHUNK)
    mamba.CHUNK.clear()
    mstemba.run_blocks, mamba._scan = run_blocks, scan
    try:
        yield
    finally:
        mstemba.run_blocks, mamba._scan = blocks_together, scan_together
        mamba.CHUNK.update(chunk)


@contextmanager
def scanned_by(peer: Scan) -> Iterator[None]:
    """Somebody else's scan in the place of ours; it takes one set and one direction at a time."""

    def scan(u, delta, A, B, C, D, z, bias, reverse, **_):  # type: ignore[no-untyped-def]
        signals = [t.flip(2) if reverse else t for t in (u, delta, B, C, z)]
        sets = [
            peer(*(t[g] for t in signals[:2]), A[g], *(t[g] for t in signals[2:4]), D[g],
                 signals[4][g], bias[g])
            for g in range(len(u))
        ]  # fmt: skip
        y = torch.stack(sets)
        return y.flip(2) if reverse else y

    ours, mamba.selective_scan = mamba.selective_scan, scan
    try:
        with separate_calls():
            yield
    finally:
        mamba.selective_scan = ours


def by_backend(network: MSTemba, features: Tensor, floor: float, seconds: float) -> Iterator[dict]:
    """Forward and step with every backend that can run here, ours and others', row by row."""
    calls = (("forward", forward, 1), ("training step", step, 3))
    ways: list[tuple[str, str, Any, Any]] = []
    for backend in list_backends():
        try:
            choose(backend.name, features.device)
        except UsageError as error:  # says what is missing
            print(error)
            continue
        ways.append((backend.name, "together", nullcontext, calls))
        ways.append((backend.name, "separate calls", separate_calls, calls))
    for name, peer in peers().items():
        trains = features.shape[1] <= peer.trains_up_to
        context = partial(scanned_by, peer.scan)
        ways.append((name, "separate calls", context, calls if trains else calls[:1]))
    step(network, features)  # compiles, and warms the process up
    for name, arrangement, context, wanted in ways:
        network.set_scan_backend(name if name in {b.name for b in list_backends()} else "auto")
        for kind, call, products in wanted:
            run = partial(call, network, features)
            with context():
                row = times_or_failure(run, features.device, seconds)
            row = {"scan": name, "arrangement": arrangement, "kind": kind, **row}
            if "seconds" in row:
                row["x_floor"] = row["seconds"]["best"] / (products * floor)
            print(f"{name}, {arrangement}, {kind}: {duration(row)}", flush=True)
            yield row
    network.set_scan_backend("auto")


def variants(
    network: MSTemba, features: Tensor, seconds: float, compiles: bool
) -> Iterator[dict[str, Any]]:
    """Yield a row for each way to run the unchanged network."""
    network.eval()
    device = features.device
    run = partial(forward, network, features)

    def autocast() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            run()

    calls: dict[str, Callable[[], None]] = {"float32": run, "bfloat16 autocast": autocast}
    if compiles:
        calls["torch.compile"] = partial(forward, torch.compile(network), features)
    for name, call in calls.items():
        try:
            call()  # compiles
            row = {"seconds": times(call, device, seconds)}
        except Exception as error:
            row = {"failed": describe_error(error)}
        yield {"variant": name, **row}


def by_length(
    network: MSTemba, features: int, device: torch.device, seconds: float
) -> Iterator[dict[str, Any]]:
    """Forward passes by length, row by row."""
    medians: dict[int, float] = {}
    for length in (*LENGTHS, *LONG.values()):
        x = torch.randn(1, length, features, device=device)
        call = partial(forward, network, x)
        row = {"steps": length, **times_or_failure(call, device, seconds)}
        if "seconds" in row:
            row["peak_bytes"] = peak_memory(call, device)
            medians[length] = row["seconds"]["median"]
            if length // 2 in medians:
                row["x_half_as_long"] = medians[length] / medians[length // 2]
        yield row


def training_memory(network: MSTemba, features: Tensor) -> dict[str, Any]:
    """The peak of a step, by torch's allocator, against the activations that autograd keeps.

    Activations are kept tensors as long as the clip or its streams, each storage once. The states
    that the scan restarts from and the stacked weights are not among them, but in the peak.
    """
    step(network, features)  # the gradients of the weights exist from here on
    parts = {-(-features.shape[1] // k) + extra for k in (1, 2, 3) for extra in (-1, 0, 1)}
    kept: dict[int, tuple[int, bool]] = {}
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            activation = bool(parts.intersection(tensor.shape))
            kept[storage.data_ptr()] = (storage.nbytes(), activation)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = network(features)
    found = {
        "activation_bytes": sum(size for size, activation in kept.values() if activation),
        "other_kept_bytes": sum(size for size, activation in kept.values() if not activation),
    }
    del output
    found["peak_bytes"] = peak_allocated(partial(step, network, features), features.device)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--arch", default="mstemba-v3", choices=("mstemba", "mstemba-v3"))
    parser.add_argument("--features", type=int, default=1024)
    parser.add_argument("--classes", type=int, default=51)
    parser.add_argument("--seconds", type=float, default=3.0, help="time for one measurement")
    parser.add_argument("--compile", action="store_true", help="torch.compile, too")
    options = parser.parse_args()
    device = torch.device(all_devices(options.device)[0])
    torch.manual_seed(0)
    config = make_config(options.arch, options.features, options.classes)
    network = build(config).to(device)
    features = torch.randn(1, STEPS, options.features, device=device)
    rate = large_product_rate(device)
    operations = product_operations(network, features)
    floor = operations / rate
    print(f"{operations / 1e9:.1f} GFLOP in products, {rate / 1e9:.0f} GFLOP/s: {readable(floor)}")
    found = {
        "arch": options.arch,
        "steps": STEPS,
        "features": options.features,
        "classes": options.classes,
        "product_operations": operations,
        "product_rate": rate,
        "floor_seconds": floor,
    }
    parts = {
        "backends": by_backend(network, features, floor, options.seconds),
        "variants": variants(network, features, options.seconds, options.compile),
        "lengths": by_length(network, options.features, device, options.seconds),
    }
    found |= {part: [] for part in parts}  # a file of a run that is stopped has them all
    for part, rows in parts.items():
        for row in rows:
            found[part].append(row)
            save(f"model-{options.arch}", device, found)
    found["training_memory"] = training_memory(network.train(), features)
    report(found)
    print(save(f"model-{options.arch}", device, found))


def report(found: dict[str, Any]) -> None:
    title = f"{found['arch']}, {found['steps']} steps, floor {readable(found['floor_seconds'])}"
    rows = [
        [
            r["scan"],
            r["arrangement"],
            r["kind"],
            duration(r),
            f"{r['x_floor']:.2f}" if "x_floor" in r else "-",
        ]
        for r in found["backends"]
    ]
    show(title, ["scan", "streams and directions", "what", "time", "x floor"], rows)
    show("Forward", ["variant", "time"], [[r["variant"], duration(r)] for r in found["variants"]])
    rows = [
        [
            f"{r['steps']:,}",
            duration(r, "median"),
            f"{r['x_half_as_long']:.2f}" if "x_half_as_long" in r else "-",
            mebibytes(r.get("peak_bytes")),
        ]
        for r in found["lengths"]
    ]
    show("Scoring by length", ["steps", "time", "x half as long", "peak memory"], rows)
    memory = found["training_memory"]
    print(
        f"training step: activations {mebibytes(memory['activation_bytes'])}, other things kept "
        f"{mebibytes(memory['other_kept_bytes'])}, peak {mebibytes(memory['peak_bytes'])} = "
        f"{memory['peak_bytes'] / memory['activation_bytes']:.2f} x the activations"
    )


if __name__ == "__main__":
    main()
