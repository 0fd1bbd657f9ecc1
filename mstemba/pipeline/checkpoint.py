"""Checkpoints: trained models on disk, with everything needed to run them on a raw video.

A checkpoint is a folder with `model.safetensors` and `config.json`, which holds the architecture,
the classes, the specification of the features and the training options.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NotRequired, TypedDict

import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

from mstemba.errors import CheckpointError, OutOfMemory, UsageError, first_line
from mstemba.limits import MOST_CLASSES
from mstemba.model.architectures import config_from_dict
from mstemba.pipeline.caching.files import write_atomically
from mstemba.pipeline.caching.keys import file_sha256, spec_key, unchanged
from mstemba.pipeline.devices import is_out_of_memory
from mstemba.pipeline.options import LABEL_RULES
from mstemba.pipeline.progress import Event, EventHandler, ignore_events
from mstemba.pipeline.workspace import Workspace, get_current
from mstemba.reading import digests
from mstemba.reading.files import read_bytes, real_path
from mstemba.reading.typed import (
    ClassName,
    Count,
    Finite,
    Name,
    PathText,
    convert,
    parse_untyped,
    read_json,
    shown,
)
from mstemba.records import FeatureSpec, FloatArray, check_finite
from mstemba.tensor_files.safetensors_file import DIGEST, NO_DIGEST, stored_digest, with_digest
from mstemba.wording import counted

if TYPE_CHECKING:
    from torch import nn

    from mstemba.model.architectures import Network

FORMAT = "mstemba-checkpoint"
VERSION = 1
CONFIG, WEIGHTS, DONE = "config.json", "model.safetensors", "done.json"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose configuration is read and checked, and whose weights are not loaded."""

    folder: Path
    model: dict[str, Any]
    """The network's configuration."""
    classes: tuple[str, ...]
    """Names of the classes, in the order of the scores."""
    spec: FeatureSpec
    """The features that it was trained on, and needs."""
    weights_file: str | None
    """Path of the backbone's weights, if they were a local file."""
    train_key: str
    """The cache key of its training."""
    trained_on: frozenset[str] = frozenset()
    """`short_key` of the features of its training videos; empty if they are unknown."""
    released_length: int | None = None
    """Rows to which a video is padded or cut, for the authors' weights; None for ours."""
    untrained: tuple[str, ...] | None = None
    """Names of the classes without a positive row in its training; None if that is not known."""
    labels: str = "strict"
    """The rule by which actions labelled the rows in training."""

    def load(self, device: str, on_event: EventHandler = ignore_events) -> Network:
        """Load the model in evaluation mode.

        Raises:
            CheckpointError: Its weights are damaged.
            OutOfMemory: The network does not fit into the device's memory.
        """
        import torch

        from mstemba.model.config import ModelConfig
        from mstemba.model.scan.backends import describe_choice
        from mstemba.model.weights import load_model

        # A weights file does not tell how it is to be run.
        choices = {k: self.model[k] for k in ("split", "padding") if k in self.model}
        with unchanged(self.weights, self.sha256), _memory_for("the network", device):
            model = load_model(self.folder, device, **(choices if self.released_length else {}))
        if isinstance(model.config, ModelConfig):
            on_event(Event("model", describe_choice(torch.device(device))))
        return model

    @property
    def weights(self) -> Path:
        """The weights file."""
        return self.folder / WEIGHTS if self.folder.is_dir() else self.folder

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the weights file, when it was asked for first."""
        return file_sha256(self.weights)

    def key_parts(self) -> dict[str, Any]:
        """Return what decides the scores, apart from the features."""
        return {"weights": self.sha256, "model": self.model, "classes": self.classes}


def save_weights(path: Path, network: nn.Module) -> None:
    """Write a network's tensors, with the SHA-256 of the file in it, completely or not at all."""
    import safetensors.torch

    tensors = {name: w.detach().cpu().contiguous() for name, w in network.state_dict().items()}
    content = with_digest(safetensors.torch.save(tensors, {DIGEST: NO_DIGEST}))
    write_atomically(path, lambda temporary: temporary.write_bytes(content))


