"""A small workspace with a file of every kind that a command reads, and what reads it."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mstemba.pipeline.demo import write_video
from tests.cli.conftest import squares

CLASSES = ["moves right", "moves down", "stands"]
VIDEOS = {"v0": "training", "v1": "validation", "v2": "testing"}
FPS, FRAMES, WIDTH = 10, 16, 24
LABELS = {
    "classes": CLASSES,
    "time_unit": "seconds",
    "videos": {
        id: {"subset": subset, "duration": 1.6, "actions": [[0, 0.2, 0.8], [1, 0.5, 1.5]]}
        for id, subset in VIDEOS.items()
    },
}
_FORMAT = {"format": "mstemba-manifest", "version": 1, "dataset": "charades"}
_ROWS = [(id, start, end, label) for id in VIDEOS for start, end, label in
         ((0.2, 0.8, CLASSES[0]), (0.5, 1.5, CLASSES[1]))]  # fmt: skip
_EAF = (
    '<?xml version="1.0" encoding="UTF-8"?>\n<ANNOTATION_DOCUMENT><HEADER><MEDIA_DESCRIPTOR '
    'MEDIA_URL="file:///C:/v/v0.mp4" MIME_TYPE="video/mp4" RELATIVE_MEDIA_URL="./v0.mp4"/></HEADER>'
    '<TIME_ORDER><TIME_SLOT TIME_SLOT_ID="t1" TIME_VALUE="200"/><TIME_SLOT TIME_SLOT_ID="t2" '
    'TIME_VALUE="900"/></TIME_ORDER><TIER TIER_ID="stands"><ANNOTATION><ALIGNABLE_ANNOTATION '
    'ANNOTATION_ID="a1" TIME_SLOT_REF1="t1" TIME_SLOT_REF2="t2"><ANNOTATION_VALUE>moves right'
    "</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION></TIER></ANNOTATION_DOCUMENT>\n"
)
_BORIS = (
    "Observation id,Observation date,Description,Observation duration,Observation type,Source,"
    "Time offset (s),Media duration (s),FPS,Subject,Behavior,Behavioral category,Behavior type,"
    "Time,Media file name,Image index,Image file path,Comment\n"
    "o1,2024-05-01 10:00:00,,30.0,Media file(s),player #1:v/v0.mp4,0.0,1.6,10.0,rat,stands,care,"
    "START,0.2,v/v0.mp4,1,NA,\n"
    "o1,2024-05-01 10:00:00,,30.0,Media file(s),player #1:v/v0.mp4,0.0,1.6,10.0,rat,stands,care,"
    "STOP,0.9,v/v0.mp4,1,NA,\n"
)
_ELAN = (
    '"#file:///C:/v/v0.mp4"\n'
    "stands\t\t00:00:00.200\t0.2\t00:00:00.900\t0.9\t00:00:00.700\t0.7\tmoves right\n"
)
_CHARADES = (
    "id,subject,scene,quality,relevance,verified,script,objects,descriptions,actions,length\n"
    'v0,HR43,Kitchen,6,7,Yes,"A person cooks, and laughs.",stove,Hot.,c092 0.2 0.9,1.6\n'
)

ANNOTATIONS: dict[str, str] = {
    "labels.json": json.dumps(LABELS),
    "videos.json": json.dumps(LABELS["videos"]),
    "activitynet.json": json.dumps({"database": {"v0": {"subset": "training", "duration": 1.6,
        "annotations": [{"label": "stands", "segment": [0.2, 0.9]}]}}}),
    "records.json": json.dumps([dict(zip(("video", "start", "end", "label"), r, strict=True))
        for r in _ROWS]),
    "records.jsonl": "".join(json.dumps(dict(zip(("video", "start", "end", "label"), r,
        strict=True))) + "\n" for r in _ROWS),
    "table.csv": "video,start,end,label\n" + "".join(f"{a},{b},{c},{d}\n" for a, b, c, d in _ROWS),
    "table.tsv": "video\tstart\tend\tlabel\tsubset\tduration\n"
        "v0\t0:00.2\t0,9\tstands\ttrain\t1.6\n",
    "boris.csv": _BORIS,
    "elan.txt": _ELAN,
    "v0.eaf": _EAF,
    "v0.srt": "1\n00:00:00,200 --> 00:00:00,900\nmoves right\nstands\n",
    "v0.vtt": "WEBVTT\n\n00:00.200 --> 00:00.900\nmoves right\n",
    "v0.txt": "0.200000\t0.900000\tstands\n",
    "charades/Charades_v1_train.csv": _CHARADES,
    "tsu/P02/v0.csv": "event,start_frame,end_frame\nWalk,3,9\n",
    "thumos/BaseballPitch.txt": "v0 0.2 0.9\n",
}  # fmt: skip
"""Content by name, in the folder `annotations`."""

EXTRACT = "extract --backbone efficientnet-lite0 --window 4 --stride 4 --device cpu"
LITE_TRAIN = (
    "train --arch linear --epochs 1 --min-steps 4 --max-steps 4 --checkpoint-seconds 0 "
    "--trackers none --device cpu"
)
TRAIN = LITE_TRAIN.replace("linear", "mstemba --width 0.03")
RESUMED = LITE_TRAIN + " --seed 5"
EVALUATE = "evaluate --device cpu"
FORMATS = "json,csv,tsv,eaf,vtt,srt,edl,otio,activitynet,npz,png,html"
DETECT = f"detect videos/v2.mp4 --threshold 0.01 --device cpu --format {FORMATS}"


def init_of(annotations: str, more: str = "") -> str:
    return f"init --videos videos --annotations {annotations} --workspace made {more}"


@dataclass(frozen=True)
class Target:
    """A file of the template, and commands of which each reads it."""

    file: str
    """A pattern below the workspace that one file fits."""
    form: str
    """Its form, which decides how it is damaged; `folder` for a folder."""
    commands: tuple[str, ...]
    weight: float = 1.0
    """How often it is drawn, relative to others. What needs a decoder takes a second."""
    checked: bool = False
    """Whether the content has a checksum: `evaluate` must fail if it has changed."""


def _annotation_targets() -> list[Target]:
    forms = {".json": "json", ".jsonl": "text", ".eaf": "xml"}
    known = {"charades": "--dataset charades", "tsu": "--dataset tsu --time-unit frames",
             "thumos": "--dataset multithumos",
             "videos.json": "--classes annotations/classes.txt"}  # fmt: skip
    targets = []
    for name in ANNOTATIONS:
        first = name.split("/")[0]
        commands = [init_of(f"annotations/{first}", known.get(first, "--json -"))]
        if first not in known:
            commands.append(f"init --annotations annotations/{first} --merge --yes")
        form = forms.get(Path(name).suffix, "text")
        targets.append(Target(f"annotations/{name}", form, tuple(commands), 0.6))
    return targets


_STORE = ("status --json -", EXTRACT, EVALUATE, f"{TRAIN} --seed 3", DETECT)
_NPY = ("import npy", f"{EVALUATE} --features npy --checkpoint runs/npy", "init --annotations "
        "annotations/labels.json --features npy --workspace made",
        f"{LITE_TRAIN} --features npy --seed 3 --output runs/other")  # fmt: skip
_RUN = (f"{EVALUATE} --json -", DETECT, "runs --json -", "status", "report --device cpu", TRAIN)
_RELEASED = (f"{EVALUATE} --released --features npy --manifest charades.json --metrics frame "
             "--checkpoint weights/")  # fmt: skip
_SAVED = ("export --format " + FORMATS, DETECT, "status", "export detections/v2.scores.npz "
          "--format html --embed --threshold 0.01")  # fmt: skip
_DETECTED = (f"{EVALUATE} --predictions detections",)

TARGETS = (
    *_annotation_targets(),
    Target("annotations/classes.txt", "text", (init_of("annotations/videos.json", "--classes "
           "annotations/classes.txt"),), 0.5),
    Target("manifest.json", "json", ("status --json -", EXTRACT, EVALUATE, "report --device cpu",
           "import npy --store features/other.zarr", f"{TRAIN} --seed 3", "export --format html",
           "init --annotations annotations/labels.json --merge --yes", DETECT), 3),
    Target("mstemba.toml", "toml", ("status", EVALUATE, "runs", EXTRACT), 2),
    Target("features/current", "text", ("status", EVALUATE), 0.7),
    Target("runs/current", "text", ("status", EVALUATE, "runs", DETECT), 0.7),
    Target(".cache/fingerprints.json", "json", ("status", EXTRACT, EVALUATE), 1),
    Target("features/eff*/zarr.json", "json", _STORE, 1.5),
    Target("features/eff*/v1/zarr.json", "json", _STORE, 3),
    Target("features/eff*/v1/c/0/0", "bytes", _STORE, 1),
    Target("features/eff*/v2/c/0/0", "bytes", (*_STORE, EVALUATE), 1, checked=True),
    Target("features/eff*/v2", "folder", _STORE, 1),
    Target("features/npy.zarr/zarr.json", "json", ("import npy", "status"), 1),
    Target("features/npy.zarr/v1/zarr.json", "json", ("import npy",
           f"{EVALUATE} --features features/npy.zarr --checkpoint runs/npy"), 2),
    Target("features/eff*/failures.json", "json", (EXTRACT, "status"), 0.5),
    Target("npy/v2.npy", "npy", _NPY, 4),
    Target("npy/v0_timestamps_ms.npy", "npy", _NPY, 1),
    Target("npy", "folder", _NPY, 0.3),
    Target("runs/mstemba-*/done.json", "json", _RUN, 1.5),
    Target("runs/mstemba-*/best/config.json", "json", _RUN, 4),
    Target("runs/mstemba-*/last/config.json", "json", _RUN, 1),
    Target("runs/mstemba-*/best/model.safetensors", "safetensors", (EVALUATE, DETECT), 3,
           checked=True),
    Target("runs/mstemba-*/metrics.jsonl", "text", ("report --device cpu", "runs"), 1.5),
    Target("runs/mstemba-*/best", "folder", _RUN, 1),
    Target("runs/resumed/state.safetensors", "safetensors", (f"{RESUMED} --output runs/resumed",),
           3),
    Target("runs/resumed/metrics.jsonl", "text", (f"{RESUMED} --output runs/resumed",), 1.5),
    Target("runs/resumed/last/config.json", "json", (f"{RESUMED} --output runs/resumed",), 1),
    Target("detections/v2.scores.npz", "npz", _SAVED, 4),
    Target("detections/v2.json", "json", (*_DETECTED, "status", DETECT), 2),
    *(Target(f"detections/v2.{ending}", form, (f"init --annotations detections/v2.{ending} --merge "
      "--yes",), 0.5)
      for ending, form in (("csv", "text"), ("eaf", "xml"), ("srt", "text"), ("vtt", "text"))),
    Target("detections/v2.activitynet.json", "json", (f"{EVALUATE} --predictions "
           "detections/v2.activitynet.json",), 1),
    *(Target(f"predictions/{name}", form, (f"{EVALUATE} --predictions predictions/{name}",
      f"report --predictions predictions/{name} --device cpu"), 1.5)
      for name, form in (("dense.npz", "npz"), ("dense.pkl", "pickle"), ("dense.json", "json"))),
    Target("predictions/segments.json", "json", (f"{EVALUATE} --predictions "
           "predictions/segments.json",), 1.5),
    *(Target(f"weights/{name}", form, (_RELEASED + name,), 1.5)
      for name, form in (("linear.safetensors", "safetensors"), ("linear.pth", "torch"),
                         ("old.pth", "pickle"), ("mstemba.pth", "torch"), ("script.pt", "torch"))),
    *(Target(f"weights/eff.{ending}", form, (f"{EXTRACT} --weights weights/eff.{ending} --store "
      "features/own.zarr",), 0.3)
      for ending, form in (("safetensors", "safetensors"), ("pth", "torch"))),
    *(Target(f"videos/{name}", "bytes", (f"extract videos/{name} --backbone efficientnet-lite0 "
      "--window 4 --stride 4 --device cpu --store features/own.zarr", "status",
      f"detect videos/{name} --device cpu --output made"), 0.3)
      for name in ("v2.mp4", "more/v.mkv", "more/v.avi")),
    Target("videos/list/v.m3u8", "text", (f"{EXTRACT} videos/list/v.m3u8 --store features/own.zarr",
           "init --videos videos --workspace made"), 0.5),
    Target("videos/v1.mp4", "name", ("init --videos videos --workspace made", "status"), 1),
    Target("npy/v1.npy", "name", ("import npy", f"{LITE_TRAIN} --features npy --output "
           "runs/o"), 0.7),
    Target("annotations/v0.srt", "name", (init_of("annotations"),), 0.5),
    Target("detections/v2.scores.npz", "name", ("export --format json,html", "status"), 0.5),
    Target("detections/v2.json", "name", _DETECTED, 0.5),
)  # fmt: skip

COMMANDS = (
    "init --videos videos --annotations annotations/labels.json",
    "import npy",
    EXTRACT,
    f"{LITE_TRAIN} --features npy --output runs/npy",
    f"{LITE_TRAIN} --seed 4",
    TRAIN,
    DETECT,
    "status",
)
"""Make the workspace of the inputs."""


def write_inputs(folder: Path) -> None:
    """Write what the commands do not: videos, annotations, arrays, weights and predictions."""
    folder.mkdir(parents=True)
    from tests.videos import encode, encode_pieces

    for number, id in enumerate(VIDEOS):
        path = folder / f"videos/{id}.mp4"
        path.parent.mkdir(exist_ok=True)
        write_video(path, squares(number, FRAMES), FPS)
    for name in ("more/v.mkv", "more/v.avi", "list/v.m3u8"):
        path = folder / "videos" / name
        path.parent.mkdir(exist_ok=True)
        write = encode_pieces if path.suffix == ".m3u8" else encode
        write(path, 20)
    for name, text in {**ANNOTATIONS, "classes.txt": "\n".join(CLASSES) + "\n"}.items():
        path = folder / "annotations" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    rng = np.random.default_rng(0)
    (folder / "npy").mkdir()
    for number, id in enumerate(VIDEOS):
        rows = 12 + 3 * number
        np.save(folder / f"npy/{id}.npy", rng.normal(size=(rows, WIDTH)).astype(np.float32))
    np.save(folder / "npy/v0_timestamps_ms.npy", np.arange(12) * 130.0)
    _write_weights(folder / "weights")
    _write_predictions(folder / "predictions")
    (folder / "charades.json").write_text(json.dumps({**_FORMAT, **LABELS}))


def _write_weights(folder: Path) -> None:
    """Write weights of every kind: of the authors' networks, and of a backbone."""
    import torch
    from safetensors.torch import save_file

    from mstemba.extractors.registry import BACKBONES
    from mstemba.model.architectures import build, config_from_dict
    from mstemba.tensor_files.reading import read_tensors

    folder.mkdir()
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"in_features": WIDTH, "classes": len(CLASSES)}
    linear = build(config_from_dict({"arch": "linear", **sizes}))
    own = {"widths": [8, 8, 8], "state": 2}
    mstemba = build(config_from_dict({"arch": "mstemba", **sizes, **own}))
    torch.save(linear.state_dict(), folder / "linear.pth")
    torch.save(linear.state_dict(), folder / "old.pth", _use_new_zipfile_serialization=False)
    torch.save({"model": mstemba.state_dict()}, folder / "mstemba.pth")
    save_file(linear.state_dict(), folder / "linear.safetensors")
    script = torch.jit.script(torch.nn.Sequential(OrderedDict(linear.named_children())))
    torch.jit.save(script, str(folder / "script.pt"))
    packaged = read_tensors(Path(BACKBONES["efficientnet-lite0"].default_weights()))
    tensors = {name: value.contiguous() for name, value in packaged.items()}
    torch.save(tensors, folder / "eff.pth")
    save_file(tensors, folder / "eff.safetensors")


