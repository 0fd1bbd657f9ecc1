"""Measure parts of the GPU code: kernels, networks, launches and the limits of the card.

    python benchmarks/gpu/probe.py RESULT.json PART...

Each part prints what it found and adds it to RESULT.json; a part that fails says why and stops
nothing. `python -m benchmarks.tables` makes tables of results/probe.json. Times are medians in
seconds: of the GPU alone by replaying a CUDA graph, or `cpu_seconds`, how long a call keeps the
CPU, or `seconds`, from the call to the end of its work on the GPU.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common import gpu_time_text, machine, readable
from benchmarks.gpu_times import Call, describe_error, event_seconds, gpu_times, profiled
from mstemba.extractors import torchvision_ops

DEVICE, BACKEND = torch.device("cuda"), "triton"
STEPS, LENGTHS = 2500, (2500, 65_536, 131_072)
"""Steps of the networks, and of the scans."""
CHANNELS, STATES = 1024, 16
SCANS = ("ours: triton", "ours: cuda", "mamba-ssm kernel", "ours: chunked")
Found = dict[str, Any]
Rows = Iterator[tuple[str, Any]]
"""Names and what was measured, saved one by one."""


def cpu_seconds(call: Call, repeats: int = 30) -> float:
    """Return the seconds that one call keeps the CPU, nothing waited for."""
    torch.cuda.synchronize()
    begin, calls = time.perf_counter(), 0
    while calls < repeats and time.perf_counter() - begin < 0.5:
        call()
        calls += 1
    taken = time.perf_counter() - begin
    torch.cuda.synchronize()
    return taken / calls


def waits_at(call: Call) -> dict[str, int]:
    """Return the lines of Python at which one call waits for the GPU, and how often."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [w for w in caught if "synchronizing" in str(w.message)]
    return dict(Counter(f"{Path(w.filename).name}:{w.lineno}" for w in waits))