class CheckpointConfig(Struct):
    """The content of config.json, without what only a reader of the file needs."""

    model: dict[str, Any]
    """The network's configuration."""
    classes: Annotated[tuple[ClassName, ...], Meta(min_length=1, max_length=MOST_CLASSES)]
    features: dict[str, Any]
    """Specification of the features."""
    weights_file: PathText | None
    key: PathText
    train: dict[PathText, PathText | int | Finite | bool | None] = {}
    """Options of the training, by name."""
    untrained_classes: tuple[ClassName, ...] | None = None
    trained_on: str = ""

    @property
    def spec(self) -> FeatureSpec:
        """The features. Raises UsageError if there are no such ones."""
        return FeatureSpec.from_dict(self.features)

    @property
    def labels(self) -> str:
        """The rule by which actions labelled the rows."""
        return str(self.train.get("labels", LABEL_RULES[0]))

    def check(self) -> None:
        """Raise UsageError if the network, its features, its classes or its labels cannot be."""
        network = config_from_dict(self.model)
        if len(self.classes) != network.classes:
            found = counted(len(self.classes), "class")
            raise UsageError(f"{found}, but the network is made for {network.classes}")
        if twice := [name for name, count in Counter(self.classes).items() if count > 1]:
            raise UsageError(f"class name {shown(twice[0])} appears twice")
        if not all(name.strip() for name in self.classes):
            raise UsageError("a class without a name")
        if (width := self.spec.width) != network.in_features:
            raise UsageError(
                f"features of width {width}, but the network is made for {network.in_features}"
            )
        if self.labels not in LABEL_RULES:
            rules = ", ".join(LABEL_RULES)
            raise UsageError(f"labels {shown(self.labels)}, expected one of {rules}")


class Done(TypedDict):
    """The content of done.json, the marker of a finished run."""

    checkpoint: Literal["best", "last"]
    score: Annotated[float, Meta(ge=0, le=100)] | None
    """Validation mAP in percent."""
    steps: Count
    seconds: Annotated[float, Meta(ge=0, le=1e12)]
    planned_steps: NotRequired[Count]
    stopped: NotRequired[Name]
    key: NotRequired[Name]
    weights: NotRequired[Name]
    """The SHA-256 that the checkpoint's weights carry."""


def checkpoint_config(
    model: dict[str, Any],
    classes: tuple[str, ...],
    spec: FeatureSpec,
    weights_file: str | None,
    train: dict[str, Any],
    key: str,
    untrained: Sequence[str] | None = None,
    trained_on: Iterable[str] = (),
) -> dict[str, Any]:
    """Return the content of config.json. Equal runs give equal files: no time and no path in it."""
    content = {
        "format": FORMAT,
        "version": VERSION,
        "model": model,
        "classes": list(classes),
        "features": spec.as_dict(),
        "features_key": spec_key(spec),
        "weights_file": weights_file,
        "train": train,
        **({} if untrained is None else {"untrained_classes": list(untrained)}),
        "key": key,
        # One text: a list would take a line a video.
        "trained_on": " ".join(sorted(trained_on)),
    }
    return digests.with_digest(content)


