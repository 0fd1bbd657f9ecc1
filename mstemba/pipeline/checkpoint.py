"""A trained model on disk, with everything needed to run it on a raw video.

A checkpoint is a folder with `model.safetensors` and `config.json`, which holds the architecture,
the classes, the backbone's specification and the training options.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mstemba.errors import CheckpointError, UsageError
from mstemba.pipeline.caching.files import read_json, write_atomically
from mstemba.pipeline.caching.keys import file_sha256, spec_key
from mstemba.pipeline.progress import Event, EventHandler, ignore_events
from mstemba.pipeline.workspace import Workspace, get_current
from mstemba.records import FeatureSpec, FloatArray, check_finite

if TYPE_CHECKING:
    from torch import nn

    from mstemba.model.architectures import Network

FORMAT = "mstemba-checkpoint"
VERSION = 1
CONFIG, WEIGHTS, DONE = "config.json", "model.safetensors", "done.json"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder, its configuration read and checked, its weights not yet loaded."""

    folder: Path
    model: dict[str, Any]
    """The network's configuration."""
    classes: tuple[str, ...]
    spec: FeatureSpec
    """The features it was trained on, and needs."""
    weights_file: str | None
    """Where the backbone's weights file was, if it was a local one."""
    train_key: str
    released_length: int | None = None
    """Rows that a video is padded or cut to, for the authors' own weights; None for ours."""

    def load(self, device: str, on_event: EventHandler = ignore_events) -> Network:
        """The model in evaluation mode. Raises CheckpointError when the weights are damaged."""
        import torch

        from mstemba.model.config import ModelConfig
        from mstemba.model.scan import explain
        from mstemba.model.weights import load_model

        # Of bare weights the names do not tell how they are to be run.
        choices = {k: self.model[k] for k in ("split", "padding") if k in self.model}
        model = load_model(self.folder, device, **(choices if self.released_length else {}))
        if isinstance(model.config, ModelConfig):
            on_event(Event("model", explain(torch.device(device))))
        return model

    def sha256(self) -> str:
        """Fingerprint of the weights."""
        return file_sha256(self.folder / WEIGHTS if self.folder.is_dir() else self.folder)

    def key_parts(self) -> dict[str, Any]:
        """What decides the scores, beside the features."""
        return {"weights": self.sha256(), "model": self.model, "classes": self.classes}


def save_weights(path: Path, network: nn.Module) -> None:
    """Write a network's tensors into a safetensors file, which appears complete or not at all."""
    import safetensors.torch

    tensors = {name: w.detach().cpu().contiguous() for name, w in network.state_dict().items()}
    content = safetensors.torch.save(tensors)
    write_atomically(path, lambda temporary: temporary.write_bytes(content))


def checkpoint_config(
    model: dict[str, Any],
    classes: tuple[str, ...],
    spec: FeatureSpec,
    weights_file: str | None,
    train: dict[str, Any],
    key: str,
) -> dict[str, Any]:
    """The content of config.json; no time and no path of a run: equal runs give equal files."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "model": model,
        "classes": list(classes),
        "features": spec.as_dict(),
        "features_key": spec_key(spec),
        "weights_file": weights_file,
        "train": train,
        "key": key,
    }


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a checkpoint folder, a run's folder (its chosen checkpoint), or a file in one.

    Raises CheckpointError: nothing there, no configuration beside the weights, another version, or
    a weights file that holds pickled code, which is refused and never executed.
    """
    if not path.exists():
        raise CheckpointError(f"{path}: no such checkpoint")
    folder = path if path.is_dir() else path.parent
    if path.is_dir() and (path / DONE).is_file():
        folder = path / read_done(path)["checkpoint"]
    if path.is_file() and path.name not in (WEIGHTS, CONFIG):
        from mstemba.model.weights import read_weights

        read_weights(path)  # says what is wrong with the file before what is missing beside it
        raise CheckpointError(
            f"{path}: holds weights alone; a checkpoint is a folder with {WEIGHTS} and {CONFIG}, "
            f"which names the classes and the backbone. The authors' weights are run by "
            f"`mstemba evaluate --released`"
        )
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise CheckpointError(
                f"{folder}: no checkpoint, it has no {name}. Make one with `mstemba train`"
            )
    try:
        config = read_json(folder / CONFIG)
        if config["format"] != FORMAT or config["version"] != VERSION:
            raise CheckpointError(
                f"{folder}: format {config['format']!r} version {config['version']}, "
                f"expected {FORMAT!r} {VERSION}"
            )
        return Checkpoint(
            folder=folder,
            model=dict(config["model"]),
            classes=tuple(config["classes"]),
            spec=FeatureSpec.from_dict(config["features"]),
            weights_file=config["weights_file"],
            train_key=config["key"],
        )
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / CONFIG}: damaged: {error!r}") from None


def open_released(
    path: Path, classes: tuple[str, ...], spec: FeatureSpec, length: int
) -> Checkpoint:
    """Weights as the authors publish them, to be run as their code runs them.

    Every video is padded with zeros, or cut, to `length` rows; the padding is scanned like any row,
    and version 1 splits into contiguous parts. Only so do released weights give released numbers.
    Raises CheckpointError for weights of another network, of other classes or of other features.
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
                f"{path}: made for {found} {what}, the manifest and the features have {expected}"
            )
    model = config.to_dict()
    if "padding" in model:
        model |= {"padding": "released"}
        model |= {"split": "contiguous"} if config.arch == "mstemba" else {}
    return Checkpoint(path, model, classes, spec, None, "", released_length=length)


def read_done(run: Path) -> dict[str, Any]:
    """The marker of a finished run. Raises CheckpointError when it is damaged."""
    try:
        done: dict[str, Any] = read_json(run / DONE)
        if done["checkpoint"] in ("best", "last"):
            return done
        problem = f"checkpoint {done['checkpoint']!r}"
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = repr(error)
    raise CheckpointError(f"{run / DONE}: damaged: {problem}; delete the run and train again")


def find_checkpoint(given: Path | None, workspace: Workspace | None) -> Checkpoint:
    """The checkpoint named, else the one the workspace's last `train` made."""
    if given is not None:
        return open_checkpoint(given)
    if workspace is None:
        raise UsageError(
            "no workspace here: name a --checkpoint, or run in a workspace with a trained model"
        )
    run = get_current(workspace.runs)
    if run is None or not (run / DONE).is_file():
        raise UsageError(
            f"no training has finished in the workspace {workspace.root.resolve()}: "
            f"run `mstemba train`, or name a --checkpoint"
        )
    return open_checkpoint(run)


def score(
    model: Network, features: FloatArray, released_length: int | None = None
) -> NDArray[np.float32]:
    """(T, F) features of a whole video to (T, C) probabilities.

    With a `released_length`, as the released code does: zeros up to that length, and no more rows
    than that come back. Raises StoreError for features that are no numbers, CheckpointError for a
    network that makes such scores.
    """
    import torch

    check_finite(features)
    device = next(model.parameters()).device
    rows = np.asarray(features, np.float32)
    if released_length is not None:
        rows = rows[:released_length]
        rows = np.pad(rows, ((0, released_length - len(rows)), (0, 0)))
    batch = torch.from_numpy(rows)[None].to(device)
    with torch.inference_mode():
        logits = model(batch).logits[0, : len(features)]
    probabilities: NDArray[np.float32] = logits.float().sigmoid().cpu().numpy()
    if not np.isfinite(probabilities).all():
        raise CheckpointError(
            "the network's scores are no numbers (NaN): its weights are damaged, or its training "
            "diverged; take another checkpoint, or train again at a lower --lr"
        )
    return probabilities
