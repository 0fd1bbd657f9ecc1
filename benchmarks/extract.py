"""Extraction against its parts and against the arrangement of the published scripts.

    python -m benchmarks.extract VIDEO [--backbone NAME] [--quick] [--clips] [--hour]

In one run, round after round: (a) decoding alone, (b) the forward pass alone on frames that lie in
memory, each in the best setting found, (c) frames to JPEG files and then one PIL image a forward
pass, and the whole `mstemba.extract`. CLIP runs with random weights, which cost the same.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import videos
from benchmarks.common import mebibytes, save, show
from mstemba.errors import DecodeError, MstembaError
from mstemba.extractors import registry, torchvision_ops
from mstemba.pipeline.caching.keys import file_sha256
from mstemba.pipeline.decode.reader import decode
from mstemba.pipeline.decode.request import DecodeReport, DecodeRequest
from mstemba.pipeline.decode.worker import DecodePool
from mstemba.pipeline.devices import all_devices, cores, fast_precision
from mstemba.pipeline.extract.forward import batch_size
from mstemba.pipeline.extract.local_engine import decoders
from mstemba.pipeline.extract.stage import extract
from mstemba.pipeline.options import FeatureOptions, RunOptions
from mstemba.pipeline.progress import Event
from mstemba.records import Frames

# Enough for a rate, and not the whole of a slow arrangement.
JPEG_FRAMES = 300
FORWARD_SECONDS = 3.0


def main() -> None:
    arguments = _arguments()
    device = all_devices(arguments.device)[0]
    precision = arguments.precision or fast_precision(device)
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as folder:
        scratch = Path(folder)
        weights = arguments.weights
        if arguments.backbone == "clip" and weights is None:
            weights = str(_random_clip(arguments.model, scratch))
        backbone = registry.resolve(arguments.backbone, arguments.model, weights, file_sha256)
        options = FeatureOptions(backbone.name, backbone.model, weights, precision=precision)
        here = RunOptions(device=arguments.device)
        bench = Bench(arguments.video, backbone, options, here, device, scratch, arguments.quick)
        result = bench.rounds(arguments.rounds, arguments.copies)
        if arguments.clips:
            result["short_clips"] = bench.short_clips()
        if arguments.hour:
            result["memory"] = bench.memory()
    path = save(f"extract-{backbone.name}", torch.device(device), result)
    print(f"written: {path}")


class Bench:
    """One backbone on one machine."""

    def __init__(
        self,
        video: Path,
        backbone: registry.ResolvedBackbone,
        options: FeatureOptions,
        here: RunOptions,
        device: str,
        scratch: Path,
        quick: bool,
    ) -> None:
        self.video, self.backbone, self.options, self.here = video, backbone, options, here
        self.device, self.scratch = device, scratch
        self.on_cpu = device == "cpu"
        self.quick = quick
        self.jpeg_frames = JPEG_FRAMES // 3 if quick else JPEG_FRAMES
        self.forward_seconds = FORWARD_SECONDS / 3 if quick else FORWARD_SECONDS

    def rounds(self, count: int, copies: int) -> dict[str, Any]:
        """Everything once a round, so that what else the machine does hits all of it alike."""
        files = [self.video, *self._copies(copies - 1)]
        decoding = self._best_decoding(files)
        forward = self._best_forward()
        print(f"best settings: decoding {decoding}, forward {forward}")
        rows = []
        for number in range(count):
            row = {
                "decode": self.decode_rate(files, **decoding),
                "forward": self.forward_rate(**forward),
                "whole": self.whole_rate(files, self.options),
                "steady": self.steady_rate,
                "jpeg": self.jpeg_rate(),
            }
            alone = 1 / row["decode"] + 1 / row["forward"]
            row["wall_over_sum"] = 1 / row["whole"] / alone
            row["over_slower_part"] = row["whole"] / min(row["decode"], row["forward"])
            row["over_jpeg"] = row["whole"] / row["jpeg"]
            rows.append(row)
            print(f"round {number + 1}: " + ", ".join(f"{k} {v:.3g}" for k, v in row.items()))
        medians = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
        limit = "decoding" if medians["decode"] < medians["forward"] else "the forward pass"
        self._show(medians, limit)
        return {
            "video": self.video.name,
            "backbone": self.backbone.name,
            "model": self.backbone.model,
            "precision": self.options.precision,
            "files": len(files),
            "decoding": decoding,
            "forward": forward,
            "limited_by": limit,
            "median": medians,
            "rounds": rows,
        }

    def _show(self, medians: dict[str, float], limit: str) -> None:
        name = f"{self.backbone.name} {self.backbone.model}, {self.options.precision}"
        show(
            f"frames a second, {name}",
            ["part", "frames/s"],
            [
                ["(a) decoding alone", f"{medians['decode']:.0f}"],
                ["(b) forward pass alone", f"{medians['forward']:.0f}"],
                ["(c) JPEG files, one image a pass", f"{medians['jpeg']:.0f}"],
                ["mstemba.extract", f"{medians['whole']:.0f}"],
                ["from its first batch to its last", f"{medians['steady']:.0f}"],
                ["wall time / (a + b)", f"{medians['wall_over_sum']:.3f}"],
                ["of the slower of (a) and (b)", f"{medians['over_slower_part']:.3f}"],
                ["times (c)", f"{medians['over_jpeg']:.2f}"],
                ["limited by", limit],
            ],
        )

    # (a)

    def decode_rate(self, files: list[Path], how: str, decoder: str, workers: int) -> float:
        """Frames a second of decoding alone, in this process or in decoder processes."""
        about = self.backbone.spec
        requests = [
            DecodeRequest(file, about.input_size, about.short_side, decoder=decoder)
            for file in files
        ]
        begin = time.perf_counter()
        if how == "here":
            events: Iterator[Any] = (event for r in requests for event in decode(r))
        else:
            events = _decode_in_processes(requests, workers)
        frames = sum(len(event.times) for event in events if isinstance(event, Frames))
        return frames / (time.perf_counter() - begin)

    def _best_decoding(self, files: list[Path]) -> dict[str, Any]:
        most = decoders(cores(), None if self.on_cpu else torch.cuda.device_count())
        if self.quick:
            return {"how": "processes", "decoder": "auto", "workers": min(most, len(files))}
        settings = [{"how": "here", "decoder": d, "workers": 1} for d in ("decord", "av")]
        settings += [
            {"how": "processes", "decoder": "auto", "workers": workers}
            for workers in {1, most, cores()}
            if workers <= len(files)
        ]
        return _best(settings, lambda setting: self.decode_rate(files, **setting))

    # (b)

    def forward_rate(self, batch: int, workers: int, threads: int) -> float:
        """Frames a second of passes side by side, over frames that lie in memory."""
        encoder = self.encoder
        about = self.backbone.spec
        length = 1 if about.kind == "image" else about.window
        shape = (batch, length, about.input_size, about.input_size, 3)
        frames = torch.randint(0, 256, shape, dtype=torch.uint8).to(self.device)
        ready, counts = threading.Barrier(workers), [0] * workers
        took = [0.0] * workers

        def work(number: int) -> None:
            if self.on_cpu:
                torch.set_num_threads(threads)
            stream = None if self.on_cpu else torch.cuda.Stream(self.device)
            with torch.cuda.stream(stream):
                encoder(frames)
                ready.wait()
                begin = time.perf_counter()
                while (passed := time.perf_counter() - begin) < self.forward_seconds:
                    encoder(frames)
                    counts[number] += batch * length
                took[number] = passed

        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(work, range(workers)))
        return sum(c / t for c, t in zip(counts, took, strict=True))

    @property
    def encoder(self) -> Any:
        if not hasattr(self, "_encoder"):
            self._encoder = self.backbone.load(self.device, self.options.precision)
        return self._encoder

    def _best_forward(self) -> dict[str, Any]:
        default = batch_size(self.backbone, None, self.backbone.spec.window, self.on_cpu)
        if self.quick:
            workers, threads = (1, cores()) if self.on_cpu else (2, 1)
            return {"batch": default, "workers": workers, "threads": threads}
        sizes = sorted({max(1, default // 2), default, 2 * default, 4 * default})
        arrangements = [(1, cores()), (cores(), 1)] if self.on_cpu else [(1, 1), (2, 1)]
        settings = [
            {"batch": size, "workers": workers, "threads": threads}
            for size in sizes
            for workers, threads in arrangements
        ]
        return _best(settings, lambda setting: self.forward_rate(**setting))

    # (c)

    def jpeg_rate(self) -> float:
        """Frames a second of the published scripts' way, over the first frames of the video."""
        torchvision_ops.ensure()
        from PIL import Image
        from torchvision import transforms

        about, network = self.backbone.spec, self.encoder_one
        resize = transforms.Compose(
            [transforms.Resize(about.short_side), transforms.CenterCrop(about.input_size)]
        )
        length = 1 if about.kind == "image" else about.window
        folder = self.scratch / "jpeg"
        folder.mkdir()
        begin = time.perf_counter()
        _frames_to_jpeg(self.video, folder, self.jpeg_frames)
        names, waiting = sorted(folder.iterdir()), []
        for name in names:
            waiting.append(np.asarray(resize(Image.open(name).convert("RGB"))))
            if len(waiting) == length:
                network(np.stack(waiting)[None])
                waiting = []
        seconds = time.perf_counter() - begin
        shutil.rmtree(folder)
        return len(names) / seconds

    @property
    def encoder_one(self) -> Any:
        """The network as those scripts run it: float32, and all threads for one image."""
        if not hasattr(self, "_encoder_one"):
            self._encoder_one = self.backbone.load(self.device, "float32")
        return self._encoder_one

    # The whole

    def whole_rate(self, files: list[Path], options: FeatureOptions) -> float:
        """Frames a second of `mstemba.extract`, loading of the backbone and all.

        Sets `steady_rate` to the rate between its first batch and its last.
        """
        store = self.scratch / "store.zarr"
        batches: list[tuple[float, int]] = []

        def on_event(event: Event) -> None:
            if event.count:
                batches.append((time.perf_counter(), event.count))

        begin = time.perf_counter()
        result = extract(files, options, self.here, store=store, on_event=on_event)
        seconds = time.perf_counter() - begin
        assert not result.failed, result.failed
        shutil.rmtree(store)
        (first, before), (last, count) = batches[0], batches[-1]
        self.steady_rate = (count - before) / (last - first) if last > first else math.nan
        return result.frames / seconds

    def _copies(self, count: int) -> list[Path]:
        found = []
        for number in range(count):
            copy = self.scratch / f"copy{number:03d}{self.video.suffix}"
            shutil.copyfile(self.video, copy)
            found.append(copy)
        return found

    def short_clips(self) -> dict[str, Any]:
        """200 clips of 3 s against one clip of 600 s."""
        folder = self.scratch / "clips"
        folder.mkdir()
        long = videos.looped(self.video, self.scratch / "long.mp4", 600)
        clips = videos.cut(self.video, folder, count=200, seconds=3)
        rates = {"one": [], "many": []}
        for _ in range(2):
            rates["one"].append(self.whole_rate([long], self.options))
            rates["many"].append(self.whole_rate(clips, self.options))
        one, many = statistics.median(rates["one"]), statistics.median(rates["many"])
        print(f"200 x 3 s: {many:.0f} frames/s, 1 x 600 s: {one:.0f} frames/s: {many / one:.3f}")
        return {"one_600s": one, "200_of_3s": many, "ratio": many / one, **rates}

    def memory(self) -> dict[str, Any]:
        """Peak memory of whole processes over the first minute and over an hour."""
        peaks = {}
        for name, seconds in (("minute", 60), ("hour", 3600)):
            video = videos.looped(self.video, self.scratch / f"{name}.mp4", seconds)
            peaks[name] = sum(
                peaks_of_extraction(video, self.options, self.here.device, self.scratch / "m.zarr")
            )
            shutil.rmtree(self.scratch / "m.zarr")
        ratio = peaks["hour"] / peaks["minute"]
        print(
            f"peak memory, decoder included: {mebibytes(peaks['minute'])} for a minute, "
            f"{mebibytes(peaks['hour'])} for an hour: {ratio:.3f}"
        )
        return {**peaks, "ratio": ratio}


