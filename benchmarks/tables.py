"""The tables of README.md, made from the JSON files in results/.

    python -m benchmarks.tables

Rewrites what stands between `<!-- table: NAME -->` and `<!-- end -->`: one table for each machine
that has results, and none if no machine has.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, duration, gpu_time_text, mebibytes, readable

README = Path(__file__).with_name("README.md")
BLOCK = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
Files = dict[str, Any]
"""The content of the JSON files of one machine, by name without the ending."""
Rows = list[list[str]]
"""The cells of a table; the first row names the columns."""
DATASETS = {"tsu": "TSU", "multithumos": "MultiTHUMOS", "charades": "Charades"}


def scan(files: Files, kind: str) -> Rows:
    """Time and peak memory of one call, by scan and length."""
    (content,) = files.values()
    cells: dict[str, dict[int, str]] = {}
    for row in content["rows"]:
        if row["kind"] == kind:
            memory = f", {mebibytes(row['peak_bytes'])}" if "seconds" in row else ""
            cells.setdefault(row["scan"], {})[row["length"]] = duration(row) + memory
    lengths = list(dict.fromkeys(length for found in cells.values() for length in found))
    rows = [[name, *(found.get(n, "-") for n in lengths)] for name, found in cells.items()]
    return [[kind, *(f"{length:,} steps" for length in lengths)], *rows]


def model(files: Files) -> Rows:
    """Forward and training step by network, scan and arrangement, below the floor of both."""
    rows = [["network", "scan", "streams and directions", "forward", "x its matrix products",
             "training step", "x its matrix products"]]  # fmt: skip
    for content in files.values():
        floor = content["floor_seconds"]
        floors = [readable(floor), "1.0", readable(3 * floor), "1.0"]
        rows.append([content["arch"], "none, matrix products alone", "-", *floors])
        ways: dict[tuple[str, str], dict[str, list[str]]] = {}
        for row in content["backends"]:
            cells = [duration(row), f"{row['x_floor']:.1f}" if "x_floor" in row else "-"]
            ways.setdefault((row["scan"], row["arrangement"]), {})[row["kind"]] = cells
        for (name, arrangement), kinds in ways.items():
            step = kinds.get("training step", ["not run", "-"])
            rows.append([content["arch"], name, arrangement, *kinds["forward"], *step])
    return rows


def variants(files: Files) -> Rows:
    """The same forward pass in other ways."""
    found = [(c["arch"], row) for c in files.values() for row in c["variants"]]
    rows = [[arch, row["variant"], duration(row)] for arch, row in found]
    return [["network", "forward", "time"], *rows]


def lengths(files: Files) -> Rows:
    """Scoring by length."""
    rows = [["network", "steps", "time", "x half as long", "peak memory"]]
    for content in files.values():
        for row in content["lengths"]:
            ratio = f"{row['x_half_as_long']:.2f}" if "x_half_as_long" in row else "-"
            taken, memory = duration(row, "median"), mebibytes(row.get("peak_bytes"))
            rows.append([content["arch"], f"{row['steps']:,}", taken, ratio, memory])
    return rows


def training_memory(files: Files) -> Rows:
    """What a training step holds."""
    rows = [["network", "activations kept", "other tensors kept", "peak", "peak / activations"]]
    for content in files.values():
        if held := content.get("training_memory"):
            sizes = [held["activation_bytes"], held["other_kept_bytes"], held["peak_bytes"]]
            ratio = f"{sizes[2] / sizes[0]:.2f}"
            rows.append([content["arch"], *map(mebibytes, sizes), ratio])
    return rows


def extraction(files: Files) -> Rows:
    """Frames a second of the parts and of the whole, a column for each backbone."""
    names = ["frames/s", "(a) decoding alone", "(b) forward pass alone",
             "(c) JPEG files, one image a pass", "`mstemba.extract`",
             "from its first batch to its last", "its wall time / that of (a) + (b)", "times (c)",
             "limited by", "200 clips of 3 s / one of 600 s", "peak memory of a minute",
             "peak memory of an hour"]  # fmt: skip
    columns = []
    for content in files.values():
        model = content["model"] if content["model"] != content["backbone"] else ""
        median, ratios = content["median"], [row["wall_over_sum"] for row in content["rounds"]]
        clips, memory = content.get("short_clips"), content.get("memory", {})
        columns.append([
            ", ".join([f"{content['backbone']} {model}".strip(), content["precision"]]),
            *(f"{median[part]:.0f}" for part in ("decode", "forward", "jpeg", "whole", "steady")),
            f"{median['wall_over_sum']:.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
            f"{median['over_jpeg']:.1f}",
            content["limited_by"],
            f"{clips['ratio']:.2f}" if clips else "-",
            *(mebibytes(memory.get(length)) for length in ("minute", "hour")),
        ])  # fmt: skip
    return [list(row) for row in zip(names, *columns, strict=True)]


def labels(files: Files) -> Rows:
    """Building labels, next to a loop."""
    (content,) = files.values()
    rows = [[f"{content['rows']:,} rows", "fastest", "median", "times the loop", "by medians"]]
    for name, taken in content["seconds"].items():
        ratios = [f"{content['ratio'][name][how]:.0f}" for how in ("fastest", "median")]
        rows.append([name, readable(taken["fastest"]), readable(taken["median"]), *ratios])
    return rows


def metrics(files: Files) -> Rows:
    """The measures one by one, and all that are per frame together."""
    (content,) = files.values()
    rows = [["measure", "fastest", "median"]]
    for group, measures in content["seconds"].items():
        for name, taken in measures.items():
            rows.append([f"{group}: {name}", readable(taken["best"]), readable(taken["median"])])
    together = readable(content["per_frame_together"])
    return [*rows, ["per frame: all of these, once", together, "-"]]


def export(files: Files) -> Rows:
    """The command by format and number of rows."""
    (content,) = files.values()
    sizes = [part for name, part in content.items() if name.startswith("stride")]
    rows = [["formats", *(f"{part['rows']:,} rows" for part in sizes)]]
    for name in sizes[0]["formats"]:
        label = name.replace(",", ", ") if name.count(",") < 4 else f"all {name.count(',') + 1}"
        rows.append([label, *(readable(part["formats"][name]["median"]) for part in sizes)])
    return rows


def page(files: Files) -> Rows:
    """The page by its scores."""
    (content,) = files.values()
    rows = [["scores", "segments", "page", "written in", "slider, median", "slider, slowest"]]
    for name, found in content["pages"].items():
        slider = found.get("slider")
        seconds = [statistics.median(slider), max(slider)] if slider else [None, None]
        sizes = [f"{found['segments']:,}", f"{found['bytes'] / 1e6:.1f} MB"]
        rows.append([name, *sizes, readable(found["write"]), *map(readable, seconds)])
    return rows


def learning(files: Files) -> Rows:
    """mAP and seconds of training by network, dataset and budget."""
    found = [(name.split("-")[1], content) for name, content in files.items()]
    found.sort(key=lambda one: (list(DATASETS).index(one[0]), one[1]["steps"]))
    columns = [f"{DATASETS[dataset]}, {content['steps']:,} steps" for dataset, content in found]
    rows = [["network", "parameters", *columns]]
    for name in dict.fromkeys(name for _, content in found for name in content["results"]):
        results = [content["results"].get(name) for _, content in found]
        parameters = max(one["parameters"] for one in results if one)
        rows.append([name, f"{parameters / 1e6:.2f} M", *map(_map_and_seconds, results)])
    return rows


def _map_and_seconds(found: dict[str, Any] | None) -> str:
    if found is None:
        return "-"
    spread = " (one seed)" if found["map_std"] is None else f" ± {found['map_std']:.1f}"
    return f"{found['map_mean']:.1f}{spread}, {found['seconds']:.0f} s"


def probe(files: Files) -> Rows:
    """The single numbers of the GPU probe."""
    (content,) = files.values()
    parts = [(name, part) for name, part in content.items() if name != "machine"]
    figures = [(name, what, value) for name, part in parts for what, value in part.items()]
    rows = [[n, what, f"{value:.4g}"] for n, what, value in figures if isinstance(value, float)]
    return [["part", "measured", "figure"], *rows]


def probe_scans(files: Files) -> Rows:
    """Scans on the GPU alone, and how long launching one keeps the CPU."""
    (content,) = files.values()
    rows = [["steps, type, scan", "forward", "with backward", "its bytes at 3 TB/s", "CPU"]]
    for name, found in content.get("scans", {}).items():
        both = [gpu_time_text(found["forward"]), gpu_time_text(found["with_backward"])]
        rows.append([name, *both, readable(found["floor_seconds"]), readable(found["cpu_seconds"])])
    return rows


def probe_networks(files: Files) -> Rows:
    """A forward pass and a training step of 2,500 steps: time, launches and waits."""
    (content,) = files.values()
    rows = [["network, what", "time", "its kernels", "as a CUDA graph", "launches", "waits", "at"]]
    for name, found in content.get("networks", {}).items():
        seconds = [readable(found["seconds"]), readable(found["busy_seconds"])]
        places = ", ".join(f"{place} x {count}" for place, count in found["waits_at"].items())
        counts = [str(found["launches"]), str(found["waits"]), places or "-"]
        rows.append([name, *seconds, gpu_time_text(found["graph"]), *counts])
    return rows


def busy(files: Files) -> Rows:
    """Median times of a command on an idle machine and next to a busy process."""
    (content,) = files.values()
    cells: dict[tuple[str, str], dict[bool, float]] = {}
    for row in content["rows"]:
        median = statistics.median(row["seconds"])
        cells.setdefault((row["command"], row["spin"]), {})[row["busy"]] = median
    rows = [["command", "spin", "idle", "next to a busy process", "x idle"]]
    for names, found in cells.items():
        times = [f"{found[False]:.1f} s", f"{found[True]:.1f} s"]
        rows.append([*names, *times, f"{found[True] / found[False]:.1f}"])
    return rows


def timing(files: Files) -> Rows:
    """Median onset and offset errors in rows, by scores, labels and edges."""
    (content,) = files.values()
    spans = {"all": "all", "short": "below 2 rows", "medium": "2 to 8 rows", "long": "longer"}
    rows = [["scores", "labels", "edges", "matched", *spans.values(), "late by"]]
    for scores, rules in content["results"].items():
        for rule, kinds in rules.items():
            for edges, found in kinds.items():
                errors = [_onset_and_offset(found[span], "median_absolute_rows") for span in spans]
                late = _onset_and_offset(found["all"], "median_rows", "+")
                matched = f"{found['all']['matched']} of {found['all']['actions']}"
                rows.append([scores, rule, edges, matched, *errors, late])
    return rows


def _onset_and_offset(found: dict[str, Any], figure: str, sign: str = "") -> str:
    if not found["matched"]:
        return "-"
    return " / ".join(f"{found[edge][figure]:{sign}.2f}" for edge in ("onset", "offset"))


# Files in results/ without the ending, and what makes the rows of them.
TABLES: dict[str, tuple[str, Callable[[Files], Rows]]] = {
    "scan-forward": ("scan-*", partial(scan, kind="forward")),
    "scan-training": ("scan-*", partial(scan, kind="forward+backward")),
    "chunked-forward": ("chunked-*", partial(scan, kind="forward")),
    "chunked-training": ("chunked-*", partial(scan, kind="forward+backward")),
    "busy": ("busy-*", busy),
    "model": ("model-*", model),
    "model-variants": ("model-*", variants),
    "model-lengths": ("model-*", lengths),
    "model-memory": ("model-*", training_memory),
    "extract": ("extract-*", extraction),
    "labels": ("labels-*", labels),
    "metrics": ("metrics-*", metrics),
    "export": ("export-*", export),
    "page": ("page-*", page),
    "learning": ("learning-*", learning),
    "timing": ("timing-*", timing),
    "probe": ("probe", probe),
    "probe-scans": ("probe", probe_scans),
    "probe-networks": ("probe", probe_networks),
}


def tables(name: str, folder: Path) -> str:
    """Return one table in Markdown for each machine that has results."""
    pattern, rows = TABLES[name]
    machines: dict[str, Files] = {}
    links: dict[str, list[str]] = {}
    for file in sorted(folder.glob(f"{pattern}.json")):
        content = json.loads(file.read_text(encoding="utf-8"))
        about = content["machine"]
        place = about.get("gpu") or f"{about['processor']}, {about['cores']} cores"
        place += f", torch {about['torch']}"
        machines.setdefault(place, {})[file.stem] = content
        links.setdefault(place, []).append(f"[{file.stem}](results/{file.name}) {about['date']}")
    text = ""
    for place, files in machines.items():
        columns, *lines = rows(files)
        cells = [columns, ["---"] * len(columns), *lines]
        table = "".join(f"| {' | '.join(line)} |\n" for line in cells)
        text += f"\n{place}: {', '.join(links[place])}\n\n{table}\n" if lines else ""
    return text


def fill(page: str, folder: Path = RESULTS) -> str:
    """Return the page with the tables of the results in a folder."""
    return BLOCK.sub(lambda found: found[1] + tables(found[2], folder) + found[3], page)


if __name__ == "__main__":
    README.write_text(fill(README.read_text(encoding="utf-8")), encoding="utf-8")