def _write_predictions(folder: Path) -> None:
    folder.mkdir()
    rng = np.random.default_rng(1)
    scores = rng.random((4, len(CLASSES))).astype(np.float32)
    np.savez(folder / "dense.npz", v2=scores)
    (folder / "dense.pkl").write_bytes(pickle.dumps({"v2": scores}))
    (folder / "dense.json").write_text(json.dumps({"v2": scores.tolist()}))
    segment = {"label": "stands", "segment": [0.2, 0.9], "score": 0.8}
    (folder / "segments.json").write_text(json.dumps({"results": {"v2": [segment]}}))


def leave_unfinished(workspace: Path) -> None:
    """Leave the state of a killed training in `runs/resumed`, and a video that failed.

    A configuration loses its SHA-256, by which every other change of it would be refused.
    """
    (store,) = workspace.glob("features/eff*")
    (store / "failures.json").write_text('{"v1": "cannot be decoded"}\n')
    (config,) = workspace.glob("runs/mstemba-*/best/config.json")
    content = json.loads(config.read_text())
    del content["sha256"]
    config.write_text(json.dumps(content))
    from mstemba.pipeline.options import TrainOptions, TrainRunOptions
    from mstemba.pipeline.train.stage import train
    from tests.training import KilledError, kill_at

    os.chdir(workspace)
    options = TrainOptions(arch="linear", epochs=1, min_steps=4, max_steps=4, seed=5)
    here = TrainRunOptions(device="cpu", trackers="none", checkpoint_seconds=0)
    with contextlib.suppress(KilledError):
        train(options, here, output="runs/resumed", on_event=kill_at(3))