def _best(
    settings: list[dict[str, Any]], rate: Callable[[dict[str, Any]], float]
) -> dict[str, Any]:
    """Return the fastest setting of those that run on this machine."""
    rates = []
    for setting in settings:
        try:
            rates.append(rate(setting))
            print(f"{setting}: {rates[-1]:.1f} frames/s")
        except MstembaError as error:  # decord is not installed, for example
            rates.append(-math.inf)
            print(f"{setting}: {error}")
    return settings[int(np.argmax(rates))]


def _frames_to_jpeg(video: Path, folder: Path, count: int) -> None:
    """Write the first frames as JPEG files, by ffmpeg or, where it is missing, by PyAV."""
    program = shutil.which("ffmpeg")
    if program is None:
        print("(c): ffmpeg is not installed, so PyAV writes the JPEG files")
        return videos.to_jpeg(video, folder, count)
    command = [program, "-loglevel", "error", "-i", str(video), "-frames:v", str(count)]
    subprocess.run([*command, "-q:v", "2", str(folder / "%06d.jpg")], check=True)


def _random_clip(model: str | None, folder: Path) -> Path:
    torchvision_ops.ensure()
    import open_clip

    file = folder / "random-clip.pt"
    torch.save(open_clip.create_model(model or "ViT-B-32-quickgelu").state_dict(), file)
    return file