def short_key(features: str) -> str:
    """Return the beginning of a key of features, by which `trained_on` names a video."""
    return features[:12]


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a checkpoint.

    Args:
        path: The folder, one of its files, or a run folder, whose best checkpoint is opened.

    Raises:
        CheckpointError: Nothing is there, it is damaged or of another version, or it is a weights
            file without a configuration. Pickled code is refused and never executed.
    """
    if not path.exists():
        raise CheckpointError(f"{path}: no such checkpoint")
    folder, done = path if path.is_dir() else path.parent, None
    if path.is_dir() and (path / DONE).is_file():
        done = read_done(path)
        folder = path / done["checkpoint"]
    if path.is_file() and path.name not in (WEIGHTS, CONFIG):
        from mstemba.model.weights import read_weights

        read_weights(path)  # a damaged file is reported before a missing configuration
        raise CheckpointError(
            f"{path}: holds only weights; a checkpoint is a folder with {WEIGHTS} and {CONFIG}, "
            f"which names the classes and the backbone. To run the authors' weights, use "
            f"`mstemba evaluate --released`"
        )
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise CheckpointError(
                f"{folder}: not a checkpoint, it has no {name}. Create one with `mstemba train`"
            )
    config = read_config(folder)
    if done is not None and not _belong_together(done, config, folder / WEIGHTS):
        raise CheckpointError(
            f"{folder}: not the result of the training that {path / DONE} describes; "
            f"`mstemba train` makes it again, or pass --checkpoint {folder}"
        )
    return Checkpoint(
        folder=folder,
        model=config.model,
        classes=config.classes,
        spec=config.spec,
        weights_file=config.weights_file,
        train_key=config.key,
        untrained=config.untrained_classes,
        trained_on=frozenset(config.trained_on.split()),
        labels=config.labels,
    )


def _belong_together(done: Done, config: CheckpointConfig, weights: Path) -> bool:
    """Return whether a checkpoint is what a training left. The first versions noted no SHA-256."""
    try:
        found = stored_digest(weights)
    except (ValueError, OSError):
        return True  # told when the weights are loaded
    return done.get("key", config.key) == config.key and done.get("weights", found) == found


def read_config(folder: Path, verify: bool = True) -> CheckpointConfig:
    """Read the config.json of a checkpoint.

    Args:
        folder: Of the checkpoint.
        verify: Whether to check the content against the SHA-256 in it. The first versions wrote
            none.

    Raises:
        CheckpointError: It is missing or damaged, or describes an impossible network.
    """
    path = folder / CONFIG
    content = read_bytes(path, CheckpointError)
    data = parse_untyped(content, str(path), CheckpointError, unique=True)
    if isinstance(data, dict) and (data.get("format"), data.get("version")) != (FORMAT, VERSION):
        raise CheckpointError(
            f"{path}: format {shown(data.get('format'))}, version {shown(data.get('version'))}; "
            f"expected {FORMAT!r}, version {VERSION}"
        )
    config = convert(data, CheckpointConfig, str(path), CheckpointError)
    try:
        config.check()
    except UsageError as error:
        raise CheckpointError(f"{path}: {error}") from None
    if verify:
        digests.check_digest(data, str(path), CheckpointError)
    return config


def open_released(
    path: Path, classes: tuple[str, ...], spec: FeatureSpec, length: int
) -> Checkpoint:
    """Open weights that the authors published, to be run as their code runs them.

    Every video is padded with zeros, or cut, to a fixed length, the padding is scanned like any
    row, and version 1 splits into contiguous parts. Otherwise the published scores are not reached.

    Args:
        path: A weights file.
        classes: Of the manifest.
        spec: Of the features.
        length: Rows to which videos are padded or cut.

    Raises:
        CheckpointError: The weights belong to another network, other classes or other features.
    """
    from mstemba.model.weights import infer_config, read_weights

    if path.is_dir():
        raise CheckpointError(f"{path}: a folder, expected a file of released weights")
    config = infer_config(read_weights(path))
    for what, found, expected in (
        ("classes", config.classes, len(classes)),
        ("features a row", config.in_features, spec.width),
    ):
        if found != expected:
            raise CheckpointError(
                f"{path}: made for {found} {what}, but manifest and features have {expected}"
            )
    model = config.to_dict()
    if "padding" in model:
        model |= {"padding": "released"}
        model |= {"split": "contiguous"} if config.arch == "mstemba" else {}
    return Checkpoint(path, model, classes, spec, None, "", released_length=length)


def read_done(run: Path) -> Done:
    """Read the marker of a finished run. Raises CheckpointError if it is damaged."""
    try:
        return read_json(run / DONE, Done, CheckpointError)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; `mstemba train` makes it again") from None


def find_checkpoint(given: Path | None, workspace: Workspace | None) -> Checkpoint:
    """Open the given checkpoint, or the one of the workspace's last training.

    Raises:
        UsageError: Nothing is given and the workspace has no finished training.
        CheckpointError: See `open_checkpoint`.
    """
    if given is not None:
        return open_checkpoint(given)
    if workspace is None:
        raise UsageError(
            "no workspace here: pass --checkpoint, or run in a workspace with a trained model"
        )
    run = get_current(workspace.runs)
    if run is not None and (run.parent != workspace.runs or run.name == ".."):
        name = os.path.relpath(run, workspace.runs)
        raise CheckpointError(
            f"{workspace.runs / 'current'}: found {shown(name)}, expected the name of a run in "
            f"{workspace.runs}; write one into it, or pass --checkpoint"
        )
    if run is None or not (run / DONE).is_file():
        raise UsageError(
            f"no training has finished in the workspace {real_path(workspace.root)}: "
            f"run `mstemba train`, or pass --checkpoint"
        )
    return open_checkpoint(run)


def score(
    model: Network, features: FloatArray, released_length: int | None = None
) -> NDArray[np.float32]:
    """Score every row of a video.

    Args:
        model: In evaluation mode.
        features: (T, F), a whole video.
        released_length: Pad with zeros, or cut, to this many rows, as the released code does.

    Returns:
        (T, C) probabilities; at most `released_length` rows.

    Raises:
        StoreError: The features contain NaN or infinity.
        CheckpointError: The scores do.
        OutOfMemory: The video does not fit into the device's memory.
    """
    import torch

    device = next(model.parameters()).device
    length = released_length or len(features)
    with _memory_for(f"a video of {counted(length, 'row')}", str(device)), torch.inference_mode():
        rows = np.asarray(features, np.float32)
        check_finite(rows)
        rows = rows[:length]
        rows = np.pad(rows, ((0, length - len(rows)), (0, 0)))
        batch = torch.from_numpy(rows)[None].to(device)
        logits = model(batch, checked=True).logits[0, : len(features)]
        probabilities: NDArray[np.float32] = logits.float().sigmoid().cpu().numpy()
    if not np.isfinite(probabilities).all():
        largest = np.abs(rows).max()
        large = f", or the features are too large (up to {largest:.0e})" if largest > 1e4 else ""
        raise CheckpointError(
            f"the network's scores contain NaN: its weights are damaged, or its training diverged"
            f"{large}; use another checkpoint, or train again with a lower --lr"
        )
    return probabilities


@contextmanager
def _memory_for(what: str, device: str) -> Iterator[None]:
    """Turn an out-of-memory error of a device into OutOfMemory, which says what to do."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        advice = "use a machine with more memory" if device == "cpu" else "try --device cpu"
        raise OutOfMemory(
            f"{device} does not have enough memory for {what}: {advice} ({first_line(error)})"
        ) from error
