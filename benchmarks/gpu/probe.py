"""Measure parts of the GPU code: kernels, networks, launches and the limits of the card.

    python benchmarks/gpu/probe.py RESULT.json PART...

Each part prints what it found and adds it to RESULT.json; a part that fails says why and stops
nothing. Times called `gpu` are of the GPU alone, medians of replayed CUDA graphs where a graph can
be recorded; `host` is how long a call keeps the CPU busy; `wall` is both.
"""

from __future__ import annotations

import importlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mstemba.extractors import torchvision_ops

CHANNELS, STATES = 1024, 16
Call = Callable[[], Any]
Found = dict[str, Any]


def gpu_ms(call: Call, graph: bool = True, repeats: int = 15) -> float:
    """Return the median milliseconds that the GPU is busy with one call."""
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    if graph:
        recorded = torch.cuda.CUDAGraph()
        with torch.cuda.graph(recorded):
            call()
        call = recorded.replay
    taken = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        taken.append(begin.elapsed_time(end))
    return statistics.median(taken)


def host_us(call: Call, repeats: int = 30) -> float:
    """Return the microseconds that one call keeps the CPU, nothing waited for."""
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(repeats):
        call()
    taken = time.perf_counter() - begin
    torch.cuda.synchronize()
    return 1e6 * taken / repeats


def wall_ms(call: Call, repeats: int = 15) -> float:
    """Return the median milliseconds from a call to the end of its work on the GPU."""
    taken = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        call()
        torch.cuda.synchronize()
        taken.append(1e3 * (time.perf_counter() - begin))
    return statistics.median(taken)


def profiled(call: Call) -> Found:
    """Return what one call launches, where it waits, and for how long the GPU is busy."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        call()
        torch.cuda.synchronize()
    events = profiler.key_averages()
    kernels = [e for e in events if e.self_device_time_total > 0 and e.self_cpu_time_total == 0]
    kernels.sort(key=lambda e: -e.self_device_time_total)

    def count(*words: str) -> int:
        return sum(e.count for e in events if any(word in e.key for word in words))

    return {
        "busy_ms": sum(e.self_device_time_total for e in kernels) / 1e3,
        "launches": count("LaunchKernel"),
        "waits": count("StreamSynchronize", "EventSynchronize"),
        "longest": {e.key[:70]: [e.count, e.self_device_time_total / 1e3] for e in kernels[:8]},
    }


def versions() -> Found:
    """Name the versions of what is installed."""
    torchvision_ops.ensure()  # before open_clip: torchvision may be of another build than torch
    found = {"python": sys.version.split()[0], "torch": torch.__version__}
    for name in ("triton", "numba", "av", "zarr", "open_clip", "mamba_ssm"):
        try:
            found[name] = getattr(importlib.import_module(name), "__version__", "installed")
        except Exception as error:
            found[name] = f"{type(error).__name__}"
    found["gpu"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    print("  " + ", ".join(f"{name} {version}" for name, version in found.items()))
    return found


def ceilings() -> Found:
    """Measure what the card can do: copies, matrix products, transfers."""
    a, b = torch.randn(2, 2**28, device="cuda")
    found = {"copy_GBps": 2 * a.nbytes / gpu_ms(lambda: a.copy_(b)) / 1e6}
    for dtype in (torch.bfloat16, torch.float32):
        x = torch.randn(8192, 8192, device="cuda", dtype=dtype)
        taken = gpu_ms(lambda x=x: x @ x)
        found[f"product_{str(dtype).removeprefix('torch.')}_TFLOPs"] = 2 * 8192**3 / taken / 1e9
    frames = torch.zeros(64 * 224 * 224 * 3, dtype=torch.uint8)
    for name, source in (("pageable", frames), ("pinned", frames.pin_memory())):
        taken = gpu_ms(lambda s=source: s.to("cuda", non_blocking=True), graph=False)
        found[f"to_gpu_{name}_GBps"] = frames.numel() / taken / 1e6
    return found


def inputs(length: int, dtype: torch.dtype) -> list[Tensor]:
    """Return u, delta, A, B, C, D, z and bias of one sequence, the signals in `dtype`."""
    from benchmarks.scan import arguments

    made = arguments(length, CHANNELS, STATES, torch.device("cuda"))
    return [t.detach().to(dtype if i in (0, 1, 3, 4, 6) else t.dtype) for i, t in enumerate(made)]


def both_ways(scan: Callable[..., Tensor], tensors: list[Tensor]) -> tuple[float, float]:
    """Return the milliseconds of a forward pass, and of one with its backward pass."""
    with torch.no_grad():
        forward = gpu_ms(lambda: scan(*tensors))
    learning = [t.detach().requires_grad_() for t in tensors]
    step = gpu_ms(lambda: torch.autograd.grad(scan(*learning).sum(), learning), graph=False)
    return forward, step


def scans() -> Found:
    """Time our scans and mamba-ssm's, against the bytes that must move."""
    from benchmarks.scan import candidates, swapped

    wanted = ("ours: triton", "ours: cuda", "mamba-ssm kernel")
    found = {}
    for name, candidate in candidates(torch.device("cuda")).items():
        if name not in wanted:
            continue
        for length in (2500, 65_536, 131_072):
            for dtype in (torch.float32, torch.bfloat16):
                given = inputs(length, dtype)
                floor = 4 * given[0].nbytes / 3e9  # at 3 TB/s: u, delta and z read, y written
                tensors = swapped(given) if candidate.time_last else given
                forward, step = both_ways(candidate.scan, tensors)
                with torch.no_grad():
                    host = host_us(lambda c=candidate, t=tensors: c.scan(*t))
                key = f"{length} {str(dtype).removeprefix('torch.')} {name}"
                found[key] = {"gpu": forward, "step": step, "host_us": host, "floor": floor}
                print(
                    f"  {key}: forward {forward:.3f} ms ({forward / floor:.1f} x its bytes), "
                    f"with backward {step:.3f} ms, host {host:.0f} us",
                    flush=True,
                )
    if not found:
        raise RuntimeError("no scan runs on a GPU here")
    return found


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