def _decode_in_processes(requests: list[DecodeRequest], workers: int) -> Iterator[Any]:
    """The events of all videos, as a pool of decoder processes gives them."""
    waiting, left = list(reversed(requests)), len(requests)
    with DecodePool[int](workers) as pool:
        while left:
            while waiting and pool.room:
                pool.submit(len(waiting), waiting.pop())
            _, event = pool.next_event()
            left -= isinstance(event, (DecodeReport, DecodeError))
            yield event


def peaks_of_extraction(
    video: Path, options: FeatureOptions, device: str, store: Path
) -> tuple[int, int]:
    """Bytes: the peak of the command, and that of its decoder process (Linux)."""
    command = [sys.executable, "-m", "mstemba", "extract", str(video), "--store", str(store)]
    for name in (
        "backbone",
        "model",
        "weights",
        "precision",
        "frame_step",
        "window",
        "stride",
    ):
        value = getattr(options, name)
        command += [f"--{name.replace('_', '-')}", str(value)] if value else []
    command += ["--device", device, "--quiet"]
    process = subprocess.Popen(command, start_new_session=True)
    peaks: dict[str, int] = {}
    while process.poll() is None:
        for pid in _session(process.pid):
            status = Path(f"/proc/{pid}/status").read_text() if _alive(pid) else ""
            sizes = dict(re.findall(r"^(\w+):\s+(\d+) kB", status, re.MULTILINE))
            if pid == str(process.pid) and sizes:
                peaks[pid] = 1024 * int(sizes["VmHWM"])
            elif sizes:  # what it shares with the command is counted there
                own = 1024 * (int(sizes["VmRSS"]) - int(sizes["RssShmem"]))
                peaks[pid] = max(peaks.get(pid, 0), own)
        time.sleep(0.05)
    if process.returncode:
        sys.exit(f"failed: {' '.join(command)}")
    command_peak = peaks.pop(str(process.pid))
    return command_peak, sum(peaks.values())


def _alive(pid: str) -> bool:
    return os.path.exists(f"/proc/{pid}/status")


def _session(leader: int) -> list[str]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue  # it has ended meanwhile
        if int(fields[3]) == leader:
            found.append(folder.name)
    return found


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("video", type=Path)
    parser.add_argument("--backbone", default="efficientnet-lite0")
    parser.add_argument("--model")
    parser.add_argument("--weights")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", help="[default: what the device has instructions for]")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--copies", type=int, default=1, help="videos to extract at once")
    parser.add_argument(
        "--quick", action="store_true", help="search no settings, and measure for a shorter time"
    )
    parser.add_argument(
        "--clips", action="store_true", help="200 clips of 3 s against one of 600 s"
    )
    parser.add_argument("--hour", action="store_true", help="peak memory of a minute and an hour")
    parser.add_argument("--scratch", type=Path, help="where temporary files go")
    return parser.parse_args()


if __name__ == "__main__":
    main()