def versions() -> Found:
    """Name the versions of what is installed."""
    torchvision_ops.ensure()  # before open_clip: torchvision may be of another build than torch
    found = {"python": sys.version.split()[0], "torch": torch.__version__}
    for name in ("triton", "numba", "av", "zarr", "open_clip"):
        try:
            found[name] = getattr(importlib.import_module(name), "__version__", "installed")
        except Exception as error:
            found[name] = f"{type(error).__name__}"
    found["mamba-ssm's kernels"] = "built" if find_spec("selective_scan_cuda") else "none"
    found["GPU"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    print("  " + ", ".join(f"{name} {version}" for name, version in found.items()))
    return found


def ceilings() -> Found:
    """Measure what the card can do: copies, matrix products, transfers."""
    a, b = torch.randn(2, 2**28, device="cuda")
    found = {"copy, GB/s": 2 * a.nbytes / gpu_times(lambda: a.copy_(b))["seconds"] / 1e9}
    for dtype in (torch.bfloat16, torch.float32):
        x = torch.randn(8192, 8192, device="cuda", dtype=dtype)
        taken = gpu_times(lambda x=x: x @ x)["seconds"]
        found[f"product in {short(dtype)}, TFLOP/s"] = 2 * 8192**3 / taken / 1e12
    frames = torch.zeros(64 * 224 * 224 * 3, dtype=torch.uint8)
    for name, source in (("pageable", frames), ("pinned", frames.pin_memory())):
        taken = event_seconds(lambda s=source: s.to("cuda", non_blocking=True))
        found[f"{name} memory to the GPU, GB/s"] = frames.numel() / taken / 1e9
    return found


def short(dtype: torch.dtype) -> str:
    """Return the name of a type without `torch.`."""
    return str(dtype).removeprefix("torch.")


def inputs(length: int, dtype: torch.dtype) -> list[Tensor]:
    """Return u, delta, A, B, C, D, z and bias of one sequence, the signals in `dtype`."""
    from benchmarks.scan import arguments

    made = arguments(length, CHANNELS, STATES, DEVICE)
    return [t.detach().to(dtype if i in (0, 1, 3, 4, 6) else t.dtype) for i, t in enumerate(made)]


def both_ways(scan: Callable[..., Tensor], tensors: list[Tensor]) -> tuple[Found, Found]:
    """Return the times of a forward pass, and of one with its backward pass."""
    with torch.no_grad():
        forward = gpu_times(lambda: scan(*tensors))
    learning = [t.detach().requires_grad_() for t in tensors]
    return forward, gpu_times(lambda: torch.autograd.grad(scan(*learning).sum(), learning))


def scans() -> Rows:
    """Time our scans and mamba-ssm's, against the bytes that must move."""
    from benchmarks.scan import candidates, swapped

    found = candidates(DEVICE)
    names = [name for name in SCANS if name in found]
    if not names:
        raise RuntimeError("no scan runs on a GPU here")
    for name in names:
        candidate = found[name]
        for length in LENGTHS:
            for dtype in (torch.float32, torch.bfloat16):
                given = inputs(length, dtype)
                floor = 4 * given[0].nbytes / 3e12  # at 3 TB/s: u, delta and z read, y written
                tensors = swapped(given) if candidate.time_last else given
                forward, both = both_ways(candidate.scan, tensors)
                with torch.no_grad():
                    cpu = cpu_seconds(lambda c=candidate, t=tensors: c.scan(*t))
                key = f"{length:,} {short(dtype)} {name}"
                row = {"forward": forward, "with_backward": both}
                yield key, {**row, "cpu_seconds": cpu, "floor_seconds": floor}
                print(
                    f"  {key}: forward {gpu_time_text(forward)} "
                    f"({forward['seconds'] / floor:.1f} x its bytes), "
                    f"with backward {gpu_time_text(both)}, CPU {readable(cpu)}",
                    flush=True,
                )


def exactness() -> Found:
    """Compare the Triton scan with the reference in float64, on fresh random numbers.

    The worst |ours - reference| / |reference| of the result and of all gradients.
    """
    from mstemba.model.scan.operations import selective_scan

    torch.manual_seed(time.time_ns() % 2**31)
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        signals = [torch.randn(4, 2, 700, n, device="cuda").to(dtype) for n in (200, 200, 16, 16)]
        gate = torch.randn(2, 2, 700, 200, device="cuda").to(dtype)
        A = -torch.rand(4, 200, 16, device="cuda") * 4
        D, bias = torch.randn(2, 4, 200, device="cuda")
        given = [signals[0], signals[1] - 2, A, signals[2], signals[3], D, gate, bias - 2]
        results = []
        for wide, backend in ((None, "triton"), (torch.float64, "reference")):
            tensors = [t.to(wide or t.dtype).requires_grad_() for t in given]
            y = selective_scan(*tensors, "both", backend=backend)
            weights = torch.cos(torch.arange(y.numel(), device="cuda")).view_as(y)
            results.append([y, *torch.autograd.grad((y * weights).sum(), tensors)])
        errors = [float((a.double() - b).norm() / b.norm()) for a, b in zip(*results, strict=True)]
        found[str(dtype)] = max(errors)
    return found


def offsets() -> Found:
    """Scan signals of more than 2^31 numbers, whose end must be that of a short scan."""
    from mstemba.model.scan.operations import selective_scan

    length, tail = 2_200_000, 4096
    A, D, bias = inputs(16, torch.float32)[2], *torch.zeros(2, CHANNELS, device="cuda")

    def signal(width: int) -> Tensor:
        return torch.randn(1, length, width, device="cuda", dtype=torch.bfloat16)

    u, delta, z, B, C = *(signal(CHANNELS) for _ in range(3)), signal(STATES), signal(STATES)
    ends = []
    with torch.no_grad():
        for part in (slice(None), slice(-tail, None)):
            cut = [t[:, part] for t in (u, delta, B, C, z)]
            y = selective_scan(*cut[:2], A, *cut[2:4], D, cut[4], bias, backend="triton")
            ends.append(y[:, -tail // 2 :].float())
    return {"difference": float((ends[0] - ends[1]).norm() / ends[1].norm())}


def networks() -> Rows:
    """Time a forward pass and a training step of one clip, and count launches and waits."""
    from mstemba.model.architectures import build, make_config
    from mstemba.model.losses import BatchTotals, detection_loss

    totals = BatchTotals(clips=1, steps=STEPS, actions=1)
    for arch in ("mstemba", "mstemba-v3"):
        network = build(make_config(arch, CHANNELS, 51)).to(DEVICE)
        network.set_scan_backend(BACKEND)
        # A step can only be recorded with `capturable`; the kernels are the same.
        optimizer = torch.optim.AdamW(network.parameters(), fused=True, capturable=True)
        x = torch.randn(1, STEPS, CHANNELS, device=DEVICE)
        labels = (torch.rand(1, STEPS, 51, device=DEVICE) < 0.1).float()

        def forward(network: Any = network, x: Tensor = x) -> None:
            with torch.no_grad():
                network(x, checked=True)

        def step(
            network: Any = network,
            batch: tuple[Tensor, Tensor] = (x, labels),
            optimizer: Any = optimizer,
        ) -> None:
            features, labels = batch
            with torch.autocast(DEVICE.type, torch.bfloat16):
                output = network(features, checked=True)
            detection_loss(output, labels, totals=totals).total.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

        for name, call in (("forward", forward), ("training step, bf16", step)):
            graph = gpu_times(call)
            row = {"seconds": event_seconds(call), "graph": graph, **profiled(call)}
            row["waits_at"] = waits_at(call)
            yield f"{arch} {name}", row
            print(
                f"  {arch} {name}: {readable(row['seconds'])}, its kernels "
                f"{readable(row['busy_seconds'])}, as a CUDA graph {gpu_time_text(graph)}, "
                f"{row['launches']} launches, {row['waits']} waits {row['waits_at']}",
                flush=True,
            )


def tf32() -> Found:
    """Find the largest error of the v1 golden with cuDNN's TF32, torch's default, and without."""
    from safetensors.torch import load_file

    from mstemba.model.weights import load_model

    data = Path(os.environ.get("MSTEMBA_TEST_DATA", Path(__file__).parents[3] / "shared"))
    golden, found = data / "golden", {}
    weights = golden / "mstemba_v1_tiny_weights.safetensors"
    model = load_model(weights, device="cuda", split="contiguous")
    cases = load_file(golden / "mstemba_v1_tiny_cases.safetensors", device="cuda")
    for allowed in (True, False):
        with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=allowed):
            logits = model(cases["T256.x"].transpose(1, 2)).logits
        found[f"allow_tf32={allowed}"] = float((logits - cases["T256.logits"]).abs().max())
    return found


def clip() -> Rows:
    """Time the default CLIP model with random weights, and the share of its activation."""
    torchvision_ops.ensure()
    import open_clip

    from mstemba.extractors.feature_extractor import FeatureExtractor

    with torch.device("cuda"):
        visual = open_clip.create_model("ViT-L-14-quickgelu").visual
    extractor = FeatureExtractor(
        visual, type(visual).__call__, visual.image_mean, visual.image_std, "cuda", "bfloat16"
    )
    for activation in ("QuickGELU", "SiLU"):
        if activation == "SiLU":  # only the time is right; the features would need other weights
            for block in visual.transformer.resblocks:
                block.mlp.gelu = nn.SiLU()
        for batch in (64, 128, 256):
            shape = (batch, 1, 224, 224, 3)
            frames = torch.randint(0, 256, shape, dtype=torch.uint8).pin_memory()
            taken = event_seconds(lambda f=frames: extractor(f), 8)
            yield f"{activation}, batches of {batch}, frames/s", batch / taken
    yield "profile of 256 with SiLU", profiled(lambda: extractor(frames))


TUNING = {
    "FORWARD_REGISTERS": (96, 112),
    "BACKWARD_REGISTERS": (208, 255),
    "PROGRAMS": (1024, 4096),
}
"""Constants of the scan, and other values to try."""


def tuning() -> Rows:
    """Change the scan's constants one at a time: times of forward, and of forward and backward."""
    from mstemba.model.scan import triton as ours
    from mstemba.model.scan.operations import selective_scan

    changes = [(name, value) for name, values in TUNING.items() for value in values]
    for name, value in [("PROGRAMS", ours.PROGRAMS), *changes]:  # the first changes nothing
        before = getattr(ours, name)
        setattr(ours, name, value)
        for length in (2500, 65_536):
            taken = both_ways(
                lambda *t: selective_scan(*t, backend="triton"), inputs(length, torch.float32)
            )
            yield f"{name} {value}, {length:,}", list(taken)
            print(f"  {name} {value}, {length}: {', '.join(map(gpu_time_text, taken))}", flush=True)
        setattr(ours, name, before)


PARTS: dict[str, Callable[[], Found | Rows]] = {
    part.__name__: part
    for part in (
        versions, ceilings, tf32, exactness, networks, scans, offsets, clip, tuning,
    )
}  # fmt: skip


def main() -> None:
    """Run the parts named on the command line; exit with 1 if one of them failed."""
    if len(sys.argv) < 3 or set(sys.argv[2:]) - PARTS.keys():
        sys.exit(f"usage: probe.py RESULT.json PART..., parts: {', '.join(PARTS)}")
    file, names = Path(sys.argv[1]), sys.argv[2:]
    results: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    results["machine"] = machine(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    failed = results["failed"] = results.get("failed", {})
    for name in names:
        begin, said = time.perf_counter(), ""
        for earlier in (results, failed):
            earlier.pop(name, None)
        found: Found = {}
        try:
            made = PARTS[name]()
            for key, value in made.items() if isinstance(made, dict) else made:
                found[key] = value
                results[name] = found
                file.write_text(json.dumps(results, indent=1))
        except Exception as error:  # the other parts are still worth having
            said = failed[name] = describe_error(error)
        figures = [f"{key} {value:.3g}" for key, value in found.items() if type(value) is float]
        print(f"{name} ({time.perf_counter() - begin:.0f} s): {said or ', '.join(figures)}")
        file.write_text(json.dumps(results, indent=1))
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    lost = [name for name in names if name in failed]
    print(f"{len(names) - len(lost)} of {len(names)} parts done", end="")
    print(f", failed: {', '.join(lost)}" if lost else "", end="")
    print("" if torch.cuda.is_available() else "; torch sees no GPU here")
    sys.exit(bool(lost))


if __name__ == "__main__":
    main()