def networks() -> Found:
    """Time forward and training step of 2,500 rows, against how long the GPU is busy."""
    from mstemba.model.architectures import build, make_config
    from mstemba.model.losses import detection_loss

    found = {}
    for arch in ("mstemba", "mstemba-v3"):
        network = build(make_config(arch, CHANNELS, 51)).cuda()
        network.set_scan_backend("triton")
        optimizer = torch.optim.AdamW(network.parameters(), fused=True)
        x = torch.randn(1, 2500, CHANNELS, device="cuda")
        mask = torch.ones(1, 2500, dtype=torch.bool, device="cuda")
        labels = (torch.rand(1, 2500, 51, device="cuda") < 0.1).float()

        def forward(network: Any = network, x: Tensor = x) -> None:
            with torch.no_grad():
                network(x)

        def step(
            network: Any = network,
            batch: tuple[Tensor, Tensor, Tensor] = (x, labels, mask),
            optimizer: Any = optimizer,
        ) -> None:
            features, labels, mask = batch
            with torch.autocast("cuda", torch.bfloat16):
                output = network(features, mask)
            detection_loss(output, labels, mask).total.backward()
            optimizer.step()
            optimizer.zero_grad()

        for name, call in (("forward", forward), ("training step, bf16", step)):
            for _ in range(3):
                call()
            row = {"wall_ms": wall_ms(call), **profiled(call)}
            found[f"{arch} {name}"] = row
            print(
                f"  {arch} {name}: {row['wall_ms']:.2f} ms, GPU busy {row['busy_ms']:.2f} ms, "
                f"{row['launches']} launches, {row['waits']} waits",
                flush=True,
            )
    return found


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


def clip() -> Found:
    """Time the default CLIP model with random weights, and the share of its activation."""
    torchvision_ops.ensure()
    import open_clip

    from mstemba.extractors.feature_extractor import FeatureExtractor

    with torch.device("cuda"):
        visual = open_clip.create_model("ViT-L-14-quickgelu").visual
    extractor = FeatureExtractor(
        visual, type(visual).__call__, visual.image_mean, visual.image_std, "cuda", "bfloat16"
    )
    found: Found = {}
    for activation in ("QuickGELU", "SiLU"):
        if activation == "SiLU":  # only the time is right; the features would need other weights
            for block in visual.transformer.resblocks:
                block.mlp.gelu = nn.SiLU()
        for batch in (64, 128, 256):
            shape = (batch, 1, 224, 224, 3)
            frames = torch.randint(0, 256, shape, dtype=torch.uint8).pin_memory()
            taken = wall_ms(lambda f=frames: extractor(f), 8)
            found[f"{activation} {batch}"] = 1e3 * batch / taken
    found["profile of 256 with SiLU"] = profiled(lambda: extractor(frames))
    print("  " + ", ".join(f"{k}: {v:.0f}/s" for k, v in found.items() if isinstance(v, float)))
    return found


TUNING = {
    "FORWARD_REGISTERS": (96, 112),
    "BACKWARD_REGISTERS": (208, 255),
    "PROGRAMS": (1024, 4096),
    "AHEAD": (16,),
}
"""Constants of the scan, and other values to try."""


def tuning() -> Found:
    """Change the scan's constants one at a time: ms of forward, and of forward and backward."""
    from mstemba.model.scan import triton as ours
    from mstemba.model.scan.operations import selective_scan

    changes = [(name, value) for name, values in TUNING.items() for value in values]
    found = {}
    for name, value in [("AHEAD", ours.AHEAD), *changes]:  # the first changes nothing
        before = getattr(ours, name)
        setattr(ours, name, value)
        for length in (2500, 65_536):
            taken = both_ways(
                lambda *t: selective_scan(*t, backend="triton"), inputs(length, torch.float32)
            )
            found[f"{name} {value}, {length}"] = list(taken)
            print(f"  {name} {value}, {length}: {taken[0]:.3f}, {taken[1]:.3f} ms", flush=True)
        setattr(ours, name, before)
    return found


PARTS: dict[str, Callable[[], Found]] = {
    part.__name__: part
    for part in (
        versions, ceilings, tf32, exactness, scans, networks, offsets, clip, tuning,
    )
}  # fmt: skip


def main() -> None:
    """Run the parts named on the command line; exit with 1 if one of them failed."""
    if len(sys.argv) < 3 or set(sys.argv[2:]) - PARTS.keys():
        sys.exit(f"usage: probe.py RESULT.json PART..., parts: {', '.join(PARTS)}")
    file, names = Path(sys.argv[1]), sys.argv[2:]
    results: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    failed = []
    for name in names:
        begin, said = time.perf_counter(), ""
        try:
            results[name] = found = PARTS[name]()
            if all(isinstance(value, float) for value in found.values()):
                said = ", ".join(f"{key} {value:.3g}" for key, value in found.items())
        except Exception as error:  # the other parts are still worth having
            said = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
            results[name] = said
            failed.append(name)
        print(f"{name} ({time.perf_counter() - begin:.0f} s): {said}", flush=True)
        file.write_text(json.dumps(results, indent=1))
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    print(f"{len(names) - len(failed)} of {len(names)} parts done", end="")
    print(f", failed: {', '.join(failed)}" if failed else "")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
